"""The calibration of the verifier's score as a picture: per score the share of right answers, with its interval, the
threshold, and below what was asked there. A PNG of a few kilobytes, by zlib and struct alone. Pure; about 30 ms."""

from collections.abc import Iterable, Mapping
from struct import pack
from zlib import compress, crc32

from .meter.bounds import wilson

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 60  # margins
COUNTS = 90  # height of the histogram
GAP = 30
FROM = 0.5  # the lowest score shown
FEWEST = 20.0  # labels of one column; scores with fewer are joined
WHITE, BLACK, GRID, BLUE, LIGHT, RED, GREY = range(7)
_PALETTE = bytes.fromhex("ffffff 202020 e4e4e4 1f5fbf a9c4ea c62828 808080")
# Three columns by five rows, from the upper left, one bit a pixel.
_LETTERS = "0123456789.%ABCDEFGHIKLMNOPRSTUVWY"
_BITS = (
    "7b6f2c9773e773cf5bc979cf79ef72527bef7bcf000252a57bed6bae79276b6e79e7"
    "79e4796f5bed74975bad49275fed6b6d7b6f7be46bad79cf74925b6f5b6a5bfd5bd2"
)
_FONT = {letter: int(_BITS[4 * i : 4 * i + 4], 16) for i, letter in enumerate(_LETTERS)}


class _Sheet:
    """Pixels of a palette; the origin is the upper left corner."""

    def __init__(self) -> None:
        self.pixels = bytearray(WIDTH * HEIGHT)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: int) -> None:
        """All pixels from one corner to the other, both included."""
        a, b = sorted((round(x0), round(x1)))
        c, d = sorted((round(y0), round(y1)))
        a, b, c, d = max(0, a), min(WIDTH - 1, b), max(0, c), min(HEIGHT - 1, d)
        for y in range(c, d + 1):
            self.pixels[y * WIDTH + a : y * WIDTH + b + 1] = bytes((colour,)) * max(0, b + 1 - a)

    def write(self, x: float, y: float, text: str, colour: int = BLACK, size: int = 2) -> None:
        """From its upper left corner."""
        for letter in text:
            bits = _FONT.get(letter, 0)
            for i in range(15):
                if bits >> (14 - i) & 1:
                    px, py = x + i % 3 * size, y + i // 3 * size
                    self.box(px, py, px + size - 1, py + size - 1, colour)
            x += 4 * size

    def png(self) -> bytes:
        rows = b"".join(b"\0" + self.pixels[y * WIDTH : (y + 1) * WIDTH] for y in range(HEIGHT))
        head = pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"PLTE", _PALETTE), (b"IDAT", compress(rows)), (b"IEND", b""))
        parts = [pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data)) for kind, data in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class _Column:
    """Neighbouring scores taken together."""

    __slots__ = ("end", "hits", "labels", "misses", "start", "wrong")

    def __init__(self, start: float) -> None:
        self.start = self.end = start
        self.hits = self.misses = self.labels = self.wrong = 0.0

    def add(self, row: Mapping[str, float]) -> None:
        self.end = row["to"]
        self.hits += row["hits"]
        self.misses += row["misses"]
        self.labels += row["labels"]
        self.wrong += row["labels"] * (1.0 - row["right"])


def columns(rows: Iterable[Mapping[str, float]], threshold: float) -> list[_Column]:
    """Joined until each has FEWEST labels; never over the threshold."""
    found: list[_Column] = []
    for row in rows:
        start = row["from"]
        if start < FROM - 1e-9:
            continue
        crosses = bool(found) and found[-1].start < threshold <= row["from"]
        if not found or crosses or found[-1].labels >= FEWEST:
            found.append(_Column(start))
        found[-1].add(row)
    return found


def reliability(rows: Iterable[Mapping[str, float]], threshold: float) -> bytes:
    """`rows`: of `Meter.calibration`. A PNG."""
    sheet = _Sheet()
    base = HEIGHT - BOTTOM
    low = base - COUNTS - GAP  # where no answer is right

    def across(score: float) -> float:
        return LEFT + (min(max(score, FROM), 1.0) - FROM) / (1.0 - FROM) * (WIDTH - LEFT - RIGHT)

    def up(share: float) -> float:
        return low - share * (low - TOP)

    for i in range(11):
        y, x = up(i / 10), across(FROM + i / 20)
        sheet.box(LEFT, y, WIDTH - RIGHT, y, GRID)
        sheet.box(x, TOP, x, base, GRID)
        sheet.write(LEFT - 42, y - 5, f"{i * 10:3}%")
        sheet.write(x - 14, base + 8, f"{FROM + i / 20:.2f}")
    found = columns(rows, threshold)
    most = max((c.hits + c.misses for c in found), default=0.0) or 1.0
    for c in found:
        x0, x1 = across(c.start) + 1, max(across(c.end) - 1, across(c.start) + 2)
        high = base - COUNTS * c.misses / most
        sheet.box(x0, base, x1, high, LIGHT)
        if c.hits:
            sheet.box(x0, high, x1, high - COUNTS * c.hits / most, BLUE)
        if c.labels < 0.5:
            continue
        bound = wilson(min(1.0, c.wrong / c.labels), c.labels)
        middle = (x0 + x1) / 2
        sheet.box(middle - 1, up(1.0 - bound.low), middle, up(1.0 - bound.high), GREY)
        sheet.box(x0, up(1.0 - bound.value) - 1, x1, up(1.0 - bound.value) + 1, BLUE)
    if threshold <= 1.0:
        sheet.box(across(threshold) - 1, TOP, across(threshold), base, RED)
    sheet.box(LEFT, TOP, LEFT, base, BLACK)
    sheet.box(LEFT, low, WIDTH - RIGHT, low, BLACK)
    sheet.box(LEFT, base, WIDTH - RIGHT, base, BLACK)
    sheet.write(LEFT, 14, "RIGHT ANSWERS BY SCORE", size=3)
    sheet.write(WIDTH - 320, 16, f"THRESHOLD {threshold:.3f}" if threshold <= 1.0 else "NOTHING IS SERVED", RED)
    sheet.write(WIDTH / 2 - 20, base + 32, "SCORE")
    sheet.write(LEFT + 10, base - COUNTS - 14, f"HITS {sum(c.hits for c in found):.0f}", BLUE)
    sheet.write(LEFT + 160, base - COUNTS - 14, f"MISSES {sum(c.misses for c in found):.0f}", GREY)
    return sheet.png()
