"""What workers count together, as processes: with shared memory, and through the state process without the extension."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.gateway import Gateway, config
from turnout import native
from turnout.state.launch import StateProcess
from turnout.state.remote import Remote
from turnout.state.table import row

CHAT = "/v1/chat/completions"
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
DEAD = {"kind": "simulated", "ttft_ms": 1, "ttft_sigma": 0, "faults": [{"kind": "status", "status": 500}]}

WORKER = """
import asyncio, sys
from turnout.state.remote import Remote
from turnout.state.table import row

async def main():
    remote = Remote(b"\\0" + sys.argv[1].encode())
    x = row(remote, "x")
    print("up", flush=True)
    while True:
        for _ in range(50):
            x.add(0, 1)
            x.bump(10, 10, 1000, 1)
            x.add(1, 1)
        await asyncio.sleep(0)

asyncio.run(main())
"""


def run(test: Callable[[StateProcess], Any]) -> None:
    process = StateProcess()
    try:
        asyncio.run(asyncio.wait_for(test(process), 30))
    finally:
        process.stop()


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_workers_count_together_through_the_process() -> None:
    async def test(process: StateProcess) -> None:
        remotes = [Remote(process.address) for _ in range(4)]
        rows = [row(remote, "x") for remote in remotes]
        rows[0].add(5, 1)
        await until(lambda: rows[3].get(5) == 1)  # all are there
        for n in range(500):
            for x in rows:
                x.add(0, 1)
                x.bump(10, 10, 1000 + n % 3, 1)
            if n % 50 == 0:
                await asyncio.sleep(0.002)
        began = time.monotonic()
        while not all(x.get(0) == 2000 and x.recent(10, 10, 1002) == 2000 for x in rows):
            assert time.monotonic() < began + 5
            await asyncio.sleep(0)
        print(f"all agree {(time.monotonic() - began) * 1e3:.1f} ms after the last")
        for remote in remotes:
            remote.close()

    run(test)


def test_killed_workers_corrupt_nothing_in_it() -> None:
    async def test(process: StateProcess) -> None:
        remote = Remote(process.address)
        x = row(remote, "x")
        rng = random.Random(11)
        for _ in range(8):
            victim = subprocess.Popen([sys.executable, "-c", WORKER, process.address[1:].decode()], stdout=subprocess.PIPE)
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"up\n"
            before = x.get(0)
            await until(lambda: x.get(0) > before + 1000)  # noqa: B023
            await asyncio.sleep(rng.random() * 0.02)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            victim.stdout.close()
        await asyncio.sleep(0.1)
        # Batches are done whole or not at all: the three that belong together are alike.
        assert x.get(0) == x.get(1) == x.recent(10, 10, 1000) > 8000
        assert x.get(0) % 50 == 0
        x.add(0, 1)
        other = Remote(process.address)
        y = row(other, "x")
        await until(lambda: y.get(0) == x.get(1) + 1)
        for one in (remote, other):
            one.close()

    run(test)


def test_a_killed_process_is_found_again_at_the_same_place() -> None:
    async def test(process: StateProcess) -> None:
        remotes = [Remote(process.address) for _ in range(2)]
        x, y = (row(remote, "x") for remote in remotes)
        x.add(0, 5)
        await until(lambda: y.get(0) == 5)
        os.kill(process.pid, signal.SIGKILL)
        await until(process.restarted)
        await asyncio.sleep(0.3)
        x.add(0, 2)
        await until(lambda: x.get(0) == y.get(0) == 2)
        for remote in remotes:
            remote.close()

    run(test)


# ---- for what it is used


def budget_used(gateway: Gateway, seconds: float) -> tuple[int, int]:
    """Requests that were answered, and attempts beyond the first of each: the retries."""
    requests = retries = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with gateway.client() as client:  # a fresh connection: both workers get some
            answer = client.post(CHAT, json=ASK)
        assert answer.status_code == 502, answer.text
        requests += 1
        retries += int(answer.headers["x-turnout-attempts"]) - 1
    return requests, retries


@pytest.mark.parametrize("extension", [True, False])
def test_four_workers_have_one_retry_budget(serve: Callable[..., Gateway], engine: str, extension: bool) -> None:
    if engine == "native" and not extension:
        pytest.skip("engine native is the extension")
    if extension and native.missing:
        pytest.skip("the extension is not built")
    route = {"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "dead", "model": "sim-small"}], "retries": {"max": 1, "budget": 0.0}}
    data = config({"dead": DEAD}, [route])
    data["listen"]["workers"] = 4
    gateway = serve(data, env={} if extension else {"TURNOUT_PURE": "1"})
    try:
        time.sleep(1)
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda _: budget_used(gateway, 3), range(4)))
        requests, retries = (sum(column) for column in zip(*parts, strict=True))
        seconds = time.monotonic() - began + 1
        print(f"{engine}, {'shared memory' if extension else 'state process'}: {retries} retries of {requests} requests in {seconds:.1f} s over 4 workers")
        assert requests > 40
        # Three a second for the host. Each worker for himself would have given out up to twelve.
        assert 3 <= retries <= 3 * (seconds + 1)
    finally:
        assert gateway.stop() == 0
