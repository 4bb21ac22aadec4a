"""Hosts that share a Redis are one cache; what happens to it, or lies in it, costs nobody an answer."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis as client

from faults.conftest import said
from faults.server import TEXT, FaultServer
from support.crowd import body, crowd
from support.gateway import ADMIN_KEY, Gateway, config, die_with_tests
from support.redis_server import RedisServer


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def host(engine: str, redis: RedisServer, a: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def start(**more: Any) -> Gateway:
        faults = {"late": "slow-head:ms=2500", "begun": "late-token:ms=2500", "quick": "ok"}
        routes = [
            {"name": name, "match": {"model": name}, "targets": [{"provider": name, "model": "gpt-4o-mini"}], "cache": {"exact": {"ttl_s": 600}}} for name in faults
        ]
        folder = tmp_path_factory.mktemp("host")
        state = {"dir": str(folder / "state"), "redis": {"url": redis.url, **more}}
        data = config({name: a.at(fault) for name, fault in faults.items()}, routes, state=state)
        data["listen"]["workers"] = 2
        running.append(Gateway(data, engine=engine, folder=folder).start())
        return running[-1]

    yield start
    for gateway in running:
        gateway.stop()


def outcome(gateway: Gateway, model: str, text: str) -> str:
    (answer,) = crowd(gateway, body(model, text, False), 1)
    assert answer.status == 200 and json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT
    return answer.headers["x-turnout-cache"]


# Where no deadline is tested a loaded machine does no harm.
PATIENT = {"connect_ms": 2_000, "operation_ms": 2_000}


def up(gateway: Gateway) -> bool:
    found = gateway.metrics()
    return found.get("turnout_redis_breaker_open") == 0


def settled(gateway: Gateway) -> None:
    """Both workers have met Redis (a client is made with the config, and connects on its own)."""
    assert Gateway.wait_for(lambda: up(gateway), 30)
    n = iter(range(1000))

    def shared() -> bool:
        text = f"settling {next(n)}"
        return [outcome(gateway, "quick", text) for _ in range(6)][1:] == ["hit-exact"] * 5

    assert Gateway.wait_for(shared, 30)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """A machine on which others work too."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=die_with_tests) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.parametrize("others", [0, pytest.param(6, marks=pytest.mark.alone)], ids=["quiet", "busy"])
def test_a_thousand_over_two_hosts_are_one_upstream_call(host: Callable[..., Gateway], a: FaultServer, others: int, full: bool) -> None:
    hosts = [host() for _ in range(2)]
    for gateway in hosts:
        settled(gateway)
    with busy(others):
        for stream in (False, True) * (1 + full):
            before = a.requests
            answers: list[Any] = []
            asked = body("begun" if stream else "late", f"crowd {stream} {before}", stream)
            threads = [threading.Thread(target=lambda g=gateway, a=asked, to=answers: to.extend(crowd(g, a, 500))) for gateway in hosts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(answers) == 1000 and {answer.status for answer in answers} == {200}
            for answer in answers:
                assert (said(answer.body) if stream else json.loads(answer.body)["choices"][0]["message"]["content"]) == TEXT
            trouble = [{name: n for name, n in gateway.metrics().items() if "redis_errors" in name or "opens" in name} for gateway in hosts]
            assert a.requests == before + 1, trouble


def test_what_one_host_keeps_another_gives_and_a_restart_forgets_nothing(host: Callable[..., Gateway], a: FaultServer) -> None:
    one, two = host(**PATIENT), host(**PATIENT)
    settled(one)
    settled(two)
    before = a.requests
    assert outcome(one, "quick", "kept by one") == "miss"
    assert [outcome(two, "quick", "kept by one") for _ in range(4)] == ["hit-exact"] * 4
    one.stop()
    three = host(**PATIENT)
    settled(three)
    before += a.requests - before - 1
    assert outcome(three, "quick", "kept by one") == "hit-exact"


def test_a_purge_reaches_all_hosts_and_what_lies_in_redis(host: Callable[..., Gateway], a: FaultServer) -> None:
    one, two = host(**PATIENT), host(**PATIENT)
    settled(one)
    settled(two)
    for text in ("purged", "stays"):
        outcome(one, "quick", text)
        assert [outcome(two, "quick", text) for _ in range(4)] == ["hit-exact"] * 4
    key = crowd(one, body("quick", "purged", False), 1)[0].headers["x-turnout-cache-key"]
    httpx.post(one.admin_url + f"/admin/cache/purge?dry=false&entry={key}", headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False).raise_for_status()
    assert outcome(one, "quick", "purged") == "miss"
    assert [outcome(one, "quick", "stays") for _ in range(4)] == ["hit-exact"] * 4
    assert outcome(two, "quick", "stays") == "hit-exact"


def test_garbage_in_redis_is_a_miss(host: Callable[..., Gateway], redis: RedisServer, a: FaultServer) -> None:
    """Text, another type, a value of another key, a bit flipped, nothing at all: none is given, none is an error."""
    gateway = host(**PATIENT)
    settled(gateway)
    known: set[bytes] = set(redis.ask("KEYS", "*:answer:*"))
    keys: dict[str, bytes] = {}
    for kind in ("good", "text", "list", "another's", "flipped", "empty"):
        assert outcome(gateway, "quick", f"garbage {kind}") == "miss"
        assert Gateway.wait_for(lambda: set(redis.ask("KEYS", "*:answer:*")) - known)
        (keys[kind],) = set(redis.ask("KEYS", "*:answer:*")) - known
        known.add(keys[kind])
    with client.Redis(port=redis.port) as raw:
        good = raw.get(keys["good"])
        flipped = bytearray(raw.get(keys["flipped"]))
        flipped[len(flipped) // 2] ^= 1
        raw.set(keys["text"], b"garbage")
        raw.delete(keys["list"])
        raw.rpush(keys["list"], b"x")
        raw.set(keys["another's"], good)
        raw.set(keys["flipped"], bytes(flipped))
        raw.set(keys["empty"], b"")
    gateway.stop()
    fresh = host(**PATIENT)  # with nothing in its own memory
    settled(fresh)
    assert {kind: outcome(fresh, "quick", f"garbage {kind}") for kind in keys} == {kind: "hit-exact" if kind == "good" else "miss" for kind in keys}
    assert [outcome(fresh, "quick", f"garbage {kind}") for kind in keys] == ["hit-exact"] * len(keys)  # put right again


def test_a_redis_that_dies_or_stands_still_costs_nobody_an_answer(host: Callable[..., Gateway], redis: RedisServer, a: FaultServer) -> None:
    gateway = host()
    settled(gateway)
    redis.pause()
    for n in range(10):
        assert outcome(gateway, "quick", f"paused {n}") == "miss"
    redis.go_on()
    redis.kill()
    for n in range(10):
        assert outcome(gateway, "quick", f"dead {n}") == "miss"
        assert outcome(gateway, "quick", f"dead {n}") in ("miss", "hit-exact")
    redis.start()
    settled(gateway)
