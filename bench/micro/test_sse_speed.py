"""wire.sse: a stream of 50 content chunks cut into its events, whole reads and reads cut at odd places."""

from collections.abc import Callable
from functools import partial

from cases import Case
from cases import test_speed as test_speed
from drive import events

from turnout.wire.sse import Splitter

EVENTS = events()
STREAM = b"".join(EVENTS)
ODD = [STREAM[i : i + 97] for i in range(0, len(STREAM), 97)]


def split(reads: list[bytes]) -> Callable[[], list[bytes]]:
    def work() -> list[bytes]:
        feed = Splitter().feed
        return [event for read in reads for event in feed(read)]

    return work


CASES = [
    Case("wire.sse 50 chunks, whole", partial(split, EVENTS), EVENTS.__eq__, 30),
    Case("wire.sse 50 chunks, cut", partial(split, ODD), EVENTS.__eq__, 15),
]
