"""What least-latency must show in a scenario, line by line, with the figures.

The best peer of a scenario is the one with the lowest mean time to the first token. A figure is as good as its when it lies
within noise: two standard deviations from seed to seed of the peer's own, and at least as much as two machines, or two
ways to draw the same requests, would differ (2 % of a p50, 5 % of a p99, of which each run has some fifty samples).
"""

from itertools import pairwise
from typing import NamedTuple

from measure import ORACLE, OURS, PEERS, Result, Spread
from world import Scenario

MOST_REGRET = 0.15
NOISE_P50, NOISE_P99, NOISE_SUCCESS = 0.02, 0.05, 0.0005
LEFT_S, LEFT = 2.0, 0.1  # a degraded target keeps at most so much of its traffic, after so long
MOST_SWING = 0.5  # of the share of a target that is well, from two seconds to the next two, while another is degraded
RECOVERY_S, RECOVERED = 30.0, 0.8
PIECE_S = 2.0


class Line(NamedTuple):
    good: bool
    text: str

    def __str__(self) -> str:
        return f"{'pass' if self.good else 'MISS'}  {self.text}"


def judge(scenario: Scenario, found: dict[str, Result]) -> list[Line]:
    ours = found[OURS]
    lines = [*against_peers(ours, found), regret(ours, found[ORACLE])]
    if scenario.falls_s:
        lines += [leaves(scenario, ours), herd(scenario, ours), recovers(scenario, ours)]
    return lines


def best_peer(found: dict[str, Result]) -> Result:
    return min((found[name] for name in PEERS), key=lambda r: r.mean.mean)


def against_peers(ours: Result, found: dict[str, Result]) -> list[Line]:
    peer = best_peer(found)
    lines = []
    for what, mine, its, floor in (("p50", ours.p50, peer.p50, NOISE_P50), ("p99", ours.p99, peer.p99, NOISE_P99)):
        noise = max(2 * its.sd, floor * its.mean)
        text = f"{what} {ms(mine)}, best peer ({peer.name}) {ms(its)} +- {noise * 1e3:.0f} ms"
        lines.append(Line(mine.mean <= its.mean + noise, text))
    noise = max(2 * peer.success.sd, NOISE_SUCCESS)
    text = f"served {ours.success.mean:.3%}, best peer {peer.success.mean:.3%}"
    return [*lines, Line(ours.success.mean >= peer.success.mean - noise, text)]


def regret(ours: Result, oracle: Result) -> Line:
    more = ours.mean.mean / oracle.mean.mean - 1.0
    return Line(more <= MOST_REGRET, f"regret {more:.1%} of the oracle's mean {ms(oracle.mean)}, at most {MOST_REGRET:.0%}")


def fair(scenario: Scenario, ours: Result) -> float:
    """The share that the target has which will degrade."""
    return ours.share(0, scenario.falls_s - 15.0, scenario.falls_s)


def leaves(scenario: Scenario, ours: Result) -> Line:
    begin = scenario.falls_s + LEFT_S
    usual, left, probes = fair(scenario, ours), ours.share(0, begin, begin + 2.0), ours.attempts(0, begin + 2.0, scenario.heals_s)
    text = f"degraded target: {usual:.0%} of the traffic before, {left:.1%} {LEFT_S:.0f} s after, {probes:.2%} probes from then on"
    return Line(left <= LEFT * usual and probes > 0.0, text)


def swing(scenario: Scenario, result: Result, seed: int) -> tuple[float, float]:
    """From LEFT_S after the fall to the healing, of those that are well: how much a share changes from one piece of time to the
    next, and the largest share."""
    first, end = int((scenario.falls_s + LEFT_S) / PIECE_S), int(scenario.heals_s / PIECE_S)
    rows = [row[first:end] for row in result.shares(PIECE_S, scenario.heals_s, seed)[1:]]
    return max(abs(b - a) for row in rows for a, b in pairwise(row)), max(max(row) for row in rows)


def herd(scenario: Scenario, ours: Result) -> Line:
    found = [swing(scenario, ours, seed) for seed in range(len(ours.runs))]
    most, share = max(s for s, _ in found), max(m for _, m in found)
    usual = Spread.of([s for s, _ in found]).mean
    text = f"no herd: a share swings by {most:.0%} at most (by {usual:.0%} in the usual seed) between two pieces of {PIECE_S:.0f} s"
    return Line(most <= MOST_SWING and share < 1.0, f"{text}, at most {MOST_SWING:.0%}; the largest share is {share:.0%}")


def recovery_s(scenario: Scenario, ours: Result, usual: float, seed: int) -> float:
    """Until four seconds in a row have RECOVERED of its fair share."""
    at = scenario.heals_s
    while at + 4.0 <= scenario.seconds and ours.share(0, at, at + 4.0, seed) < RECOVERED * usual:
        at += 1.0
    return at - scenario.heals_s if at + 4.0 <= scenario.seconds else float("inf")


def recovers(scenario: Scenario, ours: Result) -> Line:
    usual = fair(scenario, ours)
    times = sorted(recovery_s(scenario, ours, usual, seed) for seed in range(len(ours.runs)))
    text = f"recovery: {RECOVERED:.0%} of its fair share {times[len(times) // 2]:.0f} s after healing in the usual seed, {times[-1]:.0f} s in the worst"
    return Line(times[-1] <= RECOVERY_S, f"{text}, at most {RECOVERY_S:.0f} s")


def ms(value: Spread) -> str:
    return f"{value.mean * 1e3:.0f} ms"
