"""Figures of one policy in one scenario over some seeds."""

import sys
from array import array
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if find_spec("turnout") is None:  # not installed: the source tree
    sys.path.insert(0, str(HERE.parent.parent / "core"))

from rivals import RIVALS  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402
from world import Chooser, Ours, Place, Scenario, World  # noqa: E402

from turnout.exchange import Target  # noqa: E402
from turnout.route.policies.least_latency import LeastLatency  # noqa: E402

OURS = "least-latency"
ORACLE = "oracle"
NAMES = [OURS, *RIVALS]
PEERS = [name for name in RIVALS if name != ORACLE]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def make(name: str) -> Any:
    def chooser(targets: list[Target], places: list[Place], rng: Random) -> Chooser:
        return Ours(LeastLatency(), targets, rng) if name == OURS else RIVALS[name](targets, places, rng)

    return chooser


class Run(NamedTuple):
    """The requests of one seed in the order of their ends: when each came, seconds to its first token (-1: it failed), who
    served it (-1: nobody). And the attempts: when, whom."""

    t: "array[float]"
    ttft_s: "array[float]"
    by: "array[int]"
    asked_t: "array[float]"
    asked: "array[int]"


class Spread(NamedTuple):
    """A figure's mean over the seeds and its standard deviation from seed to seed."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(fmean(values), pstdev(values))


class Result:
    def __init__(self, scenario: Scenario, name: str, seeds: range) -> None:
        self.name = name
        self.runs: list[Run] = []
        figures: list[tuple[float, float, float, float]] = []
        for seed in seeds:
            world = World(scenario, make(name), seed)
            seen = world.run()
            ttft = array("d", (-1.0 if s.ttft_s is None else s.ttft_s for s in seen))
            came, by = array("d", (s.t for s in seen)), array("b", (s.by for s in seen))
            self.runs.append(Run(came, ttft, by, array("d", (t for t, _ in world.asked)), array("b", (i for _, i in world.asked))))
            measured = [s.ttft_s for s in seen if s.t >= scenario.warm_s]
            times = sorted(s for s in measured if s is not None)
            figures.append((times[len(times) // 2], times[len(times) * 99 // 100], fmean(times), len(times) / len(measured)))
        self.p50, self.p99, self.mean, self.success = (Spread.of(list(values)) for values in zip(*figures, strict=True))

    def share(self, place: int, begin: float, end: float, seed: int | None = None) -> float:
        """Of the requests that came in these seconds, those that this target served; of one seed, or of all."""
        runs = self.runs if seed is None else [self.runs[seed]]
        by = [who for run in runs for t, who in zip(run.t, run.by, strict=True) if begin <= t < end]
        return by.count(place) / max(1, len(by))

    def attempts(self, place: int, begin: float, end: float) -> float:
        """Attempts with this target in these seconds, for each request that came in them."""
        tried = sum(who == place for run in self.runs for t, who in zip(run.asked_t, run.asked, strict=True) if begin <= t < end)
        return tried / max(1, sum(begin <= t < end for run in self.runs for t in run.t))

    def shares(self, width_s: float, seconds: float, seed: int) -> list[list[float]]:
        """The share of each target in each piece of time: [target][piece]."""
        run, pieces = self.runs[seed], int(seconds / width_s)
        counts = [[0] * pieces for _ in range(max(run.by) + 1)]
        asked = [0] * pieces
        for t, who in zip(run.t, run.by, strict=True):
            if (piece := int(t / width_s)) < pieces:
                asked[piece] += 1
                if who >= 0:
                    counts[who][piece] += 1
        return [[n / max(1, of) for n, of in zip(row, asked, strict=True)] for row in counts]

    def over_time(self, width_s: float, seconds: float) -> list[float]:
        """The mean time to the first token of those that came in each piece of time, of all seeds."""
        pieces = int(seconds / width_s)
        sums, counts = [0.0] * pieces, [0] * pieces
        for run in self.runs:
            for t, ttft in zip(run.t, run.ttft_s, strict=True):
                if ttft >= 0.0 and (piece := int(t / width_s)) < pieces:
                    sums[piece] += ttft
                    counts[piece] += 1
        return [total / max(1, n) for total, n in zip(sums, counts, strict=True)]


def result(scenario: str, name: str, seeds: int) -> Result:
    """By name: for a process of a pool."""
    return Result(BY_NAME[scenario], name, range(seeds))
