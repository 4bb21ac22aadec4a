"""What one worker has seen in one namespace: sums per bin of the verifier's score, over a sliding exponential window.

What happens at t is added with the weight 2 ** ((t - start of the lap) / half-life), so nothing that lies there has to be
touched as time goes by: the sums only grow, rates are quotients in which the weights cancel (forward decay: Cormode,
Shkapenyuk, Srivastava and Xu 2009). After a lap of 32 half-lives all sums are scaled by a power of two, which is exact.
Laps begin at the same instants everywhere: `now_ns` is the wall clock here, for the sums go to disk and to other hosts.

A worker's sums travel whole and numbered; whoever has heard a later number drops the earlier, so a report that is late,
lost, doubled or out of order does no harm, and merging in any order gives the same.
"""

from array import array
from collections.abc import Sequence
from math import isfinite

import msgspec

# Bins of the score: by 0.01, by 0.0025 from 0.9 and by 0.0005 from 0.99 on, where the thresholds of small rates lie.
COARSE, FINE, FINEST = 90, 36, 20
BINS = COARSE + FINE + FINEST
EDGES = (
    *(i / 100 for i in range(COARSE)),
    *(0.9 + i / 400 for i in range(FINE)),
    *(0.99 + i / 2000 for i in range(FINEST)),
    1.0,
)

LAP = 32  # half-lives
# Per bin (the field of the wrong ones always follows), sums of the decaying weight d: hits served, misses with a candidate, hits asked again with a label, their w * d
# (w: the inverse of the probability that they were chosen), that of those found wrong, w * d of the labels of misses, of
# those wrong, wrong answers that users told of. Then squares: (w * d) ** 2 of the same four, w * d * d of the first two.
HITS, MISSED, CHECKS, CHECK_W, CHECK_WRONG, MISSES, MISS_WRONG, TOLD = range(8)
CHECK_WW, CHECK_WWRONG, MISS_WW, MISS_WWRONG, CHECK_WD, CHECK_WDWRONG = range(8, 14)
FIELDS = 14
SQUARES = CHECK_WW * BINS  # from here on
CELLS = FIELDS * BINS
# Not per bin. Decaying: requests, pairs of fresh answers and those of them flagged (their squares behind), checks that
# the comparer could not judge. Plain: hits, checks, labels, the two walks of the CUSUM, nanos spent.
REQUESTS, PAIRS, PAIRS_WRONG, UNCLEAR, PAIRS_WW, PAIRS_WWRONG, HITS_N, CHECKS_N, LABELS_N, UP, DOWN, SPENT = range(12)
SCALARS = 12
MOST_SCOPES = 1024  # that a worker remembers labels of: the last ones


def bin_of(score: float) -> int:
    """The bin whose lower edge is at most `score`."""
    if score < 0.9:
        return max(0, int(score * 100.0 + 1e-9))
    if score < 0.99:
        return COARSE + int((score - 0.9) * 400.0 + 1e-9)
    return min(BINS - 1, COARSE + FINE + int((score - 0.99) * 2000.0 + 1e-9))


def edge_from(score: float) -> int:
    """The first bin that holds no score below `score`; BINS if there is none."""
    i = bin_of(score)
    return i if EDGES[i] >= score - 1e-9 else i + 1


def column(cells: Sequence[float], field: int) -> Sequence[float]:
    """One field of all bins."""
    return cells[field * BINS : field * BINS + BINS]


class Report(msgspec.Struct, array_like=True, frozen=True):
    """A worker's sums as they travel: only what is not zero, by its place."""

    name: bytes
    number: int
    lap: int
    era: int
    cells: dict[int, float]
    cut: dict[int, float]  # what of the cells belongs to eras before
    cut_requests: float
    scalars: list[float]
    scopes: dict[bytes, tuple[float, float]]


