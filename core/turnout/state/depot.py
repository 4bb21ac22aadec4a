"""The depot: one small client for everything that lives in Redis. Nobody waits on a Redis that is dead, slow or wrong.

Nothing here raises for anything that Redis does. What could not be done is counted by kind (`errors`, see `Wrong`) and
answered with None (or False, of `set`), at the latest when `operation_ms` have passed and at once while the breaker is open.
Who calls does without then.

A key is `prefix:{tag}:...`: what has one tag lies on one node of a cluster. Values are sealed (seal.py).
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from random import Random
from time import perf_counter
from typing import Protocol

from .dial import Dialer, Node
from .ear import Ear
from .lane import DOWN, Lane, Reply, Wire, Wrong, pack
from .nodes import Cluster, Nodes, One
from .seal import seal, unseal
from .spec import CLUSTER, RedisSpec, where

MOST_VALUE_BYTES = 1024 * 1024  # all share one connection: more would hold the others up for longer than a deadline
HOPE_S = 0.5
POLL_S = 0.25  # a wake-up may get lost with a connection
_LEASE = """local have = redis.call('GET', KEYS[1])
if have == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
if have then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1"""
# A value that is there is worth more than the lease, which then stays free. Of another type it is none.
_TAKE = """local value = redis.pcall('GET', KEYS[2])
if type(value) == 'string' then return {0, value} end
local have = redis.call('GET', KEYS[1])
if have == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return {1} end
if have then return {0} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return {1}"""
# The lease is given back whatever becomes of the value: who waits has to look after himself then.
_HAND = """local stored = redis.pcall('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', KEYS[2], '')
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return stored"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Spread(Protocol):
    """A histogram."""

    def observe(self, seconds: float) -> None: ...


