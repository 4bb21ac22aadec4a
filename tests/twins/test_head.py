"""The head of a request, native and twin: what is read of it, and that both read the same."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from turnout.twin.head import HeadReader as Twin

try:
    from turnout._native import HeadReader as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]

KINDS = {
    b"authorization": 0,
    b"host": 1,
    b"content-length": 2,
    b"x-api-key": 3,
    b"api-key": 3,
    b"content-encoding": 4,
    b"x-turnout-route": 5,
    b"traceparent": 6,
}
MOST = 12
HOST = (b"host", b"a")


@pytest.fixture(params=["twin", "native"])
def read(request: pytest.FixtureRequest) -> Any:
    if request.param == "native" and Native is None:
        pytest.skip("the extension is not built")
    return (Twin if request.param == "twin" else Native)(KINDS, MOST).read


@pytest.mark.parametrize(
    "authorization, other, key",
    [
        (b"Bearer k", None, b"k"), (b"bearer k", None, b"k"), (b"BEARER   k  ", None, b"k"), (b"Bearer", None, b""), (b"Bearer ", None, b""), (b"k", None, b""),
        (b"Basic k", None, b""), (b"", None, b""), (b"Bearer a b", None, b"a b"), (None, b"k", b"k"), (None, None, None),
        (b"Bearer k", b"other", b"k"), (b"Basic x", b"k", b""),
    ],
)  # fmt: skip
def test_where_a_key_is_looked_for(read: Any, authorization: bytes | None, other: bytes | None, key: bytes | None) -> None:
    headers = [(b"x-api-key", other), HOST, (b"authorization", authorization)]
    assert read([(name, value) for name, value in headers if value is not None]) == (key, -1, [])


def test_what_is_handed_on_keeps_its_order(read: Any) -> None:
    more = [(b"traceparent", b"00-x"), (b"x-turnout-route", b"a"), (b"x-turnout-route", b"b")]
    headers = [more[0], HOST, (b"accept", b"*/*"), *more[1:], (b"content-length", b"0012"), (b"content-encoding", b" Identity ")]
    assert read(headers) == (None, 12, [(6, *more[0]), (5, *more[1]), (5, *more[2])])


@pytest.mark.parametrize(
    "headers, what",
    [
        ([], "no_host"),
        ([HOST] * (MOST + 1), "headers"),
        ([HOST, HOST], "hosts"),
        ([(b"host", b"a/b")], "host"),
        ([HOST, (b"content-length", b"")], "length"),
        ([HOST, (b"content-length", b"-1")], "length"),
        ([HOST, (b"content-length", "\u0663".encode())], "length"),
        ([HOST, (b"content-encoding", b"gzip")], "encoding"),
    ],
)
def test_what_is_wrong_is_named(read: Any, headers: list[tuple[bytes, bytes]], what: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(headers)
    assert caught.value.args == (what,)


def test_an_endless_length_is_a_number_all_the_same(read: Any) -> None:
    assert read([HOST, (b"content-length", b"9" * 60)])[1] == 2**63 - 1


VALUES = st.one_of(
    st.binary(max_size=12),
    st.text("bearBEAR identyBasc0129:[].%-\t ", max_size=16).map(str.encode),
    st.sampled_from([b"Bearer k", b"[::1]:80", b"host:1", b"18446744073709551616", b"identity"]),
)


@given(st.lists(st.tuples(st.sampled_from([*KINDS, b"accept", b"x", b""]), VALUES), max_size=MOST + 2), st.booleans())
def test_both_read_the_same(headers: list[tuple[bytes, bytes]], hosted: bool) -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    if hosted:
        headers = [HOST, *(pair for pair in headers if pair[0] != b"host")]
    said = []
    for one in (Twin(KINDS, MOST), Native(KINDS, MOST)):
        try:
            said.append(one.read(headers))
        except ValueError as exc:
            said.append(exc.args)
    assert said[0] == said[1]
