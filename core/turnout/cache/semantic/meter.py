"""How often one namespace (tenant and route) serves a wrong answer, and the threshold that holds it to the budget.

What is known comes from labels: a share of the hits is served and asked again off the path (`wants_check`), each counting
with the inverse of the probability that it was chosen; every miss with a candidate near gives one for free; users complain.
The estimate speaks of what was served over the window; tuning.py says from it which threshold to serve from. Pooled:
namespace, then scope (stricter where it is oftener wrong), then item (one bad label, and it is not served again nearby).

Pure: no clock, no randomness. All that stands on a request's way (`request`, `served`, `missed`, `threshold`,
`wants_check`) is O(1); `label` is too, but for one scan of the bins every RETUNE labels and at a wrong one.
`now_ns` is the wall clock in nanoseconds, for the sums go to disk and to other hosts; it may jump.
"""

from collections.abc import Sequence

import msgspec

from . import tuning
from .bars import Bars
from .bounds import NOTHING_KNOWN, Bound, less_noise, rate, share
from .pool import Pool, Ratchet
from .spending import FIRST, Spending
from .tuning import Point
from .window import (
    BINS,
    CHECK_W,
    CHECK_WD,
    CHECK_WDWRONG,
    CHECK_WRONG,
    CHECK_WW,
    CHECK_WWRONG,
    CHECKS,
    CHECKS_N,
    DOWN,
    EDGES,
    HITS,
    HITS_N,
    LABELS_N,
    MISS_WRONG,
    MISS_WW,
    MISS_WWRONG,
    MISSED,
    MISSES,
    PAIRS,
    PAIRS_WRONG,
    PAIRS_WW,
    PAIRS_WWRONG,
    REQUESTS,
    SPENT,
    TOLD,
    UNCLEAR,
    UP,
    bin_of,
    edge_from,
)

DAY_NS = 86_400_000_000_000
HALF_LIFE_NS = 7 * DAY_NS  # of the window: a week, so that weekdays weigh alike
RETUNE = 100  # labels from one step to the next
LOOSEN = 0.01  # of the score, at most, a step
SHARPEN = 0.02  # what an alarm adds to a threshold that was the factory's or stricter

QUIET = 300  # labels after which an alarm is over
SCOPE_PRIOR = 20.0  # hits of its namespace that a scope is believed to be like
PAIRS_WANTED = 50  # of fresh answers to one prompt, until the comparer's own false alarms are known
PAIRS_EVERY = 20  # from then on, of checks


class Estimate(msgspec.Struct, frozen=True):
    """Of the window as it stands: decaying counts, wrong/all with its 95 % interval, and what follows from it."""

    requests: float
    hits: float
    wrong_rate: float
    low: float
    high: float
    labels: float  # hits asked again; how many equal ones they are worth: `worth`
    worth: float
    unclear: float  # labels that the comparer could not give
    noise: float  # share of right answers that it takes for wrong
    threshold: float
    alarm: str  # "", "drift" or "budget"
    checked: int  # hits asked again since the beginning
    spent_nanos: int


