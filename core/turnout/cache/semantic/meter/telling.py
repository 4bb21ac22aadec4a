"""What a meter tells people: how often it was wrong, what the score is worth, what to change. Pure."""

from collections.abc import Sequence

import msgspec

from .bounds import NOTHING_KNOWN, Bound, less_noise, rate, share, wilson
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
    EDGES,
    HITS,
    MISS_WRONG,
    MISS_WW,
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
    column,
)

FEW_HITS = 0.20  # of requests: below this the cache hardly pays
FEWEST_REQUESTS = 200.0  # that say something of it
NOISY = 0.05  # of right answers taken for wrong: from here on the noise hides the budget
MOST_LEFT = 0.05  # of right answers, found wrong by two fresh ones that agree
AWAITED = 1.5  # times the hits that were labelled: so many are taken to be like them
USELESS = 0.50  # from here on what it says is no label
FEWEST_PAIRS = 8.0  # of fresh answers, that say how often it errs
UNSURE = 0.30  # of checks that could not be judged


class Estimate(msgspec.Struct, frozen=True):
    """Of the window as it stands: decaying counts, wrong/all with its 95 % interval, and what follows from it."""

    requests: float
    hits: float
    wrong_rate: float
    low: float
    high: float
    labels: float  # hits asked again; how many equal ones they are worth: `worth`
    worth: float
    unclear: float  # more of them, that the comparer could not judge
    noise: float  # share of right answers that it takes for wrong
    threshold: float
    alarm: str  # "", "drift" or "budget"
    checked: int  # hits asked again since the beginning
    spent_nanos: int


def noise_of(cells: Sequence[float], scalars: Sequence[float], confirmed: bool) -> Noise:
    """The share of right answers that the comparer takes for wrong, from pairs of fresh answers to one prompt. `confirmed`:
    checks were found wrong only where two fresh answers agreed against the kept one, so this is the misses' alone; what is
    left of it for checks is less, nobody knows how much, and only widens their interval downwards. Without pairs, checks
    that could be judged show then at least that answers here are mostly the same twice."""
    found = share(scalars[PAIRS_WRONG], scalars[PAIRS_WWRONG], scalars[PAIRS], scalars[PAIRS_WW])
    worth = scalars[PAIRS] ** 2 / scalars[PAIRS_WW] if scalars[PAIRS_WW] else 0.0
    told = worth >= FEWEST_PAIRS and found.value <= USELESS
    if not confirmed:
        return Noise(found, found, told)
    left = Bound(0.0, 0.0, min(found.high, MOST_LEFT))
    if worth < FEWEST_PAIRS:
        judged = sum(column(cells, CHECKS))
        found, told = left, judged >= FEWEST_PAIRS and scalars[UNCLEAR] <= USELESS * (judged + scalars[UNCLEAR])
    return Noise(left, found, told)


def estimate(
    cells: Sequence[float], scalars: Sequence[float], noise: Noise, threshold: float, alarm: bool, budget: float
) -> Estimate:
    """Of the window's hits the share wrong among those asked again, times the hits: a ratio estimator, which labels that are
    awaited or could not be given do not move. Its interval is about the wrong answers that were served, as they were
    counted by nobody: hits asked again vary no more, the rest does (Poisson sampling of a finite population)."""
    hits, checks, w, wrong, ww, wwrong, wd, wdwrong, told = (
        sum(column(cells, field))
        for field in (HITS, CHECKS, CHECK_W, CHECK_WRONG, CHECK_WW, CHECK_WWRONG, CHECK_WD, CHECK_WDWRONG, TOLD)
    )
    n = scalars[REQUESTS]
    found = Bound(0.0, 0.0, hits / n if n else 0.0)
    over = False
    if w > 1e-9 and n and noise.checks.value <= USELESS:
        f = hits / w  # hits a unit of weight stands for: over 1 while labels are awaited, or could not be given
        flagged = noise.checks.value * hits  # by the comparer's error, which varies for the hits asked again too
        known = 1.0 - min(1.0, flagged / (f * wrong)) if wrong else 1.0

        def seen(f: float) -> Bound:
            v = f * f * wwrong - known * f * wdwrong
            more = f * ww / w - (0.0 if flagged else wd / w)
            return rate(f * wrong / n, max(0.0, v) / (n * n), max(0.0, more) / n)

        low = seen(min(f, AWAITED))  # hits whose labels are missing may be like the others, or may not
        found = less_noise(Bound(low.value, low.low, seen(f).high), hits / n, noise.checks)
        # The alarm takes the comparer's error for what it was found to be: to wait until that is known better is too late.
        error = noise.checks.value
        over = less_noise(low, hits / n, Bound(error, error, error)).low > budget
    least = min(told / n, hits / n) if n else 0.0  # users have told of so many
    return Estimate(
        requests=n,
        hits=hits,
        wrong_rate=max(found.value, least),
        low=found.low,
        high=max(found.high, least),
        labels=checks,
        worth=w * w / ww if ww else 0.0,
        unclear=scalars[UNCLEAR],
        noise=noise.misses.value,
        threshold=threshold,
        alarm="budget" if over else "drift" if alarm else "",
        checked=int(scalars[CHECKS_N]),
        spent_nanos=int(scalars[SPENT]),
    )


