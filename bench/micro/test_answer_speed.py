"""wire.answer: usage and finish reason of a plain answer, the content of one chunk."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed
from drive import answer, events

from turnout.exchange import Usage
from turnout.wire.answer import content_bytes, decode_answer, decode_chunk, usage_of

BODY = answer().partition(b"\r\n\r\n")[2]
CHUNK = events()[1][6:-2]


def plain() -> Callable[[], tuple[Usage | None, str | None]]:
    def work() -> tuple[Usage | None, str | None]:
        got = decode_answer(BODY)
        assert got.choices
        return usage_of(got.usage), got.choices[0].finish_reason

    return work


def chunk() -> Callable[[], int]:
    def work() -> int:
        got = decode_chunk(CHUNK)
        assert got.choices
        return content_bytes(got.choices[0])

    return work


CASES = [
    Case("wire.answer plain", plain, (Usage(60, 150), "stop").__eq__),
    Case("wire.answer chunk", chunk, len('"word0 "').__eq__),
]
