"""A large scope of the semantic cache over the end of its workers: the first questions after a restart are answered from it."""

import asyncio
import itertools
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import pytest

from support.gateway import ADMIN_KEY, Gateway, config
from support.redis_server import RedisServer
from support.scholar import Scholar
from turnout import native
from turnout.cache.semantic.books import Place, read
from turnout.cache.semantic.disk import Disk
from turnout.cache.semantic.redis_books import RedisBooks
from turnout.cache.semantic.scopes import Item
from turnout.cache.tier import pack, unpack
from turnout.state.depot import Depot
from turnout.state.spec import RedisSpec
from turnout.telemetry.metrics import WAITS, Histogram

CHAT = "/v1/chat/completions"
MANY = 10_500 if native.shares else 2_300  # twins read a text a hundred times slower
PATIENCE_S = 60
PARTS = (
    ("cook", "clean", "repair", "paint", "sell", "buy", "rent", "move", "store", "ship"),
    ("rice", "bread", "bicycle", "kitchen", "window", "phone", "laptop", "printer", "boiler", "carpet"),
    ("quickly", "cheaply", "safely", "alone", "online", "legally", "properly", "outdoors"),
    ("Paris", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Dublin", "Prague", "Lisbon", "Athens", "Warsaw", "Geneva", "Turin", "Ghent"),
)
QUESTIONS = [f"How do I {verb} a {thing} {way} in {place}?" for verb, thing, way, place in itertools.product(*PARTS)][:MANY]


@pytest.fixture(scope="module")
def scholar() -> Iterator[Scholar]:
    with Scholar(lambda question, number: "that depends on the place") as scholar:
        yield scholar


@pytest.fixture
def start(engine: str, scholar: Scholar, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def begin(name: str = "", **state: Any) -> Gateway:
        semantic = {"deep": "off", "checks": {"share": 0, "first": 0}}
        route = {"name": "fast", "match": {"model": "fast"}, "targets": [{"provider": "a", "model": "m"}], "cache": {"exact": {"ttl_s": 3600}, "semantic": semantic}}
        data = config({"a": scholar.url}, [route], state={"dir": str(tmp_path / f"state{name}"), **state})
        running.append(Gateway(data, engine=engine, folder=tmp_path))
        return running[-1].start()

    yield begin
    for gateway in running:
        gateway.stop()


def ask(client: httpx.Client, text: str, **headers: str) -> str:
    found = client.post(CHAT, json={"model": "fast", "messages": [{"role": "user", "content": text}]}, headers=headers)
    return found.headers.get("x-turnout-cache", "")


def fill(folder: Path) -> None:
    """What lies in the books becomes MANY questions of the same scope."""
    with sqlite3.connect(folder / "semantic.db") as db:
        ((scope, owner, route, model, data),) = db.execute("SELECT scope, owner, route, model, data FROM items").fetchall()
        ((body,),) = db.execute("SELECT body FROM answers").fetchall()
    first = read(data, 0)
    now = time.time_ns()
    assert first is not None
    entry = unpack(body, first.digest, first.tenant, route, 0, now)
    assert entry is not None

    async def work() -> None:
        books = Disk(str(folder), 1 << 30, print)
        for number, text in enumerate(QUESTIONS):
            digest = number.to_bytes(32, "big")
            item = Item(digest=digest, text=text, said=None, tenant=first.tenant, tag=first.tag, key=first.key, tags="", stored_ns=now, dead_ns=now + 3600 * 10**9)
            books.add(Place(scope, owner, route, model), item, pack(msgspec.structs.replace(entry, digest=digest), 0, now))
            if number % 500 == 499:
                await books.flush()
        await books.close()

    asyncio.run(work())


async def fill_redis(spec: RedisSpec, count: int) -> None:
    """The same in Redis, of one question and so many more."""
    depot = Depot(spec, Random(), lambda: Histogram(WAITS))
    while not depot.up:
        await depot.command(b"x", b"PING")
        await asyncio.sleep(0.01)
    (owner,) = [key for key in await depot.command(b"x", b"KEYS", b"turnout:*:scopes")]
    (packed,) = await depot.command(owner, b"SMEMBERS", owner)
    place = msgspec.msgpack.decode(packed, type=Place)
    books = RedisBooks(depot)
    (data,) = await books.load(place) or ()
    now = time.time_ns()
    first = read(data, 0)
    assert first is not None
    answer = depot.key(first.tag, "answer", first.digest.hex())
    entry = unpack(await depot.get(answer) or b"", first.digest, first.tenant, place.route, 0, now)
    assert entry is not None
    for number, text in enumerate(QUESTIONS[:count]):
        digest = number.to_bytes(32, "big")
        item = Item(digest=digest, text=text, said=None, tenant=first.tenant, tag=first.tag, key=first.key, tags="", stored_ns=now, dead_ns=now + 3600 * 10**9)
        books.add(place, item, b"")
        assert await depot.set(depot.key(first.tag, "answer", digest.hex()), pack(msgspec.structs.replace(entry, digest=digest), 0, now), 3_600_000)
    await books.flush()
    await depot.close()


def written(gateway: Gateway, what: str = "written") -> float:
    return gateway.metric("turnout_semantic_snapshots_total", what=what)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_the_first_question_after_a_restart_is_answered_from_a_scope_of_ten_thousand(start: Callable[[], Gateway], tmp_path: Path, end: signal.Signals) -> None:
    gateway = start()
    with gateway.client() as client:
        assert ask(client, "How do I sell a house?") == "miss"
    gateway.stop()
    fill(tmp_path / "state")
    gateway = start()
    folder = tmp_path / "state" / "semantic"
    with gateway.client() as client:
        ask(client, QUESTIONS[0].replace("do I", "can I"), **{"cache-control": "only-if-cached"})  # opens the scope
        assert Gateway.wait_for(lambda: ask(client, QUESTIONS[-1].replace("do I", "can I") + " ", **{"cache-control": "only-if-cached"}).startswith("hit-semantic"), PATIENCE_S)
        assert Gateway.wait_for(lambda: written(gateway) == 1, PATIENCE_S)
        pids = [worker["pid"] for worker in gateway.status()["workers"]]
    if end == signal.SIGKILL:
        assert gateway.process is not None
        gateway.process.kill()  # and with it all of its processes
        gateway.process.wait()
        assert Gateway.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    gateway.stop()
    (file,) = folder.glob("*.snap")
    assert file.stat().st_mode & 0o077 == folder.stat().st_mode & 0o077 == 0
    began = time.monotonic()
    gateway = start()
    up = time.monotonic() - began
    took = []
    with gateway.client() as client:
        for number in (0, MANY // 2, MANY - 1, MANY // 3, 42):
            began = time.monotonic()
            assert ask(client, QUESTIONS[number].replace("do I", "can I")).startswith("hit-semantic"), number
            took.append(time.monotonic() - began)
        assert written(gateway, "used") == 1
        print(f"\n{MANY} questions, {file.stat().st_size >> 10} KB: up after {up:.2f} s, first answers from it in {', '.join(f'{1e3 * t:.0f}' for t in took)} ms")
        # A purge leaves nothing of it on the disk, and it stays so.
        found = httpx.post(f"{gateway.admin_url}/admin/cache/purge?route=fast&dry=false", headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False, timeout=60).json()
        assert found["questions"] >= len(took)
        assert b"boiler" not in b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
        assert not ask(client, QUESTIONS[1].replace("do I", "can I"), **{"cache-control": "only-if-cached"}).startswith("hit")
    gateway.stop()
    assert b"boiler" not in b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())


def test_a_torn_snapshot_is_told_of_and_made_anew(start: Callable[[], Gateway], tmp_path: Path) -> None:
    gateway = start()
    with gateway.client() as client:
        ask(client, "How do I sell a house?")
    gateway.stop()
    fill(tmp_path / "state")
    gateway = start()
    with gateway.client() as client:
        ask(client, QUESTIONS[0].replace("do I", "can I"))
        assert Gateway.wait_for(lambda: written(gateway) == 1, PATIENCE_S)
    gateway.stop()
    (file,) = (tmp_path / "state" / "semantic").glob("*.snap")
    os.truncate(file, file.stat().st_size - 100)
    gateway = start()
    assert Gateway.wait_for(lambda: any("torn" in line for line in gateway.said))
    with gateway.client() as client:
        assert Gateway.wait_for(lambda: ask(client, QUESTIONS[9].replace("do I", "can I"), **{"cache-control": "only-if-cached"}).startswith("hit-semantic"), PATIENCE_S)
        assert Gateway.wait_for(lambda: written(gateway) == 1, PATIENCE_S)




def test_hosts_that_share_a_redis_begin_with_their_snapshots_and_hear_of_purges_they_missed(start: Callable[..., Gateway], redis: RedisServer, tmp_path: Path) -> None:
    spec = {"url": redis.url, "operation_ms": 500, "connect_ms": 500}

    def connected(**more: Any) -> Gateway:
        gateway = start(redis=spec, **more)
        assert Gateway.wait_for(lambda: gateway.metrics().get("turnout_redis_breaker_open") == 0)
        return gateway

    gateway = connected()
    with gateway.client() as client:
        ask(client, "How do I sell a house?")
    assert Gateway.wait_for(lambda: any(b":scope:" in key for key in redis.ask("KEYS", "turnout:*")))
    gateway.stop()
    asyncio.run(fill_redis(msgspec.convert(spec, RedisSpec), min(MANY, 2_500)))
    gateway = connected()
    with gateway.client() as client:
        assert Gateway.wait_for(lambda: ask(client, QUESTIONS[9].replace("do I", "can I"), **{"cache-control": "only-if-cached"}).startswith("hit-semantic"), PATIENCE_S)
        assert Gateway.wait_for(lambda: written(gateway) == 1, PATIENCE_S)
    gateway.stop()
    gateway = connected()
    with gateway.client() as client:
        assert ask(client, QUESTIONS[1_234].replace("do I", "can I")).startswith("hit-semantic")
    gateway.stop()
    folder = tmp_path / "state" / "semantic"
    assert any(b"boiler" in file.read_bytes() for file in folder.glob("*.snap"))
    other = connected(name="-other")  # another host, while this one is down
    found = httpx.post(f"{other.admin_url}/admin/cache/purge?route=fast&dry=false", headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False, timeout=60)
    assert found.status_code == 200
    other.stop()
    gateway = connected()
    assert Gateway.wait_for(lambda: not list(folder.glob("*.snap")))
    with gateway.client() as client:
        assert not ask(client, QUESTIONS[1_234].replace("do I", "can I"), **{"cache-control": "only-if-cached"}).startswith("hit")
