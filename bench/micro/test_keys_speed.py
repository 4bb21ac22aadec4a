"""admit.keys: who is asking, among a hundred keys."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed

from turnout.admit.keys import Keyring, presented_key
from turnout.admit.spec import KeySpec
from turnout.exchange import Principal
from turnout.secret import Secret


def admit() -> Callable[[], Principal]:
    names = [f"sk-bench-{i:032d}" for i in range(100)]
    keyring = Keyring(KeySpec(name=name[-3:], key=Secret("env:K", name), team="bench") for name in names)
    header = b"Bearer " + names[77].encode()

    def work() -> Principal:
        return keyring.admit(presented_key(header, None))

    return work


CASES = [Case("admit.keys of 100", admit, lambda who: who.name == "077" and who.tenant == "team:bench")]
