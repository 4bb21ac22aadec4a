"""The exact cache over sockets: an answer is given again to who asks the very same, in whatever form, and to nobody else."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from test_sdk import FAST, HELLO, PRICES, WEATHER, booked

from faults.server import TEXT, FaultServer
from support.gateway import ADMIN_KEY, KEY, Gateway, config

OTHER_KEY, MATE_KEY = "sk-other-0123456789abcdef", "sk-mate-0123456789abcdef"
CHAT = "/v1/chat/completions"
KEPT = {"exact": {"ttl_s": 600, "jitter": 0}}


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], a: FaultServer) -> Gateway:
    def route(name: str, *providers: str, cache: Any = KEPT, models: tuple[str, ...] = ("gpt-4o-mini",), **more: Any) -> dict[str, Any]:
        targets = [{"provider": p, "model": m} for p, m in zip(providers, (models * 2)[: len(providers)], strict=True)]
        return {"name": name, "match": {"model": name}, "targets": targets, "cache": cache, **more}

    providers: dict[str, Any] = {
        "sim": FAST,
        "a": a.url,
        "down": a.at("500"),
        "tools": a.at("tools:n=2"),
        "cut": a.at("cut-reset:after=4"),
        "on": a.at("go-on"),
        "fails": a.at("400"),
    }
    routes = [
        route("sim", "sim", models=("sim-small",)),
        route("embed", "sim", models=("sim-embed",)),
        route("fast", "a"),
        route("off", "a", cache=None),
        route("shared", "a", cache={**KEPT, "sampled": "share"}),
        route("labels", "a", cache={**KEPT, "ignore": ["user"]}),
        route("brief", "a", cache={"exact": {"ttl_s": 0.3, "jitter": 0}}),
        route("stale", "a", cache={"exact": {"ttl_s": 0.3, "jitter": 0, "stale_s": 600}}),
        route("small", "a", cache={"exact": {"ttl_s": 600, "max_kb": 1}}, set={"temperature": 0}),
        route("tools", "tools"),
        route("assembled", "a", plain="assemble"),
        route("fallen", "down", "a", models=("gpt-4o", "gpt-4o-mini")),
        route("elsewhere", "down", "a"),
        route("joined", "cut", "on"),
        route("refused", "fails"),
        route("down", "down", retries={"max": 0}),
    ]
    data = config(providers, routes, models=PRICES)
    data["auth"]["keys"] += [{"name": "other", "key": "env:OTHER"}, {"name": "mate", "key": "env:MATE", "team": "crew"}, {"name": "mate2", "key": "env:MATE2", "team": "crew"}]
    return serve(data, env={"OTHER": OTHER_KEY, "MATE": MATE_KEY, "MATE2": MATE_KEY + "2"})


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


@pytest.fixture(scope="module")
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def ask(client: httpx.Client, model: str, text: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": text}], **more}, headers=headers)


def outcome(answer: httpx.Response) -> str:
    return answer.headers["x-turnout-cache"]


def ask_till_kept(client: httpx.Client, model: str, text: str, **more: Any) -> httpx.Response:
    """A stream is put together behind its end, so the very next request may still miss it: ask until it is there."""
    answers: list[httpx.Response] = []

    def kept() -> bool:
        answers.append(ask(client, model, text, **more))
        return outcome(answers[-1]) == "hit-exact"

    assert Gateway.wait_for(kept)
    return answers[-1]


# ---- what an SDK makes of it


def test_a_hit_is_the_same_answer_and_says_so(sdk: openai.OpenAI) -> None:
    first, again = (sdk.chat.completions.with_raw_response.create(model="sim", messages=HELLO) for _ in range(2))
    assert (first.headers["x-turnout-cache"], again.headers["x-turnout-cache"]) == ("miss", "hit-exact")
    assert again.parse() == first.parse()
    assert again.headers["age"] == "0"
    assert (again.headers["x-turnout-provider"], again.headers["x-turnout-attempts"], again.headers["x-turnout-cost-usd"]) == ("sim", "0", "0.000000000")
    assert first.headers["x-turnout-cache-key"] == again.headers["x-turnout-cache-key"]
    assert first.headers["x-request-id"] != again.headers["x-request-id"]


def replayed(sdk: openai.OpenAI, **ask: Any) -> list[Any]:
    answer = sdk.chat.completions.with_raw_response.create(stream=True, **ask)
    assert answer.headers["x-turnout-cache"] == "hit-exact"
    return list(answer.parse())


def test_a_kept_plain_answer_is_replayed_as_a_stream(sdk: openai.OpenAI) -> None:
    messages = cast(Any, [{"role": "user", "content": "tell me of points and crossings"}])
    whole = sdk.chat.completions.create(model="sim", messages=messages)
    chunks = replayed(sdk, model="sim", messages=messages)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert {c.id for c in chunks} == {whole.id}
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert [c.choices[0].delta.role for c in chunks].count("assistant") == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(c.usage is None for c in chunks)
    *chunks, last = replayed(sdk, model="sim", messages=messages, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == whole.usage and all(c.usage is None for c in chunks)


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True}}])
def test_a_streamed_answer_is_kept_and_given_as_a_plain_one(sdk: openai.OpenAI, asked: Any) -> None:
    messages = cast(Any, [{"role": "user", "content": f"stream first {asked}"}])
    chunks = list(sdk.chat.completions.create(model="sim", messages=messages, stream=True, **asked))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    def plain() -> Any:
        answer = sdk.chat.completions.with_raw_response.create(model="sim", messages=messages)
        return answer.parse() if answer.headers["x-turnout-cache"] == "hit-exact" else None

    whole = Gateway.wait_for(plain)
    assert whole.choices[0].message.content == text
    assert (whole.choices[0].finish_reason, whole.id, whole.object) == ("stop", chunks[0].id, "chat.completion")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0


@pytest.mark.parametrize("first_streamed", [False, True])
def test_tool_calls_come_back_whole_in_both_forms(sdk: openai.OpenAI, first_streamed: bool) -> None:
    ask: dict[str, Any] = {
        "model": "sim", "tools": WEATHER, "tool_choice": "required", "messages": [{"role": "user", "content": f"weather {first_streamed}"}],
    }  # fmt: skip

    def calls(stream: bool) -> tuple[str, list[tuple[str, str, Any]]]:
        answer = sdk.chat.completions.with_raw_response.create(stream=cast(Any, stream), **ask)
        said = answer.headers["x-turnout-cache"]
        parsed: Any = answer.parse()
        if not stream:
            assert parsed.choices[0].finish_reason == "tool_calls"
            return said, [(c.id, c.function.name, json.loads(c.function.arguments)) for c in parsed.choices[0].message.tool_calls]
        have: dict[int, list[str]] = {}
        for chunk in parsed:
            for call in chunk.choices[0].delta.tool_calls or []:
                parts = have.setdefault(call.index, ["", "", ""])
                parts[0] += call.id or ""
                parts[1] += call.function.name or ""
                parts[2] += call.function.arguments or ""
        return said, [(i, n, json.loads(a)) for i, n, a in have.values()]

    said, first = calls(first_streamed)
    assert said == "miss" and first and first[0][1] == "get_weather"
    Gateway.wait_for(lambda: calls(first_streamed)[0] == "hit-exact")
    for form in (False, True):
        assert calls(form) == ("hit-exact", first)


def test_embeddings_are_kept_too(sdk: openai.OpenAI) -> None:
    first, again = (sdk.embeddings.with_raw_response.create(model="embed", input="points", encoding_format="float") for _ in range(2))
    assert (first.headers["x-turnout-cache"], again.headers["x-turnout-cache"]) == ("miss", "hit-exact")
    assert again.parse() == first.parse()


# ---- what is asked for


def test_key_order_white_space_and_escapes_do_not_matter(client: httpx.Client) -> None:
    bodies = [
        '{"model":"fast","messages":[{"role":"user","content":"é é"}],"top_p":1}',
        '{ "top_p" : 1,\n"messages" : [ {"content":"\\u00e9 é", "role" : "user"} ] , "model":"fa\\u0073t", "stream_options": null}',
    ]
    assert [outcome(client.post(CHAT, content=body, headers={"content-type": "application/json"})) for body in bodies] == ["miss", "hit-exact"]


CHANGES: list[dict[str, Any]] = [
    {"temperature": 0}, {"top_p": 0.5}, {"stop": ["x"]}, {"seed": 1}, {"max_tokens": 5}, {"max_completion_tokens": 5}, {"presence_penalty": 1}, {"frequency_penalty": 1},
    {"logit_bias": {"1": 2}}, {"logprobs": True}, {"top_logprobs": 2}, {"reasoning_effort": "low"}, {"response_format": {"type": "json_object"}}, {"tool_choice": "none"},
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"parallel_tool_calls": False}, {"user": "u"}, {"n": 1}, {"unheard_of": {"x": [1]}}, {"verbosity": "low"},
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "same"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "same"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "same"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAB"}}]}]},
]  # fmt: skip


def test_another_parameter_is_another_answer(client: httpx.Client) -> None:
    assert outcome(ask(client, "fast", "same")) == "miss"
    for change in CHANGES:
        assert outcome(ask(client, "fast", "same", **change)) == "miss", change
    assert outcome(ask(client, "fast", "same")) == "hit-exact"


def test_a_beta_header_is_part_of_the_question(client: httpx.Client) -> None:
    said = [outcome(ask(client, "fast", "beta", headers=h)) for h in ({}, {"openai-beta": "x=1"}, {"openai-beta": "x=2"}, {"openai-beta": "x=1"}, {})]
    assert said == ["miss", "miss", "miss", "hit-exact", "hit-exact"]


def test_what_is_sampled_is_nobody_elses(client: httpx.Client) -> None:
    for more, reason in (({"temperature": 0.7}, "sampled"), ({"n": 2}, "n"), ({"temperature": "hot"}, "sampled")):
        assert [outcome(ask(client, "fast", "sampled", **more)) for _ in range(2)] == [f"bypass;{reason}"] * 2
    assert [outcome(ask(client, "shared", "sampled", temperature=0.7)) for _ in range(2)] == ["miss", "hit-exact"]
    assert [outcome(ask(client, "shared", "sampled", n=2)) for _ in range(2)] == ["bypass;n"] * 2
    assert [outcome(ask(client, "small", "set to 0", temperature=0.7)) for _ in range(2)] == ["miss", "hit-exact"]  # the route sets it
    assert outcome(ask(client, "off", "no cache")) == "bypass;off"


def test_labels_may_be_left_out(client: httpx.Client) -> None:
    assert [outcome(ask(client, "labels", "labelled", user=user)) for user in ("one", "two")] == ["miss", "hit-exact"]


def test_tenants_share_nothing_and_the_keys_of_a_team_do(gateway: Gateway) -> None:
    said = []
    for key in (KEY, OTHER_KEY, MATE_KEY, MATE_KEY + "2"):
        with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as one:
            said.append(outcome(ask(one, "fast", "whose is it")))
    assert said == ["miss", "miss", "miss", "hit-exact"]


# ---- what a caller may say


def test_a_caller_may_ask_for_a_fresh_answer(client: httpx.Client, a: FaultServer) -> None:
    assert outcome(ask(client, "fast", "fresh")) == "miss"
    before = a.requests
    for header in ({"cache-control": "no-cache"}, {"cache-control": "max-age=0"}, {"x-turnout-cache": "refresh"}):
        assert outcome(ask(client, "fast", "fresh", headers=header)).startswith("bypass;")
    assert outcome(ask(client, "fast", "fresh", headers={"cache-control": "max-age=600"})) == "hit-exact"
    assert a.requests == before + 3


def test_a_caller_may_ask_not_to_be_kept(client: httpx.Client) -> None:
    for header, said in (({"cache-control": "no-store"}, "miss"), ({"x-turnout-cache": "read"}, "miss"), ({"x-turnout-cache": "off"}, "bypass;asked")):
        assert [outcome(ask(client, "fast", "not kept", headers=header)) for _ in range(2)] == [said, said]
    assert outcome(ask(client, "fast", "not kept")) == "miss"
    assert outcome(ask(client, "fast", "not kept", headers={"cache-control": "no-store"})) == "hit-exact"


def test_a_caller_may_ask_for_what_is_kept_only(client: httpx.Client, a: FaultServer) -> None:
    before = a.requests
    for more in ({}, {"temperature": 1}):
        answer = ask(client, "fast", "kept only", headers={"cache-control": "only-if-cached"}, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "not_cached")
    assert a.requests == before
    ask(client, "fast", "kept only")
    assert outcome(ask(client, "fast", "kept only", headers={"cache-control": "only-if-cached"})) == "hit-exact"


def test_a_word_that_means_nothing_is_refused(client: httpx.Client) -> None:
    answer = ask(client, "fast", "x", headers={"x-turnout-cache": "ttl=1e9"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")
    assert ask(client, "off", "x", headers={"x-turnout-cache": "ttl=1e9"}).status_code == 200  # nobody looks at it there


# ---- what is kept


def test_only_whole_answers_of_the_wanted_model_are_kept(client: httpx.Client, a: FaultServer) -> None:
    """Nothing is kept of an error, of what a fallback's other model said, of two answers joined, of one that is too large."""
    for stream in (False, True):
        assert [ask(client, "refused", "r", stream=stream).status_code for _ in range(2)] == [400, 400]
        assert all(ask(client, "down", "d", stream=stream).status_code >= 500 for _ in range(2))
        assert [outcome(ask(client, "fallen", "f", stream=stream)) for _ in range(3)] == ["miss"] * 3
    assert [outcome(ask(client, "joined", "j", stream=True)) for _ in range(2)] == ["miss"] * 2
    ask_till_kept(client, "elsewhere", "the same model at another provider")


