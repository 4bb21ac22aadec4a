"""The request log, the scrubbing of messages, and the rules of alerts."""

import json
import os
import threading
import time
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from turnout.exchange import Attempt, Exchange, Principal, Surface, Usage
from turnout.telemetry import log
from turnout.telemetry import record as compact
from turnout.telemetry.alerts import MOST_KEYS, MOST_PER_WINDOW, Alert, Rule, slack
from turnout.telemetry.log import Lines, RequestLog, line, usd, whole_lines
from turnout.telemetry.redact import scrub

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("model", "messages"), True, "chat")
MS = 1_000_000
START = 5_000_000_000_000
KEY = Principal(name="dev", tenant="team", fingerprint="abcdef")


def attempt(provider: str = "a", reason: str = "", **more: Any) -> Attempt:
    given: dict[str, Any] = {
        "provider": provider,
        "account": "main",
        "model": "gpt-4o-mini",
        "cause": "first",
        "started_ns": START + 2 * MS,
        "ended_ns": START + 302 * MS,
        "status": 200,
        "reason": reason,
    }
    return Attempt(**{**given, **more})


def ended(*attempts: Attempt, fault: str = "", message: str = "", **more: Any) -> compact.Record:
    x = Exchange(
        id="req-1", surface=CHAT, started_ns=START, wall_ns=1_750_000_000_123_456_789, config_version=1, principal=KEY,
        attempts=list(attempts), model="fast", status=200,
    )  # fmt: skip
    x.ended_ns = START + 400 * MS
    for name, value in more.items():
        setattr(x, name, value)
    record = compact.of(x, 0)
    record.fault, record.message = fault, message
    return compact.decode(compact.encode(record))


def read(record: compact.Record) -> dict[str, Any]:
    raw = line(record)
    assert raw.count(b"\n") == 1 and raw.endswith(b"\n")
    got: dict[str, Any] = json.loads(raw)
    return got


def test_a_line_tells_who_asked_what_and_who_served_it() -> None:
    got = read(
        ended(
            attempt(),
            stream=True,
            usage=Usage(1200, 300, 100),
            cost_nanos=2_100,
            finish="stop",
            first_content_ns=START + 150 * MS,
            head_ns=START + 152 * MS,
            upstream_ns=150 * MS,
            session="s-1",
        )
    )
    assert got == {
        "ts": "2025-06-15T15:06:40.123Z", "level": "info", "request_id": "req-1", "route": "", "provider": "a",
        "model": "gpt-4o-mini", "asked_model": "fast", "status": 200, "stream": True, "attempts": 1, "fallback": "none",
        "cache": "bypass;off", "guard": "none", "duration_ms": 400.0, "ttft_ms": 150.0, "overhead_us": 2000,
        "prompt_tokens": 1200, "completion_tokens": 300, "cached_tokens": 100, "cost_usd": "0.0000021", "key": "dev",
        "tenant": "team", "session": "s-1", "finish_reason": "stop", "error": "", "error_message": "",
    }  # fmt: skip


def test_attempts_are_listed_when_there_were_several_or_the_only_one_failed() -> None:
    got = read(ended(attempt("a", "429"), attempt("b", cause="fallback")))
    assert [(f["provider"], f["reason"], f["ms"]) for f in got["failures"]] == [("a", "429", 300.0), ("b", "", 300.0)]
    assert (got["provider"], got["fallback"]) == ("b", "a>b;reason=429")
    assert read(ended(attempt("a", "401")))["failures"][0]["reason"] == "401"
    assert "failures" not in read(ended(attempt()))


@pytest.mark.parametrize(
    ("status", "fault", "level"),
    [(200, "", "info"), (200, "interrupted", "error"), (400, "bad_json", "warning"), (499, "client_gone", "warning"),
     (502, "connect", "error")],
)  # fmt: skip
def test_the_level_says_whose_fault_it_was(status: int, fault: str, level: str) -> None:
    assert read(ended(status=status, fault=fault))["level"] == level


