"""The client's side of one exchange, and the one timer that looks after all of them.

A request that is over in 50 ms pays for no watcher and no timer: the tick finds only those that take longer. For those
it starts to watch for `http.disconnect`, because `send()` does not raise after the client has left (granian), and it
keeps the limits of the client's side: slow bodies, and streams whose first token is late.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any

from ..errors import Fault
from ..exchange import Headers
from .incoming import Arrival

WATCH_AFTER_NS = 50_000_000
# A client, or a proxy before us, that waits longer than this for a response head may give up (DESIGN, section 6).
HEAD_AFTER_NS = 10_000_000_000
BEAT_NS = 5_000_000_000
# Those that are watched already are looked at every so many ticks: their limits are seconds, and there may be thousands.
OLD_TICKS = 5
MOST_PIECE = 32 * 1024
CLOSE = (b"connection", b"close")
BEAT = b": turnout is waiting for the upstream\n\n"


class ServerCaller:
    """What the flow asks of the client of one request."""

    __slots__ = (
        "_beat", "_beat_ns", "_body_done", "_closing", "_eager", "_held", "_incoming", "_length", "_pending", "_watch", "early", "ended", "gone", "slow",
        "started_ns", "stays", "task",
    )  # fmt: skip

    def __init__(
        self,
        incoming: Arrival,
        length: int,
        started_ns: int,
        task: "asyncio.Task[Any] | None",
        closing: bool,
    ) -> None:
        self._incoming = incoming
        self._length = length  # content-length, -1 if there is none
        self.started_ns = started_ns
        self.task = task
        self._closing = closing
        self.early = False
        self.ended = False
        self.gone = False  # the client left
        self.slow = False  # the client's body took too long
        self.stays: Callable[[], bool] | None = None  # asked when the client has left, see `_heard`
        self._body_done = False
        self._held: Headers | None = None
        self._beat: asyncio.Task[None] | None = None
        self._beat_ns = 0
        self._watch: Any = None
        self._pending: Any = None  # the future of the last piece, while that is not known to be through
        self._eager = False  # `send` begins when it is called, not when it is awaited

    def body_nowait(self, most: int) -> bytes | None:
        """The whole body where the server has all of it; None: `read_body` waits for it. Raises Fault too_large."""
        if self._length > most:
            raise Fault("too_large", f"the request body is over the limit of {most} bytes")
        whole = self._incoming.body()
        if whole is not None:
            if len(whole) > most:
                raise Fault("too_large", f"the request body is over the limit of {most} bytes")
            self._body_done = True
        return whole

    async def read_body(self, most: int) -> bytes:
        """The whole body. Raises Fault too_large, truncated_body; never returns a part of it."""
        if self._length > most:
            raise Fault("too_large", f"the request body is over the limit of {most} bytes")
        chunks: list[bytes] = []
        size = 0
        while True:
            try:
                event = await self._incoming.receive()
            except asyncio.CancelledError:
                if not self.slow:
                    raise
                raise Fault("body_timeout", "the request body took too long to arrive") from None
            if event["type"] != "http.request":
                # granian reports a truncated or badly framed body this way, after the bytes seen so far.
                raise Fault("truncated_body", "the request body ended before it was complete")
            piece = event.get("body", b"")
            if piece:
                size += len(piece)
                if size > most:
                    raise Fault("too_large", f"the request body is over the limit of {most} bytes")
                chunks.append(piece)
            # The declared length is reached: the server's closing empty event need not be waited for.
            if size == self._length or not event.get("more_body", False):
                break
        if self._length >= 0 and size != self._length:
            raise Fault("truncated_body", "the request body is shorter than its content-length")
        self._body_done = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def start(self, status: int, headers: Headers) -> None:
        if self._closing:
            headers.append(CLOSE)
        await self._incoming.send({"type": "http.response.start", "status": status, "headers": headers})

    def reply_nowait(self, status: int, headers: Headers, body: bytes) -> bool:
        """A whole answer in one call, on engine native, which takes it without waiting. False: `reply` has to be awaited."""
        return self._incoming.reply(status, [*headers, CLOSE] if self._closing else headers, body)

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""
        if self.reply_nowait(status, headers, body):
            return
        headers.append((b"content-length", b"%d" % len(body)))
        await self.start(status, headers)
        await self._incoming.send({"type": "http.response.body", "body": body, "more_body": False})

    async def send(self, data: bytes, more: bool) -> None:
        """One piece of the body. Waits until the piece before it is through: so the client's pace holds us back."""
        while len(data) > MOST_PIECE:
            # granian queues pieces without counting their bytes: what a slow client holds is bounded by small pieces.
            await self._send_piece(data[:MOST_PIECE], True)
            data = data[MOST_PIECE:]
        await self._send_piece(data, more)

    async def _send_piece(self, data: bytes, more: bool) -> None:
        pending = self._pending
        if pending is not None:
            self._pending = None
            if not pending.done():
                await pending
        sent: Any = self._incoming.send({"type": "http.response.body", "body": data, "more_body": more})
        self._eager = not isinstance(sent, CoroutineType)
        if more and self._eager:
            self._pending = sent if hasattr(sent, "done") else None
        else:
            await sent

    def push(self, data: bytes) -> bool:
        """One piece of the body without waiting; False, and nothing is sent, while the piece before it is not through.

        Only on servers whose `send` begins at the call (granian gives a future, or an empty awaitable where the piece
        found room at once), not on those where it is a coroutine that runs when awaited.
        """
        pending = self._pending
        if not self._eager or len(data) > MOST_PIECE or (pending is not None and not pending.done()):
            return False
        sent: Any = self._incoming.send({"type": "http.response.body", "body": data, "more_body": True})
        self._pending = sent if hasattr(sent, "done") else None
        return True

    @property
    def relay_to(self) -> Any:
        """What a native call's `relay` writes to; None on a server without the extension."""
        return self._incoming.relay_to

    def hold(self, headers: Headers) -> None:
        """The response head waits for the commit; should that take long, it goes out early with these headers."""
        self._held = headers

    def release(self) -> Awaitable[None] | None:
        """No more heartbeats from now on. What is returned must be awaited before anything else is sent."""
        self._held = None
        beat = self._beat
        return beat if beat is not None and not beat.done() else None

    def end(self) -> None:
        self.ended = True
        self._held = None
        if self._watch is not None and hasattr(self._watch, "cancel"):
            self._watch.cancel()

    # -- the tick

    @property
    def at_rest(self) -> bool:
        """Whether the tick has nothing to do for it any more."""
        return self._watch is not None and self._held is None

    def tick(self, now_ns: int, body_ns: int) -> None:
        if not self._body_done:
            if now_ns - self.started_ns > body_ns and self.task is not None and not self.slow:
                self.slow = True
                self.task.cancel()
            return
        if self._watch is None:
            self._listen()
        if self._held is not None and now_ns - self.started_ns > HEAD_AFTER_NS and now_ns - self._beat_ns > BEAT_NS:
            self._beat_ns = now_ns
            if self._beat is None or self._beat.done():
                self._beat = asyncio.get_running_loop().create_task(self._heartbeat(self._held))

    async def _heartbeat(self, headers: Headers) -> None:
        if not self.early:
            self.early = True
            await self.start(200, headers)
        await self.send(BEAT, True)

    def _listen(self) -> None:
        waiting: Any = self._incoming.receive()
        if not hasattr(waiting, "add_done_callback"):  # a coroutine, on servers other than granian
            waiting = asyncio.ensure_future(waiting)
        self._watch = waiting
        waiting.add_done_callback(self._heard)

    def _heard(self, future: Any) -> None:
        if self.ended or future.cancelled():
            return
        try:
            event = future.result()
        except Exception:
            event = {"type": "http.disconnect"}
        if event["type"] == "http.disconnect":
            self.gone = True
            if self.task is not None and not (self.stays is not None and self.stays()):
                self.task.cancel()
        else:  # the closing empty body event that read_body did not wait for
            self._listen()


class Callers:
    """All exchanges of one worker. `tick` costs nothing for those that end within 50 ms."""

    def __init__(self, body_timeout_ms: int) -> None:
        self._young: deque[ServerCaller] = deque()
        self._old: list[ServerCaller] = []
        self._ticks = 0
        self.body_ns = body_timeout_ms * 1_000_000
        self.live = 0
        self.draining = False

    def add(self, caller: ServerCaller) -> None:
        self.live += 1
        self._young.append(caller)

    def remove(self, caller: ServerCaller) -> None:
        self.live -= 1
        caller.end()

    def tick(self, now_ns: int) -> None:
        young = self._young
        while young and (young[0].ended or now_ns - young[0].started_ns > WATCH_AFTER_NS):
            caller = young.popleft()
            if not caller.ended:
                self._old.append(caller)
                caller.tick(now_ns, self.body_ns)  # it is watched from now on
        self._ticks += 1
        if self._old and self._ticks % OLD_TICKS == 0:
            for caller in self._old:
                if not caller.ended:
                    caller.tick(now_ns, self.body_ns)
            # Most of those that take long are streams under way: they are listened for, and nothing else is to be done.
            self._old = [c for c in self._old if not c.ended and not c.at_rest]
