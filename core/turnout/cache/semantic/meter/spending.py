"""Which hits are asked again, within a hard cap on their share and on what they cost. Pure; O(1), on a request's way.

The first FIRST hits of a namespace are all asked again, then a few percent: more while little traffic gives few labels, and
near the threshold, where a wrong answer is likeliest and a label moves the threshold most. Each is chosen by a probability
that is known before the draw and told with the label, so that the sum of the labels' inverses stays unbiased
(Horvitz and Thompson 1952). What caps it lowers that probability; it never throws away what was drawn.

The money is what all workers of a host may spend together, where they have cells to count in; this worker's own part of it
flows in slowly, so that no burst of his takes all of it.
"""

from typing import Protocol

FIRST = 50
NEAR, NEARER = 0.03, 3.0  # of the score above the threshold; how many times as likely
LABELS_WANTED = 300.0  # in the window, to say anything of a rate of a few percent
MOST_TOKENS = 16.0  # checks that may be made up for after a quiet time
LEFT = 0.8  # of the cap, at most, is a probability: so tokens gather, and hardly any draw has to be refused
BURST = 0.2  # of the money of a window may be spent at once; the rest flows in, so no window sees more than all of it
CELLS = 30  # of what all spend, the oldest of which is a whole window behind
UNIT = 1_000  # nanos in a cell's one: a cell holds 2**32


class Window(Protocol):
    """Counts by stamp that all workers of a host add to."""

    def bump(self, first: int, cells: int, stamp: int, n: int) -> int: ...
    def recent(self, first: int, cells: int, stamp: int) -> int: ...


class Spending:
    """`share`: of hits asked again at least, where the caps let it, 0: none but the first; `most`: at most. `most_nanos` in any
    `window_ns`; `shared`: by all who count there, together."""

    __slots__ = (
        "_cell_ns",
        "_cost",
        "_flow",
        "_money",
        "_most",
        "_most_money",
        "_most_nanos",
        "_seen_ns",
        "_share",
        "_shared",
        "_stamp",
        "_taken",
        "_tokens",
        "share",
    )

    def __init__(
        self, share: float, most: float, most_nanos: int | None, window_ns: int, shared: Window | None = None
    ) -> None:
        self._share = min(share, most)
        self._most = most if share > 0.0 else 0.0
        self.share = self._most  # of now
        self._tokens = 0.0
        self._most_money = -1.0 if most_nanos is None else most_nanos * BURST
        self._flow = 0.0 if most_nanos is None else most_nanos * (1.0 - BURST) / window_ns
        self._money = self._most_money
        self._cost = 0.0  # of a check, on average; of none, before the first
        self._taken = 0.0  # from the money for a check whose cost is not known yet, on average
        self._seen_ns = 0
        self._most_nanos = most_nanos
        self._shared = shared if most_nanos is not None else None
        self._cell_ns = window_ns // (CELLS - 1) or 1
        self._stamp = 0

    def hit(self) -> None:
        tokens = self._tokens + self._most
        self._tokens = tokens if tokens < MOST_TOKENS else MOST_TOKENS

    def tune(self, hits: float) -> None:
        """`hits`: in the window."""
        self.share = min(self._most, max(self._share, LABELS_WANTED / hits if hits > 0.0 else 1.0))

    def draw(self, first: bool, above: float, now_ns: int, u: float) -> float:
        """The probability if `u` falls within it, else 0. `above`: of the score, over the threshold."""
        if first:
            q = 1.0
        else:
            tokens = self._tokens
            if tokens < 1.0:
                return 0.0
            q = min(self._most * LEFT, self.share * NEARER if above < NEAR else self.share)
        if self._most_nanos is not None:
            if now_ns > self._seen_ns:
                if self._seen_ns:
                    self._money = min(self._most_money, self._money + (now_ns - self._seen_ns) * self._flow)
                self._seen_ns = now_ns
                self._stamp = now_ns // self._cell_ns & 0xFFFF_FFFF
            if self._money <= self._cost or self._is_spent(self._most_nanos):
                return 0.0
        if u >= q:
            return 0.0
        if not first:
            self._tokens -= 1.0
        self._book(self._cost)
        self._money -= self._cost
        self._taken += self._cost
        return q

    def spent(self, nanos: int) -> None:
        """What a check has cost, in place of what it was believed to."""
        believed = min(self._taken, self._cost)
        self._taken -= believed
        self._money += believed - nanos
        self._book(nanos - believed)
        self._cost = nanos if not self._cost else self._cost + 0.1 * (nanos - self._cost)

    def _is_spent(self, most_nanos: int) -> bool:
        """Whether all together have spent so much that one more check might be too much."""
        if self._shared is None:
            return False
        return self._shared.recent(0, CELLS, self._stamp) * UNIT + self._cost >= most_nanos

    def _book(self, nanos: float) -> None:
        """For all to see. What was believed to cost too much stays booked: nobody counts down."""
        if self._shared is not None and nanos > 0:
            self._shared.bump(0, CELLS, self._stamp, min(-int(-nanos // UNIT), 0xFFFF_FFFF))
