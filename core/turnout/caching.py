"""The stage between finding a route and asking its targets, on routes that have a cache: a kept answer, another's call,
or a call of one's own that others may share.

An upstream call made here runs in a task of its own and writes into a `Flight`; the request that began it reads that
like any other. So its client's leaving ends nothing for those who joined, and what it cost is booked when it is over.
"""

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any, Protocol

import msgspec

from .account.cost import usd
from .cache.entry import Entry
from .cache.flight import Flight, Flights, Reader
from .cache.memory import Memory
from .cache.policy import Policy
from .cache.replay import as_stream
from .cache.sound import is_sound, usage_json
from .cache.wish import Wish, wish_of
from .clock import Clock
from .errors import Fault
from .exchange import Exchange, Headers, Reply, Saved, Usage
from .marks import Marks
from .wire.assemble import Assembly

HIT, STALE, SHARED, MISS = "hit-exact", "hit-exact;stale", "hit-exact;shared", "miss"
# Faults of the request that made the call, not of what it asked for: whoever waited with it asks for itself.
_OWN_FAULTS = frozenset(("client_gone", "total_timeout", "internal", "draining"))
# What each answer says of its own request.
_OWN_HEADERS = frozenset(
    b"x-turnout-" + name
    for name in (
        b"attempts",
        b"fallback",
        b"cache",
        b"overhead-us",
        b"cost-usd",
        b"config-version",
        b"route",
        b"cache-key",
    )
) | {b"x-request-id"}
_LOOK = 64 * 1024  # bytes of a stream put together without giving the loop a turn: about 1 ms


class Caller(Protocol):
    """The client's side, as `flow` has it."""

    early: bool

    async def start(self, status: int, headers: Headers) -> None: ...
    async def reply(self, status: int, headers: Headers, body: bytes) -> None: ...
    async def send(self, data: bytes, more: bool) -> None: ...
    def hold(self, headers: Headers) -> None: ...
    def release(self) -> Awaitable[None] | None: ...


class Line(Protocol):
    """What this stage needs of the flow it stands in."""

    def answer(self, x: Exchange, caller: Any) -> Awaitable[None]: ...
    async def reply(self, x: Exchange, reply: Reply, caller: Any) -> None: ...
    def settle(self, x: Exchange) -> None: ...


class Meter(Protocol):
    """telemetry.metrics.Metrics satisfies it."""

    def count(self, family: str, labels: tuple[str, ...], by: float = 1) -> None: ...
    def time(self, family: str, labels: tuple[str, ...], seconds: float) -> None: ...


