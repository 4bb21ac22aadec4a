"""The retry budget: how much a dead or flaky upstream may be asked again. Pure.

Trying a target again that has just failed costs a token. Tokens are earned by successes: a tenth of those of the last
ten seconds, and at least three a second so that a quiet route may retry at all (the scheme of Finagle's RetryBudget
and linkerd's retry_ratio / min_retries_per_second). So a total outage is amplified by a few per cent, never doubled.
"""

WINDOW_S = 10
LEAST_PER_S = 3


class RetryBudget:
    """Counts per second over the last ten seconds. `take` is O(1) amortised."""

    __slots__ = ("_at_s", "_earned", "_ratio", "_spent", "_successes", "_taken")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._at_s = 0
        self._successes = [0] * WINDOW_S
        self._taken = [0] * WINDOW_S
        self._earned = 0
        self._spent = 0

    def _move(self, now_ns: int) -> int:
        second = now_ns // 1_000_000_000
        behind = second - self._at_s
        if behind > 0:
            for i in range(min(behind, WINDOW_S)):
                slot = (second - i) % WINDOW_S
                self._earned -= self._successes[slot]
                self._spent -= self._taken[slot]
                self._successes[slot] = self._taken[slot] = 0
            self._at_s = second
        return self._at_s % WINDOW_S

    def succeeded(self, now_ns: int) -> None:
        self._successes[self._move(now_ns)] += 1
        self._earned += 1

    def has(self, now_ns: int) -> bool:
        slot = self._move(now_ns)
        return self._taken[slot] < LEAST_PER_S or self._spent < self._ratio * self._earned

    def take(self, now_ns: int) -> bool:
        if not self.has(now_ns):
            return False
        self._taken[self._at_s % WINDOW_S] += 1
        self._spent += 1
        return True
