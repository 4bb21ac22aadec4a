"""A lane: one connection to one node of Redis for all who ask in this process, its deadlines and its breaker.

What is asked in one turn of the loop goes out in one write; replies come in the order of the questions. Nobody waits longer
than `operation_s` for the server. Time in which our own loop was busy is not held against it: the deadline runs from the
write, and who is overdue gets some turns of the loop more, in which what has come is read. The breaker is the connection itself: it is there and answers in time (closed), or it is not (open), and
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
# Of the loop, before somebody is overdue: one to read what has come, one to wake the reader, one that had already begun.
# An idle loop makes them within the deadline.
TURNS, TURN_S = 3, 0.001
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


class Batch:
    """What goes out in one write."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since = 0.0  # it was asked, later: written


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
        self.opened_at = 0.0  # by perf_counter, the last time
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._more = asyncio.Event()
        self._batch = Batch()  # not written yet
        self._waiting: deque[tuple[Future, Batch]] = deque()  # oldest first; done ones are overdue or left
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0  # that the overdue have had
        self._due = 0.0  # what was written before this is overdue
        self._missed = 0  # deadlines in a row with no answer in time
        self._missed_at = 0.0
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
            if not self._unsent:
                self._batch.since = perf_counter()
                self._more.set()
            self._unsent.append(command)
            self._unsent_bytes += len(command)
            self._waiting.append((future, self._batch))
            if self._timer is None:
                self._timer = self._loop.call_later(self._operation_s - TURNS * TURN_S, self._overdue)
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
        now = perf_counter()
        if self._turns == 0:
            self._due = now + TURNS * TURN_S - self._operation_s + 0.0005  # the timer's own turn
        self._turns += 1
        if self._turns <= TURNS:
            self._timer = self._loop.call_later(TURN_S, self._overdue)
            return
        self._timer = None
        self._turns = 0
        left_s = self._operation_s
        late = False
        for future, batch in self._waiting:
            if batch.since > self._due:
                left_s = batch.since + self._operation_s - now
                break
            late = True
            if not future.done():
                future.set_result(LATE)
        if late and now - self._missed_at > 0.9 * self._operation_s:
            self._missed += 1
            self._missed_at = now
            if self._missed >= STALLED:
                self._break("timeout")
                return
        if self._waiting:
            self._timer = self._loop.call_later(max(left_s - TURNS * TURN_S, TURN_S), self._overdue)

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
            self.opened_at = perf_counter()
        self.up = False
        self._missed = self._turns = 0
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
            self._batch.since = perf_counter()
            self._batch = Batch()
            if (wrong := await wire.send(data)) is not None:
                self._why = self._why or wrong.kind
                return

    async def _read(self, wire: Wire) -> None:
        while True:
            reply = await wire.receive()
            if (isinstance(reply, Wrong) and reply.broken) or not self._waiting:
                self._why = self._why or (reply.kind if isinstance(reply, Wrong) else "garbage")
                return
            future, batch = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)
                self._missed = 0
            elif perf_counter() - batch.since < self._operation_s:  # who asked has left
                self._missed = 0
