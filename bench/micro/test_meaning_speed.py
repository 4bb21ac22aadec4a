"""The semantic cache's kernels: reading a question, and judging a pair."""

import struct
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from cases import Case
from cases import test_speed as test_speed

from turnout.native import Lexicon, Verifier, nearest_rows, row_of

QUESTION = "How do I transfer photos from my old iPhone to my laptop?"
REWORDED = "What is the best way to move pictures from an old iPhone to a laptop?"
ANOTHER = "Where can I find cheap flights from Boston to Chicago in May?"


@cache
def shipped(kind: Any, name: str) -> Any:
    return kind((files("turnout.cache.semantic") / "data" / name).read_bytes())


def parse() -> Callable[[], Any]:
    lexicon = shipped(Lexicon, "lexicon.bin")
    return lambda: lexicon.parse(QUESTION)


def vector() -> Callable[[], bytes]:
    said = shipped(Lexicon, "lexicon.bin").parse(QUESTION)
    return lambda: said.vector


def score(other: str) -> Callable[[], Callable[[], float]]:
    def make() -> Callable[[], float]:
        lexicon, verifier = shipped(Lexicon, "lexicon.bin"), shipped(Verifier, "strict.bin")
        one, two = lexicon.parse(QUESTION), lexicon.parse(other)
        return lambda: verifier.score(one, two, 0.9)

    return make


def nearest() -> Callable[[], Any]:
    """Rows that differ in how often one number of theirs stands in them; no numpy, whose import takes minutes under valgrind."""
    rows = bytearray()
    for number in range(1_000):
        rows += row_of(struct.pack("<256f", *([1.0] * (number % 250 + 1) + [0.1] * (255 - number % 250))))
    asked = struct.pack("<256f", *([1.0] * 100 + [0.1] * 156))
    return lambda: nearest_rows(rows, 0, 1_000, asked, 8)


def as_row() -> Callable[[], bytes]:
    vector = shipped(Lexicon, "lexicon.bin").parse(QUESTION).vector
    return lambda: row_of(vector)


CASES = [
    Case("meaning: parse 12 words", parse, lambda said: said.tokens == 15),
    Case("meaning: vector", vector, lambda found: len(found) == 1024 and abs(sum(x * x for x in struct.unpack("<256f", found)) - 1) < 1e-5),
    Case("near: a vector as a row", as_row, lambda row: len(row) == 260),
    Case("near: the nearest of 1,000 rows", nearest, lambda found: len(found) == 8, loops=20),
    Case("meaning: score, reworded", score(REWORDED), lambda found: 0.0 <= found <= 1.0),
    Case("meaning: score, another question", score(ANOTHER), lambda found: 0.0 <= found < 0.5),
]
