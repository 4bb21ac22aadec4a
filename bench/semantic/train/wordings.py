"""Fits the second look of `faq` (core/turnout/cache/semantic/intents.py) on streams of questions with known intents.

What is fitted: how wordings scatter within an intent, whose inverse square root turns MiniLM's vectors (within-class
covariance normalisation: Hatch, Kajarekar and Stolcke 2006); what a word more, and a crowd, weigh beside their cosine; for
each rate the threshold. All but the first is chosen on streams of banking77 whose questions are judged by a turn that was learned
without their intents: those are parted in FOLDS.

More numbers were tried, in a logistic regression or trees: MiniLM's plain cosine, the static one, the gap to the next
candidate, cosines of the next four, whether those are like each other, what words the two share. None
adds more than another parting of the intents takes away; and a learned head (contrastive, on top of MiniLM) ranked no better
than the turn.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
from fit import RATES, upper_bound
from scipy.optimize import minimize

from turnout.cache.semantic.intents import DIMENSIONS, LEAST_KEPT, MAGIC, MOST, crowd, full, packed, shortness

SPREAD = 0.3  # added to each direction's variance, the mean one being 1; 0.1 to 1 do as well
FOLDS = 4
JUDGED = 12  # streams, each of all questions in another order
HIT = 0.92  # MiniLM's cosine from which on a question of those counts as a hit, and is not kept
SHORTNESS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)  # what `shortness` may weigh, against a cosine; 0.1 to 0.2 do as well
CROWDS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)  # what `crowd` may weigh, to be as often wrong with few kept as with many
SIZES = (LEAST_KEPT, 300, 1000, 2000, 3500, 10**9)  # between which that is compared
WEIGHED_BY = (0.0025, 0.005, 0.01)  # the rates at which it is to give many hits
LEAST_PLAIN = 0.8  # MiniLM's cosine from which on a candidate counts in the score's scale: far ones are wrong anyway


class Texts(NamedTuple):
    """One row a text."""

    names: list[str]
    intent: np.ndarray
    static: np.ndarray
    deep: np.ndarray
    content: np.ndarray

    def some(self, chosen: np.ndarray) -> "Texts":
        places = np.flatnonzero(chosen)
        return Texts([self.names[i] for i in places], *(part[places] for part in self[1:]))

    @property
    def bank(self) -> np.ndarray:
        return np.char.startswith(self.intent, "banking77")


class Scale(NamedTuple):
    """From the numbers to a score, 0 to 1."""

    weights: np.ndarray
    base: float

    def scores(self, numbers: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(numbers @ self.weights + self.base)))


class Seen(NamedTuple):
    """Requests of streams, with what was found for them; a row each."""

    numbers: Any  # the turned cosine, `shortness` and `crowd`
    right: Any
    plain: Any  # MiniLM's cosine
    asked: Any  # places of texts
    best: Any


def texts_of(pairs: list[tuple[str, str]], said: dict[str, Any], deep: np.ndarray) -> Texts:
    """`pairs`: of a text and its intent. `deep`: MiniLM's vectors."""
    static = np.array([np.frombuffer(said[text].vector, np.float32) for text, _ in pairs])
    deep = (deep / np.linalg.norm(deep, axis=1, keepdims=True)).astype(np.float32)
    content = np.array([said[text].content for text, _ in pairs])
    return Texts([text for text, _ in pairs], np.array([name for _, name in pairs]), static, deep, content)


def turn_of(texts: Texts) -> np.ndarray:
    """The matrix, as it is read from the file."""
    parts = []
    for name in np.unique(texts.intent):
        rows = texts.deep[texts.intent == name]
        if len(rows) > 4:
            parts.append(rows - rows.mean(0))
    apart = np.concatenate(parts).astype(np.float64)
    scatter = apart.T @ apart / len(apart)
    values, directions = np.linalg.eigh(scatter * DIMENSIONS / np.trace(scatter))
    return full(triangle_of((directions / np.sqrt(values + SPREAD)) @ directions.T))


def triangle_of(turn: np.ndarray) -> np.ndarray:
    return turn[np.tril_indices(DIMENSIONS)].astype("<f2")


class Sight:
    """Texts, their vectors turned."""

    def __init__(self, texts: Texts, turn: np.ndarray) -> None:
        self._texts = texts
        turned = texts.deep @ turn
        self._asked = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        rows = np.array([np.frombuffer(packed(row.astype(np.float32).tobytes()), np.int8) for row in self._asked], np.float32)
        self._kept = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def look_at(self, i: int, kept: np.ndarray) -> Seen:
        """One row, for text `i`."""
        texts = self._texts
        cosines = texts.static[kept] @ texts.static[i]
        few = kept[np.argpartition(-cosines, MOST - 1)[:MOST]] if len(kept) > MOST else kept
        inner = self._kept[few] @ self._asked[i]
        best = few[inner.argmax()]
        numbers = (inner.max(), shortness(int(min(texts.content[i], texts.content[best]))), crowd(len(kept)))
        plain = texts.deep[best] @ texts.deep[i]
        return Seen(numbers, texts.intent[i] == texts.intent[best], plain, i, int(best))


