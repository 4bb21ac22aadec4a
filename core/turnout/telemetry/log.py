"""The request log: one compact JSON line per request on stdout, made in the recorder.

`line` is pure. `Lines` is the edge: it writes whole lines to a descriptor from a thread of its own, so that a reader
who stands still (a paused terminal, a stuck log shipper) can never hold up the ledger.
"""

import errno
import os
import select
import stat
import threading
from collections.abc import Callable
from typing import Literal

import msgspec

from ..clock import stamp
from ..exchange import Attempt
from .record import Record
from .redact import scrub

Requests = Literal["all", "errors", "off"]
Level = Literal["info", "warning", "error"]

MOST_WAITING_BYTES = 8 * 1024 * 1024  # about 12,000 lines; then lines are dropped and counted
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # stdout is a file on a full disk: that may pass
CLOSE_S = 2.0  # how long the end waits for a slow reader


class Failure(msgspec.Struct, gc=False):
    """One attempt, in the line of a request that had several or failed. `ms`: how long it took."""

    provider: str
    account: str
    model: str
    reason: str  # empty: this one served
    ms: float


class Line(msgspec.Struct, gc=False):
    """The line's fields, in the order they are written. `null`: there is no such thing (no first token, no price)."""

    ts: str  # when the request came in
    level: Level
    request_id: str
    route: str
    provider: str  # that served, else the one tried last
    model: str
    asked_model: str
    status: int
    stream: bool
    attempts: int
    fallback: str
    cache: str
    guard: str
    duration_ms: float
    ttft_ms: float | None
    overhead_us: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cost_usd: str | None  # exact; null where an attempt used tokens of a model without a price
    key: str
    tenant: str
    session: str
    finish_reason: str
    error: str
    error_message: str
    failures: list[Failure] | msgspec.UnsetType = msgspec.UNSET
    saved_usd: str | msgspec.UnsetType = (
        msgspec.UNSET
    )  # of an answer from the cache, whose provider and model are named
    cut_overs: list[str] | msgspec.UnsetType = (
        msgspec.UNSET
    )  # as the comments in the stream: a>b after=412 chars reason=reset


def usd(nanos: int) -> str:
    """Nano-dollars as an exact decimal: 2_100 -> `0.0000021`, 0 -> `0`."""
    whole, rest = divmod(nanos, 1_000_000_000)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)


def millis(ns: int) -> float:
    """Nanoseconds as milliseconds, to the microsecond."""
    return (ns + 500) // 1000 / 1000


def final(attempts: list[Attempt]) -> Attempt | None:
    """The attempt a request is named after: the last that served, else the last that was tried, else none."""
    for attempt in reversed(attempts):
        if not attempt.reason:
            return attempt
    return attempts[-1] if attempts else None


def ttft_ns(record: Record) -> int:
    """From the request to its first content token, 0 if there was none (or the answer was not streamed)."""
    at = record.first_content_ns
    return max(1, at - record.started_ns) if at and record.stream else 0


def cost_known(record: Record) -> bool:
    """False when tokens were used of a model that has no price: then the sum is too low to be shown as the cost."""
    return all(a.priced or a.usage is None for a in record.attempts)


def level(record: Record) -> Level:
    """`error`: we or a provider failed, also in a stream that had begun under 200; `warning`: the caller's fault."""
    if record.status >= 500 or (record.fault and record.status < 400):
        return "error"
    return "warning" if record.status >= 400 else "info"


_encode = msgspec.json.Encoder().encode


