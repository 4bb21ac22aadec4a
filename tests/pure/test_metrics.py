"""Counting requests, adding up workers, and Prometheus' text."""

import re
from typing import Any

import pytest

from turnout.errors import Fault
from turnout.exchange import Attempt, Exchange, Route, Surface, Usage
from turnout.telemetry import metrics
from turnout.telemetry.metrics import FAMILIES, MOST_SERIES, Metrics

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
MS = 1_000_000
ROUTE: Any = Route(
    name="r", match="m", groups=(), policy=None, retries_max=2, budget=None, connect_ms=1, idle_ms=1, total_ms=1, max_body_bytes=1, header=(b"", b"")
)


def ended(**fields: Any) -> Exchange:
    start = 1_000_000_000
    x = Exchange(
        id="q", surface=CHAT, started_ns=start, wall_ns=0, config_version=1, status=200, route=ROUTE, ended_ns=start + 100 * MS, head_ns=start + 90 * MS,
        upstream_ns=80 * MS, admitted_ns=start + MS, parsed_ns=start + 2 * MS, routed_ns=start + 3 * MS,
        attempts=[Attempt("p", "", "m", "first", start, start + 90 * MS, status=200)],
    )  # fmt: skip
    for name, value in fields.items():
        setattr(x, name, value)
    return x


def series(m: Metrics) -> dict[str, float]:
    """`name{labels}` -> value of the text."""
    rows = (line.rpartition(" ") for line in metrics.text(m.snapshot()).decode().split("\n") if line and line[0] != "#")
    return {name: float(value) for name, _, value in rows}


def test_a_request_is_counted_once_under_who_served_it() -> None:
    m = Metrics()
    m.observe(ended(usage=Usage(10, 5, 3, 0, 2), cost_nanos=160))
    m.observe(ended(status=400, attempts=[], fault=Fault("bad_json", "x")))
    got = series(m)
    labels = 'route="r",surface="chat",provider="p",model="m"'
    assert got[f'turnout_requests_total{{{labels},status="200"}}'] == 1
    assert got['turnout_requests_total{route="r",surface="chat",provider="",model="",status="400"}'] == 1
    assert [got[f'turnout_tokens_total{{{labels},kind="{kind}"}}'] for kind in ("prompt", "completion", "cached", "reasoning")] == [10, 5, 3, 2]
    assert got[f"turnout_cost_usd_total{{{labels}}}"] == 1.6e-07
    assert got['turnout_faults_total{route="r",kind="bad_json"}'] == 1
    assert got[f"turnout_request_duration_seconds_sum{{{labels}}}"] == 0.1
    assert got[f"turnout_overhead_seconds_sum{{{labels}}}"] == 0.01
    assert got['turnout_stage_seconds_total{route="r",stage="upstream"}'] == 0.16


def test_a_stream_has_a_first_token_and_gaps() -> None:
    m = Metrics()
    m.observe(ended(stream=True, first_content_ns=1_000_000_000 + 20 * MS, chunks=9))
    got = series(m)
    labels = 'route="r",surface="chat",provider="p",model="m"'
    assert got[f"turnout_ttft_seconds_sum{{{labels}}}"] == 0.02
    assert got[f"turnout_inter_token_seconds_sum{{{labels}}}"] == 0.01
    assert got[f'turnout_ttft_seconds_bucket{{{labels},le="0.01"}}'] == 0
    assert got[f'turnout_ttft_seconds_bucket{{{labels},le="0.025"}}'] == 1


def test_retries_fallbacks_and_timeouts() -> None:
    m = Metrics()
    tries = [
        Attempt("a", "", "m", "first", 1, 2, reason="ttft_timeout"), Attempt("b", "", "m", "fallback", 2, 3, reason="429"),
        Attempt("b", "", "m", "retry", 3, 4),
    ]  # fmt: skip
    m.observe(ended(attempts=tries))
    m.observe(ended(attempts=tries[:1], status=504, fault=Fault("total_timeout", "x")))
    got = series(m)
    assert got['turnout_fallbacks_total{route="r",from="a",to="b",reason="ttft_timeout"}'] == 1
    assert got['turnout_retries_total{route="r",provider="b"}'] == 1
    assert got['turnout_timeouts_total{route="r",provider="a",kind="ttft_timeout"}'] == 2
    assert got['turnout_timeouts_total{route="r",provider="",kind="total_timeout"}'] == 1
    attempts = 'turnout_attempts_total{route="r",provider="%s",account="",model="m",cause="%s",outcome="%s"}'
    assert [got[attempts % row] for row in (("a", "first", "ttft_timeout"), ("b", "fallback", "429"), ("b", "retry", "ok"))] == [2, 1, 1]


