"""`explain` says what then happens: over random routes, trees, conditions, hedges, histories and requests."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from support.routing import T0, S, ask, failed, served, target
from turnout.errors import Fault
from turnout.exchange import Exchange, Principal, Route, Target
from turnout.route.attempts import Attempts, Try, Wait
from turnout.route.condition import Condition
from turnout.route.explain import explain, show
from turnout.route.hedge import Hedge, HedgeSpec, Purse
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


def a_condition(rng: Random) -> Condition:
    return rng.choice(
        [Condition(field="prompt_bytes", op=rng.choice(("gt", "gte", "lt", "lte")), value=rng.randrange(3000)), Condition(field="tools", value=rng.random() < 0.5),
         Condition(field="session", op=rng.choice(("in", "not_in")), value=["s1"]), Condition(field="stream", value=True), Condition(field="team", op="exists", value=rng.random() < 0.5),
         Condition(field="tenant", op="regex", value="key:[01]"), Condition(field="header.x-tier", op="contains", value="go"), Condition(field="metadata.n", op="gt", value=rng.randrange(5)),
         Condition(field="tags", value="batch"), Condition(field="hour", op="lt", value=12)]
    )  # fmt: skip


def a_policy(rng: Random, labels: list[str]) -> Any:
    some = rng.sample(labels, rng.randint(1, len(labels)))
    rules = [Rule([a_condition(rng) for _ in range(rng.randint(1, 2))], rng.sample(labels, rng.randint(1, len(labels)))) for _ in range(rng.randint(1, 3))]
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
    spec = HedgeSpec(budget=rng.choice((0.05, 0.5)), quantile=rng.choice((0.5, 0.95)), least_ms=1, unknown_ms=rng.choice((100, 2000)))
    hedge = Hedge(spec, Purse(spec.budget)) if rng.random() < 0.5 else None
    return Route(
        name="r", match="m", groups=tuple(groups), policy=policy, tree=tree, retries_max=2, budget=RetryBudget(0.1), connect_ms=1, idle_ms=1, total_ms=1,
        max_body_bytes=1, header=(b"x", b"y"), hedge=hedge, assemble=rng.random() < 0.3,
    )  # fmt: skip


def a_request(rng: Random) -> Exchange:
    body = b'{"model":"m","messages":[],"metadata":{"n":%d},"tools":[%s]%s}' % (rng.randrange(8), rng.choice((b"", b"{}")), b" " * rng.randrange(3000))
    who = Principal("k", f"key:{rng.randrange(3)}", "0", team=rng.choice((None, "red")), tags=rng.choice(((), ("batch",))))
    headers = [(b"x-tier", b"gold")] if rng.random() < 0.5 else []
    return ask(body, session=rng.choice(("", "s1", "s2")), stream=rng.random() < 0.7, principal=who, headers=headers, wall_ns=rng.randrange(10**18))


def name_of(target: Target) -> str:
    return f"{target.label} ({target.account})" if target.account else target.label


def something_happens(rng: Random, route: Route, now: int) -> None:
    """To one target: good answers, failures, limits."""
    target = rng.choice(rng.choice(route.groups))
    what = rng.random()
    if what < 0.6:
        for _ in range(rng.choice((1, 1, 25))):
            served(target.stats, rng.uniform(0.01, 2.0), now, rng.randrange(100, 3000))
        if rng.random() < 0.5:
            target.health.began(now)
        else:
            target.health.succeeded(now)
    elif what < 0.95:
        for _ in range(rng.choice((1, 1, 5))):
            failed(target.stats, now)
            target.health.failed(Fault("server_error", ""), now)
    else:
        target.health.failed(Fault("rate_limited", "", retry_after_s=rng.uniform(0.1, 9.0)), now)


def what_happens(routes: Routes, x: Exchange, now: int) -> tuple[list[str], str | None, float, str | None, float, bool]:
    """The order, who is asked first and after what wait, who is asked beside it, when, and whether the budget has one."""
    route = routes.find(x)
    x.assemble = route.assemble and not x.stream
    order = routes.rank(route, x, now)
    course = Attempts(order, 2, route.budget, now + 60 * S, Random(1))
    step, at = course.next(now), now
    if isinstance(step, Wait):
        at = step.until_ns
        step = course.next(at)
    names = [name_of(t) for t in order]
    if step is None:
        return names, None, 0.0, None, 0.0, False
    assert isinstance(step, Try)
    beside, after_s, paid = None, 0.0, False
    if route.hedge is not None and at == now and (x.stream or x.assemble):
        route.hedge.purse.earned(now)
        after_s = route.hedge.delay_ns(order[step.index].stats, len(x.body), now) / 1e9
        wish = course.beside(now, lambda: True)
        beside = name_of(order[wish.index]) if wish is not None else None
        paid = route.hedge.purse.take() if beside else False
    return names, name_of(order[step.index]), (at - now) / S, beside, after_s, paid


def test_explain_equals_what_happens(full: bool) -> None:
    met: Counter[str] = Counter()
    for seed in range(1000 if full else 250):
        rng = Random(seed)
        route, now = a_route(rng), T0
        routes = Routes([route], {}, Random(seed))
        for _ in range(10):
            for _ in range(rng.randrange(4)):
                now += rng.randrange(S)
                something_happens(rng, route, now)
            x = a_request(rng)
            report = explain(routes, x, now)
            assert explain(routes, x, now) == report, "to ask changes nothing"
            order, first, wait_s, beside, after_s, paid = what_happens(routes, x, now)
            assert [line["target"] for line in report["order"]] == order
            assert report["first"] == first
            if first is not None:
                assert report.get("wait_s", 0.0) == pytest.approx(wait_s)
            hedge = report.get("hedge")
            assert (hedge is not None) == (route.hedge is not None and (x.stream or x.assemble))
            if hedge is not None and not report.get("wait_s"):
                assert (hedge["target"], hedge["after_s"]) == (beside, after_s)
                assert (hedge["left"] > 0 and beside is not None) == paid
                met["hedge"] += paid
                met["no hedge"] += not paid
            assert show(report)
            met["requests"] += 1
            met["none"] += first is None
            met["waits"] += wait_s > 0
            met["tree"] += route.tree is not None
            met.update(line["breaker"] for line in report["order"])
            if route.hedge is not None:
                for _ in range(rng.randrange(10)):
                    route.hedge.purse.earned(now)
    assert met["requests"] >= 2500
    seen = ("none", "waits", "tree", "hedge", "no hedge", "closed", "open", "half-open", "returning", "cooling")
    assert all(met[what] >= 20 for what in seen), met


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
