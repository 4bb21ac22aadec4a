"""stream.reader: what is read of a stream of 50 content chunks while it passes."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed
from drive import CHUNKS, events

from turnout.errors import Fault
from turnout.stream.reader import StreamReader

EVENTS = events()
PASSED = b"".join(event for event in EVENTS if b"usage" not in event)


def read() -> Callable[[], tuple[StreamReader, bytes]]:
    def work() -> tuple[StreamReader, bytes]:
        reader = StreamReader(True, lambda raw: Fault("interrupted", "never"))
        feed = reader.feed
        return reader, b"".join([feed(event, 1) for event in EVENTS])

    return work


def right(result: tuple[StreamReader, bytes]) -> bool:
    reader, passed = result
    counted = reader.usage is not None and reader.usage.completion == CHUNKS
    return passed == PASSED and counted and reader.chunks == CHUNKS and reader.finish == "stop" and reader.done


CASES = [Case("stream.reader 50 chunks", read, right, 15)]
