"""A random order in which a target's chance to stand first is its share of the weights."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..draw import shares
from ..why import Why


class Weighted(msgspec.Struct, tag_field="kind", tag="weighted", frozen=True, forbid_unknown_fields=True):
    """Weight 0 = only after all others have been tried.

    The order behind the first is drawn the same way, without replacement (Efraimidis and Spirakis, 2006: sort by
    u ** (1 / w)), so that what a dead target leaves goes to the others by their weights, not all to one neighbour.
    `sticky`: requests of one `x-turnout-session` draw the same numbers, so they stay together while the weights stay, and
    of a target that is added or gone they take only its share with them.
    """

    sticky: bool = False

    counts: ClassVar[bool] = False
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        if self.sticky and x.session:
            draws = shares(f"{x.principal.tenant if x.principal else ''} {x.session}", targets)
        else:
            draw = rng.random
            draws = [draw() for _ in targets]
        keys = [u ** (1.0 / t.weight) if t.weight > 0 else -u for u, t in zip(draws, targets, strict=True)]
        if why is not None:
            why += [{"target": t.label, "score": k, "weight": t.weight} for k, t in zip(keys, targets, strict=True)]
        return sorted(range(len(targets)), key=keys.__getitem__, reverse=True)
