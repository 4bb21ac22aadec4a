"""A request over ASGI, in whatever form a server gives its headers."""

from typing import Any

import pytest

from turnout.ingress.incoming import Incoming
from turnout.native import HeadReader

READER = HeadReader({b"host": 1, b"authorization": 0}, 10)


async def nothing(*_: Any) -> Any: ...


@pytest.mark.parametrize("form", [list, tuple, lambda pairs: [list(pair) for pair in pairs], lambda pairs: iter(pairs)])
def test_all_forms_of_pairs_are_read(form: Any) -> None:
    pairs = [(b"host", b"a"), (b"authorization", b"Bearer k")]
    incoming = Incoming({"path": "/", "method": "POST", "headers": form(pairs)}, nothing, nothing)
    assert incoming.head(READER) == (b"k", -1, [])
    assert (incoming.body(), incoming.reply(200, [], b""), incoming.relay_to) == (None, False, None)
