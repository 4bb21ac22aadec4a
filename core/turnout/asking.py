"""The middle of the way: a request's attempts at upstreams, one after the other, and what each costs.

`attempts` tries targets as route/attempts.py decides until one serves. An attempt is `ask_plain` (a whole answer) or
`ask_stream` (up to its first content token); neither touches the client, so two of them may run at once (hedging.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

import msgspec

from .account.cost import cost_nanos, estimate
from .catalog import Catalog, patience_ms
from .clock import Clock
from .errors import UPSTREAM, Fault
from .exchange import Attempt, Exchange, Route, Target, Usage
from .route.attempts import Attempts, Try
from .route.began import Began
from .route.stage import Routes
from .stream.reader import StreamReader
from .stream.relay import Relay
from .upstream.attempt import MAX_ERROR_BYTES, event_fault, is_json, refusal, told
from .upstream.call import Call, Request
from .wire.request import RequestReader

T = TypeVar("T")
_STREAM = ((b"stream", b"true"),)
_ANSWERS = frozenset(("chat", "completions"))  # the surfaces whose answers are choices


class Asking:
    """Asks upstreams for one config's flow."""

    def __init__(self, *, routes: Routes, reader: RequestReader, catalog: Catalog, clock: Clock, rng: Random) -> None:
        self._routes = routes
        self._reader = reader
        self._catalog = catalog
        self._clock = clock
        self.now = clock.now_ns
        self._rng = rng

    def course(self, x: Exchange, targets: Sequence[Target] | None = None) -> Attempts:
        route = x.route
        assert route is not None
        if targets is None:
            targets = self.ranked(x, route, self.now())
        return Attempts(targets, route.retries_max, route.budget, x.deadline_ns, self._rng)

    def ranked(self, x: Exchange, route: Route, now: int) -> Sequence[Target]:
        """The route's targets, best first."""
        targets = self._routes.rank(route, x, now)
        if route.cache is not None and x.wanted is None:
            x.wanted = targets[0].model or x.own_model
        return targets

    async def attempts(
        self,
        x: Exchange,
        ask: Callable[[Exchange, Target, Attempt], Awaitable[T]],
        course: Attempts | None = None,
        cause: str = "",
    ) -> T:
        """Try targets until one serves. Raises the Fault that the client is told. `cause` stands in for that of the course."""
        route = x.route
        assert route is not None
        now = self.now()
        if course is not None:
            targets = course.targets
        else:
            targets = self.ranked(x, route, now)
            # What nearly every request begins with, and ends with: a course is only made where that does not serve.
            index, why = 0, "first"
            if not targets or now >= x.deadline_ns or not targets[0].health.starts(now):
                course = self.course(x, targets)
        while True:
            if course is not None:
                step = course.next(now)
                if step is None:
                    raise course.verdict(now)
                if not isinstance(step, Try):  # asked this way it takes a third of the time
                    now = await self.pause(x, step.until_ns, now)
                    continue
                index, why = step.index, step.cause
            target = targets[index]
            attempt = Attempt(target.provider, target.account, target.model or x.own_model, cause or why, now)
            x.attempts.append(attempt)
            stats = target.stats
            if stats is not None:
                began = Began(stats, id(attempt), x.stream or x.assemble, len(x.body), now)
            try:
                result = await ask(x, target, attempt)
            except Fault as fault:
                began_ns, now = x.attempts[-1].started_ns, self.now()
                self.waited(x, now - began_ns)
                self.failed(target, x.attempts[-1], began if stats is not None else None, fault, now)
                if course is None:
                    course = self.course(x, targets)
                    course.began()
                course.failed(index, fault, now)
                continue
            except BaseException:
                self.gone(target, x.attempts[-1], began if stats is not None else None)
                raise
            now = x.attempts[-1].ended_ns or self.now()
            if stats is not None:
                began.served(x.attempts[-1], now)
            if x.stream or x.assemble:
                target.health.began(now)
            else:
                target.health.succeeded(now)
            route.budget.succeeded(now)
            return result

    async def pause(self, x: Exchange, until_ns: int, now: int) -> int:
        """Wait for a target. Returns the time after it."""
        await asyncio.sleep((until_ns - now) / 1e9)
        after = self.now()
        self.waited(x, after - now)
        return after

    def failed(self, target: Target, attempt: Attempt, began: Began | None, fault: Fault, now: int) -> None:
        """What is learned from an attempt that came to nothing."""
        attempt.ended_ns = now
        attempt.reason = attempt.reason or fault.reason
        attempt.status = attempt.status or fault.upstream_status
        if fault.kind == "not_found" and target.model is None:
            # The name is the client's own: that there is no such model says nothing of the target.
            target.health.released()
            if began is not None:
                began.dropped()
            return
        if began is not None:
            began.failed(fault, now)
        if fault.source == UPSTREAM:
            target.health.failed(fault, now)
        else:
            target.health.released()

    def gone(self, target: Target, attempt: Attempt, began: Began | None) -> None:
        """The client left an attempt in the middle."""
        attempt.ended_ns = self.now()
        attempt.reason = "client_gone"
        target.health.released()
        if began is not None:
            began.dropped()

    def waited(self, x: Exchange, ns: int) -> None:
        if not x.head_ns:  # what comes later is no part of the way to the head
            x.upstream_ns += ns

    async def ask_plain(self, x: Exchange, target: Target, attempt: Attempt) -> tuple[bytes, Call, Target]:
        """One attempt at a whole answer. Raises Fault."""
        request = self.request(x, target, attempt)
        body, call = await target.port.whole(request)
        status = attempt.status = call.status
        attempt.first_byte_ns = call.first_byte_ns
        if not 200 <= status < 300:
            raise refusal(status, target.port.scrub(body), call.media_type, call.headers, self._clock.wall_ns() / 1e9)
        media_type = call.media_type
        if media_type != b"application/json" and not is_json(media_type):
            raise Fault("content_type", "the upstream answered with something other than JSON")
        usage = None
        if (said := told(call, body, target.port.scrub)) is not None:
            finish, usage = said
            x.finish = finish or ""
            if finish is None and x.surface.name in _ANSWERS:
                # A provider that was cut off and closed its JSON all the same: what it says may be half of an answer. (An
                # empty reason is Snowflake's way to say that there is one.)
                raise Fault("bad_answer", "the upstream's answer has no finish reason", upstream_status=status)
        now = attempt.ended_ns = self.now()
        x.upstream_ns += now - attempt.started_ns
        x.first_byte_ns = call.first_byte_ns
        self.book(x, attempt, target, usage or estimate(len(x.body), len(body)))
        return body, call, target

    async def ask_stream(self, x: Exchange, target: Target, attempt: Attempt) -> tuple[Relay, Target]:
        """One attempt at a stream, up to its first content token. Raises Fault."""
        relay = await self.open_stream(x, target, attempt, None)
        x.first_byte_ns = x.first_byte_ns or attempt.first_byte_ns
        x.first_content_ns = x.first_content_ns or attempt.first_content_ns
        self.waited(x, self.now() - attempt.started_ns)
        return relay, target

    async def open_stream(
        self, x: Exchange, target: Target, attempt: Attempt, body: bytes | None, hold: bool = True
    ) -> Relay:
        """A stream that has committed, and been held back as long as the route says (`hold`). `body` stands in for the
        client's own. Raises Fault."""
        request = self.request(x, target, attempt, body)
        call = target.port.open_nowait(request) or await target.port.open(request)
        try:
            try:
                await call.wait_head()
            except Fault:
                if not call.stale:
                    raise
                call = await target.port.open(request)
                await call.wait_head()
            attempt.status = call.status
            attempt.first_byte_ns = call.first_byte_ns
            if not 200 <= call.status < 300:
                said = target.port.scrub(await call.wait_whole(MAX_ERROR_BYTES))
                raise refusal(call.status, said, call.media_type, call.headers, self._clock.wall_ns() / 1e9)
            if call.media_type != b"text/event-stream":
                raise Fault("content_type", "the upstream answered a stream request with something other than a stream")
            route = x.route
            assert route is not None
            strip = target.port.include_usage and not (x.asked_usage or x.assemble)
            policy = route.stream
            keep = policy.on_failure == "continue"
            reader = StreamReader(
                strip,
                lambda error: event_fault(error, target.port.scrub),
                keep,
                keep and policy.tool_calls == "hold",
            )
            relay = Relay(call, reader, self.now)
            await relay.commit()
            attempt.first_content_ns = reader.first_content_ns
            call.idle(route.idle_ms * 1_000_000, self.now())
            if policy.restart_window is not None and body is None and hold:
                await self.hold_back(x, relay)
        except BaseException:
            call.close()
            raise
        return relay

    async def hold_back(self, x: Exchange, relay: Relay) -> None:
        """Wait behind the first token for as much as the route's window says. Raises Fault."""
        assert x.route is not None
        window = x.route.stream.restart_window
        if window is not None:
            await relay.buffer(window.tokens, window.ms * 1_000_000)

    def request(self, x: Exchange, target: Target, attempt: Attempt, body: bytes | None = None) -> Request:
        """What goes upstream: the client's own bytes, with the target's model name and what the route sets put in."""
        route = x.route
        assert route is not None
        model = target.model_json
        if model is None and route.strip_prefix:
            model = msgspec.json.encode(x.own_model)
        stream = x.stream or x.assemble
        inject = stream and target.port.include_usage and not x.asked_usage
        sets = route.sets + _STREAM if x.assemble else route.sets
        if body is None:
            body, spans = x.body, x.spans
        else:
            spans = self._reader.scan(body)
        pieces, length = self._reader.onward(body, spans, model, sets, inject)
        attempt.started_ns = now = self.now()
        first_ms = (target.ttft_ms if stream else target.plain_ms) or patience_ms(
            self._catalog.find(x.own_model, target.provider), stream
        )
        return Request(
            x.surface.upstream_path,
            stream,
            pieces,
            length,
            x.forward,
            now,
            now + first_ms * 1_000_000,
            x.deadline_ns,
            route.connect_ms,
            route.idle_ms * 1_000_000,
        )

    # ---- account

    def book(self, x: Exchange, attempt: Attempt, target: Target, usage: Usage) -> None:
        """Tokens and cost of one attempt, and into the sum of the request."""
        attempt.usage = usage
        price = target.price
        if price is None and target.model is None:
            model = self._catalog.find(x.own_model, target.provider)
            price = model.price if model is not None else None
        if price is not None:
            attempt.cost_nanos = cost_nanos(usage, price)
            x.cost_nanos += attempt.cost_nanos
        else:
            attempt.priced = False
        x.usage = usage if x.usage is None else x.usage.plus(usage)
        if target.stats is not None and not usage.estimated:
            span_ns = attempt.ended_ns - attempt.first_content_ns if attempt.first_content_ns else 0
            target.stats.tokens(len(x.body), usage.prompt, usage.completion, span_ns, attempt.ended_ns)

    def book_stream(self, x: Exchange, attempt: Attempt, target: Target, reader: StreamReader) -> None:
        attempt.ended_ns = self.now()
        x.finish = reader.finish
        x.chunks += reader.chunks
        self.book(x, attempt, target, reader.usage or estimate(len(x.body), reader.content_bytes - 2 * reader.chunks))
