"""One worker process: `python -m turnout.worker CONTROL_FD LISTEN_FD RING_FD COUNTERS_FD NUMBER PARENT_PID`.

It reads no file and no environment: config and secrets come over the control channel. When that channel ends, the
supervisor is dead, and the worker ends at once so that no orphan listens on.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import uvloop

from . import native
from .app import App
from .cache.purge import Purge, purge
from .config.load import from_wire
from .config.model import Config
from .ingress import control
from .ingress.question import Question
from .ingress.sharing import load
from .state.board import Board
from .state.remote import Remote
from .state.table import Cells, row
from .telemetry import metrics
from .telemetry.ring import Ring

PREPARE_S = 0.2  # before the first connection, for what the semantic cache has on disk: 40 scopes of 10,000


class Worker:
    def __init__(
        self, sock: socket.socket, listen_fd: int, ring: Ring, counters_fd: int, number: int, first: dict[str, Any]
    ) -> None:
        self._sock = sock
        self._listen_fd = listen_fd
        self._ring = ring
        self._counters_fd = counters_fd
        self._number = number
        self._first = first
        self._done = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        first = self._first
        config = from_wire(first["data"], first["secrets"])
        make_client, make_server = engine_of(first["engine"], self._listen_fd, config)
        cells: Cells = Remote(first["state"]) if first["state"] else native.Counters(self._counters_fd)
        self._app = app = App(
            config,
            version=first["version"],
            dev=first["dev"],
            worker=self._number,
            ring=self._ring,
            simulators=first["simulators"],
            make_client=make_client,
            window=lambda name: row(cells, name),
            board=Board(first["board"]) if first["board"] else None,
            tell=self._say,
        )
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        if app.room is not None:
            await app.room.prepare(PREPARE_S)
        self._server = make_server(app)
        serving = asyncio.create_task(self._server.serve())
        # Everything made so far lives as long as the process: the collector need not look at it again. The threshold is
        # raised because a request makes many short-lived containers and no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        self._say("ready", os.getpid())
        listening = asyncio.create_task(self._listen(reader))
        await self._done.wait()
        # The listener closes at once; the server's lifespan ends, and with it this worker, when live requests have.
        self._server.stop()
        await serving
        listening.cancel()

    def _say(self, kind: str, value: Any) -> None:
        if self._writer is not None:
            self._writer.write(control.pack(kind, value))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                kind, value = await control.receive(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                os._exit(1)  # the supervisor is gone
            if kind == "metrics":
                self._say("metrics", [value[0], metrics.encode(self._app.snapshot())])
            elif kind == "config":
                try:
                    config = from_wire(value["data"], value["secrets"])
                    if config.state.shared is not None:
                        await asyncio.to_thread(load, config)
                    if value["board"] and self._app.shelf.board is None:  # no route had a cache until now
                        self._app.shelf.board = Board(value["board"])
                    self._app.apply(config, value["version"], value["simulators"])
                    self._server.apply(config.listen)
                    self._say("applied", value["version"])
                except Exception as exc:  # checked by the supervisor before; the old config stays in force
                    self._say("failed", f"{type(exc).__name__} while applying config {value['version']}")
            elif kind == "explain":
                self._say("answer", [value[0], self._app.explain(msgspec.convert(value[1], Question))])
            elif kind == "semantic":
                room = self._app.room
                self._say("answer", [value[0], room.told(value[1]) if room is not None else {}])
            elif kind == "news":
                if self._app.room is not None:
                    self._app.room.look()
            elif kind == "purge":
                self._purging = asyncio.create_task(self._purge(*value))
            elif kind == "drain":
                self._app.drain(value)
                self._done.set()

    async def _purge(self, number: int, what: dict[str, Any]) -> None:
        asked = msgspec.convert(what, Purge)
        tier = self._app.endpoints.flow.tier
        if not asked.dry and tier is not None:
            await tier.purged(asked)  # before our own: what is fetched meanwhile is let go with the rest
        found = await purge(self._app.shelf.memory, asked)
        if self._app.room is not None:
            found["questions"] = await self._app.room.knowledge.purge(asked)
        self._say("answer", [number, found])


def engine_of(name: str, fd: int, config: Config) -> tuple[Callable[..., Any], Callable[[App], Any]]:
    """Both halves of the engine of this name: what makes the upstream client, and what makes the HTTP server of an app
    (`await serve()` until `stop()`)."""
    if name == "native":
        from .ingress.native_server import NativeServer, make_engine
        from .upstream.native_client import NativeClient

        control.schedule_at_once()
        engine = make_engine(fd, config.listen, config.most_body_bytes)
        return partial(NativeClient, engine), lambda app: NativeServer(app, fd, config.listen, engine=engine)
    from .ingress.granian_server import GranianServer
    from .upstream.client import Client

    return Client, lambda app: GranianServer(app, fd, config.listen)


def main() -> None:
    control_fd, listen_fd, ring_fd, counters_fd, number, parent = map(int, sys.argv[1:7])
    control.die_with_parent(parent)
    control.raise_file_limit()
    # Ctrl-C reaches the whole process group; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=control_fd)
    kind, first = control.receive_now(sock)
    if kind != "config":
        raise SystemExit("expected a config")
    sock.setblocking(False)
    ring = Ring(ring_fd)

    async def run() -> None:
        await Worker(sock, listen_fd, ring, counters_fd, number, first).run()

    uvloop.run(run())


if __name__ == "__main__":
    main()
