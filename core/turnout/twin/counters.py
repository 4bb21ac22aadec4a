"""Twin of `native/src/kernels/counters.rs`: the same memory, but no atomic operations."""

import fcntl
import mmap
import os

ROWS = 4096
_WORDS = 32
_SIZE = ROWS * _WORDS * 8
_F_GET_SEALS = 1034  # not in every build of the fcntl module
_F_SEAL_SHRINK = 2
_MASK = 0xFFFF_FFFF


class Counters:
    """Counters in shared memory, by rows of 31 cells. `fd` is a memfd that is sealed against shrinking; it is made long
    enough. Operations of the native class are whole between processes; those of the twin within one process only.

    A cell is a signed number of 64 bits (`get`, `add`, `compare`), or part of a window: `bump` counts in cell
    `first + stamp % cells` what falls into this stamp (a second, say) and forgets what an older stamp left there;
    `recent` is the sum over the last `cells` stamps. Counts in windows end at 2**32 - 1, stamps begin anew there.
    Raises ValueError for a row or cell that is not there.
    """

    def __init__(self, fd: int) -> None:
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError:
            seals = 0
        if not seals & _F_SEAL_SHRINK:
            raise ValueError("not a memfd that is sealed against shrinking")
        if os.fstat(fd).st_size < _SIZE:
            os.ftruncate(fd, _SIZE)
        self._map = mmap.mmap(fd, _SIZE)
        self._words = memoryview(self._map).cast("Q")

    def row(self, key: int) -> int:
        """The row of this key (not 0), for whoever asks first and for all after that; -1 when all rows are taken."""
        if key == 0:
            raise ValueError("0 is not a key")
        for step in range(ROWS):
            row = (key + step) % ROWS
            if self._words[row * _WORDS] in (0, key):
                self._words[row * _WORDS] = key
                return row
        return -1

    def get(self, row: int, cell: int) -> int:
        return _signed(self._words[_place(row, cell)])

    def add(self, row: int, cell: int, n: int) -> int:
        """What it is afterwards."""
        at = _place(row, cell)
        self._words[at] = now = (self._words[at] + n) & 0xFFFF_FFFF_FFFF_FFFF
        return _signed(now)

    def compare(self, row: int, cell: int, old: int, new: int) -> bool:
        """Make it `new` if it is `old`; whether it was."""
        at = _place(row, cell)
        if _signed(self._words[at]) != old:
            return False
        self._words[at] = new & 0xFFFF_FFFF_FFFF_FFFF
        return True

    def bump(self, row: int, first: int, cells: int, stamp: int, n: int) -> int:
        """What was counted with this stamp so far, `n` included; 0 if a newer one has its cell."""
        if not (0 <= stamp <= _MASK and 0 <= n <= _MASK):
            raise OverflowError("stamps and counts have 32 bits")
        at = _window(row, first, cells) + stamp % cells
        there, count = divmod(self._words[at], _MASK + 1)
        if there > stamp:
            return 0
        count = min((count if there == stamp else 0) + n, _MASK)
        self._words[at] = stamp << 32 | count
        return count

    def recent(self, row: int, first: int, cells: int, stamp: int) -> int:
        """What was counted with this stamp and those before it, `cells` in all."""
        at = _window(row, first, cells)
        return sum(word & _MASK for word in self._words[at : at + cells] if stamp - cells < word >> 32 <= stamp)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _place(row: int, cell: int) -> int:
    if not (0 <= row < ROWS and 0 <= cell < _WORDS - 1):
        raise ValueError("no such row or cell")
    return row * _WORDS + 1 + cell


def _window(row: int, first: int, cells: int) -> int:
    if not (0 <= row < ROWS and first >= 0 and cells > 0 and first + cells <= _WORDS - 1):
        raise ValueError("no such row or cell")
    return row * _WORDS + 1 + first
