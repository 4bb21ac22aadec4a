"""stream.reader: what is read of a stream of 50 content chunks while it passes."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed
from drive import CHUNKS, events

from turnout.errors import Fault
from turnout.stream.reader import StreamReader

EVENTS = events()
PASSED = b"".join(event for event in EVENTS if b"usage" not in event)


def read(keep: bool = False) -> Callable[[], tuple[StreamReader, bytes]]:
    def work() -> tuple[StreamReader, bytes]:
        reader = StreamReader(True, lambda raw: Fault("interrupted", "never"), keep, keep)
        feed = reader.feed
        return reader, b"".join([feed(event, 1) for event in EVENTS])

    return work


def right(result: tuple[StreamReader, bytes]) -> bool:
    reader, passed = result
    counted = reader.usage is not None and reader.usage.completion == CHUNKS
    return passed == PASSED and counted and reader.chunks == CHUNKS and reader.finish == "stop" and reader.done


def kept(result: tuple[StreamReader, bytes]) -> bool:
    return right(result) and result[0].text == "".join(f"word{i} " for i in range(CHUNKS)) and not result[0].kinds


# Kept, as a route needs it that may cut over: at most 5 % more of a whole chunk, which costs some 30,000 instructions.
CASES = [
    Case("stream.reader 50 chunks", read, right, 15),
    Case("stream.reader 50 chunks, text kept", lambda: read(True), kept, 15),
]
