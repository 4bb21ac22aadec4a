"""The retry budget: how much a dead or flaky upstream may be asked again. Pure.

Trying a target again that has just failed costs a token. Tokens are earned by successes: a tenth of those of the last
ten seconds, and at least three a second so that a quiet route may retry at all (the scheme of Finagle's RetryBudget
and linkerd's retry_ratio / min_retries_per_second). So a total outage is amplified by a few per cent, never doubled.

All workers of a host have one budget where they have cells to share (`state/`): a fleet of many workers would otherwise
ask again that many times three times a second. Successes come often and are handed in once a second, or when somebody
wants a token; tokens are counted at once. Two workers that ask within the same microseconds may overdraw it by one.
"""

from typing import Protocol

WINDOW_S = 10
LEAST_PER_S = 3
_WON = 0  # the cells of the successes: one per second
_TAKEN = WINDOW_S  # and of the tokens


class Window(Protocol):
    """Cells that count by second: what falls into a second, and into the last `cells` of them."""

    def bump(self, first: int, cells: int, stamp: int, n: int) -> int: ...
    def recent(self, first: int, cells: int, stamp: int) -> int: ...


class OwnWindow:
    """Cells of one's own."""

    __slots__ = ("_counts", "_stamps")

    def __init__(self) -> None:
        self._stamps = [-1] * (2 * WINDOW_S)
        self._counts = [0] * (2 * WINDOW_S)

    def bump(self, first: int, cells: int, stamp: int, n: int) -> int:
        at = first + stamp % cells
        if self._stamps[at] != stamp:
            self._stamps[at] = stamp
            self._counts[at] = 0
        self._counts[at] += n
        return self._counts[at]

    def recent(self, first: int, cells: int, stamp: int) -> int:
        part = range(first, first + cells)
        return sum(self._counts[at] for at in part if stamp - cells < self._stamps[at] <= stamp)


class RetryBudget:
    """Counts per second over the last ten seconds. `succeeded` is O(1), `has` and `take` O(`WINDOW_S`)."""

    __slots__ = ("_at_s", "_fresh", "_ratio", "_window")

    def __init__(self, ratio: float, window: Window | None = None) -> None:
        self._ratio = ratio
        self._window: Window = window or OwnWindow()
        self._at_s = 0
        self._fresh = 0  # successes of the second `_at_s` that are not handed in yet

    def _hand_in(self, second: int) -> None:
        if self._fresh:
            self._window.bump(_WON, WINDOW_S, self._at_s, self._fresh)
            self._fresh = 0
        self._at_s = second

    def succeeded(self, now_ns: int) -> None:
        second = now_ns // 1_000_000_000
        if second != self._at_s:
            self._hand_in(second)
        self._fresh += 1

    def has(self, now_ns: int) -> bool:
        second = now_ns // 1_000_000_000
        self._hand_in(second)
        if self._window.bump(_TAKEN, WINDOW_S, second, 0) < LEAST_PER_S:
            return True
        spent = self._window.recent(_TAKEN, WINDOW_S, second)
        return spent < self._ratio * self._window.recent(_WON, WINDOW_S, second)

    def take(self, now_ns: int) -> bool:
        if not self.has(now_ns):
            return False
        self._window.bump(_TAKEN, WINDOW_S, now_ns // 1_000_000_000, 1)
        return True
