#!/usr/bin/env python3
"""Fails when Turnout has become dearer than bench/baseline.json says; what CI runs.

Two tiers, both with answers checked:
- instructions: every case of bench/micro and whole requests of bench/drive.py, counted by valgrind (micro/count.py says
  how). Over 3 % more fails. They mean something only on the same builds of Python, libraries and kernels: on others the
  figures are printed and nothing is compared.
- ratio: CPU per request and per chunk over nginx's bare proxying in the same rounds (load_harness.py). A median over
  25 % higher is measured once more, and fails when it is that high again.

A deliberate change runs `bench/gate.py --update` and says in its commit why the baseline moved. Exit code 1: dearer or
wrong; 2: it could not be measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_harness import SCENARIOS, Bench, LoadError, Ratio
from load_proc import cores
from load_servers import ROOT, turnout_python

BENCH = Path(__file__).resolve().parent
BASELINE = BENCH / "baseline.json"
MOST_INSTRUCTIONS = 1.03
MOST_RATIO = 1.25
# The engines whose ratio is held (native where it is built), and the loads. Chunks at 1,000 streams, not at 100: there a
# gateway sleeps five sixths of the time, and what waking it costs moves nginx's own figure from 15 to 30 us.
ENGINES = ("granian", "native")
LOADS = ("small-32", "agent-32", "streams-1000")
COUNT_TIMEOUT_S = 900

ABOUT = """
import json, msgspec, platform, shutil, subprocess, sys, turnout
from importlib.metadata import version
from pathlib import Path
from turnout import native
def first_line(*argv):
    path = shutil.which(argv[0])
    return subprocess.run(argv, capture_output=True, text=True).stdout.partition("\\n")[0] if path else "none"
def kernels():
    if native.missing:
        return "twin"
    # Without the feature extension-module, as `cargo test` leaves it: calls of Python cost a few per cent more.
    linked = b"libpython" in open(next(Path(turnout.__file__).parent.glob("_native*.so")), "rb").read()
    return "native, " + first_line("rustc", "--version") + (", linked to libpython" if linked else "")
