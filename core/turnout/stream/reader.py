"""What is read of a chat or completions stream while it passes: bytes and `now` in, bytes and marks out.

The scanner looks into the bytes (`native.StreamScanner`: the kernel or its twin); the reader says what it means: which
fault a break is, when the first token came. Whole events only are handed on. What belongs to an event that is not
complete yet is held back, so that a stream which breaks in the middle of one never shows its broken tail to the client.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from .. import native
from ..errors import Fault
from ..exchange import Usage
from ..native import OTHER_CHOICE
from ..wire.answer import usage_of

# A `data:` line that begins like a chunk but does not parse may have carried text: the stream is broken there. Other
# noise is skipped, up to this many lines.
MOST_NOISE = 3
# Bytes of delivered text that are kept for going on elsewhere: some 130,000 tokens, as much as any model answers.
MOST_TEXT = 512 * 1024

_BROKEN = {
    "chunk": "the upstream sent a chunk that is not valid JSON",
    "noise": "the upstream's stream is not a chat stream",
    "too_long": "the upstream sent an event over the size limit",
}


class StreamReader:
    """Follows one upstream stream.

    `strip_usage`: the usage chunk was asked for by us, not by the client, and is taken out again.
    `event_fault`: makes the Fault of an in-band error object.
    `keep`: the text is kept, so that another target may go on with it; `hold_calls`: stop in front of a tool call.
    """

    __slots__ = (
        "_event_fault", "_scanner", "chunks", "done", "error_event", "fault", "finish", "first_content_ns", "stopped",
        "turned",
    )  # fmt: skip

    def __init__(
        self,
        strip_usage: bool,
        event_fault: Callable[[msgspec.Raw], Fault],
        keep: bool = False,
        hold_calls: bool = False,
    ) -> None:
        self._scanner = native.StreamScanner(strip_usage, MOST_NOISE, MOST_TEXT if keep else 0, keep and hold_calls)
        self.turned = False  # more than content has passed: one of the marks below is set
        self.stopped = False  # a tool call is next, and waits for `resume`
        self._event_fault = event_fault
        self.chunks = 0  # events that carried content
        self.first_content_ns = 0
        self.finish = ""  # the last finish_reason
        self.done = False  # `[DONE]` was seen
        self.fault: Fault | None = None  # the stream broke; nothing after it is handed on
        self.error_event = b""

    @property
    def scanner(self) -> Any:
        """What a native relay reads with; `catch_up` afterwards."""
        return self._scanner

    def catch_up(self, now_ns: int) -> None:
        """Look at what a relay has passed without us."""
        self.chunks = self._scanner.chunks
        if self._scanner.turned:
            self.turned = True
            self._look(now_ns)

    @property
    def content_bytes(self) -> int:
        size: int = self._scanner.content_bytes
        return size

    @property
    def usage(self) -> Usage | None:
        """The last one that makes sense."""
        raw = self._scanner.usage
        return None if raw is None else usage_of(raw)

    @property
    def finished(self) -> bool:
        """Whether all that was to be said was said. Of several choices one may finish before the others: then only
        `[DONE]` tells (where it is known that there are several, see `keep`)."""
        return bool(self.finish) and (self.done or not self._scanner.kinds & OTHER_CHOICE)

    @property
    def verdict(self) -> Fault | None:
        """The fault of a stream that broke. Half a chunk behind the finish takes nothing away from the answer."""
        return None if self.finished and self._scanner.broken else self.fault

    @property
    def text(self) -> str:
        """What the first choice has said, where it is kept."""
        text: str = self._scanner.text
        return text

    @property
    def kinds(self) -> int:
        """Bits for whatever else the stream carried (turnout/native.py)."""
        kinds: int = self._scanner.kinds
        return kinds

    def resume(self, now_ns: int) -> bytes:
        """Go on behind `stopped`: what may be handed on of what waited."""
        passed: bytes = self._scanner.resume()
        self.turned = self.stopped = False
        self.feed(b"", now_ns)  # for the marks
        return passed

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What may be handed on of `data` (and of what was held back before)."""
        scanner = self._scanner
        passed: bytes = scanner.feed(data)
        # Read into slots once, as the relay looks at them several times for each chunk.
        self.chunks = chunks = scanner.chunks
        if chunks and not self.first_content_ns:
            self.first_content_ns = now_ns
        if scanner.turned:
            self.turned = True
            self._look(now_ns)
        return passed

    def close(self, now_ns: int) -> bytes:
        """The stream ended: what may be handed on of the tail. A last event without its empty line still counts."""
        passed: bytes = self._scanner.close()
        self.feed(b"", now_ns)  # for the marks
        return passed

    def _look(self, now_ns: int) -> None:
        """A finish, the end, an error, a break or a tool call was seen."""
        scanner = self._scanner
        if scanner.stopped:
            self.stopped = True
            self.first_content_ns = self.first_content_ns or now_ns
        self.finish = scanner.finish
        self.done = scanner.done
        if self.fault is None:
            if (error := scanner.error) is not None:
                self.error_event = scanner.error_event
                self.fault = self._event_fault(msgspec.Raw(error))
            elif scanner.broken:
                self.fault = Fault("interrupted", _BROKEN[scanner.broken])
