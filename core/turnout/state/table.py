"""Rows of cells by name, wherever they lie."""

import fcntl
import hashlib
import os
from typing import Protocol

_F_ADD_SEALS = 1033  # not in every build of the fcntl module
_F_SEAL_SHRINK = 2


class Cells(Protocol):
    """What `native.Counters`, its twin and `remote.Remote` have in common."""

    def row(self, key: int) -> int: ...
    def get(self, row: int, cell: int) -> int: ...
    def add(self, row: int, cell: int, n: int) -> int: ...
    def bump(self, row: int, first: int, cells: int, stamp: int, n: int) -> int: ...
    def recent(self, row: int, first: int, cells: int, stamp: int) -> int: ...


def memory() -> int:
    """A file descriptor of memory for `Counters`. Whoever maps it may rely on it: it cannot be made smaller."""
    fd = os.memfd_create("turnout-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
    return fd


def key_of(name: str) -> int:
    """The key of a name: 64 bits of its hash, never 0. Two names share one once in 2**64 / names**2."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") or 1


class Row:
    """The cells of one name."""

    __slots__ = ("_cells", "_row")

    def __init__(self, cells: Cells, row: int) -> None:
        self._cells = cells
        self._row = row

    def get(self, cell: int) -> int:
        return self._cells.get(self._row, cell)

    def add(self, cell: int, n: int) -> int:
        return self._cells.add(self._row, cell, n)

    def bump(self, first: int, cells: int, stamp: int, n: int) -> int:
        return self._cells.bump(self._row, first, cells, stamp, n)

    def recent(self, first: int, cells: int, stamp: int) -> int:
        return self._cells.recent(self._row, first, cells, stamp)


def row(cells: Cells, name: str) -> Row | None:
    """The row of this name; None when all are taken, and then everybody counts for himself."""
    at = cells.row(key_of(name))
    return Row(cells, at) if at >= 0 else None
