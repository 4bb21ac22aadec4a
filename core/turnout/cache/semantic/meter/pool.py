"""All workers' sums of one namespace, and how they travel. Pure.

What is sent is every worker's last sums that this one knows of, numbered, with the threshold they have agreed on and the
items' bars. Merging takes the later of each: in any order, any number of times, the same.
"""

import msgspec

from .bars import MOST_BAR, MOST_ITEMS, Bars, Record
from .drift import Walks
from .window import BINS, CELLS, DOWN, HITS_N, PAIRS_WW, REQUESTS, SCALARS, SQUARES, UP, Report, Sums, sane

VERSION = 1
MOST_WORKERS = 256
FADED = 1e-3  # of one request: a worker that has gone so long ago says nothing any more
LATE_NS = 86_400_000_000_000  # clocks of hosts differ by less


class Ratchet(msgspec.Struct, array_like=True, frozen=True, order=True):
    """The threshold that stands: of the last era, in it of the one who had seen most labels; the strictest of those."""

    era: int
    labels: float
    base: int  # bin that is served from while nothing is shown: the factory's, or stricter after an alarm
    at: int  # bin that is served from


class State(msgspec.Struct, array_like=True, frozen=True):
    version: int
    half_life_ns: int
    rule: tuple[float, float]  # budget and factory's threshold: what the ratchet is of
    workers: list[Report]
    ratchet: Ratchet
    items: dict[int, Record]
    walks: Walks | None = None  # of the first of the workers


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(State).decode


class Pool:
    """`own` is written by the meter; the others are what they said last."""

    def __init__(self, name: bytes, half_life_ns: int, ratchet: Ratchet, bars: Bars, rule: tuple[float, float]) -> None:
        self.name = name
        self._bars = bars
        self._rule = rule
        self.own = Sums(half_life_ns)
        self.others: dict[bytes, Sums] = {}
        self.ratchet = ratchet
        self._told: tuple[list[float], Ratchet] | None = None
        self.hits = 0.0  # of the others, ever
        self.walks: Walks | None = None  # this worker's own, before it was started again

    def scalar(self, which: int) -> float:
        return self.own.scalars[which] + sum(sums.scalars[which] for sums in self.others.values())

    def totals(self, now_ns: int, era: bool) -> tuple[list[float], list[float]]:
        """Cells and scalars of all workers, where what is now weighs 1. `era`: only what belongs to the era of now.
        O(cells) a worker, 0.2 ms."""
        d = self.own.weight(now_ns)
        cells = [0.0] * CELLS
        scalars = [0.0] * SCALARS
        for sums in (self.own, *self.others.values()):
            sums.shift(self.own.lap)
            scalars = list(map(float.__add__, scalars, sums.scalars))
            if not era:
                cells = list(map(float.__add__, cells, sums.cells))
            elif sums.era == self.own.era:
                cells = [a + (b - c) for a, b, c in zip(cells, sums.cells, sums.cut, strict=True)]
        one, two = 1.0 / d, 1.0 / (d * d)
        cells = [x * one for x in cells[:SQUARES]] + [x * two for x in cells[SQUARES:]]
        for i in range(HITS_N):
            scalars[i] *= one if i < PAIRS_WW else two
        return cells, scalars

    def era_requests(self) -> float:
        """Requests of the era of now, as `totals` has the cells."""
        return sum(sums.scalars[REQUESTS] - sums.cut_requests for sums in self._living()) / self.own.weight(0)

    def scope(self, name: bytes) -> tuple[float, float]:
        """Labels of checks in this scope, those wrong; as they weigh now."""
        found = [sums.scopes.get(name, (0.0, 0.0)) for sums in self._living()]
        d = self.own.weight(0)
        return sum(n for n, _ in found) / d, sum(k for _, k in found) / d

    def _living(self) -> list[Sums]:
        """Of the era of now, all counted from the lap of now."""
        for sums in self.others.values():
            sums.shift(self.own.lap)
        return [sums for sums in (self.own, *self.others.values()) if sums.era == self.own.era]

    # ---- what travels

    def dump(self, now_ns: int, everyone: bool, walks: Walks | None = None) -> bytes:
        """This worker's sums, or `everyone`'s as they are known here, the threshold and the bars."""
        self.own.weight(now_ns)
        if (before := self.others.pop(self.name, None)) is not None:  # this worker's own, before it was started again
            self.own.add(before)
            self._count()
        told = (list(self.own.scalars), self.ratchet)
        if told != self._told:  # nothing new keeps its number, and is the same again
            self._told = told
            self.own.number = max(self.own.number + 1, now_ns)
        reports = [self.own.report(self.name)]
        if everyone:
            faded = FADED * self.own.weight(now_ns)
            for name, sums in self.others.items():
                sums.shift(self.own.lap)
                if sums.scalars[REQUESTS] > faded:
                    reports.append(sums.report(name))
        return _encode(
            State(VERSION, self.own.half_life_ns, self._rule, reports, self.ratchet, self._bars.records, walks)
        )

    def merge(self, data: bytes, now_ns: int) -> tuple[float, float] | None:
        """Take what is newer. What the workers known before have walked since, in this era; None: the data is no state."""
        try:
            state = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        self.own.weight(now_ns)
        if not self._sane(state, now_ns):
            return None
        if state.rule == self._rule:
            self.ratchet = max(self.ratchet, state.ratchet)
            walks = state.walks
            if walks is not None and walks.sane and not self.own.number and state.workers[:1]:
                self.walks = walks if state.workers[0].name == self.name else None
        if self.ratchet.era > self.own.era:
            self.own.turn(self.ratchet.era)
        up = down = 0.0
        for report in state.workers:
            if report.name == self.name and self.own.number:
                continue
            known = self.others.get(report.name)
            if known is None:
                if len(self.others) >= MOST_WORKERS:
                    continue
                known = self.others[report.name] = Sums(self.own.half_life_ns)
            elif report.number <= known.number:
                continue
            elif known.era == report.era == self.own.era:
                up += report.scalars[UP] - known.scalars[UP]
                down += report.scalars[DOWN] - known.scalars[DOWN]
            known.take(report)
            known.shift(self.own.lap)
        for item, record in state.items.items():
            self._bars.merge(item, record)
        self._count()
        return up, down

    def _count(self) -> None:
        self.hits = sum(sums.scalars[HITS_N] for sums in self.others.values())

    def _sane(self, state: State, now_ns: int) -> bool:
        r = state.ratchet
        return (
            state.version == VERSION
            and state.half_life_ns == self.own.half_life_ns
            and len(state.workers) <= MOST_WORKERS
            and all(sane(report) for report in state.workers)
            and all(report.number <= now_ns + LATE_NS and report.lap <= self.own.lap + 1 for report in state.workers)
            and 0 <= r.era < 1 << 40
            and 0.0 <= r.labels < 1e15
            and 0 <= r.base <= BINS
            and 0 <= r.at <= BINS
            and len(state.items) <= MOST_ITEMS
            and all(0 <= at <= now_ns + LATE_NS and 0.0 <= bar <= MOST_BAR for at, bar, _ in state.items.values())
        )