class Caching:
    """One config's. `memory` and `flights` outlive it."""

    def __init__(
        self,
        *,
        line: Line,
        marks: Marks,
        stream_headers: Headers,
        memory: Memory,
        flights: Flights,
        clock: Clock,
        rng: Random,
        meter: Meter,
    ) -> None:
        self._line = line
        self._marks = marks
        self._stream_headers = stream_headers
        self._memory = memory
        self._flights = flights
        self._now = clock.now_ns
        self._rng = rng
        self._count = meter.count
        self._time = meter.time

    async def answered(self, x: Exchange, caller: Caller) -> bool:
        """Answer the request. False: it is none of the cache's business, and goes on as if there were none."""
        assert x.route is not None
        policy: Policy = x.route.cache
        wish = wish_of(x.headers)
        if why := policy.why_not(x) or ("" if wish.read or wish.write else wish.reason):
            x.cache = f"bypass;{why}"
            if wish.only:
                raise _not_cached()
            self._outcome(x)
            return False
        digest = policy.digest(x)
        x.cache_key = digest[:8].hex()
        if wish.read and policy.exact is not None:
            entry = self._find(digest, wish)
            if entry is not None and await self._give(x, caller, policy, entry):
                return True
        x.cache = MISS if wish.read else f"bypass;{wish.reason}"
        if wish.only:
            raise _not_cached()
        shared = policy.shares and wish.read and wish.write and not x.timeout_ms
        if not shared and not (policy.exact is not None and wish.write):
            self._outcome(x)
            return False
        key = (digest, x.stream, x.asked_usage)
        for _ in range(2):
            flight = self._flights.find(key) if shared else None
            if flight is None:
                break
            if await self._follow(x, caller, flight):
                return True
        x.cache = MISS if wish.read else x.cache
        self._outcome(x)
        flight = self._begin(x, policy, digest, key, shared)
        await self._read(x, caller, flight, flight.join(), own=True)
        return True

    def _outcome(self, x: Exchange) -> None:
        assert x.route is not None and x.principal is not None
        outcome, _, reason = x.cache.partition(";")
        self._count("turnout_cache_requests_total", (x.route.name, x.principal.tenant, outcome))
        if outcome == "bypass":
            self._count("turnout_cache_bypasses_total", (x.route.name, reason))

    # ---- a kept answer

    def _find(self, digest: bytes, wish: Wish) -> Entry | None:
        began = now = self._now()
        entry = self._memory.find(digest, now)
        # Who names an age means it: a stale answer is not what it asked for either.
        if entry is not None and wish.max_age_ns >= 0 and now > min(entry.stored_ns + wish.max_age_ns, entry.fresh_ns):
            entry = None
        self._time("turnout_cache_backend_seconds", ("memory", "get"), (self._now() - began) / 1e9)
        return entry

    async def _give(self, x: Exchange, caller: Caller, policy: Policy, entry: Entry) -> bool:
        now = self._now()
        chat = x.surface.name == "chat"
        body = entry.body
        headers: Headers
        if x.stream:
            try:
                body = as_stream(body, chat, x.asked_usage)
            except ValueError:
                self._memory.drop(entry)
                return False
            headers = list(self._stream_headers)
            x.first_content_ns = now
        else:
            headers = [(b"content-type", b"application/json")]
        self._memory.touch(entry)
        stale = now >= entry.fresh_ns
        x.cache = STALE if stale else HIT
        x.saved = Saved(entry.provider, entry.served_model, entry.cost_nanos)
        x.finish = entry.finish
        headers += self._marks.headers(x, None)
        headers += (
            (b"age", b"%d" % ((now - entry.stored_ns) // 1_000_000_000)),
            (b"x-turnout-provider", entry.provider.encode()),
            (b"x-turnout-model", entry.served_model.encode()),
        )
        if not x.stream:
            headers.append((b"x-turnout-cost-usd", usd(0).encode()))
        elif x.metadata:
            body += self._marks.closing(x, None)
        headers.append((b"content-length", b"%d" % len(body)))
        x.status = 200
        self._outcome(x)
        self._save(x)
        if stale:
            self._refresh(x, policy, entry.digest)
        await self._line.reply(x, Reply(200, headers, body), caller)
        return True

    def _save(self, x: Exchange) -> None:
        if x.saved is not None and x.route is not None:
            self._count("turnout_cache_saved_usd_total", (x.route.name,), x.saved.cost_nanos / 1e9)

    def _refresh(self, x: Exchange, policy: Policy, digest: bytes) -> None:
        """Ask for a stale answer anew, for nobody in particular."""
        key = (digest, x.stream, x.asked_usage)
        if self._flights.find(key) is not None:
            return
        assert x.route is not None
        now = self._now()
        again = msgspec.structs.replace(
            x, id=f"{x.id}-refresh", started_ns=now, deadline_ns=now + x.route.total_ms * 1_000_000, cache=MISS,
            saved=None, finish="", attempts=[], cuts=[], trace=None, first_content_ns=0, status=0, metadata=False,
        )  # fmt: skip
        flight = self._begin(again, policy, digest, key, policy.shares, pinned=True)
        flight.left = True

    # ---- a shared call

    def _begin(
        self, x: Exchange, policy: Policy, digest: bytes, key: object, shared: bool, pinned: bool = False
    ) -> Flight:
        flight = self._flights.begin(key, shared)
        flight.pinned = pinned
        flight.leader = x
        flight.task = asyncio.get_running_loop().create_task(self._run(flight, x, policy, digest))
        return flight

    async def _run(self, flight: Flight, x: Exchange, policy: Policy, digest: bytes) -> None:
        """The call itself."""
        fault: Fault | None = Fault("internal", "the shared call ended unexpectedly")
        try:
            await self._line.answer(x, flight)
            fault = x.fault
        except Fault as met:
            fault = met
        except asyncio.CancelledError:
            fault = Fault("client_gone", "the client closed the connection")
        finally:
            flight.end(fault)
            if flight.left:  # its own client did not wait for this: then nobody else settles it
                x.settled = False
                if flight.pinned:
                    x.fault, x.status = fault, fault.status if fault is not None else 200
                else:
                    x.status = 0
                self._line.settle(x)
        if fault is None and policy.exact is not None:
            await self._keep(flight, x, policy, digest)

    async def _follow(self, x: Exchange, caller: Caller, flight: Flight) -> bool:
        """Read what another asks for. False: that came to nothing for reasons of its own."""
        began = self._now()
        reader = flight.join()
        flight.followers += 1
        x.cache = SHARED
        try:
            await self._read(x, caller, flight, reader, own=False)
        except Fault as fault:
            x.upstream_ns += self._now() - began
            if fault.kind in _OWN_FAULTS and not x.committed:
                return False
            self._outcome(x)
            raise
        self._count("turnout_cache_followers_total", (x.route.name if x.route else "",))
        self._outcome(x)
        leader: Exchange = flight.leader
        last = leader.attempts[-1] if leader.attempts else None
        if x.fault is None and last is not None:
            x.finish = leader.finish
            x.saved = Saved(last.provider, last.model, leader.cost_nanos)
            self._save(x)
        return True

    async def _read(self, x: Exchange, caller: Caller, flight: Flight, reader: Reader, own: bool) -> None:
        """Hand on what a flight gives. Raises the Fault it ended with, where the client has nothing yet."""
        try:
            if x.stream:
                caller.hold(self._stream_headers + self._marks.early(x))
            began = self._now()
            while not flight.status and not flight.over:
                await flight.wait(reader)
            if x.stream and (beat := caller.release()) is not None:
                await beat
            if not flight.status:
                assert flight.fault is not None
                raise flight.fault.with_traceback(None)  # several raise it
            headers = flight.headers
            if not own:
                x.upstream_ns += self._now() - began
                headers = [pair for pair in headers if pair[0] not in _OWN_HEADERS]
                headers += self._marks.headers(x, None)
                x.head_ns = self._now()
                x.committed = True
            x.status = flight.status
            if flight.body is not None:
                if not own:
                    x.bytes_out = len(flight.body)
                    headers.append((b"x-turnout-cost-usd", usd(0).encode()))
                await caller.reply(flight.status, headers, flight.body)
                return
            await self._read_stream(x, caller, flight, reader, headers, own)
        except asyncio.CancelledError:
            if own and not flight.over:
                flight.left = x.settled = True  # `_run` settles it, when it knows what it cost
            raise
        finally:
            flight.leave(reader)

    async def _read_stream(
        self, x: Exchange, caller: Caller, flight: Flight, reader: Reader, headers: Headers, own: bool
    ) -> None:
        if caller.early:
            await caller.send(_note(headers), True)
        else:
            await caller.start(flight.status, headers)
        while True:
            if data := flight.take(reader):
                if not own:
                    x.bytes_out += len(data)
                    x.first_content_ns = x.first_content_ns or self._now()
                await caller.send(data, True)
            elif reader.slow:
                x.fault = Fault("interrupted", "this client read too slowly")
                await caller.send(b"data: " + x.fault.to_body() + b"\n\n", True)
                return
            elif flight.over:
                break
            else:
                await flight.wait(reader)
        if flight.fault is None:
            closing = flight.closing if own else self._marks.closing(x, None) if x.metadata else b""
            await caller.send(closing, False)
        elif not own:
            x.fault = flight.fault  # its event is among what was read

    # ---- keeping

    async def _keep(self, flight: Flight, x: Exchange, policy: Policy, digest: bytes) -> None:
        exact = policy.exact
        last = x.attempts[-1] if x.attempts else None
        assert exact is not None and x.route is not None and x.principal is not None
        # An answer that was joined from two, or that a fallback gave, is not what this request is answered with.
        if last is None or x.cuts or last.model != x.wanted or flight.status != 200:
            return
        body = flight.body if not x.stream else await self._gather(flight, x)
        if body is None or len(body) > exact.max_kb * 1024 or not is_sound(body, flight.headers, x.surface.name):
            return
        began = now = self._now()
        fresh_ns = now + int(exact.ttl_s * (1 - exact.jitter * self._rng.random()) * 1e9)
        usage = x.usage or Usage()
        entry = Entry(
            digest=digest,
            body=body,
            tenant=x.principal.tenant,
            route=x.route.name,
            model=x.model,
            key=x.principal.name,
            tags=",".join([*x.principal.tags, *filter(None, map(str.strip, x.tags.split(",")))]),
            provider=last.provider,
            served_model=last.model,
            finish=x.finish,
            prompt=usage.prompt,
            completion=usage.completion,
            cost_nanos=x.cost_nanos,
            stored_ns=now,
            fresh_ns=fresh_ns,
            dead_ns=fresh_ns + int(exact.stale_s * 1e9),
        )
        kept = self._memory.put(entry, now)
        self._time("turnout_cache_backend_seconds", ("memory", "put"), (self._now() - began) / 1e9)
        self._count("turnout_cache_stores_total", (x.route.name, "kept" if kept else "too_large"))

    async def _gather(self, flight: Flight, x: Exchange) -> bytes | None:
        """A stream's answer as a plain one; None where it is not all there."""
        gathered = Assembly()
        chat = x.surface.name == "chat"
        log = flight.log
        if log is None:
            return None
        size = 0
        for piece in log:
            gathered.push(piece)
            size += len(piece)
            if size > _LOOK:
                size = 0
                gathered.read(chat)
                await asyncio.sleep(0)
        usage = x.usage
        return gathered.answer(chat, None if usage is None or usage.estimated else usage_json(usage))


def _note(headers: Headers) -> bytes:
    """Headers that came too late for the head, as a comment."""
    pairs = [name + b"=" + value for name, value in headers if name.startswith(b"x-turnout-")]
    return b": turnout " + b" ".join(pairs).replace(b"x-turnout-", b"") + b"\n\n"


def _not_cached() -> Fault:
    return Fault("not_cached", "nothing is kept that answers this request, and 'only-if-cached' forbids to ask for it")
