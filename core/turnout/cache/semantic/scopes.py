"""What a worker knows of questions that have an answer: by scope, bounded in bytes, the least recently used goes first.

A scope is a partition, never a filter: nothing is ever looked for outside the one that a request belongs to. All
operations are O(1) beside the index' own.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ..purge import Purge
from .index import FLAT, NEAREST, Index
from .remote.space import Space

if TYPE_CHECKING:
    from .snapshot import Snapshot

# A Struct of 15 fields, its digest, times and a text read once, and its places in a dict and a list: measured, bench/semantic/cost.py.
ITEM_BYTES = 650
SCOPE_BYTES = 2_500
_AT_ONCE = 200  # items that a purge looks at, or that are let go, without a turn of the loop in between: 0.6 ms
_SPARED = 64  # items that eviction looks at before it takes the next one as it comes


class Item(msgspec.Struct, gc=False):
    """One question whose answer is kept. Times are those of the wall clock, ns."""

    digest: bytes  # of the request that was answered: what the exact cache knows the answer by
    text: str
    said: Any  # Said, of native.Lexicon
    tenant: str
    tag: str  # names the tenant and the route in what is shared, see Policy.tag
    key: str  # name of the key whose request it was
    tags: str
    stored_ns: int
    dead_ns: int
    hits: int = 0
    label: int = -1  # in the index
    last: float = (
        0.0  # score with which it was last given; or the cosine, where that was by an endpoint's vectors alone
    )
    gate: str = ""  # the latter: that endpoint
    deep: bytes | None = None  # the vector of the second look, once there is one; see again.py
    remote: bytes | None = None  # that of an endpoint, as it is kept (remote/vectors.py)

    @property
    def number(self) -> int:
        return int.from_bytes(self.digest[:8], "big")

    @property
    def held_bytes(self) -> int:
        return ITEM_BYTES + len(self.text) + (len(self.remote) if self.remote is not None else 0)


class Scope:
    """Questions that may stand for each other. All of one route, and of one tenant unless the route is shared."""

    def __init__(self, key: bytes, owner: str, route: str, model: str) -> None:
        self.key = key
        self.owner = owner  # the tenant who pays for its place; empty: shared by all of the route
        self.route = route
        self.model = model
        self.most = 100_000  # items
        self.vector_bytes = 0  # of each for the second look
        self.index = Index()
        self.space: Space | None = None  # the endpoint's vectors, where there are any
        self.items: dict[bytes, Item] = {}  # by digest, the oldest first
        self.loaded = False  # what others knew of it is here too
        self.loading = False
        self.building = False  # its graph, in another thread
        self.rest: Snapshot | None = None  # what may be in it, until it is loaded
        self.changes = 0  # ever
        self.saved = self.written = 0  # changes that a snapshot was wanted for; that are in ours
        self.saving = False
        # Labels of a matrix are its rows, those of a graph only grow.
        self._rows: list[Item | None] = []
        self._nodes: dict[int, Item] = {}
        self._texts = 0

    @property
    def text_bytes(self) -> int:
        return self._texts - ITEM_BYTES * len(self.items)

    @property
    def held_bytes(self) -> int:
        vectors = self.vector_bytes * len(self.items) + sum(index.held_bytes for index in self.indexes)
        return SCOPE_BYTES + self._texts + vectors

    @property
    def indexes(self) -> list[Index]:
        return [self.index] if self.space is None else [self.index, self.space.index]

    def add(self, item: Item, vector: bytes) -> None:
        if (before := self.items.get(item.digest)) is not None:
            item.hits = before.hits
            item.remote = item.remote or before.remote  # the text is the same
            self.remove(before)
        item.label = self.index.add(vector)
        self.items[item.digest] = item
        self._place(item.label, item)
        self._texts += item.held_bytes
        self.changes += 1
        if item.remote is not None:
            self._space(item.remote).add(item)

    def learn(self, item: Item, remote: bytes) -> None:
        """The endpoint's vector of an item that is here and had none."""
        if self.items.get(item.digest) is item and item.remote is None:
            item.remote = remote
            self._texts += len(remote)
            self.changes += 1
            self._space(remote).add(item)

    def _space(self, remote: bytes) -> Space:
        if self.space is None or not self.space.size:
            self.space = Space(len(remote))
        return self.space

    def remove(self, item: Item) -> None:
        if self.items.get(item.digest) is not item:
            return
        del self.items[item.digest]
        self._place(item.label, None)
        self.index.remove(item.label)
        self._texts -= item.held_bytes
        if self.space is not None:
            self.space.remove(item)
        self.changes += 1
        if self.rest is not None:
            self.rest.dropped.add(item.digest)

    def nearest(self, vector: bytes, now_ns: int, most: int = NEAREST) -> list[tuple[Item, float]]:
        """The few items whose questions are nearest, with their cosines; those whose time is over go."""
        while True:
            found, dead = [], False
            for label, cosine in self.index.nearest(vector, most):
                item = self._rows[label] if label < len(self._rows) else self._nodes[label]
                assert item is not None
                if now_ns < item.dead_ns:
                    found.append((item, cosine))
                else:
                    self.remove(item)
                    dead = True
            if found or not dead:
                return found

    def nearest_remote(self, remote: bytes, now_ns: int) -> list[tuple[Item, float]]:
        """The same by an endpoint's vectors."""
        while self.space is not None:
            found = self.space.nearest(remote)
            dead = [item for item, _ in found if now_ns >= item.dead_ns]
            for item in dead:
                self.remove(item)
            if not dead or len(dead) < len(found):
                return [pair for pair in found if now_ns < pair[0].dead_ns]
        return []

    def empty(self) -> bool:
        """Let go of some of it; nobody looks for anything here any more. False: that was the rest."""
        for held in (self.items, self._nodes):
            for _ in range(min(_AT_ONCE, len(held))):
                held.popitem()
        del self._rows[-_AT_ONCE:]
        return bool(self.items or self._nodes or self._rows)

    def _place(self, label: int, item: Item | None) -> None:
        rows = self._rows
        if label < len(rows):
            rows[label] = item
        elif label == len(rows) < FLAT:
            rows.append(item)
        elif item is not None:
            self._nodes[label] = item
        else:
            del self._nodes[label]

    def evict(self, now_ns: int) -> None:
        """Let one go: one whose time is over or that nobody has been given since the last time it was its turn."""
        for _ in range(min(_SPARED, len(self.items))):
            item = next(iter(self.items.values()))
            if not item.hits or now_ns >= item.dead_ns:
                break
            item.hits //= 2
            self.items[item.digest] = self.items.pop(item.digest)
        self.remove(next(iter(self.items.values())))


