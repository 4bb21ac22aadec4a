"""One large scope on disk: its vectors, to be looked through where they lie, and its items as the books write them.

    head | Place (MessagePack) | rows of native.row_of, the oldest first | where each item ends (u64) | the items

What is torn, of another version, another scope or damaged is refused when it is opened: the head says how long all is, what
made the vectors and whose it is, and all behind the checksum is under it. Nothing in it is ever given: it proposes
questions, and an answer has to lie in the books (knowledge.py).
"""

import contextlib
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Sequence

import msgspec

from ... import native
from .books import Place
from .index import MOST_ROWS, NEAREST, ROW_BYTES

MAGIC = b"TNSNAP01"
SIDE = ".new"
# magic, checksum of all that follows; rows, bytes of the place, of the items; what made the vectors; the last end of life in
# it, when it was written
_HEAD = struct.Struct("<8sI4xQQQ8sQQ")
_SUMMED = 12  # where that begins
_PIECE = 1 << 20
MOST_ITEMS = 1_000_000
_decode_place = msgspec.msgpack.Decoder(Place).decode


class Refused(Exception):
    """Why a file is no snapshot that may be used."""


class Over(Refused):
    """It is as it should be, but nothing in it lives any more."""


class Snapshot:
    """Mapped, not read. `taken`: digests that were taken from it; `dropped`: those that are not to be any more."""

    def __init__(self, place: Place, rows: memoryview, ends: memoryview, items: memoryview, inode: int) -> None:
        self.place = place
        self.inode = inode
        self.taken: set[bytes] = set()
        self.dropped: set[bytes] = set()
        self._rows, self._ends, self._items = rows, ends, items

    def __len__(self) -> int:
        return len(self._ends)

    def nearest(self, vector: bytes, most: int = 2 * NEAREST) -> list[bytes]:
        """The items, as written, whose vectors are about the nearest: among the MOST_ROWS youngest."""
        count = len(self)
        found = native.nearest_rows(self._rows, max(0, count - MOST_ROWS), count, vector, most)
        return [self.item(row) for row, _ in found]

    def item(self, row: int) -> bytes:
        return bytes(self._items[self._ends[row - 1] if row else 0 : self._ends[row]])


def read(path: str, version: bytes, now_ns: int) -> Snapshot:
    """Costs a look at every byte, without the lock of the interpreter. `version`: of what makes vectors of texts. Raises
    Refused and OSError."""
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size < _HEAD.size:
            raise Refused("it is torn")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = memoryview(mapped)
    magic, checksum, rows, place_bytes, item_bytes, made_by, dead_ns, _ = _HEAD.unpack_from(mapped)
    if magic != MAGIC:
        raise Refused("it is none")
    at = _HEAD.size + place_bytes
    sizes = (rows * ROW_BYTES, rows * 8, item_bytes)
    if rows > MOST_ITEMS or at + sum(sizes) != len(mapped):
        raise Refused("it is torn")
    found = 0
    for start in range(_SUMMED, len(mapped), _PIECE):
        found = zlib.crc32(whole[start : start + _PIECE], found)
    if found != checksum:
        raise Refused("it is damaged")
    if made_by != version:
        raise Refused("its vectors are of another version")
    if now_ns >= dead_ns:
        raise Over
    try:
        place = _decode_place(whole[_HEAD.size : at])
    except (msgspec.DecodeError, RecursionError):
        raise Refused("it is none") from None
    parts = []
    for size in sizes:
        parts.append(whole[at : at + size])
        at += size
    # The ends need not lie where whole numbers may be read in place.
    ends = memoryview(array("Q", parts[1].tobytes()))
    if rows and ends[-1] != item_bytes:
        raise Refused("it is damaged")
    return Snapshot(place, parts[0], ends, parts[2], stat.st_ino)


class Writing:
    """A snapshot that is being written, to the side; `finish` puts it in its place. All but `add` is for another thread.
    Raises OSError."""

    def __init__(self, path: str, place: Place, count: int) -> None:
        self.path = path
        self.bytes = 0
        self._side = f"{path}.{os.getpid()}.{os.urandom(4).hex()}{SIDE}"
        self._fd = os.open(
            self._side, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
        )  # questions are private
        self._place = msgspec.msgpack.encode(place)
        self._rows_at = _HEAD.size + len(self._place)
        self._items_at = self._rows_at + count * (ROW_BYTES + 8)
        self._count = count
        self._ends = array("Q")
        self._dead_ns = 0

    @staticmethod
    def size(count: int, text_bytes: int) -> int:
        """About what a file of so many items with so many bytes of text takes."""
        return 256 + count * (ROW_BYTES + 8 + 160) + text_bytes

    def add(self, items: Sequence[bytes], dead_ns: int) -> None:
        """Items as written; `write` gets them with their rows. Not more than `count` in all."""
        for data in items:
            self.bytes += len(data)
            self._ends.append(self.bytes)
        self._dead_ns = max(self._dead_ns, dead_ns)

    def write(self, first: int, rows: Sequence[bytes], items: Sequence[bytes]) -> None:
        """Those that were added from number `first` on."""
        at = self._ends[first - 1] if first else 0
        _write(self._fd, b"".join(rows), self._rows_at + first * ROW_BYTES)
        _write(self._fd, b"".join(items), self._items_at + at)

    @property
    def total(self) -> int:
        return self._items_at + self.bytes

    def finish(self, version: bytes, now_ns: int) -> None:
        """On the disk and in its place, in the room of what was there before."""
        assert len(self._ends) == self._count
        _write(self._fd, self._place, _HEAD.size)
        _write(self._fd, self._ends.tobytes(), self._rows_at + self._count * ROW_BYTES)
        said = (self._count, len(self._place), self.bytes, version, self._dead_ns, now_ns)
        _write(self._fd, _HEAD.pack(MAGIC, 0, *said), 0)
        found, at = 0, _SUMMED
        while piece := os.pread(self._fd, _PIECE, at):
            found = zlib.crc32(piece, found)
            at += len(piece)
        _write(self._fd, _HEAD.pack(MAGIC, found, *said), 0)
        os.fsync(self._fd)
        os.replace(self._side, self.path)
        os.close(self._fd)
        self._fd = -1
        sync_folder(self.path)

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self._side)


def _write(fd: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], at + done)


def sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def erase(path: str) -> None:
    """Zeros over all of it, then away with it. It is never made shorter: who has it mapped would die of that."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            left, at = os.fstat(fd).st_size, 0
            zeros = bytes(min(left, _PIECE))
            while at < left:
                at += os.pwrite(fd, zeros[: left - at], at)
            os.fsync(fd)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):
        os.unlink(path)


def peek(path: str) -> tuple[Place, int] | None:
    """Whose it says to be and when it was written, without a look at the rest; None: it is none."""
    try:
        with open(path, "rb") as file:
            magic, _, _, size, _, _, _, written_ns = _HEAD.unpack(file.read(_HEAD.size))
            return (_decode_place(file.read(size)), written_ns) if magic == MAGIC and size < 1 << 16 else None
    except (OSError, struct.error, msgspec.DecodeError, RecursionError):
        return None
