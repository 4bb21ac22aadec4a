"""Many requests at little cost: raw HTTP/1.1 on one uvloop, for tests that need thousands of them."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import uvloop

from support.gateway import KEY, Gateway

CHAT = "/v1/chat/completions"


def request(gateway: Gateway, path: str = CHAT, method: str = "POST", **body: Any) -> bytes:
    """The bytes of a request with the key."""
    data = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "hi"}]} | body).encode() if method == "POST" else b""
    head = f"{method} {path} HTTP/1.1\r\nhost: {gateway.host}\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Answer:
    """One answer: `status` 0 if the connection broke before it was whole."""

    __slots__ = ("body", "head", "status", "took_s")

    def __init__(self, status: int, head: bytes, body: bytes, took_s: float) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.took_s = took_s

    def header(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""


class Line(asyncio.Protocol):
    """One keep-alive connection, made anew when it was closed."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._done: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._done is None:
            return
        head = bytes(self._data[:end])
        lower = head.lower()
        at = lower.find(b"content-length: ")
        if at >= 0:
            whole = end + 4 + int(lower[at + 16 :].split(b"\r\n", 1)[0])
        elif self._data.endswith(b"\r\n0\r\n\r\n") or self._data.endswith(b"\r\n\r\n0\r\n\r\n"):
            whole = len(self._data)
        else:
            return
        if len(self._data) < whole:
            return
        body = bytes(self._data[end + 4 : whole])
        del self._data[:whole]
        self._finish(int(head[9:12]), head, body)
        if b"connection: close" in lower and self._transport is not None:
            self._transport.close()
            self._transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(0, bytes(self._data), b"")
        self._data.clear()

    def _finish(self, status: int, head: bytes, body: bytes) -> None:
        done, self._done = self._done, None
        if done is not None and not done.done():
            done.set_result((status, head, body))

    async def ask(self, raw: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        if self._transport is None or self._transport.is_closing():
            try:
                await loop.create_connection(lambda: self, self._gateway.host, self._gateway.port)
            except OSError:
                return Answer(0, b"", b"", time.perf_counter() - began)
        self._done = loop.create_future()
        assert self._transport is not None
        self._transport.write(raw)
        status, head, body = await self._done
        return Answer(status, head, body, time.perf_counter() - began)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Result:
    """What came of a run."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.took_s: list[float] = []
        self.broken: list[Answer] = []
        self.versions: set[str] = set()
        self.seconds = 0.0

    @property
    def count(self) -> int:
        return sum(self.statuses.values())

    def quantile(self, q: float) -> float:
        found = sorted(self.took_s)
        return found[min(len(found) - 1, int(q * len(found)))]


async def drive(
    gateway: Gateway,
    raw: Callable[[int], bytes],
    *,
    count: int = 1 << 62,
    clients: int = 32,
    per_second: float = 0,
    until: Callable[[], bool] = lambda: False,
    keep: int = 1000,
) -> Result:
    """Ask `count` times, or `until` says so. `raw(n)` gives the nth request; `per_second` 0 is as fast as it goes."""
    result = Result()
    numbers = iter(range(count))
    began = time.perf_counter()

    async def client() -> None:
        line = Line(gateway)
        for n in numbers:
            if until():
                break
            if per_second:
                wait = began + n / per_second - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
            answer = await line.ask(raw(n))
            result.statuses[answer.status] += 1
            result.took_s.append(answer.took_s)
            if answer.status == 200:
                result.versions.add(answer.header("x-turnout-config-version"))
            elif len(result.broken) < keep:
                result.broken.append(answer)
        line.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - began
    return result


def run(*args: Any, **options: Any) -> Result:
    """`drive` to its end."""
    return uvloop.run(drive(*args, **options))
