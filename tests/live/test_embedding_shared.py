"""Vectors of a provider between workers and hosts: one asks for them, and what it finds by them the others find too."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_semantic_shared import ADMIN, ENV, settings

from support.embedder import Embedder
from support.gateway import Gateway
from support.redis_server import RedisServer
from support.scholar import Scholar

CHAT = "/v1/chat/completions"
# No word of it is in the local table: only the provider's vectors find it.
FIRST, SAME = "Как варить рис?", "как варить рис"
READ = {"x-turnout-cache": "read"}


@pytest.fixture(scope="module")
def scholar() -> Iterator[Scholar]:
    with Scholar(lambda question, number: "in water") as scholar:
        yield scholar


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    def vector(text: str) -> list[float]:
        lot = random.Random(" ".join(text.lower().strip("?! ").split()))
        return [lot.gauss(0, 1) for _ in range(64)]

    with Embedder(vector) as embedder:
        yield embedder


def with_vectors(scholar: Scholar, embedder: Embedder, state: dict[str, Any] | None = None, workers: int = 2) -> dict[str, Any]:
    data = settings(scholar, state, workers)
    data["providers"]["v"] = {**data["providers"]["a"], "base_url": embedder.url}
    return {**data, "cache": {"embedding": {"provider": "v", "model": "vectors-1", "dimensions": 64, "timeout_ms": 2000}}}


class Asking:
    """One scope, asked over a connection of its own each time, so that all workers see it."""

    def __init__(self) -> None:
        self.system = {"role": "system", "content": f"topic {random.random()}"}
        self.marks = 0

    def say(self, gateway: Gateway, text: str, headers: dict[str, str] | None = None) -> str:
        with gateway.client() as client:
            found = client.post(CHAT, json={"model": "fast", "messages": [self.system, {"role": "user", "content": text}]}, headers=headers)
            assert found.status_code == 200, found.text
            return found.headers["x-turnout-cache"]

    def hits(self, gateway: Gateway) -> bool:
        """For questions that nobody asked yet, of eight connections; they leave nothing behind."""
        self.marks += 1
        return all([self.say(gateway, SAME + " " * self.marks, READ).startswith("hit-semantic") for _ in range(8)])


def vectors(gateway: Gateway) -> list[int]:
    found = httpx.get(f"{gateway.admin_url}/admin/cache/semantic", headers=ADMIN, trust_env=False).json()
    return [worker.get("vectors", 0) for worker in found["workers"]]


def test_workers_and_those_after_a_kill_ask_for_no_vector_again(serve: Callable[..., Gateway], scholar: Scholar, embedder: Embedder) -> None:
    gateway, asking = serve(with_vectors(scholar, embedder), env=ENV), Asking()
    asking.say(gateway, FIRST)
    assert Gateway.wait_for(lambda: asking.hits(gateway))
    assert Gateway.wait_for(lambda: all(vectors(gateway)))
    pids = [worker["pid"] for worker in gateway.status()["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert Gateway.wait_for(lambda: all(w["ready"] and w["pid"] not in pids for w in gateway.status()["workers"]))
    assert Gateway.wait_for(lambda: asking.hits(gateway))
    assert embedder.asked.count(FIRST) == 1


def test_hosts_share_them_through_redis(engine: str, scholar: Scholar, embedder: Embedder, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path).start()
    hosts: list[Gateway] = []
    try:
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            state = {"dir": str(folder / "state"), "redis": {"url": redis.url, "operation_ms": 100}}
            hosts.append(Gateway(with_vectors(scholar, embedder, state, 1), engine=engine, folder=folder, env=ENV).start())
            assert Gateway.wait_for(lambda: hosts[-1].metrics().get("turnout_redis_breaker_open") == 0)
        asking = Asking()
        asking.say(hosts[1], "о поездах", READ)  # the scope is open there
        asking.say(hosts[0], FIRST)
        assert Gateway.wait_for(lambda: asking.hits(hosts[1]))
        assert embedder.asked.count(FIRST) == 1 and vectors(hosts[1]) == [1]
        httpx.post(f"{hosts[0].admin_url}/admin/cache/purge?tenant=key:tester&dry=false", headers=ADMIN, trust_env=False)
        assert Gateway.wait_for(lambda: vectors(hosts[0]) == vectors(hosts[1]) == [0])
        assert not asking.hits(hosts[1])
    finally:
        for host in hosts:
            host.stop()
        redis.kill()
