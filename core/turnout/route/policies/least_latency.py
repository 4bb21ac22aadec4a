"""The fastest healthy target: lowest expected time to the first token, divided by the chance to get one.

DESIGN, section 7. `stats.py` says what is known of a target; here it becomes an order:
- Score = expected seconds for this request / success. A target that fails fast never looks fast: only first tokens that
  came count as latency. (Success squared was tried: it shuns a fast target with one failure in five, where falling back
  is the faster way.)
- One that nothing, or nothing of late, is known of is expected to be as fast as the pool's median.
- Among those within `near` of the best the choice is the less busy of two at random (Mitzenmacher's power of two): workers
  that see the same figures must not all run to the same target.
- Probes: a target without traffic is asked every `probe_s` times its distance from the best (2 for one twice as slow, at
  most FAR), by a share of at most `explore` of the requests, so that one that has become better is found. After a probe
  that was surprisingly fast the next ones follow soon.
"""

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from ...exchange import Exchange, Target
from ..stats import FRESH_NS, Look
from ..why import Why

FAR = 6.0
SOON = 0.1
DOUBT = 0.1  # answers' worth of the pool's median in every estimate
CERTAIN = 10.0  # answers: from here on doubt would make less than a hundredth
UNKNOWN_S = 0.5  # where nothing is known of any target


class LeastLatency(msgspec.Struct, tag_field="kind", tag="least-latency", frozen=True, forbid_unknown_fields=True):
    near: Annotated[float, Meta(ge=0, le=1)] = 0.2
    explore: Annotated[float, Meta(ge=0, le=0.2)] = 0.02
    probe_s: Annotated[float, Meta(gt=0, le=600)] = 2.0
    half_life_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        scores, seconds = scored(targets, x, now_ns)
        order = sorted(range(len(targets)), key=scores.__getitem__)
        chosen, reason = order[0], "lowest score"
        if rng.random() < self.explore:
            unit_ns, best = self.probe_s * 1e9, seconds[order[0]]
            due = []
            for i in order[1:]:
                stats = targets[i].stats
                pause = SOON if stats.stream.better else min(seconds[i] / best, FAR)
                if now_ns - stats.begun_ns > pause * unit_ns:
                    due.append(i)
            if due:
                chosen, reason = min(due, key=lambda i: targets[i].stats.begun_ns), "probe: not asked for long"
        if chosen == order[0]:
            most = scores[chosen] * (1.0 + self.near)
            if scores[order[1]] <= most:
                close = [i for i in order if scores[i] <= most]
                n = len(close)
                a = int(rng.random() * n)
                b = (a + 1 + int(rng.random() * (n - 1))) % n
                a, b = close[min(a, b)], close[max(a, b)]
                chosen = b if targets[b].stats.in_flight < targets[a].stats.in_flight else a
                reason = "less busy of two that are nearly equal"
        if why is not None:
            describe(why, targets, x, now_ns)
            why.append({"target": targets[chosen].label, "chosen": reason})
        if chosen != order[0]:
            order.remove(chosen)
            order.insert(0, chosen)
        return order


def scored(targets: Sequence[Target], x: Exchange, now_ns: int) -> tuple[list[float], list[float]]:
    """Each target's score for this request, and the seconds to the first token (to a plain request's whole answer) that
    are expected in it."""
    stream = x.stream or x.assemble
    looks = []
    for target in targets:
        look = target.stats.seen if stream else target.stats.seen_plain
        # Not in the future either: a clock that was set by a test, or another's.
        looks.append(look if 0 <= look[0] - now_ns <= FRESH_NS else target.stats.look(stream, now_ns))
    if stream:
        size = float(len(x.body))
    else:
        # Answers differ in length by target as well: all are compared at one length, what is usual on the route.
        sizes = [look[4] for look in looks if look[4] > 0.0]
        size = sum(sizes) / len(sizes) if sizes else 0.0
    middle = -1.0
    seconds: list[float] = []
    for _, level, w, slope, usual, _ in looks:
        if slope:
            most = level + slope * (size - usual)
            level = most if most > level * 0.25 else level * 0.25
        if w < CERTAIN:
            if middle < 0.0:
                middle = _middle(looks)
            if w > 0.0:
                level = (level * w + DOUBT * middle) / (w + DOUBT)
            elif level < middle:
                level = middle
        seconds.append(level)
    return [s * look[5] for s, look in zip(seconds, looks, strict=True)], seconds


def _middle(looks: Sequence[Look]) -> float:
    """The median of what is known."""
    known = sorted(look[1] for look in looks if look[2] > 0.0)
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else UNKNOWN_S


def describe(why: Why, targets: Sequence[Target], x: Exchange, now_ns: int) -> None:
    for target, score, seconds in zip(targets, *scored(targets, x, now_ns), strict=True):
        stats = target.stats
        side = stats.stream if x.stream or x.assemble else stats.plain
        n, age = side.late(now_ns)
        why.append(
            {
                "target": target.label,
                "score": score,
                "expected_s": seconds,
                "answers": side.view(now_ns)[1],
                "success": stats.success(now_ns),
                "in_flight": stats.in_flight,
                "waiting": side.waiting,
                "late": n,
                "late_age_s": age,
            }
        )
