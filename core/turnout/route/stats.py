"""What is known of one target of one route: latency, success, load, tokens. Pure; `now` comes in.

Fed where attempts begin, commit, end and fail (asking.py, streaming.py); read by the policies. An attempt calls `begin`
once, then one of `first` (its first content token, or a whole answer), `failed`, `outrun` (another was first) and `dropped`
(no verdict: the client left, or its own mistake), and `done` once, when the target is rid of it.
"""

from math import exp2
from typing import Any

from .latency import FORGET, HALF_LIFE_S, Latency
from .sketch import Sketch

SUCCESS_HALF_LIFE_S = 5.0  # a success rate is needed sooner than a latency: fallbacks cost their users at once
DOWN = 5  # failures in a row are a change and no bad luck, as for the breaker: the past then counts a hundredth
HOPE = 2.0  # attempts' worth of success that is assumed of whoever nothing is known of
MINUTE = 12  # cells of five seconds
_CELL_NS = 5_000_000_000
_RATE = 1.0 / (SUCCESS_HALF_LIFE_S * 1e9)
TOKENS_RATE = 0.02  # weight of the newest answer in the mean length of answers


# Good until, seconds at the usual size, how many answers that rests on, the usual size, 1 / success, and the score as a line
# over the size of a request: a + b * size, and c at least.
Look = tuple[int, float, float, float, float, tuple[float, float, float]]
FRESH_NS = (
    20_000_000  # what was reckoned holds for so long whatever happens: as the tick by which workers share what they see
)
HOLD_NS = 100_000_000  # and so long where nothing happens: a tenth of the short memory's usual half-life
_NEVER: Look = (-1, 0.0, 0.0, 0.0, 1.0, (0.0, 0.0, 0.0))
LEAST = 0.25  # of what is usual: a short prompt takes no less


