"""What a request is known by: everything that may change its answer, and nothing else."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from support.routing import ask
from turnout.cache.entry import Entry
from turnout.cache.flight import Flights
from turnout.cache.memory import Memory
from turnout.cache.policy import LOOKED_AT, MOST_MET, Policy
from turnout.cache.spec import CacheSpec, Exact
from turnout.config.load import load_data
from turnout.config.version import facts_of, version_of
from turnout.exchange import Exchange, Principal
from turnout.wire.request import RequestReader

BASE: dict[str, Any] = {
    "model": "fast",
    "messages": [
        {"role": "system", "content": "You are a clerk."},
        {"role": "user", "content": [{"type": "text", "text": "what is in it?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "user", "content": "and what does it do?"},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}}],
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "json_object"}, "stop": ["\n\n"], "n": 1, "seed": 7, "temperature": 0,
    "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {"50256": -100}, "logprobs": False, "top_logprobs": 0, "max_tokens": 100,
    "max_completion_tokens": 100, "reasoning_effort": "low", "modalities": ["text"], "user": "u-1", "metadata": {"run": "1"}, "service_tier": "auto",
}  # fmt: skip
SPEC = CacheSpec(exact=Exact(ttl_s=60))
READER = RequestReader(LOOKED_AT)


def policy_of(spec: CacheSpec, *parts: Any, **more: Any) -> Policy:
    return Policy(spec, READER.names, *parts, **more)


POLICY = policy_of(SPEC, b"v1")


def request(body: Any, tenant: str = "team:a", **more: Any) -> Exchange:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(raw, principal=Principal("k", tenant, "000000"), spans=READER.scan(raw), **more)


def digest(body: Any, tenant: str = "team:a", policy: Policy = POLICY, **more: Any) -> bytes:
    return policy.digest(request(body, tenant, **more))


def changed(value: Any) -> Iterator[Any]:
    """Every value that differs from this one in a single place: another leaf, one more or one less of anything."""
    if isinstance(value, dict):
        for name in value:
            rest = {k: v for k, v in value.items() if k != name}
            yield rest
            yield {**rest, name + "x": value[name]}
            yield from ({**value, name: inner} for inner in changed(value[name]))
        yield {**value, "unheard_of": 1}
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield value[:i] + value[i + 1 :]
            yield [*value[: i + 1], item, *value[i + 1 :]]
            yield from ([*value[:i], inner, *value[i + 1 :]] for inner in changed(item))
        if value != value[::-1]:
            yield value[::-1]
        yield [*value, "x"]
    elif isinstance(value, str):
        yield from (value + "x", value[:-1], value.swapcase() if value.swapcase() != value else value + " ", " " + value)
    elif isinstance(value, bool):
        yield from (not value, None, int(value))
    elif isinstance(value, int):
        yield from (value + 1, -value - 1, value + 0.5, str(value), None)
    else:
        yield from ("", False, 0, [], {})


def test_every_change_in_a_single_place_changes_the_digest() -> None:
    seen = {digest(BASE): "the request itself"}
    count = 0
    for body in changed(BASE):
        assert json.dumps(body, sort_keys=True) != json.dumps(BASE, sort_keys=True)
        count += 1
        assert digest(body) != digest(BASE), body
        seen[digest(body)] = ""
    assert count > 300
    assert len(seen) > 0.98 * count  # few of them are each other's twins (a name twice in a list of two)


def test_transport_and_spelling_do_not() -> None:
    one = digest(BASE)
    for more in ({"stream": True}, {"stream": False}, {"stream": True, "stream_options": {"include_usage": True}}):
        assert digest({**BASE, **more}) == one
    chance = random.Random(1)
    for _ in range(50):
        names = list(BASE)
        chance.shuffle(names)
        shuffled = json.loads(json.dumps({name: BASE[name] for name in names}), object_hook=lambda o: dict(chance.sample(list(o.items()), len(o))))
        assert digest(json.dumps(shuffled, indent=chance.choice([None, 1]), ensure_ascii=chance.choice([True, False])).encode()) == one


def test_of_a_name_that_stands_twice_both_count() -> None:
    """Parsers differ about which one is meant: nobody is answered with what another one's upstream made of it."""
    twice, once, other = b'{"m":[{"a":1,"a":2}]}', b'{"m":[{"a":2}]}', b'{"m":[{"a":2,"a":1}]}'
    assert len({digest(body) for body in (twice, once, other)}) == 3


