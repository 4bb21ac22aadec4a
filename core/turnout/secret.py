"""A value that must not be seen: it knows its reference and never prints what it holds."""

import hmac


class Secret:
    """A credential read from `env:NAME` or `file:/path`.

    `repr`, `str`, formatting, pickling and JSON all give `***`, so that a log line, a trace or an error body cannot
    carry it by accident. `reveal()` is the one way to the value, and easy to search for.
    """

    __slots__ = ("_value", "ref")

    def __init__(self, ref: str, value: str) -> None:
        self.ref = ref
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> tuple[type["Secret"], tuple[str, str]]:
        return Secret, (self.ref, "***")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self.ref)


class Pem(Secret):
    """A private key, or what else has more than one line: read as it stands, and as little to be seen."""

    __slots__ = ()


class Certificate(Pem):
    """A certificate and its chain. It may also be given as the path of its file: it is nothing to hide."""

    __slots__ = ()
