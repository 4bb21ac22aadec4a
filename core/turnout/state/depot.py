"""The depot: one small client for everything that lives in Redis. Nobody waits on a Redis that is dead, slow or wrong.

Nothing here raises for anything that Redis does. What could not be done is counted by kind (`errors`) and answered with
None (or False, of `set`), at the latest when `operation_ms` have passed and at once while the breaker is open.
"""

from collections.abc import Sequence
from typing import Protocol, Union

from .spec import RedisSpec

Reply = Union[int, bytes, list["Reply"], None]


class Spread(Protocol):
    """A histogram."""

    def observe(self, seconds: float) -> None: ...


class Depot:
    """One per process. Needs a running event loop to be made; `close` it."""

    def __init__(self, spec: RedisSpec) -> None:
        self.errors: dict[str, int] = {}

    @property
    def up(self) -> bool:
        """Whether it is worth asking: a connection stands and answers in time."""
        raise NotImplementedError

    def key(self, tag: str, *parts: str) -> bytes:
        """`prefix:{tag}:part:part`. What has one tag lies on one node of a cluster, so one script may touch it all."""
        raise NotImplementedError

    async def get(self, key: bytes) -> bytes | None:
        """The value that `set` or `set_nx` put there; None if there is none, none of ours, or Redis is not available."""
        raise NotImplementedError

    async def set(self, key: bytes, value: bytes, ttl_ms: int, tell: bool = False) -> bool:
        """Whether it was stored. `tell`: and wake whoever is in `wait` for this key, on any host."""
        raise NotImplementedError

    async def set_nx(self, key: bytes, value: bytes, ttl_ms: int) -> bool | None:
        """True: nothing was there, now this is. False: something is there. None: not available."""
        raise NotImplementedError

    async def delete(self, *keys: bytes) -> int | None:
        """How many of them were there; all of one tag."""
        raise NotImplementedError

    async def wait(self, key: bytes, timeout_ms: int) -> bytes | None:
        """The value of this key as soon as there is one; None when the time is over or Redis is not available."""
        raise NotImplementedError

    async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None:
        """Take it, or hold it longer. True: `owner` has it. False: somebody else has. None: not available."""
        raise NotImplementedError

    async def release(self, key: bytes, owner: bytes) -> bool | None:
        """Give it back. True: `owner` had it. False: it was not his (any more)."""
        raise NotImplementedError

    async def script(self, source: str, keys: Sequence[bytes], args: Sequence[bytes | int] = ()) -> Reply:
        """What this Lua script returns; None: nil, or not available (let it return something). Keys of one tag."""
        raise NotImplementedError

    async def command(self, key: bytes, *args: bytes | int) -> Reply:
        """Any command, sent to the node that has `key`; its raw reply."""
        raise NotImplementedError
