"""The second look of `faq`: which of a few kept questions wants the same as a new one, and how sure that is.

One intent has many wordings, so it looks not at the nearest question alone but at the `MOST` that the static vectors find.
MiniLM's vectors are compared where directions in which wordings of one intent scatter count less, as learned from known
intents: the new question's is turned so once, kept ones lie there turned, a byte a dimension. How sure the best of them is
follows from that cosine, from how many words carry content (a short question leaves open which intent it means) and from
how many questions are kept: the more, the likelier one of them only looks like it, so that a score that did not know it would
be wrong too seldom at first and too often later.
Made by bench/semantic/train/wordings.py.
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

from . import bytewise

DIMENSIONS = 384
MOST = 16  # kept questions that are looked at; 8 or 32 do about as well
MOST_CONTENT = 15  # words; more count as that many
LEAST_KEPT = 50  # questions; fewer count as that many
MAGIC = b"TNINT001"


class Found(NamedTuple):
    place: int  # of the best, among those given
    score: float


class Intents:
    """Reads the file (little endian): the magic; u16 how many rates, and of each one f64 wrong of all requests and the
    threshold of the score; f64 the base and the
    weights of the cosine, of the words and of how many are kept; the lower triangle of a symmetric matrix in float16. Raises ValueError when
    `data` is not one."""

    def __init__(self, data: bytes) -> None:
        try:
            (count,) = struct.unpack_from("<H", data, len(MAGIC))
            at = len(MAGIC) + 2
            self._rates = [struct.unpack_from("<2d", data, at + 16 * i) for i in range(count)]
            at += 16 * count
            self._base, self._cosine, self._content, self._kept = struct.unpack_from("<4d", data, at)
            self._turn = full(numpy.frombuffer(data, "<f2", -1, at + 32))
        except (struct.error, ValueError) as wrong:
            raise ValueError("no file of intents") from wrong
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError("no file of intents")

    def threshold(self, rate: float) -> float:
        """From which score on this look serves: of the largest known rate up to `rate`."""
        found = [mark for of, mark in self._rates if of <= rate + 1e-12]
        return float(found[-1]) if found else 2.0

    def turned(self, vector: bytes) -> bytes:
        """MiniLM's vector (384 float32) as this look compares it, of unit norm. 40 us."""
        row = self._turn @ numpy.frombuffer(vector, numpy.float32)
        return bytes((row / numpy.linalg.norm(row)).astype(numpy.float32).tobytes())

    def best(self, asked: bytes, kept: Sequence[bytes], content: int, contents: Sequence[int], of: int) -> Found:
        """`asked`: as `turned` gives it; `kept`: at least one, as `packed` gives it. `content`: how many words carry some, in
        the new question and in the kept ones. `of`: how many are kept altogether. 20 us for 16."""
        rows = bytewise.unpacked(b"".join(kept)).reshape(len(kept), DIMENSIONS)
        cosines = rows @ numpy.frombuffer(asked, numpy.float32) / numpy.sqrt((rows * rows).sum(1))
        place = int(cosines.argmax())
        words = shortness(min(content, contents[place]))
        total = self._base + self._cosine * float(cosines[place]) + self._content * words + self._kept * crowd(of)
        return Found(place, float(1.0 / (1.0 + numpy.exp(-total))))


def full(triangle: Any) -> Any:
    """The symmetric matrix of a lower triangle."""
    found = numpy.zeros((DIMENSIONS, DIMENSIONS), numpy.float32)
    found[numpy.tril_indices(DIMENSIONS)] = triangle
    return found + numpy.tril(found, -1).T


def packed(turned: bytes) -> bytes:
    """As a kept question keeps it."""
    return bytewise.packed(numpy.frombuffer(turned, numpy.float32))


def shortness(content: int) -> float:
    return float(numpy.log1p(min(content, MOST_CONTENT)))


def crowd(kept: int) -> float:
    return float(numpy.log(max(kept, LEAST_KEPT)))
