"""Several workers on one host know what each of them has seen of a target."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from support.gateway import ADMIN_KEY, KEY, Gateway, config

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
EVENTS = [
    {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
ANSWER = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    delay_s = 0.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.delay_s)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def providers() -> Iterator[dict[str, Server]]:
    servers = {}
    for name, delay_s in (("a", 0.02), ("b", 0.05), ("c", 0.07), ("d", 0.09)):
        servers[name] = Server(("127.0.0.1", 0), Handler)
        servers[name].delay_s = delay_s
        threading.Thread(target=servers[name].serve_forever, daemon=True).start()
    yield servers
    for server in servers.values():
        server.shutdown()
        server.server_close()


class Load:
    """Clients that ask again and again, each time on a new connection so that all workers get some."""

    def __init__(self, gateway: Gateway, clients: int) -> None:
        self.served: list[tuple[float, str]] = []
        self.wrong = 0
        self._gateway = gateway
        self._going = True
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        body = json.dumps({"model": "fast", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        while self._going:
            connection = HTTPConnection(self._gateway.host, self._gateway.port, timeout=30)
            began = time.monotonic()
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            self.wrong += answer.status != 200 or b"hello" not in answer.read()
            self.served.append((began, answer.headers["x-turnout-provider"]))
            connection.close()

    def share(self, name: str, begin: float, end: float) -> float:
        by = [who for at, who in list(self.served) if begin <= at < end]
        assert len(by) > 20
        return by.count(name) / len(by)

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()


def test_a_target_that_turns_slow_loses_its_traffic_in_all_workers_and_gets_it_back(
    serve: Callable[..., Gateway], providers: dict[str, Server]
) -> None:
    route = {"name": "chat", "match": {"model": "fast"}, "routing_policy": {"kind": "least-latency", "probe_s": 0.5}, "targets": [{"provider": p, "model": "m"} for p in providers]}
    urls = {name: f"http://127.0.0.1:{s.server_address[1]}/v1" for name, s in providers.items()}
    data = config(urls, [route])  # type: ignore[arg-type]
    data["listen"]["workers"] = 4
    gateway = serve(data)
    load = Load(gateway, 10)
    try:
        time.sleep(4)
        before = time.monotonic()
        assert load.share("a", before - 2, before) > 0.6
        providers["a"].delay_s = 0.6
        time.sleep(4)
        assert load.share("a", before + 2, before + 4) <= 0.1 * load.share("a", before - 2, before) + 0.02
        report = httpx.get(gateway.admin_url + "/admin/routes/chat", headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False).json()
        assert len(report["workers"]) == 4
        for worker in report["workers"]:
            lines = {line["target"]: line for line in worker["candidates"] if "score" in line}
            assert lines["b/m"]["answers"] > 5
            assert lines["a/m"]["score"] > lines["b/m"]["score"]
        providers["a"].delay_s = 0.02
        time.sleep(8)
        end = time.monotonic()
        assert load.share("a", end - 2, end) > 0.5
    finally:
        load.stop()
    assert not load.wrong
