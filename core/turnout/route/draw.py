"""Numbers that look random and are the same for the same text: what keeps requests that belong together together."""

import hashlib
from collections.abc import Sequence

from ..exchange import Target

_SCALE = 1.0 / (1 << 64)


def shares(text: str, targets: Sequence[Target]) -> list[float]:
    """One number in (0, 1) for each target, of the text and the target's name alone (rendezvous hashing, Thaler and
    Ravishankar, 1998): what others are there changes nothing."""
    return unit(hashlib.blake2b(text.encode(), digest_size=16).digest(), targets)


def unit(digest: bytes, targets: Sequence[Target]) -> list[float]:
    out = []
    for target in targets:
        own = hashlib.blake2b(target.label.encode(), key=digest, digest_size=8).digest()
        out.append((int.from_bytes(own, "little") + 0.5) * _SCALE)
    return out
