"""The request that asks another target to go on with an answer, made of the client's own.

Everything the client asked for stays, except for what would contradict going on: the answer so far is put behind the
conversation, the limit of tokens is lowered by what was delivered, and an answer in the middle of a JSON document cannot be forced to be
a document by itself (the joined text is checked instead).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.encode
_decode = msgspec.json.decode

ASSISTANT_PREFIX = "assistant-prefix"  # the last message is the answer's beginning: Anthropic, Mistral, DeepSeek
FINAL_MESSAGE = "continue_final_message"  # the same with vLLM's and SGLang's own flag
INSTRUCTION = "none"  # a user message asks to go on
LIMITS = ("max_tokens", "max_completion_tokens")


class Asked(msgspec.Struct):
    """What the client asked for, as far as it decides about going on."""

    chat: bool = True
    json: bool = False  # the answer is to be a JSON document
    whole: str = ""  # why it can only be asked for as a whole, empty if that is not so


def asked(body: bytes, sets: Sequence[tuple[bytes, bytes]]) -> Asked:
    """Reads a request body (it is known to be a JSON object). Costs microseconds; done when a stream has broken."""
    fields: dict[str, Any] = _decode(body)
    fields.update((name.decode(), _decode(value)) for name, value in sets)
    chat = "messages" in fields
    out = Asked(chat)
    form = fields.get("response_format")
    out.json = isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")
    if (fields.get("n") or 1) != 1 or (fields.get("best_of") or 1) != 1:
        out.whole = "several choices"
    elif fields.get("logprobs") not in (None, False) or fields.get("top_logprobs"):
        out.whole = "logprobs"
    elif isinstance(fields.get("modalities"), list) and set(fields["modalities"]) - {"text"}:
        out.whole = "more than text"
    elif not chat and (_prompt(fields) is None or fields.get("echo") or fields.get("suffix")):
        out.whole = "a prompt that nothing can be put behind"
    elif chat and not isinstance(fields["messages"], list):
        out.whole = "no messages"
    return out


def _prompt(fields: dict[str, Any]) -> str | None:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def resume_body(body: bytes, head: str, mode: str, instruction: str, spent: int) -> bytes:
    """The body that asks to go on behind `head`.

    `mode`: one of the three above (a completions prompt is simply longer). `instruction`: the user's message, where the
    mode needs one. `spent`: tokens by which the client's limit is lowered.
    """
    fields = _raws(body)
    for name in LIMITS:
        if (raw := fields.get(name)) is not None:
            limit = _decode(raw)
            if isinstance(limit, int | float) and limit > 0:
                fields[name] = msgspec.Raw(b"%d" % max(1, int(limit) - spent))
    if "messages" not in fields:
        fields["prompt"] = msgspec.Raw(_encode((_prompt({"prompt": _decode(fields["prompt"])}) or "") + head))
        return _encode(fields)
    fields.pop("response_format", None)
    messages = _list(fields["messages"])
    more: list[dict[str, Any]] = []
    if head:
        last = _decode(messages[-1]) if messages else None
        if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            # The client itself has begun the answer; ours is the rest of the same message.
            messages.pop()
            more.append({**last, "content": last["content"] + head})
        else:
            more.append({"role": "assistant", "content": head})
        if mode == ASSISTANT_PREFIX:
            more[-1]["prefix"] = True
    if mode == INSTRUCTION or not head:
        more.append({"role": "user", "content": instruction})
    elif mode == FINAL_MESSAGE:
        fields["continue_final_message"] = msgspec.Raw(b"true")
        fields["add_generation_prompt"] = msgspec.Raw(b"false")
    fields["messages"] = msgspec.Raw(_encode([*messages, *more]))
    return _encode(fields)
