"""The vectors of one scope: which of them are nearest.

Up to `FLAT` they lie in a matrix and all are looked at: exact, 30 us for 2,000 of 256 dimensions. Beyond that they are in
an HNSW graph (Malkov and Yashunin 2018; hnswlib), which finds in 50 us among 10,000. hnswlib's deletions only mark, and
marked ones cost time; and a graph that grows beyond the room it was made with is copied. So one with many marked ones or
little room left is built anew, a few vectors at a time and in another thread (`job`, `advance`); until that is done what
was there before answers.

One owner: but for what a job does nothing here is safe between threads.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy

DIMENSIONS = 256  # of the local table
FLAT = 2_000
MOST_FLAT = 8_000  # of so many only after a load from the books: nothing is found until there is a graph, in seconds
NEAREST = 4
_BLOCK = 256  # rows: a larger matrix is several, so that growing never copies more than one
_LINKS, _EFFORT = 16, 100  # M and ef_construction: recall@1 of 1.0 at 10,000
_JOB = 64  # vectors put into a graph by one job: about 20 ms of another thread, most of it without Python's lock
_STALE = 0.3  # share of marked ones from which on a graph is built anew
_FULL = 0.8
_ROOM = 4  # times what is in it at first; memory that is not written to is not taken
_LINK_BYTES = 8 * _LINKS + 120  # of a vector in a graph: its links, and what keeps account of it


class Index:
    """A vector is known by the label that `add` gave it, until `remove`; then another may get it."""

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        self.size = 0
        self._dimensions = dimensions
        self._blocks: list[Any] = []
        self._free: list[int] = []
        self._rows = 0  # ever used
        self._graph: _Graph | None = None
        self._next: _Graph | None = None  # that is being built; a job's alone while one runs
        self._todo: deque[int] = deque()  # labels that go into it
        self._gone: list[int] = []  # that went meanwhile

    @property
    def held_bytes(self) -> int:
        graph = 0 if self._graph is None else (self.size + self._graph.marked) * (4 * self._dimensions + _LINK_BYTES)
        return int(sum(block.nbytes for block in self._blocks)) + graph

    def add(self, vector: bytes) -> int:
        """Its label. `vector`: its float32, of length 1 (or all zero: nothing is near it)."""
        row = numpy.frombuffer(vector, numpy.float32)
        self.size += 1
        if self._graph is not None:
            label = self._rows
            self._rows += 1
            self._graph.add(row, label)
        else:
            label = self._free.pop() if self._free else self._room()
            self._blocks[label // _BLOCK][label % _BLOCK] = row
        if self._next is not None:
            self._todo.append(label)
        return label

    def remove(self, label: int) -> None:
        self.size -= 1
        if self._graph is not None:
            self._graph.remove(label)
        else:
            self._blocks[label // _BLOCK][label % _BLOCK] = 0.0
            if self._next is None:  # else the graph might get two of this label
                self._free.append(label)
        if self._next is not None:
            self._gone.append(label)

    def nearest(self, vector: bytes, most: int = NEAREST) -> list[tuple[int, float]]:
        """At most `most` (label, cosine), the nearest first; none that is at right angles or beyond."""
        asked = numpy.frombuffer(vector, numpy.float32)
        if self._graph is not None:
            return self._graph.nearest(asked, most, self.size)
        if self.size > MOST_FLAT:
            return []
        best: list[tuple[float, int]] = []
        for number, block in enumerate(self._blocks):
            used = min(self._rows - number * _BLOCK, _BLOCK)
            cosines = block[:used] @ asked
            if used > most:
                found = numpy.argpartition(cosines, used - most)[used - most :].tolist()
                best += [(float(cosines[i]), number * _BLOCK + i) for i in found]
            else:
                best += [(cosine, number * _BLOCK + i) for i, cosine in enumerate(cosines.tolist())]
        best.sort(reverse=True)
        return [(label, cosine) for cosine, label in best[:most] if cosine > 0.0]

    # ---- the graph

    @property
    def wants_work(self) -> bool:
        if self._next is not None:
            return True
        if self._graph is None:
            return self.size > FLAT
        held = self.size + self._graph.marked
        return self._graph.marked > _STALE * held or held > _FULL * self._graph.room

    def job(self) -> Callable[[], None]:
        """The next piece of what there is to do, for another thread; when it has run, `advance`."""
        if self._next is None:
            self._next = _Graph(self.size, self._dimensions)
            gaps = set(self._free)
            self._todo = deque(
                self._graph.labels if self._graph is not None else (i for i in range(self._rows) if i not in gaps)
            )
            self._free.clear()
        labels: list[int] = []
        while self._todo and len(labels) < _JOB:
            label = self._todo.popleft()
            if self._graph is None or label in self._graph.labels:
                labels.append(label)
        if self._graph is not None:
            rows = self._graph.vectors(labels)
        else:
            rows = numpy.array([self._blocks[label // _BLOCK][label % _BLOCK] for label in labels])
        return partial(self._next.fill, rows, labels)

    def advance(self) -> None:
        assert self._next is not None
        if self._todo:
            return
        for label in self._gone:
            self._next.remove(label)
        self._gone.clear()
        self._graph, self._next = self._next, None
        self._blocks.clear()

    def _room(self) -> int:
        """A row that was never used."""
        row = self._rows
        self._rows += 1
        at = row % _BLOCK
        if at == 0:
            self._blocks.append(numpy.zeros((4, self._dimensions), numpy.float32))
        elif at == len(block := self._blocks[-1]):
            grown = numpy.zeros((min(_BLOCK, at + at // 10 + 4), self._dimensions), numpy.float32)
            grown[:at] = block
            self._blocks[-1] = grown
        return row


class _Graph:
    """hnswlib's, with an account of which labels are alive in it."""

    def __init__(self, size: int, dimensions: int) -> None:
        self._dimensions = dimensions
        self.room = _ROOM * size
        self.marked = 0
        self.labels: dict[int, None] = {}
        self._graph: Any = None

    def fill(self, rows: Any, labels: list[int]) -> None:
        if self._graph is None:
            import hnswlib  # only scopes that outgrow a matrix need it

            self._graph = hnswlib.Index(space="ip", dim=self._dimensions)
            self._graph.init_index(max_elements=self.room, ef_construction=_EFFORT, M=_LINKS)
        for row, label in zip(rows, labels, strict=True):
            self.add(row, label)

    def add(self, row: Any, label: int) -> None:
        if len(self.labels) + self.marked == self.room:
            self.room *= 2
            self._graph.resize_index(self.room)
        self._graph.add_items(row, label, num_threads=1)
        self.labels[label] = None

    def remove(self, label: int) -> None:
        if label in self.labels:
            self._graph.mark_deleted(label)
            del self.labels[label]
            self.marked += 1

    def vectors(self, labels: list[int]) -> Any:
        return self._graph.get_items(labels) if labels else []

    def nearest(self, asked: Any, most: int, size: int) -> list[tuple[int, float]]:
        self._graph.set_ef(32 if size <= 10_000 else 64)
        most = min(most, len(self.labels))
        while most:
            try:
                labels, distances = self._graph.knn_query(asked, k=most, num_threads=1)
            except RuntimeError:  # too many marked ones around to find so many (hnswlib #321)
                most //= 2
                continue
            found = zip(labels[0].tolist(), distances[0].tolist(), strict=True)
            return [(label, 1.0 - far) for label, far in found if far < 1.0]
        return []
