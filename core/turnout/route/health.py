"""A target's condition: a small breaker and cool-downs. Pure; times are monotonic nanoseconds.

States: closed (used), open (left alone until `open_until`), half-open (one probe at a time decides, of one worker of the
host), returning (closed again, but its share comes back by and by: caches are cold, and what was wrong may come back
under load). Five failures in a row open it, and so do more failures than answers of late; each time it opens again without a
success in between (or soon again fails so often), it stays open twice as long, less up to a quarter by chance.
A stream that begins well says so at once (`began`) and clears the target when it has had its end (`ended`): a target that
breaks in the middle of every answer is opened by five such breaks in a row.
A rate limit (429) is not a failure of the target: it cools down for as long as it says, and stays closed. An overloaded
one (503) that says how long it wants to be left alone is left alone, and has failed as well.
"""

from random import Random

from ..errors import Fault
from .retry import Window

FAILURES_TO_OPEN = 5  # as Envoy's consecutive_5xx default
# So many failures within half a minute, if they are more than half of what was answered: a target that fails three times
# in five seldom does so five times in a row. (Of one that fails three times in ten, one span in 1,000 looks like that.)
RATE_FAILURES = 20
RATE_NS = 30_000_000_000
RELAPSE_NS = 60_000_000_000  # one that does so again this soon stays open twice as long as before, too
OPEN_NS = 2_000_000_000
OPEN_MAX_NS = (
    16_000_000_000  # a target that has healed is back within half a minute (bench/routing), at a probe each 16 s
)
JITTER = 0.25
PROBE_LEASE_NS = 60_000_000_000  # a probe whose end was never told (a lost client) blocks no longer than this
PROBE_EVERY_NS = 2_000_000_000  # as the shortest time that a breaker is open
COOL_NS = 1_000_000_000  # a 429 that names no time: 1 s x 2^n, full jitter
COOL_MAX_NS = 30_000_000_000
RETRY_AFTER_MAX_NS = 60_000_000_000  # a provider that asks for an hour is asked again after a minute
RETURN_NS = 10_000_000_000  # from a tenth of its requests to all of them
RETURN_LEAST = 0.1  # as Envoy's slow start min_weight_percent
_NEVER = 1 << 62


