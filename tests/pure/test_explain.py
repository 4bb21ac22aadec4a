"""`explain` says what then happens: over random routes, targets, histories and requests."""

from random import Random
from typing import Any

import pytest

from support.routing import T0, S, ask, failed, served, target
from turnout.errors import Fault
from turnout.exchange import Exchange, Principal, Route, Target
from turnout.route.attempts import Attempts, Try
from turnout.route.condition import Condition
from turnout.route.explain import explain, show
from turnout.route.policies.conditional import Conditional, Rule
from turnout.route.policies.cost_optimized import CostOptimized
from turnout.route.policies.least_busy import LeastBusy
from turnout.route.policies.least_latency import LeastLatency
from turnout.route.policies.ordered import Ordered
from turnout.route.policies.prefix_affinity import PrefixAffinity
from turnout.route.policies.round_robin import RoundRobin
from turnout.route.policies.usage import Usage
from turnout.route.policies.weighted import Weighted
from turnout.route.retry import RetryBudget
from turnout.route.stage import Routes
from turnout.route.tree import Branch


def a_policy(rng: Random, labels: list[str]) -> Any:
    some = rng.sample(labels, rng.randint(1, len(labels)))
    rules = [Rule([Condition(field="prompt_bytes", op="gt", value=rng.randrange(2000))], some), Rule([Condition(field="tools", value=True)], labels[:1])]
    return rng.choice(
        [Ordered(), Weighted(), Weighted(sticky=True), RoundRobin(), LeastLatency(explore=rng.choice((0.0, 0.02, 0.2))), LeastBusy(), CostOptimized(), Usage(),
         PrefixAffinity(), Conditional(rules), Conditional(rules, some)]
    )  # fmt: skip


def a_branch(rng: Random, numbers: list[int], depth: int, label: str) -> Branch:
    children: list[int | Branch] = []
    while numbers:
        if depth and len(numbers) > 1 and rng.random() < 0.4:
            n = rng.randint(1, len(numbers))
            children.append(a_branch(rng, numbers[:n], depth - 1, f"{label}.{len(children)}"))
            numbers = numbers[n:]
        else:
            children.append(numbers[0])
            numbers = numbers[1:]
    labels = [f"t{c}" if isinstance(c, int) else c.label for c in children]
    return Branch(policy=a_policy(rng, labels), children=tuple(children), label=label, weight=rng.choice((1.0, 2.0)))


def a_route(rng: Random) -> Route:
    n = rng.randint(1, 6)
    turns: dict[str, int] = {}
    groups: list[tuple[Target, ...]] = []
    for i in range(n):
        first = target(f"t{i}", weight=rng.choice((0.5, 1.0, 3.0)), rpm=rng.choice((0, 10)))
        first.stats.turns = turns
        twin = target(f"t{i}", stats=first.stats, account="second", account_weight=2.0)
        groups.append((first, twin) if rng.random() < 0.2 else (first,))
    tree = a_branch(rng, list(range(n)), 2, "r") if rng.random() < 0.5 else None
    policy = tree.policy if tree is not None else a_policy(rng, [f"t{i}" for i in range(n)])
    return Route(
        name="r", match="m", groups=tuple(groups), policy=policy, tree=tree, retries_max=2, budget=RetryBudget(0.1), connect_ms=1, idle_ms=1, total_ms=1,
        max_body_bytes=1, header=(b"x", b"y"),
    )  # fmt: skip


def a_request(rng: Random) -> Exchange:
    body = b'{"model":"m","messages":[],"tools":[%s]%s}' % (rng.choice((b"", b"{}")), b" " * rng.randrange(3000))
    return ask(body, session=rng.choice(("", "s1", "s2")), stream=rng.random() < 0.7, principal=Principal("k", f"key:{rng.randrange(3)}", "0"))


def what_happens(routes: Routes, x: Exchange, now: int) -> tuple[list[str], str]:
    route = routes.find(x)
    order = routes.rank(route, x, now)
    step = Attempts(order, 2, route.budget, now + S, Random(1)).next(now)
    assert isinstance(step, Try)
    return [f"{t.label} ({t.account})" if t.account else t.label for t in order], f"{order[step.index].label}{' (second)' if order[step.index].account else ''}"


def test_explain_equals_what_happens(full: bool) -> None:
    checked = 0
    for seed in range(1000 if full else 250):
        rng = Random(seed)
        route, now = a_route(rng), T0
        routes = Routes([route], {}, Random(seed))
        for _ in range(10):
            for _ in range(rng.randrange(4)):
                group = rng.choice(route.groups)
                now += rng.randrange(S)
                if rng.random() < 0.7:
                    served(group[0].stats, rng.uniform(0.01, 2.0), now)
                else:
                    failed(group[0].stats, now)
                    group[0].health.failed(Fault("server_error", ""), now)
            x = a_request(rng)
            report = explain(routes, x, now)
            assert explain(routes, x, now) == report, "to ask changes nothing"
            order, first = what_happens(routes, x, now)
            assert [line["target"] for line in report["order"]] == order
            assert report["first"] == first
            assert show(report)
            checked += 1
    assert checked >= 2500


def test_it_names_the_waiting_attempts_that_moved_it() -> None:
    targets = [target("slow"), target("well")]
    route = Route(
        name="r", match="m", groups=tuple((t,) for t in targets), policy=LeastLatency(explore=0), retries_max=2, budget=RetryBudget(0.1), connect_ms=1,
        idle_ms=1, total_ms=1, max_body_bytes=1, header=(b"x", b"y"),
    )  # fmt: skip
    for i in range(50):
        served(targets[0].stats, 0.2, T0 + i * S // 50)
        served(targets[1].stats, 0.4, T0 + i * S // 50)
    now = T0 + S
    for key in range(60):
        targets[0].stats.begin(key, True, now)
    report = explain(Routes([route], {}, Random(1)), ask(), now + 2 * S)
    assert report["first"] == "well"
    assert report["candidates"][0]["late"] == 60
    assert report["candidates"][0]["late_age_s"] == pytest.approx(2.0)


def test_a_model_that_no_route_serves_is_a_fault() -> None:
    with pytest.raises(Fault, match="does not exist"):
        explain(Routes([], {}, Random(1)), ask(), T0)
