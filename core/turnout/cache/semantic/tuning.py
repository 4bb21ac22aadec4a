"""Which threshold holds the budget, by what was labelled. Pure; off every request's way, about 0.3 ms a scan.

For each threshold t the curve says what wrong/all would have been, had it stood at t over the window: hits at or above t
with the share wrong among those re-asked (each counting with the inverse of the probability that it was chosen), and misses
at or above t with the share wrong among their labels, which are free. So it reaches below the threshold of now.

Three rules, in this order:
1. Shown: from the strictest threshold down, in a fixed sequence that ends at the first that fails, so that no correction
   for many looks is due: the loosest whose 95 % upper bound keeps the budget. It may be looser than the factory's.
2. Not shown: the factory's threshold, whose own bound was chosen offline, as long as what was seen does not speak against
   it: the mean of a Gamma posterior whose prior is the factory's promise, worth PRIOR wrong answers.
3. Spoken against: the loosest threshold above it for which the same mean keeps the budget; none may, then nothing is served.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

from .bounds import Bound, less_noise, upper
from .window import (
    BINS,
    CHECK_W,
    CHECK_WRONG,
    CHECK_WW,
    CHECK_WWRONG,
    CHECKS,
    EDGES,
    HITS,
    MISS_WRONG,
    MISS_WW,
    MISS_WWRONG,
    MISSED,
    MISSES,
    TOLD,
)

PRIOR = 2.0  # wrong answers that the factory's promise is worth
PROMISE = 0.5  # of the budget: what a factory threshold gives on data of its own kind (0.62 of it, measured on held-out pairs)
AIM = 0.9
NOTHING = BINS  # the threshold at which nothing is served
LEVELS = (1.0, 2.0, 4.0, 8.0)  # how many times as often a scope may be wrong as the budget allows
LEVEL_STEP = 0.02  # of the score; what each level is stricter at least

STRIDE, STEEPEST, TRUST = 0.8, 0.8, 10.0
LOGITS = tuple(log(max(x, 1e-3) / (1.0 - min(x, 0.999))) for x in EDGES[:BINS])


class Point(NamedTuple):
    """At one threshold; all as shares of all requests."""

    asked: float  # hits and misses at or above it
    rate: float  # of them wrong
    high: float  # one-sided 95 % bound of that
    weight: float  # of one label
    full: bool  # labels reach down to here


def curve(cells: Sequence[float], requests: float, noise: Bound) -> list[Point]:
    """One point per bin: the threshold being its lower edge."""
    points = [Point(0.0, 0.0, 0.0, 0.0, False)] * BINS
    if requests <= 0.0:
        return points
    hits = missed = checks = wrong = ww = wwrong = misses = mwrong = mww = mwwrong = told = 0.0
    open_hits = open_misses = 0.0  # since the last label: nothing is known of them
    n = requests
    for b in range(BINS - 1, -1, -1):
        open_hits += cells[HITS * BINS + b]
        open_misses += cells[MISSED * BINS + b]
        if cells[CHECKS * BINS + b]:
            checks += cells[CHECK_W * BINS + b]
            wrong += cells[CHECK_WRONG * BINS + b]
            ww += cells[CHECK_WW * BINS + b]
            wwrong += cells[CHECK_WWRONG * BINS + b]
            hits += open_hits
            open_hits = 0.0
        if cells[MISSES * BINS + b]:
            misses += cells[MISSES * BINS + b]
            mwrong += cells[MISS_WRONG * BINS + b]
            mww += cells[MISS_WW * BINS + b]
            mwwrong += cells[MISS_WWRONG * BINS + b]
            missed += open_misses
            open_misses = 0.0
        told += cells[TOLD * BINS + b]
        f = hits / checks if checks else 0.0
        g = missed / misses if misses else 0.0
        labelled = f * checks + g * misses
        y = (f * wrong + g * mwrong) / n
        v = (f * f * wwrong + g * g * mwwrong) / (n * n)
        w = (f * f * ww + g * g * mww) / (labelled * n) if labelled else 0.0
        asked = (hits + missed) / n
        seen = Bound(y, y, upper(y, v, w))
        net = less_noise(seen, asked, noise)
        unknown = (open_hits + open_misses) / n
        known = told / n
        points[b] = Point(asked + unknown, max(net.value, known), max(net.high, known) + unknown, w, unknown == 0.0)
    return points


def shown(points: Sequence[Point], budget: float) -> int:
    """The loosest bin whose upper bound, and those of all above it that have labels, keep the budget."""
    found = NOTHING
    for b in range(BINS - 1, -1, -1):
        if points[b].high <= budget:
            found = b
        elif points[b].full:
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
    mean = (promise * PRIOR + said * trust) / (PRIOR + trust)
    mean = max(mean, 1e-9)
    if not p.weight:
        return min(mean, p.asked or 1.0)
    prior = PRIOR * mean / (PROMISE * budget)
    return (p.rate / p.weight + prior) / (1.0 / p.weight + prior / mean)


def wanted(points: Sequence[Point], base: int, floor: int, budget: float, above: Tail) -> int:
    """The bin to serve from, by the three rules."""
    sure = max(shown(points, budget), floor)
    if sure <= base:
        return sure
    b = base
    while b < sure and likely(points, b, base, budget, above) > AIM * budget:
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
