"""Recorded traffic of the real providers through the gateway: what they said arrives, however their bytes are cut.

The exchanges are asked for through the direct route `up/<model>`, so that the model's name is exchanged on the way, as
in a real set-up. Each runs in several modes: whole, in seeded pieces of 1 to 13 bytes, cut inside characters, inside
`data:` and between line ends, and byte by byte.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import openai
import pytest

from support.gateway import KEY, Gateway, config
from support.replay import PATHS, Recording, Replay, load
from turnout.account.ledger import Row, rows

# Byte by byte costs a packet a byte: in CI for bodies up to this size only.
SMALL_BYTES = 20_000
# Byte by byte few are asked for at once: after the finish reason usage is waited for one second only (section 6), and an
# answer that shares a loaded machine with 23 others takes longer for its last event.
AT_ONCE = {"whole": 24, "odd": 24, "utf8": 24, "bytes": 3}
READ_S = 120.0
MODES = ("whole", "odd", "utf8", "bytes")
OPTIONS = {"whole": "", "odd": "~chunk=odd", "utf8": "~chunk=utf8", "bytes": "~chunk=1"}


class Got(NamedTuple):
    """An answer as it stood on the wire. `clean`: the message ended as HTTP says it should."""

    status: int
    headers: dict[str, str]
    body: bytes
    clean: bool

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]


class _Reader:
    """What httptools calls."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.clean = True


async def ask(gateway: Gateway, path: str, body: bytes) -> Got:
    """One request on a connection of its own, read to the end of the answer or of the connection."""
    reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {gateway.host}:{gateway.port}\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        got = _Reader()
        parser = httptools.HttpResponseParser(got)
        while not got.clean:
            try:
                data = await asyncio.wait_for(reader.read(1 << 18), READ_S)
            except ConnectionError:
                break
            if not data:
                break
            parser.feed_data(data)
        return Got(parser.get_status_code(), got.headers, b"".join(got.pieces), got.clean)
    finally:
        writer.close()


def ask_all(gateway: Gateway, asked: list[tuple[str, bytes]], mode: str = "whole") -> list[Got]:
    async def run() -> list[Got]:
        free = asyncio.Semaphore(AT_ONCE[mode])

        async def one(path: str, body: bytes) -> Got:
            async with free:
                return await ask(gateway, path, body)

        return await asyncio.gather(*(one(path, body) for path, body in asked))

    return asyncio.run(run())


# ---- an independent reading of what was recorded


def datas(body: bytes) -> list[bytes]:
    """The `data` of every event. All recorded events have one data line."""
    lines = re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf"))
    return [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]


def only_usage(data: bytes) -> bool:
    """A chunk that says nothing but the usage: the one a client gets who asks for it, and nobody else."""
    if data == b"[DONE]":
        return False
    chunk = json.loads(data)
    return bool(chunk.get("usage")) and not chunk.get("choices")


def recorded_usage(recording: Recording) -> dict[str, Any] | None:
    """The last usage object of the answer."""
    if not recording.stream:
        return json.loads(recording.body).get("usage") or None
    said = [json.loads(d).get("usage") for d in datas(recording.body) if d != b"[DONE]"]
    return next((u for u in reversed(said) if u), None)


def tokens(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, completion and cached tokens in OpenAI's meaning: the two first make up the total."""
    details = usage.get("prompt_tokens_details") or {}
    completion = usage.get("completion_tokens", 0)
    prompt = usage.get("prompt_tokens", usage["total_tokens"] - completion)
    apart = usage["total_tokens"] - prompt - completion
    if apart and apart == details.get("audio_tokens"):  # Mistral: audio is not in the prompt
        prompt += apart
    elif apart:  # xAI: thinking is not in the completion
        assert apart == usage["completion_tokens_details"]["reasoning_tokens"]
        completion += apart
    names = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens")
    cached = details.get("cached_tokens") or next((usage[n] for n in names if usage.get(n)), 0)
    return prompt, completion, min(cached, prompt)


# ---- the set-up


@pytest.fixture(scope="module")
def recordings(shared: Path, full: bool) -> list[Recording]:
    return load(shared, full)


@pytest.fixture(scope="module")
def replay(shared: Path, full: bool) -> Iterator[Replay]:
    server = Replay(shared, full)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], replay: Replay, recordings: list[Recording]) -> Gateway:
    """Every recorded error has a provider of its own: its breaker and its cool-down are nobody else's business."""
    failing = {f"e{r.id}": replay.url for r in recordings if r.status >= 400}
    return serve(config({"up": replay.url, **failing}, [{"name": "any", "match": {"model": "*"}, "targets": [{"provider": "up"}]}]))


@pytest.fixture(scope="module")
def direct(serve: Callable[..., Gateway], replay: Replay) -> Gateway:
    """Without a route for every name: `up/<model>` goes straight to the provider."""
    return serve(config({"up": replay.url}, [{"name": "none", "match": {"model": "none"}, "targets": [{"provider": "up"}]}]))


