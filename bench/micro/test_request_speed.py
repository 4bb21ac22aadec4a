"""wire.request: find the fields of a body and put it together again for upstream, natively and by the twin."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cases import Case
from cases import test_speed as test_speed
from drive import agent, small

from turnout import native
from turnout.twin.scan import FieldScanner as Twin
from turnout.wire.request import RequestReader

SCANNERS: dict[str, Any] = {"twin": Twin} if native.missing else {"native": native.FieldScanner, "twin": Twin}


def onward(body: bytes, scanner: Any) -> Callable[[], tuple[str, bytes, int]]:
    reader = RequestReader()
    reader._scan = scanner(list(reader.names)).scan

    def work() -> tuple[str, bytes, int]:
        spans = reader.scan(body)
        model = reader.model(body, spans)
        reader.require(body, spans, "messages")
        pieces, length = reader.onward(body, spans, b'"gpt-4o-mini"', (), reader.stream(body, spans))
        return model, pieces, length

    return work


def right(body: bytes, result: tuple[str, Any, int]) -> bool:
    model, pieces, length = result
    expected = body.replace(b'"model": "fast"', b'"model": "gpt-4o-mini"')
    return model == "fast" and b"".join(pieces) == expected and length == len(expected)


CASES = [
    Case(f"wire.request {size}, {name}", partial(onward, body, scanner), partial(right, body))
    for size, body in (("300 B", small()), ("20 KB", agent()))
    for name, scanner in SCANNERS.items()
]
