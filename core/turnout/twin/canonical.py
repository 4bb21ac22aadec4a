"""A JSON object in one spelling. Twin of `native/src/kernels/canonical.rs`."""

import json
from typing import Any, NoReturn

MAX_DEPTH = 128


class _Number(str):
    """As it is spelt."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """Its members in their order, one that stands twice too."""

    __slots__ = ()


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_decoder = json.JSONDecoder(
    object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_no_number
)


def canonical(body: bytes, skip: list[str]) -> bytes:
    """The JSON object in `body` in one spelling, without the top-level fields in `skip`.

    No white space, keys sorted by their bytes, of characters only quotes and backslashes escaped, numbers as they are
    spelt (1 and 1.0 may mean different things to an upstream). Of a key that stands twice both values stay, in their
    order, because parsers differ about which one counts. So two bodies come out alike if and only if they differ in
    white space, order of keys or escapes alone. Raises ValueError for what is no JSON object in UTF-8 or is nested
    deeper than 128.
    """
    try:
        found = _decoder.decode(body.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, _Object):
        raise ValueError("a JSON object expected")
    out: list[bytes] = []
    _write(_Object(pair for pair in found if pair[0] not in skip), out.append, 0)
    # What is left out has to be JSON too.
    for pair in found:
        if pair[0] in skip:
            _write(pair[1], bytes, 1)
    return b"".join(out)


def _write(value: Any, add: Any, depth: int) -> None:
    if isinstance(value, _Number):
        add(value.encode())
    elif isinstance(value, str):
        add(b'"%b"' % _text(value))
    elif isinstance(value, _Object):
        _check(depth)
        add(b"{")
        members = sorted(((_text(key), inner) for key, inner in value), key=_by_key)
        for i, (key, inner) in enumerate(members):
            add(b',"%b":' % key if i else b'"%b":' % key)
            _write(inner, add, depth + 1)
        add(b"}")
    elif isinstance(value, list):
        _check(depth)
        add(b"[")
        for i, inner in enumerate(value):
            if i:
                add(b",")
            _write(inner, add, depth + 1)
        add(b"]")
    else:
        add(b"null" if value is None else b"true" if value else b"false")


def _text(text: str) -> bytes:
    """Raises UnicodeEncodeError, which is a ValueError, for half a surrogate pair."""
    return text.replace("\\", "\\\\").replace('"', '\\"').encode()


def _by_key(member: tuple[bytes, Any]) -> bytes:
    return member[0]


def _check(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise ValueError("nested too deeply")
