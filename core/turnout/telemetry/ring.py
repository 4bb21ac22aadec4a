"""A bounded ring in shared memory: one writing process, one reading process, no lock.

A worker that is killed loses nothing it has put in: the memory outlives it. When the ring is full the record is
dropped and counted, and the worker goes on.

Layout: four 64-bit words (written, read, dropped, spare), then `size` bytes. Positions only grow; the place of byte n
is n mod size. A record is a 4-byte length and its bytes, and may wrap. One side writes each word, aligned stores of
8 bytes are whole on every platform we run on, and the length and bytes are stored before `written` moves (x86-64 and
AArch64 through CPython's own barriers of the next bytecode), so a reader never sees a torn record.
"""

import mmap
import os
from collections.abc import Callable

HEAD = 32
PIECE = 64 * 1024  # bytes that are read at once
DEFAULT_SIZE = 8 * 1024 * 1024  # about 16,000 records of 500 bytes: three seconds of a full worker


class Ring:
    """One ring on an open file descriptor (a memfd or a file in the state folder)."""

    def __init__(self, fd: int, size: int = DEFAULT_SIZE) -> None:
        if os.fstat(fd).st_size < HEAD + size:
            os.ftruncate(fd, HEAD + size)
        self._map = mmap.mmap(fd, HEAD + size)
        self._words = memoryview(self._map)[:HEAD].cast("Q")
        self.memory = memoryview(self._map)[: HEAD + size]  # for a native writer (native/src/kernels/tally.rs)
        self._size = size

    def put_nowait(self, record: bytes) -> bool:
        """Store one record; False and one more in `dropped` when there is no room. O(length)."""
        words, size = self._words, self._size
        at = words[0]
        piece = len(record).to_bytes(4, "little") + record
        n = len(piece)
        if at + n - words[1] > size:
            words[2] += 1
            return False
        pos = at % size
        if pos + n <= size:
            self._map[HEAD + pos : HEAD + pos + n] = piece
        else:
            cut = size - pos
            self._map[HEAD + pos : HEAD + size] = piece[:cut]
            self._map[HEAD : HEAD + n - cut] = piece[cut:]
        words[0] = at + n
        return True

    def peek_nowait(self, read: Callable[[bytes, int], tuple[int, int, int]], most: int) -> tuple[int, int]:
        """Give `read` up to `most` records, oldest first, many at once; returns how many it took and the position behind
        them. They stay until `release`: a reader that is killed before it has dealt with them leaves them to the next one.

        `read` gets a piece of the ring that begins with a record, as they lie here, and how many records it may take. It
        returns how many it took, their bytes, and how many bytes (length and all) the next one has that is not whole.
        """
        words = self._words
        at, end = words[1], words[0]
        taken, want = 0, PIECE
        while at < end and taken < most:
            records, used, more = read(self._read(at, min(end - at, want)), most - taken)
            taken += records
            at += used
            want = PIECE
            if not used:
                want = more  # a long record
                if more > min(end - at, self._size):  # cannot happen with a sound writer; a damaged ring is emptied
                    at = end  # rather than trusted
        return taken, at

    def release(self, position: int) -> None:
        """What stands before `position` is dealt with: its room may be used again."""
        self._words[1] = position

    @property
    def dropped(self) -> int:
        return self._words[2]

    @property
    def waiting_bytes(self) -> int:
        return self._words[0] - self._words[1]

    def _read(self, at: int, n: int) -> bytes:
        pos = at % self._size
        if pos + n <= self._size:
            return self._map[HEAD + pos : HEAD + pos + n]
        cut = self._size - pos
        return self._map[HEAD + pos : HEAD + self._size] + self._map[HEAD : HEAD + n - cut]

    def close(self) -> None:
        self._words.release()
        self.memory.release()
        self._map.close()
