"""What other gateways do, as far as their sources show, and an oracle. Each keeps its own figures in each worker; fallbacks,
breakers and retries are ours for all of them, so that only the choice is compared."""

from collections import deque
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
    """The better of two at random by an EWMA of whole-request time and what is under way (Finagle's and Envoy's way)."""

    def __init__(self, targets: list[Target], places: list[Place], rng: Random) -> None:
        super().__init__(targets, places, rng)
        self.mean = [0.0] * self.n

    def saw(self, i: int, seconds: float, good: bool, whole: bool) -> None:
        if good and whole:
            self.mean[i] = 0.1 * seconds + 0.9 * self.mean[i] if self.mean[i] else seconds

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        order = list(range(self.n))
        self.rng.shuffle(order)
        a, b = order[:2]
        if self.mean[b] * (self.busy[b] + 1) < self.mean[a] * (self.busy[a] + 1):
            order[0], order[1] = b, a
        return order


class Oracle(Rival):
    """Knows what every target really is like at this moment."""

    def rank(self, x: Exchange, now_ns: int, t: float) -> list[int]:
        size = len(x.body)

        means = [1e9 if p.full(t) else p.mean_s(t, size) for p in self.places]
        fails = [p.fails(t) for p in self.places]
        sure = min((m for m, p in zip(means, fails, strict=True) if not p), default=1.0)  # where a failure would end up
        costs = [(1 - p) * m + p * (place.fail_s + sure) for m, p, place in zip(means, fails, self.places, strict=True)]
        return sorted(range(self.n), key=lambda i: (fails[i] >= 1.0, costs[i]))


RIVALS: dict[str, type[Rival]] = {
    "random": Shuffle, "round-robin": Turns, "least-busy": Busy, "last-10 mean": Last10, "ewma 0.3": Ewma, "p2c request time": P2cTime,
    "oracle": Oracle,
}  # fmt: skip
