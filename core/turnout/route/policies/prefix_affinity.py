"""Requests whose prompts begin the same go to the same target, so that its provider's prompt cache hits."""

import hashlib
from collections.abc import Sequence
from math import log
from random import Random
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from ...exchange import Exchange, Target
from ...wire.request import NAMES
from ..draw import unit
from ..why import Why

_PROMPTS = tuple(2 * NAMES.index(name) for name in ("messages", "input", "prompt"))


class PrefixAffinity(msgspec.Struct, tag_field="kind", tag="prefix-affinity", frozen=True, forbid_unknown_fields=True):
    """Rendezvous hashing of tenant, model and the first `prefix_bytes` of the prompt, by weight (-w / ln u: Schindelhauer
    and Schomaker, 2005). A target that comes or goes moves only its own share of the prompts.

    `busiest`: one that has more than this many times the mean of the requests under way is passed over, so that one
    popular prompt cannot bury its target (consistent hashing with bounded loads, Mirrokni et al., 2016).
    """

    prefix_bytes: Annotated[int, Meta(ge=16, le=1_000_000)] = 4096
    busiest: Annotated[float, Meta(ge=1, le=100)] = 2.0

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        tenant = x.principal.tenant if x.principal else ""
        text = f"{tenant} {x.model} ".encode() + prompt(x)[: self.prefix_bytes]
        draws = unit(hashlib.blake2b(text, digest_size=16).digest(), targets)
        keys = [-t.weight / log(u) if t.weight > 0 else -1.0 for u, t in zip(draws, targets, strict=True)]
        most = self.busiest * (sum(t.stats.in_flight for t in targets) + 1) / len(targets) + 1
        full = [t.stats.in_flight >= most for t in targets]
        if why is not None:
            why += [
                {"target": t.label, "score": k, "in_flight": t.stats.in_flight, "full": f}
                for k, t, f in zip(keys, targets, full, strict=True)
            ]
        return sorted(range(len(targets)), key=lambda i: (full[i], -keys[i]))


def prompt(x: Exchange) -> bytes:
    """The prompt as it stands in the body: `messages`, else `input`, else `prompt`."""
    for at in _PROMPTS:
        if at + 1 < len(x.spans) and x.spans[at] >= 0:
            return x.body[x.spans[at] : x.spans[at + 1]]
    return x.body
