"""Hedged attempts: a stream that waits too long for its first token is put to the next target as well.

`hedged` is `Asking.attempts` for routes that ask for it (route/hedge.py says when and how often). Until the first content
token nothing was shown, so which of two answers that is does not matter to the client; the other is cancelled at once, its
upstream closed. Both are attempts with rows and costs of their own. Of the loser nothing is held against its target: its
waiting counts, as an answer that would have taken longer.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .account.cost import estimate
from .asking import Asking
from .errors import Fault
from .exchange import OUTRUN, Attempt, Exchange, Target
from .route.attempts import Attempts, Try, Wait
from .route.began import Began
from .stream.relay import Relay

T = TypeVar("T")


class _Side:
    """One of the attempts of a race."""

    __slots__ = ("_asking", "_began", "_course", "_index", "_x", "attempt", "over", "relay", "target")

    def __init__(self, asking: Asking, x: Exchange, course: Attempts, step: Try, now: int) -> None:
        self._asking = asking
        self._x = x
        self._course = course
        self._index = step.index
        self.target: Target = course.targets[step.index]
        target = self.target
        self.attempt = Attempt(target.provider, target.account, target.model or x.own_model, step.cause, now)
        x.attempts.append(self.attempt)
        self._began = Began(target.stats, id(self.attempt), True, len(x.body), now)
        self.relay: Relay | None = None  # once it has committed
        self.over = False  # its end is in the books

    async def run(self) -> "_Side":
        """Up to its first content token. Raises Fault, which is in the books then."""
        try:
            self.relay = await self._asking.open_stream(self._x, self.target, self.attempt, None, hold=False)
        except Fault as fault:
            self._failed(fault)
            raise
        return self

    async def win(self) -> tuple[Relay, Target]:
        """It was first: what comes before its answer is shown. Raises Fault."""
        asking, x, attempt, relay = self._asking, self._x, self.attempt, self.relay
        assert relay is not None
        assert x.route is not None
        if x.attempts[-1] is not attempt:
            x.attempts[-2:] = x.attempts[-1], attempt
        try:
            await asking.hold_back(x, relay)
        except Fault as fault:
            relay.close()
            self._failed(fault)
            raise
        x.first_byte_ns = x.first_byte_ns or attempt.first_byte_ns
        x.first_content_ns = x.first_content_ns or attempt.first_content_ns
        now = asking.now()
        self._began.served(attempt, now)
        self.target.health.began(now)
        x.route.budget.succeeded(now)
        self.over = True
        return relay, self.target

    def _failed(self, fault: Fault) -> None:
        now = self._asking.now()
        self._asking.failed(self.target, self.attempt, self._began, fault, now)
        self._course.failed(self._index, fault, now)
        self.over = True

    def outrun(self) -> None:
        """The other was first."""
        if self.over:
            return
        self.over = True
        asking, x, attempt = self._asking, self._x, self.attempt
        attempt.ended_ns = now = asking.now()
        attempt.reason = OUTRUN
        self._began.outrun(attempt.cause != "hedge", now)
        self._course.outrun(self._index)
        self.target.health.released()
        if self.relay is not None:  # it had its first token in the same moment
            self.relay.close()
            before = x.finish, x.chunks
            asking.book_stream(x, attempt, self.target, self.relay.reader)
            x.finish, x.chunks = before  # nothing of it was used
        else:
            # The prompt was sent, and most providers bill that whatever becomes of the answer.
            asking.book(x, attempt, self.target, estimate(len(x.body), 0))

    def gone(self) -> None:
        """The client left, or something broke here."""
        if self.over:
            return
        self.over = True
        if self.relay is not None:
            self.relay.close()
            self._asking.book_stream(self._x, self.attempt, self.target, self.relay.reader)
        self._asking.gone(self.target, self.attempt, self._began)


async def hedged(asking: Asking, x: Exchange, course: Attempts | None = None) -> tuple[Relay, Target]:
    """Try targets until one has begun to answer, two at a time where the first takes long. Raises the Fault that the
    client is told."""
    route = x.route
    assert route is not None
    hedge = route.hedge
    now = asking.now()
    course = course or asking.course(x)
    if not x.attempts:
        hedge.purse.earned(now)
    while True:
        step = course.next(now)
        if step is None:
            raise course.verdict(now)
        if isinstance(step, Wait):
            now = await asking.pause(x, step.until_ns, now)
            continue
        sides = [_Side(asking, x, course, step, now)]
        delay_ns = hedge.delay_ns(sides[0].target.stats, len(x.body), now)
        try:
            winner = await race(sides[0].run(), delay_ns / 1e9, _second(asking, x, course, sides))
            for side in sides:
                if side is not winner:
                    side.outrun()
            return await winner.win()
        except Fault:
            continue
        except BaseException:
            for side in sides:
                side.gone()
            raise
        finally:
            before, now = now, asking.now()
            asking.waited(x, now - before)


def _second(
    asking: Asking, x: Exchange, course: Attempts, sides: list[_Side]
) -> Callable[[], Coroutine[Any, Any, _Side] | None]:
    def second() -> Coroutine[Any, Any, _Side] | None:
        assert x.route is not None
        now = asking.now()
        step = course.beside(now, x.route.hedge.purse.take)
        if step is None:
            return None
        sides.append(_Side(asking, x, course, step, now))
        return sides[-1].run()

    return second


async def race(first: Coroutine[Any, Any, T], delay_s: float, second: Callable[[], Coroutine[Any, Any, T] | None]) -> T:
    """Run `first`, and beside it what `second` gives if `first` is not done after `delay_s`: what that gave which was done
    first. The other is cancelled, and over, when this returns; it may have been done in the same moment. A Fault of one
    leaves the race to the other; raises one of them if both fail."""
    create = asyncio.get_running_loop().create_task
    tasks = [create(first)]
    try:
        _, pending = await asyncio.wait(tasks, timeout=delay_s)
        if pending and (other := second()) is not None:
            tasks.append(create(other))
            pending.add(tasks[1])
        while not (good := [t for t in tasks if t.done() and t.exception() is None]) and pending:
            for task in tasks:
                if task.done() and not isinstance(task.exception(), Fault):
                    return task.result()  # raises
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        losers = [task for task in tasks if not task.done()]
        for task in losers:
            task.cancel()
        if losers:
            await asyncio.wait(losers)
            for task in losers:
                task.cancelled() or task.exception()
    return (good or tasks)[0].result()
