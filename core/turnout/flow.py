"""The way of a request, top to bottom:

    ingress -> admit -> guard -> cache -> route -> upstream -> stream -> account -> telemetry

The cache comes behind `route` in the code: only the route says whether there is one. A stage is a plain function and returns None to carry on or a `Reply` to answer now; it is async only where it may wait.
A failure is a `Fault`. However a request ends, also by cancellation, it passes once through `settle`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Protocol

from .account.cost import usd
from .admit.keys import Keyring
from .asking import Asking
from .cache.feedback import feedback_of
from .cache.needs import Meter
from .cache.shelf import Shelf
from .cache.tier import Tier
from .caching import Caching
from .catalog import Catalog
from .clock import Clock
from .errors import TABLE, Fault, error_body
from .exchange import Exchange, Headers, Reply, Route
from .hedging import hedged
from .joining import Joining
from .marks import Marks
from .route.stage import Routes
from .streaming import Passage, assemble
from .takeover import TakenOver
from .upstream.attempt import passed_headers
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
    stays: Callable[[], bool] | None  # asked when the client has left: whether the request goes on without it

    @property
    def task(self) -> Any: ...
    @property
    def relay_to(self) -> Any: ...
    def body_nowait(self, most: int) -> bytes | None: ...
    async def read_body(self, most: int) -> bytes: ...
    async def start(self, status: int, headers: Headers) -> None: ...
    # A whole answer. Its content-length is the caller's to say.
    def reply_nowait(self, status: int, headers: Headers, body: bytes) -> bool: ...
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
        shelf: Shelf,
        tier: Tier | None,
        lookup: Any,
        meter: Meter,
        heeds_headers: bool,
    ) -> None:
        self.version = version
        self.heeds_headers = heeds_headers
        self.keyring = keyring
        self.routes = routes
        self._reader = reader
        self._now = clock.now_ns
        self._asking = Asking(routes=routes, reader=reader, catalog=catalog, clock=clock, rng=rng)
        self._settled = settled
        self._body_limit = body_limit
        self.marks = marks = Marks(version, clock.now_ns)
        self.tier = tier
        joining = Joining(
            line=self,
            marks=marks,
            stream_headers=STREAM_HEADERS,
            memory=shelf.memory,
            flights=shelf.flights,
            tier=tier,
            clock=clock,
            rng=rng,
            meter=meter,
            lookup=lookup,
        )
        self.caching = Caching(
            line=self,
            marks=marks,
            stream_headers=STREAM_HEADERS,
            memory=shelf.memory,
            joining=joining,
            lookup=lookup,
            clock=clock,
        )
        self.lookup = lookup

    # ---- the line ----------------------------------------------------------------------------------------------

    async def handle(self, x: Exchange, key: bytes | None, caller: Caller) -> None:
        """Serve one request of a model surface. Never raises, except for cancellation from outside."""
        try:
            self.admit(x, key)
            body = caller.body_nowait(self._body_limit)
            x.body = await caller.read_body(self._body_limit) if body is None else body
            self.read(x)
            route = self.route(x)
            if route.cache is not None and await self.caching.answered(x, caller):
                return
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
        reader, surface = self._reader, x.surface
        x.spans, x.model, stream = reader.read(x.body, surface.required, surface.can_stream)
        if stream:
            x.stream = True
            x.asked_usage = reader.asked_usage(x.body, x.spans)
        x.parsed_ns = self._now()

    def route(self, x: Exchange) -> Route:
        """Which route, and by when it must be over."""
        x.route = route = self.routes.find(x)
        if route.assemble and not x.stream and x.surface.can_stream:  # a field is cheap to read and dear to set
            x.assemble = True
        if len(x.body) > route.max_body_bytes:
            raise Fault("too_large", f"the request body is over this route's limit of {route.max_body_bytes} bytes")
        total_ms = min(route.total_ms, x.timeout_ms) if x.timeout_ms else route.total_ms
        x.deadline_ns = x.started_ns + total_ms * 1_000_000
        x.routed_ns = self._now()
        return route

    def answer(self, x: Exchange, caller: Caller) -> Awaitable[None]:
        """The same, for a caller that the cache stands in for."""
        return self.stream(x, caller) if x.stream else self.plain(x, caller)

    async def plain(self, x: Exchange, caller: Caller) -> None:
        """A whole answer at once."""
        headers: Headers
        if x.assemble:
            body, relay, target = await assemble(self._asking, x)
            status, passed = relay.call.status, relay.call.headers
            headers = [JSON_HEADER]
        else:
            body, call, target = await self._asking.attempts(x, self._asking.ask_plain)
            status, passed = call.status, call.headers
            headers = [(b"content-type", call.media_type or b"application/json")]
            if call.encoding:
                headers.append((b"content-encoding", call.encoding))
        if passed:
            for name, value in passed:  # a list comprehension is a call
                if name in TO_CLIENT:
                    headers.append((name, value))
        x.head_ns = self._now()
        headers += self.marks.headers(x, target)
        if x.attempts[-1].priced:  # no figure says less than a wrong one
            headers.append((b"x-turnout-cost-usd", usd(x.cost_nanos).encode()))
        x.status = status
        if not self.replied(x, status, headers, body, caller):
            await caller.reply(status, headers, body)

    async def stream(self, x: Exchange, caller: Caller) -> None:
        """A stream: nothing is shown before the first content token, so that until then any target may serve it. After
        that streaming.py carries it to its end, on other targets if need be."""
        caller.hold(STREAM_HEADERS + self.marks.early(x))
        asking = self._asking
        assert x.route is not None
        if x.route.hedge is None:
            relay, target = await asking.attempts(x, asking.ask_stream)
        else:
            relay, target = await hedged(asking, x)
        passage = Passage(asking, x, caller, relay, target)
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
        except BaseException:
            passage.abandon()
            raise
        await self._carry(x, caller, passage)

    async def go_on(self, x: Exchange, caller: Caller, said: list[bytes] | None) -> None:
        """A stream that another worker began, with what its client has of it; None: that is not known any more."""
        if said is None:
            x.fault = Fault("interrupted", "the worker that asked for this has ended")
            await self.terminate(x, caller, x.fault)
            return
        await self._carry(x, caller, TakenOver(self._asking, x, caller, said))

    async def _carry(self, x: Exchange, caller: Caller, passage: Passage) -> None:
        fault = await passage.carry()
        if fault is None:
            await caller.send(self.marks.closing(x, passage.target) if x.metadata else b"", False)
            return
        x.fault = fault
        if fault.kind == "client_gone":
            x.status = 0
            return
        await self.terminate(x, caller, fault)

    def feedback(self, tenant: str, body: bytes) -> bool:
        """A user's word on an answer of the semantic cache. False: the entry is not known here. Raises Fault."""
        said = feedback_of(body)
        return self.lookup is not None and self.lookup.feedback(tenant, said.entry, said.verdict == "good")

    # ---- answers -----------------------------------------------------------------------------------------------

    def replied(self, x: Exchange, status: int, headers: Headers, body: bytes, caller: Caller) -> bool:
        """A whole answer, where the server takes it at once. False: `caller.reply` is to be awaited."""
        x.committed = True
        x.bytes_out = len(body)
        if not x.head_ns:
            x.head_ns = self._now()
        return caller.reply_nowait(status, headers, body)

    async def reply(self, x: Exchange, reply: Reply, caller: Caller) -> None:
        if not self.replied(x, reply.status, reply.headers, reply.body, caller):
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
        headers: Headers = [JSON_HEADER]
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
