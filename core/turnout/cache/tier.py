"""What workers and hosts share of the cache, behind each worker's own memory: kept answers, and who is asking for one.

A store of bytes by keys with leases does the work (a `Tier`: the board of a host, or Redis). What is not there, does not
come in time or is not what was asked for is a miss, never an error.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from .entry import Entry
from .memory import Memory
from .pouring import Live
from .purge import Purge, Purges, purge

# Longer than any pause of a loop, shorter than anybody likes to wait for a host that died. Renewed thrice in its time.
LEASE_MS = 6_000
# A store that does not answer in time gets this long when others wait for the same answer: then a second upstream call for the
# same is dearer than waiting. With fewer its first silence counts.
CROWD, PATIENT_S, LOOK_AGAIN_S = 2, 0.5, 0.002
WAIT_MS = 1_500  # for another's answer, before it is looked again who is asking
HANDED_MS = 2_000  # how long an answer that is not kept waits for those who were promised it
MOST_BYTES = 1_000_000  # of a shared answer
NOTHING = b"-"  # said to those who wait: there will be no answer to share


class Leases(Protocol):
    """Values and leases by keys, for all who share them. Nothing raises; None or False: not to be had now."""

    @property
    def up(self) -> bool: ...
    @property
    def hopeful(self) -> bool:
        """Whether it is up, or may be again in a moment."""

    def key(self, tag: str, *parts: str) -> bytes: ...
    async def get(self, key: bytes) -> bytes | None: ...
    async def set(self, key: bytes, value: bytes, ttl_ms: int, tell: bool = False) -> bool: ...
    async def wait(self, key: bytes, timeout_ms: int) -> bytes | None: ...
    async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None: ...
    async def take(self, key: bytes, owner: bytes, ttl_ms: int, answer: bytes) -> tuple[bool | None, bytes | None]:
        """`lease`, and the value of `answer`: what comes between the two is seen. Where there is a value the lease may be left."""

    async def hand(self, key: bytes, owner: bytes, answer: bytes, value: bytes, ttl_ms: int) -> bool:
        """`set`, and tell who waits; once it is stored `release` too."""

    async def release(self, key: bytes, owner: bytes) -> bool | None: ...


class Tier(Leases, Protocol):
    name: str

    @property
    def live(self) -> Live | None:
        """Where it hands on what is under way, too."""

    async def delete(self, key: bytes) -> int | None: ...
    async def purged(self, what: Purge) -> None:
        """Let go of what this fits, here or in what others fetch from here."""

    def gone(self, entry: Entry, wall_ns: int) -> bool:
        """Whether an entry that was kept at this time has been purged since."""


def answer_key(tier: Tier, tag: str, digest: bytes) -> bytes:
    return tier.key(tag, "answer", digest.hex())


class Lease:
    """The right to ask for one answer, among all workers and hosts. It is renewed until `done`."""

    def __init__(self, tier: Tier, tag: str, digest: bytes, waiting: Callable[[], int] = lambda: 0) -> None:
        """`waiting()`: how many wait for the answer with the one who asks."""
        self.tier = tier
        self._waiting = waiting
        self.digest = digest
        self.answer = answer_key(tier, tag, digest)
        self.mine = False
        self.late = False  # it was not heard of at once
        self.key = tier.key(tag, "lease", digest.hex())
        self._owner = os.urandom(12)
        self._asked = False
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[bool | None] | None = None

    async def take(self, look: bool) -> tuple[bool | None, bytes | None]:
        """True: ours. False: another's, or left where it is. None: there is nobody to ask. `look`: and what is kept, None
        if there is nothing."""
        loop = asyncio.get_running_loop()
        self._asked = True
        end = loop.time() + PATIENT_S
        while True:
            value = None
            if look:
                mine, value = await self.tier.take(self.key, self._owner, LEASE_MS, self.answer)
            else:
                mine = await self.tier.lease(self.key, self._owner, LEASE_MS)
            if mine is not None or not self.tier.hopeful or loop.time() > end:
                break
            await asyncio.sleep(LOOK_AGAIN_S)  # of a crowd the others come now
            if self._waiting() < CROWD:
                break
            self.late = True
        self._asked = mine is None  # it may be ours without our knowing
        if mine:
            self.mine = True
            self._renewal = loop.call_later(LEASE_MS / 3000, self._renew)
        return mine, value

    def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        self._renewal = loop.call_later(LEASE_MS / 3000, self._renew)
        self._renewing = loop.create_task(self.tier.lease(self.key, self._owner, LEASE_MS))

    def done(self) -> None:
        """The call is over; who waits may still have to be told, then `release`."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def hand_on(self, value: bytes, ttl_ms: int) -> None:
        """Put the answer there for those who wait, later if that is only not possible just now."""
        tier = self.tier
        while not (handed := await tier.hand(self.key, self._owner, self.answer, value, ttl_ms)):
            if tier.up or not tier.hopeful:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        if handed:
            self.mine = self._asked = False

    async def release(self) -> None:
        if self.mine or self._asked:
            self.mine = self._asked = False
            await self.tier.release(self.key, self._owner)


