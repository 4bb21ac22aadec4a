"""Answers in a worker's memory, bounded in bytes. Pure: `now` comes in.

What is worth least goes first: GDSF (Cherkasova 1998) ranks an entry by `floor + hits * saved cost / size`, where the
floor rises to the rank of what was evicted, so that what was worth much once grows old. Every tenant has a queue of its
own and at most its share of the whole; when the whole is full, the tenant that holds most gives way. So nobody can wash
out what others have.

All operations are O(1) (but for one look at each tenant when the whole is full) and none holds up the loop at a million entries: the index is 256 dicts, because one large dict
copies itself when it grows (60 ms at a million), and a queue is 64 linked lists, one per power of two of worth, because
within one the order of the last use is the order of the ranks up to a factor of two.
"""

from collections.abc import Callable, Iterator

from .entry import OVERHEAD, Entry

_SHARDS = 256
_BUCKETS = 64
_SCALE = 1 << 20  # worth is nano-dollars per byte: 0.001 for a cheap long answer, thousands for a dear short one
SLICE = 400  # entries looked at or dropped without giving the loop a turn: below 1 ms


class _Queue:
    """One tenant's entries by worth."""

    __slots__ = ("bytes", "entries", "first", "floor", "last")

    def __init__(self) -> None:
        self.first: list[Entry | None] = [None] * _BUCKETS
        self.last: list[Entry | None] = [None] * _BUCKETS
        self.floor = 0.0
        self.bytes = 0
        self.entries = 0

    def push(self, entry: Entry) -> None:
        """To the end of the list of its worth."""
        size = len(entry.body) + OVERHEAD
        # Without a price (a local model) all bytes are worth the same, and what is asked for often stays.
        worth = (entry.hits + 1) * (entry.cost_nanos or size) / size
        entry.rank = self.floor + worth
        bucket = int(worth * _SCALE).bit_length()
        if bucket >= _BUCKETS:
            bucket = _BUCKETS - 1
        entry.bucket = bucket
        entry.before = last = self.last[bucket]
        entry.after = None
        if last is None:
            self.first[bucket] = entry
        else:
            last.after = entry
        self.last[bucket] = entry

    def unlink(self, entry: Entry) -> None:
        before, after = entry.before, entry.after
        if before is None:
            self.first[entry.bucket] = after
        else:
            before.after = after
        if after is None:
            self.last[entry.bucket] = before
        else:
            after.before = before
        entry.before = entry.after = None

    def least(self, dead: Callable[[Entry], bool]) -> Entry | None:
        """What goes first: one that nobody can get any more, else the one of the lowest rank."""
        found: Entry | None = None
        for entry in self.first:
            if entry is None:
                continue
            if dead(entry):
                return entry
            if found is None or entry.rank < found.rank:
                found = entry
        return found


