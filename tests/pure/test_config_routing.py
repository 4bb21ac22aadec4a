"""Routes with policies and groups: what is refused, where, and what becomes of what is taken."""

import pytest
from config_text import GOOD, load_text, refused

from turnout.route.spec import counting, half_life_s, leaves, tree_of

TARGETS = GOOD.index("    targets:\n")
TWO = "    targets: [{provider: a, model: m, name: x}, {provider: a, model: n, name: y}]\n"


def route(text: str) -> str:
    return GOOD[:TARGETS] + text


@pytest.mark.parametrize(
    "policy",
    [
        "{kind: least-latency, near: 0.1, explore: 0.01, half_life_s: 30}", "{kind: round-robin}", "{kind: least-busy}", "{kind: weighted, sticky: true}",
        "{kind: cost-optimized, usd_per_s: 0.001}", "{kind: prefix-affinity, prefix_bytes: 2048}",
        "{kind: conditional, rules: [{if: [{field: team, op: in, value: [gold]}], to: [y]}, {if: [{field: metadata.tier, value: 3}], to: [y, x]}], otherwise: [x]}",
    ],
)  # fmt: skip
def test_each_policy_is_taken(policy: str) -> None:
    loaded = load_text(route(f"{TWO}    routing_policy: {policy}\n"))
    assert type(loaded.config.routes[0].routing_policy).__struct_config__.tag in policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TWO + "    routing_policy: {kind: fastest}\n", "routing_policy.kind: expected one of ordered, weighted"),
        (TWO + "    routing_policy: {kind: least-latency, near: 2}\n", "routing_policy.near: expected float <= 1"),
        (TWO + "    routing_policy: {kind: usage}\n", "targets: policy usage needs `rpm` or `tpm` of at least one target"),
        (TWO.replace("name: x", "weight: 0").replace("name: y", "weight: 0") + "    routing_policy: {kind: least-busy}\n", "targets: all weights are 0: a least-busy route"),
        (TWO + "    routing_policy: {kind: conditional, rules: []}\n", "routing_policy.rules: no rule"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [], to: [x]}]}\n", "routing_policy.rules[0].if: no condition"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, value: g}], to: [z]}]}\n", "routing_policy.rules[0].to[0]: no such target here; known: x, y"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, value: g}], to: []}]}\n", "routing_policy.rules[0].to: names no target"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, value: g}], to: [x]}], otherwise: [x, x]}\n", "routing_policy.otherwise[1]: stands here twice"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: temper, value: g}], to: [x]}]}\n", "if[0].field: no such field; known"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, op: like, value: g}], to: [x]}]}\n", "if[0].op: expected one of eq, ne"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: prompt_tokens, op: gt, value: many}], to: [x]}]}\n", "if[0].value: gt takes a number"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: tools, value: 'yes'}], to: [x]}]}\n", "if[0].value: tools is true or false"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, op: gt, value: 3}], to: [x]}]}\n", "if[0].value: gt compares numbers: team is none"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: team, op: in, value: g}], to: [x]}]}\n", "if[0].value: in takes a list"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: model, op: regex, value: '('}], to: [x]}]}\n", "if[0].value: not a regular expression"),
        (TWO + "    routing_policy: {kind: conditional, rules: [{if: [{field: header.Authorization, value: g}], to: [x]}]}\n", "if[0].field: carries a credential"),
        (TWO.replace("name: y", "name: x"), "targets[1].name: another target of this route, targets[0], is called 'x' already"),
        ("    targets: [{model: m}]\n", "targets[0].provider: required, but missing"),
        ("    targets: [{provider: b}]\n", "targets[0].provider: no such provider; configured: a"),
        ("    targets: [{name: g, targets: [{provider: b}]}]\n", "targets[0].targets[0].provider: no such provider; configured: a"),
        ("    targets: [{targets: [{provider: a}]}]\n", "targets[0].name: required for a group"),
        ("    targets: [{name: g, model: m, targets: [{provider: a}]}]\n", "targets[0].model: a group has none of its own"),
        ("    targets: [{provider: a, routing_policy: {kind: ordered}}]\n", "targets[0].routing_policy: belongs to a group"),
        ("    targets: [{name: g, routing_policy: {kind: weighted}, targets: [{provider: a, weight: 0}]}]\n", "targets[0].targets: all weights are 0: a weighted route"),
        ("    targets: &all [{name: g, targets: *all}]\n", "nested more than"),
        (TWO + "    hedge: {budget: 0}\n", "hedge.budget: expected float > 0"),
        (TWO + "    hedge: {budget: 0.6}\n", "hedge.budget: expected float <= 0.5"),
        (TWO + "    hedge: {quantile: 95}\n", "hedge.quantile: expected float < 1"),
        (TWO + "    hedge: {least_ms: fast}\n", "hedge.least_ms: expected int"),
        (TWO + "    hedge: {after_ms: 100}\n", "hedge.after_ms: unknown field"),
        (TWO + "    hedge: true\n", "hedge: expected mapping"),
        ("    targets: [{provider: a, model: m}]\n    hedge: {}\n", "hedge: this route has one target: there is nobody else to ask"),
        ("    targets: [{provider: a, rpm: 0}]\n", "targets[0].rpm: expected int >= 1"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_with_its_path(text: str, says: str) -> None:
    lines = refused(route(text))
    assert any(says in line for line in lines), lines
    assert all(line.startswith("turnout.yaml:") and "routes[0]." in line for line in lines)


def test_groups_in_groups_have_an_end() -> None:
    text = "{provider: a, name: leaf}"
    for i in range(7):
        text = f"{{name: g{i}, targets: [{text}]}}"
    assert any("nested more than" in line for line in refused(route(f"    targets: [{text}]\n")))


def test_groups_are_opened_from_left_to_right() -> None:
    text = (
        "    targets:\n"
        "      - {name: fast, routing_policy: {kind: least-latency, half_life_s: 20}, targets: [{provider: a, model: m}, {provider: a, model: n}]}\n"
        "      - {provider: a, model: o, weight: 2}\n"
    )
    spec = load_text(route(text)).config.routes[0]
    tree = tree_of(spec)
    assert tree is not None
    assert [leaf.model for leaf in leaves(spec)] == ["m", "n", "o"]
    assert tree.children[0].children == (0, 1)  # type: ignore[union-attr]
    assert tree.children[1] == 2
    assert counting(spec)
    assert half_life_s(spec) == 20


def test_policies_that_need_no_statistics_keep_none() -> None:
    assert not counting(load_text(route(TWO)).config.routes[0])
    assert tree_of(load_text(route(TWO)).config.routes[0]) is None


def test_hedging_is_off_until_asked_for_and_keeps_statistics_then() -> None:
    off, on = (load_text(route(TWO + more)).config.routes[0] for more in ("", "    hedge: {}\n"))
    assert off.hedge is None
    assert on.hedge is not None
    assert (on.hedge.budget, on.hedge.quantile) == (0.05, 0.95)
    assert (counting(off), counting(on)) == (False, True)


def test_two_accounts_of_one_target_are_two_to_hedge_with() -> None:
    text = GOOD[:TARGETS].replace("api_key: env:A_KEY", "accounts: [{name: one, api_key: env:A}, {name: two, api_key: env:B}]")
    text += "    targets: [{provider: a, model: m}]\n    hedge: {}\n"
    assert load_text(text).config.routes[0].hedge is not None
