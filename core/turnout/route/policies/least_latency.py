"""The fastest healthy target: lowest expected time to the first token, divided by the chance to get one.

DESIGN, section 7. `stats.py` says what is known of a target, `outlook.py` makes scores of it; here they become an order:
- Score = expected seconds for this request / success. A target that fails fast never looks fast: only first tokens that
  came count as latency. (Success squared was tried: it shuns a fast target with one failure in five, where falling back
  is the faster way.)
- Those within `near` of the best share the load by how near they are: of two at random (Mitzenmacher's power of two: workers
  that see the same figures must not all run to the same target) one may have as many requests under way as its score
  lies below the limit. So a crowded target spills over to the next, and a little change of scores moves a little load.
  (The fewest under way alone swings: under bursts a regret of 16 %, against 8. How busy a target is against what is usual
  for it, as a factor of the score, moved load too late and too far. A smaller `near` gives a lower p99 where nothing is
  crowded, 0.3 the lower mean everywhere and shares that swing half as far as with 0.25: bench/routing.)
- Probes: a target without traffic is asked every `probe_s` times its distance from the best (2 for one twice as slow, at
  most FAR), by a share of at most `explore` of the requests, so that one that has become better is found. While one was
  surprisingly fast the last time, or has hardly been asked, more requests may ask it, soon: three answers decide.
"""

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from ...exchange import Exchange, Target
from ..outlook import Outlook, outlook
from ..why import Why

FAR = 3.0
SOON = 0.1
FOLLOW = 10.0  # times `explore`, while one is in doubt


class LeastLatency(msgspec.Struct, tag_field="kind", tag="least-latency", frozen=True, forbid_unknown_fields=True):
    near: Annotated[float, Meta(ge=0, le=1)] = 0.3
    explore: Annotated[float, Meta(ge=0, le=0.2)] = 0.02
    probe_s: Annotated[float, Meta(gt=0, le=600)] = 4.0
    half_life_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        stream = x.stream or x.assemble
        seen = outlook(targets, stream, now_ns)
        size = len(x.body) if stream else seen.size
        scores = [s if (s := a + b * size) > c else c for a, b, c in seen.lines]  # as Outlook.scores, without a call
        order = sorted(seen.order, key=scores.__getitem__)
        best = chosen = order[0]
        reason = "lowest score"
        explore = self.explore * FOLLOW if seen.doubtful else self.explore
        if rng.random() < explore and (due := self._due(targets, order, seen, scores, stream, now_ns)):
            chosen, reason = min(due, key=lambda i: targets[i].stats.begun_ns), "probe: not asked for long"
        most = scores[best] * (1.0 + self.near)
        if chosen == best and scores[order[1]] <= most:
            n = 2
            while n < len(order) and scores[order[n]] <= most:
                n += 1
            a = int(rng.random() * n)
            b = (a + 1 + int(rng.random() * (n - 1))) % n
            a, b = order[a], order[b]
            room_a = (most - scores[a]) * (targets[b].stats.in_flight + 1)
            room_b = (most - scores[b]) * (targets[a].stats.in_flight + 1)
            chosen = b if room_b > room_a else a
            reason = "more room of two that are nearly equal"
        if why is not None:
            describe(why, targets, scores, seen.tries, stream, now_ns)
            why.append({"target": targets[chosen].label, "chosen": reason})
        if chosen != best:
            order.remove(chosen)
            order.insert(0, chosen)
        return order

    def _due(
        self, targets: Sequence[Target], order: list[int], seen: Outlook, scores: list[float], stream: bool, now_ns: int
    ) -> list[int]:
        """Those that should be asked to see how they are; where some are in doubt and nobody waits for their answer, of
        those. None that its breaker would not let ask: it would stand in the way of the others."""
        unit_ns = self.probe_s * 1e9
        best = scores[order[0]] / seen.tries[order[0]]
        soon: list[int] = []
        due: list[int] = []
        for i in order[1:]:
            stats = targets[i].stats
            idle = (now_ns - stats.begun_ns) / unit_ns
            if idle > SOON and targets[i].health.allows(now_ns):
                if i in seen.doubtful and not (stats.stream if stream else stats.plain).waiting:
                    soon.append(i)
                if idle > min(scores[i] / seen.tries[i] / best, FAR):
                    due.append(i)
        return soon or due


def describe(
    why: Why, targets: Sequence[Target], scores: Sequence[float], tries: Sequence[float], stream: bool, now_ns: int
) -> None:
    for target, score, times in zip(targets, scores, tries, strict=True):
        stats = target.stats
        side = stats.stream if stream else stats.plain
        n, age = side.late(now_ns)
        why.append(
            {
                "target": target.label,
                "score": score,
                "expected_s": score / times,
                "answers": side.view(now_ns)[1],
                "success": stats.success(now_ns),
                "in_flight": stats.in_flight,
                "waiting": side.waiting,
                "late": n,
                "late_age_s": age,
            }
        )
