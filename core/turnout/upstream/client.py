"""The upstream HTTP/1.1 client: raw uvloop protocols, httptools as the parser, a keep-alive stack per origin.

httpx cannot carry this: its pool is quadratic in the number of connections. Here taking a connection is `list.pop`
and giving it back `list.append`; nothing is searched, nothing queues inside the client.

One timer serves all calls: every 20 ms `Client.tick` looks at their deadlines, so a request arms no timer of its own
and a limit is kept to within 20 ms. Which limit holds at a time is set by who drives the call:
`limit` (until when something must have happened), then `idle` (how long silence may last).
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence

import httptools

from ..errors import Fault
from ..wire.headers import TO_CLIENT
from .connect import Origin, connect

# Bytes of an answer that may wait for a slow client before the upstream socket is paused.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
TICK_S = 0.02
# Common servers close idle connections after 60 s or more (nginx 75 s, AWS load balancers 60 s): leave before them.
IDLE_CONNECTION_NS = 55_000_000_000
# Comments and pings show that a provider is alive, not that it works: they stretch the idle limit at most this far.
IDLE_STRETCH = 3
# After `[DONE]` the final chunk is at most a packet behind.
LINGER_NS = 500_000_000

# The headers of an answer that anybody reads later: what reaches the client, and what a refusal says about waiting.
KEPT = TO_CLIENT | {b"retry-after", b"retry-after-ms"}

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class Call:
    """One request and its answer as it comes in. `whole` calls are only woken when the answer is complete."""

    __slots__ = (
        "_chunks", "_client", "_conn", "_content_ns", "_hard_ns", "_idle_ns", "_kind", "_last_ns", "_limit_ns",
        "_most", "_paused", "_push", "_seen", "_size", "_then_idle_ns", "_waiter", "done", "encoding", "fault", "first_byte_ns", "headers",
        "media_type", "progress", "status", "stale", "whole",
    )  # fmt: skip

    def __init__(self, client: "Client", conn: "Connection", whole: bool, most: int) -> None:
        self._client = client
        self._conn: Connection | None = conn
        self.whole = whole
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
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
            self._waiter = self._client.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
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
        self._waiter = self._client.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = self._push = None
        if self.fault is not None and not self._chunks:
            raise self.fault

    async def wait_head(self) -> None:
        """Return when the status is known. Raises the call's Fault."""
        while not self.status:
            if self.fault is not None:
                raise self.fault
            self._waiter = self._client.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def wait_whole(self, most: int = 0) -> bytes:
        """The complete body. Raises the call's Fault, also when the body ends early or is over the limit."""
        if most:
            self._most = most
        self.whole = True
        while not self.done:
            if self.fault is not None:
                raise self.fault
            self._waiter = self._client.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
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
            self._paused = False
            if self._conn is not None:
                self._conn.transport.resume_reading()
        return data

    @property
    def drained(self) -> bool:
        """The answer is complete and all of it was taken."""
        return self.done and not self._chunks

    def linger(self, now_ns: int) -> None:
        """Nobody reads any more, but the end is near: let it come, so that the connection can be used again."""
        if not self.done:
            self.whole = True
            self._chunks.clear()
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


