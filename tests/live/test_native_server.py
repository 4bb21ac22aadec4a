"""The native engine as a server for any ASGI app: what HTTP/1.1 and ASGI 3 promise, on real sockets."""

import asyncio
import contextlib
import gc
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from turnout import native
from turnout.config.model import Listen

if native.Engine is None:
    pytest.skip("the extension is not built", allow_module_level=True)

from turnout.ingress.native_server import NativeServer

HOST = b"host: test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
Test = Callable[[int], Awaitable[None]]


def run(app: App, test: Test, **limits: Any) -> NativeServer:
    """Serve `app` and run `test(port)` against it on the same loop. Any error of the loop fails the test."""
    errors: list[dict[str, Any]] = []

    async def main() -> NativeServer:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
            sock.setblocking(False)
            server = NativeServer(app, os.dup(sock.fileno()), Listen(**limits))
            serving = asyncio.create_task(server.serve())
            await asyncio.sleep(0)
            try:
                await asyncio.wait_for(test(sock.getsockname()[1]), 120)
            finally:
                server.stop()
                await asyncio.wait_for(serving, 20)
        return server

    server = uvloop.run(main())
    assert not [e for e in errors if "expected" not in str(e.get("exception"))], errors
    return server


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(port: int, raw: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await connect(port)
    writer.write(raw)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def close(raw: bytes) -> bytes:
    return raw.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


def post(body: bytes, *lines: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"content-length: %d\r\n\r\n" % len(body) + body


async def whole(receive: Any) -> bytes:
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError
        body += event["body"]
        if not event["more_body"]:
            return body


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = await whole(receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_starlette_app_runs_unchanged() -> None:
    marks: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        marks.append("up")
        yield {"thing": 7}
        marks.append("down")

    async def index(request: Request) -> Response:
        return JSONResponse({"q": dict(request.query_params), "thing": request.state.thing, "path": request.url.path})

    async def upload(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def stream(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for n in range(5):
                yield b"piece %d\n" % n
                await asyncio.sleep(0.001)

        return StreamingResponse(pieces())

    async def broken(request: Request) -> Response:
        raise RuntimeError("expected")

    routes = [Route("/a b", index), Route("/up", upload, methods=["POST"]), Route("/s", stream), Route("/broken", broken)]
    app = Starlette(routes=routes, lifespan=lifespan)

    async def test(port: int) -> None:
        answer = await ask(port, close(b"GET /a%20b?x=1&y=%20 HTTP/1.1\r\n" + HOST + b"\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b'{"q":{"x":"1","y":" "},"thing":7,"path":"/a b"}')
        big = b"x" * 3_000_000
        answer = await ask(port, close(post(big).replace(b"/x", b"/up", 1)))
        assert answer.endswith(b"\r\n\r\n3000000")
        answer = await ask(port, close(b"GET /s HTTP/1.1\r\n" + HOST + b"\r\n"))
        assert answer.endswith(b"".join(b"8\r\npiece %d\n\r\n" % n for n in range(5)) + b"0\r\n\r\n")
        assert (await ask(port, close(b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n"))).startswith(b"HTTP/1.1 500")
        assert (await ask(port, close(b"GET /none HTTP/1.1\r\n" + HOST + b"\r\n"))).startswith(b"HTTP/1.1 404")
        assert (await ask(port, close(b"HEAD /s HTTP/1.1\r\n" + HOST + b"\r\n"))).endswith(b"\r\n\r\n")

    run(app, test)
    assert marks == ["up", "down"]


def test_what_the_app_sees() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope)
            await echo(scope, receive, send)

    async def test(port: int) -> None:
        await ask(port, close(b"POST /a%2Fb/%C3%A9?q=%31 HTTP/1.1\r\nHost: Test\r\nX-A: 1\r\nX-a:  2 \r\ncontent-length: 0\r\n\r\n"))
        await ask(port, b"GET / HTTP/1.0\r\n\r\n")

    run(app, test)
    scope = seen[0]
    assert scope["asgi"]["version"] == "3.0"
    assert (scope["http_version"], scope["method"], scope["scheme"], scope["root_path"]) == ("1.1", "POST", "http", "")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a/b/é", b"/a%2Fb/%C3%A9", b"q=%31")
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"
    assert (b"host", b"Test") in scope["headers"]
    assert [v for n, v in scope["headers"] if n == b"x-a"] == [b"1", b"2"]
    assert seen[1]["http_version"] == "1.0"


def test_pipelined_requests_are_answered_in_turn() -> None:
    async def test(port: int) -> None:
        raw = b"".join(post(b"%d" % n) for n in range(40))
        answer = await ask(port, raw + close(post(b"end")))
        assert answer.count(b"HTTP/1.1 200 OK") == 41
        assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [b"%d" % n for n in range(40)] + [b"end"]

    run(echo, test)


def test_expect_100_continue_waits_until_the_body_is_asked_for() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/no":
            await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"no"})
        else:
            await echo(scope, receive, send)

    async def test(port: int) -> None:
        reader, writer = await connect(port)
        raw = post(b"hello", b"expect: 100-continue", b"connection: close")
        writer.write(raw[:-5])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        answer = await ask(port, raw[:-5].replace(b"/x", b"/no", 1))
        assert answer.startswith(b"HTTP/1.1 413")

    run(app, test)


@pytest.mark.parametrize("raw", [GET.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"), b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n"])
def test_upgrades_and_connect_are_not_implemented(raw: bytes) -> None:
    async def test(port: int) -> None:
        assert (await ask(port, raw)).startswith(b"HTTP/1.1 501 ")

    run(echo, test)


@pytest.mark.parametrize("raises", [False, True])
def test_an_answer_without_its_last_piece_never_ends_cleanly(raises: bool) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        if raises:
            raise RuntimeError("expected")

    async def test(port: int) -> None:
        answer = await ask(port, GET)
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")
        with pytest.raises(ConnectionError):  # HTTP/1.0 has no chunks: only a reset says that something is missing
            await ask(port, b"GET / HTTP/1.0\r\n\r\n")

    run(app, test)


def test_an_app_that_fails_before_it_answers_is_a_500() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise RuntimeError("expected")

    async def test(port: int) -> None:
        assert (await ask(port, GET)).startswith(b"HTTP/1.1 500 ")

    run(app, test)


@pytest.mark.parametrize("how", ["close", "reset", "half-close", "pipelined"])
def test_a_client_that_leaves_is_told_of_at_once(how: str) -> None:
    took: list[float] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await whole(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data", "more_body": True})
        event = await receive()
        assert event == {"type": "http.disconnect"}
        took.append(time.monotonic())
        for _ in range(10):  # nobody is there: no error
            await send({"type": "http.response.body", "body": b"data", "more_body": True})

    async def test(port: int) -> None:
        for _ in range(20):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(post(b"{}") * (2 if how == "pipelined" else 1))
            await asyncio.sleep(0.01)
            start = time.monotonic()
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if how == "half-close":
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.close()
            while not took:
                assert time.monotonic() - start < 1
                await asyncio.sleep(0.001)
            assert took.pop() - start < 0.25
            sock.close()

    run(app, test)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_in_a_body_that_nobody_has_read_is_told_of_at_once(reset: bool) -> None:
    took: list[float] = []
    left = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/late":  # it asks only when the client is long gone
            await left.wait()
        event = await receive()
        assert event == {"type": "http.disconnect"}
        took.append(time.monotonic())

    async def test(port: int) -> None:
        for path in (b"/early", b"/late"):
            left.clear()
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(post(b"q" * 300_000).replace(b"/x", path, 1)[:200_000])
            await asyncio.sleep(0.05)
            start = time.monotonic()
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            await asyncio.sleep(0.05)
            left.set()
            while not took:
                assert time.monotonic() - start < 1
                await asyncio.sleep(0.001)
            assert took.pop() - start < 0.25

    run(app, test)


def test_a_slow_reader_holds_back_the_app_and_not_the_others() -> None:
    sent = 0
    ended: list[bool] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal sent
        await whole(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/x":
            await send({"type": "http.response.body", "body": b"ok"})
            return
        for _ in range(2000):
            await send({"type": "http.response.body", "body": b"z" * 10_000, "more_body": True})
            sent += 10_000
        await send({"type": "http.response.body"})
        ended.append(True)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(close(GET))
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert 0 < sent < 12_000_000
        cpu = time.process_time()
        assert (await ask(port, close(post(b"{}")))).endswith(b"ok")
        await asyncio.sleep(0.5)
        assert time.process_time() - cpu < 0.1  # the stalled one costs nothing
        answer = await reader.read()
        assert answer.count(b"z") == 20_000_000
        assert answer.endswith(b"0\r\n\r\n")
        assert ended
        writer.close()

    run(app, test)


def test_a_body_is_held_back_until_the_app_wants_it() -> None:
    go = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await go.wait()
        await echo(scope, receive, send)

    async def test(port: int) -> None:
        reader, writer = await connect(port)
        writer.transport.set_write_buffer_limits(high=1)  # type: ignore[attr-defined]
        writer.write(close(post(b"q" * 20_000_000)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        go.set()
        assert (await reader.read()).endswith(b"q" * 20_000_000)
        writer.close()

    run(app, test)


def test_limits_of_time() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        with contextlib.suppress(ConnectionError):
            await echo(scope, receive, send)

    async def test(port: int) -> None:
        start = time.monotonic()
        nothing, head, body = await asyncio.gather(ask(port, b""), ask(port, b"GET / HTT"), ask(port, post(b"hello")[:-2]))
        assert nothing == b""
        assert head.startswith(b"HTTP/1.1 408 ")
        assert body == b""
        assert 0.4 < time.monotonic() - start < 2.5

    run(app, test, header_timeout_ms=500, body_timeout_ms=500)


def test_connections_over_the_cap_wait_their_turn() -> None:
    async def test(port: int) -> None:
        idle = [await connect(port) for _ in range(16)]
        await asyncio.sleep(0.05)
        late = asyncio.create_task(ask(port, close(post(b"late"))))
        await asyncio.sleep(0.2)
        assert not late.done()
        idle.pop()[1].close()
        assert (await late).endswith(b"late")
        for _, writer in idle:
            writer.close()

    run(echo, test, max_connections=16)


def test_no_free_descriptors_pause_the_accepting() -> None:
    async def test(port: int) -> None:
        clients = [socket.socket() for _ in range(4)]
        used = max(int(n) for n in os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        hold: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    hold.append(os.dup(0))
            for client in clients:
                client.connect(("127.0.0.1", port))
                client.sendall(close(post(b"hello")))
            cpu = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - cpu < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in hold:
                os.close(fd)
        for client in clients:
            client.setblocking(False)
            assert (await asyncio.get_running_loop().sock_recv(client, 4096)).endswith(b"hello")
            client.close()

    run(echo, test)


def test_nothing_is_left_after_thousands_of_requests_of_all_kinds() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        with contextlib.suppress(ConnectionError):
            if scope["path"] == "/cut":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            elif scope["path"] == "/wait":
                await whole(receive)
                await receive()
            else:
                await echo(scope, receive, send)

    async def test(port: int) -> None:
        def storm() -> None:
            for n in range(600):
                raw = [post(b"hi"), post(b"hi").replace(b"/x", b"/cut", 1), post(b"hi").replace(b"/x", b"/wait", 1), post(b"hi")[:-1]][n % 4]
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.sendall(raw)
                    if n % 4 < 2:
                        sock.recv(4096)
                if n % 50 == 0:
                    gc.collect()  # from another thread

        await asyncio.to_thread(storm)
        fds, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        await asyncio.to_thread(storm)
        await asyncio.sleep(0.3)
        assert len(os.listdir("/proc/self/fd")) <= fds
        assert len(asyncio.all_tasks()) <= tasks

    server = run(app, test)
    assert server.engine.requests == 0  # also none that Python holds, or that hold each other


def test_stopping_lets_answers_finish_and_closes_the_idle() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await whole(receive)
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            server = NativeServer(app, os.dup(sock.fileno()), Listen())
            serving = asyncio.create_task(server.serve())
            await asyncio.sleep(0)
            port = sock.getsockname()[1]
            idle, writer = await connect(port)
            busy = asyncio.create_task(ask(port, post(b"{}")))
            await asyncio.sleep(0.1)
            server.stop()
            assert await idle.read() == b""
            answer = await busy
            assert answer.endswith(b"done")
            assert b"connection: close" in answer
            await serving
            writer.close()

    uvloop.run(main())


def test_send_from_another_thread_is_refused() -> None:
    caught: list[BaseException] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        def other() -> None:
            try:
                send({"type": "http.response.start", "status": 200, "headers": []})
            except RuntimeError as exc:
                caught.append(exc)

        if scope["type"] != "http":
            return
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        await echo(scope, receive, send)

    async def test(port: int) -> None:
        assert (await ask(port, close(post(b"hi")))).endswith(b"hi")

    run(app, test)
    assert len(caught) == 1
