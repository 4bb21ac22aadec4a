"""A random order in which a target's chance to stand first is its share of the weights."""

from collections.abc import Sequence
from random import Random

import msgspec

from ...exchange import Target


class Weighted(msgspec.Struct, tag_field="kind", tag="weighted", frozen=True, forbid_unknown_fields=True):
    """Weight 0 = only after all others have been tried.

    The order behind the first is drawn the same way, without replacement (Efraimidis and Spirakis, 2006: sort by
    u ** (1 / w)), so that what a dead target leaves goes to the others by their weights, not all to one neighbour.
    """

    def rank(self, targets: Sequence[Target], rng: Random) -> Sequence[int]:
        draw = rng.random
        keys = [draw() ** (1.0 / t.weight) if t.weight > 0 else -draw() for t in targets]
        return sorted(range(len(targets)), key=keys.__getitem__, reverse=True)
