"""A lane: one connection to one node of Redis for all who ask in this process, its deadlines and its breaker.

What is asked in one turn of the loop goes out in one write; replies come in the order of the questions. Nobody waits longer
than `operation_s`. The breaker is the connection itself: it is there and answers in time (closed), or it is not (open), and
then questions are answered at once and a task dials again, with jitter. A new connection has to answer once before it counts,
so no caller is ever the probe. It opens when the connection breaks, and when nothing came in time for `STALLED` deadlines.

Its diagram: down --dialled, answered in time--> up --broken, stalled, or a sign that the master has moved--> down.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from time import perf_counter
from typing import Protocol

import msgspec

Reply = int | bytes | list["Reply"] | None
Future = asyncio.Future["Reply | Wrong"]

STALLED = 3  # deadlines in a row with no answer in time: a pause of the server or the network is often as long as one
MOST_WAITING = 1024  # questions without a reply: 20 ms of 50,000 a second
MOST_UNSENT = 8 * 1024 * 1024
AGAIN_S = 0.05  # until the first try to dial again, doubled for each that fails
AGAIN_MAX_S = 1.0
# A connection that broke sooner counts as a failed try: some answer a PING and then stall, again and again.
STEADY_S = 5.0
# A server that says it is read-only is dialled anew so often: a name or a sentinel may know its heir.
MOVED_AGAIN_S = 1.0


class Wrong(msgspec.Struct, frozen=True, gc=False):
    """Why there is no reply. Kinds: down (breaker open), busy (too much is waiting), connect, timeout, lost, auth, loading,
    full, readonly, moved, ask, noscript, type (another type of value), refused (any other error), garbage, large."""

    kind: str
    at: tuple[str, int] | None = None  # moved and ask: where to
    broken: bool = False  # and the connection with it


DOWN = Wrong("down")
BUSY = Wrong("busy")
LATE = Wrong("timeout")


class Wire(Protocol):
    """One connection (dial.py has the real one)."""

    async def send(self, data: bytes) -> Wrong | None: ...
    async def receive(self) -> Reply | Wrong: ...
    async def close(self) -> None: ...


def pack(args: tuple[bytes, ...]) -> bytes:
    """A command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(args), b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]))


class Lane:
    """`ask` from callbacks of the loop it was made in. `close` it."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[Wire | Wrong]],
        operation_s: float,
        rng: Random,
        count: Callable[[str], None],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`count(kind)`: told of what breaks a connection or keeps one from being made. `lost`: told that it has broken."""
        self._dial = dial
        self._operation_s = operation_s
        self._rng = rng
        self._count = count
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self.up = False
        self.opens = 0  # times that the breaker opened
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._more = asyncio.Event()
        self._waiting: deque[tuple[Future, float]] = deque()  # since when, oldest first; done ones are overdue or left
        self._timer: asyncio.TimerHandle | None = None
        self._late_since = 0.0  # no answer in time since then; 0: there was one
        self._renewed_at = 0.0
        self._why = ""
        self._reading: asyncio.Task[None] | None = None
        self._task = self._loop.create_task(self._run())

    def ask(self, command: bytes) -> Future:
        """The reply to a packed command, within `operation_s`. Never an exception."""
        future: Future = self._loop.create_future()
        if not self.up:
            future.set_result(DOWN)
        elif len(self._waiting) >= MOST_WAITING or self._unsent_bytes > MOST_UNSENT:
            future.set_result(BUSY)
        else:
            self._unsent.append(command)
            self._unsent_bytes += len(command)
            self._waiting.append((future, perf_counter()))
            self._more.set()
            if self._timer is None:
                self._timer = self._loop.call_later(self._operation_s, self._overdue)
        return future

    def renew(self, why: str) -> None:
        """The node is not (any more) what we need: dial anew, but not all the time."""
        now = perf_counter()
        if now - self._renewed_at > MOVED_AGAIN_S:
            self._renewed_at = now
            self._break(why)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    # ---- deadlines

    def _overdue(self) -> None:
        """Answer those whose time is over, wake up again for the next."""
        self._timer = None
        now = perf_counter()
        over = now - self._operation_s + 0.0005  # a turn of the loop's timer
        left: float | None = None
        for future, since in self._waiting:
            if since > over:
                left = since + self._operation_s - now
                break
            if not future.done():
                future.set_result(LATE)
                self._late_since = self._late_since or since
        if self._waiting and self._late_since and now - self._late_since > STALLED * self._operation_s:
            self._break("timeout")
        elif left is not None or self._waiting:
            self._timer = self._loop.call_later(self._operation_s if left is None else max(left, 0.001), self._overdue)

    def _break(self, why: str) -> None:
        if self._reading is not None:
            self._why = why
            self._reading.cancel()

    # ---- the connection

    async def _run(self) -> None:
        failed = 0
        wire: Wire | None = None
        try:
            while True:
                dialled = await self._dial()
                if isinstance(dialled, Wrong):
                    self._count(dialled.kind)
                else:
                    wire = dialled
                    began = perf_counter()
                    await self._serve(wire)
                    if perf_counter() - began > STEADY_S:
                        failed = 0
                    await wire.close()
                    wire = None
                    self._lost()
                # Processes that lost one server are not to come back to it in one moment.
                await asyncio.sleep(min(AGAIN_MAX_S, AGAIN_S * 2 ** min(failed, 10)) * (0.5 + self._rng.random() / 2))
                failed += 1
        finally:
            self._go_down()
            if wire is not None:
                await wire.close()

    async def _serve(self, wire: Wire) -> None:
        """Until the connection is broken, by whatever."""
        self._why = ""
        self._reading = reading = self._loop.create_task(self._read(wire))
        writing = self._loop.create_task(self._write(wire))
        self.up = True
        try:
            await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reading = None
            self._go_down()
            reading.cancel()
            writing.cancel()
            await asyncio.wait([reading, writing])
        self._count(self._why or "lost")

    def _go_down(self) -> None:
        if self.up:
            self.opens += 1
        self.up = False
        self._late_since = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future, _ in self._waiting:
            if not future.done():
                future.set_result(Wrong(self._why or "lost"))
        self._waiting.clear()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._more.clear()

    async def _write(self, wire: Wire) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._unsent_bytes = 0
            if (wrong := await wire.send(data)) is not None:
                self._why = self._why or wrong.kind
                return

    async def _read(self, wire: Wire) -> None:
        while True:
            reply = await wire.receive()
            if (isinstance(reply, Wrong) and reply.broken) or not self._waiting:
                self._why = self._why or (reply.kind if isinstance(reply, Wrong) else "garbage")
                return
            future, since = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)
            if perf_counter() - since < self._operation_s:
                self._late_since = 0.0