class Pass(NamedTuple):
    """All good recordings in one mode: what came, and what the ledger and the log say of it."""

    got: list[tuple[Recording, Got]]
    ledger: dict[str, Row]
    log: dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=MODES)
def passed(request: pytest.FixtureRequest, direct: Gateway, recordings: list[Recording], full: bool) -> Pass:
    mode = request.param
    good = [r for r in recordings if r.status == 200 and not breaks_off(r)]
    if mode == "bytes" and not full:
        good = [r for r in good if len(r.body) <= SMALL_BYTES]
    got = ask_all(direct, [("/v1" + PATHS[r.api], r.asking(f"up/r-{r.id}{OPTIONS[mode]}")) for r in good], mode)
    ids = {g.id for g in got}

    def logged() -> dict[str, dict[str, Any]]:
        return {line["request_id"]: line for line in list(direct.log) if line["request_id"] in ids}

    def booked() -> dict[str, Row]:
        return {row.request_id: row for row in rows(direct.state) if row.request_id in ids}

    direct.wait_for(lambda: len(logged()) == len(ids))
    direct.wait_for(lambda: len(booked()) == len(ids))
    return Pass(list(zip(good, got, strict=True)), booked(), logged())


def breaks_off(recording: Recording) -> bool:
    """Whether there is an error inside the stream."""
    return recording.stream and any(d != b"[DONE]" and json.loads(d).get("error") for d in datas(recording.body))


# ---- what is promised


def test_plain_bodies_arrive_as_they_were_said(passed: Pass) -> None:
    plain = [(r, g) for r, g in passed.got if not r.stream]
    assert len(plain) > 100
    for recording, got in plain:
        assert (got.status, got.clean) == (200, True), recording.id
        assert got.body == recording.body, recording.id
        assert got.headers["content-type"].startswith("application/json")


def test_streams_arrive_with_the_same_events_in_the_same_order(passed: Pass) -> None:
    streams = [(r, g) for r, g in passed.got if r.stream]
    assert len(streams) > 80
    for recording, got in streams:
        assert (got.status, got.clean) == (200, True), recording.id
        said = datas(recording.body)
        want = said if recording.asks_usage else [d for d in said if not only_usage(d)]
        assert datas(got.body) == want, recording.id
        assert got.headers["content-type"].startswith("text/event-stream")


def test_usage_is_counted_as_the_provider_said(passed: Pass) -> None:
    counted = 0
    for recording, got in passed.got:
        row, line = passed.ledger[got.id], passed.log[got.id]
        assert (row.served, row.status, row.provider, row.stream) == (True, 200, "up", recording.stream), recording.id
        assert (line["prompt_tokens"], line["completion_tokens"]) == (row.prompt_tokens, row.completion_tokens)
        usage = recorded_usage(recording)
        assert row.estimated is (usage is None), recording.id
        if usage is None:
            assert row.prompt_tokens > 0, recording.id
            assert row.completion_tokens > 0, recording.id
        else:
            counted += 1
            want = tokens(usage)
            assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == want, recording.id
            assert line["cached_tokens"] == want[2]
    assert counted > 150


def test_a_request_goes_on_with_nothing_but_the_models_name_changed(
    direct: Gateway, replay: Replay, recordings: list[Recording]
) -> None:
    some = [r for r in recordings if r.status == 200]
    ask_all(direct, [("/v1" + PATHS[r.api], r.asking(f"up/r-{r.id}~gap=0")) for r in some])
    with direct.client() as http:
        seen = {entry["sel"]: entry for entry in http.get(replay.url.removesuffix("/v1") + "/__log", params={"n": 2000}).json()}
    for recording in some:
        entry = seen[f"{recording.id}~gap=0"]
        want = recording.asking(f"r-{recording.id}~gap=0").decode()
        assert entry["path"] == "/v1" + PATHS[recording.api]
        if recording.asks_stream and not recording.asks_usage and recording.api != "embeddings":
            sent, asked = json.loads(entry["body"]), json.loads(want)
            assert sent.pop("stream_options")["include_usage"] is True
            asked.pop("stream_options", None)
            assert list(sent.items()) == list(asked.items()), recording.id
        else:
            assert entry["body"] == want[:200_000], recording.id


