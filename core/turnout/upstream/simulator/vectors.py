"""Embeddings without a model: a hashed bag of words. Pure and deterministic.

Texts that share words come out close to each other, which is what a demonstration of a
semantic cache or a search needs; nothing more is claimed.
"""

from __future__ import annotations

import math
import re
import struct
from base64 import b64encode
from functools import lru_cache

from .prose import dice_for

DEFAULT_DIMENSIONS = 256
_WORD = re.compile(r"\w+")


def embed(seed: int, text: str, dimensions: int) -> list[float]:
    """A unit vector for `text`; O(words * dimensions), words are remembered."""
    total = [0.0] * dimensions
    for word in _WORD.findall(text.lower()) or [text]:
        for at, value in enumerate(_word_vector(seed, word, dimensions)):
            total[at] += value
    length = math.sqrt(math.fsum(value * value for value in total)) or 1.0
    return [value / length for value in total]


def to_base64(vector: list[float]) -> str:
    """OpenAI's `encoding_format: base64`: little-endian float32."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


@lru_cache(maxsize=4096)
def _word_vector(seed: int, word: str, dimensions: int) -> tuple[float, ...]:
    dice = dice_for(seed, "embedding", word)
    return tuple(dice.gauss(0.0, 1.0) for _ in range(dimensions))
