"""One route's cache: which requests may be answered from it, and what they are known by."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..exchange import Exchange
from ..native import canonical
from .joined import joined
from .semantic.models import lexicon_version
from .semantic.question import Questions
from .spec import CacheSpec

# How an answer is delivered, not what it says.
TRANSPORT = frozenset(("stream", "stream_options"))
# A digest of more would hold up the loop for longer than it saves.
MOST_BODY = 8 * 1024 * 1024
# SHA-256: processors have instructions for it, half the time of BLAKE2 on 20 KB.
_hash = hashlib.sha256
# Who asks for the same again mostly sends the same bytes: of large bodies that are known byte for byte the hash is
# remembered. They are found by their length and two samples, because Python's own hash of 20 KB takes 6 us, and then
# compared whole, which takes half of one (hash and canonical form together: 37 us). At most 4 MiB a route.
SAMPLE = 128
LARGE, MOST_MET_BYTES, MOST_MET = 4 * 1024, 64 * 1024, 64
_CHANGES_NOTHING = b"idempotency-key"  # of the client headers that go upstream
# Fields that decide whether a request is meant to be repeatable: the reader of a config with a cache finds them too.
LOOKED_AT = ("temperature", "n", "best_of")
_NOTHING = (b"null", b"0", b"0.0", b"-0")
_ONE = (b"null", b"1")


class Policy:
    """`names`: of the fields in the spans of a request. `partition`: what sets the route's answers apart from those of other routes and other versions of it, see `version`.
    `sets`: fields the route writes over the client's. `facts`: what else of a request decides about who is asked.
    `endpoint`: where else vectors come from (semantic.remote.endpoint.Endpoint)."""

    def __init__(
        self,
        spec: CacheSpec,
        names: Sequence[str],
        partition: bytes,
        sets: tuple[tuple[bytes, bytes], ...] = (),
        facts: Callable[[Exchange], bytes] | None = None,
        endpoint: Any = None,
    ) -> None:
        self.spec = spec
        self.exact = spec.kept
        self.semantic = spec.semantic
        self.shares = spec.shares
        self._share_sampled = spec.sampled == "share"
        self._partition = partition
        self._sets = {name.decode(): value for name, value in sets}
        # What is written over is the same for all, and stands in the partition.
        self._skip = sorted(TRANSPORT | set(spec.ignore) | set(self._sets))
        self._facts = facts
        self.endpoint = endpoint
        self.questions: Questions | None = None
        if spec.semantic is not None:
            # Of another model the vectors have nothing in common with these: its scopes are others.
            version = lexicon_version() + (endpoint.space if endpoint is not None else b"")
            self.questions = Questions(spec.semantic, names, self._skip, partition, facts, version)
        self._met: dict[tuple[int, bytes, bytes], tuple[bytes, bytes]] = {}
        self._places = tuple((name, 2 * names.index(name)) for name in LOOKED_AT)
        self._spans = tuple(place for _, place in self._places)
        self._unset = not any(name in self._sets for name in LOOKED_AT)
        self._heads: dict[tuple[str, str], bytes] = {}

    def why_not(self, x: Exchange) -> str:
        """Why this request is none of the cache's business; empty if it is."""
        body = x.body
        if len(body) > MOST_BODY:
            return "size"
        spans = x.spans
        a, b, c = self._spans
        if spans[a] < 0 and spans[b] < 0 and spans[c] < 0 and self._unset:
            return ""
        temperature, n, best_of = (
            self._sets.get(name) or (body[spans[i] : spans[i + 1]] if spans[i] >= 0 else b"null")
            for name, i in self._places
        )
        if n not in _ONE or best_of not in _ONE:
            return "n"
        if temperature not in _NOTHING and not self._share_sampled and not _is_zero(temperature):
            return "sampled"
        return ""

    def tag(self, x: Exchange) -> str:
        """Names the tenant and the route where they are no secret to others: what is shared lies together under it."""
        assert x.principal is not None
        said = joined(self._partition, x.principal.tenant.encode())
        return hashlib.blake2b(said, digest_size=8).hexdigest()

    def beta(self, x: Exchange) -> bytes:
        """Of the client's headers that go upstream, those that may change an answer."""
        return b"\n".join([name + b":" + value for name, value in x.forward if name != _CHANGES_NOTHING])

    def digest(self, x: Exchange) -> bytes:
        """32 bytes that only requests have whose answers may stand for each other."""
        assert x.principal is not None
        if x.forward or self._facts is not None:
            said = self._head(x, self.beta(x), self._facts(x) if self._facts is not None else b"")
        else:
            who = x.principal.tenant, x.surface.name
            said = self._heads.get(who) or self._heads.setdefault(who, self._head(x, b"", b""))
        body = x.body
        if len(body) < LARGE:
            return _hash(said + canonical(body, self._skip)).digest()
        middle = len(body) // 2
        like = len(body), body[middle : middle + SAMPLE], body[-SAMPLE:]
        known, inner = self._met.get(like, (b"", b""))
        if known != body:
            inner = b"=" + _hash(canonical(body, self._skip)).digest()
            if len(body) <= MOST_MET_BYTES:
                if len(self._met) == MOST_MET and like not in self._met:
                    del self._met[next(iter(self._met))]
                self._met[like] = body, inner
        return _hash(said + inner).digest()

    def _head(self, x: Exchange, beta: bytes, facts: bytes) -> bytes:
        """All that is not in the body."""
        assert x.principal is not None
        return joined(self._partition, x.principal.tenant.encode(), x.surface.name.encode(), beta, facts)


def _is_zero(value: bytes) -> bool:
    """`0.00`, `0e3`: rare spellings."""
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return False
    return isinstance(found, int | float) and not isinstance(found, bool) and found == 0
