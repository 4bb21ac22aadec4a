"""The way of a request, top to bottom:

    ingress -> admit -> guard -> cache -> route -> upstream -> stream -> account -> telemetry

A stage is a plain function and returns None to carry on or a `Reply` to answer now; it is async only where it may wait.
A failure is a `Fault`. However a request ends, also by cancellation, it passes once through `settle`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Protocol

import msgspec

from .account.cost import cost_nanos, estimate, usd
from .admit.keys import Keyring
from .catalog import Catalog, patience_ms
from .clock import Clock
from .errors import TABLE, UPSTREAM, Fault, error_body
from .exchange import Attempt, Exchange, Headers, Reply, Target, Usage
from .marks import Marks
from .route.attempts import Attempts, Wait
from .route.stage import Routes
from .stream.reader import StreamReader
from .stream.relay import Relay
from .upstream.attempt import MAX_ERROR_BYTES, event_fault, is_json, passed_headers, refusal
from .upstream.call import Call, Request
from .wire.answer import read_answer
from .wire.headers import TO_CLIENT
from .wire.request import RequestReader

JSON_HEADER = (b"content-type", b"application/json")
STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front of us would hold chunks back
]
NO_RETRY = (b"x-should-retry", b"false")


class Caller(Protocol):
    """The client's side of one exchange, as `ingress` gives it."""

    early: bool  # the response head went out before the commit, because the wait was long

    @property
    def relay_to(self) -> Any: ...
    async def read_body(self, most: int) -> bytes: ...
    async def start(self, status: int, headers: Headers) -> None: ...
    async def reply(self, status: int, headers: Headers, body: bytes) -> None: ...
    async def send(self, data: bytes, more: bool) -> None: ...
    def push(self, data: bytes) -> bool: ...
    def hold(self, headers: Headers) -> None: ...
    def release(self) -> Awaitable[None] | None: ...


