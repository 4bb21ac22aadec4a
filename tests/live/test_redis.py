"""The depot on a real server, and everything that can happen to that: nobody waits, nothing raises, it comes back."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme
import uvloop

from support.redis_server import Proxy, RedisServer, free_port
from turnout.secret import Secret
from turnout.state.depot import MOST_VALUE_BYTES, POLL_S, Depot
from turnout.state.seal import seal
from turnout.state.spec import RedisSpec
from turnout.telemetry.metrics import WAITS, Histogram

# What one call may take: the deadline of 20 ms and a loaded machine. What is added to a request is judged by the median
# and the 99th percentile below.
LATE_S = 0.2
BACK_S = 20.0
FAST = {"operation_ms": 20}  # as by default; what does not test deadlines has 2 s, so that a loaded machine does no harm


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@asynccontextmanager
async def depot(url: str, up: bool = True, **more: Any) -> AsyncIterator[Depot]:
    made = Depot(RedisSpec(url=url, **{"connect_ms": 500, "operation_ms": 2_000, **more}), Random(1), lambda: Histogram(WAITS))
    try:
        if up:
            await until(lambda: made.up)
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return await call, time.perf_counter() - began


# ---- what it offers




@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_it_does_what_it_says(server: RedisServer, runner: Callable[[Any], None]) -> None:
    async def run() -> None:
        async with depot(server.url) as d:
            key = d.key("tenant", "exact", "abc")
            assert key == b"turnout:{tenant}:exact:abc"
            assert await d.get(key) is None
            assert await d.set(key, b"\0value\r\n", 60_000)
            assert await d.get(key) == b"\0value\r\n"
            assert 0 < server.ask("PTTL", key) <= 60_000
            assert await d.set_nx(key, b"other", 60_000) is False
            assert await d.delete(key, d.key("tenant", "none")) == 1
            assert await d.set_nx(key, b"other", 60_000) is True
            assert await d.get(key) == b"other"
            assert await d.script("return {ARGV[1], KEYS[1], 7}", [key], [b"x"]) == [b"x", key, 7]
            assert await d.command(key, b"EXISTS", key) == 1
            assert await d.set(key, b"x" * (MOST_VALUE_BYTES + 1), 60_000) is False
            assert d.errors == {"large": 1}

    runner(run())


def test_a_lease_is_one_owners_until_he_gives_it_back_or_dies(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as a, depot(server.url) as b:
            key = a.key("t", "lease")
            assert sorted(await asyncio.gather(*(d.lease(key, b"%d" % i, 60_000) for i, d in enumerate((a, b) * 20))), key=str) == [False] * 39 + [True]  # type: ignore[type-var]
            owner = server.ask("GET", key)
            assert await b.lease(key, owner, 100) is True  # holds it longer, or shorter
            assert await a.release(key, b"somebody") is False
            assert await a.lease(key, b"somebody", 60_000) is False
            await until(lambda: server.ask("EXISTS", key) == 0)
            assert await a.lease(key, b"somebody", 60_000) is True
            assert await b.release(key, owner) is False
            assert await b.release(key, b"somebody") is True
            assert not a.errors
            server.ask("SCRIPT", "FLUSH")
            assert await a.lease(key, b"after", 60_000) is True
            assert not a.errors

    uvloop.run(run())


def test_a_lease_and_the_answer_it_is_for_are_taken_and_handed_on_in_one_go(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as a, depot(server.url) as b:
            lease, answer = a.key("t", "lease"), a.key("t", "answer")
            assert await a.take(lease, b"one", 60_000, answer) == (True, None)
            assert await a.take(lease, b"one", 60_000, answer) == (True, None)  # its own
            assert await b.take(lease, b"two", 60_000, answer) == (False, None)
            waiting = asyncio.ensure_future(b.wait(answer, 20_000))
            await until(lambda: server.ask("PUBSUB", "NUMSUB", answer) == [answer, 1])
            assert await a.hand(lease, b"one", answer, b"value", 60_000)
            assert await waiting == b"value"
            assert 0 < server.ask("PTTL", answer) <= 60_000
            assert await b.take(lease, b"two", 60_000, answer) == (False, b"value")
            assert server.ask("EXISTS", lease) == 0, "given back, and left where it is"
            assert await a.hand(lease, b"nobody", answer, b"other", 60_000)
            assert await a.get(answer) == b"other"
            assert not a.errors and not b.errors
            # What is none of ours there is nothing, and the lease is to be had.
            for n, spoil in enumerate((lambda: server.ask("SET", answer, "garbage"), lambda: server.ask("DEL", answer) or server.ask("RPUSH", answer, "x"))):
                spoil()
                assert await a.take(lease, b"%d" % n, 60_000, answer) == (True, None)
                assert await a.release(lease, b"%d" % n)
                server.ask("DEL", answer)
            assert a.errors == {"garbage": 1}
            # Where there is no room the lease is given back all the same.
            assert await a.take(lease, b"one", 60_000, answer) == (True, None)
            server.ask("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
            assert not await a.hand(lease, b"one", answer, b"value", 60_000)
            assert server.ask("EXISTS", lease) == 0
            assert await a.take(lease, b"one", 60_000, answer) == (None, None)
            assert a.errors == {"garbage": 1, "full": 2}
            server.ask("CONFIG", "SET", "maxmemory", "0")
            assert not await a.hand(lease, b"one", answer, b"x" * (MOST_VALUE_BYTES + 1), 60_000)

    uvloop.run(run())


def test_who_waits_is_woken_when_the_value_is_there(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as a, depot(server.url) as b:
            key = a.key("t", "answer")
            waiting = [asyncio.ensure_future(d.wait(key, 20_000)) for d in (a, b) for _ in range(50)]
            await until(lambda: server.ask("PUBSUB", "NUMSUB", key) == [key, 2])
            await asyncio.sleep(0.1)
            asked = server.ask("INFO", "commandstats")["cmdstat_get"]["calls"]
            assert await a.set(key, b"here", 60_000, tell=True)
            assert await asyncio.gather(*waiting) == [b"here"] * 100
            assert server.ask("INFO", "commandstats")["cmdstat_get"]["calls"] - asked <= 300
            assert await a.wait(a.key("t", "never"), 50) is None
            # and without being told, a little later
            late = asyncio.ensure_future(b.wait(b.key("t", "quiet"), 20_000))
            await asyncio.sleep(0.05)
            await a.set(a.key("t", "quiet"), b"x", 60_000)
            assert await late == b"x"
            await until(lambda: server.ask("PUBSUB", "CHANNELS") == [])

    uvloop.run(run())


def test_who_waits_hears_at_once_that_the_server_is_gone(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as d:
            waiting = [asyncio.ensure_future(d.wait(d.key("t", "never"), 60_000)) for _ in range(3)]
            await until(lambda: server.ask("PUBSUB", "NUMSUB", d.key("t", "never")) == [d.key("t", "never"), 1])
            await asyncio.sleep(0.3)
            for _ in range(5):  # not by the slow poll alone
                server.kill()
                began = time.perf_counter()
                await until(lambda: not d.up)
                assert await asyncio.wait_for(asyncio.gather(*waiting), 20) == [None] * 3
                if time.perf_counter() - began < POLL_S / 2:
                    return
                server.start()
                await until(lambda: d.up)
                waiting = [asyncio.ensure_future(d.wait(d.key("t", "never"), 60_000)) for _ in range(3)]
                await asyncio.sleep(0.3)
            raise AssertionError("they only heard of it when they looked again")

    uvloop.run(run())


def test_all_that_is_asked_in_one_turn_is_one_write(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as d:
            keys = [d.key("t", str(i)) for i in range(500)]
            assert all(await asyncio.gather(*(d.set(key, key, 60_000) for key in keys)))
            before = server.ask("INFO", "stats")["total_reads_processed"]
            assert await asyncio.gather(*(d.get(key) for key in keys)) == keys
            assert server.ask("INFO", "stats")["total_reads_processed"] - before < 20

    uvloop.run(run())


def test_an_acl_user_may_do_what_he_may_and_the_rest_is_counted(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "turnout", "on", ">s3cret", "~turnout:*", "+@all", "-@dangerous", "-del", "&turnout:*")
    server.ask("CONFIG", "SET", "requirepass", "other")

    async def run() -> None:
        async with depot(server.url, username="turnout", password=Secret("env:X", "s3cret")) as d:
            key = d.key("t", "a")
            assert await d.set(key, b"v", 60_000, tell=True)
            assert await d.lease(d.key("t", "l"), b"me", 1_000) is True
            assert await d.delete(key) is None
            assert await d.get(b"elsewhere") is None
            assert d.errors == {"auth": 2}
        async with depot(server.url, up=False, password=Secret("env:X", "wrong")) as d:
            await until(lambda: d.errors.get("auth", 0) >= 2)
            assert (await timed(d.get(key)))[0] is None
            assert not d.up

    uvloop.run(run())


def test_tls_is_spoken_and_its_certificate_checked(server: RedisServer, tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    proxy = Proxy(server.port, context)
    for name, authority in (("good", ca), ("bad", other)):
        authority.cert_pem.write_to_path(str(tmp_path / name))

    async def run() -> None:
        async with depot(proxy.url, ca_bundle=str(tmp_path / "good")) as d:
            assert await d.set(d.key("t"), b"v" * 100_000, 60_000)
            assert await d.get(d.key("t")) == b"v" * 100_000
        async with depot(proxy.url, up=False, ca_bundle=str(tmp_path / "bad")) as d:
            await until(lambda: d.errors.get("connect", 0) >= 2)
            assert not d.up

    uvloop.run(run())
    proxy.close()


# ---- garbage


def test_what_is_not_ours_reads_as_nothing_and_is_counted(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as d:
            keys = [d.key("t", str(i)) for i in range(7)]
            good = seal(keys[0], b"good")
            wrong = [good, good[:-1] + b"x", good[:5], b"", b"T2" + good[2:], b"plain text", seal(b"another key", b"good")]
            for key, value in zip(keys, wrong, strict=True):
                server.ask("SET", key, value)
            assert await asyncio.gather(*map(d.get, keys)) == [b"good"] + [None] * 6
            assert d.errors == {"garbage": 6}
            server.ask("RPUSH", d.key("t", "list"), "x")
            assert await d.get(d.key("t", "list")) is None
            assert await d.lease(d.key("t", "list"), b"me", 1000) is None
            assert await d.set_nx(d.key("t", "list"), b"v", 1000) is False
            assert d.errors["type"] >= 1
            assert await d.script("return nonsense(", [keys[0]]) is None
            assert await d.script("return redis.error_reply('MY own')", [keys[0]]) is None
            assert await d.command(keys[0], b"NOSUCH", keys[0]) is None
            assert await d.get(keys[0]) == b"good", "the connection has survived all of it"
            assert d.up and d.opens == 0

    uvloop.run(run())


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"+PONG\r\n$zz\r\n", b"+PONG\r\n$5\r\nab", b"+PONG\r\n*-7\r\n$\r\n", b"+PONG\r\n" + b"*1\r\n" * 5000, b"\xff" * 100, b""],
)
def test_a_server_that_speaks_something_else_is_left_alone(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        await reader.read(65536)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            async with depot(f"redis://127.0.0.1:{port}", up=False, **FAST) as d:
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    value, took = await timed(d.get(b"k"))
                    assert value is None
                    assert took < LATE_S
                    await asyncio.sleep(0.01)
                assert sum(d.errors.values()) > 2

    uvloop.run(run())


# ---- faults under load


class Load:
    """Many who ask and write without a pause, as requests do: what each of them had to wait, and when."""

    def __init__(self, d: Depot, clients: int = 8) -> None:
        self._depot = d
        self.waits: list[tuple[float, float, bool]] = []  # when, how long, whether there was a value
        self._tasks = [asyncio.ensure_future(self._run(i)) for i in range(clients)]

    async def _run(self, i: int) -> None:
        key = self._depot.key("load", str(i))
        while True:
            began = time.perf_counter()
            stored = await self._depot.set(key, b"v" * 300, 60_000)
            middle = time.perf_counter()
            value = await self._depot.get(key)
            ended = time.perf_counter()
            self.waits += [(began, middle - began, stored), (middle, ended - middle, value is not None)]
            await asyncio.sleep(0.002)

    def since(self, at: float) -> list[tuple[float, bool]]:
        return [(took, good) for began, took, good in self.waits if began >= at]

    async def stop(self) -> None:
        for task in self._tasks:
            assert not task.done(), "a call has raised"
            task.cancel()
        await asyncio.wait(self._tasks)


async def fault(d: Depot, hurt: Callable[[], None], heal: Callable[[], Any], writes: bool = True, down: bool = True) -> None:
    """Under load: while it lasts nobody waits for long, and for most of it not at all; afterwards all is as before."""
    load = Load(d)
    await asyncio.sleep(0.3)
    assert sum(good for _, good in load.since(0)) > 50
    began = time.perf_counter()
    await asyncio.to_thread(hurt)
    await asyncio.sleep(1.0)
    if down:
        assert not d.up
    settled = sorted(took for took, _ in load.since(began + 0.5))
    assert len(settled) > 100
    assert settled[int(len(settled) * 0.5)] < 0.01
    assert settled[int(len(settled) * 0.99)] < 0.025 + LATE_S  # the machine's own delays
    waited = sum(took >= 0.015 for took, _ in load.since(began))
    assert waited <= 8 * 6 + 0.03 * len(load.since(began)), "three deadlines of each client, not one for each call"
    await asyncio.to_thread(heal)
    healed = time.perf_counter()
    await until(lambda: d.up, BACK_S)
    await until(lambda: sum(good for _, good in load.since(healed)[-100:]) > 90, BACK_S)
    await load.stop()


def test_it_is_killed_and_started_again(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url, **FAST) as d:
            await fault(d, server.kill, server.start)
            assert d.errors["connect"] >= 2
            assert d.errors["down"] > 50

    uvloop.run(run())


def test_it_is_stopped_in_the_middle_of_things(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url, **FAST) as d:
            await fault(d, server.pause, server.go_on)
            assert d.errors["timeout"] >= 2

    uvloop.run(run())


def test_it_answers_half_a_second_late(server: RedisServer) -> None:
    proxy = Proxy(server.port)

    async def run() -> None:
        async with depot(proxy.url, **FAST) as d:
            await fault(d, lambda: setattr(proxy, "delay_s", 0.5), lambda: setattr(proxy, "delay_s", 0.0))
            assert d.errors["timeout"] >= 2

    uvloop.run(run())
    proxy.close()


def test_it_was_never_there(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, port=free_port())

    async def run() -> None:
        async with depot(server.url, up=False, **FAST) as d:
            for _ in range(100):
                value, took = await timed(d.get(b"k"))
                assert value is None
                assert took < LATE_S
                await asyncio.sleep(0.005)
            assert d.errors["down"] == 100
            await asyncio.to_thread(server.start)
            await until(lambda: d.up, BACK_S)
            await until(lambda: d.up)

    try:
        uvloop.run(run())
    finally:
        server.kill()


def test_its_memory_is_full(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url, operation_ms=200) as d:
            await d.set(d.key("t"), b"v", 60_000)
            await fault(
                d,
                lambda: server.ask("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"),
                lambda: server.ask("CONFIG", "SET", "maxmemory", "0"),
                down=False,
            )
            assert d.errors.keys() == {"full"}
            assert d.opens == 0, "reading goes on"
            assert await d.get(d.key("t")) == b"v"

    uvloop.run(run())


def test_it_is_a_read_only_replica(server: RedisServer, tmp_path: Path) -> None:
    master = RedisServer(tmp_path).start()

    async def run() -> None:
        async with depot(server.url, operation_ms=200) as d:
            await fault(
                d,
                lambda: server.ask("REPLICAOF", "127.0.0.1", str(master.port)),
                lambda: server.ask("REPLICAOF", "NO", "ONE"),
                down=False,
            )
            assert d.errors["readonly"] > 10
            assert d.opens <= 4, "dialled anew now and then, not for each write"

    try:
        uvloop.run(run())
    finally:
        master.kill()


def test_a_caller_that_leaves_harms_nobody(server: RedisServer) -> None:
    async def run() -> None:
        async with depot(server.url) as d:
            key = d.key("t")
            await d.set(key, b"v", 60_000)
            for _ in range(50):
                left = [asyncio.ensure_future(d.get(key)) for _ in range(5)]
                stays = asyncio.ensure_future(d.get(key))
                await asyncio.sleep(0)
                for task in left:
                    task.cancel()
                assert await stays == b"v"
            assert d.opens == 0

    uvloop.run(run())
