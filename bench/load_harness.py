"""The measurement as a module: start the servers, run a scenario, compare two servers in paired rounds.

    with Bench() as bench:
        nginx, turnout = bench.nginx(), bench.turnout(engine="native")
        one = bench.measure(turnout, SCENARIOS["small-32"])  # one["cpu_us"]: CPU of the tree per request
        ratio = bench.paired(turnout, nginx, SCENARIOS["small-32"].short(), rounds=7)
        ratio.median, ratio.low, ratio.high, ratio.wrong

A ratio is the median over rounds of (CPU per unit of one) / (CPU per unit of the other) in the same round: the
machine's mood moves both alike, so the ratio holds where microseconds do not (they move by 10-40 %).
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from load_proc import Cpu, LoadError, Server, cores, raise_file_limit, rss_mb, spawn, weight_refusals
from load_servers import PEER_STARTS, build_tools, start_mock, start_nginx, start_turnout

__all__ = ["SCENARIOS", "Bench", "LoadError", "Ratio", "Scenario", "Server", "compare", "pick", "weight_refusals"]


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `unit` is what CPU is counted per: "request" or "chunk"."""

    name: str
    mode: str  # closed | open | streams
    unit: str = "request"
    body: str = "small"
    conns: int = 32
    rate: float = 0.0
    chunks: int = 50
    gap_ms: int = 20
    seconds: float = 3.0
    warmup: float = 0.5
    beside: bool = False  # one stream at full speed runs beside it

    def short(self) -> Scenario:
        """The same load in the shortest window that still gives steady ratios."""
        streams = self.mode == "streams"
        return replace(self, seconds=1.2 if self.mode == "open" else 0.8, warmup=1.1 if streams else 0.25)

    def long(self) -> Scenario:
        """The same load in a window for figures to be published."""
        return replace(self, seconds=8.0, warmup=max(self.warmup, 1.5))

    def argv(self) -> list[str]:
        argv = ["--mode", self.mode, "--body", self.body, "--conns", str(self.conns)]
        argv += ["--seconds", str(self.seconds), "--warmup", str(self.warmup)]
        if self.mode == "streams":
            argv += ["--chunks", str(self.chunks), "--gap", str(self.gap_ms)]
        return argv + (["--rate", str(self.rate)] if self.mode == "open" else [])


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("small-32", "closed"),
        Scenario("small-128", "closed", conns=128),
        Scenario("agent-32", "closed", body="agent"),
        Scenario("streams-100", "streams", unit="chunk", conns=100, warmup=1.2),
        Scenario("streams-1000", "streams", unit="chunk", conns=1000, warmup=1.3),
        Scenario("open-200", "open", rate=200.0, conns=64),
        Scenario("beside-200", "open", rate=200.0, conns=64, beside=True),
    )
}


def pick(only: str) -> list[Scenario]:
    """Scenarios named, or begun, by one of the comma-separated words; all for an empty text."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    found: set[str] = set() if words else set(SCENARIOS)
    for word in words:
        names = {word} & set(SCENARIOS) or {name for name in SCENARIOS if name.startswith(word)}
        if not names:
            raise LoadError(f"no scenario begins with {word}; there are {', '.join(SCENARIOS)}")
        found |= names
    return [scenario for name, scenario in SCENARIOS.items() if name in found]


@dataclass(frozen=True)
class Ratio:
    """CPU per unit of one server over another's, round by round."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]
    #: Wrong answers by kind, of either server.
    wrong: dict[str, int]
    #: What `measure` gave: one and other of each round.
    rounds: tuple[tuple[dict[str, Any], dict[str, Any]], ...]

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


def compare(rounds: list[tuple[dict[str, Any], dict[str, Any]]], field: str = "cpu_us") -> Ratio:
    """The ratio of paired results."""
    values = tuple(one[field] / other[field] for one, other in rounds if one[field] and other[field])
    wrong: dict[str, int] = {}
    for result in (result for pair in rounds for result in pair):
        for kind, count in result["errors"].items():
            wrong[f"{result['server']}: {kind}"] = wrong.get(f"{result['server']}: {kind}", 0) + count
    if not values:
        raise LoadError(f"no round gave a figure; wrong answers: {wrong}")
    return Ratio(statistics.median(values), min(values), max(values), values, wrong, tuple(rounds))


