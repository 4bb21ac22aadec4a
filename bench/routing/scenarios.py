"""Twelve days in the life of a pool of four targets."""

from collections.abc import Callable
from math import pi, sin
from typing import Any

from world import Place, Scenario

FALLS_S, HEALS_S = 30.0, 90.0  # of those that degrade
FALL: dict[str, Any] = {"seconds": 150.0, "falls_s": FALLS_S, "heals_s": HEALS_S}


def flat(seconds: float) -> Callable[[float], float]:
    return lambda t: seconds


def during(begin: float, end: float, inside: float, outside: float) -> Callable[[float], float]:
    return lambda t: inside if begin <= t < end else outside


def four(**first: object) -> list[Place]:
    """The first is the fastest, and something is the matter with it."""
    fast = {"ttft_s": flat(0.2), **first}
    return [Place("a", **fast), Place("b", flat(0.3)), Place("c", flat(0.4)), Place("d", flat(0.8))]  # type: ignore[arg-type]


def degraded() -> list[Place]:
    return four(ttft_s=during(FALLS_S, HEALS_S, 2.0, 0.2))


SCENARIOS = [
    Scenario("steady", four),
    Scenario("drift", lambda: [Place(n, lambda t, k=k: 0.35 + 0.2 * sin(2 * pi * (t / 60 + k / 4))) for k, n in enumerate("abcd")]),
    Scenario("degrades 10x", degraded, **FALL),
    Scenario("bimodal", lambda: four(slow_share=0.03)),
    Scenario("fails in 2 ms", lambda: four(fails=during(20, 60, 1.0, 0.0))),
    Scenario("fails now and then", lambda: four(fails=flat(0.2))),
    Scenario("long answers", lambda: four(answer_s=8.0, capacity=1000.0)),
    Scenario("cold start", four, seconds=20, warm_s=0.0),
    Scenario("429 walls", lambda: four(per_second=20.0)),
    Scenario("8 workers, stale views", degraded, workers=8, **FALL),
    Scenario("8 workers of one host", degraded, workers=8, shared=True, **FALL),
    Scenario("diurnal with bursts", four, rate=lambda t: (60 + 40 * sin(t / 15)) * (3.0 if t % 20 < 2 else 1.0), most_rate=300.0),
]
