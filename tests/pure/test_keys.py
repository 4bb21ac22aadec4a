"""Keys: who is asking."""

import hashlib

import pytest

from turnout.admit.keys import MOST_KEY_BYTES, Keyring
from turnout.admit.spec import KeySpec
from turnout.errors import Fault
from turnout.secret import Secret

VALUE = "sk-abcdefghijklmnop"
RING = Keyring(
    [
        KeySpec(name="one", key=Secret("env:A", VALUE), tags=["x"], models=["gpt-*"]),
        KeySpec(name="two", key=Secret("env:B", "sk-0123456789abcdef"), team="search", direct=True),
    ]
)


def refused(presented: bytes | None, ring: Keyring = RING) -> Fault:
    with pytest.raises(Fault) as caught:
        ring.admit(presented)
    assert caught.value.status == 401
    return caught.value


def test_a_key_is_known_by_its_name_and_its_limits() -> None:
    one = RING.admit(VALUE.encode())
    assert (one.name, one.tenant, one.team, one.tags, one.models, one.direct) == ("one", "key:one", None, ("x",), ("gpt-*",), False)
    two = RING.admit(b"sk-0123456789abcdef")
    assert (two.name, two.tenant, two.team, two.models, two.direct) == ("two", "team:search", "search", ("*",), True)


def test_a_fingerprint_is_six_digits_of_the_digest() -> None:
    assert RING.admit(VALUE.encode()).fingerprint == hashlib.sha256(VALUE.encode()).hexdigest()[:6]


@pytest.mark.parametrize(
    "presented", [b"", b"x", VALUE[:-1].encode(), VALUE.encode() + b"x", VALUE.upper().encode(), b" " + VALUE.encode(), b"\xff\0", b"k" * 1_000_000]
)
def test_anything_else_is_refused_in_the_same_words(presented: bytes) -> None:
    fault = refused(presented)
    assert (fault.kind, fault.to_body()) == ("bad_key", refused(b"nope").to_body())


def test_no_key_is_told_how_to_send_one() -> None:
    fault = refused(None)
    assert fault.kind == "no_key"
    assert "Authorization: Bearer" in fault.message


def test_a_key_over_the_limit_is_not_cut_down_to_one_that_fits() -> None:
    value = "k" * MOST_KEY_BYTES
    ring = Keyring([KeySpec(name="long", key=Secret("env:L", value))])
    assert ring.admit(value.encode()).name == "long"
    assert refused(value.encode() + b"x", ring).kind == "bad_key"


def test_the_keyring_keeps_no_key() -> None:
    def strings(value: object, seen: set[int]) -> str:
        if id(value) in seen:
            return ""
        seen.add(id(value))
        if isinstance(value, dict):
            return "".join(strings(part, seen) for pair in value.items() for part in pair)
        if isinstance(value, tuple | list):
            return "".join(strings(part, seen) for part in value)
        return repr(value)

    assert VALUE not in strings(vars(RING), set())


def test_an_open_door_is_for_a_keyring_without_keys_only() -> None:
    anyone = Keyring([], open_door=True).admit(None)
    assert (anyone.name, anyone.direct) == ("dev", True)
    refused(None, Keyring([KeySpec(name="one", key=Secret("env:A", VALUE))], open_door=True))
    refused(None, Keyring([]))
    refused(b"", Keyring([]))


def test_a_secret_does_not_show() -> None:
    import pickle

    secret = Secret("env:A", VALUE)
    shown = f"{secret} {secret!r} {secret:>9} {[secret]} {pickle.dumps(secret)!r}"
    assert VALUE not in shown
    assert secret.reveal() == VALUE
    assert secret == Secret("env:B", VALUE)
    assert secret != Secret("env:A", "else")
    assert secret != VALUE
