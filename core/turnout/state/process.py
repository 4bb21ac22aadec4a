"""The state process: `python -m turnout.state.process LISTEN_FD PARENT_PID`. It has the counters of workers that have no
shared memory to count in.

A worker sends batches (`wire.py`); each is done whole or, if the worker died in the middle of sending it, not at all.
After a turn of the loop everybody who has asked for a row that changed gets its cells, so what a worker believes is no
older than a turn and the way. It keeps nothing on disk: when it is killed its counters begin at zero, and the supervisor
starts it again on the same socket.
"""

import asyncio
import socket
import sys
from typing import cast

from ..native import Counters
from .link import TooLarge, frame, is_ours, listener_of, messages
from .table import memory
from .wire import MOST_BYTES, Batch, decode_batch, encode_news

CELLS = 31
MOST_UNSENT = 4 * 1024 * 1024  # a worker that does not read is let go: it comes back and gets all anew


class State:
    """All counters and who wants to know of which. Pure but for the `Peer`s that it is given."""

    def __init__(self) -> None:
        self._counters = Counters(memory())
        self._wanted: dict[int, set[Peer]] = {}
        self._changed: set[int] = set()

    def apply(self, peer: "Peer", batch: Batch) -> None:
        """Count, and remember what to tell whom."""
        for key in batch.rows:
            self._wanted.setdefault(key, set()).add(peer)
            peer.unseen.add(key)
        for key, cell, n in batch.adds:
            if (row := self._counters.row(key)) >= 0:
                self._counters.add(row, cell, n)
                self._changed.add(key)
        for key, first, cells, stamp, n in batch.bumps:
            if (row := self._counters.row(key)) >= 0:
                self._counters.bump(row, first, cells, stamp, n)
                self._changed.add(key)
        peer.done = batch.number

    def cells(self, key: int) -> list[int]:
        row = self._counters.row(key)
        return [self._counters.get(row, cell) if row >= 0 else 0 for cell in range(CELLS)]

    def tell(self) -> None:
        """To everybody what has changed for him."""
        for key in self._changed:
            for peer in self._wanted.get(key, ()):
                peer.unseen.add(key)
        self._changed.clear()

    def forget(self, peer: "Peer") -> None:
        for peers in self._wanted.values():
            peers.discard(peer)


class Peer(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, state: State, server: "Server") -> None:
        self._state = state
        self._server = server
        self._buffer = bytearray()
        self.unseen: set[int] = set()
        self.done = 0
        self.told = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not is_ours(transport):
            cast(asyncio.Transport, transport).abort()
            return
        self.transport = cast(asyncio.Transport, transport)
        self._server.peers.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            for message in messages(self._buffer, MOST_BYTES):
                self._state.apply(self, decode_batch(message))
                self._server.soon()
        except TooLarge:
            self._abort()

    def flush(self) -> None:
        if self.transport is None or (not self.unseen and self.told == self.done):
            return
        news = [(key, self._state.cells(key)) for key in self.unseen]
        self.unseen.clear()
        self.told = self.done
        self.transport.write(frame(encode_news(self.done, news)))
        if self.transport.get_write_buffer_size() > MOST_UNSENT:
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._server.peers.discard(self)
        self._state.forget(self)


class Server:
    """Serves a listening Unix socket until it is cancelled."""

    def __init__(self) -> None:
        self._state = State()
        self._soon = False
        self.peers: set[Peer] = set()

    async def serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Peer(self._state, self), sock=listener)
        await server.serve_forever()

    def soon(self) -> None:
        """Once a turn of the loop, however many batches came in it."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._soon = False
        self._state.tell()
        for peer in tuple(self.peers):
            peer.flush()


def main() -> None:
    fd, parent = map(int, sys.argv[1:3])
    listener = listener_of(fd, parent)
    asyncio.run(Server().serve(listener))


if __name__ == "__main__":
    main()