def folds_of(texts: Texts, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The turn that each fold of the intents is judged by, and which fold each text belongs to."""
    fold: dict[str, int] = {}
    for part in (texts.bank, ~texts.bank):
        names = np.random.default_rng(seed).permutation(np.unique(texts.intent[part]))
        fold.update((str(name), i % FOLDS) for i, name in enumerate(names))
    folds = np.array([fold[name] for name in texts.intent.tolist()])
    return [turn_of(texts.some(folds != k)) for k in range(FOLDS)], folds


def judged(texts: Texts, turns: list[np.ndarray], folds: np.ndarray, seed: int) -> Seen:
    """Streams of banking77; a text of fold k is looked at by turns[k]."""
    rng = np.random.default_rng(seed)
    sights = [Sight(texts, turn) for turn in turns]
    found = []
    for _ in range(JUDGED):
        order = rng.permutation(np.flatnonzero(texts.bank))
        kept = np.zeros(len(order), int)
        count = 0
        for i in order.tolist():
            hit = False
            if count:
                found.append(sights[folds[i]].look_at(i, kept[:count]))
                hit = found[-1].plain >= HIT
            if not hit:
                kept[count] = i
                count += 1
    return Seen(*(np.array(column) for column in zip(*found, strict=True)))


def scale_of(seen: Seen, chosen: np.ndarray) -> Scale:
    """By the requests that are chosen. First what `crowd` weighs, by how even the share of wrong ones is; then `shortness`, by
    how many right hits it gives, both at WEIGHED_BY; and the scale by a logistic regression in which right and wrong
    candidates weigh the same."""
    numbers, right = seen.numbers[chosen], seen.right[chosen]
    size = np.digitize(numbers[:, 2], np.log(SIZES))

    def served(short: float, many: float, rate: float) -> np.ndarray:
        total = numbers @ np.array([1.0, short, -many])
        order = np.argsort(-total, kind="stable")
        out = np.zeros(len(order), bool)
        out[order[: np.searchsorted(np.cumsum(~right[order]), rate * len(order), "right")]] = True
        return out

    def unevenness(short: float, many: float) -> float:
        parts = [served(short, many, rate) & ~right for rate in WEIGHED_BY]
        shares = np.array([[part[size == s].mean() for s in range(1, len(SIZES))] for part in parts])
        return float(np.log(shares + 1e-4).std(1).sum())

    def hits(short: float, many: float) -> float:
        return float(sum(np.log((served(short, many, rate) & right).mean() + 1e-4) for rate in WEIGHED_BY))

    short, many = SHORTNESS[len(SHORTNESS) // 2], 0.0
    for _ in range(2):  # one hardly moves the other
        many = min(CROWDS, key=lambda weight: unevenness(short, weight))
        short = max(SHORTNESS, key=lambda weight: hits(weight, many))
    near = seen.plain[chosen] >= LEAST_PLAIN
    slopes = np.array([1.0, short, -many])
    total, label = numbers[near] @ slopes, right[near]
    weights = np.where(label, 0.5 / label.sum(), 0.5 / (~label).sum())

    def loss(point: np.ndarray) -> float:
        said = total * point[0] + point[1]
        return float((weights * np.where(label, np.logaddexp(0, -said), np.logaddexp(0, said))).sum())

    slope, base = minimize(loss, np.array([10.0, -8.0]), method="Nelder-Mead").x
    return Scale(slope * slopes, float(base))


def threshold_of(scores: np.ndarray, wrong: np.ndarray, asked: np.ndarray, rate: float) -> float:
    """The lowest one down to which the 90 % bound of wrong/all keeps the rate all the way. `asked`: of which text each request
    is. The same one in many streams is less than many requests, and more than one, for what is kept differs: as many as the
    variance between texts says (Korn and Graubard, Survey Methodology 24, 1998), at twice the rate."""
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(wrong[order])
    each = np.bincount(asked, minlength=asked.max() + 1)
    served = order[: np.searchsorted(reached, 2 * rate * len(scores), "right")]
    texts = each > 0
    shares = np.bincount(asked[served], wrong[served], len(each))[texts] / each[texts].mean()
    mean = shares.mean()
    worth = float(np.clip(mean * (1 - mean) / (shares.var() / len(shares) + 1e-12), len(shares), len(scores)))
    most = 0
    while upper_bound((most + 1) * worth / len(scores), worth) <= rate:
        most += 1
    fits = int(np.searchsorted(reached, most, "right"))
    return float(scores[order[fits - 1]]) if fits and upper_bound(most * worth / len(scores), worth) <= rate else 2.0


def marks_of(seen: Seen, scores: np.ndarray) -> list[float]:
    """The thresholds of all rates; a lower one at a higher rate."""
    marks = [threshold_of(scores, ~seen.right, seen.asked, rate) for rate in RATES]
    return np.minimum.accumulate(marks).tolist()


def file_of(turn: np.ndarray, scale: Scale, marks: list[float]) -> bytes:
    rates = b"".join(struct.pack("<2d", *row) for row in zip(RATES, marks, strict=True))
    return MAGIC + struct.pack("<H", len(RATES)) + rates + struct.pack("<4d", scale.base, *scale.weights) + triangle_of(turn).tobytes()


def intents_file(texts: Texts, seed: int) -> bytes:
    """The file that ships."""
    seen = judged(texts, *folds_of(texts, seed), seed)
    scale = scale_of(seen, np.ones(len(seen.right), bool))
    return file_of(turn_of(texts), scale, marks_of(seen, scale.scores(seen.numbers)))
