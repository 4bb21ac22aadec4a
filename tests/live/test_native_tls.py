"""TLS to upstreams in the native engine: what it costs the others, and what it does not cost twice."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from turnout import native
from turnout.config.model import Listen
from turnout.upstream.call import Request

if native.Engine is None:
    pytest.skip("the extension is not built", allow_module_level=True)

from turnout.ingress.native_server import NativeServer, make_engine

LATE = 1 << 62
COLD = b'{"resumed": false}'


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """The port of an upstream that speaks TLS, and the authority of its certificate."""
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    cert.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    script = Path(__file__).parents[1] / "support" / "tls_upstream.py"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")], **pipes) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), ssl.PEM_cert_to_DER_cert(ca.cert_pem.bytes().decode())
        process.kill()


def with_engine(work: Any) -> Any:
    """Run `work(engine)` beside an engine that is served on the loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"

    async def main() -> Any:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            fd = os.dup(sock.fileno())
            engine = make_engine(fd, Listen())
            server = NativeServer(app, fd, Listen(), engine=engine)
            serving = asyncio.create_task(server.serve())
            await asyncio.sleep(0.01)
            try:
                return await asyncio.wait_for(work(engine), 60)
            finally:
                engine.close_upstream()
                server.stop()
                await asyncio.wait_for(serving, 10)
                assert engine.calls == 0

    return uvloop.run(main())


async def ask(pool: Any, port: int, path: str, reuse: bool) -> bytes:
    request = Request(path, False, [], 0, [], 0, LATE, LATE, 1 << 40, 0)
    call = pool.open(native.Head(path, [(b"host", b"a")]), request, reuse, [("127.0.0.1", port)])
    body: bytes = await call.wait_whole()
    return body


def test_sessions_are_resumed(upstream: tuple[int, bytes]) -> None:
    port, trust = upstream[0], native.Trust([upstream[1]])

    async def work(engine: Any) -> list[bytes]:
        pool = engine.pool(4, 1 << 20, trust, "127.0.0.1")
        return [await ask(pool, port, "/close", True) for _ in range(4)]

    assert with_engine(work) == [COLD] + [b'{"resumed": true}'] * 3


def test_500_cold_connects_hold_nobody_up(upstream: tuple[int, bytes]) -> None:
    """The loop goes round and round meanwhile: what its longest round takes of the processor is what any stream waits at most."""
    port, root = upstream
    rounds: list[float] = []

    async def spin(over: asyncio.Event) -> float:
        longest, before = 0.0, time.thread_time()
        while not over.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()  # a time slice of the system's is nobody's fault
            longest, before = max(longest, now - before), now
        return longest

    async def work(engine: Any) -> Counter[bytes]:
        out: Counter[bytes] = Counter()
        over = asyncio.Event()
        # Sessions are kept by their trust: each has one of its own, so that all are cold.
        pools = [engine.pool(0, 1 << 20, native.Trust([root]), "127.0.0.1") for _ in range(500)]
        spinning = asyncio.create_task(spin(over))
        began = time.perf_counter()
        tasks = []
        for n, pool in enumerate(pools):  # they come as a listener accepts them: some in one round
            tasks.append(asyncio.create_task(ask(pool, port, "/", False)))
            if n % 32 == 31:
                await asyncio.sleep(0)
        out.update(await asyncio.gather(*tasks))
        took = time.perf_counter() - began
        over.set()
        rounds.append(await spinning)
        print(f"\n500 cold TLS connects in {took:.2f} s; the longest round of the loop took {rounds[-1] * 1000:.1f} ms")
        return out

    for _ in range(3):
        assert with_engine(work) == {COLD: 500}
    assert sorted(rounds)[1] < 0.02
