"""The semantic cache over sockets: an answer is given to who asks the same in other words, and to nobody else."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from test_cache import CHAT, MATE_KEY, OTHER_KEY, outcome
from test_sdk import PRICES, booked

from support.gateway import ADMIN_KEY, KEY, TRUST, Gateway, config
from support.scholar import Scholar

FIRST, SAME, TRAP = "How do I cook rice?", "How can I cook rice?", "How do I cook rice in 20 minutes?"
_numbers = itertools.count()


def answer(question: str, number: int) -> str:
    """The same to the same topic; of `moody` things never twice the same; and of some things wrongly the second time."""
    if "moody" in question:
        return f"it depends, this time on {number}"
    if "cured" in question or "healed" in question:
        return "yes, within days" if "cured" in question else "no, it is with you for life"
    return "It takes 2 cups of water for each cup of rice."


@pytest.fixture(scope="module")
def scholar() -> Iterator[Scholar]:
    with Scholar(answer) as scholar:
        yield scholar


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], scholar: Scholar) -> Gateway:
    def route(name: str, **semantic: Any) -> dict[str, Any]:
        cache = {"exact": {"ttl_s": 600, "jitter": 0}, "semantic": {"deep": "off", **semantic}}
        return {"name": name, "match": {"model": name}, "targets": [{"provider": "a", "model": "gpt-4o-mini"}], "cache": cache}

    quiet = {"checks": {"share": 0, "first": 0}}
    routes = [
        route("fast", **quiet), route("checked", checks={"share": 1, "first": 50}), route("all", share="route", **quiet), route("mine", share="key", **quiet),
        route("told", **quiet), {**route("alone"), "cache": {"semantic": {"ttl_s": 600, "deep": "off", **quiet}}},
        {**route("off"), "cache": {"exact": {"ttl_s": 600}}},
    ]  # fmt: skip
    data = config({"a": scholar.url}, routes, models=PRICES)
    data["auth"]["keys"] += [{"name": "other", "key": "env:OTHER"}, {"name": "mate", "key": "env:MATE", "team": "crew"}, {"name": "mate2", "key": "env:MATE2", "team": "crew"}]
    return serve(data, env={"OTHER": OTHER_KEY, "MATE": MATE_KEY, "MATE2": MATE_KEY + "2"})


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


@pytest.fixture
def own() -> list[dict[str, str]]:
    """A system prompt that no other test has: a scope of one's own."""
    return [{"role": "system", "content": f"test {next(_numbers)} {random.random()}"}]


