"""How often one namespace (tenant and route) serves a wrong answer, and the threshold that holds it to the budget.

What is known comes from labels: a share of the hits is served and asked again off the path (`wants_check`), each counting
with the inverse of the probability that it was chosen; every miss with a candidate near gives one for free; users complain.
The estimate speaks of what was served over the window (telling.py); tuning.py says from all labels which threshold to serve
from. Pooled: namespace, then scope (stricter where it is oftener wrong), then item (one bad label, and it is not served
again nearby, bars.py).

Pure: no clock, no randomness. All that stands on a request's way (`request`, `served`, `missed`, `threshold`,
`wants_check`) is O(1); `label` is too, but for one scan of the bins every RETUNE labels and at a wrong hit.
`now_ns` is the wall clock in nanoseconds, for the sums go to disk and to other hosts; it may jump.
"""

from . import tuning
from .bars import Bars
from .bounds import NOTHING_KNOWN
from .drift import GREY, Drift
from .pool import Pool, Ratchet
from .spending import FIRST, Spending, Window
from .telling import USELESS, Estimate, advice, calibration, estimate, noise_of
from .tuning import Noise, Point
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
    column,
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
PAIRS_EVERY = 10  # from then on, of checks


class Meter:
    """`budget`: wrong/all to hold, `factory`: the verifier's threshold for it. `name`: this worker's, the same after a
    restart. `floor`: no threshold is looser. `check_share`: of hits asked again in the long run; `most_share`: never more
    than that (and the `first` hits). `most_nanos`: what may be spent on it in each `spend_ns`, by this worker or by all who
    count in `shared`. `confirmed`: a
    check's label is "wrong" only where a second fresh answer agreed with the first against the kept one (else None); if it
    is not, `pair` has to tell how often two fresh answers differ."""

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
        confirmed: bool = True,
        shared: Window | None = None,
    ) -> None:
        self.budget = budget
        self._factory = bin_of(factory) if factory <= 1.0 else BINS
        self._exact = factory  # where in that bin it lies
        self._floor = min(edge_from(max(0.0, factory - 0.2) if floor is None else floor), self._factory)
        self._first = first
        self._confirmed = confirmed
        self._bars = Bars()
        ratchet = Ratchet(0, 0.0, self._factory, self._factory)
        self._pool = Pool(name, half_life_ns, ratchet, self._bars, (budget, factory))
        self._own = self._pool.own
        self._spending = Spending(check_share, most_share, most_nanos, spend_ns, shared)
        self._drift = Drift()
        self._scopes: dict[bytes, int] = {}  # those that are stricter, by their level
        self._unwalked = (0.0, 0.0)  # what other workers' labels add to the walks
        self._resumed = False  # the walks of before the restart
        self._noise = Noise(NOTHING_KNOWN, NOTHING_KNOWN, False)
        self._rate_of_hits = 0.0  # wrong/hits by the labels of checks, and what the budget allows of it
        self._allowed = 1.0
        self._alarm_until = -1.0  # labels
        self._points: list[Point] = []
        self._levels: tuple[float, ...] = ()
        self._threshold = 2.0
        self.requests = 0.0  # that what follows from labels is known from, as of the last look at them
        self._set()

    # ---- what happens; on a request's way

    def request(self, now_ns: int) -> None:
        own = self._own
        d = own.weight(now_ns)  # first: it may scale what it is added to
        own.scalars[REQUESTS] += d
        self._drift.asked += 1

    def served(self, now_ns: int, score: float, scope: bytes, item: int) -> None:
        """A hit; its request is counted by `request`."""
        own = self._own
        d = own.weight(now_ns)
        own.cells[HITS * BINS + bin_of(score)] += d
        own.scalars[HITS_N] += 1.0
        self._spending.hit()

    def missed(self, now_ns: int, score: float, scope: bytes, item: int) -> None:
        """A miss with a candidate; one without needs no telling."""
        own = self._own
        d = own.weight(now_ns)
        own.cells[MISSED * BINS + bin_of(score)] += d

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
        word on a hit). `right`: None, the comparer could not say. `weight`: the inverse of the probability that it was
        asked for. `now_ns`: when the hit or miss was, or now."""
        own = self._own
        d = own.weight(now_ns)
        if right is None:
            if kind == "check":
                own.scalars[UNCLEAR] += d
            return
        b = bin_of(score)
        self._count(b, right, weight * d, d, kind)
        miss = kind == "miss"
        trusted = self._noise.told if miss else kind == "feedback" or self._noise.checks.value <= USELESS
        if trusted and (not miss or score > self._threshold - GREY):
            self._bars.label(item, now_ns, score, right)
        own.scalars[LABELS_N] += 1.0
        if trusted and kind != "feedback" and (walked := self._drift.label(b, right, miss)):
            own.scalars[UP] += walked[0]
            own.scalars[DOWN] += walked[1]
        bad = not right and not miss  # one of a miss says nothing of what is served
        if bad or self._drift.alarm() or self._pool.scalar(LABELS_N) - self._pool.ratchet.labels >= RETUNE:
            self.tune(now_ns)
        if kind == "check":
            own.scope(scope, d, 0.0 if right else d)
            self._rank(scope)

    def _count(self, b: int, right: bool, w: float, d: float, kind: str) -> None:
        cells = self._own.cells
        if kind == "check":
            cells[CHECKS * BINS + b] += d
            cells[CHECK_W * BINS + b] += w
            cells[CHECK_WW * BINS + b] += w * w
            cells[CHECK_WD * BINS + b] += w * d
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

    def wants_pair(self, u: float) -> bool:
        """Whether a check is to ask twice, so that two fresh answers show how often the comparer errs (see `pair`)."""
        n, nn = self._own.scalars[PAIRS], self._own.scalars[PAIRS_WW]
        return n * n <= PAIRS_WANTED * nn or u * PAIRS_EVERY < 1.0

    def pair(self, now_ns: int, same: bool | None) -> None:
        """What the comparer says of two fresh answers to one prompt."""
        scalars = self._own.scalars
        if same is None:
            return
        d = self._own.weight(now_ns)
        scalars[PAIRS] += d
        scalars[PAIRS_WW] += d * d
        if not same:
            scalars[PAIRS_WRONG] += d
            scalars[PAIRS_WWRONG] += d * d

    # ---- what follows from it

    def tune(self, now_ns: int) -> None:
        """Move the threshold: tighter at once, looser by a step for each RETUNE labels. After merges too. About 1 ms."""
        (up, down), self._unwalked = self._unwalked, (0.0, 0.0)
        self._drift.walk(up, down)
        if alarm := self._drift.alarm():
            self._turn(alarm == "worse")
        pool, ratchet = self._pool, self._pool.ratchet
        cells, scalars = pool.totals(now_ns, era=True)
        self.requests = requests = pool.era_requests()
        self._noise = noise = noise_of(cells, scalars, self._confirmed)
        points = self._points = tuning.curve(cells, requests, noise)
        labels = scalars[LABELS_N]
        step = labels - ratchet.labels >= RETUNE
        base, at = ratchet.base, ratchet.at
        if step and base > self._factory and tuning.shown(points, self.budget, base) <= base:
            base = max(self._factory, _looser(base))
        above = tuning.tail(points, max(at, self._floor), requests if noise.told else 0.0)
        if noise.checks.value > USELESS:
            at = to = base  # the labels say nothing
        else:
            to = tuning.wanted(points, base, self._floor, self.budget, above)
        if to > at:
            at = to
        elif step:
            at = max(to, _looser(at))
        if step or (base, at) != (ratchet.base, ratchet.at):
            pool.ratchet = Ratchet(ratchet.era, labels if step else ratchet.labels, base, at)
            self._drift.learn(cells, requests, max(at, self._floor), step)
        hits, weight = sum(column(cells, HITS)), sum(column(cells, CHECK_W))
        self._rate_of_hits = sum(column(cells, CHECK_WRONG)) / weight if weight else 0.0
        self._allowed = min(1.0, self.budget * requests / hits) if hits else 1.0
        self._spending.tune(hits)
        self._set()

    def _set(self) -> None:
        """Serve as the ratchet says."""
        at = max(self._pool.ratchet.at, self._floor)
        self._levels = tuning.levels(self._points, at)
        self._threshold = self._exact if at == self._factory else self._levels[0]

    def _turn(self, worse: bool) -> None:
        """What was learned holds no more: the factory's threshold again; a stricter one where that was served already."""
        ratchet = self._pool.ratchet
        at = max(ratchet.at, self._factory)
        if worse and ratchet.at >= self._factory:
            at = min(edge_from(EDGES[at] + SHARPEN), BINS) if at < BINS else BINS
        labels = self._pool.scalar(LABELS_N)
        self._pool.ratchet = Ratchet(ratchet.era + 1, labels, at if worse else self._factory, at)
        self._own.turn(ratchet.era + 1)
        self._forget(labels)

    def _forget(self, labels: float) -> None:
        self._scopes.clear()
        self._drift.forget()
        self._unwalked = (0.0, 0.0)
        self._alarm_until = labels + QUIET

    def _rank(self, scope: bytes) -> None:
        """How much stricter than its namespace this scope is, by its own labels and what the namespace leads to expect."""
        n, k = self._pool.scope(scope)
        found = (k + SCOPE_PRIOR * self._rate_of_hits) / (n + SCOPE_PRIOR)
        f = min(self._noise.checks.value, 0.9)
        times = max(0.0, found - f) / max(self._rate_of_hits - f, self._allowed * (1.0 - f))
        level = sum(times > limit for limit in tuning.LEVELS[:-1])
        if level and f <= USELESS:
            self._scopes[scope] = level
        else:
            self._scopes.pop(scope, None)

    # ---- what is told

    def estimate(self, now_ns: int) -> Estimate:
        """About 1 ms: for whoever reads metrics, not for requests."""
        cells, scalars = self._pool.totals(now_ns, era=False)
        noise = noise_of(cells, scalars, self._confirmed)
        alarm = scalars[LABELS_N] < self._alarm_until
        return estimate(cells, scalars, noise, self._threshold, alarm, self.budget)

    def advice(self, now_ns: int) -> str:
        """What the operator may change; empty where all is well or too little is known."""
        return advice(self.estimate(now_ns), self._pool.totals(now_ns, era=False)[0], self._points, self.budget)

    def calibration(self, now_ns: int = 0) -> list[dict[str, float]]:
        """Which share was right, by the score; see telling.py. `now_ns`: 0, as of the last event."""
        return calibration(self._pool.totals(now_ns, era=False)[0])

    # ---- what travels

    def dump(self, now_ns: int, everyone: bool = True) -> bytes:
        """For Redis or the disk. `everyone`: all workers' sums, not this one's alone. Nothing new: the same bytes."""
        return self._pool.dump(now_ns, everyone, self._drift.walks(self._own.era))

    def merge(self, data: bytes, now_ns: int) -> bool:
        """What another worker said, or this one before it was started again; in any order, again and again. False: it is
        none. The threshold that is agreed on holds at once; `tune` when all is merged moves it by what is now known."""
        era = self._own.era
        walked = self._pool.merge(data, now_ns)
        if walked is None:
            return False
        if self._own.era != era:
            self._forget(self._pool.ratchet.labels)
        self._unwalked = (self._unwalked[0] + walked[0], self._unwalked[1] + walked[1])
        if (walks := self._pool.walks) is not None:
            self._pool.walks = None
            if walks.era == self._own.era and not self._resumed:
                self._drift.resume(walks)
            self._resumed = True
        self._set()
        return True


def _looser(at: int) -> int:
    """One step down."""
    return edge_from(EDGES[at] - LOOSEN) if at < BINS else BINS - 1
