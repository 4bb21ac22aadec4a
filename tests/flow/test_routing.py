"""Routes with policies on real sockets: what the statistics see of a request is what the policy goes by."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from support.gateway import Gateway, config

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":"hello"},"finish_reason":null}]}\n\ndata: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
DOWN = b"HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Provider:
    """Streams one word, `delay_s` after it was asked; `down`: fails at once."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.down = False
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        buffer = b""
        with sock:
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not (piece := sock.recv(65536)):
                        return
                    buffer += piece
                head, _, rest = buffer.partition(b"\r\n\r\n")
                size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                while len(rest) < size:
                    rest += sock.recv(65536)
                buffer = rest[size:]
                self.asked += 1
                if self.down:
                    sock.sendall(DOWN)
                    continue
                time.sleep(self.delay_s)
                sock.sendall(HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(TEXT), TEXT))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def three() -> Iterator[dict[str, Provider]]:
    providers = {"a": Provider(0.06), "b": Provider(0.01), "c": Provider(0.12)}
    yield providers
    for provider in providers.values():
        provider.close()


def gateway(serve: Callable[..., Gateway], three: dict[str, Provider], policy: dict[str, object]) -> Gateway:
    route = {"name": "chat", "match": {"model": "fast"}, "routing_policy": policy, "targets": [{"provider": p, "model": "m"} for p in three]}
    return serve(config({name: p.url for name, p in three.items()}, [route]))


def ask(g: Gateway, n: int, stream: bool = True) -> Counter[str]:
    served: Counter[str] = Counter()
    with g.client() as client:
        for _ in range(n):
            body = {"model": "fast", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 200
            assert b"hello" in answer.content
            served[answer.headers["x-turnout-provider"]] += 1
    return served


def settles_on(g: Gateway, name: str, most: int = 2000) -> None:
    """Of twenty requests in a row at least eighteen go there, twice running, before `most` were made. One sample that a busy
    machine spoiled is corrected by probes, which takes some of them; policies that draw never come so far."""
    for _ in range(most // 20):
        if ask(g, 20)[name] >= 18 and ask(g, 20)[name] >= 18:
            return
    raise AssertionError(f"after {most} requests {name} does not have the traffic")


def test_least_latency_finds_the_fastest_and_leaves_it_when_it_fails(serve: Callable[..., Gateway], three: dict[str, Provider]) -> None:
    g = gateway(serve, three, {"kind": "least-latency"})
    settles_on(g, "b")
    three["b"].down = True
    ask(g, 6)
    before, began = three["b"].asked, time.monotonic()
    settles_on(g, "a")
    probes = 1 + (time.monotonic() - began) / 2.0  # its breaker lets one through every two seconds, at most
    assert three["b"].asked - before <= probes, "a target that fails fast gains nothing"


def test_round_robin_takes_turns_on_the_wire(serve: Callable[..., Gateway], three: dict[str, Provider]) -> None:
    g = gateway(serve, three, {"kind": "round-robin"})
    assert ask(g, 9) == {"a": 3, "b": 3, "c": 3}
