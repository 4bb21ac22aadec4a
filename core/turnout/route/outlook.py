"""What each target of a route is expected to take for a request, divided by its chance of success: the scores of
`least-latency`.

They are reckoned from the statistics once for FRESH_NS and not for every request: what is left to do for one is a line over
its prompt's size for each target. Whoever asks within that time, a policy or `explain`, gets the same.
"""

from collections.abc import Sequence

from ..exchange import Exchange, Target
from .stats import FRESH_NS, Look

# Answers' worth of the pool's median in every estimate: one that nothing, or nothing of late, is known of is expected to be
# as fast as that.
DOUBT = 0.1
CERTAIN = 10.0  # answers: from here on doubt would make less than a hundredth
UNKNOWN_S = 0.5  # where nothing is known of any target


class Outlook:
    """Of some targets, for streams (time to the first token) or for plain requests (to the whole answer)."""

    __slots__ = ("doubtful", "lines", "order", "size", "targets", "tries", "until_ns")

    def __init__(self, targets: Sequence[Target], stream: bool, now_ns: int) -> None:
        """O(targets): 0.5 us for one that nothing has happened to, 1.5 us for others."""
        looks = [target.stats.look(stream, now_ns) for target in targets]
        self.targets = targets
        self.until_ns = now_ns + FRESH_NS
        self.tries = [look[4] for look in looks]  # 1 / success
        self.doubtful = [i for i, t in enumerate(targets) if (t.stats.stream if stream else t.stats.plain).doubtful]
        # Answers differ in length by target as well: all are compared at one length, what is usual on the route.
        sizes = [] if stream else [look[3] for look in looks if look[3] > 0.0]
        self.size = sum(sizes) / len(sizes) if sizes else 0.0
        middle = -1.0
        lines: list[tuple[float, float, float]] = []
        for _, level, w, _, tries, line in looks:
            if w < CERTAIN:
                if middle < 0.0:
                    middle = _middle(looks)
                if w > 0.0:
                    k = w / (w + DOUBT)
                    rest = tries * middle * (1.0 - k)
                    a, b, c = line
                    line = (k * a + rest, k * b, k * c + rest)
                else:  # an attempt may wait, and longer than that
                    line = (tries * max(level, middle), 0.0, 0.0)
            lines.append(line)
        self.lines = lines  # a, b, c: the score is a + b * size, and c at least
        scores = self.scores(self.size or max(look[3] for look in looks))
        self.order = sorted(range(len(looks)), key=scores.__getitem__)  # about: what is nearly sorted is sorted faster

    def scores(self, size: float) -> list[float]:
        return [s if (s := a + b * size) > c else c for a, b, c in self.lines]


def outlook(targets: Sequence[Target], stream: bool, now_ns: int) -> Outlook:
    """The present one. It is kept with the first target's statistics."""
    stats = targets[0].stats
    known: Outlook | None = stats.outlook if stream else stats.outlook_plain
    # Not in the future either: a clock that was set by a test, or another's.
    if known is None or known.targets is not targets or not 0 <= known.until_ns - now_ns <= FRESH_NS:
        known = Outlook(targets, stream, now_ns)
        if stream:
            stats.outlook = known
        else:
            stats.outlook_plain = known
    return known


def scored(targets: Sequence[Target], x: Exchange, now_ns: int) -> tuple[list[float], list[float]]:
    """Each target's score for this request, and the seconds to the first token (to a plain request's whole answer) that
    are expected in it."""
    stream = x.stream or x.assemble
    now = outlook(targets, stream, now_ns)
    scores = now.scores(len(x.body) if stream else now.size)
    return scores, [score / tries for score, tries in zip(scores, now.tries, strict=True)]


def _middle(looks: Sequence[Look]) -> float:
    """The median of what is known."""
    known = sorted(look[1] for look in looks if look[2] > 0.0)
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else UNKNOWN_S
