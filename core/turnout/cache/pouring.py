"""A stream of one worker for those of others who ask the same, while it comes.

Nothing of it leaves the worker before another one asks for it. Then it is poured from its start, by a reader like any
other (flight.py): so the call goes on for them when nobody is left here, and ends when they leave too.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol
from zlib import crc32

import msgspec

from ..errors import TABLE, Fault
from ..exchange import Exchange, Headers, Saved
from .flight import Flight

# Ends that are the asking worker's own: who follows it has to go on by itself.
_OWN_ENDS = frozenset(("client_gone", "internal", "draining"))


class Feed(Protocol):
    async def next(self) -> Any:
        """A list of pieces; None: who poured is gone; False: there is nothing to follow."""

    def close(self) -> None: ...


class Live(Protocol):
    """A tier that hands on what is under way (state/board.py)."""

    def offer(self, key: bytes, kind: bytes, wanted: Callable[[int], None]) -> None: ...
    def withdraw(self, key: bytes, kind: bytes) -> None: ...
    def pour(self, key: bytes, kind: bytes, number: int, pieces: list[Any], over: bool) -> None: ...
    def follow(self, key: bytes, kind: bytes) -> Feed: ...


class End(msgspec.Struct, array_like=True, frozen=True):
    """How it ended, and what the one who asked for it had of it."""

    fault: str
    message: str
    finish: str
    provider: str
    model: str
    cost_nanos: int


def kind_of(x: Exchange) -> bytes:
    """Who asked for another kind of stream has other bytes."""
    return b"usage" if x.asked_usage else b"stream"


class Pouring:
    """One flight's. `close` it when the flight is settled."""

    def __init__(self, live: Live, key: bytes, kind: bytes, flight: Flight) -> None:
        self._live = live
        self._key = key
        self._kind = kind
        self._flight = flight
        self._task: asyncio.Task[None] | None = None
        live.offer(key, kind, self._wanted)

    def _wanted(self, number: int) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if number and self._flight.kept:
            self._task = asyncio.get_running_loop().create_task(self._pour(number))

    async def _pour(self, number: int) -> None:
        flight = self._flight
        reader = flight.join()
        end = End("internal", "", "", "", "", 0)
        try:
            while not flight.status and not flight.over:
                await flight.wait(reader)
            self._say(number, [[flight.status, flight.headers]])
            while not reader.slow:
                if data := flight.take(reader):
                    self._say(number, [data])
                elif flight.over:
                    break
                else:
                    await flight.wait(reader)
            if not reader.slow:
                end = self._end()
        finally:
            self._say(number, [end], over=True)
            flight.leave(reader)

    def _say(self, number: int, pieces: list[Any], over: bool = False) -> None:
        self._live.pour(self._key, self._kind, number, pieces, over)

    def _end(self) -> End:
        flight, leader = self._flight, self._flight.leader
        last = leader.attempts[-1] if leader.attempts else None
        fault = flight.fault
        return End(
            fault.kind if fault is not None else "",
            fault.message if fault is not None else "",
            leader.finish,
            last.provider if last is not None else "",
            last.model if last is not None else "",
            leader.cost_nanos,
        )

    async def close(self) -> None:
        """Let those who want it have the end of it."""
        self._live.withdraw(self._key, self._kind)
        if self._task is not None:
            await asyncio.wait([self._task])


class Tail:
    """One flight's reading of what another worker pours, over the lives of several such workers: each pours the same from
    the start, and what is had is left out."""

    def __init__(
        self, live: Live, key: bytes, kind: bytes, flight: Flight, begin: Callable[[Headers], Headers]
    ) -> None:
        """`begin(headers)`: makes our own headers of those of the one who asks, when they are there."""
        self._live = live
        self._key = key
        self._kind = kind
        self._flight = flight
        self._begin = begin
        self.had = 0  # bytes
        self._sum = 0  # of them
        self.news = 0  # lists of pieces
        self.begun = False
        self.heard = False  # of the worker that asks now
        self.refused = False
        self.end: End | None = None  # it is all there

    async def run(self) -> None:
        """Hand on what comes. Returns when `end` is there, or when nothing more comes from this worker."""
        feed = self._live.follow(self._key, self._kind)
        skip, known = self.had, 0
        self.heard = False
        try:
            while True:
                pieces = await feed.next()
                if not isinstance(pieces, list):
                    self.refused = pieces is False
                    return
                self.heard = True
                self.news += 1
                for piece in pieces:
                    if isinstance(piece, bytes):
                        if skip:
                            known = crc32(piece[:skip], known)
                        fresh = piece[skip:]
                        skip = max(0, skip - len(piece))
                        if not fresh:
                            continue
                        if self.had and known not in (0, self._sum):
                            self.refused = True  # it has another beginning: two went on, one of them was thought dead
                            return
                        self.had += len(fresh)
                        self._sum = crc32(fresh, self._sum)
                        known = 0
                        self._flight.write(fresh)
                    elif len(piece) == 2:
                        status, headers = piece
                        if status and not self._flight.status:
                            self.begun = True
                            await self._flight.start(status, self._begin([(name, value) for name, value in headers]))
                    else:
                        end = msgspec.convert(piece, End)
                        if self._flight.status and end.fault not in _OWN_ENDS:
                            self.end = end
                        return
        finally:
            feed.close()


def ended(x: Exchange, end: End) -> None:
    """What a request knows of itself that another worker's call has answered."""
    x.finish = end.finish
    if end.fault:
        x.fault = Fault(end.fault if end.fault in TABLE else "interrupted", end.message)
    elif end.provider:
        x.saved = Saved(end.provider, end.model, end.cost_nanos)
