"""A stream from its commit to its end, whatever breaks on the way: the driver of stream/cutover.py.

The machine decides, this file carries out: it runs the relay, asks another target to go on, lets its answer in where it
joins what the client has, and keeps the client's side alive meanwhile. `Passage` is one stream; `assemble` gathers one
for a client that wants its answer whole.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from .asking import Asking
from .errors import UPSTREAM, Fault
from .exchange import Attempt, Cut, Exchange, Target, Usage, names_apart
from .hedging import hedged
from .native import CALLS, OVER, REASONING
from .route.attempts import Attempts
from .stream.calls import Calls, Sent
from .stream.cutover import (
    ASK_AGAIN,
    BROKE,
    CALL,
    CONTENT,
    END,
    ERROR,
    LEFT,
    LIVE,
    NO_SEAM,
    NOBODY,
    OPEN_NEXT,
    REFUSED,
    SEAM,
    Cutover,
)  # fmt: skip
from .stream.reader import MOST_TEXT
from .stream.relay import Relay
from .stream.seam import Seam, part
from .stream.splice import Splice
from .wire import chunk as wire
from .wire.assemble import Assembly
from .wire.resume import INSTRUCTION, Asked, asked, resume_body

BEAT_S = 5.0  # DESIGN, section 6: a stream is never silent for longer because of us
LOOK_S = 0.5  # how often it is looked at
BEAT = b": turnout is waiting for the upstream\n\n"


class Client(Protocol):
    @property
    def relay_to(self) -> Any: ...
    async def send(self, data: bytes, more: bool) -> None: ...
    def push(self, data: bytes) -> bool: ...


class _Voice:
    """The client's side in the slow gear: one piece at a time, and a heartbeat while there is nothing to say."""

    def __init__(self, x: Exchange, client: Client, now_ns: Callable[[], int]) -> None:
        self._x = x
        self._client = client
        self._now = now_ns
        self._lock = asyncio.Lock()  # beats come from a task of their own
        self._said_ns = now_ns()
        self.splice: Splice | None = None  # None: another target is being asked
        self.note: Callable[[], bytes] | None = None  # what goes in front of the first piece of an attempt
        self.spoke = False
        self._task = asyncio.get_running_loop().create_task(self._beat())
        # A client that cannot be written to is noticed by whoever reads from it, not here.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def say(self, data: bytes) -> None:
        async with self._lock:
            self.spoke = True
            if self.note is not None:
                data, self.note = self.note() + data, None
            await self._send(data)

    async def _send(self, data: bytes) -> None:
        self._x.bytes_out += len(data)
        await self._client.send(data, True)
        self._said_ns = self._now()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            splice = self.splice
            if splice is not None and (late := splice.tick(self._now())):
                await self.say(late)
            elif splice is None or splice.waiting:
                async with self._lock:
                    if self._now() - self._said_ns > (BEAT_S - 2 * LOOK_S) * 1e9:
                        await self._send(BEAT)

    async def close(self) -> None:
        """No more beats. One that is under way is let out whole."""
        async with self._lock:
            self._task.cancel()
        await asyncio.wait([self._task])

    def drop(self) -> None:
        self._task.cancel()


