"""What other workers and hosts have of an answer: kept, or under way. For the one request that asks for all who wait with
it on this worker (joining.py).

A lease says who asks upstream. Whoever does not have it waits for the answer; a stream of another worker of this host is
read while it comes (cache/pouring.py). When its worker dies the lease is the next one's, who goes on behind what was shown (takeover.py),
and the others follow him.
"""

import asyncio
from collections.abc import Callable

from .account.cost import usd
from .cache.entry import Entry
from .cache.flight import PIECE, Flight
from .cache.memory import Memory
from .cache.needs import Meter
from .cache.policy import Policy
from .cache.pouring import Tail, ended, kind_of
from .cache.replay import as_stream
from .cache.tier import LEASE_MS, NOTHING, WAIT_MS, Lease, Tier, answer_key, unpack
from .clock import Clock
from .exchange import Exchange, Headers, Saved
from .marks import Marks

HIT, SHARED = "hit-exact", "hit-exact;shared"
# After the answer was handed on the stream's own end is near; and who goes on with one has its beginning.
STREAM_SAYS_S = 1.0
# What each answer says of its own request.
OWN_HEADERS = frozenset(
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


class Elsewhere:
    """One config's. `memory` and `tier` outlive it."""

    def __init__(
        self,
        *,
        marks: Marks,
        stream_headers: Headers,
        memory: Memory,
        tier: Tier | None,
        clock: Clock,
        meter: Meter,
        outcome: Callable[[Exchange], None],
        saved: Callable[[Exchange], None],
    ) -> None:
        self._marks = marks
        self._stream_headers = stream_headers
        self._memory = memory
        self.tier = tier
        self._clock = clock
        self._now = clock.now_ns
        self._count = meter.count
        self._time = meter.time
        self._outcome = outcome
        self._saved = saved

    async def look(self, flight: Flight, x: Exchange, policy: Policy, lease: Lease) -> bool:
        """Whether the answer came from elsewhere: then the flight has it. False: it is ours to ask; where the flight has
        begun, to go on with."""
        began = self._now()
        waited = useless = False
        tail = self._tail(flight, x, lease, began)
        while True:
            mine, value = await self._take(lease, policy.exact is not None and not useless)
            if mine and value is None and (waited or lease.late):
                # Who had it before us has most likely answered: look twice.
                value = await lease.tier.get(lease.answer)
            entry = None if flight.status else self._fresh(value, lease, x)
            if entry is not None:
                x.cache = HIT
                lease.done()
                await lease.release()
                break
            if mine is False and value is not None and not useless and not flight.status:
                useless = True  # it is stale, or garbage: then it is no reason to leave the lease
                continue
            if mine is not False:
                if mine and policy.exact is None:
                    await lease.tier.delete(lease.answer)  # what was handed on before is nobody's any more
                break
            value, waited = await self._wait(tail, lease), True
            if tail is not None and tail.begun:
                x.bytes_out = tail.had
                if tail.refused:
                    break
                if tail.end is not None:
                    ended(x, tail.end)
                    self._saved(x)
                    await flight.send(self._marks.closing(x, None) if x.metadata else b"", False)
                    return True
                continue
            entry = self._fresh(value, lease, x)
            if entry is not None:
                x.cache = SHARED
                self._count("turnout_cache_followers_total", (x.route.name if x.route else "",))
                break
            if self._now() > x.deadline_ns:
                break
            await asyncio.sleep(0.02 if value else 0.002)
        if not flight.status:
            x.upstream_ns += self._now() - began
        if entry is None:
            return False
        if policy.exact is not None:
            self._memory.put(entry, self._now())
        if not flight.pinned:
            self._outcome(x)
        await self._write(flight, x, entry)
        return True

    # ---- a stream under way

    def _tail(self, flight: Flight, x: Exchange, lease: Lease, began_ns: int) -> Tail | None:
        """Where this answer may be read while it comes; None: only what another could go on with may be shown before its end."""
        live = lease.tier.live
        if live is None or not x.stream or x.route is None or x.route.stream.on_failure != "continue":
            return None

        def begin(headers: Headers) -> Headers:
            x.cache = SHARED
            x.status, x.committed, x.head_ns = 200, True, self._now()
            x.first_content_ns = x.head_ns
            x.upstream_ns += x.head_ns - began_ns
            if not flight.pinned:
                self._outcome(x)
            self._count("turnout_cache_followers_total", (x.route.name if x.route else "",))
            return [pair for pair in headers if pair[0] not in OWN_HEADERS] + self._marks.headers(x, None)

        return Tail(live, lease.key, kind_of(x), flight, begin)

    async def _wait(self, tail: Tail | None, lease: Lease) -> bytes | None:
        """What was handed on, once it was; or until `tail` has come to an end."""
        if tail is None or tail.refused:
            return await lease.tier.wait(lease.answer, WAIT_MS)
        begun = tail.begun
        reading = asyncio.ensure_future(tail.run())
        waiting = asyncio.ensure_future(lease.tier.wait(lease.answer, WAIT_MS))
        try:
            if begun:
                await asyncio.wait((reading,), timeout=STREAM_SAYS_S)
                tail.refused = tail.refused or not tail.heard  # who asks now asks for something else
                if tail.heard:
                    await self._until_silent(tail, reading)
                return None
            await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
            if tail.begun:
                # A stream may take longer than anybody waits for an answer; then only its own end counts.
                if waiting.done() and waiting.result():
                    await asyncio.wait((reading,), timeout=STREAM_SAYS_S)
                else:
                    await self._until_silent(tail, reading)
                return None
            return await waiting if not reading.done() or tail.refused else None
        finally:
            for task in (reading, waiting):
                task.cancel()
            await asyncio.wait((reading, waiting))

    @staticmethod
    async def _until_silent(tail: Tail, reading: asyncio.Task[None]) -> None:
        """Until it is over, or nothing came for as long as a lease lasts: then it is looked who asks."""
        news = -1
        while not reading.done() and news != tail.news:
            news = tail.news
            await asyncio.wait((reading,), timeout=LEASE_MS / 1000)

    # ---- a whole answer

    async def _take(self, lease: Lease, look: bool) -> tuple[bool | None, bytes | None]:
        if not look:
            return await lease.take(False)
        began = self._now()
        taken = await lease.take(True)
        self._time("turnout_cache_backend_seconds", (lease.tier.name, "get"), (self._now() - began) / 1e9)
        return taken

    def _fresh(self, value: bytes | None, lease: Lease, x: Exchange) -> Entry | None:
        entry = self.read_shared(value, lease.digest, x) if value else None
        return entry if entry is not None and self._now() < entry.fresh_ns else None

    def read_shared(self, value: bytes, digest: bytes, x: Exchange) -> Entry | None:
        assert x.route is not None and x.principal is not None
        if value == NOTHING:
            return None
        tier, wall_ns = self.tier, self._clock.wall_ns()
        try:
            return unpack(value, digest, x.principal.tenant, x.route.name, self._now(), wall_ns, tier)
        except ValueError:
            self._count("turnout_cache_garbage_total", (tier.name if tier is not None else "",))
            return None

    async def fetch(self, x: Exchange, policy: Policy, digest: bytes) -> Entry | None:
        """What others keep, into our own memory too."""
        tier = self.tier
        if tier is None or not tier.up:
            return None
        began = self._now()
        value = await tier.get(answer_key(tier, policy.tag(x), digest))
        now = self._now()
        self._time("turnout_cache_backend_seconds", (tier.name, "get"), (now - began) / 1e9)
        entry = self.read_shared(value, digest, x) if value else None
        if entry is not None:
            self._memory.put(entry, now)
        return entry

    async def _write(self, flight: Flight, x: Exchange, entry: Entry) -> None:
        """Hand on another worker's answer as if it were that of a call."""
        x.saved = Saved(entry.provider, entry.served_model, entry.cost_nanos)
        x.finish = entry.finish
        x.status, x.committed, x.head_ns = 200, True, self._now()
        self._saved(x)
        names = [
            (b"age", b"%d" % ((x.head_ns - entry.stored_ns) // 1_000_000_000)),
            (b"x-turnout-provider", entry.provider.encode()),
            (b"x-turnout-model", entry.served_model.encode()),
        ]
        if not x.stream:
            headers = [(b"content-type", b"application/json"), *names, *self._marks.headers(x, None)]
            x.bytes_out = len(entry.body)
            await flight.reply(200, [*headers, (b"x-turnout-cost-usd", usd(0).encode())], entry.body)
            return
        body = as_stream(entry.body, x.surface.name == "chat", x.asked_usage)
        await flight.start(200, self._stream_headers + names + self._marks.headers(x, None))
        x.first_content_ns = x.head_ns
        x.bytes_out = len(body)
        for at in range(0, len(body), PIECE):
            await flight.send(body[at : at + PIECE], True)
        await flight.send(self._marks.closing(x, None) if x.metadata else b"", False)
