"""The calibration plot: a PNG that shows what it was given."""

import zlib
from struct import unpack

import pytest

from turnout.cache.semantic import plot


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height, pixels as places in the palette; every chunk's checksum holds."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(png):
        (size,) = unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, depth, colours = unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colours) == (8, 3)
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1)
    return width, height, b"".join(raw[y * (width + 1) + 1 : (y + 1) * (width + 1)] for y in range(height))


def row(at: float, right: float, labels: float = 50.0) -> dict[str, float]:
    return {"from": at, "to": at + 0.01, "hits": 10.0, "misses": 40.0, "labels": labels, "right": right, "low": 0.0, "high": 1.0}


def rows_of(pixels: bytes, width: int, colour: int, x: int) -> list[int]:
    return [y for y in range(len(pixels) // width) if pixels[y * width + x] == colour]


def test_the_share_and_the_threshold_stand_where_they_belong() -> None:
    width, height, pixels = decoded(plot.reliability([row(0.60, 0.25), row(0.75, 1.0)], 0.9))
    assert (width, height) == (plot.WIDTH, plot.HEIGHT)
    across = lambda score: round(plot.LEFT + (score - 0.5) * 2 * (width - plot.LEFT - plot.RIGHT))
    low = height - plot.BOTTOM - plot.COUNTS - plot.GAP
    for score, right in ((0.602, 0.25), (0.752, 1.0)):
        marks = [y for y in rows_of(pixels, width, plot.BLUE, across(score)) if y <= low]
        assert sum(marks) / len(marks) == pytest.approx(low - right * (low - plot.TOP), abs=2)
    assert len(rows_of(pixels, width, plot.RED, across(0.9))) > height / 2
    assert not rows_of(pixels, width, plot.RED, across(0.8))[20:]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0, 2.0])
def test_nothing_known_is_a_picture_too(threshold: float) -> None:
    decoded(plot.reliability([], threshold))
    decoded(plot.reliability([row(0.1, 0.0), row(0.99, 0.5, 0.0)], threshold))


def test_scores_with_few_labels_are_joined_but_not_over_the_threshold() -> None:
    found = plot.columns([row(0.70 + i / 100, 0.5, 5.0) for i in range(10)], 0.75)
    assert [(round(c.start, 2), round(c.end, 2)) for c in found] == [(0.70, 0.74), (0.74, 0.75), (0.75, 0.79), (0.79, 0.80)]
    assert found[0].labels == pytest.approx(20.0)
    assert found[0].wrong == pytest.approx(10.0)
