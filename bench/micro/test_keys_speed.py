"""The head of a request and who is asking, among a hundred keys."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed

from turnout.admit.keys import Keyring
from turnout.admit.spec import KeySpec
from turnout.exchange import Principal
from turnout.ingress import endpoints
from turnout.native import HeadReader
from turnout.secret import Secret


def admit() -> Callable[[], Principal]:
    names = [f"sk-bench-{i:032d}" for i in range(100)]
    keyring = Keyring(KeySpec(name=name[-3:], key=Secret("env:K", name), team="bench") for name in names)
    presented = names[77].encode()

    def work() -> Principal:
        return keyring.admit(presented)

    return work


def head() -> Callable[[], tuple[bytes | None, int, list[tuple[int, bytes, bytes]]]]:
    reader = HeadReader(endpoints._READ, endpoints.MOST_HEADERS)
    headers = [
        (b"host", b"gateway.example.com:8080"),
        (b"authorization", b"Bearer sk-bench-77"),
        (b"content-type", b"application/json"),
        (b"content-length", b"284"),
        (b"accept", b"*/*"),
        (b"user-agent", b"bench"),
        (b"x-stainless-lang", b"python"),
        (b"openai-beta", b"x=1"),
    ]
    return lambda: reader.read(headers)


CASES = [
    Case("admit.keys of 100", admit, lambda who: who.name == "077" and who.tenant == "team:bench"),
    Case("head.read of 8 headers", head, lambda found: found == (b"sk-bench-77", 284, [(8, b"openai-beta", b"x=1")])),
]