def test_an_answer_cut_by_its_limit_is_not_kept(client: httpx.Client) -> None:
    for stream in (False, True):
        answers = [ask(client, "sim", "long", max_tokens=3, stream=stream) for _ in range(2)]
        assert [outcome(answer) for answer in answers] == ["miss"] * 2
        assert '"length"' in answers[0].text


def test_assembled_answers_are_kept(client: httpx.Client) -> None:
    first = ask(client, "assembled", "put together")
    again = ask_till_kept(client, "assembled", "put together")
    assert again.json() == first.json()


def test_an_answer_is_over_with_its_time(client: httpx.Client) -> None:
    assert outcome(ask(client, "brief", "brief")) == "miss"
    assert Gateway.wait_for(lambda: outcome(ask(client, "brief", "brief")) == "miss")


def test_a_stale_answer_is_given_while_it_is_asked_anew(client: httpx.Client, a: FaultServer) -> None:
    ask(client, "stale", "stale")
    before = a.requests
    stale: list[httpx.Response] = []

    def turned() -> bool:
        answer = ask(client, "stale", "stale")
        if outcome(answer) == "hit-exact;stale":
            stale.append(answer)
        return bool(stale) and outcome(answer) == "hit-exact"

    assert Gateway.wait_for(turned)
    assert TEXT in stale[0].text
    assert a.requests >= before + 1


