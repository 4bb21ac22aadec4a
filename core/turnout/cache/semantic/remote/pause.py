"""When an endpoint is left alone: a breaker of the smallest kind. Pure.

After FAILURES in a row nobody asks for FIRST_S, and after each further failure for twice as long, up to MOST_S. When that
time is over one may ask, for all: nobody waits for it.
"""

FAILURES = 5
FIRST_S, MOST_S = 1.0, 60.0
_S = 1_000_000_000


class Pause:
    def __init__(self) -> None:
        self.failures = 0  # in a row
        self._until_ns = 0
        self._length_s = FIRST_S
        self._probing = False

    @property
    def on(self) -> bool:
        return self._until_ns > 0

    def ask(self, now_ns: int) -> str:
        """`ask`; `probe`: alone, and nobody waits; or `leave`."""
        if not self._until_ns:
            return "ask"
        if now_ns < self._until_ns or self._probing:
            return "leave"
        self._probing = True
        return "probe"

    def succeeded(self) -> None:
        self.failures, self._until_ns, self._length_s, self._probing = 0, 0, FIRST_S, False

    def failed(self, now_ns: int, wait_s: float | None = None) -> None:
        """`wait_s`: the endpoint's own wish, which holds at once, up to MOST_S."""
        self.failures += 1
        probed, self._probing = self._probing, False
        if now_ns < self._until_ns or not (probed or wait_s or self.failures >= FAILURES):
            return  # of those that were under way already only the first counts
        self._until_ns = now_ns + int(max(self._length_s, min(wait_s or 0.0, MOST_S)) * _S)
        self._length_s = min(2 * self._length_s, MOST_S)

    def released(self) -> None:
        """A probe came to nothing for reasons of ours."""
        self._probing = False
