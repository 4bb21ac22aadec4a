"""Whole requests through the app in one process, without sockets: what the gate counts instructions of.

The app, the flow, the upstream client and its HTTP parser are the real ones; the two ends are scripted. Upstream is a
transport that answers each request with canned bytes on the loop's next turn, in as many pieces as the script says; the
client is a pair of ASGI callables. Every answer is checked.

    python bench/drive.py small|agent|stream|stream-off|hit-small|... [--requests N]     prints microseconds per request

`hit-small`, `hit-agent`: answered from the cache; `miss-small`, `miss-agent`: by the upstream, on a route that has one.
"""

import argparse
import asyncio
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvloop

if find_spec("turnout") is None:  # not installed: the source tree
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "core"))

from turnout.app import App
from turnout.config.load import load_data
from turnout.telemetry.ring import Ring
from turnout.upstream.client import Connection

KEY = "sk-drive-0123456789abcdef"
CONFIG = {
    "auth": {"keys": [{"name": "bench", "key": "env:KEY"}]},
    "providers": {"a": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "env:KEY"}},
    "routes": [{"name": "chat", "match": {"model": "*"}, "targets": [{"provider": "a", "model": "gpt-4o-mini"}]}],
}
CHUNKS = 50


def small() -> bytes:
    return json.dumps({"model": "fast", "messages": [{"role": "user", "content": "Why is the sky blue? " * 10}]}).encode()


def agent() -> bytes:
    """About 20 KB: a long system prompt, 15 messages with tool calls, 8 tools."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a careful agent. " * 160}]
    for i in range(7):
        call = {"id": f"call_{i}", "type": "function", "function": {"name": "search", "arguments": '{"q":"' + "x" * 80 + '"}'}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": json.dumps({"rows": ["result line"] * 50})})
    tool = {"type": "object", "properties": {f"field_{k}": {"type": "string", "description": "a field"} for k in range(10)}}
    tools = [{"type": "function", "function": {"name": f"tool_{t}", "parameters": tool}} for t in range(8)]
    return json.dumps({"model": "fast", "messages": messages, "tools": tools}).encode()


def answer() -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "blue " * 150}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 60, "completion_tokens": 150, "total_tokens": 210},
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def events() -> list[bytes]:
    """Role, CHUNKS content chunks, finish, usage, done: one HTTP chunk each, as they come from a provider."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}

    def one(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({**base, "choices": [choice]}).encode() + b"\n\n"

    usage = {**base, "choices": [], "usage": {"prompt_tokens": 60, "completion_tokens": CHUNKS, "total_tokens": 60 + CHUNKS}}
    lines = [one({"role": "assistant", "content": ""})]
    lines += [one({"content": f"word{i} "}) for i in range(CHUNKS)]
    lines += [one({}, "stop"), b"data: " + json.dumps(usage).encode() + b"\n\n", b"data: [DONE]\n\n"]
    return lines


class _Transport:
    """Answers every request that is written to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pieces: list[bytes]) -> None:
        self._loop = loop
        self._pieces = pieces
        self.conn: Any = None

    def writelines(self, pieces: Any) -> None:
        self._loop.call_soon(self._next, 0)

    def _next(self, i: int) -> None:
        self.conn.data_received(self._pieces[i])
        if i + 1 < len(self._pieces):
            self._loop.call_soon(self._next, i + 1)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _Sent:
    """What granian's `send` gives: a future that began at the call. Here it is through at once."""

    def done(self) -> bool:
        return True

    def __await__(self) -> Any:
        return iter(())


_SENT = _Sent()


class Driver:
    """One app, and `one()` to send a request of the kind through it."""

    def __init__(self, kind: str, memory: Any) -> None:
        loop = asyncio.get_running_loop()
        data = CONFIG
        if kind == "stream-off":  # what a stream would cost that could not be continued elsewhere
            data = {**CONFIG, "routes": [{**CONFIG["routes"][0], "stream": {"on_failure": "terminate"}}]}  # type: ignore[dict-item]
        cached, _, size = kind.partition("-")
        self.missing = cached == "miss"
        if cached in ("hit", "miss"):
            kind = size
            data = {**CONFIG, "routes": [{**CONFIG["routes"][0], "cache": {"exact": {"ttl_s": 3600}}}]}  # type: ignore[dict-item]
        loaded = load_data(data, resolver=lambda ref: KEY)
        self.app = App(loaded.config, ring=Ring(memory, 1 << 20))
        self.stream = kind.startswith("stream")
        self.body = agent() if kind == "agent" else small()
        if self.stream:
            self.body = self.body[:-1] + b', "stream": true}'
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            pieces = [b"%x\r\n%s\r\n" % (len(e), e) for e in events()]
            pieces = [head + pieces[0], *pieces[1:-1], pieces[-1] + b"0\r\n\r\n"]
        else:
            pieces = [answer()]
        if self.missing:
            self.count = 0
            self.body = self.plain = b'{"seed": 00000000,' + self.body[1:]
        transport = _Transport(loop, pieces)
        conn = Connection(self.app.client, self.app.client.origins[0])
        conn.connection_made(transport)  # type: ignore[arg-type]
        transport.conn = conn
        self.app.client.origins[0].idle.append(conn)
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [
                (b"host", b"127.0.0.1:8080"),
                (b"authorization", b"Bearer " + KEY.encode()),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(self.body)),
                (b"accept", b"*/*"),
                (b"user-agent", b"drive"),
            ],
        }
        self.head: dict[str, Any] = {}
        self.out: list[bytes] = []

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.body, "more_body": False}

    def _send(self, event: dict[str, Any]) -> _Sent:
        if event["type"] == "http.response.start":
            self.head = event
        else:
            self.out.append(event["body"])
        return _SENT

    async def one(self) -> None:
        self.out.clear()
        if self.missing:
            self.count += 1
            self.body = b'{"seed": %08d,' % (10_000_000 + self.count) + self.plain[18:]
        await self.app(self.scope, self._receive, self._send)
        whole = b"".join(self.out)
        assert self.head["status"] == 200, self.head
        if self.stream:
            assert whole.endswith(b"data: [DONE]\n\n") and whole.count(b"word") == CHUNKS and b"usage" not in whole, whole[-300:]
        else:
            assert whole.endswith(b"}}") and b"blue blue" in whole, whole[:200]


async def run(kind: str, requests: int) -> float:
    """Microseconds of wall time per request, on one core."""
    import os

    driver = Driver(kind, os.memfd_create("drive"))
    for _ in range(20):
        await driver.one()
    start = time.perf_counter()
    for _ in range(requests):
        await driver.one()
    took = time.perf_counter() - start
    driver.app.close()
    return took / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("small", "agent", "stream", "stream-off", "hit-small", "hit-agent", "miss-small", "miss-agent"))
    parser.add_argument("--requests", type=int, default=5000)
    args = parser.parse_args()
    print(f"{uvloop.run(run(args.kind, args.requests)):.2f} us per request")


if __name__ == "__main__":
    main()
