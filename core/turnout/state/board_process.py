"""The board: `python -m turnout.state.board_process LISTEN_FD PARENT_PID MOST_MB`. Answers and leases that the workers of
one host keep for each other, where no Redis is configured.

It knows values by keys and nothing of what they mean. Values have a time and a bound in bytes, the least recently used go
first. A lease belongs to the connection that took it and ends with it, so a worker that is killed holds nobody up: who
waits for its answer hears of that at once. It keeps nothing on disk.

What a holder pours under its lease goes to all who follow it, from the start (pours.py).
"""

import asyncio
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import msgspec

from .link import TooLarge, frame, is_ours, listener_of, messages
from .pours import Pours

MOST_BYTES = 48 * 1024 * 1024  # of one message
MOST_UNSENT = 64 * 1024 * 1024  # a worker that does not read is let go
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def encode(value: Any) -> bytes:
    return frame(_encode(value))


class Notices:
    """All values and leases. Pure: `now` comes in, answers go out by `say(peer, number, value)`."""

    def __init__(self, most_bytes: int, say: Callable[[object, int, Any], None]) -> None:
        self._most = most_bytes
        self._say = say
        self._values: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()  # value, until when
        self._leases: dict[bytes, tuple[object, bytes, float]] = {}  # peer, owner, until when
        self._waiting: dict[bytes, list[tuple[object, int, float]]] = {}
        self.pours = Pours(say)
        self.bytes = 0

    def take(self, peer: object, message: list[Any], now: float) -> None:
        """One request: [number, what, key, ...]."""
        number, what, key = message[:3]
        if what == "get":
            self._say(peer, number, self._get(key, now))
        elif what == "set":
            value, ttl_s = message[3:]
            self._set(key, value, now + ttl_s)
            self._say(peer, number, True)
            for waiter, its, _ in self._waiting.pop(key, ()):
                self._say(waiter, its, value)
        elif what == "wait":
            value = self._get(key, now)
            if value is not None:
                self._say(peer, number, value)
            else:
                self._waiting.setdefault(key, []).append((peer, number, now + message[3]))
        elif what == "lease":
            owner, ttl_s = message[3:]
            held = self._leases.get(key)
            mine = held is None or held[1] == owner or held[2] <= now
            if mine:
                self._leases[key] = (peer, owner, now + ttl_s)
            self._say(peer, number, mine)
        elif what == "release":
            held = self._leases.get(key)
            mine = held is not None and held[1] == message[3]
            if mine:
                del self._leases[key]
            self._say(peer, number, mine)
        elif what == "follow":
            held = self._leases.get(key)
            self.pours.follow(peer, number, key, message[3], held[0] if held is not None else None)
        elif what == "pour":
            self.pours.pour(peer, key, *message[3:])
        elif what == "unfollow":
            self.pours.unfollow(peer, number, key, message[3])
        elif what == "delete":
            self._say(peer, number, self._drop(key))
        elif what == "flush":
            self._values.clear()
            self.bytes = 0
            self._say(peer, number, True)

    def tick(self, now: float) -> None:
        """Who has waited long enough hears that there is nothing."""
        for key, waiting in list(self._waiting.items()):
            left = [w for w in waiting if w[2] > now]
            for peer, number, until in waiting:
                if until <= now:
                    self._say(peer, number, None)
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]
        for key, (_, _, until) in list(self._leases.items()):
            if until <= now:
                del self._leases[key]

    def forget(self, peer: object) -> None:
        """It is gone, and its leases with it: everybody who waits looks again who asks now."""
        for key, (holder, _, _) in list(self._leases.items()):
            if holder is peer:
                del self._leases[key]
        for key, waiting in list(self._waiting.items()):
            for waiter, number, _ in waiting:
                if waiter is not peer:
                    self._say(waiter, number, None)
            del self._waiting[key]
        self.pours.forget(peer)

    def _get(self, key: bytes, now: float) -> bytes | None:
        found = self._values.get(key)
        if found is None:
            return None
        if found[1] <= now:
            self._drop(key)
            return None
        self._values.move_to_end(key)
        return found[0]

    def _set(self, key: bytes, value: bytes, until: float) -> None:
        self._drop(key)
        if len(value) > self._most:
            return
        self._values[key] = value, until
        self.bytes += len(value)
        while self.bytes > self._most:
            self._drop(next(iter(self._values)))

    def _drop(self, key: bytes) -> bool:
        found = self._values.pop(key, None)
        if found is None:
            return False
        self.bytes -= len(found[0])
        return True


class Peer(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not is_ours(transport):
            cast(asyncio.Transport, transport).abort()
            return
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            return
        self._buffer += data
        now = time.monotonic()
        try:
            for message in messages(self._buffer, MOST_BYTES):
                self._notices.take(self, _decode(message), now)
        except TooLarge:
            self.transport.abort()

    def say(self, number: int, value: Any) -> None:
        if self.transport is not None:
            self.transport.write(encode([number, value]))
            if self.transport.get_write_buffer_size() > MOST_UNSENT:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._notices.forget(self)


async def serve(listener: socket.socket, most_bytes: int) -> None:
    """Until it is cancelled."""
    notices = Notices(most_bytes, lambda peer, number, value: cast(Peer, peer).say(number, value))
    loop = asyncio.get_running_loop()

    def tick() -> None:
        notices.tick(time.monotonic())
        loop.call_later(0.05, tick)

    tick()
    server = await loop.create_unix_server(lambda: Peer(notices), sock=listener)
    await server.serve_forever()


def main() -> None:
    fd, parent, most_mb = map(int, sys.argv[1:4])
    listener = listener_of(fd, parent)
    asyncio.run(serve(listener, most_mb << 20))


if __name__ == "__main__":
    main()
