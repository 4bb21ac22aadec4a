"""Several hosts (each a supervisor with a folder of its own) know what each has seen; what happens to Redis harms no request;
and a restart forgets nothing."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.delays import Load, Server, made, serving
from support.gateway import Gateway
from support.redis_server import RedisServer
from turnout import native

STEADY_S = 60.0


@pytest.fixture
def providers() -> Iterator[dict[str, Server]]:
    with serving({"a": 0.03, "b": 0.15, "c": 0.3}) as servers:
        yield servers


@pytest.fixture
def host(serve: Callable[..., Gateway]) -> Iterator[Callable[..., Gateway]]:
    """Like `serve`, but ends with the test."""
    running: list[Gateway] = []

    def start(*args: Any, **options: Any) -> Gateway:
        running.append(serve(*args, **options))
        return running[-1]

    yield start
    for gateway in running:
        gateway.stop()


def scores(gateway: Gateway) -> list[dict[str, dict[str, Any]]]:
    """What each worker knows of each target."""
    report = gateway.admin("/admin/routes/chat").json()
    return [{line["target"]: line for line in worker["candidates"] if "score" in line} for worker in report["workers"]]


def know(gateway: Gateway, answers: float = 3.0) -> bool:
    """Whether all workers have an opinion of all targets."""
    workers = scores(gateway)
    return bool(workers) and all(len(w) == 3 and all(line["answers"] >= answers for line in w.values()) for w in workers)


def in_order(gateway: Gateway) -> bool:
    """Whether all workers rank the targets by how slow they are."""
    return all(w["a/m"]["score"] < w["b/m"]["score"] < w["c/m"]["score"] for w in scores(gateway))


def near(gateway: Gateway, hosts: int = 1) -> bool:
    redis = gateway.status()["redis"]
    return bool(redis["up"] and redis["hosts"] == hosts)


@pytest.mark.alone
def test_a_target_that_turns_slow_for_one_host_loses_the_traffic_of_the_other(
    host: Callable[..., Gateway], providers: dict[str, Server], redis: RedisServer
) -> None:
    a, b = (host(made(providers, 2, redis=redis.url)) for _ in range(2))
    assert a.wait_for(lambda: near(a) and near(b), STEADY_S)
    load = Load(a, 8)
    try:
        assert b.wait_for(lambda: know(b), STEADY_S), "b has had no request"
        assert b.wait_for(lambda: in_order(b), STEADY_S), scores(b)
        providers["a"].delay_s = 1.0
        turned = time.monotonic()
        assert b.wait_for(lambda: all(w["a/m"]["score"] > 2 * w["c/m"]["score"] for w in scores(b)), STEADY_S)
        print(f"\nknown on the other host after {time.monotonic() - turned:.2f} s")
        other = Load(b, 4)
        began = time.monotonic()
        time.sleep(2)
        other.stop()
        assert other.share("a", began, began + 2) < 0.1
        providers["a"].delay_s = 0.03
        assert b.wait_for(lambda: all(w["a/m"]["score"] < w["b/m"]["score"] for w in scores(b)), STEADY_S), "it has healed"
    finally:
        load.stop()
    assert not load.wrong
    assert not other.wrong
    assert b.metric("turnout_redis_seconds_count", operation="command") > 10
    assert b.metric("turnout_redis_breaker_open") == 0


def test_whatever_happens_to_redis_no_request_fails_or_waits(
    host: Callable[..., Gateway], providers: dict[str, Server], redis: RedisServer
) -> None:
    """Down, stopped, full, read-only, full of garbage; then statistics flow again."""
    a, b = (host(made(providers, 1, redis=redis.url)) for _ in range(2))
    assert a.wait_for(lambda: near(a) and near(b), STEADY_S)
    load = Load(a, 4)
    key = "turnout:{routing}:1"

    def hurt(do: Callable[[], Any], undo: Callable[[], Any]) -> None:
        do()
        time.sleep(1.0)
        undo()
        assert a.wait_for(lambda: near(a) and near(b), STEADY_S)

    try:
        time.sleep(1.0)
        began = time.monotonic()
        hurt(redis.kill, redis.start)
        hurt(redis.pause, redis.go_on)
        hurt(lambda: redis.ask("CONFIG", "SET", "maxmemory", "1"), lambda: redis.ask("CONFIG", "SET", "maxmemory", "0"))
        hurt(lambda: redis.ask("REPLICAOF", "127.0.0.1", "1"), lambda: redis.ask("REPLICAOF", "NO", "ONE"))
        hurt(lambda: (redis.ask("DEL", key), redis.ask("SET", key, "garbage")), lambda: redis.ask("DEL", key))
        hurt(lambda: redis.ask("HSET", key, "x", "garbage", "y", b"T1\0\0\0\0\x94", b"\xff", ""), lambda: None)
        ended = time.monotonic()
    finally:
        load.stop()
    assert not load.wrong
    assert redis.ask("HLEN", key) == 2, "what was no report is gone"
    took = sorted(took for at, took in load.took if began <= at < ended)
    quiet = sorted(took for at, took in load.took if at < began)
    assert len(took) > 200
    assert took[int(0.99 * len(took))] < quiet[int(0.99 * len(quiet))] + 0.25  # nothing of it is on a request's way
    for kind in ("lost", "connect", "timeout", "full", "readonly", "type", "garbage"):
        assert a.metric("turnout_redis_errors_total", kind=kind) + b.metric("turnout_redis_errors_total", kind=kind) > 0, kind
    assert a.metric("turnout_redis_breaker_opens_total") >= 2


def test_it_starts_without_the_redis_that_it_is_to_use(host: Callable[..., Gateway], providers: dict[str, Server], redis: RedisServer) -> None:
    redis.kill()
    gateway = host(made(providers, 1, redis={"url": redis.url, "prefix": "mine"}))
    load = Load(gateway, 2)
    try:
        assert gateway.wait_for(lambda: gateway.metric("turnout_redis_breaker_open") == 1, STEADY_S)
        redis.start()
        assert gateway.wait_for(lambda: near(gateway, 0), STEADY_S)
        assert gateway.wait_for(lambda: redis.ask("EXISTS", "mine:{routing}:1"), STEADY_S)
    finally:
        load.stop()
    assert not load.wrong


def test_a_restart_of_the_host_forgets_nothing(host: Callable[..., Gateway], providers: dict[str, Server]) -> None:
    gateway = host(made(providers, 2))
    learn(gateway)
    assert gateway.stop() == 0
    again(gateway)
    assert know(gateway, 1.0)
    assert gateway.wait_for(lambda: in_order(gateway), 1.0), scores(gateway)
    gateway.stop()
    file = gateway.state / "routing.statistics"
    for garbage in (file.read_bytes()[:-1], b"", b"T1\0\0\0\0", bytes(1000)):
        file.write_bytes(garbage)
        again(gateway)
        assert any("routing.statistics in state.dir is damaged" in line for line in gateway.said)
        assert all(line["answers"] == 0 for worker in scores(gateway) for line in worker.values())
        gateway.stop()


def learn(gateway: Gateway) -> None:
    """Requests until every worker has the right opinion."""
    load = Load(gateway, 6)
    try:
        assert gateway.wait_for(lambda: know(gateway) and in_order(gateway), STEADY_S)
    finally:
        load.stop()


def again(gateway: Gateway) -> None:
    gateway.url = ""
    gateway.said.clear()
    gateway.start()


@pytest.mark.alone
def test_a_host_that_starts_anew_hears_from_redis_what_was_known(host: Callable[..., Gateway], providers: dict[str, Server], redis: RedisServer) -> None:
    """All hosts were down, and their disks are new."""
    first = host(made(providers, 1, redis=redis.url))
    learn(first)
    assert first.stop() == 0
    second = host(made(providers, 1, redis=redis.url))
    # A score is reckoned every 20 ms, from whatever is known then.
    assert second.wait_for(lambda: know(second, 1.0) and in_order(second), STEADY_S), scores(second)


def test_redis_can_be_taken_and_left_by_a_reload(host: Callable[..., Gateway], providers: dict[str, Server], redis: RedisServer) -> None:
    if not native.shares:
        pytest.skip("without shared memory one worker takes it over at the next start")
    data = made(providers, 1)
    gateway = host(data)
    assert gateway.status()["redis"] is None
    plain = dict(data["state"])
    for state in ({**plain, "redis": redis.url}, {**plain, "redis": {"url": redis.url, "prefix": "other"}}):
        gateway.write(data | {"state": state})
        assert gateway.wait_for(lambda: gateway.status()["redis"] and gateway.status()["redis"]["up"], STEADY_S)
    assert gateway.wait_for(lambda: redis.ask("EXISTS", "other:{routing}:1"), STEADY_S)
    gateway.write(data | {"state": plain})
    assert gateway.wait_for(lambda: gateway.status()["redis"] is None, STEADY_S)
    assert gateway.wait_for(lambda: redis.ask("INFO", "clients")["connected_clients"] == 1, STEADY_S), "the old ones are closed"
