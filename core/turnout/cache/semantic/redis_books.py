"""The books in Redis, through the depot: for workers of many hosts.

    {owner}:scopes              set of the owner's scopes, as Places
    {semantic}:owners           set of those who have any
    {owner}:scope:HEX           hash: digest -> the item as it is written down
    {route of a tenant}:answer:HEX   the answer, where the exact cache has it (joining.py puts it there)
    {semantic}:log              stream of what was added, dropped and purged
    {semantic}:meter:NAME       hash: worker -> what it knows of a namespace

All of one owner has one hash tag, so it lies on one node of a cluster.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from ..purge import Purge, Purges
from ..tier import Depot, purges_key
from .books import News, Place, read, written
from .scopes import Item

MOST_LOG = 20_000
AT_ONCE = 500
MOST_WAITING = 2_000
AGAIN_S = (0.1, 0.4, 1.0)  # pauses: a Redis that is busy, or was exchanged, comes back within seconds
FLUSH_S = 0.5
METER_MS = 31 * 86_400_000
MOST_KNOWN = 10_000
_encode_place = msgspec.msgpack.Encoder().encode
_decode_place = msgspec.msgpack.Decoder(Place).decode


class RedisBooks:
    def __init__(self, depot: Depot) -> None:
        self._depot = depot
        self._log = depot.key("semantic", "log")
        self._owners = depot.key("semantic", "owners")
        self._known: dict[bytes, None] = {}  # scopes that have been written down since we began
        self._author = os.urandom(6)
        self._seen: bytes | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._purges = Purges()
        self._loop = asyncio.get_running_loop()

    @property
    def up(self) -> bool:
        return self._depot.up

    async def load(self, place: Place) -> list[bytes] | None:
        key = self._scope(place.owner, place.scope)
        out: list[bytes] = []
        cursor = b"0"
        now = time.time_ns()
        over: list[bytes] = []
        while True:
            said = await self._depot.command(key, b"HSCAN", key, cursor, b"COUNT", AT_ONCE)
            if not isinstance(said, list) or len(said) != 2 or not isinstance(said[1], list):
                return None
            pairs = said[1]
            for name, data in zip(pairs[::2], pairs[1::2], strict=False):
                found = read(data, now) if isinstance(data, bytes) else None
                if found is None or self._purges.took(found, place.route, (place.model,), found.stored_ns):
                    over.append(name)
                else:
                    out.append(data)
            cursor = said[0]
            if cursor == b"0":
                break
        if over:
            await self._depot.command(key, b"HDEL", key, *over)
        return out

    def add(self, place: Place, item: Item, answer: bytes) -> None:
        data = written(item)
        key = self._scope(place.owner, place.scope)
        life_ms = max(1, (item.dead_ns - time.time_ns()) // 1_000_000)
        mine = self._key(place.owner, "scopes")
        self._soon(key, b"HSET", key, item.digest, data)
        # As long as what lives longest in it: GT needs Redis 7, and an item that is over is not given anyhow.
        self._soon(key, b"PEXPIRE", key, life_ms)
        if place.scope not in self._known:
            self._known[place.scope] = None
            if len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._soon(mine, b"SADD", mine, _encode_place(place))
            self._soon(mine, b"PEXPIRE", mine, METER_MS)
            self._soon(self._owners, b"SADD", self._owners, place.owner.encode())
        self._tell("add", place.scope, data)

    def drop(self, place: Place, item: Item) -> None:
        key = self._scope(place.owner, place.scope)
        self._soon(key, b"HDEL", key, item.digest)
        answer = self._answer(item.tag, item.digest)
        self._soon(answer, b"DEL", answer)
        self._tell("drop", place.scope, item.digest)

    async def answer(self, item: Item) -> bytes | None:
        return await self._depot.get(self._answer(item.tag, item.digest))

    async def news(self) -> list[News]:
        if not self._depot.up:
            return []
        if self._seen is None:
            last = await self._depot.command(self._log, b"XREVRANGE", self._log, b"+", b"-", b"COUNT", 1)
            if isinstance(last, list):
                self._seen = last[0][0] if last else b"0-0"
            return []
        rows = await self._depot.command(self._log, b"XRANGE", self._log, b"(" + self._seen, b"+", b"COUNT", AT_ONCE)
        out = []
        for row in rows if isinstance(rows, list) else ():
            try:
                self._seen = row[0]
                fields = dict(zip(row[1][::2], row[1][1::2], strict=True))
                if fields[b"by"] == self._author:
                    continue
                found = News(fields[b"what"].decode(), fields[b"scope"], fields[b"value"])
                if found.what == "purge":
                    self._purges.add(*msgspec.json.decode(found.value, type=tuple[Purge, int]))
            except (KeyError, ValueError, TypeError, IndexError, AttributeError, msgspec.MsgspecError):
                continue  # not ours
            out.append(found)
        return out

    def listening(self) -> AbstractContextManager[asyncio.Event]:
        return self._depot.listening(self._log)

    async def purge(self, what: Purge) -> None:
        """Written into the log, so that all hosts hear it; and what lies here is taken away."""
        said = (what, time.time_ns())
        self._purges.add(*said)
        self._tell("purge", b"", msgspec.json.encode(said))
        await self.flush()
        owners = await self._members(self._owners)
        for owner in owners:
            mine = self._key(owner.decode(), "scopes")
            for packed in await self._members(mine):
                try:
                    place = _decode_place(packed)
                except msgspec.DecodeError:
                    continue
                if not what.route or place.route == what.route:
                    await self._clean(place, what)

    async def purged(self) -> list[tuple[Purge, int]] | None:
        key = purges_key(self._depot)
        rows = await self._depot.command(key, b"LRANGE", key, 0, -1)
        out = []
        for row in rows if isinstance(rows, list) else ():
            with contextlib.suppress(msgspec.MsgspecError, TypeError):
                out.append(msgspec.json.decode(row, type=tuple[Purge, int]))
        return out if isinstance(rows, list) else None

    async def _members(self, key: bytes) -> list[bytes]:
        said = await self._depot.command(key, b"SMEMBERS", key)
        return [member for member in said if isinstance(member, bytes)] if isinstance(said, list | set) else []

    async def _clean(self, place: Place, what: Purge) -> None:
        """Take what fits out of a scope that lies here."""
        key = self._scope(place.owner, place.scope)
        said = await self._depot.command(key, b"HGETALL", key)
        for digest, data in zip(said[::2], said[1::2], strict=False) if isinstance(said, list) else ():
            found = read(data, 0) if isinstance(data, bytes) else None
            if found is None or what.matches(found, place.route, (place.model,)):
                await self._depot.command(key, b"HDEL", key, digest)
                if found is not None:
                    answer = self._answer(found.tag, found.digest)
                    await self._depot.command(answer, b"DEL", answer)

    async def load_meter(self, name: str) -> list[bytes]:
        key = self._depot.key("semantic", "meter", _hex(name))
        said = await self._depot.command(key, b"HVALS", key)
        return [data for data in said if isinstance(data, bytes)] if isinstance(said, list) else []

    def save_meter(self, name: str, who: bytes, data: bytes) -> None:
        key = self._depot.key("semantic", "meter", _hex(name))
        self._soon(key, b"HSET", key, who, data)
        self._soon(key, b"PEXPIRE", key, METER_MS)

    async def flush(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=FLUSH_S)

    async def close(self) -> None:
        await self.flush()

    # ---- keys and commands

    def _key(self, owner: str, *parts: str) -> bytes:
        return self._depot.key(_hex(owner), *parts)

    def _scope(self, owner: str, scope: bytes) -> bytes:
        return self._key(owner, "scope", scope.hex())

    def _answer(self, tag: str, digest: bytes) -> bytes:
        return self._depot.key(tag, "answer", digest.hex())

    def _tell(self, what: str, scope: bytes, value: bytes) -> None:
        fields = (b"by", self._author, b"what", what.encode(), b"scope", scope, b"value", value)
        self._soon(self._log, b"XADD", self._log, b"MAXLEN", b"~", MOST_LOG, b"*", *fields)
        self._soon(self._log, b"PUBLISH", self._log, b"")

    def _soon(self, key: bytes, *command: bytes | int) -> None:
        """Asked, with what else goes in this turn of the loop; nobody waits for it."""
        if len(self._tasks) >= MOST_WAITING:
            return
        task = self._loop.create_task(self._write(key, command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, key: bytes, command: tuple[bytes | int, ...]) -> None:
        """These always have an answer; without one it is tried again for a moment. Twice done does no harm."""
        for pause in AGAIN_S:
            if await self._depot.command(key, *command) is not None:
                return
            await asyncio.sleep(pause)


def _hex(name: str) -> str:
    """Tenants are no secret of ours to tell."""
    return hashlib.blake2b(b"semantic:" + name.encode(), digest_size=8).hexdigest()
