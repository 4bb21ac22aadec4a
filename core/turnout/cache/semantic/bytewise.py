"""The direction of a vector in a byte for each dimension: what a kept question keeps of one that a model gave. Pure."""

from typing import Any

import numpy


def packed(values: Any) -> bytes:
    """The numbers as int8, the largest as 127; the length is left open."""
    most = max(float(numpy.abs(values).max()), 1e-30)
    return bytes(numpy.rint(values / most * 127.0).astype(numpy.int8).tobytes())


def unpacked(kept: bytes) -> Any:
    """The same as float32; of the length that they have."""
    return numpy.frombuffer(kept, numpy.int8).astype(numpy.float32)
