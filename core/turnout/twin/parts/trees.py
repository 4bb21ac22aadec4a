"""Boosted trees with a table of thresholds. Twin of `native/src/kernels/meaning/trees.rs`.

A forest in a file (little endian): f64 base; u16 and as many times four f64 (rate, threshold, low, sure), rates rising; u16
trees, each u16 nodes of i16 number (-1: a leaf), f64 border or value, u16 where to go up to the border, u16 where to go
above it. Children stand behind their parents.
"""

import math
import struct

from .pairs import NAMES

Node = tuple[int, float, int, int]


class Forest:
    """One set of trees with the thresholds that were chosen for it."""

    __slots__ = ("base", "rates", "trees")

    def __init__(self, base: float, rates: list[tuple[float, float, float, float]], trees: list[list[Node]]) -> None:
        self.base = base
        self.rates = rates
        self.trees = trees

    @classmethod
    def read(cls, data: bytes, at: int) -> tuple["Forest", int]:
        """The forest at `at` and where it ends. Raises struct.error when it ends too early, else ValueError."""
        base, count = struct.unpack_from("<dH", data, at)
        at += 10
        rates = [struct.unpack_from("<4d", data, at + 32 * i) for i in range(count)]
        at += 32 * count
        (count,) = struct.unpack_from("<H", data, at)
        at += 2
        trees = []
        for _ in range(count):
            (nodes,) = struct.unpack_from("<H", data, at)
            at += 2
            tree = [struct.unpack_from("<hdHH", data, at + 14 * i) for i in range(nodes)]
            at += 14 * nodes
            _check(tree)
            trees.append(tree)
        return cls(base, rates, trees), at

    def score(self, numbers: list[float]) -> float:
        total = self.base
        for tree in self.trees:
            place = 0
            while True:
                number, value, left, right = tree[place]
                if number < 0:
                    total += value
                    break
                place = left if numbers[number] <= value else right
        return 1.0 / (1.0 + math.exp(-total))

    def chosen(self, rate: float) -> tuple[float, float, float, float]:
        """The last of the rates that does not go beyond `rate`, with what was chosen for it."""
        found = (0.0, 2.0, 2.0, 2.0)
        for known in self.rates:
            if known[0] <= rate + 1e-12:
                found = known
        return found


def _check(tree: list[Node]) -> None:
    for place, (number, _, left, right) in enumerate(tree):
        if number >= len(NAMES) or (number >= 0 and not (place < left < len(tree) and place < right < len(tree))):
            raise ValueError("a verifier file with a tree that does not end")
    if not tree:
        raise ValueError("a verifier file with an empty tree")
