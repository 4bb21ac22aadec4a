"""Statistics that the workers of a host have together. Nothing on a request's way: `sync` runs on the worker's tick.

Shared are sums that only grow, in cells that are added to atomically, so merges commute and nobody waits for anybody. A
worker adds what it saw since the last time and reads what the others added meanwhile; each lets the past fade by itself.
What belongs together is added in one operation: count and time of answers share a cell, so a worker that dies between two
operations leaves no count without its time. What is waiting is each worker's own: one that dies would leave it waiting.

A worker that starts finds the last minute in windows by ten seconds, and does not begin from nothing.
"""

from typing import Protocol

from .latency import Latency
from .stats import Stats

_TIME_BITS = 44  # microseconds of all answers between two looks of one worker: half a year
_TIME = (1 << _TIME_BITS) - 1
_HALF = 32
_STREAM, _PLAIN, _VERDICTS, _BEGUN = range(4)
_COUNTS, _TIMES = (4, 16), (10, 22)  # windows of streams and of plain answers
WINDOW = 6
_WINDOW_NS = 10_000_000_000
MOST_REMEMBERED = 20.0  # answers' worth that a new worker trusts them with
_WORD = (1 << 64) - 1


class Cells(Protocol):
    """A row of 31 cells, see twin/counters.py."""

    def get(self, cell: int) -> int: ...
    def add(self, cell: int, n: int) -> int: ...
    def bump(self, first: int, cells: int, stamp: int, n: int) -> int: ...
    def recent(self, first: int, cells: int, stamp: int) -> int: ...


class Share:
    """One target's statistics in this worker, and the cells that all workers have for it."""

    __slots__ = ("_cells", "_known", "_stats")

    def __init__(self, stats: Stats, cells: Cells, now_ns: int) -> None:
        self._stats = stats
        self._cells = cells
        self._known = [cells.get(cell) for cell in range(4)]
        stats.log = [0, 0, 0]
        stats.stream.log, stats.plain.log = [], []
        stamp = now_ns // _WINDOW_NS
        for side, first, second in zip((stats.stream, stats.plain), _COUNTS, _TIMES, strict=True):
            n = cells.recent(first, WINDOW, stamp)
            if n and side.w == 0.0:
                mean = cells.recent(second, WINDOW, stamp) / 1e3 / n
                side.heard(min(n, MOST_REMEMBERED), mean, now_ns)

    def sync(self, now_ns: int) -> None:
        """Give what is new here, take what is new from others. O(answers since the last time)."""
        stats = self._stats
        self._answers(stats.stream, _STREAM, now_ns)
        self._answers(stats.plain, _PLAIN, now_ns)
        log = stats.log
        assert log is not None
        good, bad, begun = log
        log[:] = (0, 0, 0)
        others = self._exchange(_VERDICTS, good << _HALF | bad)
        if others:
            good, bad = others >> _HALF, others & (1 << _HALF) - 1
            if good < 1 << 20 > bad:
                stats.judge(good, good + bad, now_ns)
        if self._exchange(_BEGUN, begun):
            stats.begun_ns = max(stats.begun_ns, now_ns)  # it was asked just now: no need to probe it here too

    def _answers(self, side: Latency, cell: int, now_ns: int) -> None:
        log = side.log
        assert log is not None
        mine = 0
        if log:
            us = int(sum(log) * 1e6)
            mine = len(log) << _TIME_BITS | min(us, _TIME)
            stamp = now_ns // _WINDOW_NS
            self._cells.bump(_COUNTS[cell], WINDOW, stamp, len(log))
            self._cells.bump(_TIMES[cell], WINDOW, stamp, us // 1000)
            log.clear()
        if others := self._exchange(cell, mine):
            n = others >> _TIME_BITS
            if 0 < n < 1 << 18:  # more: the cells were begun anew
                side.heard(n, (others & _TIME) / 1e6 / n, now_ns)

    def _exchange(self, cell: int, mine: int) -> int:
        """Add this, and what others have added since the last time."""
        now = self._cells.add(cell, mine) if mine else self._cells.get(cell)
        others = (now - self._known[cell] - mine) & _WORD
        self._known[cell] = now
        return others
