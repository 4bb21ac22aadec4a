"""The target with the fewest requests under way for its weight; ties are drawn."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..why import Why


class LeastBusy(msgspec.Struct, tag_field="kind", tag="least-busy", frozen=True, forbid_unknown_fields=True):
    """Weight 0 = only after all others have been tried."""

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        # One more than there are: that is how busy it would be.
        keys = [((t.stats.in_flight + 1) / t.weight if t.weight > 0 else float("inf"), rng.random()) for t in targets]
        if why is not None:
            why += [
                {"target": t.label, "score": k[0] if t.weight > 0 else None, "in_flight": t.stats.in_flight}
                for k, t in zip(keys, targets, strict=True)
            ]
        return sorted(range(len(targets)), key=keys.__getitem__)