class Passage:
    """One committed stream on its way to one client. `shown`: the client sees what passes."""

    def __init__(
        self, asking: Asking, x: Exchange, client: Client, relay: Relay, target: Target, shown: bool = True
    ) -> None:
        route = x.route
        assert route is not None
        self._asking = asking
        self._now = asking.now
        self._x = x
        self._client = client
        self.relay = relay
        self.target = target
        self._first = relay
        self._policy = route.stream
        self._cut = Cutover(route.stream.on_failure, route.stream.max_cutovers, shown)
        self._wish: Asked | None = None
        self._voice: _Voice | None = None
        self._splice: Splice | None = None
        self._sent: list[Sent] = []  # tool calls the client has
        self._broken: list[Target] = []
        self._full = False  # the client's limit of tokens is not lowered

    async def carry(self) -> Fault | None:
        """Move all of it. Returns None after a sound end, else the Fault after which the answer is incomplete."""
        cut = self._cut
        cut.on(CONTENT)
        try:
            while (fault := await self._move()) is not None and (fault := await self._repair(fault)) is None:
                pass
            if fault is None:
                cut.on(END)
                self.target.health.ended(self._now())
            if self._voice is not None:
                await self._voice.close()  # no beat may come into what is sent next
            return fault
        except asyncio.CancelledError:
            if cut.state in LIVE:
                cut.on(LEFT)
            raise
        finally:
            if self._voice is not None:
                self._voice.drop()

    def abandon(self) -> None:
        """It is not carried at all: the client left in between."""
        self.relay.close()
        if self.target.stats is not None:
            self.target.stats.done()
        self._asking.book_stream(self._x, self._x.attempts[-1], self.target, self.relay.reader)

    async def _move(self) -> Fault | None:
        """The attempt at hand, to its end."""
        x, relay = self._x, self.relay
        attempt = x.attempts[-1]
        try:
            if self._splice is None:
                fault = await relay.run(x, self._client)
                if not relay.reader.stopped:
                    return fault
                self._cut.on(CALL)
                self._splice = Splice(calls=Calls(self._sent))
                self._speak().splice = self._splice
            assert self._voice is not None
            fault = await relay.follow(self._splice, self._voice.say)
            if self._splice.bad:
                self._cut.spoiled = self._splice.bad
                fault = Fault("interrupted", self._splice.bad)
            return fault
        finally:
            relay.close()
            if self.target.stats is not None:
                self.target.stats.done()
            self._asking.book_stream(x, attempt, self.target, relay.reader)

    def _speak(self) -> _Voice:
        if self._voice is None:
            self._voice = _Voice(self._x, self._client, self._now)
        return self._voice

    # ---- after a break

    async def _repair(self, fault: Fault) -> Fault | None:
        """Let another target go on. Returns the Fault to tell where that cannot be."""
        x, cut, now = self._x, self._cut, self._now()
        if fault.kind == "client_gone":  # told by a native relay, before the watcher
            cut.on(LEFT)
            return fault
        attempt = x.attempts[-1]
        attempt.reason = fault.reason
        if fault.source != UPSTREAM:
            cut.spoiled = fault.kind  # our own limit or shutdown; or a refusal, which is not routed around
        if not cut.spoiled:
            self._blame(fault, now)
        self._take_stock()
        record = Cut(attempt.provider, "", len(cut.said), fault.reason, "terminated", now)
        x.cuts = [*x.cuts, record]
        command = cut.on(BROKE)
        if command in (ERROR, OPEN_NEXT):
            return fault
        record.outcome = "repeated" if not cut.said else "continued"
        voice = self._speak()
        voice.splice = None
        voice.note = lambda: self._note(record, attempt)
        try:
            self.relay, self.target = await self._asking.attempts(x, self._ask_on, self._next(fault, now), "cut-over")
        except Fault:
            record.outcome = "terminated"
            cut.on(NOBODY)
            return fault  # what broke the stream says more than why nobody could go on
        return None

    def _blame(self, fault: Fault, now: int) -> None:
        self.target.health.failed(fault, now, midway=True)
        if self.target.stats is not None:
            self.target.stats.verdict(False, now)

    def _next(self, fault: Fault, now: int) -> Attempts:
        """Whom to ask to go on."""
        self._broken.append(self.target)
        course = self._asking.course(self._x, self._order())
        course.broke(len(course.targets) - 1, fault, now)
        return course

    def _take_stock(self) -> None:
        """What the client has, for the machine's guards."""
        cut, reader, splice = self._cut, self.relay.reader, self._splice
        if self._policy.on_failure == "continue":
            cut.whole = self._asked().whole
        kinds = reader.kinds
        if self.relay is not self._first:
            kinds &= OVER | REASONING  # others would have made the splice bad
            cut.said = splice.said if splice is not None else cut.said
            if len(cut.said) > MOST_TEXT:
                kinds |= OVER
        else:
            cut.said = reader.text
        if splice is not None and splice.calls is not None:
            kinds = kinds | CALLS if splice.calls.open else kinds & ~CALLS
        cut.calls = len(self._sent)
        cut.kinds |= kinds

    def _order(self) -> list[Target]:
        """The same model elsewhere first, then others; those that broke come last, the one that just did at the very end."""
        x, broken = self._x, self._broken
        last = broken[-1]
        targets = [t for t in self._asking.course(x).targets if t is not last]
        targets.sort(key=lambda t: (any(t is b for b in broken), t.model != last.model))
        return [*targets, last]

    def _asked(self) -> Asked:
        if self._wish is None:
            route = self._x.route
            assert route is not None
            self._wish = asked(self._x.body, route.sets)
        return self._wish

    def _note(self, record: Cut, before: Attempt) -> bytes:
        """The comment at the seam; with it the cut-over is a fact."""
        record.origin, record.to = names_apart(before, self._x.attempts[-1])
        record.joined_ns = self._now()
        return b": turnout cut-over " + record.story.encode("ascii", "replace") + b"\n\n"

    # ---- asking a target to go on

    async def _ask_on(self, x: Exchange, target: Target, attempt: Attempt) -> tuple[Relay, Target]:
        """Ask one target, in other ways too where the first does not do, until its answer joins. Raises Fault."""
        cut, voice = self._cut, self._speak()
        mode = target.ability.prefill if self._asked().chat else "prompt"
        literal = False
        while True:
            cut.prefilled = mode not in (INSTRUCTION, "prompt")
            body, splice, literal = self._prepare(mode, literal)
            cut.literal = literal
            try:
                relay = await self._asking.open_stream(x, target, attempt, body)
            except Fault as fault:
                if fault.kind != "refused":
                    cut.on(BROKE)
                    raise
                if cut.on(REFUSED) != ASK_AGAIN:
                    raise Fault(
                        "no_seam", "the upstream refused to go on", upstream_status=fault.upstream_status
                    ) from None
                # It takes no answer to go on with; from now on it is asked in words.
                mode = target.ability.prefill = INSTRUCTION
                attempt = self._once_more(attempt, fault.reason)
                continue
            voice.spoke = False
            voice.splice = splice
            try:
                broke = await relay.follow(splice, voice.say, lambda: voice.spoke)
                if voice.spoke:
                    self._splice = splice
                    cut.on(SEAM)
                    if splice.calls is not None and splice.calls.since_ns:
                        cut.on(CALL)
                    return relay, target
            except BaseException:
                self._drop(relay, target, attempt)
                raise
            voice.splice = None
            self._drop(relay, target, attempt)
            if broke is not None:
                cut.on(BROKE)
                raise broke
            if cut.on(NO_SEAM) != ASK_AGAIN:
                raise Fault("no_seam", splice.bad or "the upstream did not go on")
            literal = True
            # It began again and had not enough left to get as far as before.
            self._full = self._full or splice.starved
            attempt = self._once_more(attempt, "no_seam")

    def _drop(self, relay: Relay, target: Target, attempt: Attempt) -> None:
        relay.close()
        self._asking.book_stream(self._x, attempt, target, relay.reader)
        self._x.finish = ""  # nothing of it was used

    def _once_more(self, before: Attempt, reason: str) -> Attempt:
        """Another attempt at the same target: one row each."""
        now = before.ended_ns = self._now()
        before.reason = reason
        attempt = Attempt(before.provider, before.account, before.model, "cut-over", now)
        self._x.attempts.append(attempt)
        return attempt

    def _prepare(self, mode: str, literal: bool) -> tuple[bytes | None, Splice, bool]:
        """The request (None: the client's own), what its answer goes through, and whether it is taken literally."""
        x, cut, wish, policy = self._x, self._cut, self._asked(), self._policy
        said = cut.said
        body: bytes | None = None
        seam: Seam | None = None
        added = 0
        if said:
            head, words = ("", said) if literal else part(said)
            if not head:
                # Too short to be parted: in words it is asked to begin again; who prefills just goes on.
                literal = literal or mode != INSTRUCTION
                head, words = said, "" if literal else said
            told = policy.instruction_literal if literal else policy.instruction.replace("{words}", words.strip())
            size = len(said.encode())
            delivered = min(size // 4, x.chunks)
            spent = 0 if self._full else max(0, delivered - (len(words.encode()) + 3) // 4)
            body = resume_body(x.body, head, mode, told, spent)
            seam = Seam(said, words, literal)
            added = (len(head.encode()) + (len(told) if mode == INSTRUCTION else 0)) // 4
        before = self._before()
        calls = Calls(self._sent) if policy.tool_calls == "hold" else None
        splice = Splice(
            face=wire.face_of(self._first.opening),
            seam=seam,
            said=said,
            calls=calls,
            usage=lambda own: wire.summed_usage(own, before, added, len(x.body) // 4),
            drop_reasoning=bool(said or cut.kinds & REASONING),
            must_parse=bool(said) and wish.json,
        )
        return body, splice, literal

    def _before(self) -> Usage:
        """The client's usage so far: the prompt of the first attempt if its provider gave it, all completion tokens."""
        given = [a.usage for a in self._x.attempts if a.usage is not None]
        prompt = given[0].prompt if given and not given[0].estimated else 0
        return Usage(prompt, sum(u.completion for u in given))


async def assemble(asking: Asking, x: Exchange) -> tuple[bytes, Relay, Target]:
    """A whole answer out of a stream: its JSON. Until it is whole nothing was shown, so what cannot be joined begins
    again at the next target. Raises Fault."""
    assert x.route is not None
    course = asking.course(x)
    while True:
        if x.route.hedge is None:
            relay, target = await asking.attempts(x, asking.ask_stream, course)
        else:
            relay, target = await hedged(asking, x, course)
        index = next(i for i, t in enumerate(course.targets) if t is target)
        gathered = Assembly()
        passage = Passage(asking, x, gathered, relay, target, shown=False)
        began, before = asking.now(), x.upstream_ns
        fault = await passage.carry()
        x.upstream_ns = before + asking.now() - began  # all of it is waiting, what is waited in between is in it
        if fault is None:
            body = gathered.answer(x.surface.name == "chat")
            if body is not None:
                return body, passage.relay, passage.target
            fault = Fault("bad_answer", "the upstream's stream makes no answer")
            x.attempts[-1].reason = fault.reason
        x.cuts = ()
        course.failed(index, fault, asking.now())