def line(record: Record) -> bytes:
    """One JSON line with its line end, without payloads or credentials. About 6 us."""
    tried = record.attempts
    last = final(tried)
    usage = record.usage
    ttft = ttft_ns(record)
    out = Line(
        stamp(record.wall_ns),
        level(record),
        record.id,
        record.route,
        last.provider if last else "",
        last.model if last else "",
        record.model,
        record.status,
        record.stream,
        len(tried),
        record.fallback,
        record.cache,
        record.guard,
        millis(record.ended_ns - record.started_ns),
        millis(ttft) if ttft else None,
        record.overhead_ns // 1000,
        usage.prompt if usage else None,
        usage.completion if usage else None,
        usage.cached if usage else None,
        usd(record.cost_nanos) if cost_known(record) else None,
        record.key,
        record.tenant,
        record.session,
        record.finish,
        record.fault,
        scrub(record.message),
    )
    if len(tried) > 1 or (tried and tried[0].reason):
        out.failures = [
            Failure(a.provider, a.account, a.model, a.reason, millis((a.ended_ns or record.ended_ns) - a.started_ns))
            for a in tried
        ]
    if record.saved is not None and not tried:
        out.provider, out.model, out.saved_usd = record.saved.provider, record.saved.model, usd(record.saved.cost_nanos)
    if record.cuts:
        out.cut_overs = [cut.story for cut in record.cuts]
    return _encode(out) + b"\n"


class Lines:
    """Whole lines to a descriptor, in order, from a thread of its own that starts with the first line.

    Bounded: when `most_bytes` wait, further lines are dropped and counted in `dropped`. On a pipe a write holds at most
    PIPE_BUF bytes of whole lines: larger ones are not atomic, and the supervisor and the workers write there too. A
    closed reader (EPIPE) sets `closed`; everything after that is dropped without being counted.
    """

    def __init__(self, fd: int, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._fd = fd
        self._most = most_bytes
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._turn = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None
        self.dropped = 0
        self.closed = False

    def put(self, data: bytes, lines: int = 1) -> None:
        """Hand over whole lines, each with its line end. Never waits."""
        if self.closed:
            return
        with self._turn:
            if self._bytes + len(data) > self._most or self._ending:
                self.dropped += lines
                return
            self._waiting.append(data)
            self._bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"lines-{self._fd}", daemon=True)
                self._thread.start()
            self._turn.notify()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until everything is written, at most `timeout_s`. The descriptor stays open: it is not ours."""
        with self._turn:
            self._ending = True
            self._turn.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        piece = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(self._fd).st_mode) else 0
        while True:
            with self._turn:
                while not self._waiting and not self._ending:
                    self._turn.wait()
                data = b"".join(self._waiting)
                self._waiting.clear()
            if not data:
                return
            try:
                for part in whole_lines(data, piece) if piece else (data,):
                    write_all(self._fd, part)
            except OSError as e:
                if e.errno not in FULL:  # the reader is gone, for good: a descriptor does not come back
                    self.closed = True
                    return
                self.dropped += data.count(b"\n")
            finally:
                with self._turn:
                    self._bytes -= len(data)


def whole_lines(data: bytes, most: int) -> list[bytes]:
    """`data` cut at line ends into pieces of at most `most` bytes; a longer line is a piece by itself."""
    out: list[bytes] = []
    start = 0
    while len(data) - start > most:
        cut = data.rfind(b"\n", start, start + most) + 1 or data.find(b"\n", start) + 1 or len(data)
        out.append(data[start:cut])
        start = cut
    if start < len(data):
        out.append(data[start:])
    return out


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, also where somebody made the descriptor non-blocking (it is shared with other processes)."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])


class RequestLog:
    """The sink: collects a batch of lines and hands it over at once."""

    name = "log"

    def __init__(self, requests: Requests, put: Callable[[bytes, int], None]) -> None:
        self.requests: Requests = requests
        self._put = put
        self._batch: list[bytes] = []

    def add(self, record: Record) -> None:
        """Take one record; its line goes out with the next `flush`."""
        if self.requests == "all" or (self.requests == "errors" and (record.status >= 400 or record.fault)):
            self._batch.append(line(record))

    def flush(self, now_ns: int) -> None:
        """One write for everything since the last one."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._put(b"".join(batch), len(batch))

    def close(self) -> None:
        """Nothing is held beyond the batch."""
        self.flush(0)
