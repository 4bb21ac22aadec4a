"""Which answers are worth keeping: whole ones that may be given again. Pure."""

from typing import Any

import msgspec

from ..exchange import Headers, Usage

FINISHED = frozenset(("stop", "tool_calls"))  # not: length, content_filter, or anything we do not know


class _Message(msgspec.Struct):
    audio: Any = None


class _Choice(msgspec.Struct):
    finish_reason: Any = None
    message: _Message | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    data: msgspec.Raw = msgspec.Raw()


_decode_answer = msgspec.json.Decoder(_Answer).decode


def is_sound(body: bytes, headers: Headers, surface: str) -> bool:
    """Whether it is one complete answer that may be given again."""
    for name, value in headers:
        if name == b"content-encoding" and value != b"identity":
            return False
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    if surface == "embeddings":
        return bytes(answer.data).startswith(b"[")
    choices = answer.choices
    if choices is None or len(choices) != 1 or choices[0].finish_reason not in FINISHED:
        return False
    message = choices[0].message
    # Audio is kept by the provider under a name, and not for long.
    return surface != "chat" or (message is not None and message.audio is None)


def usage_json(usage: Usage) -> dict[str, Any]:
    """As an answer says it."""
    out: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if usage.cached:
        out["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning:
        out["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return out