def test_recorded_errors_are_the_callers_or_the_upstreams(gateway: Gateway, recordings: list[Recording]) -> None:
    failed = [r for r in recordings if r.status >= 400]
    assert len(failed) > 35
    asked = [("/v1" + PATHS[r.api], r.asking(f"e{r.id}/r-{r.id}")) for r in failed]
    for recording, got in zip(failed, ask_all(gateway, asked), strict=True):
        status, who = recording.status, f"{recording.provider} {recording.id}"
        error = json.loads(got.body)["error"]
        assert got.clean, who
        assert got.headers["content-type"] == "application/json", who
        if status in (400, 413, 422):
            assert got.status == status, who
            try:
                own_words = isinstance(json.loads(recording.body).get("error"), dict)
            except ValueError:
                own_words = False
            if own_words:
                assert json.loads(got.body) == json.loads(recording.body), who
            else:
                assert set(error) == {"message", "type", "param", "code"}, who
                assert len(error["message"]) > 10, who
            assert "x-should-retry" not in got.headers, who
            continue
        assert got.status in {401: (502,), 403: (502,), 404: (502,), 429: (429,)}.get(status, (502, 503)), who
        assert set(error) == {"message", "type", "param", "code"}, who
        assert got.headers["x-should-retry"] == "false", who
        line = gateway.logged(got.id)
        assert (line["status"], line["failures"][0]["reason"]) == (got.status, str(status)), who
        if status in (401, 403):  # what a provider says to a wrong key may name our account
            assert b"gateway's credential" in got.body, who


@pytest.mark.parametrize("mode", MODES)
def test_an_error_inside_a_stream_is_never_a_clean_end(direct: Gateway, recordings: list[Recording], mode: str) -> None:
    broken = [r for r in recordings if r.status == 200 and breaks_off(r)]
    assert broken
    asked = [("/v1" + PATHS[r.api], r.asking(f"up/r-{r.id}{OPTIONS[mode]}")) for r in broken]
    for recording, got in zip(broken, ask_all(direct, asked), strict=True):
        line = direct.logged(got.id)
        if got.status != 200:  # it came before anything had been shown: then it is the whole answer
            assert got.status in (400, 502)
            assert json.loads(got.body)["error"]["message"]
            assert line["status"] == got.status
            continue
        *before, last = datas(got.body)
        said = [d for d in datas(recording.body) if d == b"[DONE]" or not json.loads(d).get("error")]
        assert before == [d for d in said if recording.asks_usage or not only_usage(d)]
        assert json.loads(last)["error"]["code"] == "upstream_stream_interrupted"
        assert not got.clean
        assert b"[DONE]" not in got.body
        assert (line["level"], line["status"], line["completion_tokens"] > 0) == ("error", 200, True)


# ---- the official SDK, compared with what it made of the providers' own bytes


def message_of(sdk: openai.OpenAI, recording: Recording, model: str) -> dict[str, Any]:
    """Text, tool calls and finish reason as the recordings' `expect` has them."""
    messages: Any = [{"role": "user", "content": "hi"}]
    if not recording.stream:
        answer = sdk.chat.completions.create(model=model, messages=messages)
        choice = answer.choices[0]
        calls = [(f.name, f.arguments) for c in choice.message.tool_calls or [] if (f := getattr(c, "function", None))]
        return {"text": choice.message.content, "calls": calls, "finish": choice.finish_reason}
    text, finish, found = "", None, dict[int, list[str]]()
    for chunk in sdk.chat.completions.create(model=model, messages=messages, stream=True):
        for choice_ in chunk.choices:
            text += choice_.delta.content if isinstance(choice_.delta.content, str) else ""
            finish = choice_.finish_reason or finish
            for call in choice_.delta.tool_calls or []:
                known = found.setdefault(call.index, ["", ""])
                known[0] += (call.function and call.function.name) or ""
                known[1] += (call.function and call.function.arguments) or ""
    return {"text": text, "calls": [tuple(c) for _, c in sorted(found.items())], "finish": finish}


def test_the_official_sdk_makes_the_same_of_it_as_of_the_providers_own_bytes(gateway: Gateway, recordings: list[Recording]) -> None:
    sample: dict[tuple[str, bool, bool], Recording] = {}
    for r in recordings:
        message = (r.expect or {}).get("message")
        if message and any(not c["name"] for c in message.get("tool_calls", [])):  # Snowflake's nameless remainder of a null
            continue
        # One choice, and text that is text: Mistral's lists of parts are compared byte for byte above.
        if r.api == "chat" and message and isinstance(message["text"], str) and b'"index":1' not in r.body.replace(b" ", b"") and b'"thinking"' not in r.body:
            sample.setdefault((r.provider, r.stream, bool(message["tool_calls"])), r)
    assert len(sample) > 50
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=60) as sdk:
        for r in sample.values():
            assert r.expect is not None
            want = r.expect["message"]
            got = message_of(sdk, r, f"r-{r.id}~chunk=utf8")
            assert (got["text"] or "") == (want["text"] or ""), (r.provider, r.id)
            assert got["finish"] == want["finish"], (r.provider, r.id)
            calls = [(c["name"], c["arguments"] or {}) for c in want["tool_calls"]]
            # A call that the length limit cut off is kept as the text it is.
            assert [(n, a if (n, a) in calls else json.loads(a or "{}")) for n, a in got["calls"]] == calls, (r.provider, r.id)
