"""Compiles trees and thresholds into the file that `Verifier` reads."""

import struct
from typing import Any

from turnout.twin.parts.pairs import NAMES

Rate = tuple[float, float, float, float]  # wrong of all, threshold, low, sure


def nodes_of(tree: dict[str, Any]) -> list[tuple[int, float, int, int]]:
    """A tree of LightGBM's `dump_model` as a list, parents before children."""
    out: list[tuple[int, float, int, int]] = []

    def walk(node: dict[str, Any]) -> int:
        place = len(out)
        if "leaf_value" in node:
            out.append((-1, node["leaf_value"], 0, 0))
            return place
        assert node["decision_type"] == "<="
        out.append((0, 0.0, 0, 0))
        left = walk(node["left_child"])
        right = walk(node["right_child"])
        out[place] = (node["split_feature"], node["threshold"], left, right)
        return place

    walk(tree)
    return out


def forest_bytes(base: float, rates: list[Rate], trees: list[list[tuple[int, float, int, int]]]) -> bytes:
    out = [struct.pack("<dH", base, len(rates))]
    out += [struct.pack("<4d", *rate) for rate in rates]
    out.append(struct.pack("<H", len(trees)))
    for tree in trees:
        out.append(struct.pack("<H", len(tree)))
        out += [struct.pack("<hdHH", *node) for node in tree]
    return b"".join(out)


def verifier_bytes(version: str, vetoes: bool, shallow: bytes, deep: bytes) -> bytes:
    name = version.encode()
    return b"TNVER002" + struct.pack("<HHH", len(NAMES), vetoes, len(name)) + name + shallow + deep
