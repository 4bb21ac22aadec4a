"""The order each policy gives: for every state of the targets, and for the states that matter."""

from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.routing import T0, S, ask, failed, served, target
from turnout.catalog import Model, Price
from turnout.errors import Fault
from turnout.exchange import Principal, Target
from turnout.route.condition import Condition
from turnout.route.outlook import scored
from turnout.route.policies.conditional import Conditional, Rule
from turnout.route.policies.cost_optimized import CostOptimized
from turnout.route.policies.least_busy import LeastBusy
from turnout.route.policies.least_latency import LeastLatency
from turnout.route.policies.ordered import Ordered
from turnout.route.policies.prefix_affinity import PrefixAffinity
from turnout.route.policies.round_robin import RoundRobin
from turnout.route.policies.usage import Usage
from turnout.route.policies.weighted import Weighted
from turnout.route.stats import FRESH_NS, Stats
from turnout.route.tree import Branch
from turnout.route.why import Why

ALL = [Ordered(), Weighted(), Weighted(sticky=True), RoundRobin(), LeastLatency(), LeastBusy(), CostOptimized(), CostOptimized(usd_per_s=0.01), Usage(), PrefixAffinity()]
events = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0.001, 5.0)), max_size=40)


def pool(names: str = "abcd", **more: Any) -> list[Target]:
    turns: dict[str, int] = {}
    out = [target(name, **more) for name in names]
    for t in out:
        t.stats.turns = turns
    return out


def live(targets: list[Target], seen: list[tuple[int, bool, float]]) -> int:
    now = T0
    for i, good, seconds in seen:
        now += S // 20
        if good:
            served(targets[i].stats, seconds, now)
        else:
            failed(targets[i].stats, now)
    return now


@pytest.mark.parametrize("policy", ALL, ids=lambda p: type(p).__name__)
@given(seen=events, seed=st.integers(0, 1000), n=st.integers(2, 4))
def test_every_target_stands_in_the_order_once(policy: Any, seen: list[tuple[int, bool, float]], seed: int, n: int) -> None:
    targets = pool()
    now = live(targets, seen)
    order = policy.rank(targets[:n], ask(session="s"), now, Random(seed))
    assert sorted(order) == list(range(n))


@pytest.mark.parametrize("policy", ALL, ids=lambda p: type(p).__name__)
@given(seen=events, seed=st.integers(0, 1000))
def test_to_be_asked_for_reasons_changes_nothing(policy: Any, seen: list[tuple[int, bool, float]], seed: int) -> None:
    orders = []
    for why in (None, []):
        targets = pool()
        now = live(targets, seen)
        orders.append(list(policy.rank(targets, ask(session="s"), now, Random(seed), why)))
        assert why is None or isinstance(policy, Ordered) or len(why) >= 4
    assert orders[0] == orders[1]


def firsts(policy: Any, targets: list[Target], now: int, n: int = 2000, **more: Any) -> Counter[str]:
    rng = Random(7)
    return Counter(targets[policy.rank(targets, ask(**more), now, rng)[0]].label for _ in range(n))


# ---- least-latency


