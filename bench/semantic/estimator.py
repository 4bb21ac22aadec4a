#!/usr/bin/env python3
"""Does the meter tell the truth, and does what it does hold the budget? Simulated streams, where the truth is known.

    python bench/semantic/estimator.py [--streams N] [--jobs N] [--seed N] [--budget 0.01] [--unconfirmed] [--kind KIND]

A stream is four weeks of one namespace. Each request asks for an item of its scope; a candidate is near or not, right or
wrong, and has a score; the meter says what is served and what is asked again; labels come later, from a comparer that errs
and sometimes cannot say; what it finds wrong a second fresh answer has to confirm, as in the gateway, and pairs of fresh
answers tell how often it errs. Ten times in each stream the interval is compared with the truth: wrong/all of the same
exponential window, counted, not expected. Kinds of streams (`KINDS`) change the world on the way.

The kinds: nothing changes; how many requests have a right candidate changes; all scores shift; the verifier goes bad at once,
or slowly; the comparer errs often; the same question comes up to 300 times in a row; few requests; one scope has more wrong
candidates; the factory's threshold was found on other data, and breaks the budget from the first request; all of it at once.

Printed per kind: share of windows whose truth lies in the 95 % interval; share of windows over the budget; the same for
tenths of the stream taken alone, which are shorter and forget at once; median width of the interval over the budget, and the
equal labels that it rests on; hits; checks of hits. Exit code 1: less than 93 % inside, or more than 5 % over.
"""

import argparse
import sys
from itertools import pairwise
from math import exp
from multiprocessing import Pool
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "core"))

from turnout.cache.semantic.meter.meter import DAY_NS, HALF_LIFE_NS, Meter

KINDS = ("steady", "should-hit", "shift", "bad", "slow", "noise", "bursts", "quiet", "scope", "foreign", "all")
DAYS = 28
TENTHS = 10
VARIES = 0.8  # of right answers found wrong: a second fresh answer is another one again
T0 = 1_700_000_000 * 10**9


class World:
    """What a request meets; `set` changes it over time (0..1)."""

    def __init__(self, kind: str, rng: Random) -> None:
        self.kind, self.rng = kind, rng
        every = kind == "all"
        self.requests = int(10 ** rng.uniform(3.0, 4.2)) if kind != "quiet" else int(10 ** rng.uniform(2.0, 3.0))
        self.near = rng.uniform(0.5, 0.9)  # a candidate is near
        self.repeats = rng.uniform(0.2, 0.7)  # it is the right one
        self.right_at, self.wrong_at = rng.uniform(1.5, 3.0), rng.uniform(-2.0, -0.5)  # logits of their scores
        self.spread = rng.uniform(0.8, 1.3)
        self.noise = rng.uniform(0.02, 0.08) if kind == "noise" or every else rng.choice((0.0, 0.005, 0.01))
        self.overlooks = rng.uniform(0.0, 0.05)
        self.bursts = 0.002 if kind == "bursts" or every else 0.0
        self.bad_scope = rng.uniform(2.0, 5.0) if kind == "scope" or every else 1.0
        self.at = rng.uniform(0.2, 0.8)  # when it changes
        self.to_repeats = rng.uniform(0.1, 0.8) if kind == "should-hit" or every else self.repeats
        self.shift = rng.uniform(-1.0, 1.0) if kind == "shift" or every else 0.0
        self.worse = rng.uniform(0.5, 2.0) if kind in ("bad", "slow") or (every and rng.random() < 0.5) else 0.0
        self.moved = self.failed = 0.0
        self.items = 300

    def go(self, done: float) -> None:
        if self.kind == "slow":
            self.failed = self.worse * done
        else:
            self.failed = self.worse if done > self.at else 0.0
        self.moved = self.shift * done

    def candidate(self, done: float) -> tuple[bytes, int, bool, float] | None:
        """Scope, item, whether its answer is right, score."""
        rng = self.rng
        if rng.random() > self.near:
            return None
        scope = min(4, int(rng.expovariate(0.7)))
        item = scope * 1000 + int(self.items * rng.random() ** 3)
        repeats = self.repeats if done < self.at else self.to_repeats
        right = rng.random() < (repeats if scope != 1 else repeats / self.bad_scope)
        logit = rng.gauss(self.right_at if right else self.wrong_at + self.failed, self.spread) + self.moved
        return b"scope%d" % scope, item, right, 1.0 / (1.0 + exp(-logit))


def factory(world: World, budget: float, share: float) -> float:
    """The threshold at which the world as it is at first serves `share` of the budget wrongly."""
    state = world.rng.getstate()
    found = [c for c in (world.candidate(0.0) for _ in range(40_000)) if c]
    world.rng.setstate(state)
    wrong = sorted((score for _, _, right, score in found if not right), reverse=True)
    return min(0.999, wrong[min(len(wrong) - 1, int(40_000 * budget * share))])


class Window(NamedTuple):
    kind: str
    inside: bool
    over: bool  # the budget, in truth
    alone: bool  # in this tenth alone
    width: float  # of the interval, over the budget
    worth: float  # labels
    hits: float
    checks: float
    truth: float
    threshold: float
    factory: float


