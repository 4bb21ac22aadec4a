"""Statistics that the workers of a host have together. Nothing on a request's way: `sync` runs on the worker's tick.

Shared are sums that only grow, in cells that are added to atomically, so merges commute and nobody waits for anybody. A
worker adds what it saw since the last time and reads what the others added meanwhile; each lets the past fade by itself.
What belongs together is added in one operation: count and time of answers share a cell, so a worker that dies between two
operations leaves no count without its time. What is waiting is each worker's own: one that dies would leave it waiting.

A worker that starts finds the last minute in windows by ten seconds, and does not begin from nothing.

`Outside` is the same from the supervisor's side, who carries what this host has seen to other hosts and back (fleet.py).
"""

from typing import Protocol

import msgspec

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
MOST_AT_ONCE = 1 << 18  # more answers between two looks: the cells were begun anew
_WORD = (1 << 64) - 1


class Cells(Protocol):
    """A row of 31 cells, see twin/counters.py."""

    def get(self, cell: int) -> int: ...
    def add(self, cell: int, n: int) -> int: ...
    def bump(self, first: int, cells: int, stamp: int, n: int) -> int: ...
    def recent(self, first: int, cells: int, stamp: int) -> int: ...


def name_of(route: str, provider: str, model: str, half_life_s: float) -> str:
    """What the row of these statistics is called; hosts with equal configs call it alike."""
    return f"stats {route} {provider} {model} {half_life_s}"


class Seen(msgspec.Struct):
    """What was seen of one target: answers and their microseconds (at the usual size), streamed and plain, verdicts, and
    attempts that began. Sums: two of them may be added, in any order."""

    streamed: int = 0
    streamed_us: int = 0
    plain: int = 0
    plain_us: int = 0
    good: int = 0
    bad: int = 0
    begun: int = 0


class Outside:
    """One target's statistics on this host, for who carries them elsewhere."""

    __slots__ = ("_cells", "_known")

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._known = [cells.get(cell) for cell in range(4)]

    def take(self) -> Seen:
        """What the workers of this host have seen since the last time; without what was `put`."""
        streamed, plain, verdicts, begun = (self._new(cell) for cell in range(4))
        if max(streamed >> _TIME_BITS, plain >> _TIME_BITS) >= MOST_AT_ONCE:  # the cells were begun anew
            return Seen()
        good, bad = verdicts >> _HALF, verdicts & (1 << _HALF) - 1
        if max(good, bad, begun) >= MOST_AT_ONCE:
            good = bad = begun = 0
        return Seen(
            streamed=streamed >> _TIME_BITS,
            streamed_us=streamed & _TIME,
            plain=plain >> _TIME_BITS,
            plain_us=plain & _TIME,
            good=good,
            bad=bad,
            begun=begun,
        )

    def put(self, seen: Seen, now_ns: int) -> None:
        """What others saw: for the workers of today, and for one that starts within a minute."""
        stamp = now_ns // _WINDOW_NS
        for cell, n, us in ((_STREAM, seen.streamed, seen.streamed_us), (_PLAIN, seen.plain, seen.plain_us)):
            if n:
                self._cells.bump(_COUNTS[cell], WINDOW, stamp, n)
                self._cells.bump(_TIMES[cell], WINDOW, stamp, min(us // 1000, (1 << 32) - 1))
                self._add(cell, n << _TIME_BITS | us)
        self._add(_VERDICTS, seen.good << _HALF | seen.bad)
        self._add(_BEGUN, seen.begun)

    def _new(self, cell: int) -> int:
        now = self._cells.get(cell)
        new = (now - self._known[cell]) & _WORD
        self._known[cell] = now
        return new

    def _add(self, cell: int, n: int) -> None:
        if n:
            self._cells.add(cell, n)
            self._known[cell] += n


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
            if 0 < n < MOST_AT_ONCE:
                side.heard(n, (others & _TIME) / 1e6 / n, now_ns)

    def _exchange(self, cell: int, mine: int) -> int:
        """Add this, and what others have added since the last time."""
        now = self._cells.add(cell, mine) if mine else self._cells.get(cell)
        others = (now - self._known[cell] - mine) & _WORD
        self._known[cell] = now
        return others
