"""The recorder as a process: rings and settings in; ledger, log, spans and alerts out."""

import gzip
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import turnout
from turnout.account.ledger import Row, rows
from turnout.exchange import Attempt, Exchange, Principal, Surface, Trace, Usage
from turnout.telemetry import record as compact
from turnout.telemetry.ring import Ring

CORE = str(Path(turnout.__file__).parent.parent)
CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("model", "messages"), True, "chat")
SIZE = 256 * 1024
SECRET = "hunter2hunter2"


def raw(id: str, reason: str = "", status: int = 200, fault: str = "", trace: bool = False) -> bytes:
    now = time.monotonic_ns()
    x = Exchange(
        id=id, surface=CHAT, started_ns=now - 10**9, wall_ns=time.time_ns() - 10**9, config_version=1, model="fast",
        principal=Principal(name="dev", tenant="team", fingerprint="abcdef"), status=status, ended_ns=now,
        attempts=[Attempt("a", "main", "m", "first", now - 9 * 10**8, now, 0, 0, status, reason, Usage(10, 5), 42)],
        trace=Trace("0af7651916cd43dd8448eb211c80319c", "") if trace else None, usage=Usage(10, 5), cost_nanos=42,
    )  # fmt: skip
    record = compact.of(x, 0)
    record.fault, record.message = fault, f"refused with Bearer {SECRET}" if fault else ""
    return compact.encode(record)


class Running:
    """A recorder with rings on memfds, as the supervisor has it."""

    def __init__(self, state_dir: Path, rings: int = 1, stdout: int = subprocess.PIPE, **settings: Any) -> None:
        self.fds = [os.memfd_create(f"ring{n}") for n in range(rings)]
        self.rings = [Ring(fd, SIZE) for fd in self.fds]
        self.state_dir = state_dir
        self.stdout = stdout
        self.start(**settings)

    def start(self, **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnout.recorder"],
            stdin=subprocess.PIPE,
            stdout=self.stdout,
            stderr=subprocess.PIPE,
            pass_fds=self.fds,
            env={**os.environ, "PYTHONPATH": CORE},
        )
        self.tell(rings=self.fds, ring_size=SIZE, **settings)

    def tell(self, **settings: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"state_dir": str(self.state_dir), **settings}).encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """End of stdin; what it wrote to stdout and stderr, line by line."""
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        return [json.loads(piece) for piece in (out or b"").splitlines()], [
            json.loads(piece) for piece in err.splitlines()
        ]

    def rows(self) -> list[Row]:
        return list(rows(self.state_dir))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(**settings: Any) -> Running:
        made.append(Running(tmp_path / "state", **settings))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
        for ring in one.rings:
            ring.close()
        for fd in one.fds:
            os.close(fd)


