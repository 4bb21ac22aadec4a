"""The upstream client and the relay of the native engine, and its tasks as asyncio's rules want them, on real sockets."""

import asyncio
import contextvars
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import uvloop

from turnout import native
from turnout.config.model import Listen
from turnout.errors import Fault
from turnout.upstream.call import Request

if native.Engine is None:
    pytest.skip("the extension is not built", allow_module_level=True)

from turnout.ingress.native_server import NativeServer, make_engine

GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
Work = Callable[[Any, Any, Any, int], Awaitable[Any]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream:
    """Answers every request with `said`, then waits; `gone` is set when its peer has closed."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.gone = asyncio.Event()
        self.opened = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self.said)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


def serve(work: Work, said: bytes = b"") -> tuple[Any, bytes]:
    """Run `work(engine, receive, send, port of an upstream)` as the app of one request; its result, and what the client got."""
    out: list[Any] = []
    errors: list[Any] = []

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        upstream = Upstream(said)
        async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as other:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                sock.setblocking(False)
                fd = os.dup(sock.fileno())
                engine = make_engine(fd, Listen())

                async def app(scope: Any, receive: Any, send: Any) -> None:
                    if scope["type"] == "http":
                        try:
                            out.append(await work(engine, receive, send, other.sockets[0].getsockname()[1]))
                        except BaseException as exc:
                            out.append(exc)
                            raise

                server = NativeServer(app, fd, Listen(), engine=engine)
                serving = asyncio.create_task(server.serve())
                await asyncio.sleep(0)
                reader, writer = await asyncio.open_connection(*sock.getsockname())
                writer.write(GET)
                got = b""
                while piece := await asyncio.wait_for(reader.read(65536), 10):
                    got += piece
                while not out:
                    await asyncio.sleep(0.01)
                writer.close()
                engine.close_upstream()
                server.stop()
                await asyncio.wait_for(serving, 10)
                await asyncio.sleep(0.02)
                gc.collect()
                if not isinstance(out[0], BaseException):  # its traceback may hold them
                    assert (engine.requests, engine.calls) == (0, 0)
                return got

    got = uvloop.run(main())
    assert not errors, errors
    assert out
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0], got


async def done(send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


# ---- tasks


async def nap() -> str:
    await asyncio.sleep(0.005)
    return "slept"


async def semantics(engine: Any, receive: Any, send: Any, port: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    await receive()
    # Timeouts: of the engine's own futures and of asyncio's; what is cancelled inside does not leak out.
    for what in (receive, nap_for_ever):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await what()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(what()), 0.01)
    assert task.cancelling() == 0
    assert await asyncio.wait_for(nap(), 5) == "slept"
    assert await asyncio.gather(nap(), nap()) == ["slept", "slept"]
    assert await asyncio.shield(asyncio.ensure_future(nap())) == "slept"
    # A cancelled future of ours among others.
    waiting = receive()
    asyncio.get_running_loop().call_later(0.005, waiting.cancel, "enough")
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.gather(waiting)
    waiting = receive()
    asyncio.get_running_loop().call_later(0.005, waiting.cancel, "enough")
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    assert caught.value.args == ("enough",)
    done, pending = await asyncio.wait({receive(), asyncio.ensure_future(nap())}, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == len(pending) == 1
    pending.pop().cancel()
    # A child's failure cancels the task in its group, and only there.
    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await receive()
    assert task.cancelling() == 0
    # Our own cancel, its message, and taking it back.
    asyncio.get_running_loop().call_later(0.005, task.cancel, "leave")
    with pytest.raises(asyncio.CancelledError) as caught:
        await nap_for_ever()
    assert caught.value.args == ("leave",)
    assert task.uncancel() == 0
    # One that cancels itself hears of it when it waits next.
    task.cancel("now")
    with pytest.raises(asyncio.CancelledError) as caught:
        await receive()
    assert caught.value.args == ("now",)
    assert task.uncancel() == 0
    # anyio knows its own cancellations by their messages.
    with anyio.move_on_after(0.01) as scope:
        await receive()
    assert scope.cancelled_caught
    with anyio.move_on_after(0.01) as scope:
        await asyncio.sleep(10)
    assert scope.cancelled_caught
    # Contexts: what is set here is not seen by others, and children begin with it.
    var.set("mine")
    assert await asyncio.create_task(told()) == "mine"
    await asyncio.sleep(0)
    assert var.get() == "mine"
    assert asyncio.current_task() is task
    await globals()["done"](send)


var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="nobody's")


async def told() -> str:
    return var.get()


async def nap_for_ever() -> None:
    await asyncio.sleep(100)


async def fails() -> None:
    await asyncio.sleep(0.005)
    raise ValueError("expected")


def test_a_request_is_a_task_by_asyncios_rules() -> None:
    serve(semantics)
    assert var.get() == "nobody's"


@pytest.mark.parametrize("exc", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_loop_ends_it(exc: type[BaseException]) -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        await nap()
        raise exc(3)

    with pytest.raises(exc):
        serve(work)


# ---- calls


def opened(engine: Any, port: int, pool: Any = None, *, stream: bool = True, forward: Any = None, addresses: Any = None) -> Any:
    pool = pool or engine.pool(4, 1 << 20)
    head = native.Head("/v1", [(b"host", b"a")])
    late = 1 << 62
    request = Request("/v1", stream, [], 0, forward or [], 0, late, late, 1 << 40, 0)
    return pool.open(head, request, True, addresses or [("127.0.0.1", port)])


def test_send_during_a_relay_is_refused_and_so_is_a_second_one() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        call, other = opened(engine, port), opened(engine, port)
        await call.wait_head()
        await other.wait_head()
        await send(START)
        relay = call.relay(send, native.StreamScanner(False))
        with pytest.raises(RuntimeError, match="relay"):
            await send({"type": "http.response.body", "body": b"no", "more_body": True})
        with pytest.raises(RuntimeError, match="relay"):
            other.relay(send, native.StreamScanner(False))
        call.close()
        other.close()
        relay.cancel()
        await send({"type": "http.response.body", "body": b"yes", "more_body": False})

    _, got = serve(work, HEAD + chunk(EVENT))
    assert b"yes" in got
    assert b"no" not in got.partition(b"\r\n\r\n")[2]


def test_cancelling_a_relay_closes_its_upstream_and_the_response_goes_on() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> int:
        pool = engine.pool(4, 1 << 20)
        call = opened(engine, port, pool)
        await call.wait_head()
        await send(START)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await call.relay(send, native.StreamScanner(False))
        await send({"type": "http.response.body", "body": b"and so on", "more_body": False})
        await asyncio.sleep(0.01)
        size: int = pool.size
        return size

    size, got = serve(work, HEAD + chunk(EVENT))
    assert size == 0
    assert EVENT in got
    assert b"and so on" in got


def test_a_client_that_leaves_ends_a_relay_that_nobody_watches() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> Any:
        pool = engine.pool(4, 1 << 20)
        call = opened(engine, port, pool)
        await call.wait_head()
        await send(START)
        with pytest.raises(Fault) as caught:
            await call.relay(send, native.StreamScanner(False))
        await asyncio.sleep(0)
        return caught.value.kind, pool.size

    out: list[Any] = []

    async def main() -> None:
        upstream = Upstream(HEAD + chunk(EVENT))
        async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as other:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                sock.setblocking(False)
                fd = os.dup(sock.fileno())
                engine = make_engine(fd, Listen())

                async def app(scope: Any, receive: Any, send: Any) -> None:
                    if scope["type"] == "http":
                        out.append(await work(engine, receive, send, other.sockets[0].getsockname()[1]))

                server = NativeServer(app, fd, Listen(), engine=engine)
                serving = asyncio.create_task(server.serve())
                await asyncio.sleep(0)
                reader, writer = await asyncio.open_connection(*sock.getsockname())
                writer.write(GET)
                await reader.readuntil(EVENT)
                writer.transport.abort()
                await asyncio.wait_for(upstream.gone.wait(), 5)
                server.stop()
                await asyncio.wait_for(serving, 10)

    uvloop.run(main())
    assert out == [("client_gone", 0)]


def test_a_request_that_cannot_be_made_takes_no_connection_with_it() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        pool = engine.pool(4, 1 << 20)
        call = opened(engine, port, pool, stream=False)
        assert await call.wait_whole() == b"hello"
        with pytest.raises(ValueError, match="header"):
            opened(engine, port, pool, forward=[(b"x", b"a\nb")])
        again = opened(engine, port, pool, stream=False)
        assert await again.wait_whole() == b"hello"
        assert pool.size == 1
        await done(send)

    serve(work, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def test_pools_of_old_configs_go_with_their_last_call() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        before = engine.pools
        for _ in range(50):
            pool = engine.pool(4, 1 << 20)
            call = opened(engine, port, pool, stream=False)
            await call.wait_whole()
            pool.retire()
            del pool, call
        busy = engine.pool(4, 1 << 20)
        call = opened(engine, port, busy, stream=False)
        busy.retire()
        del busy
        asyncio.get_running_loop().call_soon(engine.watch)
        await nap()
        assert engine.pools <= before + 1
        assert await call.wait_whole() == b"hello"
        asyncio.get_running_loop().call_soon(engine.watch)
        await nap()
        assert engine.pools == before
        await done(send)

    serve(work, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def test_the_next_address_is_tried_where_one_refuses() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            closed = sock.getsockname()[1]
        call = opened(engine, port, stream=False, addresses=[("127.0.0.1", closed), ("::1", closed), ("127.0.0.1", port)])
        assert await call.wait_whole() == b"hello"
        call = opened(engine, port, stream=False, addresses=[("::1", closed), ("127.0.0.1", closed)])
        with pytest.raises(Fault) as caught:
            await call.wait_whole()
        assert caught.value.kind == "connect"
        await done(send)

    serve(work, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def test_tls_without_a_name_is_never_plain() -> None:
    async def work(engine: Any, receive: Any, send: Any, port: int) -> None:
        with pytest.raises(ValueError, match="TLS"):
            engine.pool(4, 1 << 20, None, "a.test")
        await done(send)

    serve(work)
