"""Tool calls that are held until they are whole: deltas and `now` in, deltas out. Sans-IO.

A call's arguments come in fragments. Half a call is worse than none: an agent would act on it, or fail to parse it. So
the fragments are kept, and one delta with the whole call goes on as soon as its arguments are a complete JSON object
(which nothing but blanks can follow), or the answer finishes. (An empty object waits for the next call or the finish: some
servers begin every call with one and send the arguments after it.) Until then a break is repaired by asking for the turn
again, and nobody sees it. Calls go on in the order of their indexes, with the ids they came with.

After such a repetition the calls that were handed on before come once more: they are compared and swallowed. If one of
them differs, the new turn is another turn, and the two cannot be joined (`differs`).

What is held is bounded: over 64 KiB or 20 s (DESIGN, section 6) all of it is let go, and fragments pass from then on.
"""

from typing import Any

import msgspec

MOST_BYTES = 64 * 1024
MOST_NS = 20_000_000_000

Delta = dict[str, Any]


class Sent(msgspec.Struct):
    """A call the client has: what a repetition of the turn must say again."""

    name: str
    arguments: str


class _Call:
    __slots__ = ("arguments", "first", "sent", "size")

    def __init__(self, first: Delta) -> None:
        self.first = first
        self.arguments: list[str] = []
        self.size = 0
        self.sent = False


class Calls:
    """The calls of one attempt. `sent` are those the client has from attempts before."""

    def __init__(self, sent: list[Sent]) -> None:
        self.sent = sent
        self._before = list(sent)
        self._calls: dict[int, _Call] = {}
        self._last = -1
        self._size = 0
        self.since_ns = 0  # since when something is held, 0 = nothing is
        self.passing = False  # let go: fragments pass as they come
        self.differs = False

    @property
    def open(self) -> bool:
        """Whether the client has a part of a call."""
        return self.passing

    def feed(self, deltas: list[Delta], now_ns: int) -> list[Delta]:
        """Tool-call deltas of one chunk; what may be handed on."""
        if self.passing:
            return deltas
        out: list[Delta] = []
        for delta in deltas:
            index = delta.get("index")
            if not isinstance(index, int):
                # Some servers leave it out: an id begins a call, what has none goes on with the last one.
                index = self._last + 1 if delta.get("id") or self._last < 0 else self._last
            self._last = max(self._last, index)
            call = self._calls.get(index)
            function = delta.get("function")
            fragment = function.get("arguments") if isinstance(function, dict) else None
            fragment = fragment if isinstance(fragment, str) else ""
            began = False
            if call is None:
                began = bool(self._calls)  # the ones before it may be whole now
                call = self._calls[index] = _Call({**delta, "index": index})
            elif call.sent:
                if fragment.strip():
                    self.differs = True  # behind what was a whole object
                continue
            else:
                _merge(call.first, delta)
            self.since_ns = self.since_ns or now_ns
            call.arguments.append(fragment)
            call.size += len(fragment)
            self._size += len(fragment)
            if fragment.rstrip().endswith("}") or began:
                out += self._send_whole(False)
        if self.due(now_ns):
            out += self.release()
        return out

    def due(self, now_ns: int) -> bool:
        """Whether what is held has to be let go."""
        return self.since_ns > 0 and (self._size > MOST_BYTES or now_ns - self.since_ns >= MOST_NS)

    def release(self) -> list[Delta]:
        """Let go of what is held, whole or not."""
        if len(self._before) > len(self._calls) or self._swallowed() < len(self._before):
            return []  # still comparing: the client has these
        out = []
        for index in sorted(self._calls):
            call = self._calls[index]
            if not call.sent:
                call.sent = True
                out.append(_whole(call))
        self.since_ns = self._size = 0
        self.passing = True
        return out

    def finish(self) -> list[Delta]:
        """The answer finished: what is left is as whole as it gets."""
        out = [] if self.passing else self._send_whole(True)
        if self._swallowed() < len(self._before):
            self.differs = True  # a call the client has was not made this time
        return out

    def _swallowed(self) -> int:
        return min(len(self._before), sum(call.sent for call in self._calls.values()))

    def _send_whole(self, finished: bool) -> list[Delta]:
        """The calls that are whole, up to the first that is not."""
        out: list[Delta] = []
        for number, index in enumerate(sorted(self._calls)):
            call = self._calls[index]
            if call.sent:
                continue
            arguments = "".join(call.arguments)
            if not finished and not (_is_object(arguments) and (arguments.strip() != "{}" or index < self._last)):
                break
            call.sent = True
            self._size -= call.size
            function = call.first.get("function")
            name = str(function.get("name") or "") if isinstance(function, dict) else ""
            if number < len(self._before):
                self.differs |= not _same(self._before[number], name, arguments)
                continue
            self.sent.append(Sent(name, arguments))
            out.append(_whole(call))
        if all(call.sent for call in self._calls.values()):
            self.since_ns = 0
        return [] if self.differs else out


def _merge(first: Delta, more: Delta) -> None:
    """Fields of a later delta that the first did not have: a name or an id that came late."""
    for name, value in more.items():
        if name == "function" and isinstance(value, dict) and isinstance(first.get("function"), dict):
            _merge(first["function"], value)
        elif name not in ("index", "arguments") and value is not None and not first.get(name):
            first[name] = value


def _whole(call: _Call) -> Delta:
    function = call.first.get("function")
    function = function if isinstance(function, dict) else {}
    return {**call.first, "function": {**function, "arguments": "".join(call.arguments)}}


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _same(sent: Sent, name: str, arguments: str) -> bool:
    """Whether two calls ask for the same: as JSON, spelling aside."""
    if sent.name != name:
        return False
    try:
        same: bool = msgspec.json.decode(sent.arguments) == msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return sent.arguments == arguments
    return same