class Stats:
    """Of one (route, target)."""

    __slots__ = (
        "_at_ns", "_bad", "_good", "_minute", "_stamp", "_tried", "begun_ns", "completion", "gap_s", "in_flight", "log", "outlook", "outlook_plain", "plain",
        "prompt_rate", "returned_ns", "seen", "seen_plain", "sketch", "stream", "turns",
    )  # fmt: skip

    def __init__(self, half_life_s: float = HALF_LIFE_S, turns: dict[str, int] | None = None) -> None:
        """`turns`: one for all targets of a route."""
        self.stream = Latency(half_life_s)  # to the first content token, over the prompt's bytes
        self.plain = Latency(half_life_s)  # to the whole answer, over its tokens
        self.sketch = Sketch()  # of `stream`
        self._good = self._tried = 0.0
        self._bad = 0.0  # failures in a row
        self._at_ns = 0
        self.in_flight = 0
        self.begun_ns = 0  # the last attempt
        self.gap_s = 0.0  # between tokens
        self.completion = 0.0  # tokens of an answer, 0: not known
        self.prompt_rate = 0.25  # tokens for a byte of the request
        self._minute: list[int] = [0] * (2 * MINUTE)  # requests, then tokens, of the last sixty seconds
        self._stamp = 0
        self.seen = self.seen_plain = _NEVER  # the last looks
        self.outlook: Any = None  # of the route's targets that this is the first of, see outlook.py
        self.outlook_plain: Any = None
        self.turns = {} if turns is None else turns  # round-robin's
        self.returned_ns = 0  # when its breaker closed again; 0: long ago
        self.log: list[int] | None = None  # attempts that succeeded, that failed, that began: for others, see share.py

    # ---- what happens

    def begin(self, attempt: int, stream: bool, now_ns: int) -> None:
        self.in_flight += 1
        self.begun_ns = now_ns
        if self.log is not None:
            self.log[2] += 1
        self._count(0, 1, now_ns)
        (self.stream if stream else self.plain).begin(attempt, now_ns)

    def first(self, attempt: int, began_ns: int, took_ns: int, size: int, now_ns: int) -> None:
        """The first content token of a stream, after `took_ns`; its request has `size` bytes."""
        self.stream.end(attempt, began_ns)
        seconds = took_ns / 1e9
        self.stream.saw(seconds, size, now_ns)
        self.sketch.add(seconds, now_ns)
        self.verdict(True, now_ns)

    def whole(self, attempt: int, began_ns: int, tokens: int, now_ns: int) -> None:
        """A whole answer at once."""
        self.plain.end(attempt, began_ns)
        self.plain.saw((now_ns - began_ns) / 1e9, tokens, now_ns)
        self.verdict(True, now_ns)

    def failed(self, attempt: int, began_ns: int, stream: bool, now_ns: int) -> None:
        """Before its first token, or (again) in the middle of its answer. How fast says nothing: it never looks fast."""
        (self.stream if stream else self.plain).end(attempt, began_ns)
        self.verdict(False, now_ns)

    def outrun(self, attempt: int, began_ns: int, size: int, slow: bool, now_ns: int) -> None:
        """Given up before its first token, as another target was faster: neither a success nor a failure. It would have
        taken longer than this, which says something if it had its time (`slow`) or this is more than usual."""
        side = self.stream
        side.end(attempt, began_ns)
        seconds = (now_ns - began_ns) / 1e9
        if slow or (side.w > 0.0 and seconds > side.wx / side.w + side.slope() * (size - side.usual_size)):
            side.saw(seconds, size, now_ns)
            self.sketch.add(seconds, now_ns)

    def dropped(self, attempt: int, began_ns: int, stream: bool) -> None:
        (self.stream if stream else self.plain).end(attempt, began_ns)

    def done(self) -> None:
        self.in_flight -= 1

    def tokens(self, size: int, prompt: int, completion: int, span_ns: int, now_ns: int) -> None:
        """The usage of an answer to a request of `size` bytes; `span_ns` from its first token to its last, 0: unknown."""
        if completion > 0:
            known = self.completion
            self.completion = completion + 0.0 if not known else known + TOKENS_RATE * (completion - known)
            if span_ns and completion > 1:
                gap = span_ns / 1e9 / (completion - 1)
                self.gap_s = gap if not self.gap_s else self.gap_s + 0.1 * (gap - self.gap_s)
        if prompt > 0 and size:
            self.prompt_rate += TOKENS_RATE * (min(prompt / size, 1.0) - self.prompt_rate)
        self._count(MINUTE, prompt + completion, now_ns)

    def verdict(self, good: bool, now_ns: int) -> None:
        self.judge(float(good), 1.0, now_ns)
        if (log := self.log) is not None:
            log[0 if good else 1] += 1

    def judge(self, good: float, tried: float, now_ns: int) -> None:
        """`good` of `tried` attempts succeeded."""
        if good:
            self._bad = 0.0
        else:
            before, self._bad = self._bad, self._bad + tried
            if before < DOWN <= self._bad:
                self._good *= FORGET
                self._tried = self._tried * FORGET + before
        f = exp2((self._at_ns - now_ns) * _RATE) if now_ns > self._at_ns else 1.0
        self._good = self._good * f + good
        self._tried = self._tried * f + tried
        self._at_ns = max(now_ns, self._at_ns)
        self.seen = self.seen_plain = _NEVER

    def _count(self, first: int, n: int, now_ns: int) -> None:
        stamp = now_ns // _CELL_NS
        if stamp > self._stamp:
            for old in range(max(self._stamp + 1, stamp - MINUTE + 1), stamp + 1):
                self._minute[old % MINUTE] = self._minute[MINUTE + old % MINUTE] = 0
            self._stamp = stamp
        self._minute[first + stamp % MINUTE] += n

    # ---- what is known

    def look(self, stream: bool, now_ns: int) -> Look:
        """What a score is made of. It is the last one where nothing has happened since and no attempt has become late."""
        side, seen = (self.stream, self.seen) if stream else (self.plain, self.seen_plain)
        if not side.news and 0 <= seen[0] - now_ns <= HOLD_NS:
            return seen
        side.news = False
        level, w = side.view(now_ns)
        slope, usual = side.line()
        until_ns = min(now_ns + HOLD_NS, side.late_from_ns(level)) if side.waiting else now_ns + HOLD_NS
        tries = 1.0 / self.success(now_ns)
        line = (tries * (level - slope * usual), tries * slope, tries * level * LEAST)
        look = (until_ns, level, w, usual, tries, line)
        if stream:
            self.seen = look
        else:
            self.seen_plain = look
        return look

    def success(self, now_ns: int) -> float:
        """The share of attempts that succeed, of late; 1 of one that nothing is known of."""
        f = exp2((self._at_ns - now_ns) * _RATE) if now_ns > self._at_ns else 1.0
        return (self._good * f + HOPE) / (self._tried * f + HOPE)

    def used(self, now_ns: int) -> tuple[int, int]:
        """Requests and tokens of the last minute."""
        self._count(0, 0, now_ns)
        return sum(self._minute[:MINUTE]), sum(self._minute[MINUTE:])
