"""telemetry: the record of a request, the ring that takes it to the recorder, the metrics."""

import os
from collections.abc import Callable
from typing import Any

from cases import Case
from cases import test_speed as test_speed

from turnout.exchange import Attempt, Exchange, Principal, Surface, Usage
from turnout.telemetry.metrics import Metrics
from turnout.telemetry.ring import Ring

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")


def exchange() -> Exchange:
    """One streamed request that went well at the first target."""
    usage = Usage(60, 150)
    tried = Attempt("a", "", "gpt-4o-mini", "first", 30, 9_000_000, 5_000_000, 6_000_000, 200, "", usage, 99_000)
    x = Exchange(
        id="req_0123456789abcdef", surface=CHAT, started_ns=0, wall_ns=1_700_000_000_000_000_000, config_version=1
    )
    x.principal = Principal("bench", "team:bench", "abcdef", "bench")
    x.body, x.model, x.stream = b"x" * 300, "fast", True
    x.attempts, x.usage, x.cost_nanos, x.finish, x.chunks = [tried], usage, 99_000, "stop", 50
    x.admitted_ns, x.parsed_ns, x.routed_ns, x.upstream_ns = 10, 20, 30, 5_999_000
    x.first_byte_ns, x.first_content_ns, x.head_ns, x.ended_ns = 5_000_000, 6_000_000, 6_010_000, 9_000_000
    x.status, x.bytes_out = 200, 9_000
    return x


def ring() -> Callable[[], list[bytes]]:
    """Ten records of a usual size in, and out again; the ring wraps on the way."""
    memory = os.memfd_create("bench")
    through, records = Ring(memory, 1 << 14), [bytes([i]) * 400 for i in range(10)]

    def work() -> list[bytes]:
        for one in records:
            through.put_nowait(one)
        return through.take_nowait()

    return work


def observe() -> Callable[[], Metrics]:
    metrics, x = Metrics(Ring(os.memfd_create("bench"), 1 << 20)), exchange()  # room for all that are counted

    def work() -> Metrics:
        metrics.observe(x)
        return metrics

    return work


def observed(metrics: Metrics) -> bool:
    taken: Any = metrics.snapshot()
    n = sum(taken["turnout_requests_total"].values())
    tokens = sum(taken["turnout_tokens_total"].values())
    return n > 0 and tokens == n * 210 and sum(next(iter(taken["turnout_ttft_seconds"].values()))[:-1]) == n


CASES = [
    Case("telemetry.ring 10 records", ring, lambda got: got == [bytes([i]) * 400 for i in range(10)], 60),
    Case("telemetry.metrics observe and record", observe, observed),
]
