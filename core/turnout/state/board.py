"""A worker's side of the board (`board_process.py`), with the interface of a store over Redis.

No method raises. None: the board is not there, or did not answer in time; then everybody keeps for himself.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from .board_process import MOST_BYTES, encode
from .link import TooLarge, messages, reach
from .pours import GONE, UNWANTED

ANSWER_S = 0.1  # it is a process of this host: later is too busy to be of use
_decode = msgspec.msgpack.Decoder(tuple[int, Any]).decode


class Feed:
    """What another worker pours, as it comes: lists of pieces, then GONE or REFUSED (pours.py)."""

    def __init__(self, board: "Board", key: bytes, kind: bytes) -> None:
        self._board = board
        self._key = key
        self._kind = kind
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        self.number = board.send(0, "follow", key, kind)
        if self.number:
            board.feeds[self.number] = self
        else:
            self._news.put_nowait(GONE)

    def hear(self, pieces: Any) -> None:
        self._news.put_nowait(pieces)

    async def next(self) -> Any:
        return await self._news.get()

    def close(self) -> None:
        if self._board.feeds.pop(self.number, None) is not None:
            self._board.send(self.number, "unfollow", self._key, self._kind)


class Board(asyncio.Protocol):
    """A connection that is kept up as long as the loop runs. Messages of one turn of the loop go out as one write."""

    name = "board"

    def __init__(self, address: bytes | str) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.live = self
        self._offers: dict[tuple[bytes, bytes], Callable[[int], None]] = {}
        self._wants: dict[tuple[bytes, bytes], int] = {}  # also of what is not offered yet: a lease comes first
        self.feeds: dict[int, Feed] = {}
        self._out: list[bytes] = []
        self._closed = False
        self._task = self._connect()

    @property
    def up(self) -> bool:
        return self._transport is not None

    hopeful = up

    @staticmethod
    def key(tag: str, *parts: str) -> bytes:
        return ":".join((tag, *parts)).encode()

    async def get(self, key: bytes) -> bytes | None:
        found: bytes | None = await self._ask(ANSWER_S, "get", key)
        return found

    async def set(self, key: bytes, value: bytes, ttl_ms: int, tell: bool = False) -> bool:
        return bool(await self._ask(ANSWER_S, "set", key, value, ttl_ms / 1000))

    async def wait(self, key: bytes, timeout_ms: int) -> bytes | None:
        """The value as soon as there is one; None, earlier perhaps, where there will be none."""
        found: bytes | None = await self._ask(timeout_ms / 1000 + ANSWER_S, "wait", key, timeout_ms / 1000)
        return found

    async def lease(self, key: bytes, owner: bytes, ttl_ms: int) -> bool | None:
        """Take or renew. False: another's. It ends with this connection."""
        mine: bool | None = await self._ask(ANSWER_S, "lease", key, owner, ttl_ms / 1000)
        return mine

    async def take(self, key: bytes, owner: bytes, ttl_ms: int, answer: bytes) -> tuple[bool | None, bytes | None]:
        """As `lease` and `get(answer)`, in this order."""
        asked = self._ask(ANSWER_S, "lease", key, owner, ttl_ms / 1000), self._ask(ANSWER_S, "get", answer)
        mine, value = await asyncio.gather(*asked)
        return mine, value

    async def hand(self, key: bytes, owner: bytes, answer: bytes, value: bytes, ttl_ms: int) -> bool:
        """As `set(answer)` and `release`."""
        stored = await self.set(answer, value, ttl_ms)
        if stored:
            self.send(0, "release", key, owner)
        return stored

    async def release(self, key: bytes, owner: bytes) -> bool | None:
        mine: bool | None = await self._ask(ANSWER_S, "release", key, owner)
        return mine

    async def delete(self, key: bytes) -> bool | None:
        gone: bool | None = await self._ask(ANSWER_S, "delete", key)
        return gone

    async def purged(self, what: object) -> None:
        """Everything goes, whatever was purged: workers have their own, and a board is soon full again."""
        await self._ask(ANSWER_S, "flush", b"")

    def gone(self, entry: object, wall_ns: int) -> bool:
        return False

    # ---- what one worker pours for others

    def offer(self, key: bytes, kind: bytes, wanted: Callable[[int], None]) -> None:
        """What is under way under this lease of ours may be had: `wanted(number)` when somebody wants it, from its start;
        `wanted(0)` when nobody does any more. Until it is called nothing is to be poured."""
        self._offers[key, kind] = wanted
        if number := self._wants.get((key, kind), 0):
            wanted(number)

    def withdraw(self, key: bytes, kind: bytes) -> None:
        self._offers.pop((key, kind), None)
        self._wants.pop((key, kind), None)

    def pour(self, key: bytes, kind: bytes, number: int, pieces: list[Any], over: bool) -> None:
        self.send(0, "pour", key, kind, number, pieces, over)

    def follow(self, key: bytes, kind: bytes) -> Feed:
        """What is poured there. `close` it."""
        return Feed(self, key, kind)

    # ---- messages

    def send(self, number: int, *what: Any) -> int:
        """Its number (0: a new one); 0 if there is nobody to send it to."""
        if self._transport is None:
            return 0
        if not number:
            self._number += 1
            number = self._number
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(encode([number, *what]))
        return number

    async def _ask(self, seconds: float, *what: Any) -> Any:
        number = self.send(0, *what)
        if not number:
            return None
        self._asked[number] = answer = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    # ---- the connection

    def _connect(self) -> "asyncio.Task[None]":
        return self._loop.create_task(reach(self._address, self, lambda: self._closed))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            for message in messages(self._buffer, MOST_BYTES):
                number, value = _decode(message)
                answer = self._asked.get(number)
                if answer is not None:
                    if not answer.done():
                        answer.set_result(value)
                elif number in self.feeds:
                    self.feeds[number].hear(value)
                elif not number:
                    self._want((value[0], value[1]), value[2])
        except TooLarge:
            if self._transport is not None:
                self._transport.abort()

    def _want(self, what: tuple[bytes, bytes], number: int) -> None:
        if number:
            self._wants[what] = number
        else:
            self._wants.pop(what, None)
        if (wanted := self._offers.get(what)) is not None:
            wanted(number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
        for feed in self.feeds.values():
            feed.hear(GONE)
        self.feeds.clear()
        for what in tuple(self._wants):
            self._want(what, UNWANTED)
        if not self._closed:
            self._task = self._connect()

    def close(self) -> None:
        self._closed = True
        self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