class Depot:
    """One per process. Needs a running event loop to be made; `close` it."""

    def __init__(self, spec: RedisSpec, rng: Random, spread: Callable[[], Spread]) -> None:
        """`spread()`: a histogram for how long one kind of operation takes."""
        self.spec = spec
        self.errors: dict[str, int] = {}
        self.took: dict[str, Spread] = {}
        self._spread = spread
        self._prefix = spec.prefix.encode()
        self._loop = asyncio.get_running_loop()
        self._scripts: dict[str, bytes] = {}
        place = where(spec.url)
        dialer = Dialer(spec, place)

        def lane(node: Node | None, lost: Callable[[], None]) -> Lane:
            async def dial() -> Wire | Wrong:
                return await dialer.dial(node)

            def gone() -> None:
                lost()
                self._ear.wake()  # who waits for others' answers has to look after himself now

            return Lane(dial, spec.operation_ms / 1e3, rng, self.count, gone)

        self._nodes: Nodes
        if place.kind == CLUSTER:
            self._nodes = Cluster(list(place.nodes), dialer.slots, lane, rng, self.count)
        else:
            self._nodes = One(lane(None, lambda: None))
        self._ear = Ear(lambda: dialer.dial(self._nodes.some()), rng, self.count)

    # ---- condition

    @property
    def up(self) -> bool:
        """Whether it is worth asking: a connection stands and answers in time."""
        return self._nodes.up

    @property
    def hopeful(self) -> bool:
        """Whether it is up, or was a moment ago: a server without a processor for a while looks like one that is dead."""
        return self._nodes.up or perf_counter() - self._nodes.opened_at < HOPE_S

    @property
    def opens(self) -> int:
        """Times that a breaker opened."""
        return self._nodes.opens

    def count(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1

    async def close(self) -> None:
        await self._ear.close()
        await self._nodes.close()

    # ---- values

    def key(self, tag: str, *parts: str) -> bytes:
        """`prefix:{tag}:part:part`. What has one tag lies on one node of a cluster, so one script may touch it all."""
        return b"%b:{%b}%b" % (self._prefix, tag.encode(), "".join([f":{part}" for part in parts]).encode())

    async def get(self, key: bytes) -> bytes | None:
        """The value that `set` or `set_nx` put there; None if there is none, none of ours, or Redis is not available."""
        sealed = await self._ask("get", key, (b"GET", key))
        if sealed is None or isinstance(sealed, Wrong):
            return None
        value = unseal(key, sealed)
        if value is None:
            self.count("garbage")
        return value

    async def set(self, key: bytes, value: bytes, ttl_ms: int, tell: bool = False) -> bool:
        """Whether it was stored. `tell`: and wake whoever is in `wait` for this key, on any host."""
        if len(value) > MOST_VALUE_BYTES:
            self.count("large")
            return False
        asked = self._ask("set", key, (b"SET", key, seal(key, value), b"PX", b"%d" % ttl_ms))
        if not tell:
            return await asked == b"OK"
        stored, _ = await asyncio.gather(asked, self._ask("publish", key, (b"PUBLISH", key, b"")))
        return stored == b"OK"

    async def set_nx(self, key: bytes, value: bytes, ttl_ms: int) -> bool | None:
        """True: nothing was there, now this is. False: something is there. None: not available."""
        if len(value) > MOST_VALUE_BYTES:
            self.count("large")
            return None
        said = await self._ask("set", key, (b"SET", key, seal(key, value), b"PX", b"%d" % ttl_ms, b"NX"))
        return None if isinstance(said, Wrong) else said == b"OK"

    async def delete(self, *keys: bytes) -> int | None:
        """How many of them were there; all of one tag."""
        if not keys:
            return 0
        said = await self._ask("del", keys[0], (b"DEL", *keys))
        return said if isinstance(said, int) else None

    async def wait(self, key: bytes, timeout_ms: int) -> bytes | None:
        """The value of this key as soon as there is one; None when the time is over or Redis is not available."""
        end = self._loop.time() + timeout_ms / 1e3
        with self._ear.listening(key) as called:
            while True:
                called.clear()
                value = await self.get(key)
                left = end - self._loop.time()
                if value is not None or not self.up or left <= 0:
                    return value
                try:
                    async with asyncio.timeout(min(left, POLL_S)):
                        await called.wait()
                except TimeoutError:
                    pass

    def listening(self, channel: bytes) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when somebody published there; one may get lost with a connection."""
        return self._ear.listening(channel)

    # ---- leases, scripts, the rest

    async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None:
        """Take it, or hold it longer. True: `owner` has it. False: somebody else has. None: not available."""
        said = await self.script(_LEASE, (key,), (owner, ttl_ms))
        return said == 1 if isinstance(said, int) else None

    async def take(self, key: bytes, owner: bytes, ttl_ms: int, answer: bytes) -> tuple[bool | None, bytes | None]:
        """As `get(answer)` and, where there is nothing, `lease`: (whether `owner` has it, the value)."""
        said = await self.script(_TAKE, (key, answer), (owner, ttl_ms))
        if not isinstance(said, list) or not said:
            return None, None
        value = None
        if len(said) > 1 and (value := unseal(answer, said[1])) is None:
            self.count("garbage")
            return await self.lease(key, owner, ttl_ms), None
        return said[0] == 1, value

    async def hand(self, key: bytes, owner: bytes, answer: bytes, value: bytes, ttl_ms: int) -> bool:
        """As `set(answer, tell=True)` and `release`."""
        if len(value) > MOST_VALUE_BYTES:
            self.count("large")
            return False
        return await self.script(_HAND, (key, answer), (owner, seal(answer, value), ttl_ms)) == b"OK"

    async def release(self, key: bytes, owner: bytes) -> bool | None:
        """Give it back. True: `owner` had it. False: it was not his (any more)."""
        said = await self.script(_RELEASE, (key,), (owner,))
        return said == 1 if isinstance(said, int) else None

    async def script(self, source: str, keys: Sequence[bytes], args: Sequence[bytes | int] = ()) -> Reply:
        """What this Lua script returns; None: nil, or not available (let it return something). Keys of one tag."""
        sha = self._scripts.get(source)
        if sha is None:
            sha = self._scripts[source] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode()
        rest = (b"%d" % len(keys), *keys, *_plain(args))
        said = await self._ask("script", keys[0], (b"EVALSHA", sha, *rest), expected="noscript")
        if isinstance(said, Wrong) and said.kind == "noscript":
            said = await self._ask("script", keys[0], (b"EVAL", source.encode(), *rest))
        return None if isinstance(said, Wrong) else said

    async def command(self, key: bytes, *args: bytes | int) -> Reply:
        """Any command, sent to the node that has `key`; its raw reply. None: nil, or not available."""
        said = await self._ask("command", key, _plain(args))
        return None if isinstance(said, Wrong) else said

    async def _ask(self, operation: str, key: bytes, args: tuple[bytes, ...], expected: str = "") -> Reply | Wrong:
        began = perf_counter()
        lane = self._nodes.lane(key)
        packed = pack(args)
        said: Reply | Wrong = DOWN if lane is None else await lane.ask(packed)
        if isinstance(said, Wrong):
            if said.at is not None and (other := self._nodes.moved(said.at)) is not None:
                if said.kind == "ask":
                    other.ask(pack((b"ASKING",)))
                said = await other.ask(packed)
            if isinstance(said, Wrong):
                if said.kind == "readonly" and lane is not None:
                    lane.renew(said.kind)
                if said.kind != expected:
                    self.count(said.kind)
                if said.kind == "down":  # no time was spent
                    return said
        spread = self.took.get(operation)
        if spread is None:
            spread = self.took[operation] = self._spread()
        spread.observe(perf_counter() - began)
        return said


def _plain(args: Sequence[bytes | int]) -> tuple[bytes, ...]:
    return tuple([arg if isinstance(arg, bytes) else b"%d" % arg for arg in args])