class Memory:
    """The store of one worker."""

    def __init__(self, most_bytes: int, tenant_bytes: int) -> None:
        self._most = most_bytes
        self._tenant_most = tenant_bytes
        self._shards: tuple[dict[bytes, Entry], ...] = tuple({} for _ in range(_SHARDS))
        self._queues: dict[str, _Queue] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self.bytes = 0
        self.entries = 0
        self.evicted = {"full": 0, "tenant": 0, "dead": 0}

    def resize(self, most_bytes: int, tenant_bytes: int) -> None:
        """New bounds; what is too much goes with the next entries that come."""
        self._most, self._tenant_most = most_bytes, tenant_bytes

    # ---- epochs: all of a tenant, of a route or of everybody is gone at once

    def epoch(self, tenant: str, route: str) -> int:
        """Grows whenever one of its three parts does; entries of an earlier one are not given any more."""
        found = self._epochs.get
        if not self._epochs:
            return 0
        return found(("", ""), 0) + found(("tenant", tenant), 0) + found(("route", route), 0)

    def expire(self, kind: str = "", name: str = "") -> None:
        """Everything of this `tenant` or `route` is gone (without either: everything). O(1)."""
        self._epochs[kind, name] = self._epochs.get((kind, name), 0) + 1

    # ---- entries

    def find(self, digest: bytes, now_ns: int) -> Entry | None:
        """The entry; None where there is none that may be given."""
        entry = self._shards[digest[0]].get(digest)
        if entry is None or not self._dead(entry, now_ns):
            return entry
        self.drop(entry)
        self.evicted["dead"] += 1
        return None

    def touch(self, entry: Entry) -> None:
        """It was given: count that. One that is not in here (any more) is let be."""
        if not self.holds(entry):
            return
        entry.hits += 1
        queue = self._queues[entry.tenant]
        queue.unlink(entry)
        queue.push(entry)

    def put(self, entry: Entry, now_ns: int) -> bool:
        """Take it in, in place of one with its digest. False: it is larger than its tenant's share."""
        size = entry.size
        if size > self._tenant_most or size > self._most:
            return False
        before = self._shards[entry.digest[0]].get(entry.digest)
        if before is not None:
            entry.hits = before.hits
            self.drop(before)
        queue = self._queues.get(entry.tenant)
        if queue is None:
            queue = self._queues[entry.tenant] = _Queue()
        while queue.bytes + size > self._tenant_most:
            self._evict(queue, "tenant", now_ns)
        while self.bytes + size > self._most:
            # A look at every tenant: 0.05 us each.
            self._evict(max(self._queues.values(), key=_held), "full", now_ns)
            queue = self._queues.setdefault(entry.tenant, queue)
        entry.epoch = self.epoch(entry.tenant, entry.route)
        self._shards[entry.digest[0]][entry.digest] = entry
        queue.push(entry)
        queue.bytes += size
        queue.entries += 1
        self.bytes += size
        self.entries += 1
        return True

    def drop(self, entry: Entry) -> None:
        queue = self._queues[entry.tenant]
        queue.unlink(entry)
        queue.bytes -= entry.size
        queue.entries -= 1
        self.bytes -= entry.size
        self.entries -= 1
        del self._shards[entry.digest[0]][entry.digest]
        if not queue.entries:
            del self._queues[entry.tenant]

    def slices(self, wanted: Callable[[Entry], bool]) -> Iterator[list[Entry]]:
        """All entries for which `wanted` holds, in pieces between which the loop may have a turn."""
        for shard in self._shards:
            everything = list(shard.values())
            for at in range(0, len(everything), SLICE):
                yield [entry for entry in everything[at : at + SLICE] if wanted(entry)]

    def holds(self, entry: Entry) -> bool:
        """Whether it is still in here."""
        return self._shards[entry.digest[0]].get(entry.digest) is entry

    def tenants(self) -> dict[str, tuple[int, int]]:
        """Entries and bytes of each."""
        return {name: (queue.entries, queue.bytes) for name, queue in self._queues.items()}

    def seen(self) -> dict[str, dict[tuple[str, ...], float | list[float]]]:
        """For the metrics; nothing as long as nothing was ever kept."""
        if not (self.entries or any(self.evicted.values())):
            return {}
        return {
            "turnout_cache_bytes": {(): self.bytes},
            "turnout_cache_entries": {(): self.entries},
            "turnout_cache_evictions_total": {(why,): n for why, n in self.evicted.items()},
        }

    def _dead(self, entry: Entry, now_ns: int) -> bool:
        return now_ns >= entry.dead_ns or entry.epoch != self.epoch(entry.tenant, entry.route)

    def _evict(self, queue: _Queue, why: str, now_ns: int) -> None:
        entry = queue.least(lambda e: self._dead(e, now_ns))
        assert entry is not None
        if self._dead(entry, now_ns):
            why = "dead"
        else:
            queue.floor = entry.rank
        self.drop(entry)
        self.evicted[why] += 1


def _held(queue: _Queue) -> int:
    return queue.bytes
