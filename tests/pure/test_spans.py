"""Spans, as a collector on a real socket gets them."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from turnout.exchange import OUTRUN, Attempt, Cut, Exchange, Principal, Surface, Trace, Usage
from turnout.telemetry import attrs, spans
from turnout.telemetry import record as compact
from turnout.telemetry.spans import Provider, Spans

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("model", "messages"), True, "chat")
MS = 1_000_000
START = 5_000_000_000_000
WALL = 1_750_000_000_123_456_789
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector: keeps what it was sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.status == 200:
            message = ExportTraceServiceRequest.FromString(body)
            self.server.paths.append(self.path)
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            for of_resource in message.resource_spans:
                self.server.resources.append(plain(of_resource.resource.attributes))
                for of_scope in of_resource.scope_spans:
                    self.server.spans.extend(of_scope.spans)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def plain(pairs: Any) -> dict[str, Any]:
    def value(v: AnyValue) -> Any:
        kind = v.WhichOneof("value")
        return [value(x) for x in v.array_value.values] if kind == "array_value" else getattr(v, str(kind))

    return {pair.key: value(pair.value) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def attempt(provider: str = "a", reason: str = "", **more: Any) -> Attempt:
    given: dict[str, Any] = {
        "provider": provider, "account": "main", "model": "gpt-4o-mini", "cause": "first",
        "started_ns": START + 2 * MS, "ended_ns": START + 302 * MS, "status": 200, "reason": reason,
    }  # fmt: skip
    return Attempt(**{**given, **more})


def ended(*attempts: Attempt, fault: str = "", message: str = "", **more: Any) -> compact.Record:
    x = Exchange(
        id="req-1", surface=CHAT, started_ns=START, wall_ns=WALL, config_version=7, attempts=list(attempts),
        principal=Principal(name="dev", tenant="team", fingerprint="abcdef"), model="fast", status=200,
        trace=Trace(TRACE, PARENT),
    )  # fmt: skip
    x.ended_ns = START + 400 * MS
    for name, value in more.items():
        setattr(x, name, value)
    record = compact.of(x, 0)
    record.fault, record.message = fault, message
    return compact.decode(compact.encode(record))


def sent(collector: Collector, *records: compact.Record, **more: Any) -> list[Span]:
    sink = Spans(collector.url, "gateway", more.get("headers", {}), more.get("providers", {}), lambda text: None)
    for record in records:
        sink.add(record)
    sink.close()
    assert sink.lost == 0
    return collector.spans


FELL_BACK = ended(
    attempt("a", "429", status=429),
    attempt(
        "b", cause="fallback", started_ns=START + 310 * MS, ended_ns=START + 390 * MS,
        first_content_ns=START + 330 * MS,
        usage=Usage(1200, 300, 100, 0, 50), cost_nanos=123_456,
    ),
    stream=True, usage=Usage(1200, 300, 100, 0, 50), cost_nanos=123_456, finish="stop", session="s-1",
    prompt_version="v3", first_content_ns=START + 331 * MS, head_ns=START + 332 * MS, upstream_ns=331 * MS,
    cache="miss",
)  # fmt: skip


def test_a_request_is_a_server_span_with_a_client_span_per_attempt(collector: Collector) -> None:
    server, first, second = sent(collector, FELL_BACK)
    assert [s.kind for s in (server, first, second)] == [
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_CLIENT,
        Span.SPAN_KIND_CLIENT,
    ]
    assert {s.trace_id.hex() for s in (server, first, second)} == {TRACE}
    assert server.parent_span_id.hex() == PARENT
    assert first.parent_span_id == second.parent_span_id == server.span_id
    assert len({server.span_id, first.span_id, second.span_id}) == 3
    assert (server.name, first.name) == ("chat fast", "chat gpt-4o-mini")
    assert (server.start_time_unix_nano, server.end_time_unix_nano) == (WALL, WALL + 400 * MS)
    assert (second.start_time_unix_nano, second.end_time_unix_nano) == (WALL + 310 * MS, WALL + 390 * MS)
    assert collector.paths == ["/v1/traces"]


def test_the_requests_span_carries_the_names_people_alert_on_and_our_own(collector: Collector) -> None:
    got = plain(sent(collector, FELL_BACK)[0].attributes)
    assert got == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "b", "gen_ai.system": "b",
        "gen_ai.request.model": "fast", "gen_ai.request.stream": True, "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.response.time_to_first_chunk": 0.331,
        "gen_ai.conversation.id": "s-1", "http.request.method": "POST", "http.response.status_code": 200,
        "llm.token_count.prompt": 1200, "llm.token_count.completion": 300, "cost_usd": 0.000123456,
        "turnout.request_id": "req-1", "turnout.surface": "chat", "turnout.key": "dev", "turnout.tenant": "team",
        "turnout.session": "s-1", "turnout.prompt_version": "v3", "turnout.cache": "miss", "turnout.guardrail": "none",
        "turnout.fallback": "a>b;reason=429", "turnout.attempts": 2, "turnout.ttft_ms": 331.0,
        "turnout.overhead_us": 1000, "turnout.config_version": 7, "turnout.provider": "b", "turnout.account": "main",
        "turnout.usage.estimated": False,
    }  # fmt: skip


def test_an_attempts_span_follows_the_conventions_and_carries_its_own_usage(collector: Collector) -> None:
    providers = {"b": Provider("azure", "b.example", 443)}
    _, first, second = sent(collector, FELL_BACK, providers=providers)
    failed, served = plain(first.attributes), plain(second.attributes)
    assert (failed[attrs.ERROR_TYPE], failed[attrs.HTTP_STATUS], first.status.code) == (
        "429",
        429,
        Status.STATUS_CODE_ERROR,
    )
    assert attrs.INPUT_TOKENS not in failed and attrs.RESPONSE_MODEL not in failed
    assert second.status.code == Status.STATUS_CODE_UNSET
    assert served == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "azure.ai.openai", "gen_ai.system": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o-mini", "gen_ai.response.model": "gpt-4o-mini", "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.response.time_to_first_chunk": 0.02,
        "gen_ai.usage.input_tokens": 1200, "gen_ai.usage.output_tokens": 300,
        "gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.reasoning.output_tokens": 50,
        "http.response.status_code": 200, "server.address": "b.example", "server.port": 443,
        "turnout.provider": "b", "turnout.account": "main", "turnout.attempt": 2, "turnout.cause": "fallback",
        "turnout.request_id": "req-1", "turnout.key": "dev", "turnout.tenant": "team",
        "turnout.attempt.cost_usd": 0.000123456, "turnout.usage.estimated": False,
    }  # fmt: skip


def test_first_token_and_fallback_are_span_events(collector: Collector) -> None:
    server, _, second = sent(collector, FELL_BACK)
    fallback, ttft = server.events
    assert (fallback.name, fallback.time_unix_nano) == ("turnout.fallback", WALL + 310 * MS)
    assert plain(fallback.attributes) == {
        "turnout.from": "a/gpt-4o-mini", "turnout.to": "b/gpt-4o-mini", "turnout.reason": "429",
    }  # fmt: skip
    assert (ttft.name, ttft.time_unix_nano, plain(ttft.attributes)) == (
        "turnout.ttft", WALL + 331 * MS, {"turnout.ttft_ms": 331.0},
    )  # fmt: skip
    assert [(e.name, plain(e.attributes)) for e in second.events] == [("turnout.ttft", {"turnout.ttft_ms": 20.0})]


def test_an_attempt_that_was_outrun_is_no_error(collector: Collector) -> None:
    first = attempt("a", OUTRUN, status=0)
    hedge = attempt("b", cause="hedge", started_ns=START + 250 * MS)
    server, lost, won = sent(collector, ended(first, hedge))
    assert [s.status.code for s in (server, lost, won)] == [Status.STATUS_CODE_UNSET] * 3
    assert (plain(lost.attributes)["turnout.reason"], "error.type" in plain(lost.attributes)) == ("outrun", False)
    assert plain(won.attributes)["turnout.cause"] == "hedge"
    (switch,) = (e for e in server.events if e.name == "turnout.fallback")
    assert plain(switch.attributes)["turnout.reason"] == "outrun"
    collector.spans.clear()
    server, *_ = sent(collector, ended(attempt("b", OUTRUN, cause="hedge"), attempt("a")))
    assert plain(server.attributes)["turnout.fallback"] == "none"


def test_a_cut_over_is_a_span_event(collector: Collector) -> None:
    joined = Cut("a", "b", 412, "reset", "continued", START + 200 * MS, START + 350 * MS)
    ended_ = Cut("b", "", 500, "idle_timeout", "terminated", START + 380 * MS)
    server, *_ = sent(collector, ended(attempt("a", "reset"), attempt("b", cause="cut-over"), cuts=[joined, ended_]))
    one, other = (e for e in server.events if e.name == "turnout.cutover")
    assert one.time_unix_nano == WALL + 200 * MS
    assert plain(one.attributes) == {
        "turnout.from": "a", "turnout.to": "b", "turnout.reason": "reset", "turnout.delivered_chars": 412, "turnout.outcome": "continued",
        "turnout.gap_ms": 150.0,
    }  # fmt: skip
    assert plain(other.attributes)["turnout.outcome"] == "terminated"
    assert "turnout.gap_ms" not in plain(other.attributes)


def test_a_sum_over_the_spans_of_a_trace_counts_every_token_and_dollar_once(collector: Collector) -> None:
    every = [plain(s.attributes) for s in sent(collector, FELL_BACK)]
    for name, total in {attrs.LLM_PROMPT: 1200, attrs.INPUT_TOKENS: 1200, attrs.COST_USD: 0.000123456}.items():
        assert sum(s.get(name, 0) for s in every) == total


@pytest.mark.parametrize(
    ("status", "fault", "code"),
    [
        (502, "connect", "ERROR"),
        (200, "interrupted", "ERROR"),
        (400, "bad_json", "UNSET"),
        (499, "client_gone", "UNSET"),
    ],
)
def test_only_a_failure_of_ours_or_a_providers_is_an_error_of_the_requests_span(
    collector: Collector, status: int, fault: str, code: str
) -> None:
    (server,) = sent(collector, ended(status=status, fault=fault, message="no luck with sk-abcdefgh123"))
    assert server.status.code == Status.StatusCode.Value(f"STATUS_CODE_{code}")
    assert plain(server.attributes)[attrs.ERROR_TYPE] == fault
    assert "abcdefgh" not in str(server)


def test_an_unknown_price_is_left_out(collector: Collector) -> None:
    every = sent(collector, ended(attempt(priced=False, usage=Usage(5, 5)), usage=Usage(5, 5)))
    assert not [s for s in every if {attrs.COST_USD, attrs.ATTEMPT_COST_USD} & set(plain(s.attributes))]


def test_a_request_without_trace_has_no_span_and_one_without_parent_is_a_root(collector: Collector) -> None:
    (server,) = sent(collector, ended(trace=None), ended(trace=Trace(TRACE, "")))
    assert server.parent_span_id == b""


def test_the_resource_names_the_service_and_headers_go_along(collector: Collector) -> None:
    sent(collector, ended(), headers={"Authorization": "Basic eHg="})
    (resource,) = collector.resources
    assert resource["service.name"] == "gateway"
    assert resource["service.version"] and resource["service.instance.id"]
    assert collector.headers[0]["authorization"] == "Basic eHg="


def test_a_dead_collector_costs_counted_spans_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spans, "EXPORT_S", 0.2)
    said: list[str] = []
    sink = Spans("http://127.0.0.1:9", "t", {}, {}, said.append)
    for _ in range(600):
        sink.add(FELL_BACK)
    for second in range(50):
        sink.flush(second * 1_000_000_000)
        time.sleep(0.01)
    sink.close()
    assert sink.lost == 1800
    assert 1 <= len(said) <= 2  # within the minute, and at the end
    assert capfd.readouterr() == ("", "")


def test_a_full_queue_drops_whole_requests_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_WAITING", 600)
    monkeypatch.setattr(spans, "CLOSE_S", 0.3)
    monkeypatch.setattr(spans, "EVERY_MS", 60_000.0)
    monkeypatch.setattr(spans, "EXPORT_S", 0.2)
    sink = Spans("http://127.0.0.1:9", "t", {}, {}, lambda text: None)
    began = time.monotonic()
    for _ in range(2000):
        sink.add(FELL_BACK)
    sink.close()
    assert sink.lost >= 3 * 1700
    assert sink.lost <= 6000
    assert time.monotonic() - began < 3


def test_no_attribute_name_is_written_twice() -> None:
    names = [v for k, v in vars(attrs).items() if k.isupper() and isinstance(v, str) and not k.startswith("EVENT_")]
    assert len(names) == len(set(names))