def calibration(cells: Sequence[float]) -> list[dict[str, float]]:
    """By the score (`from`..`to`): what was asked there (`hits`, `misses`), how many `labels` there are, and which share of
    the candidates was `right`, with its 95 % interval. Scores nobody asked at are left out."""
    found = []
    fields = (HITS, MISSED, CHECKS, CHECK_W, CHECK_WRONG, MISSES, MISS_WRONG, CHECK_WW, MISS_WW)
    for b in range(BINS):
        hits, missed, checks, w, wrong, misses, mwrong, ww, mww = (cells[field * BINS + b] for field in fields)
        if hits + missed + checks + misses < 0.01:
            continue
        labels = checks + misses
        bound = NOTHING_KNOWN
        if labels > 1e-3:
            bad = ((wrong / w * checks if w else 0.0) + mwrong) / labels
            bound = wilson(min(1.0, bad), (w * w / ww if ww else 0.0) + (misses * misses / mww if mww else 0.0))
        right = {"right": 1.0 - bound.value, "low": 1.0 - bound.high, "high": 1.0 - bound.low}
        row = {"from": EDGES[b], "to": EDGES[b + 1], "hits": hits, "misses": missed, "labels": labels}
        found.append(row | right)
    return found


def advice(said: Estimate, cells: Sequence[float], points: Sequence[Point], budget: float) -> str:
    """What the operator may change; empty where all is well, or too little is known to say."""
    if said.requests < FEWEST_REQUESTS:
        return ""
    found = []
    if said.alarm == "budget":
        found.append(
            f"{said.wrong_rate:.1%} of all requests got a wrong answer, over the {budget:.1%} allowed: the threshold has been"
            " raised; purge this namespace if its answers have become outdated, or shorten ttl_s."
        )
    elif said.high > budget and said.worth < 100.0:
        found.append(
            f"{said.worth:.0f} checked hits cannot show yet that the {budget:.1%} is held (it may be {said.high:.1%}):"
            " raise checks.share or the checks' budget to know sooner."
        )
    elif said.high > budget:
        found.append(f"It may be {said.high:.1%} wrong, over the {budget:.1%} allowed; it is watched.")
    if said.noise > NOISY:
        found.append(
            f"{said.noise:.0%} of fresh answers to one prompt look different from each other, which hides wrong hits:"
            " set temperature 0 on this route."
        )
    if said.unclear > UNSURE * (said.unclear + said.labels):
        found.append("Many checks cannot be judged by comparing answers: let users judge them (feedback).")
    if said.hits < FEW_HITS * said.requests:
        found.append(_few(said, cells, points, budget))
    return " ".join(found)


def _few(said: Estimate, cells: Sequence[float], points: Sequence[Point], budget: float) -> str:
    near = (said.hits + sum(column(cells, MISSED))) / said.requests
    share = f"Only {said.hits / said.requests:.0%} of the requests are answered from here: "
    if near < 2.0 * FEW_HITS:
        return share + (
            f"{1.0 - near:.0%} have no question like theirs in the cache; raise ttl_s or max_entries, share entries more"
            " widely (share), or turn the semantic cache off here."
        )
    for times in (2.0, 5.0):
        reach = [p for p in points if p.full and 0.0 < p.high <= times * budget]
        most = max((p.asked for p in reach), default=0.0)
        if most > FEW_HITS and most > 1.5 * said.hits / said.requests:
            return share + f"with max_false_hit_rate {times * budget:g} it would be {most:.0%}."
    return share + "most of the questions that look alike want other answers; turn the semantic cache off here."