def test_made_up_model_names_cannot_fill_the_memory() -> None:
    m = Metrics()
    for n in range(MOST_SERIES + 500):
        m.observe(ended(attempts=[Attempt("p", "", f"made-up-{n}", "first", 1, 2)]))
    got = m.snapshot()
    assert len(got["turnout_requests_total"]) == MOST_SERIES + 1
    assert got["turnout_requests_total"]["r", "chat", "p", "other", "200"] == 500
    assert len(got["turnout_attempts_total"]) <= MOST_SERIES + 1


def test_workers_add_up() -> None:
    a, b = Metrics(), Metrics()
    for m, times in ((a, 3), (b, 2)):
        for _ in range(times):
            m.observe(ended(usage=Usage(10, 5)))
    b.observe(ended(status=500))
    total = metrics.add([a.snapshot(), b.snapshot()])
    assert total["turnout_requests_total"] == {("r", "chat", "p", "m", "200"): 5, ("r", "chat", "p", "m", "500"): 1}
    assert total["turnout_tokens_total"]["r", "chat", "p", "m", "prompt"] == 50
    histogram = total["turnout_request_duration_seconds"]["r", "chat", "p", "m"]
    assert isinstance(histogram, list)
    assert sum(histogram[:-1]) == 6
    assert histogram[-1] == pytest.approx(0.6)


def test_adding_up_changes_none_of_the_parts() -> None:
    m = Metrics()
    m.observe(ended())
    one = m.snapshot()
    before = metrics.encode(one)
    metrics.add([one, one, m.snapshot()])
    assert metrics.encode(one) == before


def test_a_snapshot_survives_the_control_channel() -> None:
    m = Metrics()
    m.observe(ended(usage=Usage(10, 5)))
    assert metrics.decode(metrics.encode(m.snapshot())) == m.snapshot()


def test_of_a_worker_that_has_gone_only_counters_stay() -> None:
    left = metrics.counters_only({"turnout_in_flight": {(): 3}, "turnout_cache_total": {("r", "hit"): 2}, "turnout_ttft_seconds": {("r", "c", "p", "m"): [1.0, 2.0]}})
    assert left.keys() == {"turnout_cache_total", "turnout_ttft_seconds"}


def test_the_text_is_prometheus_text() -> None:
    m = Metrics()
    m.observe(ended(attempts=[Attempt("p", "", 'a"b\\c\nd\u00e9', "first", 1, 2)], stream=True, first_content_ns=1_000_000_001, chunks=3))
    text = metrics.text(m.snapshot()).decode()
    assert text.endswith("\n")
    line = re.compile(r'turnout_[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? (\d+(\.\d+)?([eE]-?\d+)?|\+Inf)')
    for row in text.removesuffix("\n").split("\n"):
        assert row.startswith(("# HELP turnout_", "# TYPE turnout_")) or line.fullmatch(row), row
    assert 'model="a\\"b\\\\c\\nd\u00e9"' in text
    assert text.count("# TYPE turnout_requests_total counter") == 1


def test_buckets_are_cumulative_and_end_with_all() -> None:
    m = Metrics()
    for took in (1, 7, 30, 100, 900_000):
        m.observe(ended(ended_ns=1_000_000_000 + took * MS))
    got = series(m)
    buckets = [v for name, v in got.items() if name.startswith("turnout_request_duration_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == got['turnout_request_duration_seconds_count{route="r",surface="chat",provider="p",model="m"}'] == 5
    assert buckets[-2] == 4


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_names_follow_the_conventions(name: str) -> None:
    kind, labels, help_, bounds = FAMILIES[name]
    assert name.startswith("turnout_")
    assert (kind == "counter") == name.endswith("_total")
    assert kind in ("counter", "gauge", "histogram")
    assert bool(bounds) == (kind == "histogram")
    assert list(bounds) == sorted(bounds)
    assert help_
    assert "le" not in labels