class Bench:
    """Tools built, mock started; servers are added and all of them stopped at the end."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._servers: list[Server] = []

    def __enter__(self) -> Bench:
        raise_file_limit()
        mock, self._load = build_tools()
        self.folder = Path(tempfile.mkdtemp(prefix="turnout-bench-"))
        try:
            self.mock = self._keep(start_mock(mock, self.folder))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops every server, the last started first, and removes the folder of configs and logs."""
        for server in reversed(self._servers):
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, server: Server) -> Server:
        self._servers.append(server)
        return server

    def nginx(self) -> Server:
        return self._keep(start_nginx(self.mock.port, self.folder))

    def turnout(self, engine: str | None = None, name: str = "turnout") -> Server:
        """Turnout on the given engine ("native", "granian"; None: its default). A second one needs another `name`."""
        return self._keep(start_turnout(self.mock.port, self.folder, engine, name))

    def peer(self, name: str) -> Server:
        """A peer by its name in load_servers.PEER_STARTS; LoadError says how to install it."""
        return self._keep(PEER_STARTS[name](self.mock.port, self.folder))

    def measure(self, server: Server, scenario: Scenario) -> dict[str, Any]:
        """Runs one scenario against one server (`bench.mock` itself: direct, no gateway).

        Returns what the load generator printed (see bench/tools/src/report.rs; times in us) and: server, scenario,
        unit, cpu_us (CPU of the server's tree per unit), cpu_share (of one core), rss_mb and rss_peak_mb of the
        process that did the work, exit (of the load generator).
        """
        argv = [str(self._load), "--url", server.url, "--key", server.key, "--model", server.model, *scenario.argv()]
        for header in server.headers:
            argv += ["--header", header]
        marks: dict[str, Cpu] = {}
        last = ""
        flood = None
        if scenario.beside:
            seconds = str(scenario.warmup + scenario.seconds + 1.0)
            more = ["--mode", "closed", "--conns", "1", "--stream", "--chunks", "99999", "--gap", "0", "--warmup", "0", "--seconds", seconds]
            flood = spawn([*argv[:7], *more], cores()[1], out=subprocess.DEVNULL, err=subprocess.DEVNULL)
        process = spawn(argv, cores()[1], out=subprocess.PIPE, err=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            # The load generator ends by itself: its requests have a timeout.
            for raw in process.stdout:
                last = raw.decode().strip()
                if last.startswith("window "):
                    marks[last] = server.cpu()
            code = process.wait(30)
        finally:
            for one in (process, flood):
                if one is not None and one.poll() is None:
                    one.kill()
                    one.wait()
        if server.process.poll() is not None:
            raise LoadError(f"{server.name} ended with {server.process.returncode} under load:\n{server.log_tail()}")
        server.wait_idle()
        if not last.startswith("{"):
            raise LoadError(f"load generator ended with {code} and no result: {' '.join(argv)}")
        figures = json.loads(last)
        cost = _cost(figures, scenario, marks["window start"], marks["window end"])
        return {
            "server": server.name,
            "scenario": scenario.name,
            "unit": scenario.unit,
            "exit": code,
            **figures,
            **cost,
        }

    def paired(self, one: Server, other: Server, scenario: Scenario, rounds: int = 7, field: str = "cpu_us") -> Ratio:
        """Measures both in each round, taking turns at going first, and gives one over other in `field`."""
        pairs = []
        for nth in range(rounds):
            order = (one, other) if nth % 2 else (other, one)
            results = {server.name: self.measure(server, scenario) for server in order}
            pairs.append((results[one.name], results[other.name]))
        return compare(pairs, field)


def _cost(figures: dict[str, Any], scenario: Scenario, start: Cpu, end: Cpu) -> dict[str, Any]:
    """CPU per unit. Rates on both sides: our reading of the clocks may lag the window by some milliseconds."""
    used_ns = end.total_ns - start.total_ns
    share = used_ns / (end.at_ns - start.at_ns)
    units = figures["chunks_delivered"] if scenario.unit == "chunk" else figures["requests"]
    per_s = units / figures["window_s"]
    worker = max(end.by_pid, key=lambda pid: end.by_pid[pid] - start.by_pid.get(pid, 0), default=0)
    rss, peak = rss_mb(worker)
    cpu_us = share * 1e6 / per_s if per_s else None
    return {"cpu_us": cpu_us, "cpu_share": share, "units_per_s": per_s, "rss_mb": rss, "rss_peak_mb": peak}
