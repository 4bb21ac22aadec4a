"""Whether what was learned still holds: three CUSUMs on the labels near the threshold. Pure.

Two weigh each label against what its score has led to expect so far (Steiner, Cook, Farewell and Treasure 2000): for odds of
being wrong that have tripled, and for a third of them. The third watches how often wrong candidates come just below the
threshold, for each request: every miss is labelled, so it sees a verifier that goes bad some ten times as fast as the few
checked hits do (a Poisson CUSUM, Lucas 1985).
"""

from collections.abc import Sequence
from math import inf, log, sqrt

import msgspec

from .tuning import below
from .window import BINS, CHECK_W, CHECK_WRONG, CHECKS, EDGES, MISS_WRONG, MISSES

ODDS = 3.0
LIMIT = 5.0  # a false alarm in several thousand labels (bench/semantic/estimator.py)
TIMES, RISE = 2.0, 6.0  # the same for the third: the rate has doubled
GREY = 0.05  # of the score, on both sides of the threshold: the labels that are watched
NEAR_BINS = 3  # on both sides: what a bin's expectation is averaged over
FEWEST = 20.0  # labels that make an expectation, wrong ones that make a rate


class Walks(msgspec.Struct, array_like=True, frozen=True):
    """As far as they have come, for when this worker is started again. Of an era."""

    era: int
    up: float
    down: float
    rise: float
    asked: int
    often: float
    low: int
    at: int
    expected: list[float]  # none: nothing is

    @property
    def sane(self) -> bool:
        return (
            all(0.0 <= walk < 1e6 for walk in (self.up, self.down, self.rise))
            and 0 <= self.asked < 1 << 53
            and -1.0 <= self.often < inf
            and 0 <= self.low <= BINS
            and 0 <= self.at <= BINS
            and len(self.expected) in (0, BINS)
            and all(p == -1.0 or 0.0 < p < 1.0 for p in self.expected)
        )


class Drift:
    """`walked` goes to other workers, whose labels `walk` in turn takes in."""

    __slots__ = ("_at", "_expected", "_low", "_often", "_rise", "asked", "down", "up")

    def __init__(self) -> None:
        self.asked = 0  # requests since the last wrong candidate below the threshold; counted by the meter
        self.forget()

    def forget(self) -> None:
        """A new era begins: nothing is expected yet."""
        self.up = self.down = self._rise = 0.0
        self._often = -1.0
        self._low = self._at = 0
        self._expected = [-1.0] * BINS

    def walks(self, era: int) -> Walks:
        known = self._expected if max(self._expected) >= 0.0 else []
        return Walks(era, self.up, self.down, self._rise, self.asked, self._often, self._low, self._at, list(known))

    def resume(self, walks: Walks) -> None:
        """Go on from there, with what has been walked since."""
        self.walk(walks.up, walks.down)
        self._rise += walks.rise
        self.asked += walks.asked
        self._often, self._low, self._at = walks.often, walks.low, walks.at
        if walks.expected:
            self._expected = list(walks.expected)

    def learn(self, cells: Sequence[float], requests: float, at: int, step: bool) -> None:
        """Of the era. `at`: the bin served from, which has moved; `step`: as many labels have come as make a new look worth
        while, and no walk is on its way up."""
        if step and max(self.up, self.down) < LIMIT / 2:
            self._expected = expected(cells)
        self._at, self._low = at, below(at, 2)
        n = sum(cells[MISS_WRONG * BINS + self._low : MISS_WRONG * BINS + min(at, BINS)])
        # One standard deviation more: a rate from few events errs.
        self._often = (n + sqrt(n)) / requests if n >= FEWEST and requests else -1.0

    def label(self, b: int, right: bool, miss: bool) -> tuple[float, float] | None:
        """What a label at bin `b` adds to the walks up and down; None if it is not near the threshold."""
        if miss and not right and self._often > 0.0 and self._low <= b < self._at:
            self._rise = max(0.0, self._rise - (TIMES - 1.0) * self._often * self.asked) + log(TIMES)
            self.asked = 0
        p = self._expected[b]
        if p < 0.0 or abs(EDGES[b] - EDGES[min(self._at, BINS)]) > GREY:
            return None
        up, down = ((0.0 if right else log(odds)) - log(1.0 - p + odds * p) for odds in (ODDS, 1.0 / ODDS))
        self.walk(up, down)
        return up, down

    def walk(self, up: float, down: float) -> None:
        self.up = max(0.0, self.up + up)
        self.down = max(0.0, self.down + down)

    def alarm(self) -> str:
        """ "worse", "better" or ""."""
        if self._rise > RISE or self.up > LIMIT:
            return "worse"
        return "better" if self.down > LIMIT else ""


def expected(cells: Sequence[float]) -> list[float]:
    """Per bin the share of labels that are wrong, from the labels around it; -1 where there are too few."""
    labels, wrong = [0.0] * BINS, [0.0] * BINS
    for b in range(BINS):
        weight, n = cells[CHECK_W * BINS + b], cells[CHECKS * BINS + b]
        labels[b] = n + cells[MISSES * BINS + b]
        wrong[b] = (cells[CHECK_WRONG * BINS + b] / weight * n if weight else 0.0) + cells[MISS_WRONG * BINS + b]
    found = []
    for b in range(BINS):
        near = slice(max(0, b - NEAR_BINS), b + NEAR_BINS + 1)
        n = sum(labels[near])
        found.append((sum(wrong[near]) + 0.5) / (n + 1.0) if n >= FEWEST else -1.0)
    return found
