"""The stage between finding a route and asking its targets, on routes that have a cache: a kept answer, another's call,
or a call of one's own that others may share (joining.py)."""

import msgspec

from .account.cost import usd
from .cache.entry import Entry
from .cache.memory import Memory
from .cache.needs import Caller, Line
from .cache.policy import Policy
from .cache.replay import as_stream
from .cache.wish import Wish, wish_of
from .clock import Clock
from .elsewhere import HIT
from .errors import Fault
from .exchange import Exchange, Headers, Reply, Saved
from .joining import MISS, Joining
from .marks import Marks

STALE = "hit-exact;stale"


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
        clock: Clock,
    ) -> None:
        self._line = line
        self._marks = marks
        self._stream_headers = stream_headers
        self._memory = memory
        self._joining = joining
        self._now = clock.now_ns

    async def answered(self, x: Exchange, caller: Caller) -> bool:
        """Answer the request. False: it is none of the cache's business, and goes on as if there were none."""
        assert x.route is not None
        policy: Policy = x.route.cache
        wish = wish_of(x.headers)
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
            if entry is not None and await self._give(x, caller, policy, entry):
                return True
        x.cache = MISS if wish.read else f"bypass;{wish.reason}"
        if wish.only:
            raise _not_cached()
        if not shared and not (policy.exact is not None and wish.write):
            self._joining.outcome(x)
            return False
        key = (digest, x.stream, x.asked_usage)
        for _ in range(2):
            flight = self._joining.flights.find(key) if shared else None
            if flight is None:
                break
            if await self._joining.follow(x, caller, flight):
                return True
        x.cache = MISS if wish.read else x.cache
        flight = self._joining.begin(x, policy, digest, key, shared)
        await self._joining.read(x, caller, flight, flight.join(), own=True)
        return True

    # ---- a kept answer

    def _meets(self, entry: Entry | None, wish: Wish) -> Entry | None:
        """The entry, if it is young enough. Who names an age means it: a stale answer is not what it asked for either."""
        if entry is not None and wish.max_age_ns >= 0:
            return entry if self._now() <= min(entry.stored_ns + wish.max_age_ns, entry.fresh_ns) else None
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
                if self._memory.holds(entry):
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
        self._joining.outcome(x)
        self._joining.saved(x)
        if stale:
            self._refresh(x, policy, entry.digest)
        await self._line.reply(x, Reply(200, headers, body), caller)
        return True

    def _refresh(self, x: Exchange, policy: Policy, digest: bytes) -> None:
        """Ask for a stale answer anew, for nobody in particular."""
        key = (digest, x.stream, x.asked_usage)
        if self._joining.flights.find(key) is not None:
            return
        assert x.route is not None
        now = self._now()
        again = msgspec.structs.replace(
            x, id=f"{x.id}-refresh", started_ns=now, deadline_ns=now + x.route.total_ms * 1_000_000, cache=MISS,
            saved=None, finish="", attempts=[], cuts=[], trace=None, first_content_ns=0, status=0, metadata=False,
        )  # fmt: skip
        flight = self._joining.begin(again, policy, digest, key, policy.shares, pinned=True)
        flight.left = True


def _not_cached() -> Fault:
    return Fault("not_cached", "nothing is kept that answers this request, and 'only-if-cached' forbids to ask for it")
