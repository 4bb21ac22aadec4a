"""The semantic cache of several workers and hosts: what one learns the others know, a kill loses nothing, a purge is whole."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import ADMIN_KEY, Gateway, config
from support.redis_server import RedisServer
from support.scholar import Scholar

CHAT = "/v1/chat/completions"
FIRST, SAME = "How do I cook rice?", "How can I cook rice"
CONNECTIONS = 16
VISIBLE_S = 0.1
ROOM_S = 0.4  # more than that for a machine that has other things to do; the median has to be within VISIBLE_S
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def scholar() -> Iterator[Scholar]:
    with Scholar(lambda question, number: f"answer {number} to all about rice") as scholar:
        yield scholar


def settings(scholar: Scholar, state: dict[str, Any] | None = None, workers: int = 2) -> dict[str, Any]:
    semantic = {"deep": "off", "checks": {"share": 0, "first": 0}}
    route = {"name": "fast", "match": {"model": "fast"}, "targets": [{"provider": "a", "model": "m"}], "cache": {"exact": {"ttl_s": 600}, "semantic": semantic}}
    data = config({"a": scholar.url}, [route], **({"state": state} if state else {}))
    data["listen"]["workers"] = workers
    data["auth"]["keys"].append({"name": "other", "key": "env:OTHER"})
    return data


ENV = {"OTHER": "sk-other-0123456789abcdef"}


class Topic:
    """A scope of its own, asked over many connections, so that all workers see it."""

    open: list["Topic"] = []

    def __init__(self, gateway: Gateway, key: str = "") -> None:
        self.open.append(self)
        self.system = {"role": "system", "content": f"topic {random.random()}"}
        self.marks = 0
        self.clients = [gateway.client() for _ in range(CONNECTIONS)]
        if key:
            for client in self.clients:
                client.headers["authorization"] = f"Bearer {key}"

    def say(self, client: httpx.Client, text: str, **headers: str) -> httpx.Response:
        found = client.post(CHAT, json={"model": "fast", "messages": [self.system, {"role": "user", "content": text}]}, headers=headers)
        assert found.status_code == 200, found.text
        return found

    def warm(self) -> None:
        """Each worker has the scope open."""
        for client in self.clients:
            self.say(client, "something else entirely about trains", **{"x-turnout-cache": "read"})

    def hits(self) -> list[bool]:
        """Of each connection, for a question that nobody asked yet; it leaves nothing behind."""
        self.marks += 1
        ask = SAME.replace(" ", " " * self.marks)
        return [self.say(client, ask, **{"x-turnout-cache": "read"}).headers["x-turnout-cache"].startswith("hit-semantic") for client in self.clients]

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while Topic.open:
        Topic.open.pop().close()


def visible_s(topic: Topic) -> float:
    """Until all workers give what one has just learned. Raises AssertionError if that takes too long."""
    topic.say(topic.clients[0], FIRST)
    began = time.monotonic()
    while not all(topic.hits()):
        assert time.monotonic() - began < ROOM_S + 2.0
    return time.monotonic() - began


def measured(gateway: Gateway, label: str) -> None:
    times = []
    for _ in range(7):
        topic = Topic(gateway)
        topic.warm()
        times.append(visible_s(topic))
    times.sort()
    print(f"\n{label}: visible to all workers after {1e3 * times[3]:.0f} ms (median of 7), {1e3 * times[-1]:.0f} ms at most")
    assert times[3] < VISIBLE_S + 0.1  # the asking of 16 connections is in it


def test_workers_know_what_one_has_learned(serve: Callable[..., Gateway], scholar: Scholar) -> None:
    measured(serve(settings(scholar), env=ENV), "one host, its file")


def test_a_kill_loses_nothing(serve: Callable[..., Gateway], scholar: Scholar) -> None:
    gateway = serve(settings(scholar), env=ENV)
    topic = Topic(gateway)
    first = topic.say(topic.clients[0], FIRST)
    time.sleep(0.1)  # it is written down behind the answer
    pids = [worker["pid"] for worker in gateway.status()["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert Gateway.wait_for(lambda: all(w["ready"] and w["pid"] not in pids for w in gateway.status()["workers"]))
    ready = time.monotonic()
    again = Topic(gateway)
    again.system = topic.system
    while not all(again.hits()):
        assert time.monotonic() - ready < 2.0
    print(f"\nafter kill -9: workers ready after {ready - began:.2f} s, hits everywhere {time.monotonic() - ready:.2f} s later")
    assert again.say(again.clients[0], SAME, **{"x-turnout-cache": "read"}).json()["choices"] == first.json()["choices"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
def host(engine: str, redis: RedisServer, scholar: Scholar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Gateway]]:
    running: list[Gateway] = []

    def start() -> Gateway:
        folder = tmp_path_factory.mktemp("host")
        state = {"dir": str(folder / "state"), "redis": {"url": redis.url, "operation_ms": 100}}
        running.append(Gateway(settings(scholar, state, 1), engine=engine, folder=folder, env=ENV).start())
        assert Gateway.wait_for(lambda: running[-1].metrics().get("turnout_redis_breaker_open") == 0)
        return running[-1]

    yield start
    for gateway in running:
        gateway.stop()


def test_hosts_that_share_a_redis_share_what_they_know(host: Callable[[], Gateway], redis: RedisServer) -> None:
    one, two = host(), host()
    here, there = Topic(one), Topic(two)
    there.system = here.system
    for what in ("purge", "add", "drop"):  # nonsense among the news stops nobody
        redis.ask("XADD", "turnout:{semantic}:log", "*", "by", "x", "what", what, "scope", "s", "value", "{")
    redis.ask("XADD", "turnout:{semantic}:log", "*", "x", "y")
    first = here.say(here.clients[0], FIRST)
    assert Gateway.wait_for(lambda: all(there.hits()))
    assert there.say(there.clients[0], SAME, **{"x-turnout-cache": "read"}).json()["choices"] == first.json()["choices"]
    # A purge at one host is one at the other, and leaves nothing in Redis.
    found = httpx.post(f"{one.admin_url}/admin/cache/purge?tenant=key:tester&dry=false", headers=ADMIN, trust_env=False).json()
    assert found["questions"] >= 1
    assert Gateway.wait_for(lambda: not any(there.hits()) and not any(here.hits()))
    kept = [key for key in redis.ask("KEYS", "turnout:*") if b":scope:" in key or b":answer:" in key]
    assert kept == []


def test_a_purge_of_one_tenant_leaves_the_other(host: Callable[[], Gateway]) -> None:
    gateway = host()
    mine, theirs = Topic(gateway), Topic(gateway, ENV["OTHER"])
    for topic in (mine, theirs):
        topic.say(topic.clients[0], FIRST)
        assert Gateway.wait_for(lambda topic=topic: all(topic.hits()))
    httpx.post(f"{gateway.admin_url}/admin/cache/purge?tenant=key:other&dry=false", headers=ADMIN, trust_env=False)
    assert not any(theirs.hits()) and all(mine.hits())


@pytest.mark.parametrize("what", ["killed", "stopped", "garbage", "read-only", "full"])
def test_whatever_redis_does_nobody_fails(host: Callable[[], Gateway], redis: RedisServer, what: str) -> None:
    gateway = host()
    topic = Topic(gateway)
    topic.say(topic.clients[0], FIRST)
    assert Gateway.wait_for(lambda: all(topic.hits()))
    if what == "killed":
        redis.kill()
    elif what == "stopped":
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
    elif what == "garbage":
        for key in redis.ask("KEYS", "turnout:*"):
            redis.ask("DEL", key)
            redis.ask("SET", key, "garbage")
    elif what == "read-only":
        redis.ask("REPLICAOF", "127.0.0.1", "1")
    else:
        redis.ask("CONFIG", "SET", "maxmemory", "1mb")
        redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    end = time.monotonic() + 1.5
    slowest = 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        topic.say(topic.clients[0], FIRST.replace(" ", " " * (topic.marks + 1)))
        assert all(topic.hits())  # what is in memory is still given
        slowest = max(slowest, (time.monotonic() - began) / (1 + len(topic.clients)))
    fresh = Topic(gateway)
    fresh.say(fresh.clients[0], FIRST)
    assert Gateway.wait_for(lambda: all(fresh.hits()))
    print(f"\n{what}: 0 failed, {1e3 * slowest:.0f} ms a request at most (means of 17)")
    if what == "stopped":
        assert redis.process is not None
        redis.process.send_signal(signal.SIGCONT)
