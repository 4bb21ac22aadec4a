"""Which threshold holds the budget, by what was labelled. Pure; off every request's way, about 1 ms a scan.

For each threshold t the curve says what wrong/all would have been, had it stood at t over the window: hits at or above t
with the share wrong among those re-asked (each counting with the inverse of the probability that it was chosen), and misses
at or above t with the share wrong among their labels, which are free. So it reaches below the threshold of now.

Three rules, in this order:
1. Shown: from the factory's threshold down, in a fixed sequence that ends at the first that fails, so that no correction
   for many looks is due: the loosest whose 95 % upper bound keeps the budget.
2. Not shown: the factory's threshold, whose own bound was chosen offline, as long as what was seen does not speak against
   it: the mean of a Gamma posterior whose prior is the factory's promise, worth PRIOR wrong answers.
   The prior is sharpened by what the misses just below the threshold foretell of what lies above it (`tail`).
3. Spoken against: the loosest threshold above it whose bound, or else the same mean, keeps the budget; where none does,
   nothing is served.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, log, sqrt
from typing import NamedTuple

from .bounds import Bound, less_noise, upper
from .window import BINS, CHECK_W, CHECK_WW, CHECKS, EDGES, HITS, MISS_WW, MISSED, MISSES, TOLD

PRIOR = 2.0  # wrong answers that the factory's promise is worth
PROMISE = 0.5  # of the budget: a factory threshold gives about so much on data of its own kind (0.62 on held-out pairs)
NOTHING = BINS  # the threshold at which nothing is served
LEVELS = (1.0, 2.0, 4.0, 8.0)  # how many times as often a scope may be wrong as the budget allows
LEVEL_STEP = 0.02  # of the score; what each level is stricter at least
# The tail (see there): its steps in logits; the most it is believed to keep from one to the next; wrong candidates from
# which on it is believed for all. Tried from 0.5 to 1.1, 0.65 to 0.8, 5 to 20 in bench/semantic/estimator.py.
STRIDE, STEEPEST, TRUST = 1.0, 0.65, 10.0
LOGITS = tuple(log(max(x, 1e-3) / (1.0 - min(x, 0.9999))) for x in EDGES[:BINS])


class Point(NamedTuple):
    """At one threshold; all as shares of all requests."""

    asked: float  # hits and misses at or above it
    rate: float  # of them wrong
    high: float  # one-sided 95 % bound of that
    weight: float  # of one label
    full: bool  # labels reach down to here


class Noise(NamedTuple):
    """The share of right answers that are found wrong, among checks and among misses. `told`: enough pairs of fresh answers
    have shown it, and it is little enough for misses to say something."""

    checks: Bound
    misses: Bound
    told: bool


def curve(cells: Sequence[float], requests: float, noise: Noise) -> list[Point]:
    """One point per bin: the threshold being its lower edge."""
    points = [Point(0.0, 0.0, 0.0, 0.0, False)] * BINS
    if requests <= 0.0:
        return points
    checks, misses = _Side(HITS, CHECKS, CHECK_W, CHECK_WW), _Side(MISSED, MISSES, MISSES, MISS_WW)
    told = 0.0
    for b in range(BINS - 1, -1, -1):
        checks.down(cells, b)
        misses.down(cells, b)
        told += cells[TOLD * BINS + b] / requests
        a, c = checks.rate(requests, noise.checks), misses.rate(requests, noise.misses)
        mass = checks.mass + misses.mass
        weight = (checks.heavy() * checks.mass + misses.heavy() * misses.mass) / (mass * requests) if mass else 0.0
        unknown = (checks.waiting + misses.waiting) / requests
        rate = a.value + c.value
        high = rate + sqrt((a.high - a.value) ** 2 + (c.high - c.value) ** 2)
        points[b] = Point(mass / requests + unknown, max(rate, told), max(high, told) + unknown, weight, unknown == 0.0)
    return points


class _Side:
    """Hits and their checks, or misses and their labels, from the highest score down. The fields that follow WRONG of the
    weight and of its square are those of the wrong ones."""

    __slots__ = ("asked", "labels", "mass", "square", "w", "waiting", "weight", "wrong", "ww", "wwrong")

    def __init__(self, asked: int, labels: int, weight: int, square: int) -> None:
        self.asked, self.labels, self.weight, self.square = (field * BINS for field in (asked, labels, weight, square))
        self.mass = 0.0  # what labels reach down to
        self.waiting = 0.0  # what has come since the last one: nothing is known of it
        self.w = self.wrong = self.ww = self.wwrong = 0.0

    def down(self, cells: Sequence[float], b: int) -> None:
        self.waiting += cells[self.asked + b]
        if cells[self.labels + b]:
            self.w += cells[self.weight + b]
            self.wrong += cells[self.weight + BINS + b]
            self.ww += cells[self.square + b]
            self.wwrong += cells[self.square + BINS + b]
            self.mass += self.waiting
            self.waiting = 0.0

    def heavy(self) -> float:
        """What one label stands for, on average over what they stand for."""
        return self.mass / self.w * self.ww / self.w if self.w else 0.0

    def rate(self, requests: float, noise: Bound) -> Bound:
        if not self.w:
            return Bound(0.0, 0.0, 0.0)
        f = self.mass / self.w / requests
        y = f * self.wrong
        high = upper(y, f * f * self.wwrong, self.heavy() / requests)
        return less_noise(Bound(y, y, high), self.mass / requests, noise)


def shown(points: Sequence[Point], budget: float, base: int) -> int:
    """The loosest bin whose upper bound, and those of all with labels from `base` down to it, keep the budget. NOTHING: not
    even the one of `base` does."""
    found = NOTHING
    for b in range(min(base, BINS - 1), -1, -1):
        if points[b].high <= budget:
            found = b
        elif points[b].full or found == NOTHING:
            break
    return found


def below(at: int, strides: float) -> int:
    """The bin so many strides of the logit below bin `at`."""
    return bisect_left(LOGITS, LOGITS[min(at, BINS - 1)] - strides * STRIDE)


class Tail(NamedTuple):
    """What the misses just below bin `at` lead to expect above it, as shares of all requests."""

    at: int
    rate: float  # wrong above it
    fall: float  # by which it falls for each unit of the logit of the score
    events: float  # wrong ones it was found from


def tail(points: Sequence[Point], at: int, requests: float) -> Tail:
    """Misses are all labelled, hits hardly: so the wrong ones in two steps below the threshold say how many there are above.
    Where the density of their logits is log-concave, as of anything with one hump and no heavy tail, going on
    geometrically bounds what is above from above."""
    near, far = below(at, 1), below(at, 2)
    if far <= 0 or at >= BINS or not requests:
        return Tail(at, 0.0, 0.0, 0.0)
    b = max(0.0, points[near].rate - points[at].rate)
    a = max(0.0, points[far].rate - points[near].rate)
    ratio = (b * requests + 1.5) / (a * requests + 3.0)
    ratio = min(ratio, STEEPEST)
    return Tail(at, b * ratio / (1.0 - ratio), log(ratio) / STRIDE, b * requests)


def likely(points: Sequence[Point], b: int, base: int, budget: float, above: Tail) -> float:
    """Wrong/all at bin `b`, by what was seen, the promise of the factory's threshold `base` and what the tail says."""
    if b >= BINS:
        return 0.0
    p = points[b]
    whole = points[min(base, BINS - 1)].asked
    promise = PROMISE * budget * (min(1.0, p.asked / whole) if whole else 1.0)
    if b >= above.at:
        said = above.rate * exp(above.fall * (LOGITS[b] - LOGITS[min(above.at, BINS - 1)]))
    else:
        said = above.rate + max(0.0, p.rate - points[min(above.at, BINS - 1)].rate)
    trust = min(above.events, TRUST)
    mean = max((promise * PRIOR + said * trust) / (PRIOR + trust), 1e-9)
    if not p.weight:
        return min(mean, p.asked or 1.0)
    prior = PRIOR * mean / (PROMISE * budget)
    return (p.rate / p.weight + prior) / (1.0 / p.weight + prior / mean)


def wanted(points: Sequence[Point], base: int, floor: int, budget: float, above: Tail) -> int:
    """The bin to serve from, by the three rules."""
    if (sure := shown(points, budget, base)) != NOTHING:
        return max(min(sure, base), floor)
    b = base
    while b < BINS and points[b].high > budget and likely(points, b, base, budget, above) > budget:
        b += 1
    return b


def levels(points: Sequence[Point], at: int) -> tuple[float, ...]:
    """The thresholds of scopes that are so many times (LEVELS) as often wrong, where all others are served from bin `at`."""
    rate = points[at].rate if points and at < BINS else 0.0
    found = []
    for i, times in enumerate(LEVELS):
        b = at
        while points and b < BINS and i and points[b].rate > rate / times:
            b += 1
        score = EDGES[at] + i * LEVEL_STEP
        found.append(max(EDGES[b], score) if b < BINS and score <= 1.0 else 2.0)
    return tuple(found)