class Connection(asyncio.Protocol):
    """One socket to an origin. Serves one call at a time and goes back on the origin's stack in between."""

    __slots__ = ("_client", "_framed", "_interim", "_parser", "call", "idle_since_ns", "lost", "origin", "transport", "used")

    transport: asyncio.Transport

    def __init__(self, client: "Client", origin: Origin) -> None:
        self._client = client
        self.origin = origin
        self._parser = httptools.HttpResponseParser(self)
        self.call: Call | None = None
        self.lost = False
        self.used = 0
        self.idle_since_ns = 0
        self._interim = False
        self._framed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._client.connections += 1

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:  # bytes nobody asked for: such a connection cannot be trusted any more
            self.transport.abort()
            return
        if not call.first_byte_ns:
            call.first_byte_ns = self._client.now_ns()
        call._seen = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            call.fail(Fault("protocol", "the upstream's answer is not valid HTTP/1.1"))
            return
        push = call._push
        if push is not None:
            # Pushing goes on as long as all that came was handed on and more is to come.
            if not call._chunks or push():
                if call.done:
                    call._wake()
            else:
                call._push = None
                call._wake()
        elif call._waiter is not None and (not call.whole or call.done):
            call._wake()

    # httptools calls these from feed_data

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self.call
        if call is None:
            return
        name = name.lower()
        if name == b"content-type":
            call.media_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            call.encoding = value.lower()
        elif name in _FRAMING:
            self._framed = True
        elif name in KEPT and len(call.headers) < 32:
            call.headers.append((name, value))

    def on_headers_complete(self) -> None:
        call = self.call
        if call is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim = True
            call.headers.clear()
        else:
            call.status = status

    def on_body(self, body: bytes) -> None:
        call = self.call
        if call is None:
            return
        call._chunks.append(body)
        call._size += len(body)
        if call._size > HIGH_WATER and not call.whole:
            if not call._paused:
                call._paused = True
                self.transport.pause_reading()
        elif call._size > call._most:
            call.fail(Fault("answer_too_large", "the upstream's answer is over the size limit"))

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            return
        call = self.call
        if call is None:
            return
        call.done = True
        call._conn = None
        self.call = None
        client = self._client
        client.calls.pop(call, None)
        if call._paused:
            call._paused = False
            self.transport.resume_reading()
        if self._parser.should_keep_alive() and self._framed and not self.transport.get_write_buffer_size():
            self._framed = False
            self.idle_since_ns = client.now_ns()
            idle = self.origin.idle
            if len(idle) < self.origin.max_idle:
                idle.append(self)
                return
        self.transport.close()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._client.connections -= 1
        call = self.call
        if call is None:
            return
        self.call = None
        call._conn = None
        self._client.calls.pop(call, None)
        if call.status and not self._framed and exc is None:
            call.done = True  # neither length nor chunks: the close is the end (RFC 9112, 6.3)
        elif call.fault is None:
            call.stale = self.used > 1 and not call.first_byte_ns
            if isinstance(exc, ssl.SSLError):
                call.fault = Fault("tls", "the TLS connection to the upstream broke")
            else:
                when = "in the middle of its answer" if call.status else "before it answered"
                call.fault = Fault("reset", f"the upstream closed the connection {when}")
        call._wake()


class Client:
    """All upstream connections of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, now_ns: Callable[[], int]) -> None:
        self.loop = loop
        self.now_ns = now_ns
        self.calls: dict[Call, None] = {}
        self.connections = 0
        self.origins: list[Origin] = []
        self._ticks = 0

    def checkout(self, origin: Origin) -> "Connection | None":
        """An idle connection that is still alive, the one used last first; None if there is none."""
        idle = origin.idle
        while idle:
            conn: Connection = idle.pop()
            if not conn.lost and not conn.transport.is_closing():
                return conn
        return None

    async def connect(self, origin: Origin, seconds: float) -> "Connection":
        """A fresh connection. Raises Fault connect, connect_timeout or tls."""
        conn: Connection = await connect(self.loop, origin, lambda: Connection(self, origin), seconds)
        if conn.lost:
            raise Fault("reset", "the upstream closed the connection before it answered")
        return conn

    def send(self, conn: "Connection", pieces: Sequence[bytes | memoryview], whole: bool, most: int) -> Call:
        """Send one request (`pieces` = head and body; an answer over `most` bytes is refused)."""
        call = Call(self, conn, whole, most)
        conn.call = call
        conn.used += 1
        self.calls[call] = None
        # Copied into no buffer: uvloop keeps the pieces and hands them to writev at the end of the loop's turn.
        conn.transport.writelines(pieces)
        return call

    def tick(self, now_ns: int) -> None:
        """Every 20 ms: let the calls look at their limits. Once a second: close connections idle for too long."""
        for call in tuple(self.calls):
            call._tick(now_ns)
        self._ticks += 1
        if self._ticks % 50 == 0:
            for origin in self.origins:
                idle = origin.idle
                # The stack's bottom is what has been idle longest.
                old = 0
                while old < len(idle) and (idle[old].lost or now_ns - idle[old].idle_since_ns > IDLE_CONNECTION_NS):
                    idle[old].transport.close()
                    old += 1
                if old:
                    del idle[:old]

    def close(self) -> None:
        for call in tuple(self.calls):
            call.fail(Fault("draining", "the gateway is shutting down"))
        for origin in self.origins:
            for conn in origin.idle:
                conn.transport.close()
            origin.idle.clear()


