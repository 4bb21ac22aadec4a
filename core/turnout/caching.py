"""The stage between finding a route and asking its targets, on routes that have a cache: a kept answer, another's call,
or a call of one's own that others may share (joining.py)."""

from typing import Any

from .account.cost import usd
from .cache.entry import Entry
from .cache.memory import Memory
from .cache.needs import Caller, Line, Lookup
from .cache.policy import Policy
from .cache.replay import as_stream
from .cache.wish import ANY, Wish, wish_of
from .clock import Clock
from .elsewhere import HIT
from .errors import Fault
from .exchange import Exchange, Headers, Saved
from .joining import MISS, NEAR, Joining
from .leading import Leading
from .marks import Marks

STALE = "hit-exact;stale"
NOTHING = (b"x-turnout-cost-usd", usd(0).encode())


class Caching:
    """One config's. `memory` outlives it."""

    def __init__(
        self,
        *,
        line: Line,
        marks: Marks,
        stream_headers: Headers,
        memory: Memory,
        joining: Joining,
        lookup: Lookup | None,
        clock: Clock,
    ) -> None:
        self._line = line
        self._marks = marks
        self._stream_headers = stream_headers
        self._memory = memory
        self._joining = joining
        self._lookup = lookup
        self._leading = Leading(line, joining)
        self._now = clock.now_ns

    async def answered(self, x: Exchange, caller: Caller) -> bool:
        """Answer the request. False: it is none of the cache's business, and goes on as if there were none."""
        assert x.route is not None
        policy: Policy = x.route.cache
        wish = wish_of(x.wishes) if x.wishes else ANY
        if why := policy.why_not(x) or ("" if wish.read or wish.write else wish.reason):
            x.cache = f"bypass;{why}"
            if wish.only:
                raise _not_cached()
            self._joining.outcome(x)
            return False
        digest = policy.digest(x)
        x.cache_key = digest[:8].hex()
        # Who has conditions of his own is not answered by what others wait for.
        shared = policy.shares and wish.read and wish.write and not (wish.only or wish.max_age_ns >= 0 or x.timeout_ms)
        if wish.read and policy.exact is not None:
            entry = self._meets(self._memory.find(digest, self._now()), wish)
            if entry is None and not shared:  # else the first of those who ask looks for all
                entry = self._meets(await self._joining.fetch(x, policy, digest), wish)
            if entry is not None and await self._give(x, caller, entry, HIT):
                if x.cache is STALE:
                    self._joining.ask_again(x, policy, digest, "refresh", None)
                return True
        key = (digest, x.stream, x.asked_usage)
        asked: Any = None
        if policy.questions is not None and self._lookup is not None:
            asked = self._lookup.ask(x, policy)
            # Who asks the very same as somebody just now has a better answer coming.
            alone = not shared or self._joining.flights.find(key) is None
            if asked is not None and alone and wish.read and not wish.exact:
                entry = self._meets(await self._lookup.answer(x, asked, wish.least), wish)
                if entry is not None and await self._give_near(x, caller, entry, asked):
                    if wish.write and self._lookup.wants_check(asked):
                        self._joining.ask_again(x, policy, digest, "check", asked)
                    return True
        x.cache = MISS if wish.read else f"bypass;{wish.reason}"
        if wish.only:
            raise _not_cached()
        if not shared and not (policy.exact is not None and wish.write):
            self._joining.outcome(x)
            return False
        for _ in range(2):
            flight = self._joining.flights.find(key) if shared else None
            if flight is None:
                break
            if await self._joining.follow(x, caller, flight):
                return True
        x.cache = MISS if wish.read else x.cache
        asked = asked if wish.write else None
        if not x.stream and self._joining.alone:
            await self._leading.lead(x, caller, policy, digest, key, shared, asked)
            return True
        flight = self._joining.begin(x, policy, digest, key, shared)
        flight.asked = asked
        await self._joining.read(x, caller, flight, flight.join(), own=True)
        return True

    # ---- a kept answer

    def _meets(self, entry: Entry | None, wish: Wish) -> Entry | None:
        """The entry, if it is young enough. Who names an age means it: a stale answer is not what it asked for either."""
        if entry is not None and wish.max_age_ns >= 0:
            return entry if self._now() <= min(entry.stored_ns + wish.max_age_ns, entry.fresh_ns) else None
        return entry

    async def _give_near(self, x: Exchange, caller: Caller, entry: Entry, asked: Any) -> bool:
        """The answer to another question that asks the same."""
        own_key, x.cache_key = x.cache_key, entry.digest[:8].hex()
        given = await self._give(x, caller, entry, f"{NEAR};sim={asked.sim:.2f}")
        if not given:
            x.cache_key = own_key
        return given

    async def _give(self, x: Exchange, caller: Caller, entry: Entry, outcome: str) -> bool:
        now = self._now()
        assert x.principal is not None
        chat = x.surface.name == "chat"
        body = entry.body
        headers: Headers
        if x.stream:
            try:
                body = as_stream(body, chat, x.asked_usage)
            except ValueError:
                if self._memory.holds(entry):
                    self._memory.drop(entry)
                return False
            headers = list(self._stream_headers)
            x.first_content_ns = now
        else:
            headers = [(b"content-type", b"application/json")]
        x.head_ns = now
        self._memory.touch(entry)
        stale = now >= entry.fresh_ns
        x.cache = STALE if stale and outcome is HIT else outcome
        x.saved = Saved(entry.provider, entry.served_model, entry.cost_nanos)
        x.finish = entry.finish
        if entry.tenant == x.principal.tenant:
            headers.append((b"age", b"%d" % ((now - entry.stored_ns) // 1_000_000_000)))
        else:
            x.cache_key = ""  # whose answer it was is nobody's business
        headers += self._marks.headers(x, None)
        headers += self._marks.of(entry.provider, entry.served_model)
        if not x.stream:
            headers.append(NOTHING)
        elif x.metadata:
            body += self._marks.closing(x, None)
        x.status = 200
        self._joining.outcome(x)
        self._joining.saved(x)
        if not self._line.replied(x, 200, headers, body, caller):
            await caller.reply(200, headers, body)
        return True


def _not_cached() -> Fault:
    return Fault("not_cached", "nothing is kept that answers this request, and 'only-if-cached' forbids to ask for it")
