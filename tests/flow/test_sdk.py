"""The official `openai` SDK, unmodified, as client: what it hands to its user is what the provider said, and its exceptions are the right ones."""

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam as Message
from openai.types.chat import ChatCompletionToolParam as Tool

from support.gateway import KEY, Gateway, config
from turnout.account.ledger import Row, rows
from turnout.upstream.simulator.launch import Simulator

HELLO: list[Message] = [{"role": "user", "content": "What is a turnout?"}]
WEATHER: list[Tool] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        },
    }
]
FAST = {"kind": "simulated", "seed": 3, "ttft_ms": 2, "tokens_per_s": 5_000, "answer_tokens": 24, "models": ["sim-small"]}
# Dollars per million tokens: 150 and 600 nano-dollars a token.
PRICES = {"sim-small": {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6}, "sim-embed": {"input_usd_per_mtok": 0.02, "kind": "embedding"}}
EVERYWHERE = {"x-request-id", "x-turnout-config-version", "x-turnout-overhead-us"}
ROUTED = EVERYWHERE | {"x-turnout-route", "x-turnout-attempts", "x-turnout-fallback", "x-turnout-cache"}
SERVED = ROUTED | {"x-turnout-provider", "x-turnout-model"}


def failing(**fault: Any) -> dict[str, Any]:
    return FAST | {"faults": [fault]}


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, str]]:
    """Two providers that fail always, with addresses of their own: they are asked how often they were asked."""
    with Simulator() as simulator:
        dead = {"ttft_ms": 1, "faults": [{"kind": "status", "status": 500}]}
        yield simulator.start({"one": dead, "two": dead})


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], counted: dict[str, str]) -> Gateway:
    def route(name: str, *providers: str, model: str = "sim-small", **more: Any) -> dict[str, Any]:
        return {"name": f"to-{name}", "match": {"model": name}, "targets": [{"provider": p, "model": model} for p in providers], **more}

    providers: dict[str, Any] = {
        "a": FAST,
        "b": FAST,
        "solo": FAST,
        "silent": FAST,
        "cool1": failing(kind="status", status=429, retry_after_s=20),
        "cool2": failing(kind="status", status=429, retry_after_s=40),
        "down1": failing(kind="status", status=500),
        "down2": failing(kind="status", status=503),
        "locked": failing(kind="status", status=401),
        "cutting": failing(kind="cut", after_tokens=5),
        **counted,
    }
    routes = [
        route("fast", "a", "b"),
        route("alone", "solo"),
        route("quiet", "silent"),
        route("limited", "cool1", "cool2"),
        route("broken", "down1", "down2"),
        route("locked", "locked"),
        route("cutting", "cutting"),
        route("counted", "one", "two"),
        route("embed", "a", model="sim-embed"),
    ]
    return serve(config(providers, routes, models=PRICES))


@pytest.fixture(scope="module")
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """As a user writes it, but for the retries: those are looked at apart."""
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def booked(gateway: Gateway, request_id: str) -> list[Row]:
    """The ledger's rows of one request."""
    gateway.logged(request_id)
    return list(gateway.wait_for(lambda: [row for row in rows(gateway.state) if row.request_id == request_id]))


def dollars(nanos: int) -> str:
    return f"{nanos // 10**9}.{nanos % 10**9:09d}"


# ---- chat


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="fast", messages=HELLO)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert len(choice.message.content or "") > 20
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.model_extra == {}


def test_a_streamed_chat_says_the_same_as_a_plain_one(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model="fast", messages=HELLO).choices[0].message.content
    chunks = list(sdk.chat.completions.create(model="fast", messages=HELLO, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == plain
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].delta.role for c in chunks].count("assistant") == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


def test_a_stream_shows_no_usage_to_who_did_not_ask(sdk: openai.OpenAI) -> None:
    for more in ({}, {"stream_options": {"include_usage": False}}):
        chunks = list(sdk.chat.completions.create(model="fast", messages=HELLO, stream=True, **cast(Any, more)))
        assert len(chunks) > 10
        assert all(c.choices for c in chunks)
        assert all(c.usage is None for c in chunks)


