"""Sixteen ways in which a provider fails, one primary and one fallback, default settings, a sixty-word answer: it always
comes whole. Streams, plain requests, and plain requests that are assembled from streams (`plain: assemble`).

The slow ones (silence, a late first token, a stall) wait for the real limits of 15 and 20 s; all run side by side.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest

from faults.conftest import MODEL, ask, said, slug, text_of
from faults.server import FaultServer
from support.gateway import Gateway, config
from support.goes_on import SIXTY
from turnout.account.ledger import rows

LARGE = "gpt-4.1"  # takes more than MODEL


class Case(NamedTuple):
    """`within`: seconds, of a stream; `plain`: whether a plain request has this fault too (else it has no such middle)."""

    fault: str
    within: float = 3.0
    fallback: bool = True  # the answer comes from the other one
    reason: str = ""
    asked: int = 1  # how often the primary may be asked
    cut: bool = False  # in the middle of a stream: a cut-over
    plain: bool = True


CASES = {
    "01 429, retry after 2 s": Case("429-seconds:seconds=2", reason="429"),
    "02 429 for ever": Case("429", reason="429"),
    "03 one 500": Case("once-500", reason="500"),
    "04 503 for ever": Case("503", reason="503"),
    "05 reset before the head": Case("reset", reason="reset"),
    "06 silence": Case("silence", 16, reason="ttft_timeout", plain=False),
    "07 first token 20 s late": Case("late-token:ms=20000", 16, reason="ttft_timeout", plain=False),
    "08 cut, reset": Case("cut-reset:after=40", reason="reset", cut=True),
    "08 cut, clean close": Case("cut-close:after=40", reason="reset", cut=True),
    "08 cut, chunked end": Case("cut-end:after=40", reason="interrupted", cut=True),
    "08 cut, in-band error": Case("error-event:after=40", reason="500", cut=True),
    "09 stall after 20": Case("stall:after=20", 22, reason="idle_timeout", cut=True, plain=False),
    "10 noise in the middle": Case("noise:after=30", fallback=False),
    "10 a broken chunk": Case("bad-chunk:after=30", reason="interrupted", cut=True),
    "11 no [DONE]": Case("no-done", fallback=False),
    "12 the prompt is too long": Case("too-long", reason="400"),
    "14 the fallback refuses a prefill": Case("cut-reset:after=39", reason="reset", cut=True),
}  # fmt: skip
MODES = ("stream", "plain", "assemble")


def name_of(case: str, mode: str) -> str:
    return f"{slug(case)}-{mode}".lower()


@pytest.fixture(scope="module")
def f() -> Iterator[FaultServer]:
    """The fallback: goes on with what it is shown, and refuses a prefill."""
    with FaultServer(text=SIXTY, default="go-on:prefill=no") as server:
        yield server


@pytest.fixture(scope="module")
def p() -> Iterator[FaultServer]:
    """The primary."""
    with FaultServer(text=SIXTY) as server:
        yield server


@pytest.fixture(scope="module")
def once(engine: str) -> Iterator[FaultServer]:
    """Fails the first request of each path with 500; a new one for each engine."""
    lock = threading.Lock()
    seen: set[bytes] = set()

    def first(head: bytes) -> str:
        path = head.split(b"/", 2)[1]
        with lock:
            fresh = path not in seen
            seen.add(path)
        return "500" if fresh else "ok"

    with FaultServer(text=SIXTY, default=first) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], p: FaultServer, f: FaultServer, once: FaultServer) -> Gateway:
    providers: dict[str, Any] = {"f": f.url, "good": p.url}
    routes: list[dict[str, Any]] = [{"name": "warm", "match": {"model": "warm"}, "targets": [{"provider": n, "model": MODEL} for n in ("good", "f")]}]
    for case, c in CASES.items():
        for mode in MODES:
            name = name_of(case, mode)
            providers[name] = once.url.replace("/v1", f"/x-{name}/v1") if c.fault == "once-500" else p.at(c.fault)
            last: dict[str, Any] = {"provider": "f", "model": LARGE if case.startswith("12") else MODEL}
            if case.startswith("14"):
                # told that it takes one, which is wrong: a target each, as it learns from being refused
                providers[f"f-{name}"] = f.url
                last = {"provider": f"f-{name}", "model": MODEL, "prefill": "assistant-prefix"}
            routes.append({"name": name, "match": {"model": name}, "targets": [{"provider": name, "model": MODEL}, last]})
            if mode == "assemble":
                routes[-1]["plain"] = "assemble"
    providers["filter"] = p.at("content-filter")
    routes.append({"name": "filter", "match": {"model": "filter"}, "targets": [{"provider": n, "model": MODEL} for n in ("filter", "f")]})
    small = [{"provider": "too-long", "model": MODEL}, {"provider": "f", "model": MODEL}]
    providers["too-long"] = p.at("too-long")
    routes.append({"name": "same-model", "match": {"model": "same-model"}, "targets": small})
    return serve(config(providers, routes))


def served(gateway: Gateway, case: str, mode: str, answer: httpx.Response, took: float, good: float) -> None:
    """`good`: seconds that a request without a fault took on this machine just now."""
    c = CASES[case]
    name = name_of(case, mode)
    assert answer.status_code == 200, answer.text
    assert text_of(answer) == SIXTY
    assert took < c.within + 2 * good, took
    request_id = answer.headers["x-request-id"]
    line = gateway.logged(request_id)
    assert line["error"] == ""
    tries = gateway.wait_for(lambda: [r for r in rows(gateway.state) if r.request_id == request_id])
    assert [r.served for r in tries] == [False] * (len(tries) - 1) + [True]
    assert sum(r.provider == name for r in tries) == c.asked
    if not c.fallback:
        assert tries[0].served
    else:
        assert tries[0].reason == c.reason or mode == "plain"
        assert tries[-1].provider.startswith("f")
    story = f"{name}>{tries[-1].provider} after="
    if mode == "plain":
        usage = answer.json()["usage"]
    elif mode == "assemble":
        usage = answer.json()["usage"]
        assert answer.json()["id"] and answer.json()["model"]
    else:
        out = answer.content
        chunks = [json.loads(e[6:]) for e in out.split(b"\n\n") if e.startswith(b"data: {")]
        assert out.count(b'"role"') == 1
        assert out.count(b"[DONE]") == (0 if c.fault == "no-done" else 1)
        for field in ("id", "created", "model"):
            assert len({json.dumps(chunk[field]) for chunk in chunks if chunk["choices"]}) == 1, field
        assert (f": turnout cut-over {story}".encode() in out) == c.cut
        usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] > 0
    assert usage["prompt_tokens"] > 0
    if c.cut and mode != "plain":
        assert [r.cause for r in tries] == ["first"] + ["cut-over"] * (len(tries) - 1)
        assert len(tries) == (3 if case.startswith("14") else 2)
        assert line["cut_overs"][0].startswith(story)
        assert tries[0].estimated and tries[0].completion_tokens > 0
    if mode == "stream":
        # (16) the head says who served when it went out; with what came late in a comment
        assert answer.headers.get("x-turnout-provider") or b"provider=f" in answer.content


def test_the_whole_answer_every_time(gateway: Gateway) -> None:
    """All cases and modes at once, with good requests between them."""
    wrong: list[str] = []
    jobs = [(case, mode) for case, c in CASES.items() for mode in MODES if mode != "plain" or c.plain]

    def one(job: tuple[str, str]) -> None:
        case, mode = job
        with gateway.client() as client:
            try:
                good = 0.0
                for _ in range(2):
                    started = time.monotonic()
                    assert text_of(ask(client, "warm", stream=mode == "stream")) == SIXTY
                    good = max(good, time.monotonic() - started)
                started = time.monotonic()
                more = {"stream_options": {"include_usage": True}} if mode == "stream" else {}
                answer = ask(client, name_of(case, mode), stream=mode == "stream", **more)
                served(gateway, case, mode, answer, time.monotonic() - started, good)
            except Exception as e:
                wrong.append(f"{case}, {mode}: {e!r}"[:600])

    with ThreadPoolExecutor(16) as pool:
        # the slow ones first, so that they wait together
        list(pool.map(one, sorted(jobs, key=lambda job: -CASES[job[0]].within)))
    assert not wrong, "\n".join(wrong)
    assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    cuts = sum(c.cut for c in CASES.values())
    assert gateway.metric("turnout_cutovers_total", outcome="continued") == 2 * cuts
    assert gateway.metric("turnout_cutovers_total", outcome="terminated") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_13_a_content_filter_is_handed_on_and_not_routed_around(gateway: Gateway, f: FaultServer, stream: bool) -> None:
    before = f.requests
    with gateway.client() as client:
        answer = ask(client, "filter", stream=stream)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"
    assert f.requests == before


def test_12_where_no_larger_model_is_listed_the_refusal_is_handed_on(gateway: Gateway, f: FaultServer) -> None:
    before = f.requests
    with gateway.client() as client:
        answer = ask(client, "same-model")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert f.requests == before


def test_15_a_flapping_target_is_left_alone_and_everyone_served(serve: Callable[..., Gateway], f: FaultServer) -> None:
    """It cuts every stream: five in a row open the breaker, and then it is asked once per cool-down at most."""
    with FaultServer(text=SIXTY, default="cut-reset:after=10") as flapping:
        targets = [{"provider": n, "model": MODEL} for n in ("flap", "f")]
        gateway = serve(config({"flap": flapping.url, "f": f.url}, [{"name": "r", "match": {"model": "r"}, "targets": targets}]))
        started = time.monotonic()
        with gateway.client() as client:
            for _ in range(60):
                answer = ask(client, "r", stream=True)
                assert said(answer.content) == SIXTY
                time.sleep(0.02)
        took = time.monotonic() - started
        assert flapping.requests <= 5 + 1 + took / 2.0  # OPEN_NS is 2 s, and grows
        assert gateway.metric("turnout_breaker_opens_total", provider="flap") >= 1