def test_an_unknown_price_is_no_price() -> None:
    assert read(ended(attempt(priced=False, usage=Usage(1, 1)), cost_nanos=5))["cost_usd"] is None
    assert read(ended(attempt("a", "429", priced=False), attempt("b"), cost_nanos=5))["cost_usd"] == "0.000000005"
    assert read(ended())["cost_usd"] == "0"


@given(st.integers(0, 10**15))
def test_money_is_exact(nanos: int) -> None:
    assert Decimal(usd(nanos)) * 1_000_000_000 == nanos


@given(st.text(), st.text(), st.text())
def test_whatever_the_callers_wrote_a_line_is_one_line(model: str, session: str, message: str) -> None:
    got = read(ended(model=model, session=session, message=message))
    assert (got["asked_model"], got["session"]) == (model, session)


@pytest.mark.parametrize(("requests", "kept"), [("all", [200, 200, 429]), ("errors", [200, 429]), ("off", [])])
def test_what_is_logged_can_be_chosen(requests: log.Requests, kept: list[int]) -> None:
    out: list[bytes] = []
    sink = RequestLog(requests, lambda data, lines: out.append(data))
    sink.add(ended())
    sink.add(ended(fault="interrupted"))
    sink.add(ended(status=429, fault="rate_limited"))
    sink.flush(1)
    assert len(out) == bool(kept)  # one write per batch
    assert [json.loads(piece)["status"] for piece in b"".join(out).splitlines()] == kept


@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"") + b"\n")), st.integers(1, 100))
def test_a_cut_for_a_pipe_falls_on_line_ends(lines: list[bytes], most: int) -> None:
    parts = whole_lines(b"".join(lines), most)
    assert b"".join(parts) == b"".join(lines)
    for part in parts:
        assert part.endswith(b"\n")
        assert len(part) <= most or part.count(b"\n") == 1


def test_lines_reach_a_pipe_in_order_and_close_waits_for_them() -> None:
    r, w = os.pipe()
    lines = Lines(w)
    got = bytearray()
    reader = threading.Thread(target=lambda: got.extend(b"".join(iter(lambda: os.read(r, 65536), b""))))
    reader.start()
    want = b"".join(b"%d\n" % n for n in range(50_000))
    for n in range(50_000):
        lines.put(b"%d\n" % n)
    lines.close(30)
    os.close(w)
    reader.join()
    os.close(r)
    assert bytes(got) == want and lines.dropped == 0


def test_a_reader_that_stands_still_costs_lines_and_never_time() -> None:
    r, w = os.pipe()
    lines = Lines(w, most_bytes=100_000)
    began = time.monotonic()
    for _ in range(1000):
        lines.put(b"x" * 999 + b"\n")
    assert time.monotonic() - began < 1.0
    assert 800 <= lines.dropped <= 900
    os.close(r)  # wakes the thread with EPIPE
    lines.close()
    os.close(w)


def test_a_closed_reader_ends_the_log_quietly() -> None:
    r, w = os.pipe()
    os.close(r)
    lines = Lines(w)
    lines.put(b"x\n")
    lines.close()
    assert lines.closed
    lines.put(b"y\n")
    assert lines.dropped == 0
    os.close(w)