class Meter:
    """`budget`: wrong/all to hold, `factory`: the verifier's threshold for it. `name`: this worker's, the same after a
    restart. `floor`: no threshold is looser. `check_share`: of hits asked again in the long run; `most_share`: never more
    than that (and the `first` hits). `most_nanos`: what this worker may spend on it in each `spend_ns`."""

    def __init__(
        self,
        budget: float,
        factory: float,
        name: bytes = b"-",
        *,
        floor: float | None = None,
        half_life_ns: int = HALF_LIFE_NS,
        check_share: float = 0.02,
        first: int = FIRST,
        most_share: float = 0.20,
        most_nanos: int | None = None,
        spend_ns: int = DAY_NS,
    ) -> None:
        self.budget = budget
        self._factory = min(edge_from(factory), BINS)
        self._floor = min(edge_from(max(0.0, factory - 0.2) if floor is None else floor), self._factory)
        self._first = first
        self._bars = Bars()
        self._pool = Pool(name, half_life_ns, Ratchet(0, 0.0, self._factory, self._factory), self._bars, budget)
        self._own = self._pool.own
        self._spending = Spending(check_share, most_share, most_nanos, spend_ns)
        self._scopes: dict[bytes, int] = {}  # those that are stricter, by their level
        self._expected = [-1.0] * BINS
        self._first = first
        self._up = self._down = 0.0  # the two walks
        self._asked = 0  # requests since the last wrong candidate just below the threshold
        self._rise = 0.0  # the walk of how often those come
        self._low = self._at = 0  # where they are counted
        self._often = -1.0  # they did, for each request; negative: not known yet
        self._unwalked = (0.0, 0.0)  # what other workers' labels add to them
        self._noise = NOTHING_KNOWN
        self._rate_of_hits = 0.0  # wrong/hits by the labels of checks, and what the budget allows of it
        self._allowed = 1.0
        self._alarm_until = -1.0  # labels
        self._points: list[Point] = []
        self._levels: tuple[float, ...] = ()
        self._threshold = 2.0
        self._set()

    # ---- what happens; on a request's way

    def request(self, now_ns: int) -> None:
        own = self._own
        own.scalars[REQUESTS] += own.weight(now_ns)
        self._asked += 1

    def served(self, now_ns: int, score: float, scope: bytes, item: int) -> None:
        """A hit; its request is counted by `request`."""
        own = self._own
        own.cells[HITS * BINS + bin_of(score)] += own.weight(now_ns)
        own.scalars[HITS_N] += 1.0
        self._spending.hit()

    def missed(self, now_ns: int, score: float, scope: bytes, item: int) -> None:
        """A miss with a candidate; one without needs no telling."""
        own = self._own
        own.cells[MISSED * BINS + bin_of(score)] += own.weight(now_ns)

    def threshold(self, scope: bytes, item: int, now_ns: int) -> float:
        """The score from which on this candidate is served; above 1 = not at all."""
        found = self._levels[self._scopes[scope]] if scope in self._scopes else self._threshold
        bar = self._bars.of(item)
        return bar if bar > found else found

    def wants_check(self, score: float, scope: bytes, now_ns: int, u: float) -> float:
        """Whether the hit just served is to be asked again: 0, or the probability with which `u` (uniform in 0..1) chose
        it, whose inverse is the weight of its label."""
        first = self._own.scalars[HITS_N] + self._pool.hits <= self._first
        q = self._spending.draw(first, score - self._threshold, now_ns, u)
        if q:
            self._own.scalars[CHECKS_N] += 1.0
        return q

    # ---- what is learned; off the way

    def spent(self, nanos: int) -> None:
        """What a check has cost."""
        self._own.scalars[SPENT] += nanos
        self._spending.spent(nanos)

    def label(
        self,
        now_ns: int,
        score: float,
        scope: bytes,
        item: int,
        right: bool | None,
        weight: float = 1.0,
        kind: str = "check",
    ) -> None:
        """`kind`: "check" (a hit asked again), "miss" (the fresh answer against the candidate's) or "feedback" (a user's
        word on a hit). `right`: None, the comparer could not say. `now_ns`: when the hit or miss was."""
        own = self._own
        d = own.weight(now_ns)
        cells, b = own.cells, bin_of(score)
        if right is None:
            own.scalars[UNCLEAR] += d
            return
        w = weight * d
        if kind == "check":
            cells[CHECKS * BINS + b] += d
            cells[CHECK_W * BINS + b] += w
            cells[CHECK_WW * BINS + b] += w * w
            cells[CHECK_WD * BINS + b] += w * d
            own.scope(scope, d, 0.0 if right else d)
            if not right:
                cells[CHECK_WRONG * BINS + b] += w
                cells[CHECK_WWRONG * BINS + b] += w * w
                cells[CHECK_WDWRONG * BINS + b] += w * d
        elif kind == "miss":
            cells[MISSES * BINS + b] += w
            cells[MISS_WW * BINS + b] += w * w
            if not right:
                cells[MISS_WRONG * BINS + b] += w
                cells[MISS_WWRONG * BINS + b] += w * w
        elif not right:
            cells[TOLD * BINS + b] += d
        if kind != "miss" or score > self._threshold - tuning.GREY:
            self._bars.label(item, now_ns, score, right)
        own.scalars[LABELS_N] += 1.0
        if kind != "feedback":
            self._watch(b, score, right, now_ns)
        bad = not right and kind != "miss"  # one of a miss says nothing of what is served
        if bad or self._pool.scalar(LABELS_N) - self._pool.ratchet.labels >= RETUNE:
            self.tune(now_ns)
        if kind == "check":
            self._rank(scope)

    def wants_pair(self, u: float) -> bool:
        """Whether a check is to ask twice, so that two fresh answers show how often the comparer errs (see `pair`)."""
        scalars = self._own.scalars
        return scalars[PAIRS] ** 2 < PAIRS_WANTED * scalars[PAIRS_WW] or not scalars[PAIRS_WW] or u * PAIRS_EVERY < 1.0

    def pair(self, now_ns: int, same: bool | None) -> None:
        """What the comparer says of two fresh answers to one prompt."""
        own = self._own
        if same is None:
            return
        d = own.weight(now_ns)
        own.scalars[PAIRS] += d
        own.scalars[PAIRS_WW] += d * d
        if not same:
            own.scalars[PAIRS_WRONG] += d
            own.scalars[PAIRS_WWRONG] += d * d

    # ---- what follows from it

    def tune(self, now_ns: int) -> None:
        """Move the threshold: tighter at once, looser by a step for each RETUNE labels. After merges too."""
        if self._unwalked != (0.0, 0.0):
            (up, down), self._unwalked = self._unwalked, (0.0, 0.0)
            self._walk(up, down, now_ns)
        pool, ratchet = self._pool, self._pool.ratchet
        cells, scalars = pool.totals(now_ns, era=True)
        self._noise = _noise(scalars)
        points = self._points = tuning.curve(cells, pool.era_requests(), self._noise)
        labels = scalars[LABELS_N]
        base, at = ratchet.base, ratchet.at
        whole = labels - ratchet.labels >= RETUNE
        if whole and base > self._factory and tuning.shown(points, self.budget) <= base:
            base = max(self._factory, edge_from(EDGES[base] - LOOSEN) if base < BINS else BINS - 1)
        above = tuning.tail(points, max(at, self._floor), pool.era_requests())
        to = tuning.wanted(points, base, self._floor, self.budget, above)
        if to > at:
            at = to
        elif whole:
            at = max(to, edge_from(EDGES[at] - LOOSEN) if at < BINS else BINS - 1)
            if max(self._up, self._down) < tuning.LIMIT / 2:
                self._expected = tuning.expected(cells)
        if to > ratchet.at or whole:
            self._at = max(at, self._floor)
            self._low = tuning.below(self._at, 2)
            self._often = tuning.often(cells, self._at, pool.era_requests())
        if (base, at) != (ratchet.base, ratchet.at) or whole:
            pool.ratchet = Ratchet(ratchet.era, labels if whole else ratchet.labels, base, at)
        hits = sum(cells[HITS * BINS : HITS * BINS + BINS])
        weight = sum(cells[CHECK_W * BINS : CHECK_W * BINS + BINS])
        self._rate_of_hits = sum(cells[CHECK_WRONG * BINS : CHECK_WRONG * BINS + BINS]) / weight if weight else 0.0
        self._allowed = min(1.0, self.budget * pool.era_requests() / hits) if hits else 1.0
        self._spending.tune(hits)
        self._set()

    def _set(self) -> None:
        """Serve as the ratchet says."""
        at = max(self._pool.ratchet.at, self._floor)
        self._levels = tuning.levels(self._points, at)
        self._threshold = self._levels[0]

    def _watch(self, b: int, score: float, right: bool, now_ns: int) -> None:
        """The CUSUMs on labels near the threshold."""
        if not right and self._often > 0.0 and self._low <= b < self._at:
            self._rise = tuning.rise(self._rise, self._often, self._asked)
            self._asked = 0
            if self._rise > tuning.RISE:
                self._drift(True, now_ns)
                return
        p = self._expected[b]
        if p < 0.0 or abs(score - self._threshold) > tuning.GREY:
            return
        up, down = tuning.evidence(p, right)
        self._own.scalars[UP] += up
        self._own.scalars[DOWN] += down
        self._walk(up, down, now_ns)

    def _walk(self, up: float, down: float, now_ns: int) -> None:
        self._up = max(0.0, self._up + up)
        self._down = max(0.0, self._down + down)
        if self._up > tuning.LIMIT or self._down > tuning.LIMIT:
            self._drift(self._up > tuning.LIMIT, now_ns)

    def _drift(self, worse: bool, now_ns: int) -> None:
        """What was learned holds no more: the factory's threshold again; a stricter one where that was served already."""
        ratchet = self._pool.ratchet
        at = max(ratchet.at, self._factory)
        if worse and ratchet.at >= self._factory:
            at = min(edge_from(EDGES[at] + SHARPEN) if at < BINS else BINS, BINS)
        labels = self._pool.scalar(LABELS_N)
        self._pool.ratchet = Ratchet(ratchet.era + 1, labels, at, at)
        self._own.turn(ratchet.era + 1)
        self._scopes.clear()
        self._expected = [-1.0] * BINS
        self._up = self._down = self._rise = 0.0
        self._often = -1.0
        self._alarm_until = labels + QUIET
        self.tune(now_ns)

    def _rank(self, scope: bytes) -> None:
        """How much stricter than its namespace this scope is, by its own labels and what the namespace leads to expect."""
        n, k = self._pool.scope(scope)
        found = (k + SCOPE_PRIOR * self._rate_of_hits) / (n + SCOPE_PRIOR)
        f = min(self._noise.value, 0.9)
        times = max(0.0, (found - f) / (1.0 - f)) / self._allowed
        level = sum(times > limit for limit in tuning.LEVELS[:-1])
        if level:
            self._scopes[scope] = level
        else:
            self._scopes.pop(scope, None)

    # ---- what is told

    def estimate(self, now_ns: int) -> Estimate:
        """About 1 ms: for whoever reads metrics, not for requests."""
        cells, scalars = self._pool.totals(now_ns, era=False)
        hits, checks, w, wrong, ww, wwrong, wd, wdwrong, told = (
            sum(cells[field * BINS : field * BINS + BINS])
            for field in (HITS, CHECKS, CHECK_W, CHECK_WRONG, CHECK_WW, CHECK_WWRONG, CHECK_WD, CHECK_WDWRONG, TOLD)
        )
        n = scalars[REQUESTS]
        noise = _noise(scalars)
        found = Bound(0.0, 0.0, hits / n if n else 0.0)
        if w and n:
            f = hits / w  # hits a unit of weight stands for: over 1 while labels are awaited, or could not be given
            # What was asked again is known and not estimated: only the rest of the hits varies, and the comparer.
            flagged = noise.value * hits
            known = 1.0 - min(1.0, flagged / (f * wrong)) if wrong else 1.0
            v = f * f * wwrong - known * f * wdwrong
            more = f * ww / w - (0.0 if flagged else wd / w)
            found = less_noise(rate(f * wrong / n, max(0.0, v) / (n * n), max(0.0, more) / n), hits / n, noise)
        least = min(told / n, hits / n) if n else 0.0  # users have told of so many
        alarm = "budget" if found.low > self.budget else "drift" if scalars[LABELS_N] < self._alarm_until else ""
        return Estimate(
            n,
            hits,
            max(found.value, least),
            found.low,
            max(found.high, least),
            checks,
            w * w / ww if ww else 0.0,
            scalars[UNCLEAR],
            noise.value,
            self._threshold,
            alarm,
            int(scalars[CHECKS_N]),
            int(scalars[SPENT]),
        )

    def calibration(self, now_ns: int | None = None) -> list[dict[str, float]]:
        """By the score: what was asked there, how many labels there are, and which share of the answers was right, with
        its 95 % interval. `now_ns`: None, as of the last event. Scores nobody asked at are left out."""
        cells, _ = self._pool.totals(now_ns or 0, era=False)
        found = []
        for b in range(BINS):
            hits, missed, checks, w, wrong, misses, mwrong, ww, mww = (cells[field * BINS + b] for field in _SHOWN)
            if hits + missed + checks + misses < 0.01:
                continue
            labels = checks + misses
            bad = (wrong / w * checks if w else 0.0) + mwrong
            worth = (w * w / ww if ww else 0.0) + (misses * misses / mww if mww else 0.0)
            bound = rate(bad / labels, bad / labels / worth, 1.0 / worth) if labels else NOTHING_KNOWN
            row = {"from": EDGES[b], "to": EDGES[b + 1], "hits": hits, "misses": missed, "labels": labels}
            right = {"right": 1.0 - bound.value, "low": max(0.0, 1.0 - bound.high), "high": 1.0 - bound.low}
            found.append({**row, **right} if labels else {**row, "right": 0.0, "low": 0.0, "high": 1.0})
        return found

    def advice(self, now_ns: int) -> str:
        """What the operator may change; empty where all is well or too little is known."""
        return ""

    # ---- what travels

    def dump(self, now_ns: int, everyone: bool = True) -> bytes:
        """For Redis or the disk. `everyone`: all workers' sums, not this one's alone."""
        return self._pool.dump(now_ns, everyone)

    def merge(self, data: bytes, now_ns: int) -> bool:
        """What another worker said, or this one before it was started again; in any order, again and again. False: it is
        none. The threshold that is agreed on holds at once; `tune` when all is merged moves it by what is now known."""
        era = self._own.era
        walked = self._pool.merge(data, now_ns)
        if walked is None:
            return False
        if self._own.era != era:
            self._scopes.clear()
            self._expected = [-1.0] * BINS
            self._up = self._down = self._rise = 0.0
            self._often = -1.0
            self._alarm_until = self._pool.ratchet.labels + QUIET
            self._unwalked = (0.0, 0.0)
        self._unwalked = (self._unwalked[0] + walked[0], self._unwalked[1] + walked[1])
        self._set()
        return True


_SHOWN = (HITS, MISSED, CHECKS, CHECK_W, CHECK_WRONG, MISSES, MISS_WRONG, CHECK_WW, MISS_WW)


def _noise(scalars: Sequence[float]) -> Bound:
    return share(scalars[PAIRS_WRONG], scalars[PAIRS_WWRONG], scalars[PAIRS], scalars[PAIRS_WW])
