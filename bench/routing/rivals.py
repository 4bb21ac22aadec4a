"""What other gateways do, as far as their sources show, and an oracle. Each keeps its own figures in each worker; fallbacks,
breakers and retries are ours for all of them, so that only the choice is compared."""

from collections import deque
from math import exp
from random import Random

from world import Place

from turnout.exchange import Exchange, Target


class Rival:
    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        self.n = len(targets)
        self.places = places
        self.rng = rng
        self.busy = [0] * self.n

    def score(self, i: int) -> float:
        return 0.0

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        order = list(range(self.n))
        self.rng.shuffle(order)
        return sorted(order, key=self.score)

    def began(self, i: int, key: int, now_ns: int) -> None:
        self.busy[i] += 1

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None: ...

    def first(self, i: int, key: int, began_ns: int, size: int, now_ns: int) -> None:
        self.saw(i, (now_ns - began_ns) / 1e9, True, False)

    def failed(self, i: int, key: int, began_ns: int, now_ns: int) -> None:
        self.busy[i] -= 1
        self.saw(i, (now_ns - began_ns) / 1e9, False, True)

    def ended(self, i: int, took_s: float) -> None:
        self.busy[i] -= 1
        self.saw(i, took_s, True, True)


class Shuffle(Rival):
    pass


class Turns(Rival):
    at = 0

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        self.at += 1
        return [(self.at + k) % self.n for k in range(self.n)]


class Busy(Rival):
    def score(self, i: int) -> float:
        return self.busy[i]


class Last10(Rival):
    """The mean of the last ten times to the first token; who has none goes first. Failures are not told apart."""

    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        super().__init__(targets, places, rng)
        self.last: list[deque[float]] = [deque(maxlen=10) for _ in targets]

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None:
        if not (good and whole):
            self.last[i].append(seconds)

    def score(self, i: int) -> float:
        return sum(self.last[i]) / len(self.last[i]) if self.last[i] else 0.0


class Ewma(Rival):
    """0.3 of the newest, failures included."""

    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        super().__init__(targets, places, rng)
        self.mean = [0.0] * self.n

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None:
        if not (good and whole):
            self.mean[i] = 0.3 * seconds + 0.7 * self.mean[i] if self.mean[i] else seconds

    def score(self, i: int) -> float:
        return self.mean[i]


class P2cTime(Rival):
    """The better of two at random by an EWMA (0.3) of whole-request time, what is under way, and health, an EWMA of 1 and 0
    (agentgateway's score: health / (1 + seconds x (1 + 0.1 x under way)))."""

    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        super().__init__(targets, places, rng)
        self.mean = [0.0] * self.n
        self.health = [1.0] * self.n

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None:
        if whole:
            self.health[i] += 0.3 * (good - self.health[i])
        if good and whole:
            self.mean[i] = 0.3 * seconds + 0.7 * self.mean[i] if self.mean[i] else seconds

    def load(self, i: int, now_ns: int) -> float:
        return (1.0 + self.mean[i] * (1.0 + 0.1 * self.busy[i])) / max(self.health[i], 1e-9)

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        order = list(range(self.n))
        self.rng.shuffle(order)
        a, b = order[:2]
        if self.load(b, now_ns) < self.load(a, now_ns):
            order[0], order[1] = b, a
        return order


class PeakEwma(P2cTime):
    """The better of two by tower's PeakEwma (Helicone's, linkerd's): time to the answer's head, which a peak takes over at
    once and which decays within 30 s, times what is under way. A failure is an answer too."""

    DECAY_NS = 30e9
    DEFAULT_S = 0.25

    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        super().__init__(targets, places, rng)
        self.mean = [self.DEFAULT_S] * self.n
        self.at_ns = [0] * self.n

    def first(self, i: int, key: int, began_ns: int, size: int, now_ns: int) -> None:
        self.peak(i, (now_ns - began_ns) / 1e9, now_ns)

    def failed(self, i: int, key: int, began_ns: int, now_ns: int) -> None:
        self.busy[i] -= 1
        self.peak(i, (now_ns - began_ns) / 1e9, now_ns)

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None: ...

    def peak(self, i: int, seconds: float, now_ns: int) -> None:
        if seconds > self.mean[i]:
            self.mean[i] = seconds
        else:
            old = exp((self.at_ns[i] - now_ns) / self.DECAY_NS)
            self.mean[i] = self.mean[i] * old + seconds * (1.0 - old)
        self.at_ns[i] = now_ns

    def load(self, i: int, now_ns: int) -> float:
        return self.mean[i] * exp((self.at_ns[i] - now_ns) / self.DECAY_NS) * (self.busy[i] + 1)


class Oracle(Rival):
    """Knows what every target really is like at this moment, and chooses what is best for all: what a request costs there
    is its own time and what it adds to that of the others who come while it is under way. (Going by its own time alone it
    is up to 5 % slower on average: each crowds the fastest until that is no faster than the next.)"""

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        size = len(x.body)
        means = [1e9 if p.full(t) else p.mean_s(t, size) for p in self.places]
        costs = [m + p.crowding_s(t) for m, p in zip(means, self.places, strict=True)]
        fails = [p.fails(t) for p in self.places]
        sure = min((c for c, p in zip(costs, fails, strict=True) if not p), default=1.0)  # where a failure would end up
        costs = [(1 - p) * c + p * (place.fail_s + sure) for c, p, place in zip(costs, fails, self.places, strict=True)]
        return sorted(range(self.n), key=lambda i: (fails[i] >= 1.0, costs[i]))


RIVALS: dict[str, type[Rival]] = {
    "random": Shuffle, "round-robin": Turns, "least-busy": Busy, "last-10 mean": Last10, "ewma 0.3": Ewma, "p2c request time": P2cTime,
    "p2c peak ewma": PeakEwma, "oracle": Oracle,
}  # fmt: skip
