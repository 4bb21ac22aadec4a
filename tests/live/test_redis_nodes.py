"""Several servers: a master with its heir under sentinels, and a cluster."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop

from support.redis_server import RedisServer, free_port
from turnout.secret import Secret
from turnout.state.depot import Depot
from turnout.state.dial import slot_of
from turnout.state.spec import RedisSpec
from turnout.telemetry.metrics import WAITS, Histogram

START_S = 60.0


@asynccontextmanager
async def depot(url: str, **more: Any) -> AsyncIterator[Depot]:
    made = Depot(RedisSpec(url=url, **{"connect_ms": 500, "operation_ms": 2_000, **more}), Random(1), lambda: Histogram(WAITS))
    try:
        await until(lambda: made.up)
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], Any], seconds: float = START_S) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def wait(condition: Callable[[], Any], seconds: float = START_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`make(options)`: a server that is not started yet; all are killed at the end."""
    made: list[RedisServer] = []

    def one(*more: str, **options: Any) -> RedisServer:
        made.append(RedisServer(tmp_path, *more, **options))
        return made[-1]

    yield one
    for server in made:
        server.kill()


# ---- sentinels


@pytest.fixture
def watched(make: Callable[..., RedisServer]) -> tuple[RedisServer, RedisServer, list[RedisServer]]:
    """A master, its replica, three sentinels that have found each other."""
    master = make().start()
    heir = make("--replicaof", f"127.0.0.1 {master.port}").start()
    watch = f"sentinel monitor main 127.0.0.1 {master.port} 2\nsentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n"
    sentinels = [make(sentinel=watch).start() for _ in range(3)]
    wait(lambda: heir.ask("INFO", "replication")["master_link_status"] == "up")
    wait(lambda: all(len(s.ask("SENTINEL", "SENTINELS", "main")) == 2 and len(s.ask("SENTINEL", "REPLICAS", "main")) == 1 for s in sentinels))
    return master, heir, sentinels


def test_the_heir_is_asked_when_the_master_is_dead_and_the_master_no_more_when_it_is_back(
    watched: tuple[RedisServer, RedisServer, list[RedisServer]],
) -> None:
    master, heir, sentinels = watched

    async def run() -> None:
        url = "redis+sentinel://" + ",".join(f"127.0.0.1:{s.port}" for s in sentinels) + "/main"
        async with depot(url, operation_ms=100) as d:
            key = d.key("t", "a")
            assert await d.set(key, b"before", 60_000)
            assert master.ask("EXISTS", key) == 1
            sentinels[0].kill()  # one of them may be out of order too
            master.pause()
            slowest = 0.0
            end = time.monotonic() + START_S
            while time.monotonic() < end:
                began = time.perf_counter()
                stored = await d.set(key, b"after", 60_000)
                slowest = max(slowest, time.perf_counter() - began)
                if stored:
                    break
                await asyncio.sleep(0.005)
            assert await d.get(key) == b"after"
            assert heir.ask("ROLE")[0] == b"master"
            assert slowest < 0.5
            master.go_on()  # it believes to be the master still, until a sentinel tells it
            for _ in range(100):
                assert await d.get(key) == b"after"
                await asyncio.sleep(0.005)

    uvloop.run(run())


def test_a_master_that_was_demoted_is_left_for_the_new_one(watched: tuple[RedisServer, RedisServer, list[RedisServer]]) -> None:
    _, heir, sentinels = watched

    async def run() -> None:
        async with depot(f"redis+sentinel://127.0.0.1:{sentinels[0].port}/main") as d:
            key = d.key("t", "a")
            assert await d.set(key, b"v", 60_000)
            sentinels[0].ask("SENTINEL", "FAILOVER", "main")
            await until(lambda: heir.ask("ROLE")[0] == b"master")
            end = time.monotonic() + START_S
            while not (await d.set(key, b"new", 60_000) and heir.ask("EXISTS", key)):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            assert d.up

    uvloop.run(run())


def test_sentinels_have_a_password_of_their_own(make: Callable[..., RedisServer]) -> None:
    master = make("--requirepass", "inner")
    master.ask = lambda *args, **more: RedisServer.ask(master, *args, password="inner", **more)  # type: ignore[method-assign]
    master.start()
    watch = f"requirepass outer\nsentinel monitor main 127.0.0.1 {master.port} 1\nsentinel auth-pass main inner\n"
    sentinel = make(sentinel=watch)
    sentinel.ask = lambda *args, **more: RedisServer.ask(sentinel, *args, password="outer", **more)  # type: ignore[method-assign]
    sentinel.start()

    async def run() -> None:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        secrets = {"password": Secret("env:A", "inner"), "sentinel_password": Secret("env:B", "outer")}
        async with depot(url, **secrets) as d:
            assert await d.set(d.key("t"), b"v", 1_000)

    uvloop.run(run())


# ---- cluster


