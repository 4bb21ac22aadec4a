"""What a worker knows of kept questions, and how it keeps up with the others: scopes are loaded when they are first asked
for, what others add or drop comes as soon as they say that it is written down (or in `LOOK_S`), and what is added here is
written down for them.

Of a large scope there is a snapshot too, so that a worker that begins need not read it all first: until it is loaded, what
is near in the snapshot is taken in as it is asked for. What is in the books counts: once they are read, whatever came from
the snapshot alone goes, and it was never given, for the answer would have had to be there.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from ... import native
from ...clock import Clock
from ..entry import Entry
from ..purge import Purge, Purges
from ..tier import pack
from . import index
from .books import Books, News, Place, Written, place_of, read, written
from .scopes import Item, Scope, Scopes
from .snapshot import Snapshot
from .snapshots import Snapshots, may_hold

LOOK_S = 0.05  # between two looks at what others did, if nobody says that there is something
GATHER_S = 0.002  # before a look for what one was called to: more may come with it
SLICE_S = 0.0005  # of work without giving the loop a turn: a look-up of a scope that is being loaded takes up to 0.9 ms beside it
GROWN = 0.25  # share of a scope that has changed when a snapshot of it is worth writing again: 10 us an item
LEAST_AGE_S, LAST_AGE_S = 60.0, 2.0  # of a snapshot that is written anew; at the end of a worker
CLOSE_S = 2.0  # for the snapshots of the end
_PIECE = 1_000


class Knowledge:
    """Of one worker. Needs a running event loop to be made; `close` it."""

    def __init__(
        self,
        scopes: Scopes,
        books: Books,
        snapshots: Snapshots,
        clock: Clock,
        parse: Callable[[str], Any],
        heard: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`heard(seconds)`: an entry of another worker is known here, so long after it was learned there."""
        self.scopes = scopes
        self._snapshots = snapshots
        self.books = books
        self._clock = clock
        self._parse = parse
        self._told = heard
        self._called: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._saves: set[asyncio.Task[None]] = set()  # not among them: a snapshot that is begun is finished
        self._sweeping = False  # what made room for others is being let go
        self._purges = Purges()
        self.spawn(self._follow())

    def scope(self, place: Place) -> Scope:
        """The scope of this place; what others know of it comes as soon as it may."""
        scope = self.scopes.open(place.scope, place.owner, place.route, place.model)
        if not scope.loaded and not scope.loading and self.books.up:
            scope.loading = True
            if scope.rest is None:
                scope.rest = self._snapshots.take(place)
            self.spawn(self._load(scope, place))
        return scope

    def nearest(self, scope: Scope, vector: bytes, most: int = index.NEAREST) -> list[tuple[Item, float]]:
        """The few items whose questions are nearest, with their cosines."""
        if (rest := scope.rest) is not None:
            for data in rest.nearest(vector, 2 * max(most, index.NEAREST)):
                found = read(data, self._clock.wall_ns())
                if found is not None and found.digest not in rest.dropped and self._take(scope, found):
                    rest.taken.add(found.digest)
        return scope.nearest(vector, self._clock.wall_ns(), most)

    def add(self, place: Place, scope: Scope, item: Item, entry: Entry) -> None:
        """Keep a question, here and for the others."""
        self._put(scope, item)
        self.books.add(place, item, pack(entry, self._clock.now_ns(), item.stored_ns))

    def learn(self, place: Place, scope: Scope, item: Item, remote: bytes, entry: Entry) -> None:
        """An endpoint's vector of a question that is kept already: it is written down anew, with it."""
        if self._purges.took(item, scope.route, (scope.model,), item.stored_ns):
            return  # also of a scope that is not in memory any more
        self.scopes.learn(scope, item, remote, self._clock.wall_ns())
        if scope.items.get(item.digest) is item:
            self.books.add(place, item, pack(entry, self._clock.now_ns(), item.stored_ns))
            self._tend(scope)

    def drop(self, place: Place, scope: Scope, item: Item) -> None:
        self.scopes.remove(scope, item)
        self.books.drop(place, item)

    async def purge(self, what: Purge) -> int:
        """How many questions fit; unless it is dry they are gone, here and from the books."""
        count = 0
        if not what.dry:
            self._heard(what, self._clock.wall_ns())
        for found in self.scopes.purge(what):
            count += found
            await asyncio.sleep(0)
        if not what.dry:
            await self.books.purge(what)
            await self._snapshots.purge(what)
        return count

    async def close(self) -> None:
        end = self._loop.time() + CLOSE_S
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._saves:
            await asyncio.wait(list(self._saves), timeout=CLOSE_S)
        for scope in self.scopes:
            if scope.loaded and _is_large(scope) and scope.changes != scope.written and self._loop.time() < end:
                await self._save(scope, LAST_AGE_S)
        await self._snapshots.close()
        await self.books.close()

    def _heard(self, what: Purge, wall_ns: int) -> None:
        self._purges.add(what, wall_ns)
        for scope in self.scopes:
            if may_hold(place_of(scope), what):
                scope.rest = None
                # Its snapshot goes whatever is left of it: another is written when the next question comes, or at the end.
                scope.saved, scope.written = scope.changes - len(scope.items), -1

    # ---- keeping up

    def look(self) -> None:
        """There may be news."""
        if self._called is not None:
            self._called.set()

    async def _follow(self) -> None:
        behind = True
        with self.books.listening() as self._called:
            while True:
                self._called.clear()
                try:
                    if behind and (past := await self.books.purged()) is not None:
                        behind = False
                        for what, at in past:
                            self._purges.add(what, at)
                        await self._snapshots.purge_past(past)
                    for news in await self.books.news():
                        await self._hear(news)
                except Exception:  # whatever lies in the books, the next look is worth it
                    pass
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._called.wait()
                    await asyncio.sleep(GATHER_S)
                except TimeoutError:
                    pass

    async def _hear(self, news: News) -> None:
        if news.what == "lost":
            for scope in self.scopes:
                scope.loaded = False
            return
        if news.what == "purge":
            what, at = msgspec.json.decode(news.value, type=tuple[Purge, int])
            self._heard(what, at)
            for _ in self.scopes.purge(what):
                await asyncio.sleep(0)
            await self._snapshots.purge(what)
            return
        found = self.scopes.known(news.scope)
        if found is None:
            return
        if news.what == "add":
            said = read(news.value, self._clock.wall_ns())
            if said is not None and self._take(found, said):
                self._told((self._clock.wall_ns() - said.stored_ns) / 1e9)
        elif (item := found.items.get(news.value)) is not None:
            self.scopes.remove(found, item)

    async def _load(self, scope: Scope, place: Place) -> None:
        try:
            if scope.rest is None:
                scope.rest = await self._snapshots.open(place)
            found = await self.books.load(place)
            began = time.perf_counter()
            there: set[bytes] = set()
            for i in range(len(found or ())):
                assert found is not None
                if self.scopes.known(scope.key) is not scope:
                    return  # it made room for another
                data, found[i] = found[i], b""  # let go one by one: all at once takes a while
                if (said := read(data, self._clock.wall_ns())) is not None:
                    there.add(said.digest)
                    self._take(scope, said)
                if time.perf_counter() - began > SLICE_S:
                    await asyncio.sleep(0)
                    began = time.perf_counter()
            if found is None or self.scopes.known(scope.key) is not scope:
                return
            scope.loaded = True
            if (rest := scope.rest) is not None:
                scope.rest = None
                await self._compare(scope, rest, there)
        finally:
            scope.loading = False
        self._tend(scope)

    async def _compare(self, scope: Scope, rest: Snapshot, there: set[bytes]) -> None:
        """What is not in the books is to be nowhere: it may have been purged while nobody here listened."""
        for digest in rest.taken - there:
            if (item := scope.items.get(digest)) is not None:
                self.scopes.remove(scope, item)
        more = 0
        began = time.perf_counter()
        for row in range(len(rest)):
            said = read(rest.item(row), self._clock.wall_ns())
            if said is not None:
                more += said.digest not in there
                there.discard(said.digest)
            if time.perf_counter() - began > SLICE_S:
                await asyncio.sleep(0)
                began = time.perf_counter()
        if more:
            await self._snapshots.erase(rest.place)
        elif len(scope.items) - len(rest) < GROWN * len(scope.items):
            scope.saved = scope.written = scope.changes

    def _take(self, scope: Scope, found: Written) -> bool:
        """An item that another wrote down. False: it is here, or was purged."""
        if found.remote and (here := scope.items.get(found.digest)) is not None:
            self.scopes.learn(scope, here, found.remote, self._clock.wall_ns())
            self._tend(scope)
        if found.digest in scope.items or self._purges.took(found, scope.route, (scope.model,), found.stored_ns):
            return False
        said = self._parse(found.text)
        item = Item(
            digest=found.digest,
            text=found.text,
            said=said,
            tenant=found.tenant,
            tag=found.tag,
            key=found.key,
            tags=found.tags,
            stored_ns=found.stored_ns,
            dead_ns=found.dead_ns,
            remote=found.remote or None,
        )
        self._put(scope, item)
        return True

    def _put(self, scope: Scope, item: Item) -> None:
        self.scopes.put(scope, item, item.said.vector, self._clock.wall_ns())
        if self.scopes.dropped and not self._sweeping:
            self._sweeping = True
            self.spawn(self._sweep())
        self._tend(scope)

    async def _sweep(self) -> None:
        while self.scopes.sweep():
            await asyncio.sleep(0)
        self._sweeping = False

    def _tend(self, scope: Scope) -> None:
        """What else there is to do for a scope that has changed."""
        if scope.loading:  # all of it first
            return
        if not scope.building and any(index.wants_work for index in scope.indexes):
            scope.building = True
            self.spawn(self._build(scope))
        grown = scope.changes - scope.saved > GROWN * len(scope.items)
        if grown and scope.loaded and not scope.saving and _is_large(scope):
            scope.saving = True
            self.spawn(self._save(scope, LEAST_AGE_S), self._saves)

    async def _build(self, scope: Scope) -> None:
        try:
            while index := next((index for index in scope.indexes if index.wants_work), None):
                if self.scopes.known(scope.key) is not scope:
                    break
                await self._loop.run_in_executor(None, index.job())
                index.advance()
        finally:
            scope.building = False

    async def _save(self, scope: Scope, least_age_s: float) -> None:
        try:
            items, changes = list(scope.items.values()), scope.changes
            pieces = self._pieces(items)
            if await self._snapshots.write(place_of(scope), len(items), scope.text_bytes, pieces, least_age_s):
                scope.written = changes
            scope.saved = changes  # if not, another has done it, or it is not to be
        finally:
            scope.saving = False

    async def _pieces(self, items: list[Item]) -> AsyncIterator[tuple[list[bytes], list[bytes], int]]:
        began = time.perf_counter()
        for first in range(0, len(items), _PIECE):
            rows, said = [], []
            for item in (piece := items[first : first + _PIECE]):
                rows.append(native.row_of(item.said.vector))
                said.append(written(item))
                if time.perf_counter() - began > SLICE_S:
                    await asyncio.sleep(0)
                    began = time.perf_counter()
            yield rows, said, max(item.dead_ns for item in piece)

    def spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]] | None = None) -> None:
        """Done beside all requests, until `close`."""
        tasks = self._tasks if among is None else among
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _is_large(scope: Scope) -> bool:
    return len(scope.items) > index.FLAT
