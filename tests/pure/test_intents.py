"""The second look of `faq`: which of a few kept questions wants the same, and how sure that is."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from turnout.cache.semantic import models
from turnout.cache.semantic.intents import DIMENSIONS, MAGIC, Intents, packed

ROWS = np.random.default_rng(4).normal(size=(8, DIMENSIONS)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


def file(*rates: tuple[float, float], weights: Sequence[float] = (-8.0, 10.0, 1.0, -0.2)) -> bytes:
    """One that turns nothing."""
    turn = np.eye(DIMENSIONS)[np.tril_indices(DIMENSIONS)].astype("<f2").tobytes()
    return MAGIC + struct.pack("<H", len(rates)) + b"".join(struct.pack("<2d", *rate) for rate in rates) + struct.pack("<4d", *weights) + turn


def between(a: int, b: int, share: float) -> bytes:
    """A vector that has so much of the one and the rest of the other."""
    row = share * ROWS[a] + (1 - share) * ROWS[b]
    return bytes((row / np.linalg.norm(row)).astype(np.float32).tobytes())


@pytest.fixture
def look() -> Intents:
    return Intents(file((0.005, 0.8), (0.01, 0.7)))


def test_the_likest_one_is_meant_wherever_it_stands(look: Intents) -> None:
    kept = [packed(row.tobytes()) for row in ROWS]
    for i in range(len(ROWS)):
        assert look.best(look.turned(between(i, (i + 1) % 8, 0.8)), kept, 5, [5] * 8, 100).place == i


def test_it_is_surer_of_a_like_one_of_a_long_one_and_among_few(look: Intents) -> None:
    kept = [packed(ROWS[0].tobytes())]

    def score(share: float = 0.8, content: int = 4, contents: int = 4, of: int = 1000) -> float:
        return look.best(look.turned(between(0, 1, share)), kept, content, [contents], of).score

    assert 0.0 < score(0.6) < score(0.7) < score() < score(0.9) < 1.0
    assert score(content=2) < score() < score(content=6, contents=6)
    assert score(content=2) == pytest.approx(score(contents=2))  # the shorter of the two says how much is left open
    assert score(of=10_000) < score() < score(of=200)
    assert score(of=1) == score(of=50)


def test_a_byte_a_dimension_tells_a_cosine_to_a_hundredth(look: Intents) -> None:
    slope = Intents(file((0.01, 0.5), weights=(0.0, 1.0, 0.0, 0.0)))
    for share in (0.2, 0.5, 0.9):
        asked = look.turned(between(0, 1, share))
        score = slope.best(asked, [packed(ROWS[0].tobytes())], 1, [1], 1).score
        exact = float(np.frombuffer(asked, np.float32) @ ROWS[0])
        assert np.log(score / (1 - score)) == pytest.approx(exact, abs=0.01)


def test_what_is_rarer_wrong_needs_a_higher_score(look: Intents) -> None:
    assert (look.threshold(0.005), look.threshold(0.02)) == (0.8, 0.7)
    assert look.threshold(0.001) > 1.0  # nothing is known of so rare a one: nothing is served
    shipped = models.intents()
    marks = [shipped.threshold(rate) for rate in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)]
    assert sorted(marks, reverse=True) == marks and 0.0 < marks[-1] < marks[0] < 1.0


@pytest.mark.parametrize("data", [b"", b"TNINT001", file()[:-1], b"TNVER002" + file()[8:], file() + b"12"], ids=["none", "head", "cut", "another", "more"])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="intents"):
        Intents(data)
