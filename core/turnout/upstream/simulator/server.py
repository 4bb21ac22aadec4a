"""HTTP/1.1 connections on asyncio protocols. httptools reads, this file writes.

Requests of one connection are answered one after the other; a client that pipelines is
read from only while few of its requests wait.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import cast

import httptools

from .answers import error_body
from .asks import Request
from .provider import Provider
from .serve import JSON, serve

MAX_BODY_BYTES = 64 * 1024 * 1024
# More waiting requests than this on one connection: stop reading until some are answered.
MAX_WAITING = 16
# struct linger {on, 0 s}: close() then sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """One client connection of one provider; also the `Wire` of the request in service."""

    def __init__(self, provider: Provider, connections: set[Connection]) -> None:
        self._provider = provider
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[Request] = deque()
        self._paused = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._keep_alive = True
        self._left = False
        self._new_request()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not an isinstance: uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400, "This is not an HTTP/1.1 request.")
        if self._over_long:
            self._refuse(413, f"The body is longer than {MAX_BODY_BYTES} bytes.")

    def eof_received(self) -> bool:
        return False  # a half-closed client counts as gone

    def connection_lost(self, error: Exception | None) -> None:
        self._left = True
        self._connections.discard(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        self._new_request()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.body(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > MAX_BODY_BYTES:
            self._over_long = True
        else:
            self._body += data

    def on_message_complete(self) -> None:
        if self._over_long:
            return
        request = Request(
            method=self._parser.get_method().decode("ascii"),
            path=self._url.decode("latin-1").partition("?")[0],
            headers=self._headers,
            body=bytes(self._body),
            keep_alive=self._parser.should_keep_alive(),
        )
        self._waiting.append(request)
        if self._task is None:
            self._next()
        elif len(self._waiting) >= MAX_WAITING and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True

    # --- one request after the other ---

    def _new_request(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._over_long = False

    def _next(self) -> None:
        if self._left or not self._waiting:
            self._task = None
            return
        request = self._waiting.popleft()
        if self._paused and self._transport is not None:
            self._transport.resume_reading()
            self._paused = False
        self._keep_alive = request.keep_alive
        self._task = asyncio.get_running_loop().create_task(serve(self, self._provider, request))
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug of ours: say so on stderr, and let the client see a broken connection.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "simulator: a request failed", "exception": error, "protocol": self}
            )
            self.reset()
        if not self._keep_alive:
            self.close()
        self._next()

    def _refuse(self, status: int, message: str) -> None:
        """For what is not a whole request; there is nothing sensible to read after it."""
        if self._task is None and not self._left:
            self._keep_alive = False
            data = error_body(status, message)
            self.head(status, JSON, len(data), {})
            self.body(data)
        self.close()

    # --- Wire ---

    def head(self, status: int, content_type: str, length: int | None, more: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {_reason(status)}", "server: turnout-simulator", f"content-type: {content_type}"]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        lines.append(f"x-request-id: req_{self._provider.name}_{self._provider.requests}")
        lines += [f"{name}: {value}" for name, value in more.items()]
        if not self._keep_alive:
            lines.append("connection: close")
        self.body("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def body(self, data: bytes) -> None:
        if self._transport is not None and not self._left:
            self._transport.write(data)

    def chunk(self, data: bytes) -> None:
        self.body(b"%x\r\n%b\r\n" % (len(data), data))

    def end_chunks(self) -> None:
        self.body(b"0\r\n\r\n")

    def reset(self) -> None:
        if self._transport is None or self._left:
            return
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._left = True
        self._transport.abort()

    def close(self) -> None:
        if self._transport is not None and not self._left:
            self._left = True
            self._transport.close()

    async def wait_drained(self) -> None:
        await self._drained.wait()


class Listener:
    """One provider's port and the connections on it."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def wait_bound(self) -> int:
        """Bind a free loopback port, start to accept, return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", 0, backlog=1024)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stop at once: nobody waits for a simulated answer when the process ends."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.reset()

    def _connection(self) -> Connection:
        return Connection(self._provider, self._connections)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"  # 529 and others that only some providers use
