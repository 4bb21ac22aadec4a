"""A stream that another worker asked for, and did not live to end: gone on with behind what its readers have.

It is a cut-over like any other (streaming.py), but for who is to blame: not the target, which may well be the first to be
asked. What the dead worker's call has cost until then is booked here, where it would be nobody's.
"""

from .asking import Asking
from .errors import Fault
from .exchange import Attempt, Exchange, Target
from .route.attempts import Attempts
from .stream.calls import Calls
from .stream.reader import StreamReader
from .stream.relay import Relay
from .stream.splice import Splice
from .streaming import Client, Passage

OPENING = 64 * 1024  # bytes in which a chunk shows what the client knows the stream by
DONE = b"data: [DONE]\n\n"


class _Ended:
    """The other worker's call."""

    status = 200
    progress = False
    headers: list[tuple[bytes, bytes]] = []
    drained = True

    def close(self) -> None: ...


class TakenOver(Passage):
    def __init__(self, asking: Asking, x: Exchange, client: Client, said: list[bytes]) -> None:
        """`said`: all that was written to `client`, whole events."""
        now = asking.now()
        reader = StreamReader(False, lambda error: Fault("interrupted", "the stream carries an error"), keep=True)
        for piece in said:
            reader.feed(piece, now)
        relay = Relay(_Ended(), reader, asking.now)  # type: ignore[arg-type]  # nothing more is read of it
        relay.opening = b"".join(said)[:OPENING]
        course = asking.course(x)
        target = course.targets[0]
        x.attempts.append(Attempt(target.provider, target.account, target.model or x.own_model, "first", x.head_ns))
        super().__init__(asking, x, client, relay, target)
        self._taken = True
        assert x.route is not None
        if x.route.stream.tool_calls == "hold":
            # What was shown of calls are whole ones: the turn can be had again if it makes the same.
            calls = Calls(self._sent)
            self._splice = Splice(calls=calls)
            self._splice.feed(b"".join(said), now)
            calls.passing = calls.passing or calls.since_ns > 0  # but for one that had been let go

    async def _move(self) -> Fault | None:
        if not self._taken:
            return await super()._move()
        x, reader = self._x, self.relay.reader
        self._asking.book_stream(x, x.attempts[-1], self.target, reader)
        if reader.finished:  # but for the end of it all was there
            self._taken = False
            if not reader.done:
                await self._client.send(DONE, True)
            return None
        return Fault("interrupted", "the worker that asked for this has ended")

    def _blame(self, fault: Fault, now: int) -> None:
        if not self._taken:
            super()._blame(fault, now)

    def _next(self, fault: Fault, now: int) -> Attempts:
        if not self._taken:
            return super()._next(fault, now)
        self._taken = False
        targets: list[Target] = self._order()
        return self._asking.course(self._x, targets)

    def _order(self) -> list[Target]:
        return super()._order() if self._broken else list(self._asking.course(self._x).targets)
