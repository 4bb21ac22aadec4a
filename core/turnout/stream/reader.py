"""What is read of a chat or completions stream while it passes: pure, bytes and `now` in, bytes and marks out.

This reader is the reference: a native one must give the same marks for the same bytes.

It hands on whole events only. What belongs to an event that is not complete yet is held back, so that a stream which
breaks in the middle of one never shows its broken tail to the client.
"""

from collections.abc import Callable

import msgspec

from ..errors import Fault
from ..exchange import Usage
from ..wire.answer import content_bytes, decode_chunk, is_set, usage_of
from ..wire.sse import Splitter, TooLong, data_of

# A `data:` line that begins like a chunk but does not parse may have carried text: the stream is broken there. Other
# noise is skipped, up to this many lines.
MOST_NOISE = 3


class StreamReader:
    """Follows one upstream stream.

    `strip_usage`: the usage chunk was asked for by us, not by the client, and is taken out again.
    `event_fault`: makes the Fault of an in-band error object.
    """

    __slots__ = (
        "_event_fault", "_noise", "_splitter", "_strip", "chunks", "content_bytes", "done", "error_event", "fault",
        "finish", "first_content_ns", "usage",
    )  # fmt: skip

    def __init__(self, strip_usage: bool, event_fault: Callable[[msgspec.Raw], Fault]) -> None:
        self._splitter = Splitter()
        self._strip = strip_usage
        self._event_fault = event_fault
        self._noise = 0
        self.chunks = 0  # events that carried content
        self.content_bytes = 0
        self.first_content_ns = 0
        self.finish = ""  # the last finish_reason
        self.usage: Usage | None = None
        self.done = False  # `[DONE]` was seen
        self.fault: Fault | None = None  # the stream broke; nothing after it is handed on
        self.error_event = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What may be handed on of `data` (and of what was held back before)."""
        if self.fault is not None:
            return b""
        try:
            events = self._splitter.feed(data)
        except TooLong as exc:
            passed = b"".join([event for event in exc.events if self.fault is None and self._read(event, now_ns)])
            self.fault = self.fault or Fault("interrupted", "the upstream sent an event over the size limit")
            return passed
        keep = True
        out: list[bytes] = events
        for i, event in enumerate(events):
            verdict = self._read(event, now_ns)
            if verdict is None:
                return b"".join(out[:i] if keep else out)
            if not verdict and keep:
                keep = False
                out = events[:i]
            elif verdict and not keep:
                out.append(event)
        return out[0] if len(out) == 1 else b"".join(out)

    def close(self, now_ns: int) -> bytes:
        """The stream ended: what may be handed on of the tail. A last event without its empty line still counts."""
        tail = self._splitter.close()
        if not tail.strip() or self.fault is not None:
            return b""
        event = tail.rstrip(b"\r\n") + b"\n\n"
        return event if self._read(event, now_ns) else b""

    def _read(self, event: bytes, now_ns: int) -> bool | None:
        """True: hand it on; False: leave it out; None: the stream is broken here."""
        data = data_of(event)
        if data is None:
            return True
        if data == b"[DONE]":
            self.done = True
            return True
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into what it leaves raw, and SDKs die of bytes that are not UTF-8
            chunk = decode_chunk(data)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            if data.lstrip()[:1] == b"{":
                self.fault = Fault("interrupted", "the upstream sent a chunk that is not valid JSON")
                return None
            self._noise += 1
            if self._noise > MOST_NOISE:
                self.fault = Fault("interrupted", "the upstream's stream is not a chat stream")
                return None
            return False
        choices = chunk.choices
        if choices:
            for choice in choices:
                if choice.finish_reason:
                    self.finish = choice.finish_reason
                size = content_bytes(choice)
                if size:
                    self.content_bytes += size
                    self.chunks += 1
                    if not self.first_content_ns:
                        self.first_content_ns = now_ns
        if chunk.usage:
            usage = usage_of(chunk.usage)
            if usage is not None:
                self.usage = usage
            if self._strip and not choices and (usage is not None or is_set(chunk.usage)):
                return False
        if chunk.error and is_set(chunk.error):
            self.error_event = event
            self.fault = self._event_fault(chunk.error)
            return None
        return True
