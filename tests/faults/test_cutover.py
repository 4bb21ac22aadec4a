"""A cut-over on the wire: tool calls, policies, other kinds of answers, heartbeats, what is told of it, and many at once."""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from faults.conftest import MESSAGES, MODEL, Wire, ask, body, dechunk, said, text_of
from faults.server import CALLS, FaultServer
from support.gateway import KEY, TRUST, Gateway, config
from support.goes_on import HOWS, SIXTY, tokens
from turnout.account.ledger import rows

TIMEOUTS = {"connect_ms": 1000, "ttft_ms": 2000, "plain_ms": 20_000, "idle_ms": 700}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name, _ in CALLS]


@pytest.fixture(scope="module")
def p() -> Iterator[FaultServer]:
    with FaultServer(text=SIXTY) as server:
        yield server


@pytest.fixture(scope="module")
def f() -> Iterator[FaultServer]:
    with FaultServer(text=SIXTY, default="go-on") as server:
        yield server


def route(name: str, *targets: Any, **more: Any) -> dict[str, Any]:
    made = [t if isinstance(t, dict) else {"provider": t, "model": MODEL} for t in targets]
    return {"name": name, "match": {"model": name}, "targets": made, "timeouts": TIMEOUTS, **more}


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], p: FaultServer, f: FaultServer) -> Gateway:
    providers: dict[str, Any] = {"p": p.url, "f": f.url, "cut9": p.at("cut-end:after=9")}
    for name in ("prefill", "vllm", "twice", "words", *HOWS):  # one each, or a breaker opens
        providers[f"cut-{name}"] = p.at("cut-reset:after=40")
    for how in HOWS:
        providers[f"f-{how}"] = f.at(f"go-on:how={how}")
    providers["f-no"] = f.at("go-on:how=words,prefill=no")
    providers["f-sure"] = f.at("go-on:how=paraphrase")
    providers["half"] = f.at("cut-close:after=50")
    routes = [
        route("main", "p", "f"),
        route("alone", "p"),
        route("pass", "p", "f", stream={"tool_calls": "pass"}),
        route("restart", "p", "f", stream={"on_failure": "restart", "restart_window": {"tokens": 20, "ms": 5000}}),
        route("terminate", "p", "f", stream={"on_failure": "terminate"}),
        route("never", "p", "f", stream={"max_cutovers": 0}),
        route("whole", "p", "f", plain="assemble"),
        route("prefill", "cut-prefill", {"provider": "f-no", "model": MODEL, "prefill": "assistant-prefix"}),
        route("vllm", "cut-vllm", {"provider": "f", "model": MODEL, "prefill": "continue_final_message"}),
        route("twice", "cut-twice", "half", "f"),
        route("order", "cut9", {"provider": "f-sure", "model": "gpt-4o"}, "f"),
        route("words", "cut-words", "f"),
        *(route(f"how-{how}", f"cut-{how}", f"f-{how}") for how in HOWS),
    ]
    return serve(config(providers, routes))


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=30, http_client=openai.DefaultHttpxClient(verify=TRUST)) as client:
        yield client


@pytest.fixture(autouse=True)
def calm(p: FaultServer, f: FaultServer) -> Iterator[None]:
    yield
    p.script.clear()
    p.default = "ok"
    f.script.clear()
    f.default = "go-on"


def heal(gateway: Gateway) -> None:
    """Close the breakers again: good streams to their end."""
    with gateway.client() as client:
        for model in ("alone", "main"):
            assert ask(client, model, stream=True).status_code == 200


def stream(gateway: Gateway, model: str, **more: Any) -> httpx.Response:
    with gateway.client() as client:
        return ask(client, model, stream=True, **more)


def asked_of(server: FaultServer) -> dict[str, Any]:
    return server.seen[-1].asked


# ---- text


@pytest.mark.parametrize("how", HOWS)
def test_however_the_fallback_begins_the_text_is_whole(gateway: Gateway, how: str) -> None:
    answer = stream(gateway, f"how-{how}")
    assert said(answer.content) == SIXTY
    assert answer.content.count(b'"role"') == 1


