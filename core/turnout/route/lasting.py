"""What a reload does not forget: which target is down, what it is like, and what retries and hedges have earned."""

from collections.abc import Callable
from random import Random

from ..exchange import Ability
from .health import Breaker
from .hedge import Hedge, Purse
from .retry import RetryBudget
from .share import Cells, Share, name_of
from .spec import RouteSpec, TargetSpec, half_life_s
from .stats import Stats

Seen = dict[str, dict[tuple[str, ...], float | list[float]]]


class Lasting:
    """Of one worker. `window(name)`: cells for this name that all workers count in; None where there are none to share."""

    def __init__(self, rng: Random, window: Callable[[str], Cells | None]) -> None:
        self._rng = rng
        self._window = window
        self._breakers: dict[tuple[str, str, str], Breaker] = {}
        self._abilities: dict[tuple[str, str, str, str], Ability] = {}
        self._budgets: dict[tuple[str, float], RetryBudget] = {}
        self._purses: dict[tuple[str, float], Purse] = {}
        self._stats: dict[tuple[str, str, str, float], Stats] = {}
        self._turns: dict[str, dict[str, int]] = {}
        self._shares: list[Share] = []

    def breaker(self, key: tuple[str, str, str]) -> Breaker:
        """`key`: provider, account, model."""
        if key not in self._breakers:
            self._breakers[key] = Breaker(self._rng, self._window(f"probes {' '.join(key)}"))
        return self._breakers[key]

    def ability(self, key: tuple[str, str, str], prefill: str) -> Ability:
        return self._abilities.setdefault((*key, prefill), Ability(prefill))

    def budget(self, spec: RouteSpec, direct: bool) -> RetryBudget:
        """`direct`: past the routes, to a provider of this name."""
        key = (spec.name, spec.retries.budget)
        if key not in self._budgets:
            shared = self._window(f"retries {'direct ' if direct else ''}{spec.name} {spec.retries.budget}")
            self._budgets[key] = RetryBudget(spec.retries.budget, shared)
        return self._budgets[key]

    def hedge(self, spec: RouteSpec) -> Hedge | None:
        if spec.hedge is None:
            return None
        key = (spec.name, spec.hedge.budget)
        if key not in self._purses:
            self._purses[key] = Purse(spec.hedge.budget, self._window(f"hedges {spec.name} {spec.hedge.budget}"))
        return Hedge(spec.hedge, self._purses[key])

    def statistics(self, spec: TargetSpec, route: RouteSpec, now_ns: int) -> Stats:
        """All accounts of one target have one."""
        key = (route.name, spec.provider, spec.model or "", half_life_s(route))
        if key not in self._stats:
            self._stats[key] = stats = Stats(key[3], self._turns.setdefault(route.name, {}))
            if (cells := self._window(name_of(*key))) is not None:
                self._shares.append(Share(stats, cells, now_ns))
        return self._stats[key]

    def tick(self, now_ns: int) -> None:
        """Take in what other workers learned, and give them ours."""
        for share in self._shares:
            share.sync(now_ns)

    def seen(self, now_ns: int) -> Seen:
        """For the metrics."""
        out: Seen = {}
        for key, breaker in self._breakers.items():
            out.setdefault("turnout_breaker_open", {})[key] = float(breaker.state(now_ns) == "open")
            if breaker.opens:
                out.setdefault("turnout_breaker_opens_total", {})[key] = breaker.opens
        for (route, _), purse in self._purses.items():
            if purse.refused:
                out.setdefault("turnout_hedges_refused_total", {})[(route,)] = purse.refused
        return out
