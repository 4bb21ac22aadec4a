"""What a worker knows of kept questions, and how it keeps up with the others: scopes are loaded when they are first asked
for, what others add or drop comes every `LOOK_S`, and what is added here is written down for them."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from ...clock import Clock
from ..entry import Entry
from ..purge import Purge, Purges
from ..tier import pack
from .books import Books, News, Place, read
from .scopes import Item, Scope, Scopes

LOOK_S = 0.05  # between two looks at what others did: a new entry is theirs within 100 ms
SLICE_S = 0.0008  # of work without giving the loop a turn


class Knowledge:
    """Of one worker. Needs a running event loop to be made; `close` it."""

    def __init__(self, scopes: Scopes, books: Books, clock: Clock, parse: Callable[[str], Any]) -> None:
        self.scopes = scopes
        self.books = books
        self._clock = clock
        self._parse = parse
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges = Purges()
        self.spawn(self._follow())

    def scope(self, place: Place) -> Scope:
        """The scope of this place; what others know of it comes as soon as it may."""
        scope = self.scopes.open(place.scope, place.owner, place.route, place.model)
        if not scope.loaded and not scope.loading and self.books.up:
            scope.loading = True
            self.spawn(self._load(scope, place))
        return scope

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
        for found in self.scopes.purge(what):
            count += found
            await asyncio.sleep(0)
        if not what.dry:
            self._purges.add(what, self._clock.wall_ns())
            await self.books.purge(what)
        return count

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self.books.close()

    # ---- keeping up

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                for news in await self.books.news():
                    await self._hear(news)
            except Exception:  # whatever lies in the books, the next look is worth it
                continue

    async def _hear(self, news: News) -> None:
        if news.what == "lost":
            for scope in self.scopes:
                scope.loaded = False
            return
        if news.what == "purge":
            what, at = msgspec.json.decode(news.value, type=tuple[Purge, int])
            self._purges.add(what, at)
            for _ in self.scopes.purge(what):
                await asyncio.sleep(0)
            return
        found = self.scopes.known(news.scope)
        if found is None:
            return
        if news.what == "add":
            self._take(found, news.value)
        elif (item := found.items.get(news.value)) is not None:
            self.scopes.remove(found, item)

    async def _load(self, scope: Scope, place: Place) -> None:
        try:
            found = await self.books.load(place)
            began = time.perf_counter()
            for data in found or ():
                self._take(scope, data)
                if time.perf_counter() - began > SLICE_S:
                    await asyncio.sleep(0)
                    began = time.perf_counter()
            scope.loaded = found is not None
        finally:
            scope.loading = False

    def _take(self, scope: Scope, data: bytes) -> None:
        """An item that another wrote down."""
        found = read(data, self._clock.wall_ns())
        if found is not None and found.remote and (here := scope.items.get(found.digest)) is not None:
            self.scopes.learn(scope, here, found.remote, self._clock.wall_ns())
            self._tend(scope)
        if (
            found is None
            or found.digest in scope.items
            or self._purges.took(found, scope.route, (scope.model,), found.stored_ns)
        ):
            return
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

    def _put(self, scope: Scope, item: Item) -> None:
        self.scopes.put(scope, item, item.said.vector, self._clock.wall_ns())
        self._tend(scope)

    def _tend(self, scope: Scope) -> None:
        if not scope.building and any(index.wants_work for index in scope.indexes):
            scope.building = True
            self.spawn(self._build(scope))

    async def _build(self, scope: Scope) -> None:
        try:
            while index := next((index for index in scope.indexes if index.wants_work), None):
                await self._loop.run_in_executor(None, index.job())
                index.advance()
        finally:
            scope.building = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Done beside all requests, until `close`."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
