"""Each target in its turn."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..why import Why


class RoundRobin(msgspec.Struct, tag_field="kind", tag="round-robin", frozen=True, forbid_unknown_fields=True):
    """The turn is kept with the route's statistics, so a reload goes on where it was. Each worker has its own."""

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = True

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        n = len(targets)
        at = targets[0].stats.turns.get(_key(targets), 0) % n
        if why is not None:
            why += [{"target": t.label, "score": (i - at) % n} for i, t in enumerate(targets)]
        return [*range(at, n), *range(at)]

    def took(self, targets: Sequence[Target]) -> None:
        """A request went by the order that `rank` gave."""
        turns, key = targets[0].stats.turns, _key(targets)
        turns[key] = (turns.get(key, 0) + 1) % len(targets)


def _key(targets: Sequence[Target]) -> str:
    return f"{targets[0].label} {targets[-1].label}"
