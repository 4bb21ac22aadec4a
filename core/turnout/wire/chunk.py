"""Chunks of a chat or completions stream, for the few that are looked into one by one: read, changed, made anew.

The usual chunk is never decoded here (`native.StreamScanner` reads it in passing). These functions serve what comes
after a cut-over and around a held tool call. What is not understood is left as it came.
"""

import re
from typing import Any

import msgspec

from ..exchange import Usage

DONE = b"data: [DONE]\n\n"

Chunk = dict[str, Any]
_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_encode = msgspec.json.encode
_decode = msgspec.json.decode
_REASONING = ("reasoning_content", "reasoning", "reasoning_details")


class Face(msgspec.Struct):
    """What a client may not see change in the middle of a stream."""

    id: Any = None
    created: Any = None
    model: Any = None
    object: Any = None


def split(data: bytes) -> list[bytes]:
    """Whole events, each with its closing empty line."""
    out: list[bytes] = []
    at = 0
    while found := _END.search(data, at):
        out.append(data[at : found.end()])
        at = found.end()
    if at < len(data):
        out.append(data[at:])
    return out


def data_of(event: bytes) -> bytes | None:
    """The data of one event; None for a comment or a lone `event:` line."""
    found = [line[5:].removeprefix(b" ") for line in _LINE.split(event) if line.startswith(b"data:")]
    return b"\n".join(found) if found else None


def read(data: bytes) -> Chunk | None:
    """A chunk; None for `[DONE]` and noise."""
    try:
        value = _decode(data)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def write(chunk: Chunk) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


def face_of(events: bytes) -> Face:
    """That of the first chunk that has an id."""
    for event in split(events):
        chunk = read(data_of(event) or b"")
        if chunk is not None and chunk.get("id") and chunk.get("choices"):
            return Face(chunk.get("id"), chunk.get("created"), chunk.get("model"), chunk.get("object"))
    return Face()


def put_on(chunk: Chunk, face: Face) -> None:
    """Make a chunk of a later attempt look like one of the first."""
    for name in ("id", "created", "model", "object"):
        value = getattr(face, name)
        if value is not None:
            chunk[name] = value
    # It named the first attempt's backend; another one's in the middle of an answer would be noise.
    chunk.pop("system_fingerprint", None)


def first_choice(chunk: Chunk) -> Chunk | None:
    """The choice of index 0, as far as it looks like one."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    found: Chunk = choices[0]
    return found


def text_of(choice: Chunk) -> str:
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def set_text(choice: Chunk, text: str) -> None:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        if text:
            delta["content"] = text
        else:
            delta.pop("content", None)
    else:
        choice["text"] = text


def take_calls(choice: Chunk) -> list[Chunk]:
    """The tool-call deltas of a choice, taken out of it."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return []
    calls = delta.pop("tool_calls", None)
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def drop_role(choice: Chunk) -> None:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        delta.pop("role", None)


def drop_reasoning(choice: Chunk) -> None:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        for name in _REASONING:
            delta.pop(name, None)


def says_nothing(choice: Chunk) -> bool:
    """Whether nothing is left of it that a client would miss."""
    delta = choice.get("delta")
    said = (
        any(value not in (None, "", []) for value in delta.values()) if isinstance(delta, dict) else choice.get("text")
    )
    return not said and not choice.get("finish_reason")


def saying(chunk: Chunk, delta: Chunk) -> Chunk:
    """A chunk like this one that says only `delta`."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {**{name: value for name, value in chunk.items() if name != "usage"}, "choices": [choice]}


def is_json(text: str) -> bool:
    try:
        _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def summed_usage(own: Chunk, before: Usage, added: int, asked: int) -> Chunk:
    """The client's usage after a cut-over: one prompt and all completion tokens.

    `before` sums the earlier attempts (its prompt is that of the first, 0 if not known), `added` is about what we put
    into this attempt's prompt, `asked` about what the client's own takes: a server whose number is too small to hold
    both did not count ours.
    """

    def number(name: str) -> int:
        value = own.get(name)
        return int(value) if isinstance(value, int | float) and value > 0 else 0

    prompt = number("prompt_tokens")
    if prompt - added >= asked // 2:
        prompt -= added
    prompt = before.prompt or prompt
    completion = before.completion + number("completion_tokens")
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
