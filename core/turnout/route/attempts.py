"""Which target a request tries next, and when it gives up. Pure: decisions come out, the flow acts on them.

- Targets stand in the order the policy gave them. The first pass takes each once, if its breaker lets it: going to
  another target is a fallback and free.
- Trying one again that failed in this request costs a token of the retry budget and waits out a back-off, or the
  cool-down it asked for. That waiting, at most 5 s in all, happens only when no other target is left.
- A target that was silent, refused our credential or does not know the model is not tried twice.
- When every breaker is open the one that opens first is tried all the same: the last target is never ejected. One whose
  breaker is open is also tried when all others have failed in this request, for a token of the budget.
- A fault that is the caller's own (`retry` = never) ends it at once; but a prompt that is too long for one model goes to
  those that take more.
- A request that waits long for its first token may go to one more target at the same time (`beside`): the next one that
  was not tried and that nothing is wrong with.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from ..errors import NEVER, SAME, Fault
from ..exchange import Target
from .retry import RetryBudget

MOST_WAIT_NS = 5_000_000_000
BACKOFF_NS = 100_000_000  # first back-off; doubles, with full jitter over its upper half
BACKOFF_MAX_NS = 2_000_000_000
TOO_LONG = "context_length_exceeded"  # the code of a refusal that another model may not share


class Try(msgspec.Struct, frozen=True):
    index: int
    cause: str  # first | fallback | retry | hedge


class Wait(msgspec.Struct, frozen=True):
    until_ns: int


class Attempts:
    """The course of one request over its targets."""

    __slots__ = (
        "_budget",
        "_deadline_ns",
        "_faults",
        "_final",
        "_left",
        "_open",
        "_ready_ns",
        "_rng",
        "_tries",
        "_waited",
        "targets",
    )

    def __init__(
        self, targets: Sequence[Target], retries_max: int, budget: RetryBudget, deadline_ns: int, rng: Random
    ) -> None:
        self.targets = targets
        n = len(targets)
        self._open = [0] if n == 1 else list(range(n))  # not tried yet, best first
        self._ready_ns: dict[int, int] = {}  # failed here, may be tried again from then on
        self._faults: list[Fault] = []
        self._final: Fault | None = None
        self._left = retries_max
        self._budget = budget
        self._deadline_ns = deadline_ns
        self._rng = rng
        self._tries = 0
        self._waited = 0

    def next(self, now_ns: int) -> Try | Wait | None:
        """The next step; None: give up, and `verdict` says with what."""
        if self._final is not None or now_ns >= self._deadline_ns:
            return None
        for i in self._open:
            if self.targets[i].health.starts(now_ns):
                self._open.remove(i)
                self._tries += 1
                return Try(i, "fallback" if self._tries > 1 else "first")
        if not self._tries and not self._ready_ns:
            return self._last_resort(now_ns)
        return self._again(now_ns)

    def began(self) -> None:
        """The best target was tried already."""
        self._open.remove(0)
        self._tries = 1

    def beside(self, now_ns: int, pay: Callable[[], bool]) -> Try | None:
        """A hedge, while the last try is under way; None where there is no target for it, no time or no token."""
        i = spare(self.targets, self._open, now_ns)
        if i is None or self._final is not None or now_ns >= self._deadline_ns or not pay():
            return None
        self._open.remove(i)
        self._tries += 1
        return Try(i, "hedge")

    def outrun(self, index: int) -> None:
        """The try at `index` was given up because the one beside it was first. Should that break, it may be asked again."""
        insort(self._open, index)

    def _again(self, now_ns: int) -> Try | Wait | None:
        """All that may be had freely was tried. What is left: targets that are cooling down (free, once they may be
        asked), those whose breaker is open, and those that failed in this request (both cost a token)."""
        ready: dict[int, int] = {}
        paid = self._budget.has(now_ns)
        for i in self._open:
            health = self.targets[i].health
            if paid or not health.open_until_ns:
                ready[i] = health.cool_until_ns
        if paid and self._left:
            for i, at_ns in self._ready_ns.items():
                ready[i] = max(at_ns, self.targets[i].health.cool_until_ns)
        if not ready:
            return None
        i = min(ready, key=lambda k: ready[k])
        if ready[i] > now_ns:
            return self._wait(ready[i], now_ns)
        if i in self._ready_ns:
            self._budget.take(now_ns)
            self._left -= 1
            del self._ready_ns[i]
            return self._try(i, "retry", now_ns)
        if self.targets[i].health.open_until_ns:
            self._budget.take(now_ns)
        self._open.remove(i)
        return self._try(i, "fallback", now_ns)

    def broke(self, index: int, fault: Fault, now_ns: int) -> None:
        """The target at `index` is where a stream broke that others are to go on with: it is asked last, if at all."""
        self._open.remove(index)
        self._tries = 1
        if fault.kind != "idle_timeout":  # one that fell silent is left alone
            self._ready_ns[index] = now_ns + BACKOFF_NS // 2

    def failed(self, index: int, fault: Fault, now_ns: int) -> None:
        """The try at `index` ended with `fault`, before anything was shown to the client."""
        self._faults.append(fault)
        if fault.code == TOO_LONG:
            self._only_larger(self.targets[index], fault)
        elif fault.retry == NEVER:
            self._final = fault
        elif fault.retry == SAME:
            most = min(BACKOFF_NS << min(self._tries - 1, 6), BACKOFF_MAX_NS)
            self._ready_ns[index] = now_ns + most // 2 + int(self._rng.random() * (most // 2))

    def _only_larger(self, small: Target, fault: Fault) -> None:
        """The prompt is too long for a model: what is left are other models that take, or may take, more."""

        def larger(target: Target) -> bool:
            if target.model == small.model:
                return False
            known = target.context_tokens and small.context_tokens
            return not known or target.context_tokens > small.context_tokens

        self._open = [i for i in self._open if larger(self.targets[i])]
        self._ready_ns = {i: at for i, at in self._ready_ns.items() if larger(self.targets[i])}
        if not self._open and not self._ready_ns:
            self._final = fault

    def verdict(self, now_ns: int) -> Fault:
        """What the client is told after giving up: the caller's own fault, or the most telling of the upstream ones."""
        if self._final is not None:
            return self._final
        if now_ns >= self._deadline_ns:
            return Fault("total_timeout", "the request took longer than its time limit")
        if not self._faults:
            free = min((t.health.free_at_ns() for t in self.targets), default=now_ns)
            wait = max(1.0, (free - now_ns) / 1e9)
            return Fault(
                "rate_limited", "every target of this route has asked to be left alone for a while", retry_after_s=wait
            )
        # Our own credential or model name being wrong says less to a caller than an outage beside it.
        if refused := [f for f in self._faults if f.code == TOO_LONG]:
            return refused[-1]  # that the larger model failed does not make the prompt shorter
        telling = [f for f in self._faults if f.kind not in ("credential", "not_found")]
        return telling[-1] if telling else self._faults[-1]

    def _try(self, index: int, cause: str, now_ns: int) -> Try:
        self._tries += 1
        self.targets[index].health.taken(now_ns)
        return Try(index, cause)

    def _last_resort(self, now_ns: int) -> Try | Wait | None:
        """Nothing is allowed: all breakers are open, or cooling down."""
        warm = [i for i in self._open if now_ns >= self.targets[i].health.cool_until_ns]
        if warm:
            i = min(warm, key=lambda k: self.targets[k].health.open_until_ns)
            self._open.remove(i)
            return self._try(i, "first", now_ns)
        return self._wait(min(self.targets[i].health.cool_until_ns for i in self._open), now_ns) if self._open else None

    def _wait(self, until_ns: int, now_ns: int) -> Wait | None:
        pause = until_ns - now_ns
        if self._waited + pause > MOST_WAIT_NS or until_ns >= self._deadline_ns:
            return None
        self._waited += pause
        return Wait(until_ns)


def spare(targets: Sequence[Target], among: Sequence[int], now_ns: int) -> int | None:
    """The best of these for a hedge. Not one that is half-open: losing the race would leave its probe without a verdict."""
    for i in among:
        health = targets[i].health
        if not health.open_until_ns and health.allows(now_ns):
            return i
    return None