class Breaker:
    """Condition of one (provider, account, model)."""

    __slots__ = (
        "_bad",
        "_breaks",
        "_calm_ns",
        "_claims",
        "_failures",
        "_good",
        "_opened",
        "_probe_ns",
        "_rate_ns",
        "_relapses",
        "_returned_ns",
        "_rng",
        "_walls",
        "cool_until_ns",
        "open_until_ns",
        "opens",
    )

    def __init__(self, rng: Random, claims: Window | None = None) -> None:
        """`claims`: a cell that all workers of the host count half-open probes in, see `taken`."""
        self._claims = claims
        self._failures = 0  # in a row
        self._breaks = 0  # in the middle of an answer, in a row
        self._opened = 0  # times opened without a success in between
        self._walls = 0  # rate limits in a row
        self._probe_ns = 0  # a probe is out since then
        self._good = self._bad = 0  # answers since `_rate_ns`
        self._rate_ns = -_NEVER
        self._calm_ns = 0  # from then on nothing holds requests back
        self._returned_ns = -_NEVER  # when it closed again
        self._relapses = 0
        self._rng = rng
        self.open_until_ns = 0  # 0 = closed
        self.cool_until_ns = 0
        self.opens = 0  # ever, for the metrics

    def allows(self, now_ns: int) -> bool:
        """Whether a request may go there: closed and not cooling down, or half-open with no probe out. Of a target that
        returns only some may; which is drawn from the clock, so that asking twice gives one answer."""
        if now_ns >= self._calm_ns:
            return True
        if now_ns < self.cool_until_ns:
            return False
        if not self.open_until_ns:
            return _draw(now_ns) < max(RETURN_LEAST, (now_ns - self._returned_ns) / RETURN_NS)
        if not self._may_probe(now_ns):
            return False
        return self._claims is None or not self._claims.recent(0, 1, now_ns // PROBE_EVERY_NS)

    def starts(self, now_ns: int) -> bool:
        """Whether a request goes there now: `allows`, and then `taken`."""
        if now_ns >= self._calm_ns or self.allows(now_ns):
            return not self.open_until_ns or self.taken(now_ns)
        return False

    def _may_probe(self, now_ns: int) -> bool:
        """As far as this worker knows."""
        if now_ns < self.cool_until_ns or now_ns < self.open_until_ns:
            return False
        return not self._probe_ns or now_ns - self._probe_ns > PROBE_LEASE_NS

    def free_at_ns(self) -> int:
        """From when on it may be asked again."""
        return max(self.open_until_ns, self.cool_until_ns)

    def taken(self, now_ns: int) -> bool:
        """A request goes there now; on a half-open breaker it is the probe. (On an open one it is a last resort, which
        decides nothing when it fails: or an outage under load would double the time with every request.)

        Of all workers of a host one sends the probe of each PROBE_EVERY_NS. False: another was first since `allows`.
        """
        if self.open_until_ns and self._may_probe(now_ns):
            if self._claims is not None and self._claims.bump(0, 1, now_ns // PROBE_EVERY_NS, 1) != 1:
                return False
            self._probe_ns = now_ns
        return True

    def released(self) -> None:
        """The request ended without a verdict (the client left, or it was refused as the caller's own mistake)."""
        self._probe_ns = 0

    def began(self, now_ns: int = 0) -> None:
        """It has begun to answer; whether it answers to the end is not known yet: `ended` or `failed` says so."""
        self._failures = self._walls = self._probe_ns = 0
        self._good += 1
        if self.open_until_ns:
            self._closed(now_ns)
        if not self._breaks:
            self._opened = 0

    def ended(self, now_ns: int = 0) -> None:
        """What had begun has had its end."""
        self._failures = self._breaks = self._opened = self._walls = self._probe_ns = 0
        if self.open_until_ns:
            self._closed(now_ns)

    def succeeded(self, now_ns: int = 0) -> None:
        """A whole answer at once."""
        self._failures = self._breaks = self._opened = self._walls = self._probe_ns = 0
        self._good += 1
        if self.open_until_ns:
            self._closed(now_ns)

    def _closed(self, now_ns: int) -> None:
        self.open_until_ns = self._good = self._bad = 0
        self._returned_ns = now_ns
        self._calm_ns = max(now_ns + RETURN_NS, self.cool_until_ns)

    def failed(self, fault: Fault, now_ns: int, midway: bool = False) -> None:
        """`midway`: in the middle of an answer that had begun well."""
        if fault.kind == "rate_limited":
            self._probe_ns = 0
            cooling = now_ns < self.cool_until_ns
            if fault.retry_after_s is not None:
                self._leave_alone(fault.retry_after_s, now_ns)
            elif not cooling:
                most = min(COOL_NS << min(self._walls, 5), COOL_MAX_NS)
                self.cool_until_ns = now_ns + int(most * self._rng.random())
                self._calm_ns = max(self._calm_ns, self.cool_until_ns)
            # Requests that were under way when the first of them hit the limit are not further limits in a row.
            self._walls += not cooling
            return
        if fault.retry_after_s is not None:
            self._leave_alone(fault.retry_after_s, now_ns)
        self._failures += not midway
        self._breaks += midway
        self._good -= midway
        often = self._often(now_ns)
        probing = bool(self._probe_ns)
        self._probe_ns = 0
        in_a_row = max(self._failures, self._breaks) >= FAILURES_TO_OPEN
        if probing or (not self.open_until_ns and (in_a_row or often)):
            if often:
                self._relapses = self._relapses + 1 if now_ns - self._returned_ns < RELAPSE_NS else 0
            times = max(self._opened, self._relapses if often else 0)
            most = min(OPEN_NS << min(times, 5), OPEN_MAX_NS)
            if times:  # workers, and targets of one provider, are not to come back in one moment
                most -= int(most * JITTER * self._rng.random())
            self.open_until_ns = now_ns + most
            self._calm_ns = _NEVER
            self._opened += 1
            self.opens += 1
        elif self.open_until_ns and now_ns >= self.open_until_ns:
            self.open_until_ns = now_ns + OPEN_NS

    def _leave_alone(self, seconds: float, now_ns: int) -> None:
        self.cool_until_ns = max(self.cool_until_ns, now_ns + min(int(seconds * 1e9), RETRY_AFTER_MAX_NS))
        self._calm_ns = max(self._calm_ns, self.cool_until_ns)

    def _often(self, now_ns: int) -> bool:
        """Count a failure; whether more than half of what was answered of late failed. A span begins with a failure, so
        that successes need no clock; that one is not counted, or spans would look worse than they are."""
        if now_ns - self._rate_ns > RATE_NS:
            self._rate_ns = now_ns
            self._good = self._bad = 0
            return False
        self._bad += 1
        return self._bad >= RATE_FAILURES and self._bad > self._good

    def state(self, now_ns: int) -> str:
        if now_ns < self.cool_until_ns and not self.open_until_ns:
            return "cooling"
        if not self.open_until_ns:
            return "returning" if now_ns < self._calm_ns else "closed"
        return "open" if now_ns < self.open_until_ns else "half-open"


def _draw(now_ns: int) -> float:
    """A number in [0, 1) that looks random and is the same for the same moment (Fibonacci hashing)."""
    return (now_ns * 0x9E3779B97F4A7C15 >> 40 & 0xFFFF) / 0x10000
