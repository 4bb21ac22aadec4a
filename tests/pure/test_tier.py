"""Answers on their way between workers and hosts: what arrives is what was sent, for whom it was, and no younger than it is."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from turnout.cache.entry import Entry
from turnout.cache.memory import Memory
from turnout.cache.purge import Purge
from turnout.cache.tier import CROWD, PATIENT_S, Lease, OverRedis, pack, unpack

S = 1_000_000_000
DIGEST = bytes(range(32))
WALL = 1_800_000_000 * S


def entry(**more: Any) -> Entry:
    fields: dict[str, Any] = {
        "digest": DIGEST, "body": b'{"a":1}', "tenant": "team:t", "route": "r", "model": "m", "key": "k", "tags": "x,y", "provider": "p", "served_model": "sm",
        "finish": "stop", "prompt": 3, "completion": 4, "cost_nanos": 5, "stored_ns": 100 * S, "fresh_ns": 160 * S, "dead_ns": 200 * S,
    }  # fmt: skip
    return Entry(**{**fields, **more})


def there(data: bytes, now_ns: int = 500 * S, wall_ns: int = WALL + 20 * S, digest: bytes = DIGEST, tenant: str = "team:t", route: str = "r") -> Entry | None:
    return unpack(data, digest, tenant, route, now_ns, wall_ns)


def test_an_entry_keeps_its_age_on_a_host_with_another_clock() -> None:
    sent = pack(entry(), 110 * S, WALL + 10 * S)  # stored at WALL
    got = there(sent)
    assert got is not None
    assert (got.body, got.provider, got.tags, got.cost_nanos, got.hits) == (b'{"a":1}', "p", "x,y", 5, 0)
    assert (got.stored_ns, got.fresh_ns, got.dead_ns) == (480 * S, 540 * S, 580 * S)
    assert there(sent, wall_ns=WALL + 99 * S) is not None and there(sent, wall_ns=WALL + 100 * S) is None
    early = there(sent, wall_ns=WALL - 50 * S)  # a clock that is behind: as if it had come just now
    assert early is not None and early.stored_ns == 500 * S


@pytest.mark.parametrize("what", [{"digest": bytes(32)}, {"tenant": "team:other"}, {"route": "s"}])
def test_what_is_for_others_is_none(what: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="another"):
        there(pack(entry(), 110 * S, WALL), **what)


@pytest.mark.parametrize("data", [b"", b"-", b"x" * 100, msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([2, DIGEST, b"", *[""] * 8, 0, 0, 0, 0, 0, 0])])
def test_garbage_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="entry"):
        there(data)


class Store:
    """A tier of one process."""

    name = "test"
    up = hopeful = True

    def __init__(self) -> None:
        self.owner: bytes | None = None
        self.heard = True
        self.rows: list[bytes] = []
        self.depot_key = b""

    def key(self, tag: str, *parts: str) -> bytes:
        return ":".join((tag, *parts)).encode()

    async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None:
        self.owner = self.owner or owner
        return self.owner == owner if self.heard else None

    async def take(self, key: bytes, owner: bytes, ttl_ms: int, answer: bytes) -> tuple[bool | None, bytes | None]:
        return await self.lease(key, owner, ttl_ms), None

    async def hand(self, key: bytes, owner: bytes, answer: bytes, value: bytes, ttl_ms: int) -> bool:
        return bool(await self.release(key, owner))

    async def release(self, key: bytes, owner: bytes) -> bool | None:
        if self.owner == owner:
            self.owner = None
        return True

    async def command(self, key: bytes, *args: Any) -> Any:
        if args[0] == b"RPUSH":
            self.rows.append(args[2])
        return self.rows[args[2] :] if args[0] == b"LRANGE" else 1

    async def get(self, key: bytes) -> bytes | None:
        return None

    set = wait = delete = get


def test_one_of_two_has_the_lease_and_gives_it_back() -> None:
    async def run() -> None:
        store: Any = Store()
        one, two = Lease(store, "t", DIGEST), Lease(store, "t", DIGEST)
        assert (await one.take(False), await two.take(False)) == ((True, None), (False, None))
        two.done()
        await two.release()
        assert store.owner is not None
        one.done()
        await one.release()
        assert store.owner is None and (await two.take(False))[0]
        two.done()
        # One that was taken, but whose answer did not come in time, is given back too.
        await two.release()
        store.heard = False
        three = Lease(store, "t", DIGEST)
        assert await three.take(True) == (None, None) and store.owner is not None
        await three.release()
        assert store.owner is None

    asyncio.run(run())


@pytest.mark.parametrize(("waiting", "silent", "mine"), [(CROWD - 1, 1, None), (CROWD, 3, True), (CROWD, 1 << 30, None)])
def test_for_a_crowd_a_silent_store_is_asked_again_for_a_while(waiting: int, silent: int, mine: bool | None) -> None:
    class Slow(Store):
        asked = 0

        async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None:
            self.asked += 1
            await asyncio.sleep(0.02)
            said = await super().lease(key, owner, ttl_ms)
            return said if self.asked > silent else None

    async def run() -> None:
        store: Any = Slow()
        lease = Lease(store, "t", DIGEST, lambda: waiting)
        began = time.monotonic()
        assert await lease.take(False) == (mine, None)
        assert lease.late == (waiting >= CROWD)
        assert (time.monotonic() - began > PATIENT_S) == (silent == 1 << 30)
        lease.done()
        await lease.release()
        assert store.owner is None

    asyncio.run(run())


def test_a_purge_on_one_host_is_heard_on_another_and_holds_for_what_is_older() -> None:
    async def run() -> None:
        store: Any = Store()
        here, elsewhere = Memory(1 << 20, 1 << 20), Memory(1 << 20, 1 << 20)
        one, two = OverRedis(store, here), OverRedis(store, elsewhere)
        elsewhere.put(entry(), 0)
        elsewhere.put(entry(digest=bytes(32), tags=""), 0)
        await one.purged(Purge(tag="x", dry=False))
        await two.get(b"any")
        assert elsewhere.find(DIGEST, 0) is None and elsewhere.find(bytes(32), 0) is not None
        for tier in (one, two):
            assert tier.gone(entry(), WALL - 10**18) and not tier.gone(entry(tags=""), WALL - 10**18)
            assert not tier.gone(entry(), 1 << 62)  # kept after it

    asyncio.run(run())