def test_the_request_to_go_on_names_the_words_and_keeps_the_rest(gateway: Gateway, f: FaultServer) -> None:
    answer = stream(gateway, "words", max_tokens=90, temperature=0.5, user="u-1", seed=7)
    assert said(answer.content) == SIXTY
    asked = asked_of(f)
    shown = "".join(tokens(SIXTY)[:40])
    assert [m["role"] for m in asked["messages"]] == ["user", "assistant", "user"]
    head, told = asked["messages"][1]["content"], asked["messages"][2]["content"]
    words = told.partition("characters:\n")[2]
    assert head + " " + words == shown
    assert (asked["temperature"], asked["user"], asked["seed"]) == (0.5, "u-1", 7)
    # 40 tokens were delivered, and the words are said again
    assert 50 <= asked["max_tokens"] <= 56


def test_a_target_that_takes_a_prefill_gets_one(gateway: Gateway, f: FaultServer) -> None:
    assert said(stream(gateway, "vllm").content) == SIXTY
    asked = asked_of(f)
    assert asked["messages"][-1]["role"] == "assistant"
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)


def test_a_target_that_refuses_a_prefill_is_asked_in_words_from_then_on(gateway: Gateway) -> None:
    for tries in (3, 2):
        answer = stream(gateway, "prefill")
        assert said(answer.content) == SIXTY
        line = gateway.logged(answer.headers["x-request-id"])
        assert line["attempts"] == tries
        if tries == 3:
            assert line["failures"][1]["reason"] == "400"


def test_a_stream_may_be_cut_twice(gateway: Gateway) -> None:
    answer = stream(gateway, "twice")
    assert said(answer.content) == SIXTY
    notes = re.findall(rb": turnout cut-over (\S+) after=(\d+) chars reason=(\w+)", answer.content)
    assert [n[0] for n in notes] == [b"cut-twice>half", b"half>f"]
    assert int(notes[0][1]) < int(notes[1][1])


def test_the_same_model_elsewhere_is_asked_first(gateway: Gateway) -> None:
    """`f` stands behind another model in the route, and gets the stream all the same."""
    answer = stream(gateway, "order")
    assert said(answer.content) == SIXTY
    assert b"cut-over cut9>f after=" in answer.content


def test_with_nobody_else_the_same_target_goes_on(gateway: Gateway, p: FaultServer) -> None:
    p.script.extend(["cut-reset:after=20", "go-on"])
    answer = stream(gateway, "alone")
    assert said(answer.content) == SIXTY
    heal(gateway)


def test_nothing_is_left_out_when_the_cut_is_right_before_the_finish(gateway: Gateway, p: FaultServer) -> None:
    p.script.append(f"cut-end:after={len(tokens(SIXTY))}")
    answer = stream(gateway, "main")
    assert said(answer.content) == SIXTY
    assert answer.content.count(b'"stop"') == 1


def test_a_target_that_starts_over_is_given_the_tokens_to_get_there(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    """The client's limit is lowered by what was delivered; one that begins again would stop before it said anything new."""
    p.script.append("cut-reset:after=60")
    f.script.extend(["go-on:how=whole,limit=1"] * 2)
    answer = stream(gateway, "main", max_tokens=100)
    assert said(answer.content) == SIXTY
    assert f.seen[-2].asked["max_tokens"] < 60
    assert f.seen[-1].asked["max_tokens"] == 100


def test_completions_go_on_behind_their_prompt(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    """Byte for byte: the prompt is simply longer."""
    first = b'data: {"id":"c","choices":[{"index":0,"text":"one two three four five"}]}\n\n'
    p.script.append("raw-cut")
    f.script.append("raw-rest")
    RAW["raw-cut"] = (first, True)
    RAW["raw-rest"] = (b'data: {"id":"d","choices":[{"index":0,"text":" three four five six"}]}\n\ndata: {"id":"d","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', False)
    with gateway.client() as client:
        answer = client.post("/v1/completions", json={"model": "main", "prompt": "count:", "stream": True})
    out = [json.loads(e[6:]) for e in answer.content.split(b"\n\n") if e.startswith(b"data: {")]
    assert "".join(c["choices"][0].get("text", "") for c in out) == "one two three four five six"
    assert {c["id"] for c in out} == {"c"}
    assert asked_of(f)["prompt"] == "count:one two"


# ---- what cannot be joined


RAW: dict[str, tuple[bytes, bool]] = {}


@pytest.fixture(autouse=True)
def raw() -> Iterator[None]:
    """Faults `raw-*`: a stream of these very bytes, then a chunked end, or none (True: the connection is reset)."""
    from faults import server as faults

    def make(name: str) -> Any:
        async def act(c: Any, seen: Any) -> None:
            data, cut = RAW[name]
            await c.send(faults.STREAM_HEAD + faults.chunked(data))
            if cut:
                await asyncio.sleep(0.02)
                c.reset()
            else:
                await c.send(faults.END)

        return act

    for name in ("raw-cut", "raw-rest"):
        faults.FAULTS[name] = faults.K(make(name))
    yield
    for name in ("raw-cut", "raw-rest"):
        del faults.FAULTS[name]


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, **more}]}).encode() + b"\n\n"


