"""Vectors in a quarter of their bytes, and which of many are nearest to one. Twin of `native/src/kernels/near.rs`.

A row is the step of its numbers (f32, little endian) and 256 numbers of 8 bits. This one is numpy's, eight times as slow,
and numpy is not loaded before it is called.
"""

import struct
from typing import Any

_DIMS = 256
_ROW = 4 + _DIMS
_MOST = 64
_BLOCK = 512  # rows turned into float32 at a time: they stay in the processor's cache


def _steps(vector: bytes) -> tuple[Any, Any]:
    """The step, and the numbers in steps."""
    import numpy

    if len(vector) != 4 * _DIMS:
        raise ValueError("a vector has 256 numbers of 4 bytes")
    numbers = numpy.frombuffer(vector, "<f4").astype(numpy.float32)
    step = numpy.abs(numbers).max() / numpy.float32(127.0)
    if not step > 0.0:
        return numpy.float32(0.0), numpy.zeros(_DIMS, numpy.float32)
    return step, numpy.floor(numbers / step + numpy.float32(0.5))


def row_of(vector: bytes) -> bytes:
    """The row of a vector of 256 float32. Raises ValueError when it is none."""
    step, numbers = _steps(vector)
    return struct.pack("<f", step) + bytes(numbers.astype("i1").tobytes())


def nearest_rows(rows: Any, first: int, last: int, vector: bytes, most: int) -> list[tuple[int, float]]:
    """The `most` rows (64 at most) of those from `first` to before `last` that are nearest to a vector: (number of the row,
    cosine within 0.01), the nearest first; none whose cosine is not above 0. Raises ValueError when there are no such rows."""
    import numpy

    step, asked = _steps(vector)
    if first > last or last > memoryview(rows).nbytes // _ROW or most > _MOST:
        raise ValueError("no such rows")
    if not most or first == last:
        return []
    table = numpy.frombuffer(rows, numpy.uint8, last * _ROW).reshape(last, _ROW)
    near = numpy.empty(last - first, numpy.float32)
    for at in range(first, last, _BLOCK):
        block = table[at : min(at + _BLOCK, last)]
        # Sums of products of whole numbers below 2 ** 24: exact in any order.
        found = block[:, 4:].view("i1").astype(numpy.float32) @ asked
        near[at - first : at - first + len(found)] = found * block[:, :4].copy().view("<f4")[:, 0]
    if len(near) > most:
        least = numpy.partition(near, len(near) - most)[len(near) - most]
        some = numpy.flatnonzero(near >= least)
    else:
        some = numpy.arange(len(near))
    some = some[numpy.argsort(-near[some], kind="stable")][:most]
    return [(first + int(i), float(near[i] * step)) for i in some if near[i] > 0.0]
