"""Engine native: the ASGI app on our own HTTP/1.1 server, which runs in Rust on this loop's thread (native/src/engine).

The engine has all its sockets in one epoll set; the loop watches that single descriptor and calls `turn`.
"""

import asyncio
import os
from typing import Any

from .. import native
from ..config.model import Listen, ListenTls
from ..errors import Fault

STOP_S = 2.0  # after the app has ended, for last bytes that are on their way


def make_engine(fd: int, listen: Listen, most_body_bytes: int = 0) -> Any:
    """The engine on this listening socket, of which it makes a handle of its own."""
    return native.Engine(
        fd,
        max_connections=listen.max_connections,
        header_timeout_ms=listen.header_timeout_ms,
        body_timeout_ms=listen.body_timeout_ms,
        idle_timeout_ms=listen.idle_timeout_ms,
        max_body_bytes=most_body_bytes or listen.max_body_bytes,
    )


class NativeServer:
    """Serves `app` on an inherited listening socket, which it takes over, until `stop()`."""

    def __init__(self, app: Any, fd: int, listen: Listen, most_body_bytes: int = 0, engine: Any = None) -> None:
        self._app = app
        self.engine = engine or make_engine(fd, listen, most_body_bytes)
        if listen.tls is not None:
            self._set_tls(listen.tls)
        self.tls = listen.tls
        os.close(fd)  # the engine has a handle of its own: when it closes that, nobody of this process listens any more
        self._stopping = asyncio.Event()
        self._lifespan = Lifespan(app)

    async def serve(self) -> None:
        """Returns when it has been stopped and the last connection is closed. Raises RuntimeError if the app refuses to start."""
        loop = asyncio.get_running_loop()
        engine = self.engine
        await self._lifespan.start()
        engine.start(self._app, loop, self._lifespan.state, Fault)
        loop.add_reader(engine.fileno(), engine.turn)
        try:
            await self._stopping.wait()
            engine.drain()
            await self._lifespan.stop()  # the app waits for its live requests there, as long as it may
            end = loop.time() + STOP_S
            while engine.connections and loop.time() < end:
                await asyncio.sleep(0.01)
        finally:
            loop.remove_reader(engine.fileno())
            engine.close()

    def apply(self, listen: Listen) -> None:
        """A new config: a renewed certificate holds for connections from now on. Raises ValueError if it cannot be used."""
        if self.tls is not None and listen.tls is not None and listen.tls != self.tls:
            self._set_tls(listen.tls)
            self.tls = listen.tls

    def _set_tls(self, tls: ListenTls) -> None:
        self.engine.set_tls(tls.cert.reveal().encode(), tls.key.reveal().encode())

    def stop(self) -> None:
        """No new connections; those that are answering have a moment to finish."""
        self._stopping.set()


class Lifespan:
    """The server's side of the ASGI lifespan protocol. An app that does not know it is served without."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": self.state}
        self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        answer = await self._ask("lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the application did not start: {answer.get('message', '')}")
        if answer is None:
            self._task = None

    async def stop(self) -> None:
        if self._task is not None:
            await self._ask("lifespan.shutdown")

    async def _ask(self, kind: str) -> dict[str, Any] | None:
        """Tell the app; its answer, or None if it ended or failed without one."""
        assert self._task is not None
        self._to_app.put_nowait({"type": kind})
        answer = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # an app that answered and ended in one breath: let its answer come
        if answer.done():
            return answer.result()
        answer.cancel()
        if not self._task.cancelled():
            self._task.exception()  # an app without lifespan may raise: that is its way of saying so
        return None
