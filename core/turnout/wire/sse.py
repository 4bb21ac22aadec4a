"""Server-sent events out of any chunking of bytes.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream". The splitter gives back whole events as the bytes they came
in, so that a relay can hand them on untouched, with the `data` of each beside it.
"""

import re

MAX_EVENT_BYTES = 1024 * 1024  # an event over this is no chat chunk: the stream is treated as broken

# An event ends at an empty line; a line ends in LF, CRLF or CR.
# The group is atomic, or CRLF would pass for two line ends.
_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class TooLong(Exception):
    """An event is longer than the limit. `events` are the whole ones before it."""

    def __init__(self, events: list[bytes]) -> None:
        super().__init__()
        self.events = events


class Splitter:
    """Feed it bytes, take whole events. Memory is bounded by one event; nothing is searched twice.

    A byte order mark in front of the stream is dropped: the grammar ignores it, but several SDKs fail on it.
    """

    __slots__ = ("_limit", "_searched", "_started", "_tail")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._tail = bytearray()
        self._searched = 0
        self._limit = limit
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are now whole, each with its closing empty line. Raises TooLong."""
        if (
            self._started
            and not self._tail
            and data.endswith(b"\n\n")
            and b"\r" not in data
            and len(data) <= self._limit
        ):
            # The common case: one or more whole events in one read.
            if data.find(b"\n\n") == len(data) - 2:
                return [data]
            parts = data.split(b"\n\n")
            parts.pop()
            return [part + b"\n\n" for part in parts]
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        tail = self._tail
        tail += data
        out: list[bytes] = []
        at = 0
        if not self._started:
            if len(tail) < 3 and _BOM.startswith(tail):
                return out
            if tail.startswith(_BOM):
                del tail[:3]
            self._started = True
        search = self._searched
        while found := _END.search(tail, search):
            if found.end() - at > self._limit:
                raise TooLong(out)
            out.append(bytes(tail[at : found.end()]))
            at = search = found.end()
        if at:
            del tail[:at]
        self._searched = max(0, len(tail) - 3)
        if len(tail) > self._limit:
            raise TooLong(out)
        return out

    def close(self) -> bytes:
        """What is left at the end of the stream: an event without its empty line, or nothing."""
        rest = bytes(self._tail)
        self._tail.clear()
        self._searched = 0
        return rest


def data_of(event: bytes) -> bytes | None:
    """The `data` of one event; None if it has no data line (a comment, a lone `event:` line)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and event.endswith(b"\n\n"):
        return event[6:-2]
    found: list[bytes] = []
    for line in _LINE.split(event):
        if line.startswith(b"data"):
            if line[4:5] == b":":
                found.append(line[6:] if line[5:6] == b" " else line[5:])
            elif len(line) == 4:
                found.append(b"")
    return b"\n".join(found) if found else None