class Scopes:
    """Of one worker."""

    def __init__(self, most_bytes: int, tenant_bytes: int) -> None:
        self._most, self._tenant_most = most_bytes, tenant_bytes
        self._scopes: OrderedDict[bytes, Scope] = OrderedDict()  # the least recently used first
        self._owners: dict[str, OrderedDict[bytes, Scope]] = {}
        self._sizes: dict[bytes, int] = {}  # as last counted
        self._held: dict[str, int] = {}
        self.dropped: list[Scope] = []  # large ones that are let go a little at a time: see sweep
        self.bytes = 0
        self.evicted = {"item": 0, "scope": 0}

    def __len__(self) -> int:
        return len(self._scopes)

    def __iter__(self) -> Iterator[Scope]:
        return iter(list(self._scopes.values()))

    @property
    def items(self) -> int:
        return sum(len(scope.items) for scope in self._scopes.values())

    @property
    def vectors(self) -> int:
        """How many of them have one of an endpoint."""
        return sum(scope.space.size for scope in self._scopes.values() if scope.space is not None)

    def resize(self, most_bytes: int, tenant_bytes: int) -> None:
        self._most, self._tenant_most = most_bytes, tenant_bytes

    def find(self, key: bytes) -> Scope | None:
        scope = self._scopes.get(key)
        if scope is not None:
            self._scopes.move_to_end(key)
            self._owners[scope.owner].move_to_end(key)
        return scope

    def known(self, key: bytes) -> Scope | None:
        """The same, and no use of it."""
        return self._scopes.get(key)

    def open(self, key: bytes, owner: str, route: str, model: str) -> Scope:
        """The scope of this key, a new one if there is none."""
        scope = self.find(key)
        if scope is None:
            scope = self._scopes[key] = Scope(key, owner, route, model)
            self._owners.setdefault(owner, OrderedDict())[key] = scope
            self._count(scope)
        return scope

    def put(self, scope: Scope, item: Item, vector: bytes, now_ns: int) -> None:
        """Take it in, and let go of what is too much for the scope, its owner, or all."""
        if self._scopes.get(scope.key) is not scope:
            return  # it went meanwhile
        scope.add(item, vector)
        while len(scope.items) > scope.most:
            scope.evict(now_ns)
            self.evicted["item"] += 1
        self._fit(scope, now_ns)

    def _fit(self, scope: Scope, now_ns: int) -> None:
        self._count(scope)
        while self._held[scope.owner] > self._tenant_most and self._shrink(self._owners[scope.owner], scope, now_ns):
            pass
        while self.bytes > self._most and self._shrink(self._scopes, scope, now_ns):
            pass

    def learn(self, scope: Scope, item: Item, remote: bytes, now_ns: int) -> None:
        """The endpoint's vector of an item that is here already."""
        scope.learn(item, remote)
        if self._scopes.get(scope.key) is scope:
            self._fit(scope, now_ns)

    def drop(self, scope: Scope) -> None:
        if self._scopes.get(scope.key) is not scope:
            return
        del self._scopes[scope.key]
        mine = self._owners[scope.owner]
        del mine[scope.key]
        size = self._sizes.pop(scope.key)
        self._held[scope.owner] -= size
        self.bytes -= size
        if not mine:
            del self._owners[scope.owner], self._held[scope.owner]
        if len(scope.items) > _AT_ONCE:
            self.dropped.append(scope)

    def sweep(self) -> bool:
        """Let go of a little of what was dropped: 10,000 items at once take 4 ms. False: there is no more."""
        if self.dropped and not self.dropped[-1].empty():
            self.dropped.pop()
        return bool(self.dropped)

    def remove(self, scope: Scope, item: Item) -> None:
        scope.remove(item)
        if self._scopes.get(scope.key) is scope:
            self._count(scope)

    def purge(self, what: Purge) -> Iterator[int]:
        """Counts what fits, some at a time, and unless it is dry lets go of it. Between two the loop may have a turn."""
        for scope in self:
            if what.route and scope.route != what.route:
                continue
            items = list(scope.items.values())
            for first in range(0, len(items), _AT_ONCE):
                found = [
                    item
                    for item in items[first : first + _AT_ONCE]
                    if item.digest in scope.items and what.matches(item, scope.route, (scope.model,))
                ]
                if not what.dry:
                    for item in found:
                        self.remove(scope, item)
                yield len(found)
            if not what.dry and not scope.items:
                self.drop(scope)

    def _shrink(self, among: "OrderedDict[bytes, Scope]", keep: Scope, now_ns: int) -> bool:
        """Make room: the least recently used scope goes, or if it is the only one, some of what is in it."""
        scope = next(iter(among.values()))
        if scope is not keep:
            self.drop(scope)
            self.evicted["scope"] += 1
            return True
        if len(among) > 1:  # it is in use: to the end with it
            among.move_to_end(scope.key)
            return True
        if len(scope.items) <= 1:
            return False
        scope.evict(now_ns)
        self.evicted["item"] += 1
        self._count(scope)
        return True

    def _count(self, scope: Scope) -> None:
        size = scope.held_bytes
        more = size - self._sizes.get(scope.key, 0)
        self._sizes[scope.key] = size
        self._held[scope.owner] = self._held.get(scope.owner, 0) + more
        self.bytes += more