def test_the_fastest_gets_the_traffic() -> None:
    targets = pool()
    for i in range(50):
        for t, seconds in zip(targets, (0.4, 0.2, 0.4, 0.6), strict=True):
            served(t.stats, seconds, T0 + i * S // 50)
    assert firsts(LeastLatency(), targets, T0 + S)["b"] == 2000


def test_those_that_are_nearly_equal_share_by_how_busy_they_are() -> None:
    targets = pool()
    for i in range(50):
        for t, seconds in zip(targets, (0.20, 0.21, 0.4, 0.6), strict=True):
            served(t.stats, seconds, T0 + i * S // 50)
    even = firsts(LeastLatency(), targets, T0 + S)
    assert even["a"] + even["b"] == 2000
    targets[0].stats.in_flight = 5
    assert firsts(LeastLatency(), targets, T0 + S)["b"] == 2000


def test_a_crowded_target_spills_over_as_far_as_the_next_is_near() -> None:
    for seconds, share in ((0.20, 0.5), (0.21, 0.45), (0.23, 0.33), (0.24, 0.25), (0.27, 0.0)):
        targets = pool("ab")
        for i in range(50):
            served(targets[0].stats, 0.2, T0 + i * S // 50)
            served(targets[1].stats, seconds, T0 + i * S // 50)
        rng = Random(7)
        for _ in range(400):  # none of them ends
            first = LeastLatency(explore=0).rank(targets, ask(), T0 + S, rng)[0]
            targets[first].stats.in_flight += 1
        assert targets[1].stats.in_flight / 400 == pytest.approx(share, abs=0.03)


def test_a_surprisingly_fast_probe_is_followed_by_more() -> None:
    for again, most in ((0.05, 0.3), (0.4, 0.0)):
        targets = pool("ab")
        for i in range(50):
            served(targets[0].stats, 0.2, T0 + i * S // 50)
            served(targets[1].stats, 0.4, T0 + i * S // 50)
        served(targets[1].stats, again, T0 + 2 * S)
        share = 1 - firsts(LeastLatency(near=0), targets, T0 + 3 * S)["a"] / 2000
        assert most * 0.5 <= share <= most, "no more than ten times `explore`"
        assert firsts(LeastLatency(near=0, explore=0), targets, T0 + 3 * S)["a"] == 2000


def test_a_target_that_is_down_does_not_take_the_probes_of_others() -> None:
    targets = pool("abc")
    for i in range(50):
        served(targets[0].stats, 0.2, T0 + i * S // 50)
        served(targets[1].stats, 0.4, T0 + i * S // 50)
    for _ in range(5):
        failed(targets[2].stats, T0)  # never answered
        targets[2].health.failed(Fault("server_error", ""), T0 + 19 * S)
    for i in range(20):
        served(targets[0].stats, 0.2, T0 + 10 * S + i * S // 2)
    seen = firsts(LeastLatency(), targets, T0 + 20 * S)
    assert seen["b"] > 0
    assert seen["c"] == 0


def test_a_target_that_does_not_answer_its_first_request_is_not_asked_again_soon() -> None:
    targets = pool("ab")
    for i in range(50):
        served(targets[0].stats, 0.2, T0 + i * S // 50)
    assert firsts(LeastLatency(near=0), targets, T0 + 2 * S)["b"] > 200, "hardly known"
    targets[1].stats.begin(1, True, T0 + S)
    assert firsts(LeastLatency(near=0), targets, T0 + 3 * S)["b"] == 0


def test_a_target_without_traffic_is_probed_but_not_often() -> None:
    targets = pool()
    for i in range(50):
        for t, seconds in zip(targets, (0.2, 0.4, 0.4, 0.6), strict=True):
            served(t.stats, seconds, T0 + i * S // 50)
    for i in range(100):
        served(targets[0].stats, 0.2, T0 + S + i * S // 20)
    seen = firsts(LeastLatency(), targets, T0 + 14 * S, n=10_000)
    assert 0.01 < 1 - seen["a"] / 10_000 < 0.03
    assert firsts(LeastLatency(explore=0), targets, T0 + 14 * S)["a"] == 2000


def test_a_cold_target_starts_at_the_median() -> None:
    targets = pool()
    for i in range(50):
        for t, seconds in zip(targets[:3], (0.2, 0.3, 0.8), strict=True):
            served(t.stats, seconds, T0 + i * S // 50)
    why: Why = []
    order = LeastLatency(explore=0).rank(targets, ask(), T0 + S, Random(1), why)
    assert list(order) == [0, 1, 3, 2]
    assert why[3]["score"] == pytest.approx(0.3, rel=0.02)


def test_fast_failures_lose_and_never_gain() -> None:
    targets = pool()
    for i in range(50):
        for t in targets:
            served(t.stats, 0.3, T0 + i * S // 50)
    for i in range(50):
        failed(targets[0].stats, T0 + S + i * S // 50)
    assert firsts(LeastLatency(explore=0), targets, T0 + 2 * S)["a"] == 0


@given(st.floats(0.05, 2.0), st.floats(1.3, 20.0))
def test_more_time_never_means_more_traffic(seconds: float, slower: float) -> None:
    targets = pool("ab")
    for i in range(30):
        served(targets[0].stats, seconds, T0 + i * S // 50)
        served(targets[1].stats, seconds * slower, T0 + i * S // 50)
    assert LeastLatency(explore=0).rank(targets, ask(), T0 + S, Random(1))[0] == 0


def test_what_happens_is_seen_within_twenty_milliseconds() -> None:
    """Scores hold for FRESH_NS: so long is any event unseen, and no longer."""
    targets = pool("ab")
    for i in range(50):
        served(targets[0].stats, 0.2, T0 + i * S // 50)
        served(targets[1].stats, 0.4, T0 + i * S // 50)
    policy, now = LeastLatency(explore=0), T0 + S
    assert policy.rank(targets, ask(), now, Random(1))[0] == 0
    for _ in range(100):
        failed(targets[0].stats, now)
    assert policy.rank(targets, ask(), now + FRESH_NS, Random(1))[0] == 0
    assert policy.rank(targets, ask(), now + FRESH_NS + 1, Random(1))[0] == 1


@given(seen=events, later=st.integers(0, S // 25))
def test_scores_that_are_kept_are_those_that_would_be_reckoned(seen: list[tuple[int, bool, float]], later: int) -> None:
    targets = pool()
    now = live(targets, seen)
    scored(targets, ask(), now)
    kept = scored(targets, ask(), now + later)[0]
    for t in targets:
        t.stats.seen, t.stats.outlook = Stats().seen, None
    assert kept == pytest.approx(scored(targets, ask(), now + later)[0], rel=0.1)


def test_plain_answers_are_compared_at_one_length() -> None:
    targets = pool("ab")
    rng = Random(1)
    for i in range(100):
        for t, per_token, most in zip(targets, (0.01, 0.02), (800, 100), strict=True):
            tokens = rng.randrange(10, most)
            took = int((0.2 + per_token * tokens) * S)
            now = T0 + i * S // 20
            t.stats.begin(i, False, now - took)
            t.stats.whole(i, now - took, tokens, now)
    assert LeastLatency(explore=0).rank(targets, ask(stream=False), T0 + 5 * S, Random(1))[0] == 0


# ---- the others


def test_round_robin_takes_turns() -> None:
    targets = pool()
    seen = []
    for _ in range(8):
        seen.append(RoundRobin().rank(targets, ask(), T0, Random(1))[0])
        assert RoundRobin().rank(targets, ask(), T0, Random(1))[0] == seen[-1], "to look at it takes no turn"
        RoundRobin().took(targets)
    assert seen == [0, 1, 2, 3] * 2


def test_round_robin_in_round_robin_takes_all_turns() -> None:
    heads = pool()
    inner = [Branch(policy=RoundRobin(), children=(0, 1), label="x"), Branch(policy=RoundRobin(), children=(2, 3), label="y")]
    tree = Branch(policy=RoundRobin(), children=tuple(inner), label="r")
    seen = Counter[int]()
    for _ in range(40):
        first = tree.rank(heads, ask(), T0, Random(1))[0]
        tree.took(heads, first)
        seen[first] += 1
    assert seen == {0: 10, 1: 10, 2: 10, 3: 10}


def test_least_busy_counts_by_weight() -> None:
    targets = pool("ab")
    targets[0].weight = 3.0
    targets[0].stats.in_flight, targets[1].stats.in_flight = 4, 1
    assert LeastBusy().rank(targets, ask(), T0, Random(1))[0] == 0
    targets[0].stats.in_flight = 6
    assert LeastBusy().rank(targets, ask(), T0, Random(1))[0] == 1


def test_sticky_sessions_stay_and_move_only_with_their_target() -> None:
    targets = pool()
    policy = Weighted(sticky=True)
    where = {s: targets[policy.rank(targets, ask(session=s), T0, Random(i))[0]].label for i, s in enumerate(map(str, range(400)))}
    shares = Counter(where.values())
    assert all(60 < shares[name] < 140 for name in "abcd")
    for s, name in where.items():
        assert targets[policy.rank(targets, ask(session=s), T0, Random(99))[0]].label == name
        left = targets[policy.rank(targets[:3], ask(session=s), T0, Random(99))[0]].label
        assert name == "d" or left == name


def test_equal_prefixes_go_to_one_target() -> None:
    targets = pool()
    policy = PrefixAffinity(prefix_bytes=64)
    seen = Counter[int]()
    for i in range(200):
        bodies = [b'{"messages":[{"role":"system","content":"%d %s' % (i, b"x" * 100) + tail for tail in (b"one", b"two")]
        places = [policy.rank(targets, ask(body, spans=(-1,) * 6 + (12, len(body)) + (-1,) * 4), T0, Random(j))[0] for j, body in enumerate(bodies)]
        assert places[0] == places[1]
        seen[places[0]] += 1
    assert all(25 < seen[i] < 80 for i in range(4))


def test_tenants_do_not_share_a_prefix() -> None:
    targets = pool()
    places = {PrefixAffinity().rank(targets, ask(principal=Principal("k", f"key:{i}", "0")), T0, Random(1))[0] for i in range(40)}
    assert len(places) == 4


def test_a_popular_prefix_does_not_bury_its_target() -> None:
    targets = pool()
    first = PrefixAffinity().rank(targets, ask(), T0, Random(1))[0]
    targets[first].stats.in_flight = 20
    assert PrefixAffinity().rank(targets, ask(), T0, Random(1))[0] != first


def test_usage_goes_where_most_is_left() -> None:
    targets = [target("a", rpm=100), target("b", rpm=10), target("c", tpm=1000)]
    for i in range(5):
        targets[0].stats.begin(i, True, T0)
        targets[1].stats.begin(i, True, T0)
    targets[2].stats.tokens(100, 900, 50, 0, T0)
    assert list(Usage().rank(targets, ask(), T0, Random(1))) == [0, 1, 2]
    assert Usage().rank(targets, ask(), T0 + 61 * S, Random(1))[0] in (0, 2)


def priced(name: str, dollars: float, **facts: Any) -> Target:
    nanos = int(dollars * 1e9)
    return target(name, price=Price(nanos, nanos), facts=Model(name, name, "chat", **facts), context_tokens=facts.get("context_tokens") or 0)


def test_the_cheapest_that_can_do_it() -> None:
    targets = [priced("big", 10.0, context_tokens=200_000, tools=True), priced("small", 1.0, context_tokens=8_000, tools=False), target("free")]
    assert list(CostOptimized().rank(targets, ask(), T0, Random(1))) == [1, 0, 2]
    assert CostOptimized().rank(targets, ask(b"x" * 80_000), T0, Random(1))[0] == 0
    tools = b'{"tools":[{"type":"function"}]}'
    assert list(CostOptimized().rank(targets, ask(tools), T0, Random(1))) == [0, 2, 1]
    assert CostOptimized().rank(targets, ask(b'{"tools":[]}'), T0, Random(1))[0] == 1


def test_cost_counts_the_answers_that_a_target_gives_and_its_failures() -> None:
    targets = [priced("short", 3.0), priced("wordy", 2.0)]
    for _ in range(3):
        targets[0].stats.tokens(1000, 100, 50, 0, T0)
        targets[1].stats.tokens(1000, 100, 400, 0, T0)
    assert CostOptimized().rank(targets, ask(), T0, Random(1))[0] == 0
    assert CostOptimized().rank(targets, ask(b'{"max_tokens":50}'), T0, Random(1))[0] == 1
    for i in range(50):
        failed(targets[0].stats, T0 + i)
    assert CostOptimized().rank(targets, ask(), T0 + 50, Random(1))[0] == 1


# ---- conditions


@pytest.mark.parametrize(
    ("field", "op", "value", "met"),
    [
        ("team", "eq", "gold", True), ("team", "ne", "gold", False), ("team", "in", ["gold", "silver"], True), ("key", "regex", "^k", True),
        ("tags", "eq", "prod", True), ("tags", "in", ["x", "night"], True), ("tags", "not_in", ["prod"], False), ("tags", "contains", "dev", False),
        ("model", "regex", "^gpt-4", True), ("model", "contains", "4o", True), ("prompt_bytes", "gt", 50, True), ("prompt_tokens", "lt", 10, False),
        ("tools", "eq", True, True), ("tools", "eq", False, False), ("schema", "eq", False, True), ("images", "eq", True, False),
        ("stream", "eq", True, True), ("hour", "gte", 9, True), ("hour", "lt", 9, False), ("surface", "eq", "chat", True),
        ("header.X-Tier", "eq", "enterprise", True), ("header.x-none", "exists", False, True), ("header.x-tier", "exists", True, True),
        ("metadata.user", "eq", "u1", True), ("metadata.age", "gt", 30, True), ("metadata.age", "lte", 30, False), ("metadata.none", "ne", "u", True),
        ("metadata.none", "eq", "u", False), ("session", "exists", False, True),
    ],
)  # fmt: skip
def test_conditions(field: str, op: Any, value: Any, met: bool) -> None:
    body = b'{"model":"gpt-4o-mini","messages":[],"tools":[{"type":"function"}],"metadata":{"user":"u1","age":"42"}}'
    x = ask(
        body,
        model="gpt-4o-mini",
        principal=Principal("key1", "team:gold", "0", team="gold", tags=("prod",)),
        tags="night, shift",
        wall_ns=9 * 3600 * S,
        headers=[(b"x-tier", b"enterprise")],
    )
    condition = Condition(field=field, op=op, value=value)
    assert condition.wrong() == ""
    assert condition.met(x) is met


@given(st.binary(max_size=60), st.sampled_from(["tools", "schema", "images", "metadata.a", "prompt_bytes"]))
def test_a_body_of_any_shape_is_looked_at_without_harm(body: bytes, field: str) -> None:
    assert Condition(field=field, op="exists", value=True).met(ask(body)) in (True, False)


def test_the_first_rule_that_fits_decides_and_nobody_else_is_tried() -> None:
    targets = pool()
    policy = Conditional([Rule([Condition(field="team", value="gold")], ["c"]), Rule([Condition(field="stream", value=True)], ["b", "a"])], ["d"])
    gold = ask(principal=Principal("k", "team:gold", "0", team="gold"))
    assert policy.rank(targets, gold, T0, Random(1)) == [2]
    assert policy.rank(targets, ask(), T0, Random(1)) == [1, 0]
    assert policy.rank(targets, ask(stream=False), T0, Random(1)) == [3]
    assert list(msgspec.structs.replace(policy, otherwise=[]).rank(targets, ask(stream=False), T0, Random(1))) == [0, 1, 2, 3]


def test_a_group_stands_for_its_best() -> None:
    heads = pool()
    for i in range(50):
        for t, seconds in zip(heads, (0.5, 0.9, 0.7, 0.2), strict=True):
            served(t.stats, seconds, T0 + i * S // 50)
    fast = Branch(policy=LeastLatency(explore=0), children=(2, 3), label="fast")
    tree = Branch(policy=LeastLatency(explore=0), children=(0, 1, fast), label="r")
    assert list(tree.rank(heads, ask(), T0 + S, Random(1))) == [3, 2, 0, 1]
    why: Why = []
    tree.rank(heads, ask(), T0 + S, Random(1), why)
    assert why[0]["group"] == "fast"
    assert [line["target"] for line in why[0]["candidates"]][:2] == ["c", "d"]
