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
from .call import Call, Request
from .connect import Origin, connect

MAX_ANSWER_BYTES = 32 * 1024 * 1024
# Bytes of an answer that may wait for a slow client before the upstream socket is paused.
HIGH_WATER = 256 * 1024
TICK_S = 0.02
PAUSED_TICKS = 5  # those that wait for their client have only a limit of minutes, and there may be thousands of them
# Common servers close idle connections after 60 s or more (nginx 75 s, AWS load balancers 60 s): leave before them.
IDLE_CONNECTION_NS = 55_000_000_000
# The parser keeps a header in memory until it is whole. Real heads are under 8 KiB.
MOST_HEAD_BYTES = 256 * 1024

# The headers of an answer that anybody reads later: what reaches the client, and what a refusal says about waiting.
KEPT = TO_CLIENT | {b"retry-after", b"retry-after-ms"}

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class Connection(asyncio.Protocol):
    """One socket to an origin. Serves one call at a time and goes back on the origin's stack in between."""

    __slots__ = (
        "_client",
        "_framed",
        "_head_bytes",
        "_interim",
        "_parser",
        "call",
        "idle_since_ns",
        "lost",
        "origin",
        "transport",
        "used",
    )

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
        self._head_bytes = 0  # of a head that comes in more than one read

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
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            call.fail(Fault("protocol", "the upstream's answer is not valid HTTP/1.1"))
            # The answer may have been whole and the nonsense behind it: then it counts, the connection does not.
            self.transport.abort()
        if not call.status and not call.done:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                call.fail(Fault("protocol", "the head of the upstream's answer is over the size limit"))
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

    def on_message_begin(self) -> None:
        if self.call is None:
            # An answer nobody asked for, behind one that was: were the connection used again, the next caller, perhaps
            # of another tenant, would be given the rest of it.
            self.transport.abort()

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
            self._head_bytes = 0
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

    def add(self, origin: Origin) -> None:
        """An origin of the present config."""
        self.origins.append(origin)

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

    def prepare(self, origin: Origin, target: str, lines: list[tuple[str, str]]) -> bytes:
        """The head of requests to `target` (as in the request line), up to the value of content-length."""
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"POST {target} HTTP/1.1\r\n{text}content-length: ".encode("latin-1")

    def open_nowait(self, origin: Origin, head: bytes, request: Request) -> Call | None:
        """Send on an idle connection; None when there is none."""
        conn = self.checkout(origin)
        return self._send(conn, head, request) if conn is not None else None

    async def open(self, origin: Origin, head: bytes, request: Request) -> Call:
        """Send on a connection of its own. Raises Fault connect, connect_timeout or tls."""
        left_ms = max(1, (request.deadline_ns - request.now_ns) // 1_000_000)
        conn = await self.connect(origin, min(request.connect_ms, left_ms) / 1000)
        return self._send(conn, head, request)

    def _send(self, conn: "Connection", head: bytes, request: Request) -> Call:
        stream = request.stream
        head += b"%d\r\n" % request.length
        for name, value in request.forward:
            head += name + b": " + value + b"\r\n"
        call = self.send(conn, [head + b"\r\n", *request.pieces], not stream, MAX_ANSWER_BYTES)
        kind = "ttft_timeout" if stream else "plain_timeout"
        call.limit(request.first_ns, kind, request.deadline_ns, request.idle_ns)
        return call

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
        self._ticks += 1
        late = self._ticks % PAUSED_TICKS
        for call in tuple(self.calls):
            if not (late and call._paused):
                call._tick(now_ns)
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

    def swap(self, origins: list[Origin]) -> list[Origin]:
        """Let `origins` be those of the present config, instead of those that are returned."""
        before, self.origins = self.origins, origins
        return before

    def retire(self, origins: list[Origin]) -> None:
        """Those of an old config: idle connections are closed, the others when their answer is complete."""
        for origin in origins:
            for conn in origin.idle:
                conn.transport.close()
            origin.idle.clear()
            origin.max_idle = 0

    def close(self) -> None:
        for call in tuple(self.calls):
            call.fail(Fault("draining", "the gateway is shutting down"))
        for origin in self.origins:
            for conn in origin.idle:
                conn.transport.close()
            origin.idle.clear()