SECRETS = [
    ("Authorization: Bearer abc.DEF-123_xyz~", "abc.DEF-123_xyz~"),
    ("Incorrect API key provided: sk-ab**yz.", "sk-ab**yz"),
    ("Incorrect API key provided: sk-proj-Abc_123-x.", "Abc_123"),
    ("Bearer sk-proj-Abc_123", "Abc_123"),
    ("GET https://g.example/v1beta/models?key=AIzaSyA12345678 failed", "AIzaSyA12345678"),
    ("GET https://g.example/v1?alt=sse&api_key=s3 failed", "s3"),
    ("GET https://g.example/v1?x=1&X-Amz-Signature=0123abcd failed", "0123abcd"),
    ("connect to https://user:pass@proxy.example:3128 failed", "user:pass"),
    ('{"api_key": "hunter2hunter2"}', "hunter2hunter2"),
    ("x-api-key: 0a1b2c3d4e5f", "0a1b2c3d4e5f"),
    ("Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("https://hooks.slack.com/services/T0/B0/xyzzy said 404", "xyzzy"),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "c2ln"),
    ("gsk_0123456789abcdef is not valid", "0123456789abcdef"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_no_credential_survives(text: str, secret: str) -> None:
    assert secret not in scrub(text)
    assert secret.encode() not in line(ended(fault="credential", status=502, message=text))


@settings(deadline=None)
@given(st.sampled_from(SECRETS), st.integers(0, 2100))
def test_no_credential_survives_being_cut(case: tuple[str, str], pad: int) -> None:
    text, secret = case
    assert secret not in scrub("x " * (pad // 2) + text)


@pytest.mark.parametrize(
    "text",
    [
        "No target of route chat could answer: a said 429, b said 503",
        "unknown key: messages",
        "max_tokens: 12345678 is too large",
        "`model` is missing; send the name of a route",
    ],
)
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert scrub(text) == text


@given(st.text())
def test_scrubbing_is_bounded_and_never_raises(text: str) -> None:
    assert len(scrub(text, 100)) <= 100


S = 1_000_000_000


@pytest.mark.parametrize(
    ("reason", "alert"), [("401", "credential_refused"), ("403", "credential_refused"), ("404", "model_not_found")]
)
def test_a_refused_credential_and_an_unknown_model_raise_an_alert_that_says_what_to_do(reason: str, alert: str) -> None:
    (got,) = Rule(60).of_attempts([attempt(reason=reason), attempt("b")], S)
    assert (got.alert, got.provider, got.account, got.model, got.reason) == (alert, "a", "main", "gpt-4o-mini", reason)
    assert "check the" in got.do


@pytest.mark.parametrize("reason", ["", "429", "400", "500", "connect", "ttft_timeout"])
def test_nothing_else_does(reason: str) -> None:
    assert Rule(60).of_attempts([attempt(reason=reason)], S) == []


def test_the_same_alert_comes_once_in_its_time_and_then_says_how_often_it_was() -> None:
    rule = Rule(60)
    told = [a for s in range(1, 122) for a in rule.of_attempts([attempt(reason="401")], s * S)]
    assert [a.seen for a in told] == [1, 60, 60]
    assert len(rule.of_attempts([attempt(reason="401", model="other")], 122 * S)) == 1
    assert len(rule.of_attempts([attempt("b", reason="401")], 122 * S)) == 1


def test_callers_who_make_up_model_names_fill_neither_memory_nor_mail() -> None:
    rule = Rule(60)
    told = [a for n in range(5000) for a in rule.of_attempts([attempt(reason="404", model=f"m{n}")], S + n)]
    assert len(told) == MOST_PER_WINDOW
    assert rule.suppressed == 5000 - MOST_PER_WINDOW
    for n in range(5000):
        rule.of_attempts([attempt(reason="404", model=f"m{n}")], n * 61 * S)
    assert len(rule._told) <= MOST_KEYS


def test_a_ledger_that_cannot_be_written_raises_one_and_a_well_one_none() -> None:
    rule = Rule(60)
    assert rule.of_ledger("", 0, 0, S) is None
    got = rule.of_ledger("No space left on device", 0, 500, S)
    assert got is not None and got.alert == "ledger_write_failed" and "none is lost yet" in got.message
    assert rule.of_ledger("No space left on device", 3, 500, 2 * S) is None
    later = rule.of_ledger("No space left on device", 3, 500, 62 * S)
    assert later is not None and "3 rows are lost" in later.message


def test_a_webhook_body_cannot_mention_anybody() -> None:
    body = slack(Alert("model_not_found", "a does not know model <!channel> & co", "check"))
    text = msgspec.json.decode(body, type=dict[str, str])["text"]
    assert "<" not in text and "&lt;!channel&gt; &amp; co" in text
