"""Records as they lie in a ring: each with its length before it."""

from turnout.telemetry.ring import Ring


def framed(*records: bytes) -> bytes:
    return b"".join(len(record).to_bytes(4, "little") + record for record in records)


def split(piece: bytes, most: int) -> tuple[list[bytes], int, int]:
    """Up to `most` whole records at the front of a piece, their bytes, and how many the next one has."""
    found: list[bytes] = []
    at = 0
    while True:
        stop = at + 4 + int.from_bytes(piece[at : at + 4], "little") if at + 4 <= len(piece) else at + 4
        if stop > len(piece) or len(found) == most:
            return found, at, stop - at
        found.append(piece[at + 4 : stop])
        at = stop


def take(ring: Ring, most: int = 1000) -> list[bytes]:
    """Up to `most` records, oldest first; they are gone from the ring."""
    out: list[bytes] = []

    def read(piece: bytes, most: int) -> tuple[int, int, int]:
        found, used, more = split(piece, most)
        out.extend(found)
        return len(found), used, more

    taken, position = ring.peek_nowait(read, most)
    assert taken == len(out)
    ring.release(position)
    return out
