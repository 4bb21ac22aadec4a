"""Upstream calls on routes with a cache: made in a task of their own, written into a `Flight`, read by whoever asks the
same, and kept behind their end.

The request that began a call reads it like any other. So its client's leaving ends nothing for those who joined, and what
it cost is booked when it is over. Between workers and hosts a lease says who asks; the others wait for the answer, and ask
for themselves when there is none.
"""

import asyncio
from random import Random
from typing import Any

import msgspec

from .account.cost import usd
from .cache.entry import Entry
from .cache.flight import Flight, Flights, Reader
from .cache.memory import Memory
from .cache.needs import Caller, Line, Lookup, Meter
from .cache.policy import Policy
from .cache.pouring import Pouring, kind_of
from .cache.sound import is_sound, usage_json
from .cache.tier import HANDED_MS, MOST_BYTES, NOTHING, Lease, Tier, pack
from .clock import Clock
from .elsewhere import OWN_HEADERS, SHARED, Elsewhere
from .errors import Fault
from .exchange import Exchange, Headers, Saved, Usage
from .marks import Marks
from .wire.assemble import Assembly

NEAR, MISS = "hit-semantic", "miss"
# Faults of the request that made the call, not of what it asked for: whoever waited with it asks for itself.
_OWN_FAULTS = frozenset(("client_gone", "total_timeout", "internal", "draining"))
_LOOK = 64 * 1024  # bytes of a stream put together without giving the loop a turn: about 1 ms


