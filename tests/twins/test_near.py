"""Vectors in a quarter of their bytes: native and twin make the same rows and find the same ones, and those are nearest."""

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.twin import near as twin

numpy = pytest.importorskip("numpy")
try:
    from turnout import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

KINDS = [pytest.param(twin, id="twin")] + ([pytest.param(native, id="native")] if native is not None else [])
ROW = 260


def vectors(count: int, seed: int) -> Any:
    found = numpy.random.default_rng(seed).normal(size=(count, 256))
    return (found / numpy.linalg.norm(found, axis=1, keepdims=True)).astype("<f4")


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_rows_are_those_of_all_cosines(kind: Any) -> None:
    table = vectors(3000, 1)
    rows = bytearray().join(kind.row_of(vector.tobytes()) for vector in table)
    assert len(rows) == 3000 * ROW
    for number in range(20):
        asked = table[number * 7] + 0.3 * vectors(1, number)[0]
        asked = (asked / numpy.linalg.norm(asked)).astype("<f4")
        cosines = table @ asked
        found = kind.nearest_rows(rows, 0, 3000, asked.tobytes(), 8)
        assert len(found) == 8 and found[0][0] == int(cosines.argmax())
        assert all(abs(near - float(cosines[row])) < 0.01 for row, near in found)
        assert [near for _, near in found] == sorted((near for _, near in found), reverse=True)
        part = kind.nearest_rows(memoryview(rows), 100, 2000, asked.tobytes(), 1)
        assert part[0][0] == 100 + int(cosines[100:2000].argmax())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_vector_or_not_there_is_refused_and_nothing_is_near_zeros(kind: Any) -> None:
    row = kind.row_of(bytes(1024))
    asked = vectors(1, 3)[0].tobytes()
    assert row == bytes(ROW)
    assert kind.nearest_rows(row, 0, 1, asked, 4) == kind.nearest_rows(row, 0, 0, asked, 4) == []
    assert kind.nearest_rows(kind.row_of(asked), 0, 1, asked, 0) == []
    for wrong in ((row, 0, 2, asked, 4), (row, 1, 0, asked, 4), (row, 0, 1, asked[:-1], 4), (row, 0, 1, asked, 65)):
        with pytest.raises(ValueError):
            kind.nearest_rows(*wrong)
    with pytest.raises(ValueError):
        kind.row_of(b"")


@pytest.mark.skipif(native is None, reason="the extension is not built")
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_both_find_the_same(seed: int, count: int, most: int) -> None:
    lot = random.Random(seed)
    some = [struct.pack("<256f", *(lot.choice((0.0, 0.5, -1.0, lot.gauss(0, 1))) for _ in range(256))) for _ in range(count)]
    rows = b"".join(twin.row_of(vector) for vector in lot.choices(some, k=count))
    assert [twin.row_of(vector) for vector in some] == [native.row_of(vector) for vector in some]
    first = lot.randrange(count + 1)
    last = lot.randrange(first, count + 1)
    assert twin.nearest_rows(rows, first, last, some[0], most) == native.nearest_rows(rows, first, last, some[0], most)
