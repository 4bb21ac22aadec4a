"""A pool of simulated targets, workers and clients in virtual time. Seeded: the same seed gives the same requests.

Policies, statistics, breakers, retry budget and the course of attempts are the gateway's own. What is made up is the
targets: their time to the first token depends on the hour, on their load and on the prompt, and some fail.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from turnout.errors import Fault
from turnout.exchange import Exchange, Principal, Surface, Target
from turnout.native import Counters
from turnout.route.attempts import Attempts, Try, Wait
from turnout.route.health import Breaker
from turnout.route.retry import RetryBudget
from turnout.route.share import Share
from turnout.route.stats import Stats
from turnout.state.table import memory, row
from turnout.upstream.client import TICK_S

S = 1_000_000_000
T0 = 1_000 * S
CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
BODIES = [b"x" * size for size in (400, 800, 1_500, 3_000, 8_000, 30_000)]
PER_BYTE_S = 2e-6  # 30 KB of prompt: 60 ms


@dataclass
class Place:
    """One target as it really is; times in seconds since the start."""

    name: str
    ttft_s: Callable[[float], float]
    spread: float = 0.2  # sigma of the lognormal
    capacity: float = 150.0  # answers under way at which the first token takes twice as long
    slow_share: float = 0.0  # of answers that begin ten times later
    fails: Callable[[float], float] = lambda t: 0.0
    fail_s: float = 0.002
    per_second: float = 0.0  # more get a 429, 0: no limit
    answer_s: float = 1.5
    busy: int = 0
    starts: deque[float] = field(default_factory=deque)

    def load(self) -> float:
        return 1.0 + (self.busy / self.capacity) ** 2

    def mean_s(self, t: float, size: int) -> float:
        """What an oracle knows."""
        return self.ttft_s(t) * self.load() * (1.0 + 9.0 * self.slow_share) + PER_BYTE_S * size

    def crowding_s(self, t: float) -> float:
        """What one more adds to the others: the derivative of `load` by `busy`, times those who come meanwhile (`busy`)."""
        return self.ttft_s(t) * 2.0 * (self.busy / self.capacity) ** 2 * (1.0 + 9.0 * self.slow_share)

    def full(self, t: float) -> bool:
        while self.starts and self.starts[0] < t - 1.0:
            self.starts.popleft()
        return bool(self.per_second) and len(self.starts) >= self.per_second


@dataclass
class Scenario:
    name: str
    places: Callable[[], list[Place]]
    rate: Callable[[float], float] = lambda t: 60.0
    most_rate: float = 60.0
    workers: int = 1
    shared: bool = False  # workers share their statistics, as those of one host do
    seconds: float = 90.0
    warm_s: float = 5.0  # not measured
    falls_s: float = 0.0  # the first target degrades here (0: it does not)
    heals_s: float = 0.0


class Chooser(Protocol):
    """A policy in one worker, ours or a rival's."""

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]: ...
    def began(self, i: int, key: int, now_ns: int) -> None: ...
    def first(self, i: int, key: int, began_ns: int, size: int, now_ns: int) -> None: ...
    def failed(self, i: int, key: int, began_ns: int, now_ns: int) -> None: ...
    def ended(self, i: int, took_s: float) -> None: ...


class Ours:
    """A policy of the gateway with its statistics."""

    def __init__(self, policy: Any, targets: list[Target], rng: Random) -> None:
        self.policy = policy
        self.targets = targets
        self.rng = rng

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        return list(self.policy.rank(self.targets, x, now_ns, self.rng))

    def began(self, i: int, key: int, now_ns: int) -> None:
        self.targets[i].stats.begin(key, True, now_ns)

    def first(self, i: int, key: int, began_ns: int, size: int, now_ns: int) -> None:
        self.targets[i].stats.first(key, began_ns, now_ns - began_ns, size, now_ns)

    def failed(self, i: int, key: int, began_ns: int, now_ns: int) -> None:
        self.targets[i].stats.failed(key, began_ns, True, now_ns)
        self.targets[i].stats.done()

    def ended(self, i: int, took_s: float) -> None:
        self.targets[i].stats.done()


@dataclass
class Seen:
    """One request: when it came, how long to its first token (None: it failed), who served it."""

    t: float
    ttft_s: float | None
    by: int


