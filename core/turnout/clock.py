"""Time, handed in rather than looked up.

Durations are monotonic nanoseconds everywhere; wall time appears only where a person or a bill reads it.
"""

import functools
import time
from typing import Protocol


class Clock(Protocol):
    """What the edges of the program ask the time of. Pure code never sees a clock: it gets `now` as a number."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class ManualClock:
    """A clock that tests move by hand."""

    def __init__(self, now_ns: int = 0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._wall_ns = wall_ns

    def now_ns(self) -> int:
        return self._now_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        step = int(seconds * 1e9)
        self._now_ns += step
        self._wall_ns += step


@functools.lru_cache(maxsize=64)
def _second(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))


def stamp(wall_ns: int) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-07-01T12:00:00.123Z`."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}Z"
