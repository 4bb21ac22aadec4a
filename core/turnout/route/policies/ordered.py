"""The targets as they stand in the config: the first that works."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..why import Why


class Ordered(msgspec.Struct, tag_field="kind", tag="ordered", frozen=True, forbid_unknown_fields=True):
    counts: ClassVar[bool] = False  # asks for no statistics
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        return range(len(targets))
