"""The target with the largest share of its minute's requests and tokens left."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..why import Why


class Usage(msgspec.Struct, tag_field="kind", tag="usage", frozen=True, forbid_unknown_fields=True):
    """By `rpm` and `tpm` of the targets: the scarcer of the two counts. Those that have nothing left come last, and
    those without limits are as good as unused. Ties are drawn."""

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        keys: list[tuple[float, float]] = []
        for target in targets:
            requests, tokens = target.stats.used(now_ns)
            share = 0.0
            if target.rpm:
                share = (requests + 1) / target.rpm
            if target.tpm:
                share = max(share, (tokens + target.stats.prompt_rate * len(x.body)) / target.tpm)
            keys.append((share, rng.random()))
            if why is not None:
                why.append({"target": target.label, "score": share, "requests": requests, "tokens": tokens})
        return sorted(range(len(targets)), key=keys.__getitem__)
