"""What it costs to run, and what others can make it cost: start, memory, descriptors, CPU, other people's waiting time."""

import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.server import FaultServer
from support.drive import request, run
from support.gateway import Gateway, config
from support.processes import cpu_share, descriptors, private_bytes, resident_bytes, stretch, threads

KIB = 1024
SIM = {"kind": "simulated", "ttft_ms": 0.2, "ttft_sigma": 0, "tokens_per_s": 1e6, "token_sigma": 0, "answer_tokens": 3}
# One request in ten: half of them fail before the first token (and are served by the other), half of them after it.
FAULTY = SIM | {
    "faults": [
        {"kind": "status", "status": 503, "share": 0.02},
        {"kind": "reset", "share": 0.02},
        {"kind": "html", "share": 0.01},
        {"kind": "cut", "share": 0.02, "after_tokens": 1},
        {"kind": "truncate", "share": 0.02, "after_tokens": 1},
        {"kind": "error-event", "share": 0.01, "after_tokens": 1},
    ]
}


def route(*providers: str) -> list[dict[str, Any]]:
    return [{"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": name, "model": "sim-small"} for name in providers]}]


def made(providers: dict[str, Any]) -> dict[str, Any]:
    return config(providers, route(*providers), log={"requests": "off"})


@pytest.fixture
def start(serve: Callable[..., Gateway]) -> Iterator[Callable[..., Gateway]]:
    """Like `serve`, but ends with the test."""
    running: list[Gateway] = []

    def go(data: dict[str, Any], **options: Any) -> Gateway:
        running.append(serve(data, **options))
        return running[-1]

    yield go
    for gateway in running:
        assert gateway.stop() == 0


def worker(gateway: Gateway) -> int:
    return int(gateway.status()["workers"][0]["pid"])


def many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- start and idleness


@pytest.mark.alone
def test_it_answers_within_a_second_of_its_start_and_a_worker_takes_under_60_mb(start: Callable[..., Gateway], engine: str) -> None:
    took: list[float] = []
    shares: list[float] = []
    loaded = stretch()
    with FaultServer() as upstream:
        for _ in range(3):
            began = time.perf_counter()
            gateway = start(made({"a": upstream.url}))
            result = run(gateway, lambda n: request(gateway), count=1, clients=1)  # noqa: B023
            took.append(time.perf_counter() - began)
            assert result.statuses == {200: 1}
            pid = worker(gateway)
            shares.append(cpu_share(pid, 1.0))
            resident = resident_bytes(pid)
            gateway.stop()
    print(f"\n{engine}: start to first answer {statistics.median(took):.2f} s, idle worker {resident / 1e6:.1f} MB, {statistics.median(shares):.2%} of a core")
    assert statistics.median(took) < max(1.0, loaded, stretch())  # what a loaded machine adds is not ours
    assert resident < 60_000_000
    assert statistics.median(shares) < 0.02


def test_a_worker_of_one_thread_does_not_wait_for_its_turn(start: Callable[..., Gateway], engine: str) -> None:
    """granian's two threads take turns (SCHED_BATCH); on a busy core that cost native 4 ms a request at 200 a second."""
    with FaultServer() as upstream:
        pid = worker(start(made({"a": upstream.url})))
        assert os.sched_getscheduler(pid) == (os.SCHED_OTHER if engine == "native" else os.SCHED_BATCH)


# ---- connections


def test_an_idle_connection_takes_under_16_kib(start: Callable[..., Gateway], engine: str) -> None:
    many_files()
    count = 1000
    gateway = start(made({"a": SIM}))
    raw = request(gateway)
    assert run(gateway, lambda n: raw, count=2000, clients=64).statuses == {200: 2000}  # pools and caches are filled
    time.sleep(0.3)
    before = resident_bytes(worker(gateway))
    socks: list[socket.socket] = []
    for _ in range(count):
        sock = socket.create_connection((gateway.host, gateway.port), 10)
        sock.sendall(raw)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        socks.append(sock)
    each = (resident_bytes(worker(gateway)) - before) / count
    print(f"\n{engine}: {count} idle connections take {each / KIB:.1f} KiB each")
    for sock in socks:
        sock.close()
    assert each < 16 * KIB


