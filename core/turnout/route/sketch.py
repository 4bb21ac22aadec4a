"""Percentiles of times without keeping them: counts in buckets that grow by 8 %, so a percentile is within 4 %. Pure."""

from math import log

LEAST_S = 0.001
GROWTH = 1.08
_SCALE = 1.0 / log(GROWTH)
BUCKETS = 200  # up to 80 minutes
FRESH_NS = 100_000_000
HALVE_NS = 60_000_000_000  # what is older than a minute counts half, than two a quarter


class Sketch:
    """`add` is O(1), `quantile` O(BUCKETS)."""

    __slots__ = ("_counts", "_halved_ns", "_known", "n")

    def __init__(self) -> None:
        self._counts = [0.0] * BUCKETS
        self._halved_ns = 0
        self._known = (0.0, -1, 0.0)  # a quantile, until when its value holds, seconds
        self.n = 0.0

    def add(self, seconds: float, now_ns: int) -> None:
        if now_ns - self._halved_ns > HALVE_NS:
            f = 0.5 ** ((now_ns - self._halved_ns) // HALVE_NS) if self._halved_ns else 1.0
            self._counts = [c * f for c in self._counts]
            self.n *= f
            self._halved_ns = now_ns
        i = int(log(seconds / LEAST_S) * _SCALE) + 1 if seconds > LEAST_S else 0
        self._counts[min(i, BUCKETS - 1)] += 1.0
        self.n += 1.0

    def quantile(self, q: float) -> float:
        """Seconds below which this share lies; 0.0 of nothing."""
        left = q * self.n
        for i, count in enumerate(self._counts):
            left -= count
            if left <= 0.0 and self.n:
                return LEAST_S * GROWTH ** (i - 0.5) if i else LEAST_S
        return LEAST_S * GROWTH ** (BUCKETS - 1.5) if self.n else 0.0

    def known(self, q: float, now_ns: int) -> float:
        """As `quantile`, but of up to FRESH_NS ago. O(1), nearly always."""
        of, until_ns, seconds = self._known
        if q != of or not 0 <= until_ns - now_ns <= FRESH_NS:
            seconds = self.quantile(q)
            self._known = (q, now_ns + FRESH_NS, seconds)
        return seconds
