#!/usr/bin/env python3
"""How good the choice is: policies of the gateway and of others in simulated time.

    python bench/routing/run.py [--seeds N] [--scenario NAME] [--report DIR] [--jobs N]

Prints for each scenario the time to the first token (milliseconds, from the request's arrival, failed attempts
included), the share of requests that were served, and the regret: how much longer the mean is than the oracle's. Then what
least-latency must show there, line by line (judge.py). --report writes all of it as a page with charts (needs matplotlib).
Exit code 1: a line is missed.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from judge import Line, judge
from measure import BY_NAME, NAMES, ORACLE, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--scenario", default="", help="those whose name has this in it")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a report there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    report = None
    if args.report:
        from report import Report

        report = Report(args.report, args.seeds)
    missed: list[tuple[str, Line]] = []
    judged = 0
    with ProcessPoolExecutor(args.jobs) as pool:
        for scenario in BY_NAME.values():
            if args.scenario not in scenario.name:
                continue
            running = [pool.submit(result, scenario.name, name, args.seeds) for name in NAMES]
            found = {r.name: r for r in (f.result() for f in running)}
            oracle = found[ORACLE].mean.mean
            print(f"\n{scenario.name}")
            print(f"  {'policy':<18} {'p50':>8} {'p99':>9} {'mean':>8} {'served':>9} {'regret':>8}")
            for name, r in found.items():
                times = f"{r.p50.mean * 1e3:8.0f} {r.p99.mean * 1e3:9.0f} {r.mean.mean * 1e3:8.0f}"
                print(f"  {name:<18} {times} {r.success.mean:9.3%} {r.mean.mean / oracle - 1:8.1%}")
            lines = judge(scenario, found)
            for line in lines:
                print(f"  {line}", flush=True)
            judged += len(lines)
            missed += [(scenario.name, line) for line in lines if not line.good]
            if report:
                report.add(scenario, found, lines)
    summary = [f"{judged - len(missed)} of {judged} lines pass." + (" Missed:" if missed else "")]
    summary += [f"- {name}: {line.text}" for name, line in missed]
    print("\n" + "\n".join(summary))
    if report:
        report.close("\n".join(summary))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
