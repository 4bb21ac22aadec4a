"""Providers that answer after a delay that can be changed, and clients that ask without a pause: for what routing learns."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.gateway import KEY, Gateway, config

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


@contextmanager
def serving(delays_s: dict[str, float]) -> Iterator[dict[str, Server]]:
    """A provider for each name."""
    servers = {}
    for name, delay_s in delays_s.items():
        servers[name] = Server(("127.0.0.1", 0), Handler)
        servers[name].delay_s = delay_s
        threading.Thread(target=servers[name].serve_forever, daemon=True).start()
    yield servers
    for server in servers.values():
        server.shutdown()
        server.server_close()


def made(providers: dict[str, Server], workers: int, redis: Any = None) -> dict[str, Any]:
    """A config with one least-latency route over all of them."""
    policy = {"kind": "least-latency", "probe_s": 0.5}
    route = {"name": "chat", "match": {"model": "fast"}, "routing_policy": policy, "targets": [{"provider": p, "model": "m"} for p in providers]}
    data = config({name: f"http://127.0.0.1:{s.server_address[1]}/v1" for name, s in providers.items()}, [route], state={"redis": redis})
    data["listen"]["workers"] = workers
    return data


class Load:
    """Clients that ask again and again, each time on a new connection so that all workers get some."""

    def __init__(self, gateway: Gateway, clients: int) -> None:
        self.served: list[tuple[float, str]] = []
        self.took: list[tuple[float, float]] = []
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
            self.wrong += answer.status != 200 or b"[DONE]" not in answer.read()
            self.took.append((began, time.monotonic() - began))
            self.served.append((began, answer.headers["x-turnout-provider"]))
            connection.close()

    def share(self, name: str, begin: float, end: float) -> float:
        by = [who for at, who in list(self.served) if begin <= at < end]
        assert len(by) > 20
        return by.count(name) / len(by)

    def lately(self, name: str, seconds: float = 2.0) -> float:
        """Its share of what began in the last seconds; 0 where that is too little to tell."""
        now = time.monotonic()
        by = [who for at, who in list(self.served) if at >= now - seconds]
        return by.count(name) / len(by) if len(by) > 20 else 0.0

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()
