"""A route's targets as a tree: groups with a policy of their own stand in the one above for the best of theirs."""

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

import msgspec

from ..exchange import Exchange, Target
from .why import Why


class Branch(msgspec.Struct, kw_only=True, eq=False):
    """`children`: numbers of the route's targets, or branches."""

    policy: Any
    children: "tuple[int | Branch, ...]"
    label: str = ""
    turns: ClassVar[bool] = True
    weight: float = 1.0

    def rank(
        self, heads: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        """Numbers of targets, best first. Of a group all come, in its own order, where the group's turn is."""
        candidates: list[Target] = []
        inside: list[Sequence[int]] = []
        for child in self.children:
            if isinstance(child, int):
                candidates.append(heads[child])
                inside.append((child,))
                continue
            below: Why | None = None if why is None else []
            order = child.rank(heads, x, now_ns, rng, below)
            if why is not None:
                why.append({"group": child.label, "policy": kind(child.policy), "candidates": below})
            candidates.append(msgspec.structs.replace(heads[order[0]], label=child.label, weight=child.weight))
            inside.append(order)
        if len(candidates) == 1:
            return inside[0]
        return [i for at in self.policy.rank(candidates, x, now_ns, rng, why) for i in inside[at]]

    def took(self, heads: Sequence[Target], first: int) -> bool:
        """A request went by an order that begins with target `first`: all policies on the way there take note. Returns
        whether it is in here."""
        way = next((c for c in self.children if c == first or (isinstance(c, Branch) and c.took(heads, first))), None)
        if way is None:
            return False
        if self.policy.turns:
            # As `rank` sees them, by name; whose statistics stand for a group does not matter, turns are the route's.
            self.policy.took([heads[c] if isinstance(c, int) else c.stand_in(heads) for c in self.children])
        return True

    def stand_in(self, heads: Sequence[Target]) -> Target:
        child = self.children[0]
        lead = heads[child] if isinstance(child, int) else child.stand_in(heads)
        return msgspec.structs.replace(lead, label=self.label, weight=self.weight)


def kind(policy: Any) -> str:
    return str(type(policy).__struct_config__.tag)
