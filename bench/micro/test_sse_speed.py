"""StreamScanner: a stream of 50 content chunks scanned, whole reads and reads cut at odd places; kernel and twin."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cases import Case
from cases import test_speed as test_speed
from drive import CHUNKS, events

from turnout import native
from turnout.twin.sse import StreamScanner as Twin

EVENTS = events()
STREAM = b"".join(EVENTS)
ODD = [STREAM[i : i + 97] for i in range(0, len(STREAM), 97)]


def scan(kind: Any, reads: list[bytes]) -> Callable[[], tuple[bytes, int]]:
    def work() -> tuple[bytes, int]:
        scanner = kind(False)
        out = b"".join([scanner.feed(read) for read in reads])
        return out, scanner.chunks

    return work


RIGHT = (STREAM, CHUNKS).__eq__
CASES = [
    Case("scan 50 chunks, whole", partial(scan, native.StreamScanner, EVENTS), RIGHT, 60),
    Case("scan 50 chunks, cut", partial(scan, native.StreamScanner, ODD), RIGHT, 60),
    Case("scan 50 chunks, whole, twin", partial(scan, Twin, EVENTS), RIGHT, 20),
]
