"""A whole answer put together from the events of a stream. Pure."""

from typing import Any

import msgspec

from . import chunk as wire

MOST_BYTES = 32 * 1024 * 1024  # as of an answer that is not streamed

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class Assembly:
    """Takes a stream's bytes as a client would, and makes the JSON that the client asked for."""

    relay_to = None  # no engine writes to it

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._size = 0
        self._outer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None

    async def send(self, data: bytes, more: bool) -> None:
        self.push(data)

    def push(self, data: bytes) -> bool:
        self._size += len(data)
        if self._size <= 4 * MOST_BYTES:  # a token is a hundred bytes of event
            self._events.append(data)
        return True

    def read(self, chat: bool) -> None:
        """Look into what came so far (it ends with a whole event): `answer` has the less to do."""
        events, self._events = b"".join(self._events), []
        for event in wire.split(events):
            chunk = wire.read(wire.data_of(event) or b"")
            if chunk is None:
                continue
            self._usage = chunk.pop("usage", None) or self._usage
            for choice in chunk.pop("choices", None) or ():
                if isinstance(choice, dict):
                    index = choice.get("index") if isinstance(choice.get("index"), int) else 0
                    _add(self._choices.setdefault(index or 0, {"index": index or 0}), choice, chat)
            for name, value in chunk.items():
                if value is not None:
                    self._outer.setdefault(name, value)

    def answer(self, chat: bool, usage: Any = None) -> bytes | None:
        """The body; None if there was no finished choice, or too much. `usage` stands in where the stream had none."""
        if self._size > 4 * MOST_BYTES:
            return None
        self.read(chat)
        choices, outer = self._choices, self._outer
        if not choices or not all(choice.get("finish_reason") for choice in choices.values()):
            return None
        outer["object"] = "chat.completion" if chat else "text_completion"
        outer["choices"] = [_whole(choices[index], chat) for index in sorted(choices)]
        usage = self._usage or usage
        if usage is not None:
            outer["usage"] = usage
        return msgspec.json.encode(outer)


def _add(have: dict[str, Any], choice: dict[str, Any], chat: bool) -> None:
    for name, value in choice.items():
        if name == "delta" and isinstance(value, dict):
            _add_delta(have.setdefault("message", {}), value)
        elif name == "text" and not chat:
            have.setdefault("text", []).append(value or "")
        elif name == "logprobs" and isinstance(value, dict):
            kept = have.setdefault("logprobs", {})
            for key, more in value.items():
                kept[key] = (kept.get(key) or []) + more if isinstance(more, list) else more
        elif name != "index" and value is not None:
            have[name] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name in _TEXTS and isinstance(value, str):
            message.setdefault(name, []).append(value)
        elif name == "tool_calls" and isinstance(value, list):
            calls = message.setdefault("tool_calls", {})
            for call in value:
                if isinstance(call, dict):
                    index = call.get("index")
                    if not isinstance(index, int):
                        index = len(calls) if call.get("id") or not calls else max(calls)
                    _add_call(calls.setdefault(index, {}), call)
        elif name == "function_call" and isinstance(value, dict):
            _add_call(message, {"function_call": value}, "function_call")
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name] += value
        else:
            message[name] = value


def _add_call(have: dict[str, Any], call: dict[str, Any], key: str = "function") -> None:
    for name, value in call.items():
        if name == key and isinstance(value, dict):
            function = have.setdefault(key, {})
            for part, text in value.items():
                if part == "arguments":
                    function[part] = function.get(part, "") + (text or "")
                elif text is not None:
                    function[part] = text
        elif name != "index" and value is not None:
            have[name] = value


def _whole(choice: dict[str, Any], chat: bool) -> dict[str, Any]:
    out = {"index": choice["index"], "logprobs": None, **choice}
    if not chat:
        out["text"] = "".join(choice.get("text", []))
        return out
    said = choice.get("message", {})
    message = {"role": "assistant", "content": None, **said}
    for name in _TEXTS:
        if isinstance(message.get(name), list):
            message[name] = "".join(message[name])
    if isinstance(message.get("tool_calls"), dict):
        message["tool_calls"] = [{"type": "function", **call} for _, call in sorted(message["tool_calls"].items())]
    elif message["content"] is None:
        message["content"] = ""
    out["message"] = message
    return out
