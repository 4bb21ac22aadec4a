"""One upstream call that several requests share: its answer is written down once, and each reads it at its own pace.

The call runs in a task of its own, so nobody's leaving ends it but the last one's. Who joins late reads from the start.
What is written down is bounded: beyond `MOST_LOG` nobody can join any more, and who lags behind by more than that is let
go. The writer waits while even the fastest reader is `AHEAD` behind, so that the upstream is held back as it would be by
a single slow client.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

from ..errors import Fault
from ..exchange import Headers

AHEAD = 256 * 1024
MOST_LOG = 8 * 1024 * 1024
MOST_ALL = 128 * 1024 * 1024  # written down in all flights of a worker; beyond that new ones are not shared
FINISH_S = 1.0  # for calls that were cancelled to be over
PIECE = 32 * 1024  # bytes that a reader takes at once


class Reader:
    """One request that reads a flight."""

    __slots__ = ("at", "bytes", "slow", "waiting")

    def __init__(self) -> None:
        self.at = 0  # the next piece
        self.bytes = 0  # read so far
        self.slow = False  # it lags too far behind
        self.waiting: asyncio.Future[None] | None = None


class Flight:
    """The client's side of the shared call (flow.Caller), and what was written to it."""

    relay_to = None  # no engine writes to it: every piece is written down
    early = False  # the readers keep their own clients waiting

    def __init__(self, flights: "Flights", key: object) -> None:
        self._flights = flights
        self.key = key
        self.status = 0  # 0: nothing said yet
        self.headers: Headers = []
        self.body: bytes | None = None  # of an answer that came whole
        self.over = False
        self.fault: Fault | None = None
        self.open = False  # who asks the same may join
        self.kept = True  # all of it is still there
        self.readers: set[Reader] = set()
        self.followers = 0  # that ever joined
        self.pinned = False  # goes on without readers
        self.left = False  # the client of the request that asks is gone
        self.closing = b""  # what closes the stream for that client alone
        self.task: Any = None
        self.own: Any = None  # the client of the request that asks, where that makes the call itself (leading.py)
        self.leader: Any = None  # the exchange that asks
        self.asked: Any = None  # what it asks, for the semantic cache
        self._pieces: list[bytes] = []
        self._base = 0  # number of the first of them
        self._held = 0  # bytes of them
        self._bytes = 0  # written ever
        self._room: asyncio.Future[None] | None = None

    # ---- as the client of the call

    def hold(self, headers: Headers) -> None: ...
    def release(self) -> Awaitable[None] | None:
        return None

    async def start(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers
        self._wake()

    def reply_nowait(self, status: int, headers: Headers, body: bytes) -> bool:
        self.status, self.headers, self.body = status, headers, body
        self._wake()
        return self.own is None or bool(self.own.reply_nowait(status, [*headers], body))

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        if self.own is None:
            self.reply_nowait(status, headers, body)
        else:
            await self.own.reply(status, [*headers], body)

    def stays(self) -> bool:
        """The client of the request that asks has left: whether the call goes on, for those who have joined."""
        self.pinned = False
        self.left = bool(self.readers)
        if not self.left:
            self._flights.close(self)
        return self.left

    async def send(self, data: bytes, more: bool) -> None:
        if not more:
            self.closing = data
            return
        self.write(data)
        while self.readers and self._behind() > AHEAD:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def push(self, data: bytes) -> bool:
        if self.readers and self._behind() > AHEAD:
            return False
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        """One piece, at whatever pace it is read."""
        self._pieces.append(data)
        size = len(data)
        self._bytes += size
        self._held += size
        self._flights.held += size
        if self._held > MOST_LOG:
            self._trim()
        self._wake()

    def _behind(self) -> int:
        return self._bytes - max(reader.bytes for reader in self.readers)

    def _trim(self) -> None:
        """Let go of what everybody has read, and of who is too slow."""
        self._flights.close(self)
        self.kept = False
        while self._held > MOST_LOG and self._pieces:
            self._held -= (size := len(self._pieces.pop(0)))
            self._flights.held -= size
            self._base += 1
        for reader in self.readers:
            reader.slow = reader.slow or reader.at < self._base

    # ---- as the readers see it

    def join(self) -> Reader:
        reader = Reader()
        self.readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """This one is gone; with the last one the call ends."""
        self.readers.discard(reader)
        if not self.readers and not self.pinned and not self.over:
            self._flights.close(self)
            if self.task is not None:
                self.task.cancel()
        self._make_room()

    def take(self, reader: Reader) -> bytes:
        """What this reader has not had yet, a piece of it; empty: it has to `wait`, or it was the end."""
        at = reader.at - self._base
        if at < 0:
            reader.slow = True
            return b""
        out: list[bytes] = []
        size = 0
        pieces = self._pieces
        while at < len(pieces) and (not out or size + len(pieces[at]) <= PIECE):
            out.append(pieces[at])
            size += len(pieces[at])
            at += 1
        reader.at = at + self._base
        reader.bytes += size
        if out:
            self._make_room()
        return out[0] if len(out) == 1 else b"".join(out)

    async def wait(self, reader: Reader) -> None:
        """Until there is news."""
        reader.waiting = asyncio.get_running_loop().create_future()
        await reader.waiting

    @property
    def log(self) -> list[bytes] | None:
        """All that was written, None where some of it has been let go."""
        return self._pieces if self.kept else None

    def end(self, fault: Fault | None) -> None:
        """The call is over; readers have what was written, and then this fault if there is one."""
        self.over = True
        self.fault = fault
        self._flights.ended(self)
        self._flights.held -= self._held
        self._held = 0
        self._wake()

    def _wake(self) -> None:
        for reader in self.readers:
            if reader.waiting is not None and not reader.waiting.done():
                reader.waiting.set_result(None)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class Flights:
    """The shared calls of one worker that may be joined, by what they answer."""

    def __init__(self) -> None:
        self._open: dict[object, Flight] = {}
        self._running: set[Flight] = set()  # a loop holds its tasks weakly
        self.held = 0
        self.closed = False

    @property
    def running(self) -> int:
        return len(self._running)

    async def finish(self) -> None:
        """End what still runs, so that it is settled while there is somebody to settle it."""
        self.closed = True
        tasks = [flight.task for flight in self._running if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FINISH_S)

    def find(self, key: object) -> Flight | None:
        return self._open.get(key)

    def begin(self, key: object, shared: bool) -> Flight:
        """A new one; `shared`: others may join."""
        flight = Flight(self, key)
        self._running.add(flight)
        if shared and key not in self._open and self.held < MOST_ALL:
            flight.open = True
            self._open[key] = flight
        return flight

    def ended(self, flight: Flight) -> None:
        self.close(flight)
        self._running.discard(flight)

    def close(self, flight: Flight) -> None:
        """Nobody joins it any more."""
        if flight.open:
            flight.open = False
            del self._open[flight.key]

    def __len__(self) -> int:
        return len(self._open)
