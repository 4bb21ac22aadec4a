"""One route's cache: which requests may be answered from it, and what they are known by."""

import hashlib
from collections.abc import Callable

import msgspec

from ..exchange import Exchange
from ..native import FieldScanner, canonical
from .spec import CacheSpec

# How an answer is delivered, not what it says.
TRANSPORT = frozenset(("stream", "stream_options"))
# A digest of more would hold up the loop for longer than it saves.
MOST_BODY = 8 * 1024 * 1024
_CHANGES_NOTHING = b"idempotency-key"  # of the client headers that go upstream
_LOOKED_AT = ("temperature", "n", "best_of")
_NOTHING = (b"null", b"0", b"0.0", b"-0")
_ONE = (b"null", b"1")


def joined(*parts: bytes) -> bytes:
    """The parts with their lengths in front: no two lists of parts come out alike."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


class Policy:
    """`partition`: what sets the route's answers apart from those of other routes and other versions of it, see `version`.
    `sets`: fields the route writes over the client's. `facts`: what else of a request decides about who is asked."""

    def __init__(
        self,
        spec: CacheSpec,
        partition: bytes,
        sets: tuple[tuple[bytes, bytes], ...] = (),
        facts: Callable[[Exchange], bytes] | None = None,
    ) -> None:
        self.spec = spec
        self.exact = spec.exact
        self.shares = spec.shares
        self._share_sampled = spec.sampled == "share"
        self._partition = partition
        self._sets = {name.decode(): value for name, value in sets}
        # What is written over is the same for all, and stands in the partition.
        self._skip = sorted(TRANSPORT | set(spec.ignore) | set(self._sets))
        self._facts = facts
        self._scan = FieldScanner(list(_LOOKED_AT)).scan

    def why_not(self, x: Exchange) -> str:
        """Why this request is none of the cache's business; empty if it is."""
        body = x.body
        if len(body) > MOST_BODY:
            return "size"
        try:
            spans = self._scan(body)
        except ValueError:  # a field that stands twice: what the upstream makes of it is not known
            return "field"
        values = [
            self._sets.get(name) or (body[spans[2 * i] : spans[2 * i + 1]] if spans[2 * i] >= 0 else b"null")
            for i, name in enumerate(_LOOKED_AT)
        ]
        if values[1] not in _ONE or values[2] not in _ONE:
            return "n"
        if values[0] not in _NOTHING and not self._share_sampled and not _is_zero(values[0]):
            return "sampled"
        return ""

    def digest(self, x: Exchange) -> bytes:
        """32 bytes that only requests have whose answers may stand for each other."""
        assert x.principal is not None
        beta = b"\n".join([name + b":" + value for name, value in x.forward if name != _CHANGES_NOTHING])
        facts = self._facts(x) if self._facts is not None else b""
        hashed = hashlib.blake2b(digest_size=32)
        hashed.update(joined(self._partition, x.principal.tenant.encode(), x.surface.name.encode(), beta, facts))
        hashed.update(canonical(x.body, self._skip))
        return hashed.digest()


def _is_zero(value: bytes) -> bool:
    """`0.00`, `0e3`: rare spellings."""
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return False
    return isinstance(found, int | float) and not isinstance(found, bool) and found == 0
