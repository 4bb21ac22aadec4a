"""Counters in shared memory, native and twin: one set of tests, and for the native ones what other processes do to them."""

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from turnout.state.table import key_of, memory
from turnout.twin.counters import ROWS
from turnout.twin.counters import Counters as Twin

try:
    from turnout._native import Counters as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memory()
    yield fd
    os.close(fd)


@pytest.fixture(params=["twin", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "native" and Native is None:
        pytest.skip("the extension is not built")
    return Twin if request.param == "twin" else Native


def test_cells_count(kind: Any, fd: int) -> None:
    counters = kind(fd)
    a, b = counters.row(key_of("a")), counters.row(key_of("b"))
    assert a != b
    assert counters.row(key_of("a")) == a
    assert counters.get(a, 0) == 0
    assert counters.add(a, 0, 5) == 5
    assert counters.add(a, 0, -7) == -2
    assert counters.get(a, 0) == -2
    assert counters.get(b, 0) == counters.get(a, 1) == 0
    assert not counters.compare(a, 0, 5, 6)
    assert counters.compare(a, 0, -2, -(2**63))
    assert counters.add(a, 0, -1) == 2**63 - 1  # it goes round


def test_who_maps_the_same_memory_sees_the_same(kind: Any, fd: int) -> None:
    one, other = kind(fd), kind(fd)
    row = one.row(7)
    one.add(row, 30, 3)
    assert other.row(7) == row
    assert other.get(row, 30) == 3


def test_windows_forget(kind: Any, fd: int) -> None:
    counters = kind(fd)
    row = counters.row(1)
    assert [counters.bump(row, 10, 10, 1000 + n // 2, n) for n in range(6)] == [0, 1, 2, 5, 4, 9]
    assert counters.recent(row, 10, 10, 1002) == 15
    assert counters.recent(row, 10, 10, 1011) == 9
    assert counters.recent(row, 10, 10, 1001) == 6  # what is later than asked for does not count
    assert counters.recent(row, 10, 10, 1012) == 0
    assert counters.bump(row, 10, 10, 1012, 2) == 2
    assert counters.bump(row, 10, 10, 1002, 5) == 0  # it is over
    assert counters.recent(row, 10, 10, 1012) == 2
    assert counters.recent(row, 0, 10, 1012) == 0
    assert counters.bump(row, 10, 10, 1012, 2**32 - 1) == 2**32 - 1
    assert counters.bump(row, 10, 10, 1012, 2**32 - 1) == 2**32 - 1
    assert counters.recent(row, 10, 10, 5) == 0


@pytest.mark.parametrize("place", [(-1, 0), (ROWS, 0), (0, -1), (0, 31), (2**40, 0), (0, 2**40)])
def test_places_that_are_not_there(kind: Any, fd: int, place: tuple[int, int]) -> None:
    counters = kind(fd)
    for call in (lambda: counters.get(*place), lambda: counters.add(*place, 1), lambda: counters.compare(*place, 0, 1), lambda: counters.bump(*place, 1, 1, 1)):
        with pytest.raises(ValueError, match="no such row or cell"):
            call()
    for first, cells in ((0, 0), (0, 32), (30, 2), (0, -1)):
        with pytest.raises(ValueError, match="no such row or cell"):
            counters.recent(0, first, cells, 1)
    with pytest.raises(ValueError, match="not a key"):
        counters.row(0)
    with pytest.raises(OverflowError):
        counters.bump(0, 0, 1, 2**32, 1)


def test_all_rows_and_no_more(kind: Any, fd: int) -> None:
    counters = kind(fd)
    rng = random.Random(1)
    keys = [rng.getrandbits(64) or 1 for _ in range(ROWS)]
    rows = [counters.row(key) for key in keys]
    assert sorted(rows) == list(range(ROWS))
    assert counters.row(5) == -1
    assert [counters.row(key) for key in keys] == rows


def test_only_memory_that_cannot_shrink_is_taken(kind: Any, fd: int) -> None:
    plain = os.memfd_create("plain")
    with open(os.devnull, "rb") as null:
        for bad in (plain, null.fileno(), -1):
            with pytest.raises((ValueError, OSError)):
                kind(bad)
    os.close(plain)
    kind(fd)
    with pytest.raises(OSError):
        os.ftruncate(fd, 0)


def test_both_do_the_same_to_the_same_memory() -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    rng = random.Random(3)
    fds = (memory(), memory())
    one, other = Twin(fds[0]), Native(fds[1])
    for _ in range(20_000):
        key = rng.randrange(1, 50) << 40
        row = one.row(key)
        assert other.row(key) == row
        name, args = rng.choice(
            [
                ("get", (row, rng.randrange(31))),
                ("add", (row, rng.randrange(31), rng.randrange(-(2**40), 2**40))),
                ("compare", (row, rng.randrange(31), rng.randrange(3), rng.randrange(3))),
                ("bump", (row, rng.randrange(5), rng.randrange(1, 20), rng.randrange(2**32), rng.randrange(2**32))),
                ("recent", (row, rng.randrange(5), rng.randrange(1, 20), rng.randrange(2**32))),
            ]
        )
        assert getattr(one, name)(*args) == getattr(other, name)(*args), (name, args)
    for fd in fds:
        os.close(fd)


WORKER = """
import sys
from turnout._native import Counters
counters = Counters(int(sys.argv[1]))
row = counters.row(9)
print("up", flush=True)
mine, n = int(sys.argv[2]), int(sys.argv[3])
while n:
    counters.add(row, 0, 1)
    counters.bump(row, 20, 1, 77, 1)
    counters.row(1000 + n % 500)
    counters.add(row, mine, 1)  # after the common ones: it says that those are done
    n -= 1
"""


def start(fd: int, mine: int, n: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(fd), str(mine), str(n)], pass_fds=(fd,), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_nothing_is_lost_between_processes(fd: int) -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    processes = [start(fd, 1 + i, 200_000) for i in range(4)]
    for process in processes:
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
    counters = Native(fd)
    row = counters.row(9)
    assert counters.get(row, 0) == 800_000
    assert counters.recent(row, 20, 1, 77) == 800_000


def test_a_worker_that_is_killed_in_the_middle_corrupts_nothing(fd: int) -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    counters = Native(fd)
    row = counters.row(9)
    kills = 12
    rng = random.Random(5)
    survivor = start(fd, 1, -1)
    for i in range(kills):
        victim = start(fd, 2 + i, -1)
        time.sleep(rng.random() * 0.05)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert victim.stdout is not None
        victim.stdout.close()
        before = counters.get(row, 1)
        end = time.monotonic() + 5
        while counters.get(row, 1) == before and time.monotonic() < end:
            time.sleep(0.001)
        assert counters.get(row, 1) > before  # nobody waits for a lock of the dead
    survivor.send_signal(signal.SIGKILL)
    survivor.wait()
    assert survivor.stdout is not None
    survivor.stdout.close()
    done = sum(counters.get(row, 1 + i) for i in range(1 + kills))
    total, window = counters.get(row, 0), counters.recent(row, 20, 1, 77)
    # Each of them may have been between two operations, and in none.
    assert done <= window <= total <= done + kills + 1
    # The table of rows is whole: each key stands once.
    words = memoryview(mmap.mmap(fd, ROWS * 32 * 8)).cast("Q")[::32]
    keys = [key for key in words if key]
    assert len(keys) == len(set(keys))
    assert set(keys) <= {9, *range(1000, 1500)}
