"""The routing policies: one file and one line here each.

A policy is a frozen Struct with `rank(targets, rng) -> indexes`, best first. It is pure: randomness comes in.
"""

from .ordered import Ordered
from .weighted import Weighted

__all__ = ["POLICIES", "Ordered", "Weighted"]

POLICIES = Ordered | Weighted
