"""The figures as a report: a page of markdown, and a chart for each scenario."""

from pathlib import Path

import matplotlib
from judge import Line
from measure import ORACLE, OURS, Result
from world import Scenario

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BIN_S = 2.0
HEAD = """# Routing in simulated time

{seeds} seeds for each scenario and policy. Time to the first token (TTFT) counts from the request's arrival, failed attempts included;
means over the seeds. Regret: how much longer the mean is than that of an oracle that knows what every target is like.

"""
COLOURS = {OURS: "#d62728", ORACLE: "black"}
OTHERS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf")


class Report:
    """Written as the scenarios come."""

    def __init__(self, folder: Path, seeds: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._text = [HEAD.format(seeds=seeds)]
        self._regret: dict[str, dict[str, float]] = {}

    def add(self, scenario: Scenario, found: dict[str, Result], lines: list[Line]) -> None:
        oracle = found[ORACLE].mean.mean
        regrets = {name: r.mean.mean / oracle - 1.0 for name, r in found.items()}
        self._regret[scenario.name] = regrets
        picture = scenario.name.replace(" ", "-").replace(",", "") + ".png"
        chart(scenario, found, regrets, self._folder / picture)
        rows = [
            f"| {name} | {r.p50.mean * 1e3:.0f} | {r.p99.mean * 1e3:.0f} | {r.mean.mean * 1e3:.0f} | {r.success.mean:.3%} | {regrets[name]:.1%} |"
            for name, r in found.items()
        ]
        table = ["| policy | p50 ms | p99 ms | mean ms | served | regret |", "|---|---|---|---|---|---|", *rows]
        verdict = [f"- {line}" for line in lines]
        self._text.append("\n".join([f"## {scenario.name}", "", *table, "", *verdict, "", f"![{scenario.name}]({picture})", "", ""]))

    def close(self, summary: str) -> None:
        overview(self._regret, self._folder / "regret.png")
        self._text.insert(1, f"{summary}\n\n![regret by scenario](regret.png)\n\n")
        (self._folder / "report.md").write_text("".join(self._text))


def chart(scenario: Scenario, found: dict[str, Result], regrets: dict[str, float], path: Path) -> None:
    """TTFT over time by policy, the share of each target over time in one run of ours, regret."""
    figure, (times, shares, bars) = plt.subplots(1, 3, figsize=(17, 4.2), gridspec_kw={"width_ratios": (3, 3, 2)}, layout="constrained")
    at = [BIN_S * (i + 0.5) for i in range(int(scenario.seconds / BIN_S))]
    times.set_prop_cycle(color=OTHERS)
    for name, result in found.items():
        wide = 2.2 if name in COLOURS else 1.0
        times.plot(at, result.over_time(BIN_S, scenario.seconds), label=name, linewidth=wide, color=COLOURS.get(name), zorder=3 if name in COLOURS else 2)
    times.set(title=f"{scenario.name}: mean TTFT by policy", xlabel="s", ylabel="s", yscale="log")
    times.legend(fontsize=7)
    rows = found[OURS].shares(BIN_S, scenario.seconds, 0)
    for row, name in zip(rows, "abcd", strict=False):
        shares.plot(at, row, label=name)
    shares.set(title=f"share of each target, {OURS}, one seed", xlabel="s", ylim=(0.0, 1.0))
    shares.legend(fontsize=7)
    for axes in (times, shares):
        if scenario.falls_s:
            axes.axvspan(scenario.falls_s, scenario.heals_s, color="grey", alpha=0.15)
    names = [name for name in found if name != ORACLE]
    bars.barh(names, [100 * regrets[name] for name in names], color=[COLOURS.get(name, "grey") for name in names])
    bars.axvline(15, color="black", linewidth=0.8, linestyle="--")
    bars.invert_yaxis()
    bars.set(title="regret, %", xlabel="% over the oracle's mean TTFT")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def overview(regret: dict[str, dict[str, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(12, 1.2 + 0.45 * len(regret)), layout="constrained")
    for row, regrets in enumerate(regret.values()):
        peers = [100 * r for name, r in regrets.items() if name not in COLOURS]
        axes.scatter(peers, [row] * len(peers), color="grey", s=18)
        axes.scatter([100 * regrets[OURS]], [row], color=COLOURS[OURS], s=60, zorder=3)
    axes.axvline(15, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(regret)), list(regret))
    axes.invert_yaxis()
    axes.set(title=f"regret by scenario: {OURS} (red) and its peers", xlabel="% over the oracle's mean TTFT")
    figure.savefig(path, dpi=80)
    plt.close(figure)
