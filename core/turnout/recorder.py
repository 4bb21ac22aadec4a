"""The recorder: the process that makes ledger rows, log lines, spans and alerts from the workers' records.

It runs beside the workers so that none of this costs the request's way anything, started by the supervisor as
`python -m turnout.recorder`. Contract:

- stdin: the first line is one JSON object, `Settings` below, with the rings' descriptors; every later line is the
  whole settings again without `rings` and takes the place of the old ones. A line that does not decode is refused aloud
  and the old settings stay. End of stdin, or SIGTERM: read the rings to their end, write, sync, send, exit 0. SIGINT is
  ignored: Ctrl-C reaches the whole process group, and the supervisor decides what it means.
- stdout: the request log, nothing else. stderr: JSON lines with ts, level and message; `level: alert` is for people.
- The rings outlive this process, and a batch leaves them only when it is written: another one on the same rings goes on.

One thread reads and writes the ledger; whatever may stand still (stdout, stderr, the collector, the webhook) has a
thread and a bounded queue of its own.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from .account.ledger import Ledger
from .clock import stamp
from .telemetry.alerts import Alert, Alerts, Rule, Webhook
from .telemetry.log import Lines, RequestLog, Requests
from .telemetry.record import Record, decode
from .telemetry.redact import scrub
from .telemetry.ring import DEFAULT_SIZE, Ring

# Between two looks into the rings. Fewer, larger batches keep its code in the cache: of 6,000 records a second each cost
# 1.9 us of CPU at 20 ms and 1.6 at 50. While none come, 20 wake-ups a second are 0.3 % of a core.
EVERY_MS = 50
MOST = 1000  # records of one ring before the others have their turn; where there are more, the next turn comes at once
DRAIN_S = 10.0  # how long the end reads on, if the workers still write
SAY_EVERY_NS = 60_000_000_000
MOST_LINE_BYTES = 1024 * 1024


class LogSettings(msgspec.Struct, frozen=True):
    requests: Requests = "all"


class TracesSettings(msgspec.Struct, frozen=True):
    """`sample` is here for completeness: the workers have sampled already, a record with a trace id is traced."""

    endpoint: str | None = None  # base URL; `/v1/traces` is appended
    sample: float = 0.05
    service_name: str = "turnout"
    headers: dict[str, str] = {}  # name -> value, the secret itself


class AlertsSettings(msgspec.Struct, frozen=True):
    webhook: str | None = None  # the URL, the secret itself
    every_s: float = 60.0


class ProviderSettings(msgspec.Struct, frozen=True):
    """For spans: the conventions' name of a provider goes by its kind, `server.address` by its base_url."""

    kind: str = ""
    address: str = ""
    port: int = 0


class Settings(msgspec.Struct, frozen=True):
    """One line of stdin. Unknown fields are ignored, so that a supervisor may be newer than this process."""

    state_dir: str
    rings: list[int] = []  # open descriptors; the first line's count, later ones' do not
    ring_size: int = DEFAULT_SIZE  # bytes, as the workers have it
    log: LogSettings = LogSettings()
    traces: TracesSettings = TracesSettings()
    alerts: AlertsSettings = AlertsSettings()
    providers: dict[str, ProviderSettings] = {}
    config_version: int = 0


class End(Protocol):
    """Where records go: the ledger as they are, the sinks decoded. `flush` ends a batch, `close` is the end. What they
    raise is counted."""

    name: str

    def flush(self, now_ns: int) -> None: ...
    def close(self) -> None: ...


class Sink(End, Protocol):
    def add(self, record: Record, /) -> None: ...


