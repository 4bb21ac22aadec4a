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
import struct

HEAD = 32
PIECE = 64 * 1024  # bytes that are read at once
_length = struct.Struct("<I").unpack_from
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

    def take_nowait(self, most: int = 1000) -> list[bytes]:
        """Up to `most` records, oldest first; they are gone from the ring. Empty list: nothing there."""
        out, position = self.peek_nowait(most)
        self.release(position)
        return out

    def release(self, position: int) -> None:
        """What stands before `position` is dealt with: its room may be used again."""
        self._words[1] = position

    def peek_nowait(self, most: int = 1000) -> tuple[list[bytes], int]:
        """Up to `most` records, oldest first, and the position behind them. They stay until `release`: a reader that is
        killed before it has dealt with them leaves them to the next one.
        """
        words = self._words
        at, end = words[1], words[0]
        out: list[bytes] = []
        want = PIECE
        while at < end and len(out) < most:
            piece = self._read(
                at, min(end - at, want)
            )  # many records at once: reading each by itself costs twice as much
            want, i, n = PIECE, 0, len(piece)
            stop = 4
            while i + 4 <= n and len(out) < most:
                stop = i + 4 + _length(piece, i)[0]
                if stop > n:
                    break
                out.append(piece[i + 4 : stop])
                i = stop
            if not i:
                if at + stop > end:  # cannot happen with a sound writer; a damaged ring is emptied rather than trusted
                    at = end
                want = stop  # a long record
            at += i
        return out, at

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
