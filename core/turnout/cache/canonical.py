"""A JSON body in one spelling, whatever the order of its keys, its white space and its escapes."""

import json
from collections.abc import Collection
from typing import Any


class _Number(str):
    """As it was spelt: 1 and 1.0 may mean different things to an upstream."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """Its members in their order, one that stands twice too."""

    __slots__ = ()


_decoder = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_Number)


def canonical(body: bytes, skip: Collection[str]) -> bytes:
    """The object in `body` without the top-level fields in `skip`.

    Strings become `LENGTH:BYTES` of their UTF-8, numbers `#SPELLING;`, words `t`, `f`, `n`, lists `[...]`, objects
    `{...}` with their keys sorted by bytes; of a key that stands twice both values stay, in their order, because parsers
    differ about which one counts. Two bodies come out alike if and only if they differ in white space, order of keys or
    escapes alone. Raises ValueError for what is no JSON object.
    """
    found = _decoder.decode(body.decode())
    if not isinstance(found, _Object):
        raise ValueError("a JSON object expected")
    out: list[bytes] = []
    _write(_Object(pair for pair in found if pair[0] not in skip), out.append)
    return b"".join(out)


def _write(value: Any, add: Any) -> None:
    if isinstance(value, _Number):
        add(b"#%b;" % value.encode())
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        add(b"%d:%b" % (len(raw), raw))
    elif isinstance(value, _Object):
        add(b"{")
        for raw, inner in sorted(((k.encode("utf-8", "surrogatepass"), v) for k, v in value), key=_by_bytes):
            add(b"%d:%b" % (len(raw), raw))
            _write(inner, add)
        add(b"}")
    elif isinstance(value, list):
        add(b"[")
        for inner in value:
            _write(inner, add)
        add(b"]")
    else:
        add(b"n" if value is None else b"t" if value else b"f")


def _by_bytes(member: tuple[bytes, Any]) -> bytes:
    return member[0]
