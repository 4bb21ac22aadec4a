"""telemetry: the record of a request, the metrics, and what the recorder makes of records."""

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from cases import Case
from cases import test_speed as test_speed

from turnout.exchange import Attempt, Exchange, Principal, Surface, Usage
from turnout.recorder import LogSettings, Recorder, Settings
from turnout.telemetry.log import Requests
from turnout.telemetry.metrics import Metrics
from turnout.telemetry.record import encode, of
from turnout.telemetry.ring import Ring

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
ROW = 489  # bytes


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


class Nowhere:
    dropped = 0

    def put(self, line: bytes) -> None:
        pass


def recorder(requests: Requests, n: int) -> Callable[[], tuple[int, int]]:
    """One turn of the recorder over a ring with `n` records as `exchange` leaves them; the bytes of rows it wrote."""
    memory, folder, x, said = os.memfd_create("bench"), tempfile.mkdtemp(), exchange(), Nowhere()
    ring = Ring(memory)
    for _ in range(n):
        ring.put_nowait(encode(of(x, 0)))
    made = Recorder(Settings(folder, [memory], log=LogSettings(requests)), said, said)
    made.pump(1)
    file = os.open(f"{folder}/ledger/2023-11-14.jsonl", os.O_RDWR)
    shutil.rmtree(folder)  # the recorder has it open, and what it has open is ours alone

    def work() -> tuple[int, int]:
        os.ftruncate(file, 0)
        os.pwrite(memory, bytes(8), 8)  # the ring's second word: nothing of it was read
        return made.pump(1), os.fstat(file).st_size

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
    Case("recorder 200 records, errors logged", lambda: recorder("errors", 200), lambda got: got == (200, 200 * ROW), 10),
    Case("recorder 200 records, all logged", lambda: recorder("all", 200), lambda got: got == (200, 200 * ROW), 10),
    Case("recorder 1 record, errors logged", lambda: recorder("errors", 1), lambda got: got == (1, ROW), 60),
    Case("telemetry.metrics observe and record", observe, observed),
]