def test_a_stream_shows_its_usage_once_and_last_to_who_asked(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model="fast", messages=HELLO).usage
    *chunks, last = sdk.chat.completions.create(model="fast", messages=HELLO, stream=True, stream_options={"include_usage": True})
    assert all(c.choices and c.usage is None for c in chunks)
    assert last.choices == []
    assert last.usage == plain


def test_the_sdks_stream_helper_takes_it(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="fast", messages=HELLO) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == sdk.chat.completions.create(model="fast", messages=HELLO).choices[0].message.content


def test_several_choices(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="fast", messages=HELLO, n=2)
    assert [c.index for c in answer.choices] == [0, 1]
    texts = ["", ""]
    finished = []
    for chunk in sdk.chat.completions.create(model="fast", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished += [choice.index] * bool(choice.finish_reason)
    assert texts == [c.message.content for c in answer.choices]
    assert texts[0] != texts[1]
    assert finished == [0, 1]


def test_json_object(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="fast", messages=HELLO, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_tools(sdk: openai.OpenAI) -> None:
    choice = sdk.chat.completions.create(model="fast", messages=HELLO, tools=WEATHER).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    # The whole turn: its result goes back in, and an answer in words comes out.
    turn: list[Any] = [*HELLO, choice.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    assert sdk.chat.completions.create(model="fast", messages=turn, tools=WEATHER).choices[0].message.content


def test_streamed_tools(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model="fast", messages=HELLO, tools=WEATHER).choices[0].message.tool_calls
    name = arguments = identity = ""
    for chunk in sdk.chat.completions.create(model="fast", messages=HELLO, tools=WEATHER, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            assert call.function is not None
            identity += call.id or ""
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert plain
    assert plain[0].type == "function"
    assert (identity, name, arguments) == (plain[0].id, plain[0].function.name, plain[0].function.arguments)
    assert set(json.loads(arguments)) == {"city", "days"}


def test_the_async_client(gateway: Gateway) -> None:
    async def run() -> tuple[str, str, int]:
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as sdk:
            plain, stream = await asyncio.gather(
                sdk.chat.completions.create(model="fast", messages=HELLO),
                sdk.chat.completions.create(model="fast", messages=HELLO, stream=True),
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            with pytest.raises(openai.NotFoundError) as info:
                await sdk.chat.completions.create(model="nowhere", messages=HELLO)
            return plain.choices[0].message.content or "", text, info.value.status_code

    plain, text, status = asyncio.run(run())
    assert plain == text != ""
    assert status == 404


def test_a_reader_that_leaves_early_leaves_the_client_usable(gateway: Gateway, sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(model="fast", messages=HELLO, stream=True) as stream:
        request_id = stream.response.headers["x-request-id"]
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    assert sdk.chat.completions.create(model="fast", messages=HELLO).choices
    assert gateway.logged(request_id)["status"] in (200, 499)


# ---- the other surfaces


def test_embeddings(sdk: openai.OpenAI) -> None:
    floats = sdk.embeddings.create(model="embed", input="a turnout", encoding_format="float")
    default = sdk.embeddings.create(model="embed", input="a turnout")  # the SDK asks for base64 and decodes it
    assert len(floats.data[0].embedding) > 8
    assert default.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0
    raw = sdk.embeddings.create(model="embed", input="a turnout", encoding_format="base64").data[0].embedding
    packed = base64.b64decode(cast(Any, raw))
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(floats.data[0].embedding, abs=1e-6)


def test_embeddings_of_lists_and_of_tokens(sdk: openai.OpenAI) -> None:
    listed = sdk.embeddings.create(model="embed", input=["a turnout", "a switch"])
    assert [row.index for row in listed.data] == [0, 1]
    assert listed.data[0].embedding != listed.data[1].embedding
    assert sdk.embeddings.create(model="embed", input=[1, 2, 3]).usage.prompt_tokens == 3
    assert len(sdk.embeddings.create(model="embed", input=[[1, 2], [3]], dimensions=16).data[1].embedding) == 16


def test_models(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert {"fast", "alone", "embed"} <= set(names)
    one = sdk.models.retrieve("fast")
    assert (one.id, one.object) == ("fast", "model")
    assert one._request_id
    with pytest.raises(openai.NotFoundError) as info:
        sdk.models.retrieve("nowhere")
    assert (info.value.code, info.value.param) == ("model_not_found", "model")


def test_completions(sdk: openai.OpenAI) -> None:
    plain = sdk.completions.create(model="fast", prompt="Once upon a time", max_tokens=12)
    assert plain.object == "text_completion"
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 12
    chunks = list(sdk.completions.create(model="fast", prompt="Once upon a time", max_tokens=12, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == plain.choices[0].text != ""
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason == "length"
    asked = list(sdk.completions.create(model="fast", prompt="Once upon a time", max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert asked[-1].usage == plain.usage


# ---- errors


def raised(kind: type[openai.APIStatusError], call: Callable[[], object]) -> openai.APIStatusError:
    with pytest.raises(kind) as info:
        call()
    assert type(info.value) is kind
    return info.value


def test_400_for_what_we_refuse(sdk: openai.OpenAI) -> None:
    error = raised(
        openai.BadRequestError,
        lambda: sdk.chat.completions.create(model="fast", messages=HELLO, extra_body={"stream": "yes"}),
    )
    assert (error.status_code, error.type, error.code, error.param) == (400, "invalid_request_error", "invalid_value", "stream")
    assert "stream" in error.message


def test_400_for_what_the_provider_refuses(gateway: Gateway, sdk: openai.OpenAI) -> None:
    error = raised(openai.BadRequestError, lambda: sdk.chat.completions.create(model="fast", messages=HELLO, n=1_000))
    assert (error.status_code, error.type) == (400, "invalid_request_error")
    assert "We could not parse" in error.message
    assert error.response.headers["x-turnout-attempts"] == "1"
    assert "x-should-retry" not in error.response.headers


def test_401(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="sk-wrong-0123456789", max_retries=0) as sdk:
        error = raised(openai.AuthenticationError, lambda: sdk.chat.completions.create(model="fast", messages=HELLO))
        assert (error.status_code, error.type, error.code) == (401, "invalid_request_error", "invalid_api_key")
        assert "sk-wrong" not in str(error)
        assert raised(openai.AuthenticationError, sdk.models.list).code == "invalid_api_key"


def test_404(sdk: openai.OpenAI) -> None:
    error = raised(openai.NotFoundError, lambda: sdk.chat.completions.create(model="nowhere", messages=HELLO))
    assert (error.status_code, error.type, error.code, error.param) == (404, "invalid_request_error", "model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as info:
        sdk.get("/nothing", cast_to=object)
    assert info.value.code == "unknown_url"


@pytest.mark.parametrize("stream", [False, True])
def test_429_when_every_target_is_limited(sdk: openai.OpenAI, stream: bool) -> None:
    error = raised(openai.RateLimitError, lambda: sdk.chat.completions.create(model="limited", messages=HELLO, stream=stream))
    assert (error.status_code, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 40


@pytest.mark.parametrize("stream", [False, True])
def test_500_and_its_like(sdk: openai.OpenAI, stream: bool) -> None:
    error = raised(openai.InternalServerError, lambda: sdk.chat.completions.create(model="broken", messages=HELLO, stream=stream))
    assert error.status_code in (502, 503)
    assert (error.type, error.param) == ("upstream_error", None)
    assert error.code in ("upstream_error", "upstream_overloaded")
    assert error.response.headers["x-should-retry"] == "false"


def test_our_own_credential_being_refused_is_no_401(sdk: openai.OpenAI) -> None:
    error = raised(openai.InternalServerError, lambda: sdk.chat.completions.create(model="locked", messages=HELLO))
    assert (error.status_code, error.code) == (502, "upstream_credential_refused")


def test_a_timeout_of_the_client_is_its_own_exception(gateway: Gateway, sdk: openai.OpenAI) -> None:
    def ours() -> list[dict[str, Any]]:
        return [line for line in list(gateway.log) if line["session"] == "impatient"]

    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.4).chat.completions.create(
            model="quiet", messages=HELLO, metadata={"turnout-fault": "silent"}, extra_headers={"x-turnout-session": "impatient"}
        )
    assert gateway.wait_for(ours)
    assert [line["status"] for line in ours()] == [499]


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_of_ours_is_a_504(sdk: openai.OpenAI, stream: bool) -> None:
    error = raised(
        openai.InternalServerError,
        lambda: sdk.chat.completions.create(
            model="quiet", messages=HELLO, stream=stream, metadata={"turnout-fault": "silent"}, extra_headers={"x-turnout-timeout-ms": "150"}
        ),
    )
    assert (error.status_code, error.type, error.code) == (504, "timeout_error", "request_timeout")
    assert error.response.headers["x-should-retry"] == "false"


def test_a_stream_that_is_cut_is_an_exception_and_never_a_short_answer(gateway: Gateway, sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(model="cutting", messages=HELLO, stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as info:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts)
    assert info.value.code == "upstream_stream_interrupted"
    line = gateway.logged(stream.response.headers["x-request-id"])
    assert (line["status"], line["level"]) == (200, "error")


def test_after_we_have_tried_everything_the_sdk_does_not_try_again(gateway: Gateway, counted: dict[str, str]) -> None:
    def asked() -> int:
        return sum(int(httpx.get(url.removesuffix("/v1") + "/__stats", trust_env=False).json()["requests"]) for url in counted.values())

    before = asked()
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, timeout=20) as sdk:
        assert sdk.max_retries == 2
        with pytest.raises(openai.InternalServerError) as info:
            sdk.chat.completions.create(model="counted", messages=HELLO, extra_headers={"x-turnout-session": "once"})
    error = info.value
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.request.headers["x-stainless-retry-count"] == "0"
    assert error.request_id is not None
    tries = int(error.response.headers["x-turnout-attempts"])
    assert asked() - before == tries == len(booked(gateway, error.request_id))
    assert 2 <= tries <= 4
    assert len([line for line in list(gateway.log) if line["session"] == "once"]) == 1


# ---- what was done is on the answer, in the log and in the ledger


def test_the_request_id_is_visible_on_success_and_is_the_logs(gateway: Gateway, sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model="fast", messages=HELLO)
    embedded = sdk.embeddings.create(model="embed", input="a")
    completed = sdk.completions.create(model="fast", prompt="a")
    seen = [plain._request_id, embedded._request_id, completed._request_id]
    with sdk.chat.completions.create(model="fast", messages=HELLO, stream=True) as stream:
        seen.append(stream.response.headers["x-request-id"])
        list(stream)
    assert len(set(seen)) == 4
    for request_id in seen:
        assert request_id is not None
        assert gateway.logged(request_id)["status"] == 200
    assert sdk.models.list()._request_id


@pytest.mark.parametrize("model", ["nowhere", "broken", "locked"])
def test_the_request_id_is_visible_on_errors_and_is_the_logs(gateway: Gateway, sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as info:
        sdk.chat.completions.create(model=model, messages=HELLO)
    error = info.value
    assert error.request_id is not None
    line = gateway.logged(error.request_id)
    assert (line["status"], line["asked_model"]) == (error.status_code, model)
    assert line["error"]
    assert line["error_message"]


@pytest.mark.parametrize("surface", ["chat", "stream", "completions", "embeddings"])
def test_headers_log_and_ledger_agree(gateway: Gateway, sdk: openai.OpenAI, surface: str) -> None:
    usage: Any
    if surface == "chat":
        raw = sdk.chat.completions.with_raw_response.create(model="alone", messages=HELLO)
        usage = raw.parse().usage
    elif surface == "completions":
        raw = cast(Any, sdk.completions.with_raw_response.create(model="alone", prompt="Once"))
        usage = raw.parse().usage
    elif surface == "embeddings":
        raw = cast(Any, sdk.embeddings.with_raw_response.create(model="embed", input=[1, 2, 3, 4, 5, 6, 7, 8]))
        usage = raw.parse().usage
    else:
        raw = cast(Any, sdk.chat.completions.with_raw_response.create(model="alone", messages=HELLO, stream=True, stream_options={"include_usage": True}))
        usage = list(cast(Any, raw.parse()))[-1].usage
    headers = raw.headers
    assert set(headers) >= SERVED
    route, provider, model = ("to-embed", "a", "sim-embed") if surface == "embeddings" else ("to-alone", "solo", "sim-small")
    assert (headers["x-turnout-route"], headers["x-turnout-provider"], headers["x-turnout-model"]) == (route, provider, model)
    assert (headers["x-turnout-attempts"], headers["x-turnout-fallback"], headers["x-turnout-cache"]) == ("1", "none", "bypass;off")
    assert headers["x-turnout-config-version"] == "1"
    assert 0 < int(headers["x-turnout-overhead-us"]) < 1_000_000

    line = gateway.logged(headers["x-request-id"])
    (row,) = booked(gateway, headers["x-request-id"])
    prompt, completion = usage.prompt_tokens, getattr(usage, "completion_tokens", 0)
    nanos = prompt * 20 if surface == "embeddings" else prompt * 150 + completion * 600
    assert (row.prompt_tokens, row.completion_tokens, row.estimated, row.cost_nanos, row.priced) == (prompt, completion, False, nanos, True)
    assert (row.route, row.provider, row.model, row.cause, row.served, row.status, row.reason) == (route, provider, model, "first", True, 200, "")
    assert (row.key, row.stream) == ("tester", surface == "stream")
    assert (line["prompt_tokens"], line["completion_tokens"], float(line["cost_usd"])) == (prompt, completion, nanos / 1e9)
    assert (line["route"], line["provider"], line["model"], line["attempts"], line["fallback"]) == (route, provider, model, 1, "none")
    assert line["stream"] is (surface == "stream")
    if surface == "stream":  # the head is out long before the cost is known
        assert "x-turnout-cost-usd" not in headers
    else:
        assert headers["x-turnout-cost-usd"] == dollars(nanos)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["status=503", "reset", "html", "status=401"])
def test_a_fallback_is_silent_and_is_told(gateway: Gateway, sdk: openai.OpenAI, fault: str, stream: bool) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model="fast", messages=HELLO, stream=cast(Any, stream), metadata={"turnout-fault": fault, "turnout-fault-provider": "a"}
    )
    answer: Any = raw.parse()
    text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
    assert text == sdk.chat.completions.create(model="fast", messages=HELLO).choices[0].message.content
    reason = {"status=503": "503", "status=401": "401", "reset": "reset", "html": "content_type"}[fault]
    headers = raw.headers
    told = f"a>b;reason={reason}"
    assert (headers["x-turnout-provider"], headers["x-turnout-attempts"], headers["x-turnout-fallback"]) == ("b", "2", told)
    line = gateway.logged(headers["x-request-id"])
    assert (line["provider"], line["attempts"], line["fallback"]) == ("b", 2, told)
    lost, won = booked(gateway, headers["x-request-id"])
    assert (lost.provider, lost.cause, lost.reason, lost.served, lost.cost_nanos) == ("a", "first", reason, False, 0)
    assert (won.provider, won.cause, won.reason, won.served) == ("b", "fallback", "", True)


@pytest.mark.parametrize("model", ["limited", "broken"])
def test_errors_say_what_was_tried(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as info:
        sdk.chat.completions.create(model=model, messages=HELLO)
    headers = info.value.response.headers
    assert set(headers) >= ROUTED
    assert headers["x-turnout-route"] == f"to-{model}"
    assert "x-turnout-provider" not in headers
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="nowhere", messages=HELLO)
    assert set(unknown.value.response.headers) >= EVERYWHERE
