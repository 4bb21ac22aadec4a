"""The lexicon file, read: vocabulary, static table, word lists. Twin of `native/src/kernels/meaning/tables.rs`.

The file (little endian): `TNLEX002`; seven u32: tokens, dimensions, rows, and the bytes of four texts; the vocabulary, a
token a line; u8 idf a token (255 = rarest); u16 row a token (0: no meaning of its own); f32 weight a row; i8 table rows x
dimensions; then tab-separated lines: what stands for another spelling, the words with their classes, the ways of asking.
"""

import math
import struct
from array import array
from collections.abc import Sequence

from .signs import Reader, Word

_MAGIC = b"TNLEX002"
DIMS = 256
_MOST_SUMMED = 8  # tokens of a word; so the product of two meanings fits 32 bits


class Tables:
    """Immutable. Raises ValueError when `data` is no lexicon file."""

    def __init__(self, data: bytes) -> None:
        if data[:8] != _MAGIC or len(data) < 36:
            raise ValueError("not a lexicon file")
        tokens, dims, rows, vocabulary, spelt, classes, asked = struct.unpack_from("<7I", data, 8)
        at = 36
        parts = []
        for size in (vocabulary, tokens, 2 * tokens, 4 * rows, rows * dims, spelt, classes, asked):
            parts.append(data[at : at + size])
            at += size
        if at != len(data) or dims != DIMS:
            raise ValueError("a lexicon file of another length")
        try:
            names = parts[0].decode().split("\n")
            lines = [part.decode().split("\n") if part else [] for part in parts[5:]]
        except UnicodeDecodeError:
            raise ValueError("a lexicon file without its words") from None
        if len(names) != tokens or tokens > 1 << 16:
            raise ValueError("a lexicon file of another vocabulary")
        self.vocabulary = {name: i for i, name in enumerate(names)}
        self.idf = parts[1]
        self._rows = struct.unpack(f"<{tokens}H", parts[2])
        self._weights = struct.unpack(f"<{rows}f", parts[3])
        self._table = memoryview(parts[4]).cast("b")
        if any(row >= rows for row in self._rows) or "[UNK]" not in self.vocabulary:
            raise ValueError("a lexicon file whose rows are not there")
        self.unknown = self.vocabulary["[UNK]"]
        self.reader = Reader(*lines)

    def vector(self, ids: Sequence[int]) -> bytes:
        """The weighted mean of the tokens' rows, of unit norm; zeros when no token has a row."""
        total = [0.0] * DIMS
        for token in ids:
            row = self._rows[token]
            if row:
                weight = self._weights[row]
                part = self._table[row * DIMS : row * DIMS + DIMS]
                total = [have + weight * value for have, value in zip(total, part, strict=True)]
        norm = 0.0
        for value in total:
            norm += value * value
        if norm > 0:
            norm = math.sqrt(norm)
            total = [value / norm for value in total]
        return struct.pack(f"<{DIMS}f", *total)

    def meaning(self, ids: "array[int]", word: Word) -> list[int]:
        """The sum of the table's rows over a word's first tokens."""
        out = [0] * DIMS
        for token in ids[word.first : word.first + min(word.count, _MOST_SUMMED)]:
            row = self._rows[token]
            if row:
                part = self._table[row * DIMS : row * DIMS + DIMS]
                out = [have + value for have, value in zip(out, part, strict=True)]
        return out