def test_who_asks_and_by_which_route_are_part_of_it() -> None:
    others = [
        digest(BASE, "team:b"), digest(BASE, "key:a"), digest(BASE, "team:"), digest(BASE, policy=policy_of(SPEC, b"v2")),
        digest(BASE, policy=policy_of(SPEC, b"v1", ((b"top_p", b"0.5"),))),
        digest(BASE, forward=[(b"openai-beta", b"x")]), digest(BASE, forward=[(b"openai-beta", b"y")]),
        digest(BASE, policy=policy_of(SPEC, b"v1", facts=lambda x: b"1")), digest(BASE, policy=policy_of(SPEC, b"v1", facts=lambda x: b"0")),
    ]  # fmt: skip
    assert len({digest(BASE), *others}) == 1 + len(others)
    assert digest(BASE, forward=[(b"idempotency-key", b"x")]) == digest(BASE)


def test_parts_cannot_be_moved_from_one_to_the_next() -> None:
    assert policy_of(SPEC, b"v1").digest(request(BASE, "ab")) != policy_of(SPEC, b"v1a").digest(request(BASE, "b"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, ""), ({"temperature": 0}, ""), ({"temperature": 0.0}, ""), ({"temperature": None}, ""), ({"n": 1}, ""), ({"n": None, "best_of": 1}, ""),
        ({"temperature": 0.01}, "sampled"), ({"temperature": 1}, "sampled"), ({"temperature": "0"}, "sampled"), ({"temperature": True}, "sampled"), ({"temperature": False}, "sampled"),
        ({"temperature": [0]}, "sampled"), ({"n": 2}, "n"), ({"n": 0}, "n"), ({"n": 1.0}, "n"), ({"best_of": 3}, "n"), ({"n": "1"}, "n"),
    ],
)  # fmt: skip
def test_what_is_meant_to_be_repeatable(body: dict[str, Any], reason: str) -> None:
    assert POLICY.why_not(request({"model": "m", "messages": [], **body})) == reason


def test_spellings_of_zero_and_of_names() -> None:
    for raw, reason in ((b'{"temperature":0e5}', ""), (b'{"temperature":-0}', ""), (b'{"temp\\u0065rature":1}', "sampled")):
        assert POLICY.why_not(request(raw)) == reason


def test_a_route_may_share_what_is_sampled_and_may_set_it() -> None:
    share = policy_of(CacheSpec(exact=Exact(ttl_s=1), sampled="share"), b"")
    assert share.why_not(request({"temperature": 1})) == "" and share.why_not(request({"n": 2})) == "n"
    fixed = policy_of(SPEC, b"", ((b"temperature", b"0"),))
    assert fixed.why_not(request({"temperature": 1})) == ""
    assert digest({"a": 1, "temperature": 1}, policy=fixed) == digest({"a": 1}, policy=fixed)
    hot = policy_of(SPEC, b"", ((b"temperature", b"0.9"),))
    assert hot.why_not(request({"temperature": 0})) == "sampled"


def test_labels_that_a_route_leaves_out() -> None:
    policy = policy_of(CacheSpec(exact=Exact(ttl_s=1), ignore=["user", "metadata"]), b"")
    assert digest({"a": 1, "user": "x", "metadata": {"b": 2}}, policy=policy) == digest({"a": 1}, policy=policy)


def test_large_bodies_are_known_by_the_same_rules() -> None:
    """Their hashes are remembered: only for the very bytes, and not across tenants."""
    large = {**BASE, "messages": [{"role": "user", "content": "long " * 2000}]}
    policy = policy_of(SPEC, b"v1")
    one = digest(large, policy=policy)
    for _ in range(2):
        assert digest(large, policy=policy) == one == digest(dict(reversed(large.items())), policy=policy) == digest({**large, "stream": True}, policy=policy)
        assert digest(large, "team:b", policy=policy) != one != digest({**large, "seed": 8}, policy=policy)
    for n in range(200):
        assert digest({**large, "seed": n}, policy=policy) == digest({**large, "seed": n})
    assert len(policy._met) <= MOST_MET


# ---- the version of a route

ROUTE: dict[str, Any] = {"name": "r", "match": {"model": "fast"}, "targets": [{"provider": "a", "model": "m1"}, {"provider": "b", "model": "m2"}], "set": {"top_p": 1}}
PROVIDERS: dict[str, Any] = {"a": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}, "b": {"kind": "openai", "base_url": "http://127.0.0.1:2/v1"}}


