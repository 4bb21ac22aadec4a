"""wire.answer: usage and finish reason of a plain answer."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed
from drive import answer

from turnout.exchange import Usage
from turnout.wire.answer import decode_answer, usage_of

BODY = answer().partition(b"\r\n\r\n")[2]


def plain() -> Callable[[], tuple[Usage | None, str | None]]:
    def work() -> tuple[Usage | None, str | None]:
        got = decode_answer(BODY)
        assert got.choices
        return usage_of(got.usage), got.choices[0].finish_reason

    return work


CASES = [
    Case("wire.answer plain", plain, (Usage(60, 150), "stop").__eq__),
]
