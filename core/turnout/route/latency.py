"""How long a target takes to its first token, of late. Pure; times are monotonic nanoseconds, estimates seconds.

What it keeps are sums of w * x and of w, w halving every half-life, so that two of them may be added (workers, hosts).
- Only first tokens that came count. Short prompts and long ones are told apart by a slope over the prompt's size, learned
  by least squares from the same sums.
- A long memory (`half_life_s`) says what is usual, a short one (a tenth of it) what is going on. The short one leads
  where it has seen more than `LEAN` answers of late; more, where answers differ a lot: a mean of few is mere chance then.
- Peaks: an attempt that still waits and is late counts with its age, as an answer that took that long at least. A target
  that has gone slow yields no answers to learn from, but its waiting attempts show it at once.
- Three surprises in a row, all twice as slow or all twice as fast as usual, are a change and no noise: the past then counts a
  hundredth. So a target that has healed is known after three probes, not after six half-lives.
"""

from math import exp2

HALF_LIFE_S = 10.0
SHORTER = 10.0  # the short memory's half-life is this much shorter
LEAN = 4.0  # answers' worth of the usual in the short memory
# More of them where the variance, in squares of the mean, is above the first figure. By James and Stein it would be five
# times as many; a bimodal target is believed in then, with the p99 of its slow answers (simulator: 2.2 s, against 1.1).
CALM, PER_VARIANCE, MOST_LEAN = 0.1, 12.0, 100.0
LATE = 2.0  # times the estimate: from then on a waiting attempt counts (simulator: at 1 usual noise moves the estimate)
SURPRISE = 2.0  # times more or less than usual
SURPRISES = 3  # in a row
FORGET = 0.01
LEAST_SPREAD = 1e-4  # of the squared sizes
STEADY = 3.0  # answers' worth of no slope at all: few points make no line


