#!/usr/bin/env python3
"""How good the choice is: policies of the gateway and of others in simulated time.

    python bench/routing/run.py [--seeds N] [--scenario NAME] [--policy NAME]

Prints for each scenario the time to the first token (milliseconds, from the request's arrival, failed attempts
included), the share of requests that were served, and the regret: how much longer the mean is than the oracle's.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if find_spec("turnout") is None:  # not installed: the source tree
    sys.path.insert(0, str(HERE.parent.parent / "core"))

from rivals import RIVALS  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402
from world import Chooser, Ours, Place, Scenario, Seen, World  # noqa: E402

from turnout.exchange import Target  # noqa: E402
from turnout.route.policies.least_latency import LeastLatency  # noqa: E402

OURS = "least-latency"
NAMES = [OURS, *RIVALS]


def make(name: str) -> Any:
    def chooser(targets: list[Target], places: list[Place], rng: Random) -> Chooser:
        return Ours(LeastLatency(), targets, rng) if name == OURS else RIVALS[name](targets, places, rng)

    return chooser


class Result:
    """Figures of one policy in one scenario over some seeds."""

    def __init__(self, scenario: Scenario, name: str, seeds: range) -> None:
        self.name = name
        self.runs: list[list[Seen]] = []
        times: list[float] = []
        asked = 0
        for seed in seeds:
            seen = World(scenario, make(name), seed).run()
            self.runs.append(seen)
            measured = [s for s in seen if s.t >= scenario.warm_s]
            asked += len(measured)
            times += [s.ttft_s for s in measured if s.ttft_s is not None]
        times.sort()
        self.p50, self.p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        self.mean = sum(times) / len(times)
        self.success = len(times) / asked

    def share(self, place: int, begin: float, end: float) -> float:
        """Of the requests that came in these seconds, those that this target served."""
        by = [s.by for seen in self.runs for s in seen if begin <= s.t < end]
        return by.count(place) / max(1, len(by))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenario")
    parser.add_argument("--policy")
    args = parser.parse_args()
    bad = 0
    for scenario in SCENARIOS:
        if args.scenario and args.scenario not in scenario.name:
            continue
        names = [n for n in NAMES if not args.policy or n in (args.policy, "oracle")]
        found = {name: Result(scenario, name, range(args.seeds)) for name in names}
        oracle = found["oracle"].mean
        print(f"\n{scenario.name}")
        print(f"  {'policy':<18} {'p50':>8} {'p99':>9} {'mean':>8} {'served':>8} {'regret':>8}")
        for name, r in found.items():
            row = f"  {name:<18} {r.p50 * 1e3:8.0f} {r.p99 * 1e3:9.0f} {r.mean * 1e3:8.0f} {r.success:8.2%} {r.mean / oracle - 1:8.1%}"
            print(row, flush=True)
        bad += found[OURS].mean / oracle > 1.15 if OURS in found else 0
    print(f"\n{bad} scenarios with a regret of more than 15 %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
