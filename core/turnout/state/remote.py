"""A worker's side of the state process. Same interface as `Counters` (but `compare`, which cannot wait for an answer).

What is counted is known here at once and goes out once per turn of the loop, summed up. `get` and `recent` are what the
process said last and what it has not acknowledged: never less than what this worker has counted itself, and behind the
others by their turn and the way. Without the process everybody counts for himself; when it is back (it begins at zero)
he goes on there. Batches that were on their way when it died are lost, never counted twice.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from .link import TooLarge, frame, messages, reach
from .wire import MOST_BYTES, Batch, News, decode_news, encode_batch

ROWS = 4096  # as `Counters`
CELLS = 31
MOST_WAITING = 2000
_MASK = 0xFFFF_FFFF
Adds = dict[tuple[int, int], int]  # row, cell -> n
Bumps = dict[tuple[int, int, int, int], int]  # row, first, cells, stamp -> n


class Tally:
    """What is known of all rows. Pure: `batch` gives what is to be sent, `heard` takes the answer."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._rows: dict[int, int] = {}
        self._known: list[list[int]] = []
        self._new: list[int] = []
        self._adds: tuple[Adds, Adds] = ({}, {})  # not sent yet; sent, not acknowledged
        self._bumps: tuple[Bumps, Bumps] = ({}, {})
        self._sent = 0
        self._acked = 0

    # ---- as Counters

    def row(self, key: int) -> int:
        if key == 0:
            raise ValueError("0 is not a key")
        if key not in self._rows:
            if len(self._keys) == ROWS:
                return -1
            self._rows[key] = len(self._keys)
            self._keys.append(key)
            self._known.append([0] * CELLS)
            self._new.append(key)
            self.changed()
        return self._rows[key]

    def get(self, row: int, cell: int) -> int:
        self._check(row, cell, 1)
        return self._known[row][cell] + sum(part.get((row, cell), 0) for part in self._adds)

    def add(self, row: int, cell: int, n: int) -> int:
        self._check(row, cell, 1)
        waiting = self._adds[0]
        waiting[row, cell] = waiting.get((row, cell), 0) + n
        self.changed()
        return self.get(row, cell)

    def bump(self, row: int, first: int, cells: int, stamp: int, n: int) -> int:
        self._check(row, first, cells)
        there, count = divmod(self._known[row][first + stamp % cells], _MASK + 1)
        if there > stamp:
            return 0
        if n:
            waiting = self._bumps[0]
            waiting[row, first, cells, stamp] = waiting.get((row, first, cells, stamp), 0) + n
            if len(waiting) > MOST_WAITING:
                self._forget_before(stamp - CELLS)
            self.changed()
        own = sum(part.get((row, first, cells, stamp), 0) for part in self._bumps)
        return (count if there == stamp else 0) + own

    def recent(self, row: int, first: int, cells: int, stamp: int) -> int:
        self._check(row, first, cells)
        words = self._known[row][first : first + cells]
        total = sum(word & _MASK for word in words if stamp - cells < word >> 32 <= stamp)
        for part in self._bumps:
            for (r, f, c, s), n in part.items():
                if (r, f, c) == (row, first, cells) and stamp - cells < s <= stamp:
                    total += n
        return total

    @staticmethod
    def _check(row: int, first: int, cells: int) -> None:
        if not (0 <= row < ROWS and first >= 0 and cells > 0 and first + cells <= CELLS):
            raise ValueError("no such row or cell")

    # ---- as the connection's side

    changed: Callable[[], None] = staticmethod(lambda: None)  # called when there is something to send

    def connected(self) -> None:
        """To a process that knows nothing: what was on its way to another is lost."""
        self._adds[1].clear()
        self._bumps[1].clear()
        self._sent = self._acked = 0
        self._new = list(self._keys)
        for cells in self._known:
            cells[:] = [0] * CELLS

    def batch(self) -> Batch | None:
        """What to send now; None while nothing is new or the last batch is not acknowledged (so there is one at most)."""
        if self._sent > self._acked or not (self._new or self._adds[0] or self._bumps[0]):
            return None
        self._sent += 1
        keys = self._keys
        adds = [(keys[row], cell, n) for (row, cell), n in self._adds[0].items()]
        bumps = [(keys[row], f, c, s, n) for (row, f, c, s), n in self._bumps[0].items()]
        self._adds = ({}, self._adds[0])
        self._bumps = ({}, self._bumps[0])
        new, self._new = self._new, []
        return Batch(self._sent, new, adds, bumps)

    def heard(self, news: News) -> None:
        for key, cells in news.rows:
            if key in self._rows:
                self._known[self._rows[key]] = cells
        if news.done >= self._sent and self._sent > self._acked:
            self._acked = self._sent
            self._adds[1].clear()
            self._bumps[1].clear()

    def _forget_before(self, stamp: int) -> None:
        """While there is no process, windows that have passed need not be kept for it."""
        waiting = self._bumps[0]
        for place in [place for place in waiting if place[3] < stamp]:
            del waiting[place]


class Remote(Tally, asyncio.Protocol):
    """`Tally` on a connection to the state process, which it keeps up as long as the loop runs."""

    def __init__(self, address: bytes | str) -> None:
        super().__init__()
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._soon = False
        self._closed = False
        self.changed = self._later
        self._task = self._connect()

    def close(self) -> None:
        self._closed = True
        self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _later(self) -> None:
        if not self._soon and self._transport is not None:
            self._soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._soon = False
        if self._transport is not None and (batch := self.batch()) is not None:
            self._transport.write(frame(encode_batch(batch)))

    def _connect(self) -> "asyncio.Task[None]":
        return self._loop.create_task(reach(self._address, self, lambda: self._closed))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._buffer.clear()
        self.connected()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        with contextlib.suppress(TooLarge):
            for message in messages(self._buffer, MOST_BYTES):
                self.heard(decode_news(message))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._closed:
            self._task = self._connect()