@pytest.fixture
def cluster(make: Callable[..., RedisServer]) -> list[RedisServer]:
    """Three nodes with a third of the slots each."""
    nodes = []
    for _ in range(3):
        port = free_port()
        while port > 55_000:  # its bus listens 10,000 above
            port = free_port()
        more = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
        nodes.append(make(*more, port=port).start())
    for i, node in enumerate(nodes):
        node.ask("CLUSTER", "ADDSLOTSRANGE", i * 5461, 16383 if i == 2 else (i + 1) * 5461 - 1)
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    for node in nodes[1:]:
        nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
    wait(lambda: all("cluster_state:ok" in info(n) and "cluster_slots_assigned:16384" in info(n) for n in nodes))
    return nodes


def info(node: RedisServer) -> str:
    said = node.ask("CLUSTER", "INFO")
    return said.decode() if isinstance(said, bytes) else "\n".join(f"{k}:{v}" for k, v in said.items())


def test_each_key_goes_to_the_node_that_has_it(cluster: list[RedisServer]) -> None:
    async def run() -> None:
        async with depot(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster[1].port}") as d:
            keys = [d.key(f"tenant-{i}", "x") for i in range(300)]
            await until(lambda: all(d._nodes.lane(key) is not None and d._nodes.lane(key).up for key in keys))  # type: ignore[union-attr]
            d.errors.clear()
            assert all(await asyncio.gather(*(d.set(key, key, 60_000) for key in keys)))
            assert await asyncio.gather(*(d.get(key) for key in keys)) == keys
            assert [node.ask("DBSIZE") for node in cluster] != [300, 0, 0]
            assert sum(node.ask("DBSIZE") for node in cluster) == 300
            one_tag = [d.key("tenant", str(i)) for i in range(20)]
            assert await asyncio.gather(*(d.set(key, b"v", 60_000) for key in one_tag)) == [True] * 20
            assert await d.delete(*one_tag) == 20
            assert await d.lease(d.key("tenant", "lease"), b"me", 1_000) is True
            waiting = asyncio.ensure_future(d.wait(keys[0] + b":later", 20_000))
            await asyncio.sleep(0.1)
            assert await d.set(keys[0] + b":later", b"here", 60_000, tell=True)
            assert await waiting == b"here"
            assert not d.errors

    uvloop.run(run())


def test_a_slot_that_moves_is_followed(cluster: list[RedisServer]) -> None:
    async def run() -> None:
        async with depot(f"redis+cluster://127.0.0.1:{cluster[0].port}") as d:
            key = d.key("tenant", "x")
            await until(lambda: d._nodes.lane(key) is not None and d._nodes.lane(key).up)  # type: ignore[union-attr]
            slot = slot_of(key)
            old = cluster[min(slot // 5461, 2)]
            new = next(node for node in cluster if node is not old)
            old_id, new_id = (node.ask("CLUSTER", "MYID") for node in (old, new))
            assert await d.set(key, b"v", 60_000)
            new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            assert await d.get(key) == b"v"
            fresh = d.key("tenant", "fresh")  # not there yet: ASK
            assert await d.set(fresh, b"f", 60_000)
            assert await d.get(fresh) == b"f"
            old.ask("MIGRATE", "127.0.0.1", new.port, key, 0, 5000)
            for node in (new, old, *cluster):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", new_id)
            for _ in range(20):
                assert await d.get(key) == b"v"
                assert await d.set(fresh, b"f", 60_000)
            assert new.ask("EXISTS", key) == 1
            await until(lambda: d._nodes.lane(key) is d._nodes.moved(("127.0.0.1", new.port)))

    uvloop.run(run())


def test_a_node_that_dies_takes_only_its_own_keys_away(cluster: list[RedisServer]) -> None:
    async def run() -> None:
        async with depot(f"redis+cluster://127.0.0.1:{cluster[0].port}") as d:
            keys = [d.key(f"tenant-{i}", "x") for i in range(90)]
            await until(lambda: all(d._nodes.lane(key) is not None and d._nodes.lane(key).up for key in keys))  # type: ignore[union-attr]
            assert all(await asyncio.gather(*(d.set(key, b"v", 60_000) for key in keys)))
            lost = {key for key in keys if slot_of(key) >= 2 * 5461}
            cluster[2].kill()
            for _ in range(50):
                began = time.perf_counter()
                got = await asyncio.gather(*(d.get(key) for key in keys))
                assert time.perf_counter() - began < 0.5
                assert {key for key, value in zip(keys, got, strict=True) if value is None} == lost
                await asyncio.sleep(0.02)
            assert d.up
            await asyncio.to_thread(cluster[2].start)
            await until(lambda: d._nodes.lane(next(iter(lost))) is not None and d._nodes.lane(next(iter(lost))).up)  # type: ignore[union-attr]
            key = next(iter(lost))
            end = time.monotonic() + START_S
            while not await d.set(key, b"again", 60_000):
                assert time.monotonic() < end
                await asyncio.sleep(0.02)

    uvloop.run(run())
