"""A request's headers, read in one pass. Twin of `native/src/kernels/head.rs`."""

import re

_AUTHORIZATION, _HOST, _LENGTH, _OTHER_KEY, _ENCODING = range(5)
_MOST = 2**63 - 1  # what is beyond 63 bits is as good as endless
# RFC 9110, 7.2 and RFC 3986, 3.2: a name, an IPv4 or a bracketed IPv6 address, and perhaps a port.
_HOST_FORM = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")


class HeadReader:
    """Reads the heads of requests. `kinds` says what is done with which header (names in lower case): 0 the `Authorization`
    that is preferred, 1 `Host`, 2 `Content-Length`, 3 another way to present a key, 4 `Content-Encoding`, and from 5 on
    any that are handed on. At most `most` headers are taken.

    `HeadReader(kinds, most).read(headers)` gives the presented key (None: there is none; empty: not one), the content
    length (-1: none) and the list of (kind, name, value) that are handed on. Raises `ValueError(what)`: `headers` (too
    many), `hosts` (a second Host), `no_host`, `host` (RFC 9110, 7.2 and RFC 3986, 3.2: a name, an IPv4 or a bracketed
    IPv6 address, and perhaps a port), `length`, `encoding` (a body that is not sent as it is).
    """

    def __init__(self, kinds: dict[bytes, int], most: int) -> None:
        self._kinds = kinds
        self._most = most

    def read(self, headers: list[tuple[bytes, bytes]]) -> tuple[bytes | None, int, list[tuple[int, bytes, bytes]]]:
        if len(headers) > self._most:
            raise ValueError("headers")
        host: bytes | None = None
        authorization: bytes | None = None
        other: bytes | None = None
        length = -1
        rest: list[tuple[int, bytes, bytes]] = []
        for name, value in headers:
            kind = self._kinds.get(name)
            if kind is None:
                continue
            if kind == _AUTHORIZATION:
                authorization = value
            elif kind == _HOST:
                if host is not None:
                    raise ValueError("hosts")
                host = value
            elif kind == _LENGTH:
                if not value.isdigit():
                    raise ValueError("length")
                length = min(int(value.lstrip(b"0")[:20] or b"0"), _MOST)
            elif kind == _OTHER_KEY:
                other = value
            elif kind == _ENCODING:
                if value.strip().lower() != b"identity":
                    raise ValueError("encoding")
            else:
                rest.append((kind, name, value))
        if host is None:
            raise ValueError("no_host")
        if not _HOST_FORM.match(host):
            raise ValueError("host")
        if authorization is None:
            return other, length, rest
        scheme, _, key = authorization.partition(b" ")
        return (key.strip() if scheme.lower() == b"bearer" else b""), length, rest