class Sums:
    """One worker's. `era` counts the alarms: what was learned before the last one tells nothing of what holds now."""

    __slots__ = (
        "_from_ns",
        "_until_ns",
        "_weight",
        "cells",
        "cut",
        "cut_requests",
        "era",
        "half_life_ns",
        "lap",
        "number",
        "scalars",
        "scopes",
    )

    def __init__(self, half_life_ns: int) -> None:
        self.half_life_ns = half_life_ns
        self.cells = array("d", bytes(8 * CELLS))
        self.cut = array("d", bytes(8 * CELLS))
        self.scalars = array("d", bytes(8 * SCALARS))
        self.cut_requests = 0.0
        self.scopes: dict[bytes, tuple[float, float]] = {}  # labels of checks, those wrong; decaying
        self.lap = self.era = self.number = 0
        self._from_ns = self._until_ns = 0
        self._weight = 1.0

    def weight(self, now_ns: int) -> float:
        """Of what happens now. In steps of a 256th of a half-life, and never of the past: a clock may go back."""
        if now_ns >= self._until_ns:
            lap, rest = divmod(now_ns, LAP * self.half_life_ns)
            self.shift(max(lap, self.lap))
            step = self.half_life_ns // 256 or 1
            self._until_ns = now_ns - now_ns % step + step
            self._weight = 2.0 ** (rest // step * step / self.half_life_ns)
        return self._weight

    def shift(self, lap: int) -> None:
        """Count from the beginning of this lap on."""
        if lap <= self.lap:
            return
        f = 2.0 ** (-LAP * (lap - self.lap)) if lap - self.lap < 4 else 0.0
        self.cut_requests *= f
        for i in range(CELLS):
            g = f if i < SQUARES else f * f
            self.cells[i] *= g
            self.cut[i] *= g
        for i in range(HITS_N):
            self.scalars[i] *= f if i < PAIRS_WW else f * f
        self.scopes = {scope: (n * f, k * f) for scope, (n, k) in self.scopes.items()}
        self.lap = lap

    def turn(self, era: int) -> None:
        """A new era begins: what is in the sums belongs to those before."""
        self.era = era
        self.cut = array("d", self.cells)
        self.cut_requests = self.scalars[REQUESTS]
        self.scopes.clear()

    def add(self, other: "Sums") -> None:
        """What this worker had seen before it was started again; both are counted from one lap."""
        other.shift(self.lap)
        if other.era != self.era:
            other.turn(self.era)
        self.cells = array("d", map(float.__add__, self.cells, other.cells))
        self.cut = array("d", map(float.__add__, self.cut, other.cut))
        self.scalars = array("d", map(float.__add__, self.scalars, other.scalars))
        self.cut_requests += other.cut_requests
        for name, (n, k) in other.scopes.items():
            self.scope(name, n, k)

    def scope(self, name: bytes, n: float, k: float) -> None:
        """A label of a check in this scope."""
        was = self.scopes.pop(name, (0.0, 0.0))
        if len(self.scopes) >= MOST_SCOPES:
            del self.scopes[next(iter(self.scopes))]
        self.scopes[name] = (was[0] + n, was[1] + k)

    def report(self, name: bytes) -> Report:
        cells, cut = ({i: x for i, x in enumerate(a) if x} for a in (self.cells, self.cut))
        return Report(
            name, self.number, self.lap, self.era, cells, cut, self.cut_requests, list(self.scalars), dict(self.scopes)
        )

    def take(self, report: Report) -> None:
        """Be what the report says, in place of what was here. It is a sane one."""
        self.number, self.lap, self.era = report.number, report.lap, report.era
        for a, said in ((self.cells, report.cells), (self.cut, report.cut)):
            a[:] = array("d", bytes(8 * CELLS))
            for i, x in said.items():
                a[i] = x
        self.scalars[:] = array("d", report.scalars)
        self.cut_requests = report.cut_requests
        self.scopes = dict(report.scopes)
        self._until_ns = 0


def sane(report: Report) -> bool:
    """Whether these may be sums at all: what comes from a disk or from Redis may be anything."""
    parts = (report.cells, report.cut)
    return (
        0 < len(report.name) <= 64
        and 0 <= report.number < 1 << 63
        and 0 <= report.lap < 1 << 40
        and 0 <= report.era < 1 << 40
        and all(0 <= i < CELLS and 0.0 <= x < 1e40 for part in parts for i, x in part.items())
        and all(x <= report.cells.get(i, 0.0) for i, x in report.cut.items())
        and len(report.scalars) == SCALARS
        and all(isfinite(x) and (x >= 0.0 or i in (UP, DOWN)) and abs(x) < 1e40 for i, x in enumerate(report.scalars))
        and 0.0 <= report.cut_requests <= report.scalars[REQUESTS]
        and len(report.scopes) <= MOST_SCOPES
        and all(len(s) <= 64 and 0.0 <= k <= n < 1e40 for s, (n, k) in report.scopes.items())
    )