def slow_reader(host: str, port: int, raw: bytes) -> socket.socket:
    """A client that reads the first bytes of its answer and then no more."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # before connecting, or it does not bind the window
    sock.connect((host, port))
    sock.sendall(raw)
    assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    return sock


@pytest.mark.parametrize("piece", [pytest.param(4_000, marks=pytest.mark.full), 32_768])
def test_the_server_itself_holds_under_256_kib_for_a_slow_reader(engine: str, piece: int) -> None:
    if engine != "native":
        pytest.skip("granian queues pieces without counting their bytes")
    many_files()
    script = Path(__file__).parents[1] / "support" / "bare_server.py"
    bare = subprocess.Popen([sys.executable, str(script), str(piece)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bare.stdout is not None
    assert bare.stdin is not None
    socks: list[socket.socket] = []
    try:
        port = int(bare.stdout.readline())
        before = resident_bytes(bare.pid)
        socks += [slow_reader("127.0.0.1", port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n") for _ in range(500)]
        assert Gateway.wait_for(lambda: cpu_share(bare.pid, 0.5) < 0.01, 20)  # all of them are held back
        each, share = (resident_bytes(bare.pid) - before) / 500, cpu_share(bare.pid, 2.0)
    finally:
        bare.kill()
        bare.wait()
        bare.stdin.close()
        bare.stdout.close()
        for sock in socks:
            sock.close()
    print(f"\nnative server, pieces of {piece}: 500 slow readers take {each / KIB:.0f} KiB each, {share:.2%} of a core")
    assert each < 256 * KIB
    assert share < 0.001


def test_500_slow_readers_take_little_memory_and_no_time(start: Callable[..., Gateway], engine: str, full: bool) -> None:
    many_files()
    count = 500 if full else 150
    with FaultServer(default="endless:size=4000") as upstream:
        gateway = start(config({"a": upstream.url}, route("a"), log={"requests": "off"}))
        pid = worker(gateway)
        before, idle = resident_bytes(pid), cpu_share(pid, 1.0)
        raw = request(gateway, stream=True)
        socks = [slow_reader(gateway.host, gateway.port, raw) for _ in range(count)]

        def stands_still() -> bool:
            """Neither writes the upstream, which may only be late on a loaded machine, nor does the worker do anything."""
            earlier = sum(seen.written for seen in upstream.seen)
            return cpu_share(pid, 0.5) < idle + 0.01 and sum(seen.written for seen in upstream.seen) == earlier

        assert Gateway.wait_for(stands_still)
        each = (resident_bytes(pid) - before) / count
        share = cpu_share(pid, 3.0) - idle
        print(f"\n{engine}: {count} streams that nobody reads take {each / KIB:.0f} KiB each and {share:.2%} of a core (an idle worker {idle:.2%})")
        # And they are not forgotten: whoever reads again gets more than what the kernel had.
        sock, got = socks[0], 0
        at = upstream.seen[0].written
        while upstream.seen[0].written == at and got < 64_000_000:
            got += len(sock.recv(1 << 20))
        assert upstream.seen[0].written > at
        for sock in socks:
            sock.close()
        assert Gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
        assert Gateway.wait_for(lambda: upstream.open == 0)
    assert share < 0.01
    # granian queues pieces without counting their bytes: up to 1.2 MB, whatever we give it (caller.py), beside the Python
    # client's: it pauses an upstream above 256 KiB and is given as much again in one read.
    assert each < (256 if engine == "native" else 2048) * KIB


@pytest.mark.alone
def test_clients_that_mean_no_good_hardly_slow_the_others(start: Callable[..., Gateway], engine: str, full: bool) -> None:
    """1,100 idle ones, 2,000 that send their heads and 500 that send their bodies byte by byte."""
    many_files()
    gateway = start(made({"a": SIM | {"ttft_ms": 2}}))
    raw = request(gateway)
    rounds, seconds = 5, 4 if full else 1  # the median of five seconds: one or two may be a neighbour's

    def p99() -> float:
        found = []
        for _ in range(rounds):
            result = run(gateway, lambda n: raw, count=int(200 * seconds), clients=32, per_second=200)
            assert result.statuses == {200: 200 * seconds}
            found.append(result.quantile(0.99))
        return statistics.median(found)

    p99()  # pools and caches are filled
    quiet = p99()
    script = Path(__file__).parents[1] / "support" / "attack.py"
    attack = subprocess.Popen(
        [sys.executable, str(script), gateway.host, str(gateway.port), "1100", "2000", "500"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert attack.stdout is not None
    assert attack.stdin is not None
    try:
        assert attack.stdout.readline() == b"ready\n"
        time.sleep(1)
        held = descriptors(worker(gateway))
        beside = p99()
    finally:
        attack.stdin.close()
        attack.wait(10)
        attack.stdout.close()
    print(f"\n{engine}: p99 {quiet * 1e3:.2f} ms alone, {beside * 1e3:.2f} ms ({beside / quiet:.2f}x) beside 3,600 bad clients ({held} descriptors)")
    assert held > 3000
    # The figure to reach is 2x; a scheduler's time slice is not ours, and the attackers take the other core.
    assert beside < max(2 * quiet, quiet + 0.02)


# ---- in the long run


def test_many_requests_with_faults_leave_nothing_behind(start: Callable[..., Gateway], engine: str, full: bool) -> None:
    """50,000 (a million with --full), one in ten of them against a fault, a quarter of them streams."""
    count = 1_000_000 if full else 50_000
    gateway = start(made({"a": FAULTY, "b": SIM}))
    plain, stream = request(gateway), request(gateway, stream=True)
    ask = lambda n: run(gateway, lambda i: stream if i % 4 == 0 else plain, count=n, clients=32, keep=20)
    warm = 200_000 if full else 20_000  # pools, arenas and the kernel's buffers have found their size by then
    first = ask(warm)
    pid = worker(gateway)

    def held() -> tuple[int, int, int]:
        assert Gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
        time.sleep(0.5)
        return private_bytes(pid), descriptors(pid), threads(pid)

    before = held()
    second = ask(count - warm)
    after = held()
    statuses = first.statuses + second.statuses
    connections = gateway.metric("turnout_upstream_connections")
    print(
        f"\n{engine}: {count} requests in {first.seconds + second.seconds:.1f} s, {dict(statuses)}; memory {before[0] / 1e6:.1f} -> {after[0] / 1e6:.1f} MB, "
        f"descriptors {before[1]} -> {after[1]}, threads {before[2]} -> {after[2]}, {connections:.0f} upstream connections"
    )
    assert worker(gateway) == pid  # it has not died in between
    # What breaks after its first token is moved to the other target: nobody sees it, or a few that nobody can go on with.
    assert set(statuses) <= {0, 200}
    assert statuses[0] < 0.001 * count
    assert gateway.metric("turnout_cutovers_total") > 0.001 * count
    assert after[0] - before[0] < 5_000_000  # 170 bytes a request; with --full 6
    assert after[1] <= before[1] + 40  # idle upstream connections come and go
    assert after[2] <= before[2]
    assert connections <= 2 * 32