class Flow:
    """One config's rooms, put together by app.py. A request keeps the flow it began with."""

    def __init__(
        self,
        *,
        version: int,
        keyring: Keyring,
        routes: Routes,
        reader: RequestReader,
        catalog: Catalog,
        clock: Clock,
        rng: Random,
        settled: Callable[[Exchange], None],
        body_limit: int,
    ) -> None:
        self.version = version
        self.keyring = keyring
        self.routes = routes
        self._reader = reader
        self._catalog = catalog
        self._clock = clock
        self._now = clock.now_ns
        self._rng = rng
        self._settled = settled
        self._body_limit = body_limit
        self.marks = Marks(version, clock.now_ns)

    # ---- the line ----------------------------------------------------------------------------------------------

    async def handle(self, x: Exchange, key: bytes | None, caller: Caller) -> None:
        """Serve one request of a model surface. Never raises, except for cancellation from outside."""
        try:
            self.admit(x, key)
            x.body = await caller.read_body(self._body_limit)
            self.read(x)
            self.route(x)
            if x.stream:
                await self.stream(x, caller)
            else:
                await self.plain(x, caller)
        except Fault as fault:
            x.fault = fault
            await self.refuse(x, fault, caller)
        except asyncio.CancelledError:
            x.status = 0  # the client left: also where a stream had begun under 200, it did not get its end
            raise
        finally:
            self.settle(x)

    def admit(self, x: Exchange, key: bytes | None) -> None:
        """Who is asking. Before a byte of the body is read."""
        x.principal = self.keyring.admit(key)
        x.admitted_ns = self._now()

    def read(self, x: Exchange) -> None:
        """The few fields of the body that are acted on."""
        body = x.body
        reader = self._reader
        x.spans = spans = reader.scan(body)
        x.model = reader.model(body, spans)
        surface = x.surface
        for name in surface.required:
            reader.require(body, spans, name)
        if surface.can_stream and reader.stream(body, spans):
            x.stream = True
            x.asked_usage = reader.asked_usage(body, spans)
        x.parsed_ns = self._now()

    def route(self, x: Exchange) -> None:
        """Which route, and by when it must be over."""
        x.route = route = self.routes.find(x)
        if len(x.body) > route.max_body_bytes:
            raise Fault("too_large", f"the request body is over this route's limit of {route.max_body_bytes} bytes")
        total_ms = min(route.total_ms, x.timeout_ms) if x.timeout_ms else route.total_ms
        x.deadline_ns = x.started_ns + total_ms * 1_000_000
        x.routed_ns = self._now()

    async def plain(self, x: Exchange, caller: Caller) -> None:
        """A whole answer at once."""
        body, call, target = await self.attempts(x, self.ask_plain)
        headers: Headers = [(b"content-type", call.media_type or b"application/json")]
        if call.encoding:
            headers.append((b"content-encoding", call.encoding))
        headers.append((b"content-length", b"%d" % len(body)))
        if call.headers:
            headers += passed_headers(call.headers, TO_CLIENT)
        headers += self.marks.headers(x, target)
        if x.attempts[-1].priced:  # no figure says less than a wrong one
            headers.append((b"x-turnout-cost-usd", usd(x.cost_nanos).encode()))
        x.status = call.status
        await self.reply(x, Reply(call.status, headers, body), caller)

    async def stream(self, x: Exchange, caller: Caller) -> None:
        """A stream: nothing is shown before the first content token, so that until then any target may serve it."""
        relay: Relay
        caller.hold(STREAM_HEADERS + self.marks.early(x))
        relay, target = await self.attempts(x, self.ask_stream)
        attempt = x.attempts[-1]
        try:
            if (beat := caller.release()) is not None:
                await beat
            x.committed = True
            x.status = 200
            if caller.early:
                x.bytes_out += len(note := self.marks.note(x, target))
                await caller.send(note, True)
            else:
                x.head_ns = self._now()
                await caller.start(
                    200, STREAM_HEADERS + passed_headers(relay.call.headers, TO_CLIENT) + self.marks.headers(x, target)
                )
            fault = await relay.run(x, caller)
        finally:
            relay.close()
            self.book_stream(x, attempt, target, relay.reader)
        if fault is None:
            await caller.send(self.marks.closing(x, target) if x.metadata else b"", False)
            return
        x.fault = fault
        attempt.reason = fault.reason
        target.health.failed(fault, self._now())
        await self.terminate(x, caller, fault)

    # ---- upstream ----------------------------------------------------------------------------------------------

    async def attempts(self, x: Exchange, ask: Callable[[Exchange, Target, Attempt], Awaitable[Any]]) -> Any:
        """Try targets until one serves, as route/attempts.py decides. Raises the Fault that the client is told."""
        route = x.route
        assert route is not None
        now = self._now()
        course = Attempts(self.routes.rank(route), route.retries_max, route.budget, x.deadline_ns, self._rng)
        while True:
            step = course.next(now)
            if step is None:
                raise course.verdict(now)
            if isinstance(step, Wait):
                await asyncio.sleep((step.until_ns - now) / 1e9)
                before, now = now, self._now()
                x.upstream_ns += now - before
                continue
            target = course.targets[step.index]
            attempt = Attempt(target.provider, target.account, target.model or x.own_model, step.cause, now)
            x.attempts.append(attempt)
            try:
                result = await ask(x, target, attempt)
            except Fault as fault:
                now = attempt.ended_ns = self._now()
                x.upstream_ns += now - attempt.started_ns
                attempt.reason = fault.reason
                attempt.status = attempt.status or fault.upstream_status
                if fault.source == UPSTREAM:
                    target.health.failed(fault, now)
                else:
                    target.health.released()
                course.failed(step.index, fault, now)
                continue
            except BaseException:
                attempt.ended_ns = self._now()
                attempt.reason = "client_gone"
                target.health.released()
                raise
            target.health.succeeded()
            route.budget.succeeded(now)
            return result

    async def ask_plain(self, x: Exchange, target: Target, attempt: Attempt) -> tuple[bytes, Call, Target]:
        """One attempt at a whole answer. Raises Fault."""
        request = self.request(x, target, attempt)
        call = target.port.open_nowait(request) or await target.port.open(request)
        try:
            try:
                body = await call.wait_whole()
            except Fault:
                if not call.stale:
                    raise
                call = await target.port.open(request)
                body = await call.wait_whole()
        except BaseException:
            call.close()
            raise
        status = attempt.status = call.status
        attempt.first_byte_ns = call.first_byte_ns
        if not 200 <= status < 300:
            raise refusal(status, target.port.scrub(body), call.media_type, call.headers, self._clock.wall_ns() / 1e9)
        if not is_json(call.media_type):
            raise Fault("content_type", "the upstream answered with something other than JSON")
        usage = self.read_answer(x, target, call, body)
        now = attempt.ended_ns = self._now()
        x.upstream_ns += now - attempt.started_ns
        x.first_byte_ns = call.first_byte_ns
        self.book(x, attempt, target, usage or estimate(len(x.body), len(body)))
        return body, call, target

    def read_answer(self, x: Exchange, target: Target, call: Call, body: bytes) -> Usage | None:
        """Usage and finish reason of a whole answer. Raises Fault for half a body or an error under status 200."""
        if call.encoding not in (b"", b"identity"):
            return None
        try:
            x.finish, error, usage = read_answer(body)
        except ValueError:
            raise Fault("bad_answer", "the upstream's answer is not valid JSON", upstream_status=call.status) from None
        if error:
            raise event_fault(msgspec.Raw(error), target.port.scrub)
        return usage

    async def ask_stream(self, x: Exchange, target: Target, attempt: Attempt) -> tuple[Relay, Target]:
        """One attempt at a stream, up to its first content token. Raises Fault."""
        request = self.request(x, target, attempt)
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
                body = target.port.scrub(await call.wait_whole(MAX_ERROR_BYTES))
                raise refusal(call.status, body, call.media_type, call.headers, self._clock.wall_ns() / 1e9)
            if call.media_type != b"text/event-stream":
                raise Fault("content_type", "the upstream answered a stream request with something other than a stream")
            strip = target.port.include_usage and not x.asked_usage
            relay = Relay(call, StreamReader(strip, lambda error: event_fault(error, target.port.scrub)), self._now)
            await relay.commit()
        except BaseException:
            call.close()
            raise
        now = self._now()
        x.upstream_ns += now - attempt.started_ns
        x.first_byte_ns = call.first_byte_ns
        x.first_content_ns = attempt.first_content_ns = relay.reader.first_content_ns
        assert x.route is not None
        call.idle(x.route.idle_ms * 1_000_000, now)
        return relay, target

    def request(self, x: Exchange, target: Target, attempt: Attempt) -> Request:
        """What goes upstream: the client's own bytes, with the target's model name and what the route sets put in."""
        route = x.route
        assert route is not None
        model = target.model_json
        if model is None and route.strip_prefix:
            model = msgspec.json.encode(x.own_model)
        stream = x.stream
        inject = stream and target.port.include_usage and not x.asked_usage
        pieces, length = self._reader.onward(x.body, x.spans, model, route.sets, inject)
        attempt.started_ns = now = self._now()
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

    # ---- account -----------------------------------------------------------------------------------------------

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

    def book_stream(self, x: Exchange, attempt: Attempt, target: Target, reader: StreamReader) -> None:
        attempt.ended_ns = self._now()
        x.finish = reader.finish
        x.chunks = reader.chunks
        self.book(x, attempt, target, reader.usage or estimate(len(x.body), reader.content_bytes))

    # ---- answers -----------------------------------------------------------------------------------------------

    async def reply(self, x: Exchange, reply: Reply, caller: Caller) -> None:
        x.committed = True
        x.bytes_out = len(reply.body)
        x.head_ns = x.head_ns or self._now()
        await caller.reply(reply.status, reply.headers, reply.body)

    async def refuse(self, x: Exchange, fault: Fault, caller: Caller) -> None:
        """The answer to a fault: a status and an OpenAI-shaped body, or in-band where the head is already out."""
        if (beat := caller.release()) is not None:
            await beat
        if caller.early:
            x.status = 200
            await self.terminate(x, caller, fault)
            return
        x.status = fault.status
        body = fault.to_body()
        headers: Headers = [JSON_HEADER, (b"content-length", b"%d" % len(body))]
        headers += self.marks.headers(x, None)
        headers += fault.headers
        if fault.retry_after_s is not None and fault.status in (429, 503):
            headers.append((b"retry-after", b"%d" % max(1, round(fault.retry_after_s))))
        if x.attempts and fault.source != TABLE["refused"].source:
            headers.append(NO_RETRY)  # we have tried everything: a client that tries on multiplies the attempts
        if fault.kind == "no_key" or fault.kind == "bad_key":
            headers.append((b"www-authenticate", b"Bearer"))
        await self.reply(x, Reply(x.status, headers, body), caller)

    async def terminate(self, x: Exchange, caller: Caller, fault: Fault) -> None:
        """End a stream that cannot go on so that nobody takes it for complete: an error event, then no clean end."""
        code = "upstream_stream_interrupted" if x.first_content_ns else fault.code
        event = b"data: " + error_body(fault.message, TABLE[fault.kind].type, fault.param, code) + b"\n\n"
        x.bytes_out += len(event)
        await caller.send(event, True)
        # No closing `more_body: False`: the servers then end the connection without the final zero chunk.

    # ---- the end -----------------------------------------------------------------------------------------------

    def settle(self, x: Exchange) -> None:
        """Runs once for every exchange, however it ended."""
        if x.settled:
            return
        x.settled = True
        x.ended_ns = self._now()
        for attempt in x.attempts:
            if not attempt.ended_ns:
                attempt.ended_ns = x.ended_ns
        if not x.status:
            x.status = 499
            x.fault = x.fault or Fault("client_gone", "the client closed the connection")
            if x.attempts and not x.attempts[-1].reason and x.attempts[-1].usage is None:
                x.attempts[-1].reason = "client_gone"
        self._settled(x)