class World:
    """One run."""

    def __init__(self, scenario: Scenario, make: Callable[[list[Target], list[Place], Random], Chooser], seed: int) -> None:
        self.scenario = scenario
        self.places = scenario.places()
        self.rng = Random(f"{scenario.name} {seed}")
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.seen: list[Seen] = []
        self.asked: list[tuple[float, int]] = []  # every attempt: when, whom
        fd = memory() if scenario.shared else -1
        self.shares: list[Share] = []
        self.workers: list[tuple[Chooser, list[Target], RetryBudget, Random]] = []
        for w in range(scenario.workers):
            rng = Random(f"{scenario.name} {seed} {w}")
            targets = [
                Target(provider=p.name, account="", model="m", weight=1.0, account_weight=1.0, ttft_ms=15_000, plain_ms=1, health=Breaker(rng),
                       port=None, stats=Stats(), label=p.name)
                for p in self.places
            ]  # fmt: skip
            chooser = make(targets, self.places, rng)
            if scenario.shared and isinstance(chooser, Ours):  # rivals have no use for it
                found = [row(Counters(fd), f"stats {p.name}") for p in self.places]
                self.shares += [Share(t.stats, cells, T0) for t, cells in zip(targets, found, strict=True) if cells is not None]
            self.workers.append((chooser, targets, RetryBudget(0.1), rng))

    def at(self, t: float, do: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (t, self._number, do))

    def run(self) -> list[Seen]:
        scenario, t = self.scenario, 0.0
        while (t := t + self.rng.expovariate(scenario.most_rate)) < scenario.seconds:
            if self.rng.random() * scenario.most_rate < scenario.rate(t):
                self.at(t, Request(self, self.rng.randrange(scenario.workers), self.rng.choice(BODIES)).start)
        self._tick()
        while self._queue:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        return self.seen

    def _tick(self) -> None:
        """As the workers' own tick (upstream/client.py)."""
        for share in self.shares:
            share.sync(self.ns())
        if self.shares and self.now < self.scenario.seconds:
            self.at(self.now + TICK_S, self._tick)

    def ns(self) -> int:
        return T0 + int(self.now * S)


class Request:
    def __init__(self, world: World, worker: int, body: bytes) -> None:
        self.world = world
        self.chooser, self.targets, self.budget, self.rng = world.workers[worker]
        self.body = body

    def start(self) -> None:
        world = self.world
        self.came = world.now
        now = world.ns()
        x = Exchange(id="r", surface=CHAT, started_ns=now, wall_ns=0, config_version=1, body=self.body, stream=True, principal=_WHO)
        self.order = self.chooser.rank(x, now, world.now)
        self.course = Attempts([self.targets[i] for i in self.order], 2, self.budget, now + 120 * S, self.rng)
        self.step()

    def step(self) -> None:
        world = self.world
        step = self.course.next(world.ns())
        if step is None:
            world.seen.append(Seen(self.came, None, -1))
        elif isinstance(step, Wait):
            world.at((step.until_ns - T0) / S + 1e-9, self.step)
        else:
            self.ask(step)

    def ask(self, step: Try) -> None:
        world, i = self.world, self.order[step.index]
        place, rng, began = world.places[i], world.rng, world.ns()
        key = world._number
        world.asked.append((world.now, i))
        self.chooser.began(i, key, began)
        self.index, self.i, self.key, self.began = step.index, i, key, began
        if place.full(world.now):
            world.at(world.now + 0.005, lambda: self.fail(Fault("rate_limited", "", retry_after_s=1.0, upstream_status=429)))
        elif rng.random() < place.fails(world.now):
            world.at(world.now + place.fail_s, lambda: self.fail(Fault("server_error", "", upstream_status=500)))
        else:
            place.starts.append(world.now)
            took = place.ttft_s(world.now) * place.load() * rng.lognormvariate(0.0, place.spread) + PER_BYTE_S * len(self.body)
            if rng.random() < place.slow_share:
                took *= 10.0
            place.busy += 1
            world.at(world.now + took, self.first)

    def fail(self, fault: Fault) -> None:
        now = self.world.ns()
        self.chooser.failed(self.i, self.key, self.began, now)
        self.targets[self.i].health.failed(fault, now)
        self.course.failed(self.index, fault, now)
        self.step()

    def first(self) -> None:
        world, now, place = self.world, self.world.ns(), self.world.places[self.i]
        self.chooser.first(self.i, self.key, self.began, len(self.body), now)
        self.targets[self.i].health.began(now)
        self.budget.succeeded(now)
        world.seen.append(Seen(self.came, world.now - self.came, self.i))
        i, began = self.i, self.began

        def end() -> None:
            place.busy -= 1
            self.targets[i].health.ended(world.ns())
            self.chooser.ended(i, (world.ns() - began) / S)

        world.at(world.now + place.answer_s * world.rng.uniform(0.5, 1.5), end)


_WHO = Principal("k", "key:k", "000000")
