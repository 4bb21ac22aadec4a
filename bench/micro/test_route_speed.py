"""route: rank eight targets, the way of a request over them, and the conditions that decide it."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from cases import Case
from cases import test_speed as test_speed

from turnout.errors import Fault
from turnout.exchange import Exchange, Target
from turnout.ingress.endpoints import SURFACES
from turnout.native import Counters
from turnout.route.attempts import Attempts, Try
from turnout.route.health import FAILURES_TO_OPEN, OPEN_NS, RETURN_NS, Breaker
from turnout.route.policies import POLICIES, Ordered, Weighted
from turnout.route.policies.least_latency import LeastLatency
from turnout.route.retry import RetryBudget
from turnout.route.stats import Stats
from turnout.state.table import memory, row

FAULT = Fault("server_error", "down")
HOUR_NS = 3_600_000_000_000


def targets() -> list[Target]:
    plain: dict[str, Any] = {"account": "", "account_weight": 1.0, "ttft_ms": 0, "plain_ms": 0, "port": None}
    return [Target(provider=f"p{i}", label=f"p{i}", model="m", weight=i + 1.0, health=Breaker(Random(i)), **plain) for i in range(8)]


def rank(policy: POLICIES, n: int = 8, step_ns: int = 1_000_000) -> Callable[[], Sequence[int]]:
    """`step_ns`: time between two requests; what a policy may remember it forgets in the meantime. Two targets have the
    traffic, nothing happens to the others."""
    some, rng = targets()[:n], Random(1)
    x = Exchange(id="r", surface=SURFACES["/v1/chat/completions"], started_ns=0, wall_ns=0, config_version=1, body=b"x" * 300, stream=True)
    now = HOUR_NS
    for i, target in enumerate(some):
        target.stats = Stats()
        for k in range(100):
            target.stats.begin(k, True, now)
            target.stats.first(k, now, (i + 10) * 20_000_000, 1000 + k, now + k)
            target.stats.done()

    busy, old = [target.stats for target in some[:2]], Stats().seen

    def work() -> Sequence[int]:
        nonlocal now
        now += step_ns
        for stats in busy:  # an answer came: what was known of it holds no more
            stats.seen, stats.stream.news = old, True
        return policy.rank(some, x, now, rng)

    return work


def shared() -> Callable[[], tuple[int, int, int, int]]:
    """What a worker reads of the statistics that all of them have of one target, where nothing is new: `Share.sync`."""
    cells = row(Counters(memory()), "stats")
    assert cells is not None
    get = cells.get
    return lambda: (get(0), get(1), get(2), get(3))


def first() -> Callable[[], Any]:
    """Nearly every request: the first target is well."""
    eight, budget, rng = targets(), RetryBudget(0.1), Random(1)

    def work() -> Any:
        step = Attempts(eight, 2, budget, HOUR_NS, rng).next(1)
        eight[0].health.succeeded()
        budget.succeeded(1)
        return step

    return work


def down() -> Callable[[], list[int]]:
    """All eight fail, one after the other, and the request gives up."""
    budget, rng = RetryBudget(0.0), Random(1)
    eight = targets()

    def work() -> list[int]:
        attempts = Attempts(eight, 0, budget, HOUR_NS, rng)
        went = []
        while isinstance(step := attempts.next(1), Try):
            went.append(step.index)
            attempts.failed(step.index, FAULT, 1)
            eight[step.index].health.failed(FAULT, 1)
        for target in eight:
            target.health.succeeded()
        return went

    return work


def breaker() -> Callable[[], tuple[str, str, str]]:
    """Closed, open after five failures, half-open, closed again by its probe."""
    health = Breaker(Random(1))

    def work() -> tuple[str, str, str]:
        for _ in range(FAILURES_TO_OPEN):
            assert health.allows(1)
            health.taken(1)
            health.failed(FAULT, 1)
        opened = health.state(1)
        later = 1 + OPEN_NS
        half = health.state(later)
        health.taken(later)
        health.succeeded(later - 2 * RETURN_NS)  # so that it has got all of its share back
        return opened, half, health.state(later)

    return work


EVERY = list(range(8))
CASES = [
    Case("route.policies ordered, 8 targets", lambda: rank(Ordered()), lambda order: list(order) == EVERY),
    Case("route.policies weighted, 8 targets", lambda: rank(Weighted()), lambda order: sorted(order) == EVERY),
    Case("route.policies least-latency, 4 targets, 1,000 a second", lambda: rank(LeastLatency(), 4), lambda order: sorted(order) == EVERY[:4]),
    Case("route.policies least-latency, 8 targets, 1,000 a second", lambda: rank(LeastLatency()), lambda order: sorted(order) == EVERY),
    Case("route.policies least-latency, 8 targets, 100 a second", lambda: rank(LeastLatency(), step_ns=10_000_000), lambda order: sorted(order) == EVERY),
    Case("route.share read one target", shared, (0, 0, 0, 0).__eq__),
    Case("route.attempts first of 8", first, Try(0, "first").__eq__),
    Case("route.attempts all 8 down", down, EVERY.__eq__, 60),
    Case("route.health breaker round", breaker, ("open", "half-open", "closed").__eq__),
]