def version(route: dict[str, Any] | None = None, **providers: Any) -> bytes:
    data = {"providers": {**PROVIDERS, **providers}, "routes": [{**ROUTE, **(route or {})}], "auth": {"keys": [{"name": "k", "key": "env:K"}]}}
    config = load_data(data, resolver=lambda ref: "sk-0123456789abcdef0123456789").config
    return version_of(config.routes[0], config)


def test_what_changes_answers_changes_a_routes_version_and_nothing_else_does() -> None:
    one = version()
    other = [
        version({"name": "s"}), version({"targets": ROUTE["targets"][:1]}), version({"targets": [{"provider": "a", "model": "m3"}, ROUTE["targets"][1]]}),
        version({"set": {"top_p": 0.5}}), version({"set": {}}), version(a={"kind": "openai", "base_url": "http://127.0.0.1:3/v1"}),
        version(a={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "headers": {"openai-beta": "x"}}),
        version({"routing_policy": {"kind": "conditional", "rules": [{"if": [{"field": "team", "value": "x"}], "to": ["a/m1"]}], "otherwise": ["b/m2"]}}),
    ]  # fmt: skip
    assert len({one, *other}) == 1 + len(other)
    for same in ({"retries": {"max": 0}}, {"timeouts": {"connect_ms": 5}}, {"routing_policy": {"kind": "weighted"}}, {"cache": {"exact": {"ttl_s": 5}}}, {"plain": "assemble"}):
        assert version(same) == one


def test_how_a_request_meets_a_routes_conditions_is_part_of_it() -> None:
    data = {"providers": PROVIDERS, "routes": [{**ROUTE, "routing_policy": {"kind": "conditional", "rules": [{"if": [{"field": "header.tier", "value": "gold"}], "to": ["a/m1"]}], "otherwise": ["b/m2"]}}], "auth": {"keys": [{"name": "k", "key": "env:K"}]}}
    config = load_data(data, resolver=lambda ref: "sk-0123456789abcdef0123456789").config
    policy = policy_of(SPEC, b"", facts=facts_of(config.routes[0]))
    gold, other, none = (digest(BASE, policy=policy, headers=h) for h in ([(b"tier", b"gold")], [(b"tier", b"tin")], []))
    assert gold != other == none


# ---- isolation


def entry(key: bytes, tenant: str) -> Entry:
    return Entry(
        digest=key, body=b"{}", tenant=tenant, route="r", model="m", key="k", tags="", provider="p", served_model="m", finish="stop", prompt=1, completion=1,
        cost_nanos=100, stored_ns=0, fresh_ns=1 << 62, dead_ns=1 << 62,
    )  # fmt: skip


def test_nobody_finds_what_is_not_the_very_same(full: bool) -> None:
    """100,000 look-ups (in the long form) by other tenants, routes, prompts, tools, images and parameters: no hit, in the cache
    and among the calls under way, also while entries are evicted."""
    memory, flights = Memory(4 << 20, 4 << 20), Flights()
    bodies = [dict(BASE, seed=n) for n in range(50)]
    kept = {}
    for n, body in enumerate(bodies):
        key = digest(body, f"team:{n % 5}")
        kept[key] = n
        memory.put(entry(key, f"team:{n % 5}"), 0)
        flights.begin((key, False, False), True)
    variants = list(changed(BASE))
    chance = random.Random(3)
    lookups = 100_000 if full else 10_000
    for _ in range(lookups):
        body = copy.copy(chance.choice(variants))
        tenant = f"team:{chance.randrange(6)}"
        if chance.random() < 0.3:
            body = dict(BASE)  # the very text, but by another tenant or another seed
        body["seed"] = chance.randrange(60)
        if body == dict(BASE, seed=body["seed"]) and body["seed"] < 50 and tenant == f"team:{body['seed'] % 5}":
            tenant = "team:other"
        key = digest(body, tenant)
        assert key not in kept
        assert memory.find(key, 1) is None and flights.find((key, False, False)) is None
        memory.put(entry(key, tenant), 1)  # and the cache is washed through
        memory.drop(found) if (found := memory.find(key, 1)) is not None else None
    for key, n in kept.items():
        assert (memory.find(key, 1) is not None) and flights.find((key, False, False)) is not None, n