# ---- what is seen


def test_the_ledger_has_a_row_that_cost_nothing_and_what_it_saved(gateway: Gateway, client: httpx.Client) -> None:
    first, again = ask(client, "fast", "ledger"), ask(client, "fast", "ledger")
    (paid,), (saved,) = booked(gateway, first.headers["x-request-id"]), booked(gateway, again.headers["x-request-id"])
    assert (paid.cache, paid.cost_nanos > 0, paid.saved_nanos) == ("miss", True, 0)
    assert (saved.attempt, saved.cause, saved.cache, saved.cost_nanos, saved.prompt_tokens) == (0, "cache", "hit-exact", 0, 0)
    assert saved.saved_nanos == paid.cost_nanos
    assert (saved.provider, saved.model, saved.served) == ("a", "gpt-4o-mini", True)
    line = gateway.logged(again.headers["x-request-id"])
    assert (line["cache"], line["provider"], line["cost_usd"]) == ("hit-exact", "a", "0")
    assert float(line["saved_usd"]) * 1e9 == pytest.approx(paid.cost_nanos)


def test_metrics_count_it_by_route_and_tenant(gateway: Gateway, client: httpx.Client) -> None:
    def count(name: str, **labels: str) -> float:
        return gateway.metric(f"turnout_cache_{name}", **labels)

    before = {o: count("requests_total", route="fast", tenant="key:tester", outcome=o) for o in ("hit-exact", "miss", "bypass")}
    saved, stores, bypassed = count("saved_usd_total", route="fast"), count("stores_total", route="fast", outcome="kept"), count("bypasses_total", route="fast", reason="sampled")
    for _ in range(3):
        ask(client, "fast", "metrics")
    ask(client, "fast", "metrics", temperature=1)
    after = {o: count("requests_total", route="fast", tenant="key:tester", outcome=o) for o in before}
    assert {o: after[o] - before[o] for o in before} == {"hit-exact": 2, "miss": 1, "bypass": 1}
    assert count("saved_usd_total", route="fast") > saved
    assert count("stores_total", route="fast", outcome="kept") == stores + 1
    assert count("bypasses_total", route="fast", reason="sampled") == bypassed + 1
    assert count("backend_seconds_count", backend="memory", operation="put") > 3
    assert count("entries") > 1 and count("bytes") > 1000


def test_the_closing_event_of_a_hit_says_what_it_cost(client: httpx.Client) -> None:
    ask(client, "fast", "closing")
    answer = ask(client, "fast", "closing", stream=True, headers={"x-turnout-metadata": "1"})
    event = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert event["turnout"]["cache"] == "hit-exact" and event["turnout"]["cost_usd"] == "0.000000000"


def test_hits_under_load_are_all_right(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests
    wrong: list[str] = []

    def work(n: int) -> None:
        with gateway.client() as one:
            for i in range(40):
                answer = ask(one, "fast", f"load {i % 4}", stream=bool((i + n) % 2))
                if TEXT not in answer.text.replace('"},"logprobs":null,"finish_reason":null}]}\n\n', "") and "rolls" not in answer.text:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert a.requests - before <= 8  # each once, in each of its two forms at most


def test_the_admin_key_is_no_tenant(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False) as one:
        assert ask(one, "fast", "same").status_code == 401
