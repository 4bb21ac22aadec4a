"""Which targets, by what the request is: the first rule that fits decides."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from ...exchange import Exchange, Target
from ..condition import Condition, all_met
from ..why import Why


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"when": "if"}):
    """If all conditions are met, these targets, in this order, and no others."""

    when: list[Condition]
    to: list[str]  # names of targets of this route (or group)


class Conditional(msgspec.Struct, tag_field="kind", tag="conditional", frozen=True, forbid_unknown_fields=True):
    """`otherwise`: when no rule fits; not set, all targets as they stand. A fallback stays among the rule's targets: a
    rule that may fall back on others names them behind."""

    rules: list[Rule]
    otherwise: list[str] = []

    counts: ClassVar[bool] = False
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        names, reason = self.otherwise, "no rule fits"
        for i, rule in enumerate(self.rules):
            if all_met(rule.when, x):
                names, reason = rule.to, f"rules[{i}] fits"
                break
        if why is not None:
            why.append({"chosen": reason, "to": names})
        if not names:
            return range(len(targets))
        place = {target.label: i for i, target in enumerate(targets)}
        return [place[name] for name in names]
