"""A kept answer as the stream a client asked for. Pure.

Pieces end at word boundaries, as a provider's do, but are longer: nobody waits for them.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_encode = msgspec.json.encode
_PIECE = re.compile(r".{1,160}(?:\s+|\Z)|.{1,160}", re.DOTALL)
_TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
_INNER = ("index", "message", "text", "finish_reason", "logprobs")
# Of a whole answer, what does not stand in each of a stream's chunks.
_OUTER = ("choices", "usage", "object")
DONE = b"data: [DONE]\n\n"


def as_stream(body: bytes, chat: bool, usage: bool) -> bytes:
    """All events of a stream that says what the answer `body` says, `[DONE]` at its end. `usage`: with the closing chunk
    that carries it. Raises ValueError where `body` is no answer."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
        choices = answer["choices"]
        face = {name: value for name, value in answer.items() if name not in _OUTER}
        face["object"] = "chat.completion.chunk" if chat else "text_completion"
        head = b"data: " + _encode(face)[:-1] + b',"choices":['
        out: list[bytes] = []
        for choice in choices:
            for said in _chat(choice) if chat else _text(choice):
                out += (head, _encode(said), b"]}\n\n")
    except (KeyError, TypeError, AttributeError, msgspec.DecodeError) as wrong:
        raise ValueError(f"no answer: {wrong}") from None
    if usage and answer.get("usage") is not None:
        out += (head, b'],"usage":', _encode(answer["usage"]), b"}\n\n")
    out.append(DONE)
    return b"".join(out)


def _chat(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    index, message = choice.get("index") or 0, choice["message"]
    logprobs = choice.get("logprobs")

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    # The role, and whatever else a message may carry, at once.
    first = {
        name: value for name, value in message.items() if name not in (*_TEXTS, "tool_calls") and value is not None
    }
    yield chunk({"role": "assistant", **first, "content": ""})
    for name in _TEXTS:
        text = message.get(name)
        if not isinstance(text, str) or not text:
            continue
        if logprobs is not None and name == "content":
            # They belong to tokens, and where those lie in the text is not said.
            yield {**chunk({name: text}), "logprobs": logprobs}
            continue
        for piece in _PIECE.findall(text):
            yield chunk({name: piece})
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function")
        if not isinstance(function, dict):  # a custom tool's: as it is
            yield chunk({"tool_calls": [{"index": number, **call}]})
            continue
        yield chunk({"tool_calls": [{"index": number, **call, "function": {**function, "arguments": ""}}]})
        if arguments := function.get("arguments"):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": arguments}}]})
    yield chunk({}, choice.get("finish_reason"))


def _text(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    index, text, logprobs = choice.get("index") or 0, choice["text"], choice.get("logprobs")
    pieces = [text] if logprobs is not None else _PIECE.findall(text)
    for piece in pieces:
        yield {"index": index, "text": piece, "logprobs": logprobs, "finish_reason": None}
    yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}
