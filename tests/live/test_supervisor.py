"""The process that keeps the others running: what survives which death, how a config is swapped, how it all ends."""

import contextlib
import copy
import os
import re
import resource
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.drive import request, run
from support.gateway import ADMIN_KEY, KEY, UPSTREAM_KEY, Gateway, config
from turnout.account.ledger import rows

CHAT = "/v1/chat/completions"
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
QUICK = {"kind": "simulated", "ttft_ms": 1, "ttft_sigma": 0, "tokens_per_s": 20_000, "answer_tokens": 5}
SLOW = {"kind": "simulated", "ttft_ms": 20, "ttft_sigma": 0, "tokens_per_s": 40, "token_sigma": 0, "answer_tokens": 120}  # 3 s


def made(provider: dict[str, Any] = QUICK, **listen: Any) -> dict[str, Any]:
    data = config({"sim": provider}, [{"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "sim", "model": "sim-small"}]}])
    data["listen"].update(listen)
    return data


@pytest.fixture
def start(serve: Callable[..., Gateway]) -> Iterator[Callable[..., Gateway]]:
    """Like `serve`, but ends with the test: these tests count processes and listeners."""
    running: list[Gateway] = []

    def go(data: dict[str, Any], **options: Any) -> Gateway:
        running.append(serve(data, **options))
        return running[-1]

    yield go
    for gateway in running:
        gateway.stop()


# ---- looking at processes


def session(pid: int) -> dict[int, str]:
    """pid -> command of all live processes of the session that `pid` leads."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                state, _, _, sid = stat.rpartition(")")[2].split()[:4]
                if int(sid) == pid and state not in "ZX":
                    found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def pid_of(gateway: Gateway) -> int:
    assert gateway.process is not None
    return gateway.process.pid


def children(gateway: Gateway, module: str) -> list[int]:
    return [pid for pid, command in session(pid_of(gateway)).items() if f"turnout.{module} " in command + " "]


def listens(gateway: Gateway) -> bool:
    try:
        socket.create_connection((gateway.host, gateway.port), 1).close()
    except OSError:
        return False
    return True


def workers(gateway: Gateway) -> list[dict[str, Any]]:
    return list(gateway.status()["workers"])


class Load:
    """Clients that ask one after the other until told to stop. `broken` lists what did not end with a 200."""

    def __init__(self, gateway: Gateway, clients: int, fresh: bool = False) -> None:
        self.good = [0] * clients
        self.broken: list[tuple[int, str]] = []
        self.versions: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(gateway, n, fresh)) for n in range(clients)]

    def _run(self, gateway: Gateway, n: int, fresh: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=0 if fresh else 1)
        with gateway.client(limits=limits) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(CHAT, json=ASK)
                except httpx.HTTPError as wrong:
                    self.broken.append((n, repr(wrong)))
                    continue
                if answer.status_code == 200:
                    self.good[n] += 1
                    self.versions.add(answer.headers["x-turnout-config-version"])
                else:
                    self.broken.append((n, answer.text))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        assert Gateway.wait_for(lambda: all(self.good) or self.broken)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 3) -> bool:
        """Whether every client gets `more` answers from now on."""
        before = list(self.good)
        return bool(Gateway.wait_for(lambda: all(now >= was + more for now, was in zip(self.good, before, strict=True))))


# ---- death


def test_kill_9_of_the_main_process_leaves_no_listener_and_no_process(start: Callable[..., Gateway]) -> None:
    gateway = start(made(workers=2))
    pid = pid_of(gateway)
    assert len(session(pid)) == 5  # supervisor, two workers, recorder, simulator
    admin = gateway.admin_url.rpartition(":")[2]
    gateway.signal(signal.SIGKILL)
    began = time.monotonic()
    Gateway.wait_for(lambda: not session(pid) and not listens(gateway))
    print(f"gone after {time.monotonic() - began:.2f} s")
    assert not session(pid)
    assert not listens(gateway)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(admin)), 1)


def test_a_killed_worker_is_back_within_2_s_and_the_others_requests_go_on(start: Callable[..., Gateway]) -> None:
    before = time.monotonic()
    gateway = start(made(workers=2))
    start_s = time.monotonic() - before  # of three processes; 0.5 s, more on a loaded machine
    victim = workers(gateway)[0]["pid"]
    with Load(gateway, 16) as load:
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()

        def back() -> bool:
            first = workers(gateway)[0]
            return first["pid"] != victim and first["ready"]

        assert Gateway.wait_for(back, max(2.0, 3 * start_s))
        print(f"back after {time.monotonic() - began:.2f} s")
        assert load.goes_on()
    hit = [n for n, _ in load.broken]
    assert len(hit) == len(set(hit)) < 16, load.broken  # once, and only those whose connection it held
    assert workers(gateway)[0]["restarts"] == 1
    assert gateway.metric("turnout_worker_restarts_total") == 1
    assert any("worker 0 ended with code -9" in line for line in gateway.said)


def test_workers_that_are_killed_again_and_again_take_only_their_own_requests_with_them(
    start: Callable[..., Gateway], full: bool
) -> None:
    """kill -9 of a worker every 5 s (1.5 s, and three of them, unless --full) beside 32 clients."""
    kills, gap_s = (8, 5.0) if full else (3, 1.5)
    gateway = start(made(workers=2))
    raw = request(gateway)
    stop = threading.Event()
    lost: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run, gateway, lambda n: raw, clients=32, per_second=400, until=stop.is_set)
        try:
            for n in range(kills):
                time.sleep(gap_s)
                victim = workers(gateway)[n % 2]["pid"]
                lost.append(held(gateway)[n % 2])
                os.kill(victim, signal.SIGKILL)
                assert Gateway.wait_for(lambda: workers(gateway)[n % 2]["pid"] != victim and workers(gateway)[n % 2]["ready"])  # noqa: B023
            time.sleep(gap_s)
        finally:
            stop.set()
        result = load.result(60)
    broken = sum(result.statuses[status] for status in result.statuses if status != 200)
    print(f"{kills} kills beside {result.count} requests: {broken} lost, {sum(lost)} connections were with the dead")
    assert set(result.statuses) <= {0, 200}, result.statuses
    # Never an answer of another kind, and never more than what the dead had in hand: at most one for each connection.
    assert broken <= sum(lost)
    assert result.count > 300 * gap_s * kills


def test_metrics_are_the_sum_of_the_workers_and_outlive_one(start: Callable[..., Gateway]) -> None:
    gateway = start(made(workers=2))
    for _ in range(40):  # a fresh connection each, so that both get some
        with gateway.client() as client:
            assert client.post(CHAT, json=ASK).status_code == 200
    done = lambda: gateway.metric("turnout_requests_total", route="chat", status="200")
    assert done() == 40
    assert gateway.metric("turnout_workers") == 2
    tokens = gateway.metric("turnout_tokens_total")
    victim = workers(gateway)[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    assert Gateway.wait_for(lambda: workers(gateway)[1]["pid"] != victim and workers(gateway)[1]["ready"])
    assert done() == 40
    assert gateway.metric("turnout_tokens_total") == tokens
    assert gateway.metric("turnout_workers") == 2  # a gauge of one that has gone does not count on
    assert gateway.metric("turnout_request_duration_seconds_count", route="chat") == 40


def test_a_killed_recorder_is_started_again_and_the_ledger_is_complete(start: Callable[..., Gateway]) -> None:
    gateway = start(made(workers=2))
    ids: list[str] = []
    victim = children(gateway, "recorder")[0]
    with gateway.client() as client:
        for n in range(300):
            if n == 150:
                os.kill(victim, signal.SIGKILL)
            ids.append(client.post(CHAT, json=ASK).headers["x-request-id"])
        assert Gateway.wait_for(lambda: set(children(gateway, "recorder")) - {victim})
        ids.append(client.post(CHAT, json=ASK).headers["x-request-id"])
    gateway.logged(ids[-1])
    assert gateway.stop() == 0
    booked = [row.request_id for row in rows(gateway.state)]
    assert sorted(set(booked)) == sorted(ids)
    assert len(booked) == len(ids)
    assert any("recorder ended" in line for line in gateway.said)


# ---- the end


class Streams:
    """Streams that have begun, each read to its end in a thread. `texts` holds what each of them got."""

    def __init__(self, gateway: Gateway, count: int) -> None:
        self.texts = [""] * count
        self._threads = [threading.Thread(target=self._read, args=(gateway, n)) for n in range(count)]
        for thread in self._threads:
            thread.start()
        assert Gateway.wait_for(lambda: all(self.texts))

    def _read(self, gateway: Gateway, n: int) -> None:
        with gateway.client() as client, client.stream("POST", CHAT, json=ASK | {"stream": True}) as answer:
            for piece in answer.iter_text():
                self.texts[n] += piece

    def live(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def test_sigterm_cuts_no_stream_and_ends_with_0(start: Callable[..., Gateway]) -> None:
    gateway = start(made(SLOW, workers=2))
    streams = Streams(gateway, 12)
    with http_connection(gateway) as idle:
        gateway.signal(signal.SIGTERM)
        assert Gateway.wait_for(lambda: any("stopping" in line for line in gateway.said))
        said = b"503 draining"
        with contextlib.suppress(ConnectionError):  # it may be closed at once: then nobody is told a wrong thing
            idle.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
            said = idle.recv(4096) or said
        assert b"503" in said
        assert b"draining" in said
    assert streams.live(), "the streams were too short to show anything"
    streams.join()
    for text in streams.texts:
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"stop"' in text.replace(" ", "")
    assert gateway.process is not None
    assert gateway.process.wait(30) == 0
    assert not session(pid_of(gateway))


def test_sigterm_with_200_live_streams_cuts_none(start: Callable[..., Gateway]) -> None:
    gateway = start(made(SLOW, workers=2))
    raw = request(gateway, stream=True)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run, gateway, lambda n: raw, count=200, clients=200)
        assert Gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 200)
        gateway.signal(signal.SIGTERM)
        assert Gateway.wait_for(lambda: not listens(gateway))
        live = not load.done()
        result = load.result(30)
    assert live, "the streams were too short to show anything"
    print(f"SIGTERM beside 200 streams: {dict(result.statuses)}")
    assert result.statuses == {200: 200}
    assert gateway.process is not None
    assert gateway.process.wait(30) == 0
    assert not session(pid_of(gateway))


def test_new_connections_are_refused_while_streams_run_out(start: Callable[..., Gateway]) -> None:
    gateway = start(made(SLOW, workers=2))
    streams = Streams(gateway, 2)
    gateway.signal(signal.SIGTERM)
    refused = Gateway.wait_for(lambda: not listens(gateway))
    live = streams.live()
    streams.join()
    assert live
    assert refused


def http_connection(gateway: Gateway) -> socket.socket:
    """A keep-alive connection that has been served once."""
    sock = socket.create_connection((gateway.host, gateway.port), 5)
    sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    return sock


def test_a_second_signal_ends_it_at_once(start: Callable[..., Gateway]) -> None:
    gateway = start(made(SLOW | {"answer_tokens": 4000}))
    with gateway.client() as client, client.stream("POST", CHAT, json=ASK | {"stream": True}) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        gateway.signal(signal.SIGTERM)
        assert Gateway.wait_for(lambda: any("stopping" in line for line in gateway.said))
        gateway.signal(signal.SIGTERM)
        assert gateway.process is not None
        gateway.process.wait(5)
        with pytest.raises(httpx.HTTPError):
            list(pieces)
    assert not session(pid_of(gateway))


def test_the_drain_has_a_limit(start: Callable[..., Gateway]) -> None:
    gateway = start(made(SLOW | {"answer_tokens": 4000}, drain_s=0.5))
    with gateway.client() as client, client.stream("POST", CHAT, json=ASK | {"stream": True}) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        gateway.signal(signal.SIGTERM)
        assert gateway.process is not None
        assert gateway.process.wait(30) == 0
        with pytest.raises(httpx.HTTPError):
            list(pieces)


# ---- the config


def renamed(data: dict[str, Any], n: int) -> dict[str, Any]:
    new = copy.deepcopy(data)
    new["routes"].append({"name": f"more-{n}", "match": {"model": f"more-{n}"}, "targets": [{"provider": "sim", "model": "sim-small"}]})
    return new


def version(gateway: Gateway, model: str = "fast") -> int:
    with gateway.client() as client:
        answer = client.post(CHAT, json=ASK | {"model": model})
    return int(answer.headers["x-turnout-config-version"]) if answer.status_code == 200 else 0


def test_a_good_config_is_swapped_in_by_signal_and_by_itself(start: Callable[..., Gateway]) -> None:
    data = made(workers=2)
    gateway = start(data)
    assert version(gateway) == 1
    assert version(gateway, "more-1") == 0
    gateway.write(renamed(data, 1))
    gateway.signal(signal.SIGHUP)
    assert Gateway.wait_for(lambda: version(gateway, "more-1") == 2)
    gateway.write(renamed(data, 2))  # no signal: the file is looked at every second
    assert Gateway.wait_for(lambda: version(gateway, "more-2") == 3)
    assert version(gateway, "more-1") == 0
    assert gateway.metric("turnout_config_version") == 3
    assert Gateway.wait_for(lambda: all(w["config_version"] == 3 for w in workers(gateway)))
    assert any("config version 3" in line for line in gateway.said)


def test_a_bad_config_is_refused_with_its_line_and_the_old_one_stays(start: Callable[..., Gateway]) -> None:
    data = made()
    gateway = start(data)
    for text, says in (
        ('{\n "providers": {},\n "routs": []\n}', r"turnout\.json:3.*routs"),
        ("{", r"turnout\.json:1"),
        ("", r"turnout\.json"),
    ):
        gateway.file.write_text(text)
        gateway.signal(signal.SIGHUP)
        assert Gateway.wait_for(lambda: any(re.search(says, line) for line in gateway.said)), gateway.said  # noqa: B023
        assert any("config refused, version 1 stays in force" in line for line in gateway.said)
        gateway.said.clear()
        assert version(gateway) == 1
    gateway.file.unlink()
    gateway.signal(signal.SIGHUP)
    assert Gateway.wait_for(lambda: any("refused" in line for line in gateway.said))
    assert version(gateway) == 1
    gateway.write(renamed(data, 1))
    assert Gateway.wait_for(lambda: version(gateway, "more-1") == 2)


def test_a_refused_reload_is_told_to_who_asked_for_it(start: Callable[..., Gateway]) -> None:
    gateway = start(made())
    ask = lambda: gateway.admin("/admin/reload", "POST")
    assert (ask().status_code, ask().json()["reloaded"]) == (200, True)
    gateway.file.write_text("{")
    assert (ask().status_code, ask().json()["reloaded"]) == (409, False)


def test_reloads_under_load_fail_no_request(start: Callable[..., Gateway], full: bool) -> None:
    data = made(workers=2)
    gateway = start(data)
    count = 300 if full else 30
    with Load(gateway, 8) as load:
        for n in range(count):
            gateway.write(renamed(data, n))
            gateway.signal(signal.SIGHUP)
            assert Gateway.wait_for(lambda: all(w["config_version"] == n + 2 for w in workers(gateway)))  # noqa: B023
        assert load.goes_on()
    print(f"{sum(load.good)} requests over {count} reloads")
    assert load.broken == []
    assert str(count + 1) in load.versions
    assert len(load.versions) > count / 2


def test_reloads_at_500_requests_a_second_fail_none(start: Callable[..., Gateway], full: bool) -> None:
    """100 of them (25 unless --full), one in five with a broken file."""
    count = 100 if full else 25
    data = made(workers=2)
    gateway = start(data)
    raw = request(gateway)
    calm = run(gateway, lambda n: raw, clients=32, per_second=500, count=500)
    stop = threading.Event()
    good = 1
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run, gateway, lambda n: raw, clients=32, per_second=500, until=stop.is_set)
        try:
            for n in range(count):
                refused = sum("config refused" in line for line in gateway.said)
                if n % 5 == 4:
                    gateway.file.write_text('{"providers": {}, "routs": []}')
                    gateway.signal(signal.SIGHUP)
                    assert Gateway.wait_for(lambda: sum("config refused" in line for line in gateway.said) > refused)  # noqa: B023
                else:
                    good += 1
                    gateway.write(renamed(data, n))
                    gateway.signal(signal.SIGHUP)
                    assert Gateway.wait_for(lambda: all(w["config_version"] == good for w in workers(gateway)))  # noqa: B023
        finally:
            stop.set()
        result = load.result(60)
    rate = result.count / result.seconds
    print(f"{count} reloads ({count // 5} broken) beside {result.count} requests, {rate:.0f} a second: {dict(result.statuses)}")
    assert result.statuses == {200: result.count}, [answer.body for answer in result.broken[:3]]
    assert len(result.versions) > good / 2
    assert rate > calm.count / calm.seconds / 2  # 500 are offered; a busy machine may not take them all


# ---- start


def test_what_it_says_at_start(start: Callable[..., Gateway], engine: str) -> None:
    gateway = start(made(workers=2))
    said = "\n".join(gateway.said)
    assert Gateway.wait_for(lambda: "version 1 (" in "\n".join(gateway.said))
    said = "\n".join(gateway.said)
    assert f"engine {engine}" in said
    assert "2 workers" in said
    assert f"listening on http://127.0.0.1:{gateway.port}, admin on {gateway.admin_url}" in said
    assert "route chat: fast -> ordered: sim/sim-small" in said
    assert "native kernels" in said or "twins: " in said
    assert not any(secret in said for secret in (KEY, ADMIN_KEY, UPSTREAM_KEY))


def test_a_taken_port_is_said_and_nothing_stays(start: Callable[..., Gateway]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match=r"cannot start: .*in use"):
        start(made(port=taken.getsockname()[1]))


# ---- connections


def held(gateway: Gateway) -> list[int]:
    """How many client connections each worker holds."""
    mark = f":{gateway.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{cells[9]}]" for cells in lines if cells[1].endswith(mark) and cells[3] == "01"}
    counts: list[int] = []
    for worker in workers(gateway):
        folder = f"/proc/{worker['pid']}/fd"
        counts.append(sum(os.readlink(f"{folder}/{fd}") in ours for fd in os.listdir(folder) if os.path.lexists(f"{folder}/{fd}")))
    return counts


def test_two_workers_share_keep_alive_clients(start: Callable[..., Gateway]) -> None:
    gateway = start(made(), args=("--workers", "2"))
    shares: list[float] = []
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            for _ in range(64):
                stack.enter_context(http_connection(gateway))
            counts = held(gateway)
            assert sum(counts) == 64
            shares.append(max(counts) / 64)
        assert Gateway.wait_for(lambda: sum(held(gateway)) == 0)
    print(f"the busier worker holds {statistics.mean(shares):.0%} on average, {max(shares):.0%} at worst")
    assert statistics.mean(shares) <= 0.65


@pytest.mark.alone
def test_1100_idle_connections_do_not_block_a_new_client(start: Callable[..., Gateway]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    gateway = start(made())
    took: list[float] = []
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(socket.create_connection((gateway.host, gateway.port), 5))
        for _ in range(50):
            began = time.perf_counter()
            http_connection(gateway).close()
            took.append(time.perf_counter() - began)
    print(f"new client beside 1,100 idle ones: p50 {statistics.median(took) * 1e3:.1f} ms, worst {max(took) * 1e3:.1f} ms")
    assert statistics.median(took) < 0.05
    assert max(took) < 2


def test_the_admin_listener_answers_whatever_is_sent_behind_the_head(start: Callable[..., Gateway]) -> None:
    """A body that nobody reads must not turn the close into a reset that destroys the answer."""
    gateway = start(made())
    host, _, port = gateway.admin_url.removeprefix("http://").rpartition(":")
    body = b"x" * 300_000
    for _ in range(20):
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.sendall(
                b"POST /admin/nothing HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n" % (ADMIN_KEY.encode(), len(body)) + body
            )
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"unknown_url" in answer
