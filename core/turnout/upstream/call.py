"""One request to an upstream and its answer as it comes in: what the flow waits on, and the limits it sets."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..errors import Fault
from ..exchange import Headers

if TYPE_CHECKING:
    from .client import Client, Connection

# Comments and pings show that a provider is alive, not that it works: they stretch the idle limit at most this far.
IDLE_STRETCH = 3
# After `[DONE]` the final chunk is at most a packet behind.
LINGER_NS = 500_000_000


class Request(msgspec.Struct):
    """One request as it goes to a port. Times are monotonic nanoseconds. (Engine native goes by the order of the fields.)"""

    path: str  # after the provider's base path
    stream: bool
    pieces: list[bytes | memoryview]  # the body
    length: int  # of the body in bytes
    forward: Sequence[tuple[bytes, bytes]]  # client headers that may pass
    now_ns: int
    first_ns: int  # by when the first token of a stream, or the head of a whole answer, must be there
    deadline_ns: int  # by when all of it must be over
    connect_ms: int
    idle_ns: int  # how long the answer may fall silent


class Call:
    """One request and its answer as it comes in. `whole` calls are only woken when the answer is complete."""

    __slots__ = (
        "_chunks",
        "_client",
        "_conn",
        "_content_ns",
        "_hard_ns",
        "_idle_ns",
        "_kind",
        "_last_ns",
        "_limit_ns",
        "_most",
        "_paused",
        "_push",
        "_seen",
        "_size",
        "_then_idle_ns",
        "_waiter",
        "done",
        "encoding",
        "fault",
        "first_byte_ns",
        "headers",
        "media_type",
        "progress",
        "stale",
        "status",
        "whole",
    )  # fmt: skip

    def __init__(self, client: "Client", conn: "Connection", whole: bool, most: int) -> None:
        self._client = client
        self._conn: Connection | None = conn
        self.whole = whole
        self.status = 0
        self.headers: Headers = []
        self.media_type = b""
        self.encoding = b""
        self.done = False  # the message ended as HTTP says it should
        self.fault: Fault | None = None
        self.stale = False  # lost on a reused connection before any byte came back: nothing was served
        self.progress = False  # set by the reader of a stream when an event carried content
        self.first_byte_ns = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._most = most
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._push: Callable[[], bool] | None = None
        self._limit_ns = self._hard_ns = 0
        self._kind = "plain_timeout"
        self._idle_ns = self._then_idle_ns = self._last_ns = self._content_ns = 0
        self._seen = False

    # -- what the driver of the call does

    def limit(self, until_ns: int, kind: str, hard_ns: int, then_idle_ns: int) -> None:
        """Fail with `kind` unless the next phase begins by `until_ns`; with total_timeout at `hard_ns` in any case.

        The next phase of a `whole` call begins with its head; from then on silence is limited by `then_idle_ns`. That
        of a stream begins when its reader calls `idle`.
        """
        self._limit_ns, self._kind, self._hard_ns = until_ns, kind, hard_ns
        self._idle_ns, self._then_idle_ns = 0, then_idle_ns

    def idle(self, idle_ns: int, now_ns: int) -> None:
        """From now on the answer must not fall silent for longer than `idle_ns`."""
        self._idle_ns, self._last_ns, self._content_ns = idle_ns, now_ns, now_ns
        self._seen = False

    async def wait(self) -> None:
        """Return when there is something new: the head, bytes, the end. Raises the call's Fault."""
        if not (self._chunks or self.done or self.fault):
            await self._news()
        if self.fault is not None and not self._chunks:
            raise self.fault

    async def wait_pushing(self, push: Callable[[], bool]) -> None:
        """Call `push` for every piece that comes, straight from the socket's callback, until it returns False, the
        answer is complete or it breaks. Raises the call's Fault, once all that came before it was pushed.
        """
        if self._chunks and not push():
            return
        if self.fault is not None:
            raise self.fault
        if self.done:
            return
        self._push = push
        await self._news()
        # Put back by the connection: `push` refused what it took. That goes to the client before a break is told.
        refused = self._push is None
        self._push = None
        if self.fault is not None and not self._chunks and not refused:
            raise self.fault

    async def wait_head(self) -> None:
        """Return when the status is known. Raises the call's Fault."""
        while not self.status:
            if self.fault is not None:
                raise self.fault
            await self._news()

    async def wait_whole(self, most: int = 0) -> bytes:
        """The complete body. Raises the call's Fault, also when the body ends early or is over the limit."""
        if most:
            self._most = most
        self.whole = True
        if self._paused:  # what came with the head was more than a stream's reader is given at once
            self._resume()
        while not self.done:
            if self.fault is not None:
                raise self.fault
            await self._news()
        return self.take_nowait()

    def take_nowait(self) -> bytes:
        """What has come of the body since the last time."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self._paused:
            self._resume()
        return data

    def _resume(self) -> None:
        self._paused = False
        if self._conn is not None:
            self._conn.transport.resume_reading()

    @property
    def drained(self) -> bool:
        """The answer is complete and all of it was taken."""
        return self.done and not self._chunks

    def linger(self, now_ns: int) -> None:
        """Nobody reads any more, but the end is near: let it come, so that the connection can be used again."""
        if not self.done:
            self.whole = True
            self._chunks.clear()
            if self._paused:
                self._resume()
            self.limit(now_ns + LINGER_NS, "plain_timeout", now_ns + LINGER_NS, LINGER_NS)

    def close(self) -> None:
        """End the call. A connection with an unfinished answer on it is closed, never reused. Idempotent."""
        conn = self._conn
        if conn is not None:
            self._conn = None
            self._client.calls.pop(self, None)
            conn.call = None
            conn.transport.abort()

    # -- what the connection and the timer do

    def _news(self) -> "asyncio.Future[None]":
        """What is awaited until the connection or the timer has something new."""
        self._waiter = waiter = self._client.loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, fault: Fault) -> None:
        if not self.done and self.fault is None:
            self.fault = fault
            self.close()
            self._wake()

    def _tick(self, now_ns: int) -> None:
        if self._paused:  # the client is slow, not the upstream
            self._last_ns = self._content_ns = now_ns
        elif self._idle_ns:
            if self._seen:
                self._seen = False
                self._last_ns = now_ns
                if self.progress or self.whole:
                    self.progress = False
                    self._content_ns = now_ns
            if now_ns - self._last_ns > self._idle_ns or now_ns - self._content_ns > IDLE_STRETCH * self._idle_ns:
                self.fail(Fault("idle_timeout", "the upstream went silent in the middle of its answer"))
        elif self.whole and self.status:
            self.idle(self._then_idle_ns, now_ns)
        elif now_ns > self._limit_ns:
            self.fail(Fault(self._kind, _SILENT[self._kind]))
        if now_ns > self._hard_ns:
            self.fail(Fault("total_timeout", "the request took longer than its time limit"))


_SILENT = {
    "ttft_timeout": "the upstream did not begin to answer in time",
    "plain_timeout": "the upstream did not answer in time",
}
