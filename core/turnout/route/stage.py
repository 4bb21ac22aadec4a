"""Finding the route of a request and ranking its targets."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

from ..errors import Fault
from ..exchange import Exchange, Principal, Route, Target
from .why import Why

ANY = ("*",)  # what a key may ask for when nothing is said
MOST_NAME = 200
MOST_MET = 1024  # model names whose pattern is remembered; callers choose names, so there is an end to it


def matches(pattern: str, name: str) -> bool:
    """`*` stands for any run of characters; everything else for itself."""
    return pattern == "*" or pattern == name or ("*" in pattern and _compiled(pattern).match(name) is not None)


_patterns: dict[str, re.Pattern[str]] = {}


def _compiled(pattern: str) -> re.Pattern[str]:
    found = _patterns.get(pattern)
    if found is None:
        found = re.compile(".*".join(re.escape(part) for part in pattern.split("*")) + r"\Z", re.DOTALL)
        _patterns[pattern] = found
    return found


class Routes:
    """The routes of one config. Exact names are found in O(1), patterns in the order of the file."""

    def __init__(self, routes: Sequence[Route], direct: dict[str, Route], rng: Random) -> None:
        self.all = tuple(routes)
        self._exact = {r.match: r for r in routes if "*" not in r.match}
        self._patterns = tuple(r for r in routes if "*" in r.match)
        self._named = {r.name: r for r in routes}
        self._met: dict[str, Route | None] = {}
        self._direct = direct  # provider name -> a route that passes the model's name on
        self._rng = rng

    def find(self, x: Exchange) -> Route:
        """The route for what was asked. Raises Fault no_route or not_allowed."""
        model, principal = x.model, x.principal
        assert principal is not None
        route = self._exact.get(model)
        if route is None and principal.direct and "/" in model:
            # Before the patterns: `*` would swallow what a key may ask of a provider by name.
            provider, _, rest = model.partition("/")
            route = self._direct.get(provider) if rest else None
        if route is None:
            route = self._by_pattern(model)
        if x.asked_route:
            named = self._named.get(x.asked_route)
            if named is None or not matches(named.match, model):
                raise Fault("no_route", f"no route named {x.asked_route!r} serves the model {model!r}", param="model")
            route = named
        if route is None or (principal.models != ANY and not self._allowed(principal, model)):
            # The same words as for a model that does not exist: what others may use is nobody's business.
            raise _unknown(model)
        return route

    def _by_pattern(self, model: str) -> Route | None:
        """The first route whose pattern fits; remembered for the names that are asked for again and again."""
        if model in self._met:
            return self._met[model]
        route = next((r for r in self._patterns if matches(r.match, model)), None)
        if len(self._met) < MOST_MET and len(model) <= MOST_NAME:
            self._met[model] = route
        return route

    def _allowed(self, principal: Principal, model: str) -> bool:
        return principal.models == ANY or any(matches(p, model) for p in principal.models)

    def names_for(self, principal: Principal) -> list[str]:
        """The models this key may ask for by name: patterns are listed as they stand."""
        return [r.match for r in self.all if self._allowed(principal, r.match)]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is drawn in here will be drawn again."""
        state = self._rng.getstate()
        try:
            yield
        finally:
            self._rng.setstate(state)

    def rank(self, route: Route, x: Exchange, now_ns: int, why: Why | None = None) -> Sequence[Target]:
        """The targets of the route, best first. Accounts of one target share its load by their weights."""
        heads = route.heads
        order: Sequence[int] = (0,)
        if len(heads) > 1:
            ranker = route.tree or route.policy
            order = ranker.rank(heads, x, now_ns, self._rng, why)
            if ranker.turns and why is None:
                _turn(route, order[0])
        elif not route.spread:
            return heads
        if not route.spread:
            return [heads[i] for i in order]
        groups = route.groups
        out: list[Target] = []
        for i in order:
            group = groups[i]
            if len(group) == 1:
                out.append(group[0])
            else:
                draw = self._rng.random
                out += sorted(group, key=lambda t: draw() ** (1.0 / t.account_weight), reverse=True)
        return out


def _turn(route: Route, first: int) -> None:
    if route.tree is not None:
        route.tree.took(route.heads, first)
    else:
        route.policy.took(route.heads)


def _unknown(model: str) -> Fault:
    return Fault("no_route", f"the model {model!r} does not exist or you do not have access to it", param="model")
