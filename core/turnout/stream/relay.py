"""The pure relay: the one loop that moves a stream from an upstream call to the client.

It awaits the client's side for every piece, so a slow client holds back the upstream socket (Call pauses above
256 KiB), and it hands on whole events only (see reader.py). `run` moves the bytes as they are; `follow` looks at each
event, for the attempts of a cut-over and for held tool calls (see splice.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..errors import Fault
from ..exchange import Exchange
from .reader import StreamReader
from .splice import Splice

# After finish_reason the provider has this long for its usage and `[DONE]`.
AFTER_FINISH_NS = 1_000_000_000
# Role frames and pings before the first token; a few hundred bytes in real streams.
MOST_HELD = 1024 * 1024


class Call(Protocol):
    """What the relay needs of an upstream call (upstream/client.py satisfies it)."""

    status: int
    headers: list[tuple[bytes, bytes]]
    progress: bool

    @property
    def drained(self) -> bool: ...
    async def wait(self) -> None: ...
    def take_nowait(self) -> bytes: ...
    async def wait_pushing(self, push: Callable[[], bool]) -> None: ...
    def idle(self, idle_ns: int, now_ns: int) -> None: ...
    def linger(self, now_ns: int) -> None: ...
    def close(self) -> None: ...


class Client(Protocol):
    """What the relay needs of the client's side (ingress/caller.py satisfies it)."""

    @property
    def relay_to(self) -> Any: ...
    async def send(self, data: bytes, more: bool) -> None: ...
    def push(self, data: bytes) -> bool: ...


class Relay:
    """One upstream stream on its way to one client."""

    __slots__ = ("_held", "_now", "call", "opening", "reader")

    def __init__(self, call: Call, reader: StreamReader, now_ns: Callable[[], int]) -> None:
        self.call = call
        self.reader = reader
        self._now = now_ns
        self._held: list[bytes] = []
        self.opening = b""  # the events up to the commit: they show what the client knows the stream by

    async def commit(self) -> None:
        """Read up to the first content token, or to a finish without one, and hold what came. Raises Fault."""
        call, reader = self.call, self.reader
        size = 0
        while True:
            await call.wait()
            piece = reader.feed(call.take_nowait(), self._now())
            self._held.append(piece)
            size += len(piece)
            # Nothing has been shown yet, so even a break right behind the first token is still a silent fallback.
            if reader.fault is not None:
                raise reader.fault
            if reader.first_content_ns or reader.turned:
                return
            if size > MOST_HELD:
                raise Fault("interrupted", "the upstream sends events without content")
            if call.drained:
                self._held.append(reader.close(self._now()))
                if reader.fault is not None:
                    raise reader.fault
                if reader.first_content_ns or reader.turned:
                    return
                raise Fault(
                    "bad_answer", "the upstream's stream ended before it said anything", upstream_status=call.status
                )

    async def buffer(self, tokens: int, window_ns: int) -> None:
        """Hold on for `tokens` content events or `window_ns` from the first one, whichever comes first: a break until
        then is a silent fallback too. Raises Fault."""
        call, reader = self.call, self.reader
        until_ns = reader.first_content_ns + window_ns
        while reader.chunks < tokens and not reader.turned and (left_ns := until_ns - self._now()) > 0:
            try:
                async with asyncio.timeout(left_ns / 1e9):
                    await call.wait()
            except TimeoutError:
                return
            self._held.append(reader.feed(call.take_nowait(), self._now()))
            call.progress = True
            if reader.fault is not None:
                raise reader.fault
            if call.drained and not reader.turned:
                raise Fault("interrupted", "the upstream ended its stream in the middle of the answer")

    async def run(self, x: Exchange, client: Client) -> Fault | None:
        """Move the rest. Returns None after a sound end, the Fault after which the answer is incomplete otherwise; None
        too, with `reader.stopped` set, in front of a tool call that is to be held: `follow` takes over there.

        There are three gears. Where both sides belong to the native engine it moves the chunks by itself (the ASGI
        extension `turnout.relay`). Else, while the client keeps up and nothing but content passes, `push` runs straight
        from the socket's callback: no task is woken for a chunk. Whatever else happens (a slow client, the finish, a
        fault) shifts down to this loop.
        """
        call, reader = self.call, self.reader
        now = self._now
        feed, take = reader.feed, call.take_nowait
        data = self.opening = b"".join(self._held)
        self._held.clear()
        finishing = False
        to = client.relay_to if hasattr(call, "relay") else None

        def push() -> bool:
            """Hand on what has just come. False: it has to be looked at by the loop."""
            nonlocal data
            before = reader.chunks
            data = feed(take(), now())
            if reader.chunks != before:
                call.progress = True
            if reader.turned:
                return False
            if data:
                if not client.push(data):
                    return False
                x.bytes_out += len(data)
                data = b""
            return True

        while True:
            if data:
                x.bytes_out += len(data)
                await client.send(data, True)
                data = b""
            if reader.stopped:
                return None
            if reader.fault is not None:
                return reader.verdict
            if reader.done:
                call.linger(now())
                return None
            if call.drained:
                if tail := reader.close(now()):
                    x.bytes_out += len(tail)
                    await client.send(tail, True)
                if reader.finished or reader.done or reader.fault is not None:
                    return reader.verdict
                return Fault("interrupted", "the upstream ended its stream in the middle of the answer")
            if reader.finished and not finishing:
                finishing = True
                call.idle(AFTER_FINISH_NS, now())
            try:
                if to is None:
                    await call.wait_pushing(push)
                else:
                    await self._relay(x, to)
            except Fault as fault:
                # What came before the break is in the client's hands; the rest of the event it broke in is not.
                return None if reader.finished else fault

    async def follow(
        self, splice: Splice, say: Callable[[bytes], Awaitable[None]], until: Callable[[], bool] | None = None
    ) -> Fault | None:
        """Move the rest event by event, through `splice`. Returns None after a sound end and once the splice is `bad`,
        else the Fault that broke it; None too, in the middle, as soon as `until` says so."""
        call, reader, now = self.call, self.reader, self._now
        data = b"".join(self._held)
        self._held.clear()
        if reader.stopped:
            data += reader.resume(now())
        finishing = reader.finished
        while True:
            if out := splice.feed(data, now()):
                await say(out)
                if until is not None and until():
                    return None
            if splice.bad or reader.fault is not None:
                return reader.verdict
            if reader.done:
                call.linger(now())
                return None
            if call.drained:
                if out := splice.feed(reader.close(now()), now()):
                    await say(out)
                if reader.finished or reader.done or reader.fault or splice.bad:
                    return reader.verdict
                return Fault("interrupted", "the upstream ended its stream in the middle of the answer")
            if reader.finished and not finishing:
                finishing = True
                call.idle(AFTER_FINISH_NS, now())
            before = reader.chunks
            try:
                await call.wait()
            except Fault as fault:
                return None if reader.finished else fault
            data = reader.feed(call.take_nowait(), now())
            if reader.stopped:
                data += reader.resume(now())
            if reader.chunks != before:
                call.progress = True

    async def _relay(self, x: Exchange, to: Any) -> None:
        """The third gear: the engine moves the stream by itself until something else than content has passed."""
        call: Any = self.call
        before = call.moved
        try:
            await call.relay(to, self.reader.scanner)
        finally:
            x.bytes_out += call.moved - before
            self.reader.catch_up(self._now())

    def close(self) -> None:
        """End the upstream call if it is not over; a lingering one is left to its last packet."""
        if not self.reader.done:
            self.call.close()
