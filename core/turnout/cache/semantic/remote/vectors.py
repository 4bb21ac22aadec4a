"""An answer of an embeddings endpoint as a vector, and a vector as it is kept. Pure.

Kept is only the direction, a byte for each dimension: the cosine of two of 512 is then off by under 0.001, and what is
asked for is rounded the same way, so the same text is at 1.
"""

import base64
import binascii
from typing import Any

import msgspec
import numpy

from ..bytewise import packed, unpacked

MOST_DIMENSIONS = 4096


class Unfit(ValueError):
    """Not a vector that can be used; the text is a word for metrics: garbage, dimensions, nan or zero."""


class _Datum(msgspec.Struct):
    embedding: list[float] | str  # a text: base64 of float32, little endian


class _Answer(msgspec.Struct):
    data: list[_Datum]


_decode = msgspec.json.Decoder(_Answer).decode


def read_vector(body: bytes, dimensions: int | None) -> bytes:
    """The vector as it is kept: one int8 for each dimension. `dimensions`: how many there have to be; None: as many as come.
    Raises Unfit. About 80 us for 1,536."""
    try:
        data = _decode(body).data
        if len(data) != 1:
            raise Unfit("garbage")
        said = data[0].embedding
        if isinstance(said, str):
            values = numpy.frombuffer(base64.b64decode(said, validate=True), "<f4").astype(numpy.float64)
        else:
            values = numpy.array(said, numpy.float64)
    except (
        msgspec.MsgspecError,
        RecursionError,
        UnicodeDecodeError,
        binascii.Error,
        ValueError,
        OverflowError,
    ) as wrong:
        raise wrong if isinstance(wrong, Unfit) else Unfit("garbage") from None
    if not 0 < len(values) <= MOST_DIMENSIONS or (dimensions is not None and len(values) != dimensions):
        raise Unfit("dimensions")
    if not numpy.isfinite(values).all():
        raise Unfit("nan")
    if float(numpy.abs(values).max()) < 1e-30:
        raise Unfit("zero")
    return packed(values)


def unit(kept: bytes) -> Any:
    """The same as float32 of length 1."""
    values = unpacked(kept)
    return values / numpy.linalg.norm(values)
