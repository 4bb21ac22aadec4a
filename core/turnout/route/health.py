"""A target's condition: a small breaker and cool-downs. Pure; times are monotonic nanoseconds.

States: closed (used), open (left alone until `open_until`), half-open (one probe at a time decides, of one worker of the host). Five failures in a
row open it; each time it opens again without a success in between, it stays open twice as long, less up to a
quarter by chance.
A stream that begins well says so at once (`began`) and is counted as a success when it has had its end: a target that
breaks in the middle of every answer is opened by five such breaks in a row.
A rate limit (429) is not a failure of the target: it cools down for as long as it says, and stays closed.
"""

from random import Random

from ..errors import Fault
from .retry import Window

FAILURES_TO_OPEN = 5  # as Envoy's consecutive_5xx default
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


class Breaker:
    """Condition of one (provider, account, model)."""

    __slots__ = (
        "_breaks",
        "_claims",
        "_failures",
        "_opened",
        "_probe_ns",
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
        self._rng = rng
        self.open_until_ns = 0  # 0 = closed
        self.cool_until_ns = 0
        self.opens = 0  # ever, for the metrics

    def allows(self, now_ns: int) -> bool:
        """Whether a request may go there: closed and not cooling down, or half-open with no probe out."""
        if now_ns < self.cool_until_ns:
            return False
        if not self.open_until_ns:
            return True
        if not self._may_probe(now_ns):
            return False
        return self._claims is None or not self._claims.recent(0, 1, now_ns // PROBE_EVERY_NS)

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

    def began(self) -> None:
        """It has begun to answer; whether it answers to the end is not known yet."""
        self._failures = self._walls = self._probe_ns = 0
        self.open_until_ns = 0
        if not self._breaks:
            self._opened = 0

    def succeeded(self) -> None:
        self._failures = self._breaks = self._opened = self._walls = self._probe_ns = 0
        self.open_until_ns = 0

    def failed(self, fault: Fault, now_ns: int, midway: bool = False) -> None:
        """`midway`: in the middle of an answer that had begun well."""
        if fault.kind == "rate_limited":
            self._probe_ns = 0
            cooling = now_ns < self.cool_until_ns
            if fault.retry_after_s is not None:
                until_ns = now_ns + min(int(fault.retry_after_s * 1e9), RETRY_AFTER_MAX_NS)
                self.cool_until_ns = max(self.cool_until_ns, until_ns)
            elif not cooling:
                most = min(COOL_NS << min(self._walls, 5), COOL_MAX_NS)
                self.cool_until_ns = now_ns + int(most * self._rng.random())
            # Requests that were under way when the first of them hit the limit are not further limits in a row.
            self._walls += not cooling
            return
        self._failures += not midway
        self._breaks += midway
        probing = bool(self._probe_ns)
        self._probe_ns = 0
        if max(self._failures, self._breaks) >= FAILURES_TO_OPEN and (probing or not self.open_until_ns):
            most = min(OPEN_NS << min(self._opened, 5), OPEN_MAX_NS)
            if self._opened:  # workers, and targets of one provider, are not to come back in one moment
                most -= int(most * JITTER * self._rng.random())
            self.open_until_ns = now_ns + most
            self._opened += 1
            self.opens += 1
        elif self.open_until_ns and now_ns >= self.open_until_ns:
            self.open_until_ns = now_ns + OPEN_NS

    def state(self, now_ns: int) -> str:
        if not self.open_until_ns:
            return "cooling" if now_ns < self.cool_until_ns else "closed"
        return "open" if now_ns < self.open_until_ns else "half-open"
