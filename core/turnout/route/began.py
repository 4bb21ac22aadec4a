"""One attempt as its target's statistics see it."""

from ..errors import UPSTREAM, Fault
from ..exchange import Attempt
from .stats import Stats


class Began:
    """From the moment it goes out until it has committed, failed, been outrun or given up. A stream that has committed is `done`
    with its passage (streaming.py)."""

    __slots__ = ("_at_ns", "_key", "_size", "_stats", "_stream")

    def __init__(self, stats: Stats, key: int, stream: bool, size: int, now_ns: int) -> None:
        self._stats = stats
        self._key = key
        self._stream = stream
        self._size = size
        self._at_ns = now_ns
        stats.begin(key, stream, now_ns)

    def served(self, attempt: Attempt, now_ns: int) -> None:
        stats = self._stats
        if not self._stream:
            stats.whole(self._key, self._at_ns, attempt.usage.completion if attempt.usage else 0, now_ns)
            stats.done()
        elif attempt.first_content_ns:
            # From the last request on: of an attempt that asked twice (stale connection, another way) the first was cut short.
            began_ns = max(attempt.started_ns, self._at_ns)
            stats.first(self._key, self._at_ns, attempt.first_content_ns - began_ns, self._size, now_ns)
        else:  # an answer without content
            stats.dropped(self._key, self._at_ns, True)
            stats.verdict(True, now_ns)

    def failed(self, fault: Fault, now_ns: int) -> None:
        if fault.source == UPSTREAM:
            self._stats.failed(self._key, self._at_ns, self._stream, now_ns)
        else:
            self._stats.dropped(self._key, self._at_ns, self._stream)
        self._stats.done()

    def outrun(self, slow: bool, now_ns: int) -> None:
        """No verdict: another target was faster. `slow`: it had had its usual time by then."""
        self._stats.outrun(self._key, self._at_ns, self._size, slow, now_ns)
        self._stats.done()

    def dropped(self) -> None:
        """No verdict: the client left."""
        self._stats.dropped(self._key, self._at_ns, self._stream)
        self._stats.done()