class Shared(msgspec.Struct, array_like=True):
    """An entry on its way, with times of the wall clock: hosts have no other in common."""

    form: int
    digest: bytes
    body: bytes
    tenant: str
    route: str
    model: str
    key: str
    tags: str
    provider: str
    served_model: str
    finish: str
    prompt: int
    completion: int
    cost_nanos: int
    stored_wall_ns: int
    fresh_for_ns: int
    dead_for_ns: int


FORM = 1
_encode = msgspec.msgpack.Encoder().encode
# What is the same in both.
_SAME = tuple(name for name in Shared.__struct_fields__ if name in Entry.__struct_fields__)
_decode = msgspec.msgpack.Decoder(Shared).decode


def pack(entry: Entry, now_ns: int, wall_ns: int) -> bytes:
    same = {name: getattr(entry, name) for name in _SAME}
    stored_wall_ns = wall_ns - (now_ns - entry.stored_ns)
    return _encode(
        Shared(
            form=FORM,
            **same,
            stored_wall_ns=stored_wall_ns,
            fresh_for_ns=entry.fresh_ns - entry.stored_ns,
            dead_for_ns=entry.dead_ns - entry.stored_ns,
        )
    )


def unpack(
    data: bytes, digest: bytes, tenant: str, route: str, now_ns: int, wall_ns: int, tier: Tier | None = None
) -> Entry | None:
    """The entry, if it is one of this digest, tenant and route that may still be given. Raises ValueError if it is none."""
    try:
        found = _decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("no entry") from None
    if (found.form, found.digest, found.tenant, found.route) != (FORM, digest, tenant, route):
        raise ValueError("another's entry")
    # Clocks of hosts differ: one that runs ahead must not make an answer younger than none.
    stored_ns = now_ns - max(0, wall_ns - found.stored_wall_ns)
    entry = Entry(
        **{name: getattr(found, name) for name in _SAME},
        stored_ns=stored_ns,
        fresh_ns=stored_ns + found.fresh_for_ns,
        dead_ns=stored_ns + found.dead_for_ns,
    )
    if now_ns >= entry.dead_ns or (tier is not None and tier.gone(entry, found.stored_wall_ns)):
        return None
    return entry


class Depot(Leases, Protocol):
    """The client of Redis (state/depot.py)."""

    async def delete(self, *keys: bytes) -> int | None: ...
    async def command(self, key: bytes, *args: bytes | int) -> Any: ...
    def listening(self, channel: bytes) -> AbstractContextManager[asyncio.Event]: ...


LOOK_S = 1.0  # how often it is looked whether another host has purged something
PURGES_MS = 31 * 86_400_000  # longer than any answer lives


def purges_key(depot: Depot) -> bytes:
    """Of the list of all purges, with their times."""
    return depot.key("cache", "purges")


class OverRedis:
    """A tier over Redis. Nobody can look through all keys there, so a purge is written down: each worker then lets go of
    its own, and of what it fetches that is older than the purge."""

    name = "redis"

    def __init__(self, depot: Depot, memory: Memory) -> None:
        self.depot = depot
        self._memory = memory
        self._list = purges_key(depot)
        self._heard = 0
        self._look_s = 0.0
        self._purges = Purges()
        self.key = depot.key
        self.set = depot.set
        self.wait = depot.wait
        self.lease = depot.lease
        self.hand = depot.hand
        self.release = depot.release

    @property
    def up(self) -> bool:
        return self.depot.up

    @property
    def hopeful(self) -> bool:
        return self.depot.hopeful

    @property
    def live(self) -> None:
        """Between hosts the whole answer is handed on, at its end."""
        return None

    async def take(self, key: bytes, owner: bytes, ttl_ms: int, answer: bytes) -> tuple[bool | None, bytes | None]:
        if time.monotonic() < self._look_s:
            return await self.depot.take(key, owner, ttl_ms, answer)
        taken, _ = await asyncio.gather(self.depot.take(key, owner, ttl_ms, answer), self._look())
        return taken

    async def get(self, key: bytes) -> bytes | None:
        if time.monotonic() < self._look_s:
            return await self.depot.get(key)
        value, _ = await asyncio.gather(self.depot.get(key), self._look())  # one round for both
        return value

    async def delete(self, key: bytes) -> int | None:
        return await self.depot.delete(key)

    async def purged(self, what: Purge) -> None:
        wall_ns = time.time_ns()
        self._purges.add(what, wall_ns)
        said = msgspec.json.encode((what, wall_ns))
        await self.depot.command(self._list, b"RPUSH", self._list, said)
        await self.depot.command(self._list, b"PEXPIRE", self._list, PURGES_MS)

    def gone(self, entry: Entry, wall_ns: int) -> bool:
        return self._purges.took(entry, entry.route, (entry.model, entry.served_model), wall_ns)

    async def _look(self) -> None:
        """Whether there are new purges."""
        self._look_s = time.monotonic() + LOOK_S
        rows = await self.depot.command(self._list, b"LRANGE", self._list, self._heard, -1)
        if not isinstance(rows, list) or not rows:
            return
        self._heard += len(rows)
        for row in rows:
            try:
                what, wall_ns = msgspec.json.decode(row, type=tuple[Purge, int])
            except (msgspec.DecodeError, TypeError):
                continue
            if self._purges.add(what, wall_ns):
                await purge(self._memory, what)
