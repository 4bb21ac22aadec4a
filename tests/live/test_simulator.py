"""The simulated provider over real sockets, asked by the unmodified openai SDK and by httpx."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from turnout.upstream.providers.simulated import SimFault, SimulatedSpec
from turnout.upstream.simulator.launch import Simulator

QUICK: dict[str, Any] = {"seed": 7, "ttft_ms": 4, "tokens_per_s": 4000, "answer_tokens": 40}
HELLO: list[Any] = [{"role": "user", "content": "How does a turnout work?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find_train",
        "parameters": {
            "type": "object",
            "properties": {
                "station": {"type": "string"},
                "platform": {"type": "integer", "minimum": 1, "maximum": 9},
                "class": {"enum": ["first", "second"]},
            },
            "required": ["station", "platform", "class"],
        },
    },
}


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with Simulator() as simulator:
        yield simulator.start({"a": QUICK, "b": QUICK, "c": SimulatedSpec(**{**QUICK, "seed": 8})})


@pytest.fixture
def client(urls: dict[str, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=urls["a"], api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture
def http(urls: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=urls["a"][: -len("/v1")], trust_env=False, timeout=5) as http:
        http.headers["authorization"] = "Bearer sk-any"
        yield http
        http.post("/__faults", json=[])


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "sim-large", "messages": HELLO, **more})


def post(http: httpx.Client, fault: str | None = None, **more: Any) -> httpx.Response:
    body = {"model": "sim-large", "messages": HELLO, **more}
    if fault is not None:
        body["metadata"] = {"turnout-fault": fault}
    return http.post("/v1/chat/completions", json=body)


def dot(left: list[float], right: list[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


def until(holds: Callable[[], bool]) -> bool:
    """A condition of another process: asked again for at most 3 s."""
    give_up_at = time.monotonic() + 3
    while not holds() and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return holds()


# --- the wire, through the SDK ---


def test_a_chat_answer_has_text_usage_and_a_finish_reason(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content.endswith(".")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_what_the_plain_answer_says(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    plain = ask(client)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_only_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_several_choices_differ_and_all_finish(client: openai.OpenAI) -> None:
    texts = {choice.message.content for choice in ask(client, n=3).choices}
    finished = [c.choices[0].index for c in ask(client, n=3, stream=True) if c.choices[0].finish_reason]
    assert len(texts) == 3 and sorted(finished) == [0, 1, 2]


def test_max_tokens_and_stop_end_the_answer(client: openai.OpenAI) -> None:
    short = ask(client, max_tokens=5)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 5
    stopped = ask(client, stop=[" "])
    assert stopped.choices[0].finish_reason == "stop" and " " not in stopped.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, tools=[TOOL], stream=stream)
    if stream:
        deltas = [c.choices[0] for c in answer]
        assert deltas[-1].finish_reason == "tool_calls"
        calls = [d.delta.tool_calls[0] for d in deltas if d.delta.tool_calls]
        assert len(calls) > 3 and calls[0].id and calls[0].function.name == "find_train"
        text = "".join(call.function.arguments for call in calls)
    else:
        assert answer.choices[0].finish_reason == "tool_calls"
        text = answer.choices[0].message.tool_calls[0].function.arguments
    arguments = json.loads(text)
    assert set(arguments) == {"station", "platform", "class"}
    assert 1 <= arguments["platform"] <= 9 and arguments["class"] in ("first", "second")


def test_a_tool_result_is_answered_with_text(client: openai.OpenAI) -> None:
    call = ask(client, tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "platform 4"}
    answer = ask(client, tools=[TOOL], messages=[*HELLO, call.model_dump(exclude_none=True), result])
    assert answer.choices[0].message.content


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"stops": {"type": "array", "items": {"type": "integer"}, "minItems": 2}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "line", "schema": schema}}
    value = json.loads(ask(client, response_format=wanted).choices[0].message.content)
    assert len(value["stops"]) == 2 and all(isinstance(stop, int) for stop in value["stops"])
    assert json.loads(ask(client, response_format={"type": "json_object"}).choices[0].message.content)


def test_completions_plain_and_streamed_agree(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="sim-small", prompt="The train", max_tokens=9)
    chunks = list(client.completions.create(model="sim-small", prompt="The train", max_tokens=9, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text
    assert plain.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"


def test_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI) -> None:
    texts = ["the night train is late", "the night train is very late", "compilers are fun"]
    floats = client.embeddings.create(model="sim-small", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="sim-small", input=texts)  # the SDK asks for base64
    same, near, far = (item.embedding for item in floats.data)
    assert packed.data[0].embedding == pytest.approx(same, abs=1e-6)
    assert dot(same, near) > 0.8 > dot(same, far)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0


@pytest.mark.parametrize(("given", "count"), [("one", 1), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a", "b"], 2)])
def test_embeddings_take_every_form_of_input(client: openai.OpenAI, given: Any, count: int) -> None:
    answer = client.embeddings.create(model="sim-small", input=given, dimensions=16)
    assert [len(item.embedding) for item in answer.data] == [16] * count


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sim-small", "sim-large"]
    assert client.models.retrieve("sim-large").object == "model"


def test_errors_have_the_shape_the_sdk_knows(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", cast_to=object)
    with pytest.raises(openai.BadRequestError, match="messages"):
        ask(client, messages=[])
    assert http.post("/v1/chat/completions", content=b"{").json()["error"]["type"] == "invalid_request_error"
    del http.headers["authorization"]
    assert post(http).status_code == 401


# --- the same words ---


def test_equal_seeds_say_the_same_and_others_do_not(urls: dict[str, str]) -> None:
    said = []
    for name in ("a", "b", "c"):
        with openai.OpenAI(base_url=urls[name], api_key="k", max_retries=0) as client:
            said.append(ask(client).choices[0].message.content)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("in_words", [False, True])
def test_another_provider_goes_on_from_a_prefix(urls: dict[str, str], client: openai.OpenAI, in_words: bool) -> None:
    whole = ask(client).choices[0].message.content
    messages = [*HELLO, {"role": "assistant", "content": whole[:50]}]
    if in_words:
        messages.append({"role": "user", "content": "Go on exactly where you stopped."})
    with openai.OpenAI(base_url=urls["b"], api_key="k", max_retries=0) as other:
        rest = ask(other, messages=messages).choices[0].message.content
    assert rest == (whole[50:].lstrip() if in_words else whole[50:])


# --- faults ---


def test_a_status_fault_carries_retry_after(http: httpx.Client) -> None:
    answer = post(http, "status=429;retry_after_s=2")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("fault", ["reset", "refuse"])
def test_no_answer_at_all(http: httpx.Client, fault: str) -> None:
    with pytest.raises(httpx.ReadError if fault == "reset" else httpx.RemoteProtocolError):
        post(http, fault)


def test_html_comes_under_status_200(http: httpx.Client) -> None:
    answer = post(http, "html")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("fault", ["cut", "truncate", "error-event"])
def test_a_stream_breaks_off_after_the_tokens(http: httpx.Client, fault: str) -> None:
    body = {"model": "m", "messages": HELLO, "stream": True, "metadata": {"turnout-fault": f"{fault};after_tokens=5"}}
    lines: list[str] = []

    def read() -> None:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    if fault == "cut":
        with pytest.raises(httpx.ReadError):
            read()
    else:
        read()
    chunks = [json.loads(line[len("data: ") :]) for line in lines]
    assert sum(bool(c["choices"][0]["delta"].get("content")) for c in chunks if "choices" in c) == 5
    assert ("error" in chunks[-1]) == (fault == "error-event")
    assert not any(c["choices"][0]["finish_reason"] for c in chunks if "choices" in c)


@pytest.mark.parametrize("fault", ["silent", "stall;after_tokens=3"])
def test_silence_lasts_until_the_client_leaves(http: httpx.Client, fault: str) -> None:
    before = http.get("/__stats").json()["cancelled"]
    with pytest.raises(httpx.ReadTimeout):
        http.post(
            "/v1/chat/completions",
            json={"model": "m", "messages": HELLO, "stream": True, "metadata": {"turnout-fault": fault}},
            timeout=0.3,
        )
    assert until(lambda: http.get("/__stats").json()["cancelled"] == before + 1)
    assert http.get("/__stats").json()["open"] == 0


@pytest.mark.parametrize("fault", ["cut", "truncate", "stall"])
def test_a_plain_answer_can_be_half_an_answer(http: httpx.Client, fault: str) -> None:
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout)):
        http.post(
            "/v1/chat/completions",
            json={"model": "m", "messages": HELLO, "metadata": {"turnout-fault": fault}},
            timeout=0.3,
        )


def test_slow_delays_the_first_token(http: httpx.Client) -> None:
    started = time.monotonic()
    assert post(http, "slow;ms=250").status_code == 200
    assert time.monotonic() - started > 0.25


def test_a_wish_for_another_provider_is_not_obeyed(http: httpx.Client) -> None:
    metadata = {"turnout-fault": "status=503", "turnout-fault-provider": "b"}
    assert post(http, metadata=metadata).status_code == 200
    assert post(http, metadata={**metadata, "turnout-fault-provider": "a"}).status_code == 503


def test_a_wish_that_makes_no_sense_is_refused(http: httpx.Client) -> None:
    for fault in ("explode", "cut;share=0.5", "status=hello"):
        assert post(http, fault).status_code == 400


def test_faults_are_replaced_and_counted(http: httpx.Client) -> None:
    faults = [SimFault(kind="status", count=1), SimFault(kind="status", status=500, every=3)]
    assert http.post("/__faults", content=msgspec.json.encode(faults)).json() == {"faults": 2}
    before = http.get("/__stats").json()
    assert [post(http).status_code for _ in range(6)] == [503, 200, 500, 200, 200, 500]
    after = http.get("/__stats").json()
    assert after["requests"] - before["requests"] == 6
    assert after["by_fault"]["status"] - before["by_fault"].get("status", 0) == 3
    assert http.post("/__faults", json=[{"kind": "no"}]).status_code == 400


def test_a_share_hits_about_that_many(http: httpx.Client) -> None:
    http.post("/__faults", json=[{"kind": "status", "share": 0.5}])
    failed = sum(post(http, max_tokens=1).status_code == 503 for _ in range(60))
    assert 15 <= failed <= 45


# --- the process ---


def test_it_ends_with_its_parent() -> None:
    code = (
        "import sys, time\n"
        "from turnout.upstream.simulator.launch import Simulator\n"
        "s = Simulator(); s.start({'a': {}}); print(s.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def is_gone() -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    assert until(is_gone)


def test_stop_ends_it_and_may_be_called_twice() -> None:
    simulator = Simulator()
    simulator.start({"a": {}})
    pid = simulator.pid
    assert pid is not None
    simulator.stop()
    simulator.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_bad_spec_is_refused_before_anything_starts() -> None:
    with pytest.raises(msgspec.ValidationError, match="tokens_per_sec"):
        Simulator().start({"a": {"tokens_per_sec": 3}})