def stream(job: tuple[int, str, float, bool]) -> list[Window]:
    seed, kind, budget, confirmed = job
    rng = Random(f"{seed} {kind}")
    world = World(kind, rng)
    share = rng.uniform(0.3, 0.9) if kind != "foreign" else rng.uniform(1.0, 3.0)
    start = factory(world, budget, share)
    meter = Meter(budget, start, confirmed=confirmed)
    n = world.requests
    step = DAYS * DAY_NS // n
    late: list[tuple[int, int, float, bytes, int, bool | None, float, str]] = []  # due at, ...
    all_w = wrong_w = 0.0
    tenth_all = tenth_wrong = hits = checks = served_wrong = 0
    fade = 0.5 ** (step / HALF_LIFE_NS)
    burst: tuple[bytes, int, bool, float] | None = None
    left = 0
    windows = []
    for i in range(n):
        now = T0 + i * step
        done = i / n
        world.go(done)
        if left:
            left -= 1
        else:
            burst = None
            if world.bursts and rng.random() < world.bursts:
                burst, left = world.candidate(done), rng.randrange(10, 300)
        found = burst or world.candidate(done)
        meter.request(now)
        all_w, wrong_w = all_w * fade + 1.0, wrong_w * fade
        tenth_all += 1
        if found:
            scope, item, right, score = found
            verdict = verdict_of(world, right)
            if score >= meter.threshold(scope, item, now):
                meter.served(now, score, scope, item)
                hits += 1
                if not right:
                    wrong_w += 1.0
                    tenth_wrong += 1
                    served_wrong += 1
                if q := meter.wants_check(score, scope, now, rng.random()):
                    checks += 1
                    if confirmed and verdict is False and rng.random() < (VARIES if right else world.noise):
                        verdict = None
                    late.append((i + rng.randrange(1, 20), now, score, scope, item, verdict, 1.0 / q, "check"))
            else:
                meter.missed(now, score, scope, item)
                late.append((i + rng.randrange(1, 20), now, score, scope, item, verdict, 1.0, "miss"))
        while late and late[0][0] <= i:
            _, at, *label = late.pop(0)
            meter.label(at, *label)
            if label[-1] == "check" and meter.wants_pair(rng.random()):
                meter.pair(at, rng.random() >= world.noise)
        if (i + 1) * TENTHS // n > i * TENTHS // n:
            e = meter.estimate(now)
            truth = wrong_w / all_w
            windows.append(
                Window(
                    kind,
                    e.low - 1e-9 <= truth <= e.high + 1e-9,
                    truth > budget,
                    tenth_wrong > budget * tenth_all,
                    (e.high - e.low) / budget,
                    e.worth,
                    hits / (i + 1),
                    checks / max(1, hits),
                    truth,
                    e.threshold,
                    start,
                )
            )
            tenth_all = tenth_wrong = 0
    return windows


def verdict_of(world: World, right: bool) -> bool | None:
    rng = world.rng
    if rng.random() < (0.05 if right else 0.08):
        return None
    return rng.random() >= world.noise if right else rng.random() < world.overlooks


def line(name: str, windows: list[Window]) -> str:
    def share(of: str) -> float:
        return sum(getattr(w, of) for w in windows) / len(windows)

    return (
        f"{name:12} {len(windows):6}  inside {share('inside'):6.1%}  over {share('over'):6.1%}  alone {share('alone'):6.1%}  "
        f"width/budget {median(w.width for w in windows):5.2f} of {median(w.worth for w in windows):5.0f} labels  "
        f"hits {share('hits'):5.1%}  checks {share('checks'):5.1%}"
    )


def run(
    streams: int, jobs: int, seed: int, budget: float, kinds: tuple[str, ...] = KINDS, confirmed: bool = True
) -> list[Window]:
    work = [(seed + i, kinds[i % len(kinds)], budget, confirmed) for i in range(streams)]
    if jobs == 1:
        return [w for job in work for w in stream(job)]
    with Pool(jobs) as pool:
        return [w for found in pool.imap_unordered(stream, work, chunksize=4) for w in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--unconfirmed", action="store_true", help="no second answer confirms what is found wrong")
    parser.add_argument("--kind", choices=KINDS, action="append")
    args = parser.parse_args()
    windows = run(args.streams, args.jobs, args.seed, args.budget, tuple(args.kind or KINDS), not args.unconfirmed)
    for kind in args.kind or KINDS:
        print(line(kind, [w for w in windows if w.kind == kind]))
    print(line("together", windows))
    for low, high in pairwise((0, 15, 30, 60, 120, 250, 10**9)):
        if some := [w.width * args.budget for w in windows if low <= w.worth < high]:
            print(f"{low:4} labels and more: median width of the interval {median(some):.2%} of all requests, {len(some)} windows")
    inside = sum(w.inside for w in windows) / len(windows)
    over = sum(w.over for w in windows) / len(windows)
    good = inside >= 0.93 and over <= 0.05
    print(f"{'pass' if good else 'MISS'}  inside {inside:.1%} (at least 93 %), over {over:.1%} (at most 5 %)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