UNSOUND = {
    "refusal": (chunk({"refusal": "I cannot"}), {}),
    "logprobs": (chunk({"content": "a b c d e f"}, logprobs={"content": [{"token": "a"}]}), {}),
    "a second choice": (chunk({"content": "a b c"}) + chunk({"content": "d"}).replace(b'"index": 0', b'"index": 1'), {}),
    "n": (chunk({"content": "a b c d e f"}), {"n": 2}),
    "asked for logprobs": (chunk({"content": "a b c d e f"}), {"logprobs": True}),
    "function_call": (chunk({"function_call": {"name": "f"}}), {}),
    "signed reasoning": (chunk({"reasoning_details": [{"type": "reasoning.text", "signature": "x"}]}), {}),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_what_cannot_be_joined_ends_in_an_error(gateway: Gateway, p: FaultServer, f: FaultServer, what: str) -> None:
    data, more = UNSOUND[what]
    RAW["raw-cut"] = (data, True)
    p.script.append("raw-cut")
    before = f.requests
    w = Wire(gateway, body("main", True, **more))
    out = w.read_to_end()
    w.close()
    assert b"upstream_stream_interrupted" in out
    assert b"[DONE]" not in out and not out.endswith(b"0\r\n\r\n")
    assert f.requests == before
    line = gateway.logged(w.header("x-request-id"))
    assert line["error"] == "reset"
    assert line["cut_overs"][0].startswith("p after=")
    heal(gateway)


def test_a_refusal_inside_a_stream_is_not_routed_around(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    p.script.append("error-event:after=20,code=400")
    before = f.requests
    w = Wire(gateway, body("main", True))
    out = w.read_to_end()
    w.close()
    assert b"upstream_stream_interrupted" in out and b"[DONE]" not in out
    assert f.requests == before
    heal(gateway)


@pytest.mark.parametrize("what", UNSOUND)
def test_where_nothing_was_shown_it_begins_again(gateway: Gateway, p: FaultServer, what: str) -> None:
    data, more = UNSOUND[what]
    RAW["raw-cut"] = (data, True)
    p.script.append("raw-cut")
    with gateway.client() as client:
        answer = ask(client, "whole", **more)
    assert answer.status_code == 200
    assert text_of(answer) == SIXTY
    assert answer.headers["x-turnout-fallback"] == "p>f;reason=reset"
    heal(gateway)


def test_reasoning_is_not_said_twice(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    RAW["raw-cut"] = (chunk({"role": "assistant"}) + chunk({"reasoning_content": "hmm"}) + chunk({"content": "one two three four five"}), True)
    RAW["raw-rest"] = (chunk({"reasoning_content": "well"}) + chunk({"content": "three four five six"}) + chunk({}, finish_reason="stop") + b"data: [DONE]\n\n", False)
    p.script.append("raw-cut")
    f.script.append("raw-rest")
    answer = stream(gateway, "main")
    assert said(answer.content) == "one two three four five six"
    assert b"hmm" in answer.content and b"well" not in answer.content


def test_cut_in_the_reasoning_the_turn_is_repeated(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    RAW["raw-cut"] = (chunk({"role": "assistant"}) + chunk({"reasoning_content": "hmm"}), True)
    p.script.append("raw-cut")
    answer = stream(gateway, "main")
    assert said(answer.content) == SIXTY
    assert asked_of(f)["messages"] == MESSAGES  # nothing was put behind it
    assert answer.content.count(b'"role"') == 1


@pytest.mark.parametrize("rest, good", [('2, "b": 3}', True), ('2, "b": 3', False), ("and so on", False)])
def test_a_json_answer_that_was_joined_must_parse(gateway: Gateway, p: FaultServer, f: FaultServer, rest: str, good: bool) -> None:
    begun = '{"first": 1, "second": '
    RAW["raw-cut"] = (chunk({"role": "assistant"}) + chunk({"content": begun}), True)
    RAW["raw-rest"] = (chunk({"content": '"second": ' + rest}) + chunk({}, finish_reason="stop") + b"data: [DONE]\n\n", False)
    p.script.append("raw-cut")
    f.script.append("raw-rest")
    w = Wire(gateway, body("main", True, response_format={"type": "json_object"}))
    out = w.read_until(b"0\r\n\r\n") if good else w.read_to_end()
    w.close()
    assert "response_format" not in asked_of(f)
    text = said(dechunk(out.partition(b"\r\n\r\n")[2]))
    assert text.startswith(begun + rest if good else begun)
    if not good:
        assert b"upstream_stream_interrupted" in out and b"[DONE]" not in out and b'"stop"' not in out
    heal(gateway)


def test_a_fallback_that_speaks_in_other_words_repeats_nothing(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    for after in (3, 17, 31):
        p.script.append(f"cut-reset:after={after}")
        f.script.extend(["go-on:how=paraphrase"] * 2)
        w = Wire(gateway, body("main", True))
        end = time.monotonic() + 10
        while b"upstream_stream_interrupted" not in w.data and b"[DONE]" not in w.data and time.monotonic() < end:
            w.data += w.socket.recv(65536)
        w.close()
        text = said(dechunk(w.data.partition(b"\r\n\r\n")[2]))
        shown = "".join(tokens(SIXTY)[:after])
        assert text.startswith(shown)
        assert text.count("In other words") <= 1 and text.count(shown) == 1
        heal(gateway)


@pytest.mark.parametrize("model", ["main", "whole"])
def test_a_whole_answer_without_a_finish_reason_is_half_of_one(gateway: Gateway, p: FaultServer, model: str) -> None:
    p.script.append("no-finish")
    with gateway.client() as client:
        answer = ask(client, model)
    assert text_of(answer) == SIXTY
    assert answer.headers["x-turnout-provider"] == "f"
    heal(gateway)


def test_the_stream_is_not_silent_while_another_target_is_asked(serve: Callable[..., Gateway], p: FaultServer, f: FaultServer) -> None:
    own = serve(config({"p": p.url, "f": f.url}, [{"name": "r", "match": {"model": "r"}, "targets": [{"provider": n, "model": MODEL} for n in "pf"]}]))
    p.script.append("cut-reset:after=20")
    f.script.append("slow-head:ms=6000")  # and then all of it from the beginning
    w = Wire(own, body("r", True))
    w.read_until(b": turnout is waiting", 5.2 + 1)
    assert b"cut-over" not in w.data
    w.read_until(b"[DONE]")
    assert w.data.index(b": turnout is waiting") < w.data.index(b": turnout cut-over p>f after=")
    assert said(dechunk(w.data.partition(b"\r\n\r\n")[2])) == SIXTY
    w.close()


# ---- policies


def test_restart_begins_again_inside_its_window(gateway: Gateway, p: FaultServer) -> None:
    p.script.append("cut-reset:after=15")
    answer = stream(gateway, "restart")
    assert said(answer.content) == SIXTY
    assert answer.headers["x-turnout-fallback"] == "p>f;reason=reset"
    assert b"cut-over" not in answer.content


@pytest.mark.parametrize("model, after", [("restart", 25), ("terminate", 5), ("never", 5)])
def test_what_may_not_go_on_ends_in_an_error(gateway: Gateway, p: FaultServer, model: str, after: int) -> None:
    p.script.append(f"cut-reset:after={after}")
    w = Wire(gateway, body(model, True))
    out = w.read_to_end()
    assert b"upstream_stream_interrupted" in out and b"[DONE]" not in out
    w.close()
    heal(gateway)


def test_a_window_is_over_after_its_time_too(gateway: Gateway, serve: Callable[..., Gateway], p: FaultServer) -> None:
    own = serve(config({"p": p.url}, [route("r", "p", stream={"on_failure": "restart", "restart_window": {"tokens": 1000, "ms": 150}})]))
    p.script.append("slow-tokens:ms=600,at=9")
    w = Wire(own, body("r", True))
    started = time.monotonic()
    w.read_until(b"\r\n\r\n")
    assert 0.1 < time.monotonic() - started < 0.45
    w.close()


def test_a_client_that_leaves_is_no_reason_for_a_cut_over(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    before = f.requests
    p.script.append("endless:gap_ms=5")
    w = Wire(gateway, body("main", True))
    w.read_until(b'"content": "x')
    request_id = w.header("x-request-id")
    w.reset()
    line = gateway.logged(request_id)
    assert (line["status"], line["attempts"]) == (499, 1)
    assert "cut_overs" not in line
    assert f.requests == before


def test_a_client_that_leaves_while_another_target_is_asked_ends_that_too(gateway: Gateway, p: FaultServer, f: FaultServer) -> None:
    p.script.append("cut-reset:after=20")
    f.script.append("silence")
    before = f.requests
    w = Wire(gateway, body("main", True))
    assert gateway.wait_for(lambda: f.requests > before)
    seen = f.seen[-1]
    left = time.monotonic()
    w.reset()
    assert gateway.wait_for(lambda: seen.lost_at)
    assert seen.lost_at - left < 0.5
    line = gateway.logged(w.header("x-request-id") or gateway.log[-1]["request_id"])
    assert line["status"] == 499
    heal(gateway)


# ---- tool calls


def assembled(sdk: openai.OpenAI, model: str) -> Any:
    """What the official SDK makes of a stream; raises what it raises."""
    with sdk.chat.completions.stream(model=model, messages=MESSAGES, tools=TOOLS) as events:  # type: ignore[arg-type]
        for _ in events:
            pass
        return events.get_final_completion().choices[0].message


@pytest.mark.parametrize("n, text", [(1, ""), (2, ""), (3, ""), (2, "Let_me_look_that_up_for_you.")])
@pytest.mark.parametrize("how", ["reset", "end"])
def test_cut_at_every_event_the_sdk_gets_whole_calls(gateway: Gateway, sdk: openai.OpenAI, p: FaultServer, f: FaultServer, n: int, text: str, how: str) -> None:
    f.default = f"tools:n={n},text={text}" if text else f"tools:n={n}"
    begun = len(CALLS[0][1]) // 7 + 3
    total = 2 + sum(2 + len(a) // 7 for _, a in CALLS[:n]) + (len(tokens(text.replace("_", " "))) if text else 0)
    for after in range(0, total + 1):
        p.script.append(f"{f.default},after={after},how={how}")
        message = assembled(sdk, "main")
        assert (message.content or "") == text.replace("_", " ")
        got = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls]
        assert got == [(name, json.loads(arguments)) for name, arguments in CALLS[:n]], after
        assert len({c.id for c in message.tool_calls}) == n
        assert [c.index for c in message.tool_calls] == list(range(n))
        p.script.clear()
        assert stream(gateway, "alone").status_code == 200  # or the breaker opens, and nothing is cut any more
    assert total > begun


def test_a_turn_that_makes_other_calls_the_second_time_is_an_error(gateway: Gateway, sdk: openai.OpenAI, p: FaultServer, f: FaultServer) -> None:
    """The client has the first call already, and the next provider would have called something else."""
    whole = len(CALLS[0][1]) // 7 + 4
    p.script.append(f"tools:n=2,after={whole}")
    f.default = "tools:n=2,other=1"
    with pytest.raises(openai.APIError, match="upstream"):
        assembled(sdk, "main")
    heal(gateway)


def test_passed_on_as_they_come_a_cut_in_a_call_is_an_error(gateway: Gateway, sdk: openai.OpenAI, p: FaultServer, f: FaultServer) -> None:
    p.script.append("tools:n=1,after=3")
    with pytest.raises(openai.APIError, match="upstream"):
        assembled(sdk, "pass")
    heal(gateway)


def test_a_call_that_comes_in_one_piece_is_not_held(gateway: Gateway, p: FaultServer) -> None:
    p.script.append("tools:n=2,size=1000,gap_ms=300")
    w = Wire(gateway, body("main", True, tools=TOOLS))
    started = time.monotonic()
    w.read_until(b"get_weather")
    assert time.monotonic() - started < 1.0
    w.close()


def test_a_plain_answer_is_assembled_with_its_calls(gateway: Gateway, sdk: openai.OpenAI, p: FaultServer, f: FaultServer) -> None:
    f.default = "tools:n=3"
    p.script.append("tools:n=3,after=9")
    message = sdk.chat.completions.create(model="whole", messages=MESSAGES, tools=TOOLS).choices[0].message  # type: ignore[call-overload]
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == CALLS
    heal(gateway)


def test_a_held_call_does_not_silence_the_stream(gateway: Gateway, p: FaultServer) -> None:
    """A beat at least every 5 s; after 20 s what there is of the call goes on."""
    p.script.append("tools:n=1,size=2,gap_ms=500")
    w = Wire(gateway, body("main", True, tools=TOOLS))
    started, gaps, last = time.monotonic(), [], time.monotonic()
    while b"get_weather" not in w.data:
        w.data += w.socket.recv(65536)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
    assert max(gaps) < 5.2
    assert w.data.count(b": turnout is waiting") >= 1
    assert last - started < 21.5
    w.close()


# ---- what is told of it


def test_the_sdk_reads_a_stitched_stream_as_one(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model="how-words", messages=MESSAGES, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SIXTY
    assert len({c.id for c in chunks}) == len({c.created for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens >= len(tokens(SIXTY)) - 5


def test_log_ledger_metrics_and_stream_tell_the_same(gateway: Gateway) -> None:
    before = gateway.metric("turnout_cutovers_total", reason="reset", outcome="continued")
    with gateway.client() as client:
        answer = ask(client, "how-sentence", stream=True, stream_options={"include_usage": True})
    request_id = answer.headers["x-request-id"]
    note = next(e for e in answer.text.split("\n\n") if e.startswith(": turnout cut-over "))
    story = note.removeprefix(": turnout cut-over ")
    shown = "".join(tokens(SIXTY)[:40])
    assert story == f"cut-sentence>f-sentence after={len(shown)} chars reason=reset"
    line = gateway.logged(request_id)
    assert line["cut_overs"] == [story]
    assert (line["error"], line["attempts"], line["provider"]) == ("", 2, "f-sentence")
    assert gateway.metric("turnout_cutovers_total", reason="reset", outcome="continued") == before + 1
    found = gateway.wait_for(lambda: [r for r in rows(gateway.state) if r.request_id == request_id])
    assert [(r.cause, r.reason, r.served, r.estimated) for r in found] == [("first", "reset", False, True), ("cut-over", "", True, False)]
    assert all(r.completion_tokens > 0 and r.cost_nanos > 0 for r in found)
    usage = json.loads(answer.content.split(b"\n\n")[-3][6:])["usage"]
    assert usage["completion_tokens"] == sum(r.completion_tokens for r in found)


# ---- many at once


def test_with_failures_everywhere_no_answer_is_half(serve: Callable[..., Gateway], engine: str, full: bool) -> None:
    """Streams side by side while 5 % of all attempts die in the middle: whole, or an error; nothing is left over."""
    many, rounds = (1000, 4) if full else (150, 2)
    draw = random.Random(5)
    faults = [f"{k}:after={n}" for k in ("cut-reset", "cut-close", "cut-end", "error-event", "bad-chunk") for n in (1, 7, 25, 44, 59)]

    def dies(head: bytes) -> str:
        return draw.choice(faults) if draw.random() < 0.05 else "go-on"

    outcomes: Counter[str] = Counter()

    async def one(gateway: Gateway) -> None:
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        raw = json.dumps(body("r", True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            piece = await asyncio.wait_for(reader.read(65536), 60)
            if not piece:
                break
            data += piece
        writer.close()
        out = dechunk(data.partition(b"\r\n\r\n")[2])
        clean = data.endswith(b"0\r\n\r\n") and b"[DONE]" in out
        if clean:
            outcomes["whole" if said(out) == SIXTY else "HALF"] += 1
            outcomes["cut-over"] += b"cut-over" in out
        else:
            outcomes["error" if b"upstream_stream_interrupted" in out else f"SILENT {data[:20]!r}"] += 1

    async def run(gateway: Gateway) -> None:
        for _ in range(rounds):
            await asyncio.gather(*(one(gateway) for _ in range(many)))

    with FaultServer(text=SIXTY, default=dies) as a, FaultServer(text=SIXTY, default=dies) as b, FaultServer(text=SIXTY, default=dies) as c:
        gateway = serve(config({"a": a.url, "b": b.url, "c": c.url}, [{"name": "r", "match": {"model": "r"}, "routing_policy": {"kind": "weighted"}, "targets": [{"provider": n, "model": MODEL} for n in "abc"]}]))
        asyncio.run(run(gateway))
        total = many * rounds
        print(f"\n{engine}: {total} streams, {many} at once: {dict(outcomes)}")
        assert outcomes["HALF"] == 0
        assert not any(k.startswith("SILENT") for k in outcomes)
        assert outcomes["whole"] >= 0.9995 * total
        assert outcomes["cut-over"] > 0.02 * total
        assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
        assert gateway.process is not None
        assert os.path.exists(f"/proc/{gateway.process.pid}")
        assert gateway.metric("turnout_upstream_connections") <= a.open + b.open + c.open + 1


def test_nothing_is_left_over_at_the_end(gateway: Gateway) -> None:
    assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    assert len({r["request_id"] for r in gateway.log}) == len(gateway.log)