def until(what: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Sink(ThreadingHTTPServer):
    """Takes POSTs: a collector, a webhook."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, gzip.decompress(body) if "content-encoding" in self.headers else body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    yield server
    server.shutdown()
    server.server_close()


def test_records_of_every_ring_become_rows_and_lines_and_its_end_loses_none(start: Callable[..., Running]) -> None:
    running = start(rings=2)
    for n in range(500):
        for k, ring in enumerate(running.rings):
            while not ring.put_nowait(raw(f"{k}-{n}")):
                time.sleep(0.001)
    out, err = running.end()  # straight after the last put
    want = {f"{k}-{n}" for k in range(2) for n in range(500)}
    assert {line["request_id"] for line in out} == want
    assert {row.request_id for row in running.rows()} == want
    assert len(out) == len(running.rows()) == 1000
    assert all("fit into a" in line["message"] for line in err)  # what was refused and put again, nothing else


def test_sigterm_drains_too_and_ctrl_c_is_the_supervisors_business(start: Callable[..., Running]) -> None:
    running = start()
    running.rings[0].put_nowait(raw("one"))
    until(running.rows)
    running.process.send_signal(signal.SIGINT)
    running.rings[0].put_nowait(raw("two"))
    until(lambda: len(running.rows()) == 2)
    assert running.process.poll() is None
    running.rings[0].put_nowait(raw("three"))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert [row.request_id for row in running.rows()] == ["one", "two", "three"]


def test_a_recorder_that_was_killed_is_followed_by_one_on_the_same_rings(start: Callable[..., Running]) -> None:
    running = start()
    running.rings[0].put_nowait(raw("one"))
    until(running.rows)
    running.process.kill()
    running.process.communicate()
    running.rings[0].put_nowait(raw("two"))
    running.start()
    running.end()
    assert [row.request_id for row in running.rows()] == ["one", "two"]


def test_a_closed_stdout_stops_the_log_and_not_the_ledger(start: Callable[..., Running]) -> None:
    r, w = os.pipe()
    running = start(stdout=w)
    os.close(w)
    os.close(r)
    for n in range(50):
        running.rings[0].put_nowait(raw(f"{n}"))
        time.sleep(0.002)
    until(lambda: len(running.rows()) == 50)
    _, err = running.end()
    assert err == []


def test_a_stdout_nobody_reads_holds_up_nothing(start: Callable[..., Running]) -> None:
    r, w = os.pipe()
    running = start(stdout=w)
    for n in range(1000):  # 450 KB of lines into a pipe of 64
        while not running.rings[0].put_nowait(raw(f"{n}")):
            time.sleep(0.001)
    until(lambda: len(running.rows()) == 1000)
    assert select.select([r], [], [], 10)[0]  # the log comes after the ledger
    os.close(w)
    os.close(r)
    running.end()


def test_what_cannot_be_decoded_is_counted_and_the_next_record_is_taken(start: Callable[..., Running]) -> None:
    running = start()
    for piece in (b"", b"\xff\xff", b"\x91\xa1x", raw("sound"), b"\xc1"):
        running.rings[0].put_nowait(piece)
    out, err = running.end()
    assert [line["request_id"] for line in out] == ["sound"]
    assert len(err) == 2 and "could not be read" in err[0]["message"] and "4 records" in err[1]["message"]


def test_new_settings_take_the_place_of_the_old_and_bad_ones_are_refused(start: Callable[..., Running]) -> None:
    running = start(log={"requests": "all"})
    ring = running.rings[0]
    ring.put_nowait(raw("one"))
    until(running.rows)
    running.tell(log={"requests": "loud"}, alerts={"webhook": SECRET})
    ring.put_nowait(raw("two"))
    until(lambda: len(running.rows()) == 2)
    running.tell(log={"requests": "errors"}, config_version=2)
    time.sleep(0.2)
    ring.put_nowait(raw("three"))
    ring.put_nowait(raw("four", status=502, reason="connect", fault="connect"))
    out, err = running.end()
    assert [line["request_id"] for line in out] == ["one", "two", "four"]
    assert len(err) == 1 and "new settings were refused" in err[0]["message"] and SECRET not in str(err)
    assert out[-1]["error_message"] == "refused with Bearer ***"


def test_traces_can_be_turned_on_while_it_runs(start: Callable[..., Running], sink: Sink) -> None:
    running = start()
    running.rings[0].put_nowait(raw("one", trace=True))
    until(running.rows)
    running.tell(traces={"endpoint": sink.url, "service_name": "gateway", "headers": {"x-key": SECRET}})
    time.sleep(0.2)
    running.rings[0].put_nowait(raw("two", trace=True, status=502, reason="credential", fault="credential"))
    running.end()
    ((path, body),) = sink.bodies
    (of_resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    server, client = of_resource.scope_spans[0].spans
    assert path == "/v1/traces" and server.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert client.parent_span_id == server.span_id
    assert abs(server.end_time_unix_nano - time.time_ns()) < 60 * 10**9
    assert SECRET.encode() not in body


def test_a_refused_credential_reaches_stderr_and_the_webhook_once(start: Callable[..., Running], sink: Sink) -> None:
    running = start(alerts={"webhook": f"{sink.url}/services/{SECRET}", "every_s": 60})
    for n in range(20):
        running.rings[0].put_nowait(raw(f"{n}", reason="401", status=502, fault="credential"))
    _, err = running.end()
    ((path, body),) = sink.bodies
    assert path == f"/services/{SECRET}" and "refused our credential with 401" in json.loads(body)["text"]
    assert len(err) == 1
    assert (err[0]["level"], err[0]["alert"], err[0]["provider"]) == ("alert", "credential_refused", "a")
    assert SECRET not in str(err)


def test_a_dead_webhook_is_told_without_its_address(start: Callable[..., Running]) -> None:
    running = start(alerts={"webhook": f"http://127.0.0.1:9/{SECRET}"})
    running.rings[0].put_nowait(raw("1", reason="404", status=502, fault="not_found"))
    _, err = running.end()
    assert [line["level"] for line in err] == ["alert", "warning"]
    assert SECRET not in str(err)


def test_a_ledger_that_cannot_be_written_raises_an_alert_and_recovers(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    block = tmp_path / "state" / "ledger"
    block.write_text("in the way")
    running = start(alerts={"every_s": 60})
    running.rings[0].put_nowait(raw("one"))
    assert running.process.stderr is not None
    alert = json.loads(running.process.stderr.readline())
    assert (alert["level"], alert["alert"]) == ("alert", "ledger_write_failed")
    running.rings[0].put_nowait(raw("two"))
    block.unlink()
    until(lambda: len(running.rows()) == 2)
    running.end()


def test_a_first_line_that_is_no_settings_ends_it_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "turnout.recorder"],
        input=b'{"rings": "x"}\n',
        capture_output=True,
        env={**os.environ, "PYTHONPATH": CORE},
        timeout=30,
    )
    assert done.returncode == 2 and b"cannot start" in done.stderr


def test_it_imports_neither_opentelemetry_nor_httpx_unless_it_needs_them() -> None:
    code = "import sys, turnout.recorder; print(sorted({'opentelemetry', 'httpx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": CORE})
    assert done.stdout == b"[]\n"


def test_it_costs_next_to_nothing_while_nothing_happens(start: Callable[..., Running]) -> None:
    running = start()
    running.rings[0].put_nowait(raw("one"))
    until(running.rows)

    def cpu_ns() -> int:
        tasks = Path(f"/proc/{running.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    time.sleep(0.5)
    before = cpu_ns()
    time.sleep(2)
    assert cpu_ns() - before <= 30_000_000  # 1.5 % of a core; 0.3 % measured on a quiet machine
    running.end()
