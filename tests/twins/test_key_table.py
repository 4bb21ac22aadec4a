"""The look-up of keys, native and twin."""

import hashlib
from typing import Any

import pytest

from turnout.twin.keys import KeyTable as Twin

try:
    from turnout._native import KeyTable as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]


@pytest.fixture(params=["twin", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "native" and Native is None:
        pytest.skip("the extension is not built")
    return Twin if request.param == "twin" else Native


def test_each_key_finds_its_own_holder(kind: Any) -> None:
    holders = [object() for _ in range(300)]
    keys = [b"key-%d" % i for i in range(300)]
    table = kind([(hashlib.sha256(key).digest(), who) for key, who in zip(keys, holders, strict=True)])
    assert all(table.find(key) is who for key, who in zip(keys, holders, strict=True))
    assert table.find(b"") is None
    assert all(table.find(key + b"x") is None and table.find(b" " + key) is None for key in keys)


def test_digests_that_begin_alike_are_told_apart(kind: Any) -> None:
    digest = hashlib.sha256(b"a").digest()
    other = bytes([*digest[:31], digest[31] ^ 1])
    assert kind([(digest, "a"), (other, "b")]).find(b"a") == "a"
    assert kind([(other, "b")]).find(b"a") is None


def test_a_digest_of_another_length_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError):
        kind([(b"short", "a")])