class Joining:
    """One config's. `memory`, `flights` and `tier` outlive it."""

    def __init__(
        self,
        *,
        line: Line,
        marks: Marks,
        stream_headers: Headers,
        memory: Memory,
        flights: Flights,
        tier: Tier | None,
        clock: Clock,
        rng: Random,
        meter: Meter,
        lookup: Lookup | None,
    ) -> None:
        self._line = line
        self._marks = marks
        self._stream_headers = stream_headers
        self._memory = memory
        self.flights = flights
        self._tier = tier
        self.alone = tier is None  # nobody else shares what this worker has
        self._clock = clock
        self._now = clock.now_ns
        self._rng = rng
        self._lookup = lookup
        self._elsewhere = Elsewhere(
            marks=marks,
            stream_headers=stream_headers,
            memory=memory,
            tier=tier,
            clock=clock,
            meter=meter,
            outcome=self.outcome,
            saved=self.saved,
        )
        self.fetch = self._elsewhere.fetch
        self._count = meter.count
        self._time = meter.time

    def outcome(self, x: Exchange) -> None:
        assert x.route is not None and x.principal is not None
        outcome, _, reason = x.cache.partition(";")
        self._count("turnout_cache_requests_total", (x.route.name, x.principal.tenant, outcome))
        if outcome == "bypass":
            self._count("turnout_cache_bypasses_total", (x.route.name, reason))

    def saved(self, x: Exchange) -> None:
        if x.saved is not None and x.route is not None:
            self._count("turnout_cache_saved_usd_total", (x.route.name,), x.saved.cost_nanos / 1e9)

    # ---- a shared call

    def begin(
        self, x: Exchange, policy: Policy, digest: bytes, key: object, shared: bool, pinned: bool = False
    ) -> Flight:
        flight = self.flights.begin(key, shared)
        flight.pinned = pinned
        flight.leader = x
        flight.task = asyncio.get_running_loop().create_task(self._run(flight, x, policy, digest))
        return flight

    def ask_again(self, x: Exchange, policy: Policy, digest: bytes, why: str, asked: Any) -> None:
        """Ask upstream what this request asked, for nobody in particular: a stale answer anew, or to check one that was
        given for another question (`asked`)."""
        key = (digest, x.stream, x.asked_usage)
        if self.flights.find(key) is not None:
            return
        assert x.route is not None
        now = self._now()
        again = msgspec.structs.replace(
            x, id=f"{x.id}-{why}", started_ns=now, deadline_ns=now + x.route.total_ms * 1_000_000, cache=MISS,
            saved=None, finish="", attempts=[], cuts=[], trace=None, first_content_ns=0, status=0, metadata=False,
        )  # fmt: skip
        # What is checked has to be asked: no other's answer will do.
        flight = self.begin(again, policy, digest, key, policy.shares and asked is None, pinned=True)
        flight.left = True
        flight.asked = asked

    async def _run(self, flight: Flight, x: Exchange, policy: Policy, digest: bytes) -> None:
        """The call itself, or another worker's answer in its place."""
        fault: Fault | None = None
        lease: Lease | None = None
        pouring: Pouring | None = None
        had = False
        try:
            if flight.open and self._tier is not None and self._tier.hopeful:
                lease = Lease(self._tier, policy.tag(x), digest, lambda: flight.followers)
                had = await self._elsewhere.look(flight, x, policy, lease)
                if not had and lease.mine and x.stream and self._tier.live is not None:
                    pouring = Pouring(self._tier.live, lease.key, kind_of(x), flight)
            if not had and flight.status:
                await self._line.go_on(x, flight, flight.log)
            elif not had:
                if not flight.pinned:
                    self.outcome(x)
                await self._line.answer(x, flight)
            fault = x.fault
        except Fault as met:
            fault = met
        except asyncio.CancelledError:
            fault = Fault("client_gone", "the client closed the connection")
            if self.flights.closed:
                fault = Fault("draining", "the gateway is shutting down")
        except BaseException:
            fault = Fault("internal", "the shared call ended unexpectedly")
            raise
        finally:
            flight.end(fault)
            if flight.left:  # its own client did not wait for this: then nobody else settles it
                x.settled = False
                if flight.pinned:
                    x.fault, x.status = fault, fault.status if fault is not None else 200
                else:
                    x.status = 0
                self._line.settle(x)
            if lease is not None:
                lease.done()
        if pouring is not None:
            await pouring.close()
        if not had:
            await self.keep(flight, x, policy, digest, lease, fault)

    async def follow(self, x: Exchange, caller: Caller, flight: Flight) -> bool:
        """Read what another asks for. False: that came to nothing for reasons of its own."""
        began = self._now()
        reader = flight.join()
        flight.followers += 1
        x.cache = SHARED
        try:
            await self.read(x, caller, flight, reader, own=False)
        except Fault as fault:
            x.upstream_ns += self._now() - began
            if fault.kind in _OWN_FAULTS and not x.committed:
                return False
            self.outcome(x)
            raise
        self._count("turnout_cache_followers_total", (x.route.name if x.route else "",))
        self.outcome(x)
        leader: Exchange = flight.leader
        last = leader.attempts[-1] if leader.attempts else None
        if x.fault is None:
            x.finish = leader.finish
            x.saved = Saved(last.provider, last.model, leader.cost_nanos) if last is not None else leader.saved
            self.saved(x)
        return True

    async def read(self, x: Exchange, caller: Caller, flight: Flight, reader: Reader, own: bool) -> None:
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
            headers = [pair for pair in flight.headers if own or pair[0] not in OWN_HEADERS]
            if not own:
                x.upstream_ns += self._now() - began
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
            await caller.send(self._marks.late(headers), True)
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

    async def keep(
        self, flight: Flight, x: Exchange, policy: Policy, digest: bytes, lease: Lease | None, fault: Fault | None
    ) -> None:
        """Keep the answer, and hand it to those who wait for it elsewhere."""
        entry = None
        try:
            if fault is None and (policy.exact is not None or lease is not None):
                entry = await self._entry(flight, x, policy, digest)
            if entry is not None and policy.exact is not None:
                began = self._now()
                kept = self._memory.put(entry, began)
                self._time("turnout_cache_backend_seconds", ("memory", "put"), (self._now() - began) / 1e9)
                self._count("turnout_cache_stores_total", (entry.route, "kept" if kept else "too_large"))
                asked = flight.asked
                if asked is not None and self._lookup is not None and self._lookup.learn(asked, entry):
                    self.ask_again(x, policy, digest, "recheck", asked)
        finally:
            tier = self._tier
            if tier is not None and tier.hopeful and (lease is not None or entry is not None):
                now = self._now()
                lease = lease or Lease(tier, policy.tag(x), digest)
                if entry is not None and len(entry.body) <= MOST_BYTES:
                    life_ms = (entry.dead_ns - now) // 1_000_000 if policy.exact is not None else HANDED_MS
                    await lease.hand_on(pack(entry, now, self._clock.wall_ns()), max(1, life_ms))
                    self._time("turnout_cache_backend_seconds", (tier.name, "put"), (self._now() - now) / 1e9)
                elif lease.mine:
                    await lease.hand_on(NOTHING, 20)
            if lease is not None:
                await lease.release()

    async def _entry(self, flight: Flight, x: Exchange, policy: Policy, digest: bytes) -> Entry | None:
        """The answer as it is kept; None where it is not to be."""
        exact = policy.exact
        last = x.attempts[-1] if x.attempts else None
        assert x.route is not None and x.principal is not None
        # An answer that was joined from two, or that a fallback gave, is not what this request is answered with.
        if last is None or x.cuts or last.model != x.wanted or flight.status != 200:
            return None
        body = flight.body if not x.stream else await self._gather(flight, x)
        most = exact.max_kb * 1024 if exact is not None else MOST_BYTES
        if body is None or len(body) > most or not is_sound(body, flight.headers, x.surface.name):
            return None
        now = self._now()
        ttl_s, stale_s = (
            (exact.ttl_s * (1 - exact.jitter * self._rng.random()), exact.stale_s) if exact else (HANDED_MS / 1000, 0)
        )
        fresh_ns = now + int(ttl_s * 1e9)
        usage = x.usage or Usage()
        tags = x.principal.tags
        return Entry(  # in the order of its fields: names take as long again
            digest,
            body,
            x.principal.tenant,
            x.route.name,
            x.model,
            x.principal.name,
            ",".join([*tags, *filter(None, map(str.strip, x.tags.split(",")))]) if tags or x.tags else "",
            last.provider,
            last.model,
            x.finish,
            usage.prompt,
            usage.completion,
            x.cost_nanos,
            now,
            fresh_ns,
            fresh_ns + int(stale_s * 1e9),
        )

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