class Latency:
    """One target's time to the first token (or to the whole answer, where nothing is streamed)."""

    __slots__ = (
        "_at_ns",
        "_ever",
        "_late_n",
        "_late_sum",
        "_rate",
        "_run",
        "_short_rate",
        "_short_w",
        "_short_wx",
        "_waiting",
        "log",
        "news",
        "own",
        "ownx",
        "w",
        "wp",
        "wpp",
        "wpx",
        "wx",
        "wxx",
    )  # fmt: skip

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._rate = 1.0 / (half_life_s * 1e9)
        self._short_rate = self._rate * SHORTER
        self._at_ns = 0
        self.w = self.wx = self.wxx = 0.0
        # Of one's own answers, for the slope: those of others come without their sizes.
        self.own = self.ownx = self.wp = self.wpp = self.wpx = 0.0
        self._short_w = self._short_wx = 0.0
        self._ever = 0.0  # answers
        self._run = 0.0  # surprises in a row: above 0 slow ones, below fast ones
        self._waiting: dict[int, int] = {}  # attempt -> since when, oldest first; none of them late yet
        self._late_n = 0
        self._late_sum = 0  # of since when, of the late ones
        self.news = False  # something has happened since somebody set this back
        self.log: list[float] | None = None  # seconds at the usual size, for others: see share.py

    # ---- what happens

    def begin(self, attempt: int, now_ns: int) -> None:
        self._waiting[attempt] = now_ns
        self.news = True

    def end(self, attempt: int, began_ns: int) -> None:
        """It waits no more, whatever came."""
        self.news = True
        if self._waiting.pop(attempt, None) is None and self._late_n:
            self._late_n -= 1
            self._late_sum -= began_ns

    def saw(self, seconds: float, size: float, now_ns: int) -> None:
        """An answer began after so long; `size` of its prompt (any unit, one for all). O(1)."""
        self._compare(seconds, size, 1, now_ns)
        self.merge(1.0, seconds, size, size * size, size * seconds, now_ns)
        if (log := self.log) is not None:
            slope, usual = self.line()
            log.append(max(0.0, seconds - slope * (size - usual)))

    def heard(self, n: float, seconds: float, now_ns: int) -> None:
        """Others saw `n` answers, which took so long on average at a usual size. What is usual is the same for all, as
        all get the same mix of requests; the slope is learned from one's own alone."""
        self._compare(seconds, self.usual_size, n, now_ns)
        self._age(now_ns)
        self._add(n, n * seconds, n * seconds * seconds, n * seconds)

    def _add(self, n: float, x: float, xx: float, level: float) -> None:
        self.news = True
        self._ever += n
        self.w += n
        self.wx += x
        self.wxx += xx
        self._short_w += n
        self._short_wx += level

    def _compare(self, seconds: float, size: float, n: float, now_ns: int) -> None:
        """Whether this is a surprise, and with those before it a change."""
        if self.w <= 1.0:
            return
        slope, middle = self.line()
        extra = slope * (size - middle)
        usual = self.wx / self.w + extra
        if seconds > SURPRISE * usual:
            self._run = max(0.0, self._run) + n
        elif seconds * SURPRISE < usual:
            self._run = min(0.0, self._run) - n
        else:
            self._run = 0.0
        if abs(self._run) >= SURPRISES:
            self._run = 0.0
            self._scale(FORGET, FORGET)
            again = SURPRISES - 1.0  # the newest stands for all of them
            self._age(now_ns)
            self._add(again, again * seconds, again * seconds * seconds, again * max(0.0, seconds - extra))

    def merge(self, n: float, x: float, p: float, pp: float, px: float, now_ns: int) -> None:
        """Add `n` answers: the sums of their seconds, sizes, squared sizes and products."""
        self._age(now_ns)
        self.own += n
        self.ownx += x
        self.wp += p
        self.wpp += pp
        self.wpx += px
        # The short memory compares targets at the size that is usual here. No answer would have come before it was asked
        # for, whatever the slope says of a large prompt that was answered fast.
        level = max(0.0, x - self.slope() * (p - n * self.usual_size)) if self.own > n else x
        self._add(n, x, x * x / n, level)

    def _age(self, now_ns: int) -> None:
        past = now_ns - self._at_ns
        if past > 0:
            if self._at_ns:
                self._scale(exp2(-past * self._rate), exp2(-past * self._short_rate))
            else:
                self._scale(0.0, 0.0)
            self._at_ns = now_ns

    def _scale(self, f: float, short: float) -> None:
        """What the long memory and the short one have seen counts so much less."""
        self.w *= f
        self.wx *= f
        self.wxx *= f
        self.own *= f
        self.ownx *= f
        self.wp *= f
        self.wpp *= f
        self.wpx *= f
        self._short_w *= short
        self._short_wx *= short

    # ---- what is to be expected

    def line(self) -> tuple[float, float]:
        """Seconds more for each unit of size, never below 0, and the usual size."""
        w = self.own
        if w <= 1.0:
            return 0.0, (self.wp / w if w > 0.0 else 0.0)
        wp, wpp = self.wp, self.wpp
        usual = wp / w
        spread = wpp - wp * usual
        shared = self.wpx - usual * self.ownx
        if spread <= LEAST_SPREAD * wpp or shared <= 0.0:  # all of one size: what is left is rounding
            return 0.0, usual
        return shared / (spread * (1.0 + STEADY / w)), usual

    def slope(self) -> float:
        return self.line()[0]

    def view(self, now_ns: int) -> tuple[float, float]:
        """Seconds to expect at the usual size, and how many answers (aged) that rests on. (age, 0): no answer ever came,
        but there are attempts that have waited so long on average.

        O(late ones that are new).
        """
        w = self.w
        past = max(0, now_ns - self._at_ns)
        usual = level = 0.0
        n = 0.0
        if w > 0.0:
            usual = self.wx / w
            f = exp2(-past * self._short_rate)
            lean, variance = LEAN, self.wxx / w / (usual * usual) - 1.0
            if variance > CALM:
                lean = min(LEAN + PER_VARIANCE * (variance - CALM), MOST_LEAN)
            n = self._short_w * f + lean
            level = (self._short_wx * f + lean * usual) / n
            w *= exp2(-past * self._rate)
        waiting = self._waiting
        if waiting:
            late_ns = now_ns - int(LATE * level * 1e9)
            while waiting:
                first = next(iter(waiting))
                since_ns = waiting[first]
                if since_ns > late_ns:
                    break
                del waiting[first]
                self._late_n += 1
                self._late_sum += since_ns
        if self._late_n:
            ages = (self._late_n * now_ns - self._late_sum) / 1e9
            if ages > level * self._late_n:
                level = (level * n + ages) / (n + self._late_n)
        return level, w

    @property
    def usual_size(self) -> float:
        return self.wp / self.own if self.own > 0.0 else 0.0

    @property
    def doubtful(self) -> bool:
        """The last answer was surprisingly fast, which may be a change; or there were hardly any, of which the first may have
        waited for a connection."""
        return self._run < 0 or self._ever < SURPRISES

    @property
    def waiting(self) -> int:
        return len(self._waiting) + self._late_n

    def late_from_ns(self, level: float) -> int:
        """When the next of those that wait counts, if `level` stays; 0: some do, and more with every moment."""
        if self._late_n:
            return 0
        return next(iter(self._waiting.values())) + int(LATE * level * 1e9)

    def late(self, now_ns: int) -> tuple[int, float]:
        """How many wait longer than they should, and their mean age in seconds."""
        n = self._late_n
        return n, (n * now_ns - self._late_sum) / 1e9 / n if n else 0.0
