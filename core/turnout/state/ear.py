"""Who waits for a key to be written: woken by what `set(tell=True)` publishes. A wake-up may be lost with a connection, so
nobody relies on it alone (depot.py polls, slowly). The connection is there while somebody waits, and a while after.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import Random

from .lane import Wire, Wrong, pack

AGAIN_S = 0.2
KEPT_S = 10.0  # without anybody who waits


class Ear:
    """One per process."""

    def __init__(self, dial: Callable[[], Awaitable[Wire | Wrong]], rng: Random, count: Callable[[str], None]) -> None:
        self._dial = dial
        self._rng = rng
        self._count = count
        self._waiting: dict[bytes, list[asyncio.Event]] = {}
        self._news: list[tuple[bytes, bytes]] = []  # command, channel
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, channel: bytes) -> Iterator[asyncio.Event]:
        """An event that is set when somebody published there, and once when we have begun to listen."""
        event = asyncio.Event()
        events = self._waiting.setdefault(channel, [])
        events.append(event)
        if len(events) == 1:
            self._say(b"SUBSCRIBE", channel)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield event
        finally:
            events.remove(event)
            if not events:
                del self._waiting[channel]
                self._say(b"UNSUBSCRIBE", channel)

    def wake(self) -> None:
        """Everybody: what they wait for will not come this way."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def _say(self, command: bytes, channel: bytes) -> None:
        self._news.append((command, channel))
        self._more.set()

    async def _run(self) -> None:
        while self._waiting:
            wire = await self._dial()
            if isinstance(wire, Wrong):
                self._count(wire.kind)
                self._news.clear()
            else:
                # Whoever came before goes out first, and nothing twice: what is news is among them.
                self._news[:] = [(b"SUBSCRIBE", channel) for channel in self._waiting]
                self._more.set()
                tasks = [asyncio.ensure_future(part) for part in (self._hear(wire), self._tell(wire))]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
                    await wire.close()
            await asyncio.sleep(AGAIN_S * (0.5 + self._rng.random()))

    async def _tell(self, wire: Wire) -> None:
        while True:
            try:
                async with asyncio.timeout(KEPT_S):
                    await self._more.wait()
            except TimeoutError:
                if self._waiting:
                    continue
                return
            self._more.clear()
            news, self._news = self._news, []
            if news and await wire.send(b"".join([pack(line) for line in news])) is not None:
                return

    async def _hear(self, wire: Wire) -> None:
        while True:
            said = await wire.receive()
            if isinstance(said, Wrong) and said.broken:
                self._count(said.kind)
                return
            if isinstance(said, list) and len(said) == 3 and isinstance(said[1], bytes):
                for event in self._waiting.get(said[1], ()):
                    event.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