def say(client: httpx.Client, own: list[dict[str, str]], text: Any, model: str = "fast", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    found = client.post(CHAT, json={"model": model, "messages": [*own, {"role": "user", "content": text}], **more}, headers=headers)
    assert found.status_code == 200, found.text
    return found


def by(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, verify=TRUST)


def hits(found: httpx.Response) -> bool:
    return outcome(found).startswith("hit-semantic;sim=")


def semantic(gateway: Gateway) -> list[dict[str, Any]]:
    found = gateway.admin("/admin/cache/semantic").json()
    return [row for worker in found["workers"] for row in worker["namespaces"]]


def test_who_asks_the_same_in_other_words_gets_the_answer(client: httpx.Client, own: Any, scholar: Scholar) -> None:
    first = say(client, own, FIRST)
    before = len(scholar.asked)
    again = say(client, own, SAME)
    assert (outcome(first), hits(again), len(scholar.asked)) == ("miss", True, before)
    assert again.json() == first.json()
    assert 0.9 < float(outcome(again).partition("=")[2]) <= 1.0
    assert again.headers["x-turnout-cache-key"] == first.headers["x-turnout-cache-key"]
    assert (again.headers["age"], again.headers["x-turnout-attempts"], again.headers["x-turnout-cost-usd"]) == ("0", "0", "0.000000000")
    assert outcome(say(client, own, FIRST)) == "hit-exact"


def test_a_hit_is_replayed_as_the_stream_that_was_asked_for(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    whole = say(client, own, FIRST).json()
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(model="fast", messages=[*own, {"role": "user", "content": SAME}], stream=True)
        assert raw.headers["x-turnout-cache"].startswith("hit-semantic")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
    assert text == whole["choices"][0]["message"]["content"]


def test_a_streamed_answer_is_kept_too(client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST, stream=True)
    assert Gateway.wait_for(lambda: hits(say(client, own, SAME)))


def test_what_looks_alike_and_asks_for_another_thing_is_not_given(client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST)
    for trap in (TRAP, "How do I not cook rice?", "How do I cook pasta?", "How do I cook rice on Mars?"):
        assert outcome(say(client, own, trap)) == "miss", trap


def test_another_context_is_another_question(client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    for more in ({"max_tokens": 5}, {"seed": 1}, {"response_format": {"type": "json_object"}}, {"stop": ["x"]}, {"user": "someone"}):
        assert outcome(say(client, own, SAME, **more)) == "miss", more
    assert outcome(say(client, [*own, *turns], SAME)) == outcome(say(client, [*own, own[0]], SAME)) == "miss"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert outcome(say(client, own, [{"type": "text", "text": SAME}, image])) == "miss"
    assert outcome(say(client, own, SAME, model="alone")) == "miss"
    assert hits(say(client, own, SAME))


def test_tenants_share_nothing_unless_the_route_says_so(gateway: Gateway, own: Any) -> None:
    keys = (KEY, OTHER_KEY, MATE_KEY, MATE_KEY + "2")
    texts = (FIRST, SAME, FIRST, SAME)
    said = {}
    for model in ("fast", "mine", "all"):
        found = []
        for key, text in zip(keys, texts, strict=True):
            with by(gateway, key) as one:
                found.append(say(one, own, text, model))
        said[model] = [hits(one) for one in found]
        if model == "all":  # whose answer it was is nobody's business
            assert all("x-turnout-cache-key" not in one.headers and "age" not in one.headers for one in found[1:])
    assert said == {"fast": [False, False, False, True], "mine": [False] * 4, "all": [False, True, True, True]}


def test_a_route_needs_no_exact_cache_for_it(client: httpx.Client, own: Any) -> None:
    said = [outcome(say(client, own, text, "alone")) for text in (FIRST, SAME, FIRST)]
    assert (said[0], said[1][:12], said[2]) == ("miss", "hit-semantic", "hit-exact")
    assert [outcome(say(client, own, text, "off")) for text in (FIRST, SAME)] == ["miss", "miss"]


def test_a_caller_may_only_raise_the_bar(client: httpx.Client, own: Any, scholar: Scholar) -> None:
    say(client, own, FIRST)
    for header in ({"x-turnout-cache": "exact"}, {"x-turnout-cache": "sim=1"}, {"cache-control": "no-cache"}, {"cache-control": "max-age=0"}, {"x-turnout-cache": "off"}):
        before = len(scholar.asked)
        text = f"{SAME} {'?' * next(_numbers)}"
        assert not hits(say(client, own, text, headers=header)) and len(scholar.asked) == before + 1, header
    assert hits(say(client, own, "How do I cook rice", headers={"x-turnout-cache": "sim=0.5"}))
    other = [{"role": "system", "content": f"{own[0]['content']} and another"}]
    assert [outcome(say(client, other, text, headers={"cache-control": "no-store"})) for text in (FIRST, SAME)] == ["miss", "miss"]
    wrong = client.post(CHAT, json={"model": "fast", "messages": [*own, {"role": "user", "content": SAME}]}, headers={"x-turnout-cache": "sim=2"})
    assert wrong.status_code == 400 and "sim=0..1" in wrong.json()["error"]["message"]


def test_short_volatile_and_tool_questions_are_only_their_own(client: httpx.Client, own: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    for texts, more in ((("and then what", "And then what?"), {}), (("who won the cup today", "who won the cup today?"), {}), ((FIRST, SAME), {"tools": tools})):
        assert [outcome(say(client, own, text, **more)) for text in texts] == ["miss", "miss"]


def test_a_hit_is_checked_behind_the_clients_back_and_booked(gateway: Gateway, client: httpx.Client, own: Any, scholar: Scholar) -> None:
    say(client, own, FIRST, "checked")
    before = len(scholar.asked)
    found = say(client, own, SAME, "checked")
    assert hits(found)
    assert Gateway.wait_for(lambda: len(scholar.asked) > before)
    # Its own fresh answer is kept.
    assert Gateway.wait_for(lambda: outcome(say(client, own, SAME, "checked", headers={"x-turnout-cache": "read"})).startswith("hit-exact"))
    (check,) = Gateway.wait_for(lambda: booked(gateway, found.headers["x-request-id"] + "-check"))
    assert check.cost_nanos > 0
    (hit,) = booked(gateway, found.headers["x-request-id"])
    assert (hit.cause, hit.cost_nanos) == ("cache", 0) and hit.saved_nanos > 0

    def known() -> bool:
        return any(row["route"] == "checked" and row["labels"] > 0.9 and row["wrong_rate"] == 0 for row in semantic(gateway))

    assert Gateway.wait_for(known)


def test_an_answer_that_is_never_twice_the_same_proves_nothing(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    """A hit whose fresh answer differs is asked once more; when that differs too, the question is what varies."""
    say(client, own, "Why is my cat moody?", "checked")
    assert hits(say(client, own, "Why is my cat so moody?", "checked")) or hits(say(client, own, "why is my cat moody", "checked"))
    labels = {"route": "checked", "kind": "check"}
    assert Gateway.wait_for(lambda: gateway.metric("turnout_semantic_labels_total", **labels, verdict="unclear") >= 1)
    assert gateway.metric("turnout_semantic_labels_total", **labels, verdict="wrong") == 0


def feedback(client: httpx.Client, **what: Any) -> httpx.Response:
    return client.post("/v1/cache/feedback", json=what)


def test_a_user_may_say_that_it_was_wrong(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST, "told")
    found = say(client, own, SAME, "told")
    entry = found.headers["x-turnout-cache-key"]
    with by(gateway, OTHER_KEY) as other:
        assert feedback(other, entry=entry, verdict="bad").json() == {"known": False}
    assert hits(say(client, own, "how do i cook rice", "told"))
    assert feedback(client, entry=entry, verdict="bad").json() == {"known": True}
    assert outcome(say(client, own, SAME, "told")) == "miss"
    assert [feedback(client, **what).status_code for what in ({}, {"entry": entry}, {"entry": "x", "verdict": "bad"}, {"entry": entry, "verdict": "?"})] == [400] * 4
    assert client.get("/v1/cache/feedback").status_code == 405
    assert httpx.post(gateway.url + "/v1/cache/feedback", json={}, trust_env=False).status_code == 401


def test_a_purge_takes_the_questions_too(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    with by(gateway, OTHER_KEY) as other:
        for one in (client, other):
            say(one, own, FIRST)
            assert hits(say(one, own, SAME))
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        purged = httpx.post(f"{gateway.admin_url}/admin/cache/purge?tenant=key:other&dry=false", headers=admin, trust_env=False).json()
        assert purged["questions"] >= 1
        assert outcome(say(other, own, "how do i cook rice")) == "miss"
        assert hits(say(client, own, "how do i cook rice"))


def test_what_is_seen(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST)
    say(client, own, SAME)
    say(client, own, TRAP)
    text = gateway.admin("/metrics").text
    for line in ('turnout_semantic_total{route="fast",outcome="hit"}', 'turnout_cache_false_hit_rate{route="fast",tenant="key:tester",bound="high"}', 'outcome="hit-semantic"'):
        assert line in text
    rows = [row for row in semantic(gateway) if row["route"] == "fast" and row["tenant"] == "key:tester"]
    assert rows and rows[0]["requests"] >= 3 and 0 <= rows[0]["low"] <= rows[0]["wrong_rate"] <= rows[0]["high"]
    assert json.dumps(rows)
    assert "cook" not in text  # questions are for the admin view alone


def test_an_operator_may_look_at_an_entry(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST)
    entry = say(client, own, SAME).headers["x-turnout-cache-key"]
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = gateway.admin_url + "/admin/cache/semantic?entry="
    (found,) = [row for worker in httpx.get(url + entry, headers=admin, trust_env=False).json()["workers"] for row in worker["entries"]]
    assert (found["question"], found["route"], found["tenant"], found["hits"]) == (FIRST, "fast", "key:tester", 1)
    assert httpx.get(url + "xyz", headers=admin, trust_env=False).status_code == 400
    assert httpx.get(url + entry, trust_env=False).status_code == 401


def test_the_calibration_is_a_picture(gateway: Gateway, client: httpx.Client, own: Any) -> None:
    say(client, own, FIRST)
    say(client, own, SAME)
    url = gateway.admin_url + "/admin/cache/calibration?route="
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    found = httpx.get(url + "fast&tenant=key:tester", headers=admin, trust_env=False)
    assert (found.status_code, found.headers["content-type"], found.content[:8]) == (200, "image/png", b"\x89PNG\r\n\x1a\n")
    assert [httpx.get(url + name, headers=admin, trust_env=False).status_code for name in ("off", "no", "fast&tenant=nobody")] == [404] * 3


def test_the_command_line_shows_it_too(gateway: Gateway, client: httpx.Client, own: Any, tmp_path: Path) -> None:
    say(client, own, FIRST)
    entry = say(client, own, SAME).headers["x-turnout-cache-key"]

    def cli(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "TURNOUT_ADMIN_KEY": ADMIN_KEY}
        return subprocess.run([sys.executable, "-m", "turnout", "cache", "--admin", gateway.admin_url, *args], capture_output=True, text=True, timeout=30, env=env)

    assert f'"question": "{FIRST}"' in cli("--semantic", "--entry", entry).stdout
    assert '"wrong_rate"' in cli("--semantic").stdout
    picture = tmp_path / "calibration.png"
    assert cli("--calibration", str(picture), "--route", "fast").returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli("--calibration", str(picture), "--route", "off").returncode == 1
    assert cli("--semantic", "--key", "x").returncode == 2


def test_it_is_there_after_a_restart(gateway: Gateway, own: Any) -> None:
    with gateway.client() as client:
        first = say(client, own, FIRST)
    gateway.stop()
    gateway.start()
    with gateway.client() as client:
        # The first look only makes the scope known, and leaves nothing behind.
        asked = Gateway.wait_for(lambda: hits(found := say(client, own, SAME, headers={"x-turnout-cache": "read"})) and found)
    assert asked.json() == first.json()
