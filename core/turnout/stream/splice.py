"""The slow gear: a stream whose events are looked at one by one. Sans-IO: whole events in, events out.

It serves what the fast gear (relay.py) must not pay for: an attempt that goes on where another broke, and one that
makes tool calls which are held. The scanner has read every event before, so breaks and noise are not met here.
"""

from collections.abc import Callable

from ..wire import chunk as wire
from ..wire.chunk import Chunk, Face
from .calls import Calls
from .seam import Seam

_NOT_JOINED = ("refusal", "function_call", "audio")


class Splice:
    """One attempt on its way into a stream.

    `face`: the look of the first attempt's chunks; None for the first attempt itself, whose events pass as they are.
    `seam`: where the text is joined; None if the client has no text yet. `said`: what text it has.
    `calls`: where tool calls are held, None if they pass. `usage`: makes the client's usage of this attempt's.
    `must_parse`: the joined text is to be a JSON document.
    """

    def __init__(
        self,
        *,
        face: Face | None = None,
        seam: Seam | None = None,
        said: str = "",
        calls: Calls | None = None,
        usage: Callable[[Chunk], Chunk] | None = None,
        drop_reasoning: bool = False,
        must_parse: bool = False,
    ) -> None:
        self._face = face
        self._seam = seam
        self._said = [said] if said else []
        self.calls = calls
        self._usage = usage
        self._drop_reasoning = drop_reasoning
        self._must_parse = must_parse
        self._last: Chunk = {}
        self.starved = False  # it ended for its length while it said again what the client has
        self.bad = ""  # why this attempt cannot be joined to what the client has

    @property
    def joined(self) -> bool:
        return self._seam is None or self._seam.found

    @property
    def said(self) -> str:
        """All text the client has; of the first attempt the reader knows it."""
        return "".join(self._said)

    @property
    def waiting(self) -> bool:
        """Whether something is held back from the client."""
        return not self.joined or (self.calls is not None and self.calls.since_ns > 0)

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What goes to the client of these whole events. Nothing once `bad` is set."""
        out = []
        for event in wire.split(data):
            out.append(self._event(event, now_ns))
            if self.bad:
                return b""
        return b"".join(out)

    def tick(self, now_ns: int) -> bytes:
        """What has been held for too long."""
        calls = self.calls
        if calls is None or self.bad or not calls.due(now_ns):
            return b""
        return self._calls_event(calls.release())

    def _event(self, event: bytes, now_ns: int) -> bytes:
        data = wire.data_of(event)
        if data is None:
            return event if self._face is None else b""
        chunk = wire.read(data)
        if chunk is None:
            return event if self.joined else b""
        choice = wire.first_choice(chunk)
        if self._face is None:
            return event if choice is None else self._own(event, chunk, choice, now_ns)
        wire.put_on(chunk, self._face)
        if isinstance(own := chunk.get("usage"), dict) and self._usage is not None:
            chunk["usage"] = self._usage(own)
        if choice is None:
            return wire.write(chunk) if "usage" in chunk and self.joined else b""
        return self._joined(chunk, choice, now_ns)

    # ---- the first attempt: its events pass as they came, but for tool calls

    def _own(self, event: bytes, chunk: Chunk, choice: Chunk, now_ns: int) -> bytes:
        calls = self.calls
        if calls is None:
            return event
        deltas = wire.take_calls(choice)
        if not deltas:
            if not choice.get("finish_reason"):
                return event
            self._last = chunk
            return self._calls_event(calls.finish()) + event
        self._last = chunk
        out = self._calls_event(calls.feed(deltas, now_ns))
        if choice.get("finish_reason"):
            out += self._calls_event(calls.finish())
        if calls.differs:
            self.bad = "the upstream added to a tool call that was whole"
        return out if wire.says_nothing(choice) else out + wire.write(chunk)

    # ---- a later one

    def _joined(self, chunk: Chunk, choice: Chunk, now_ns: int) -> bytes:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if any(delta.get(name) for name in _NOT_JOINED):
                self.bad = "the next answer is of another kind"
                return b""
            wire.drop_role(choice)
            if self._drop_reasoning:
                wire.drop_reasoning(choice)
        choice["index"] = 0
        deltas = wire.take_calls(choice)
        finish = choice.get("finish_reason")
        text = self._text(wire.text_of(choice), bool(deltas), bool(finish), finish == "length")
        if self.bad or not self.joined:
            return b""
        wire.set_text(choice, text)
        self._last = chunk
        calls = deltas
        if self.calls is not None:
            calls = self.calls.feed(deltas, now_ns)
            if finish:
                calls = calls + self.calls.finish()
            if self.calls.differs:
                self.bad = "the next answer makes other tool calls"
                return b""
        if finish and self._must_parse and finish != "length" and not wire.is_json(self.said):
            self.bad = "the joined answer is not valid JSON"
            return b""
        out = b""
        if calls and text:
            out = wire.write(wire.saying(chunk, {"content": text}))
            wire.set_text(choice, "")
        out += self._calls_event(calls)
        return out if wire.says_nothing(choice) and "usage" not in chunk else out + wire.write(chunk)

    def _text(self, text: str, calls: bool, finish: bool, limited: bool) -> str:
        """What is new of this text."""
        seam = self._seam
        if seam is not None:
            was = seam.found
            text = seam.feed(text)
            if calls and not seam.found and seam.untouched:
                self._seam = None  # nothing was left to say but the call
            elif finish or (calls and not was):
                text += seam.close()
            if seam.lost:
                self.starved = limited and seam.swallowing
                self.bad = "the next answer does not go on where the last one broke"
                return ""
        if text:
            self._said.append(text)
        return text

    def _calls_event(self, deltas: list[Chunk]) -> bytes:
        return wire.write(wire.saying(self._last, {"tool_calls": deltas})) if deltas else b""