class Recorder:
    """The rings on one side, the sinks on the other. `pump` moves what is there."""

    def __init__(self, settings: Settings, out: Lines, err: Lines) -> None:
        """Raises `OSError` or `ValueError` if a ring's descriptor is none."""
        self.rings = [Ring(fd, settings.ring_size) for fd in settings.rings]
        self.records = 0
        self.undecodable = 0
        self.behind = False  # a ring had as many records as one turn takes: there may be more
        self.failures: dict[str, int] = {}  # sink -> how often it raised
        self._out = out
        self._err = err
        self._dropped_said = 0
        self._said_ns = 0
        self._settings: Settings | None = None
        self.ledger = Ledger(settings.state_dir)
        self.log = RequestLog(settings.log.requests, out.put)
        self.alerts = self._alerts(settings.alerts)
        self.spans: Sink | None = None
        self.apply(settings)

    @property
    def sinks(self) -> list[Sink]:
        """Behind the ledger, which comes first and reads records itself: what people read, then what machines read."""
        return [self.log, self.alerts, *([self.spans] if self.spans is not None else [])]

    @property
    def ends(self) -> list[End]:
        return [self.ledger, *self.sinks]

    def apply(self, new: Settings) -> None:
        """Put new settings in the place of the old; what has not changed goes on as it is."""
        old, self._settings = self._settings, new
        if old is not None and new.state_dir != old.state_dir:
            self._guarded(self.ledger, self.ledger.close)
            self.ledger = Ledger(new.state_dir)
        self.log.requests = new.log.requests
        self.alerts.rule.every_s = new.alerts.every_s
        if old is not None and new.alerts.webhook != old.alerts.webhook:
            _in_background(self.alerts)
            self.alerts = Alerts(self.alerts.rule, self._webhook(new.alerts), self._tell, time.monotonic_ns)
        if old is None or (new.traces, new.providers) != (old.traces, old.providers):
            if self.spans is not None:
                _in_background(self.spans)
            self.spans = self._spans(new)

    def pump(self, now_ns: int) -> int:
        """Move what lies in the rings, at most `MOST` records each; returns how many there were."""
        count = 0
        self.behind = False
        positions: list[int] = []
        for ring in self.rings:
            taken, position = ring.peek_nowait(self._read, MOST)
            positions.append(position)
            count += taken
            self.behind = self.behind or taken == MOST
        self.records += count
        for end in self.ends:
            try:
                end.flush(now_ns)
            except Exception as e:
                self._failed(end, e)
        # Only now are they gone from the rings: killed in between, this process leaves them to the next one, which may
        # then write a row twice (the ledger's reader knows it by request and attempt) but never loses one.
        for ring, position in zip(self.rings, positions, strict=True):
            ring.release(position)
        self._watch(now_ns)
        return count

    def _read(self, piece: bytes, most: int) -> tuple[int, int, int]:
        """Give the records in a piece of a ring to the ledger, and those that others read of to the sinks. What it takes
        and returns: see `Ring.peek_nowait`."""
        others, records, bad, used, more = self.ledger.add(piece, most, self.log.requests == "all")
        if bad:
            self._unread(bad, "not a record")
        if others:
            sinks = self.sinks
            for raw in others:
                try:
                    record = decode(raw)
                except Exception as e:
                    self._unread(1, scrub(str(e)))
                    continue
                for sink in sinks:
                    try:
                        sink.add(record)
                    except Exception as e:
                        self._failed(sink, e)
        return records, used, more

    def _unread(self, n: int, why: str) -> None:
        """Records of a worker of another version, or of a damaged ring: the next may be sound."""
        if not self.undecodable:
            self.say("error", f"a record could not be read and is lost: {why}")
        self.undecodable += n

    def close(self) -> None:
        """Read the rings to their end and close every sink; says what was lost, if anything was."""
        until = time.monotonic() + DRAIN_S
        while self.pump(time.monotonic_ns()) and time.monotonic() < until:
            pass
        for end in self.ends:
            self._guarded(end, end.close)
        lost = {
            "records that did not fit into a ring": sum(ring.dropped for ring in self.rings),
            "records that could not be read": self.undecodable,
            "ledger rows": self.ledger.lost,
            "log lines": self._out.dropped,
            "failures of sinks": sum(self.failures.values()),
        }
        told = ", ".join(f"{n} {what}" for what, n in lost.items() if n)
        if told:
            self.say("error", f"lost in this run: {told}")
        for ring in self.rings:
            ring.close()

    def say(self, level: str, message: str) -> None:
        """One line on stderr."""
        line = {"ts": stamp(time.time_ns()), "level": level, "source": "recorder", "message": message}
        self._err.put(msgspec.json.encode(line) + b"\n")

    def _watch(self, now_ns: int) -> None:
        ledger = self.ledger
        if ledger.error:
            alert = self.alerts.rule.of_ledger(ledger.error, ledger.lost, ledger.waiting_bytes, now_ns)
            if alert is not None:
                self.alerts.raise_(alert)
        dropped = sum(ring.dropped for ring in self.rings)
        if dropped > self._dropped_said and (not self._said_ns or now_ns - self._said_ns >= SAY_EVERY_NS):
            self._said_ns = now_ns
            self.say("error", f"{dropped - self._dropped_said} records did not fit into a full ring and are lost")
            self._dropped_said = dropped

    def _failed(self, sink: End, error: Exception) -> None:
        n = self.failures[sink.name] = self.failures.get(sink.name, 0) + 1
        if n == 1:
            what = f"{type(error).__name__}: {scrub(str(error))}"
            self.say("error", f"{sink.name} failed, further failures are only counted: {what}")

    def _guarded(self, sink: End, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as e:
            self._failed(sink, e)

    def _tell(self, alert: Alert) -> None:
        line = {"ts": stamp(time.time_ns()), "level": "alert", "source": "recorder", **msgspec.to_builtins(alert)}
        self._err.put(msgspec.json.encode(line) + b"\n")

    def _alerts(self, settings: AlertsSettings) -> Alerts:
        return Alerts(Rule(settings.every_s), self._webhook(settings), self._tell, time.monotonic_ns)

    def _webhook(self, settings: AlertsSettings) -> Webhook | None:
        return Webhook(settings.webhook, lambda text: self.say("warning", text)) if settings.webhook else None

    def _spans(self, settings: Settings) -> Sink | None:
        traces = settings.traces
        if not traces.endpoint:
            return None
        try:
            from .telemetry.spans import Provider, Spans  # 150 ms and 25 MB: only who traces pays

            providers = {name: Provider(p.kind, p.address, p.port) for name, p in settings.providers.items()}
            return Spans(
                traces.endpoint, traces.service_name, traces.headers, providers, lambda text: self.say("warning", text)
            )
        except Exception as e:  # not installed, or an address that is none: everything else goes on
            self.say("error", f"traces are off: {type(e).__name__}: {scrub(str(e))}")
            return None


def _in_background(sink: Sink) -> None:
    """Close a sink that was replaced; it may wait for a network that the loop must not wait for."""
    threading.Thread(target=sink.close, name=f"close-{sink.name}", daemon=True).start()


class Stdin:
    """Lines of a descriptor, with a time limit: this wait is the loop's pause."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._rest = b""
        self.ended = False

    def wait_lines(self, timeout_ms: int | None) -> list[bytes]:
        """Whole lines that came within `timeout_ms` (None: as long as it takes); sets `ended` at the end of input."""
        if not self._poll.poll(timeout_ms):
            return []
        data = os.read(self._fd, 65536)
        if not data or len(self._rest) > MOST_LINE_BYTES:
            self.ended = True
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line for line in lines if line.strip()]


def main() -> int:
    """Run until stdin ends or SIGTERM. 0: all was well; 2: the first line could not be used."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ending.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out, err = Lines(sys.stdout.fileno()), Lines(sys.stderr.fileno())
    decode_settings = msgspec.json.Decoder(Settings).decode

    stdin = Stdin(sys.stdin.fileno())
    lines: list[bytes] = []
    while not lines and not stdin.ended and not ending:
        lines = stdin.wait_lines(EVERY_MS)
    if not lines:
        return 0
    try:
        recorder = Recorder(decode_settings(lines[0]), out, err)
    except (msgspec.DecodeError, OSError, ValueError) as e:
        err.put(msgspec.json.encode({"level": "error", "source": "recorder", "message": f"cannot start: {e}"}) + b"\n")
        err.close()
        return 2

    del lines[0]
    while True:
        for line in lines:
            try:
                recorder.apply(decode_settings(line))
            except msgspec.DecodeError as e:  # its text names the field, never the value
                recorder.say("error", f"new settings were refused, the old ones stay: {e}")
        if stdin.ended or ending:
            break
        recorder.pump(time.monotonic_ns())
        lines = stdin.wait_lines(0 if recorder.behind else EVERY_MS)
    recorder.close()
    out.close()
    err.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
