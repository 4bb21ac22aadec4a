"""The nearest vectors of a scope: as brute force finds them, whatever was added and removed, in a matrix and in a graph."""

import random

import numpy
import pytest

from turnout.cache.semantic import index
from turnout.cache.semantic.index import DIMENSIONS, Index


class Crowd:
    """An index, and the same vectors in a dict."""

    def __init__(self, seed: int) -> None:
        self.rng = numpy.random.default_rng(seed)
        self.lot = random.Random(seed)
        self.index = Index()
        self.known: dict[int, numpy.ndarray] = {}
        # Texts lie in heaps: in 256 dimensions of noise everything is equally far.
        self.heaps = self.rng.normal(size=(40, DIMENSIONS))

    def vector(self) -> numpy.ndarray:
        found = self.heaps[self.lot.randrange(len(self.heaps))] + 0.7 * self.rng.normal(size=DIMENSIONS)
        return numpy.asarray(found / numpy.linalg.norm(found), numpy.float32)

    def add(self) -> None:
        vector = self.vector()
        label = self.index.add(vector.tobytes())
        assert label not in self.known
        self.known[label] = vector

    def remove(self) -> None:
        label = next(iter(self.known)) if self.lot.random() < 0.5 else self.lot.choice(list(self.known))
        self.index.remove(label)
        del self.known[label]

    def build(self) -> None:
        while self.index.wants_work:
            self.index.job()()
            self.index.advance()

    def missed(self, asked: int) -> int:
        """How often the nearest one is not found."""
        labels, matrix = list(self.known), numpy.array(list(self.known.values()))
        missed = 0
        for _ in range(asked):
            query = self.known[self.lot.choice(labels)] + 0.03 * self.vector()
            query = (query / numpy.linalg.norm(query)).astype(numpy.float32)
            found = self.index.nearest(query.tobytes())
            cosines = matrix @ query
            best = int(cosines.argmax())
            assert all(abs(cosine - float(self.known[label] @ query)) < 1e-4 for label, cosine in found)
            missed += not found or found[0][0] != labels[best]
        return missed


def test_a_matrix_finds_the_nearest_whatever_came_and_went() -> None:
    crowd = Crowd(1)
    for _ in range(1500):
        crowd.remove() if crowd.known and crowd.lot.random() < 0.3 else crowd.add()
        assert crowd.index.size == len(crowd.known)
    assert crowd.missed(100) == 0
    assert len(crowd.index.nearest(crowd.vector().tobytes(), 3)) <= 3


def test_a_graph_takes_over_and_goes_on_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FLAT", 300)
    crowd = Crowd(2)
    for step in range(3000):
        crowd.remove() if crowd.known and crowd.lot.random() < 0.3 else crowd.add()
        if crowd.index.wants_work and crowd.lot.random() < 0.5:  # what comes and goes while it is built is not lost
            crowd.index.job()()
            crowd.index.advance()
        if step % 500 == 499:
            assert crowd.missed(50) <= 1, step
    crowd.build()
    assert crowd.index.size == len(crowd.known) > 300
    assert crowd.missed(200) <= 2
    while len(crowd.known) > 1:
        crowd.remove()
        crowd.build()
    assert [label for label, _ in crowd.index.nearest(next(iter(crowd.known.values())).tobytes())] == list(crowd.known)


def test_so_many_at_once_are_found_before_there_is_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FLAT", 300)
    monkeypatch.setattr(index, "_SHORT_BLOCK", 500)
    crowd = Crowd(4)
    for _ in range(4000):
        crowd.remove() if crowd.known and crowd.lot.random() < 0.2 else crowd.add()
    assert crowd.index.wants_work and crowd.missed(200) == 0
    for _ in range(20):  # nor while it is made
        crowd.index.job()()
        crowd.index.advance()
        crowd.add()
        crowd.remove()
        assert crowd.missed(5) == 0
    crowd.build()
    assert not crowd.index._short and not crowd.index._blocks and crowd.missed(200) <= 2


def test_of_too_many_the_newest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FLAT", 100)
    monkeypatch.setattr(index, "MOST_ROWS", 250)
    monkeypatch.setattr(index, "_SHORT_BLOCK", 100)
    crowd = Crowd(5)
    for _ in range(1000):
        crowd.add()
    found = [crowd.index.nearest(vector.tobytes())[0] for vector in crowd.known.values()]
    assert all(found[i][0] == i and found[i][1] > 0.999 for i in (*range(100), *range(750, 1000)))
    assert all(found[i][0] != i for i in range(100, 750))


def test_what_has_no_meaning_is_near_nothing() -> None:
    found = Index()
    found.add(bytes(4 * DIMENSIONS))
    found.add(Crowd(3).vector().tobytes())
    assert found.nearest(bytes(4 * DIMENSIONS)) == []
    assert Index().nearest(bytes(4 * DIMENSIONS)) == []
