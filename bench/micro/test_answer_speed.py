"""wire.answer: usage and finish reason of a plain answer."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed
from drive import answer

from turnout.exchange import Usage
from turnout.wire.answer import read_answer

BODY = answer().partition(b"\r\n\r\n")[2]


def plain() -> Callable[[], tuple[str | None, bytes, Usage | None]]:
    return lambda: read_answer(BODY)


CASES = [
    Case("wire.answer plain", plain, ("stop", b"", Usage(60, 150)).__eq__),
]