flags = next((line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "").split()
print(json.dumps({
    "python": sys.version,
    "machine": platform.machine(),
    "libc": " ".join(platform.libc_ver()),
    # what libc chooses its copying and searching by, as far as valgrind shows it to a program
    "cpu": " ".join(sorted({"avx2", "bmi2", "erms", "fsrm", "asimd", "sve"} & set(flags))),
    "valgrind": first_line("valgrind", "--version"),
    "kernels": kernels(),
    **{name: version(name) for name in ("msgspec", "uvloop", "httptools")},
    "turnout": turnout.__file__,
}))
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Length:
    """How much is measured. `shifts`: memory layouts that instructions are counted in, see micro/count.py."""

    shifts: int
    rounds: int
    long: bool = False


QUICK, USUAL, FULL = Length(1, 3), Length(3, 7), Length(5, 15, long=True)


# ---- instructions


def environment() -> dict[str, str]:
    """Nothing of ours that could move memory or choose other code; the source tree when Turnout is not installed."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    env |= {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    found = subprocess.run([turnout_python(), "-c", "import turnout"], capture_output=True, cwd="/", env=env)
    return env if found.returncode == 0 else env | {"PYTHONPATH": str(ROOT / "core")}


def about(env: dict[str, str]) -> dict[str, str]:
    """What the figures depend on besides our source. Refuses an installed Turnout that is another than this source."""
    done = subprocess.run([turnout_python(), "-c", ABOUT], capture_output=True, text=True, cwd="/", env=env)
    if done.returncode != 0:
        raise LoadError(f"Turnout cannot be imported by {turnout_python()}:\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    package, source = Path(found.pop("turnout")).parent, ROOT / "core/turnout"
    if digest(package) != digest(source):
        raise LoadError(f"what is installed in {package} is not this source: {turnout_python()} -m pip install {ROOT}")
    return found


def digest(package: Path) -> str:
    parts = sorted((str(path.relative_to(package)), path.read_bytes()) for path in package.rglob("*.py"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def count(env: dict[str, str], shifts: int) -> dict[str, float]:
    """Instructions per turn of every case, the least over some layouts of memory."""
    if shutil.which("valgrind") is None:
        raise LoadError("valgrind is missing, instructions cannot be counted: apt-get install valgrind")
    script = [turnout_python(), str(BENCH / "micro/count.py")]
    # First without valgrind, in a second: a wrong answer is told at once, and all bytecode is compiled.
    started(script, env, "the cases without valgrind")
    least: dict[str, float] = {}
    for shift in range(shifts):
        begin_s = time.monotonic()
        for name, n in count_once(script, {**env, "COUNT_SHIFT": str(shift)}).items():
            least[name] = min(n, least.get(name, n))
        say(f"instructions, layout {shift + 1} of {shifts}: {time.monotonic() - begin_s:.0f} s")
    return least


def count_once(script: list[str], env: dict[str, str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="turnout-gate-") as name:
        folder = Path(name)
        valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={folder}/%p"]
        lines = [json.loads(line) for line in started(valgrind + script, env, "the cases under valgrind").splitlines()]
        by_name: dict[str, list[tuple[int, int]]] = {}
        for line in lines:
            found = re.search(r"Collected : (\d+)", (folder / str(line["pid"])).read_text())
            if found is None:
                raise LoadError(f"valgrind counted nothing for {line['name']}")
            by_name.setdefault(line["name"], []).append((line["loops"], int(found[1])))
    out = {}
    for case, runs in by_name.items():
        (n, less), (twice, more) = sorted(runs)
        out[case] = (more - less) / (twice - n)
    return out


class Dearer(Exception):
    """The gate's verdict, where it needs no table: an answer was wrong."""


def started(argv: list[str], env: dict[str, str], what: str) -> str:
    """Runs a program of cases to its end; its stdout. In a session of its own, so that all of it can be ended."""
    process = subprocess.Popen(
        argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=COUNT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{what} took over {COUNT_TIMEOUT_S} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise Dearer(f"{what} failed or gave a wrong answer (see above)")
    return out


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What is not the same as on the machine of the baseline."""
    return [
        f"{key}: baseline {before.get(key, '-')!r}, here {now.get(key, '-')!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def judge_counts(before: dict[str, float], now: dict[str, float], compare: bool) -> tuple[list[Row], list[str]]:
    """A row per case, and what is wrong. Cases without a baseline are new; a case that has gone is a hole."""
    rows: list[Row] = []
    wrong: list[str] = []
    for name, n in now.items():
        base = before.get(name) if compare else None
        verdict = "" if base or not compare else "new: no baseline yet"
        if base and n > base * MOST_INSTRUCTIONS:
            verdict = "DEARER"
            wrong.append(f"{name}: {n / base - 1:+.1%} instructions")
        elif base and n < base / MOST_INSTRUCTIONS:
            verdict = "cheaper: --update would hold it"
        rows.append(Row(name, f"{base:,.0f}" if base else "-", f"{n:,.0f}", f"{n / base - 1:+.2%}" if base else "-", verdict))
    for name in before.keys() - now.keys() if compare else ():
        wrong.append(f"{name}: in the baseline, but not counted any more")
    return rows, wrong


# ---- ratio


def ratios(
    length: Length, engines: list[str], before: dict[str, float], update: bool
) -> tuple[list[Row], list[str], dict[str, float]]:
    """A row per engine and load, what is too dear, and the medians (with `update`: the greater of two)."""
    rows: list[Row] = []
    wrong: list[str] = []
    medians: dict[str, float] = {}
    if cores()[0] == cores()[1]:
        say("only one core: gateway, mock and load generator share it")
    with Bench(say) as bench:
        nginx = bench.nginx()
        for engine in engines:
            turnout = bench.turnout(engine, engine)
            for load in LOADS:
                name = f"x nginx, {engine}, {load}"
                scenario = SCENARIOS[load] if length.long else SCENARIOS[load].short()
                base = before.get(name)

                def measured(again: str = "") -> Ratio:
                    found = bench.paired(turnout, nginx, scenario, length.rounds)  # noqa: B023  (called at once)
                    say(f"{name}{again}: {found}")  # noqa: B023
                    if found.wrong:
                        raise Dearer(f"{name}: wrong answers: {found.wrong}")  # noqa: B023
                    return found

                ratio = measured()
                over = base is not None and ratio.median > base * MOST_RATIO
                if over or update:
                    second = measured(", once more")
                    ratio = (max if update else min)(ratio, second, key=lambda found: found.median)
                    over = over and base is not None and ratio.median > base * MOST_RATIO
                medians[name] = round(ratio.median, 3)
                change = f"{ratio.median / base - 1:+.1%}" if base else "-"
                if over and not update:
                    wrong.append(f"{name}: {change} (twice)")
                verdict = "DEARER" if over and not update else "" if base else "new: no baseline yet"
                rows.append(Row(name, f"{base:.2f}" if base else "-", str(ratio), change, verdict))
    return rows, wrong, medians


# ---- the report


@dataclass(frozen=True)
class Row:
    name: str
    baseline: str
    now: str
    change: str
    verdict: str = ""

    def cells(self) -> tuple[str, ...]:
        return self.name, self.baseline, self.now, self.change, self.verdict


def table(rows: list[Row]) -> str:
    lines = [("", "baseline", "now", "change", ""), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if 0 < i < 4 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/gate.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="one layout of memory, 3 rounds: for a first look")
    length.add_argument("--full", action="store_true", help="five layouts, 15 long rounds")
    parser.add_argument("--only", choices=("counts", "ratios"), help="one tier")
    parser.add_argument("--update", action="store_true", help="write what was measured to bench/baseline.json")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends what we started
    length = QUICK if args.quick else FULL if args.full else USUAL
    baseline: dict[str, Any] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    wrong: list[str] = []
    begin_s = time.monotonic()
    env = environment()
    here = about(env)
    if args.only != "ratios":
        wrong += counts_tier(length, env, here, baseline, args.update)
    if args.only != "counts":
        engines = [engine for engine in ENGINES if engine != "native" or here["kernels"] != "twin"]
        rows, dearer, medians = ratios(length, engines, baseline.get("ratios", {}), args.update)
        print(table(rows), flush=True)
        wrong += dearer
        if args.update:
            baseline["ratios"] = baseline.get("ratios", {}) | medians
    if args.update:
        BASELINE.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
        print(f"written: {BASELINE.name}")
    for line in wrong:
        print(f"over the limit: {line}")
    print(f"benchmark gate: {'FAILED' if wrong else 'ok'}, {time.monotonic() - begin_s:.0f} s")
    return int(bool(wrong))


def counts_tier(
    length: Length, env: dict[str, str], here: dict[str, str], baseline: dict[str, Any], update: bool
) -> list[str]:
    old = baseline.get("counts", {})
    apart = differences(old.get("about", {}), here)
    now = count(env, length.shifts)
    rows, wrong = judge_counts(old.get("instructions", {}), now, not apart)
    print(table(rows), flush=True)
    if update:
        baseline["counts"] = {"about": here, "instructions": {name: round(n) for name, n in now.items()}}
        return []
    if apart:
        print("instructions: not compared, the baseline was counted with other builds:")
        print("\n".join(f"  {line}" for line in apart), flush=True)
    return wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Dearer as why:
        print(f"benchmark gate: FAILED: {why}")
        sys.exit(1)
    except LoadError as why:
        say(str(why))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
