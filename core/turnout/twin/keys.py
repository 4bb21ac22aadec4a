"""Who presents a key: found by its digest. Twin of `native/src/kernels/keys.rs`."""

import hashlib
import hmac
from typing import Any


class KeyTable:
    """Finds what belongs to a key. `KeyTable(entries).find(presented)`: `entries` are pairs of a key's SHA-256 and whatever
    stands for its holder; None where no key has the digest of what was presented.

    The time of the look-up says nothing about the keys, because nobody can steer a digest; whole digests are compared
    in constant time. The keys themselves are kept nowhere.
    """

    def __init__(self, entries: list[tuple[bytes, Any]]) -> None:
        if any(len(digest) != 32 for digest, _ in entries):
            raise ValueError("a digest of SHA-256 has 32 bytes")
        self._rows = {digest: (digest, who) for digest, who in entries}

    def find(self, presented: bytes) -> Any:
        digest = hashlib.sha256(presented).digest()
        found = self._rows.get(digest)
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None
