"""Hedging: when a request that waits for its first token is put to another target as well, and how often. Pure.

After the time by which this target has usually begun (its p95), the next target is asked beside it; the first content
token wins (The Tail at Scale, Dean and Barroso, 2013). Requests earn what hedges cost: a share of a token each, and never
more than `MOST` of them kept, so that a pool that has gone slow altogether gets a few per cent of load on top, not twice
the load. A route begins with nothing earned. One request in twenty is later than the p95 and one token in twenty is earned:
spent as they come, the tokens would be gone on answers that are a little late when one comes that is really slow. So the
fewer are left, the longer is waited, up to `SCARCE` times as long.

All workers of a host have one purse where they have cells to share (`state/`). What is earned is handed in once a second
or when somebody wants to hedge; what is spent is taken at once, and given back where it was not there.
"""

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from .stats import Stats

MOST = 10  # tokens
_TOKEN = 1_000_000  # as it stands in the cell: shares of a token are whole numbers there
SCARCE = 2.0
KNOWN = 20.0  # answers: of fewer a p95 says little

Millis = Annotated[int, Meta(ge=1, le=86_400_000)]


class HedgeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Streams (and plain requests of a route with `plain: assemble`) that wait longer for their first token than
    `quantile` of this target's answers did, but `least_ms` at least, are put to the next target as well; `unknown_ms` of
    one with few answers. At most a share of `budget` of the route's requests."""

    budget: Annotated[float, Meta(gt=0, le=0.5)] = 0.05
    quantile: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    least_ms: Millis = 50
    unknown_ms: Millis = 2_000


class Cells(Protocol):
    """A cell that is added to atomically."""

    def get(self, cell: int) -> int: ...
    def add(self, cell: int, n: int) -> int: ...


class OwnCells:
    """One of one's own."""

    def __init__(self) -> None:
        self._n = 0

    def get(self, cell: int) -> int:
        return self._n

    def add(self, cell: int, n: int) -> int:
        self._n += n
        return self._n


class Purse:
    """What a route's hedges are paid from. `earned` is O(1)."""

    __slots__ = ("_at_s", "_cells", "_earn", "_fresh", "refused")

    def __init__(self, budget: float, cells: Cells | None = None) -> None:
        self._earn = round(budget * _TOKEN)
        self._cells: Cells = cells or OwnCells()
        self._at_s = 0
        self._fresh = 0  # requests that are not handed in yet
        self.refused = 0  # hedges that there was nothing for, ever

    def earned(self, now_ns: int) -> None:
        """One more request."""
        self._fresh += 1
        if now_ns // 1_000_000_000 != self._at_s:
            self._at_s = now_ns // 1_000_000_000
            self._hand_in()

    def _hand_in(self) -> None:
        if self._fresh:
            over = self._cells.add(0, self._fresh * self._earn) - MOST * _TOKEN
            self._fresh = 0
            if (
                over > 0
            ):  # two workers that find it full at once both take what is over: too little is left, never too much
                self._cells.add(0, -over)

    def left(self, coming: int = 0) -> float:
        """How many hedges may be paid for, once `coming` more requests have come; less than 1: none."""
        return max(0, min(self._cells.get(0) + (self._fresh + coming) * self._earn, MOST * _TOKEN)) / _TOKEN

    def take(self) -> bool:
        self._hand_in()
        if self._cells.add(0, -_TOKEN) >= 0:
            return True
        self._cells.add(0, _TOKEN)
        self.refused += 1
        return False


class Hedge:
    """Of one route."""

    __slots__ = ("_spec", "purse")

    def __init__(self, spec: HedgeSpec, purse: Purse) -> None:
        self._spec = spec
        self.purse = purse

    def delay_ns(self, stats: Stats, size: int, now_ns: int, coming: int = 0) -> int:
        """How long a request of `size` bytes waits for this target alone. `coming`: requests that are not earned yet."""
        spec = self._spec
        if stats.sketch.n < KNOWN:
            return spec.unknown_ms * 1_000_000
        late_s = stats.sketch.known(spec.quantile, now_ns)
        late_s *= SCARCE - (SCARCE - 1.0) * self.purse.left(coming) / MOST
        # A long prompt takes its time anywhere: that alone is no reason to pay for it twice.
        longer_s = stats.stream.slope() * max(0.0, size - stats.stream.usual_size)
        return max(int((late_s + longer_s) * 1e9), spec.least_ms * 1_000_000)
