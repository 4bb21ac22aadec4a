"""The ring: what was put comes out, in order and whole, whatever the sizes; what does not fit is counted."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import turnout
from support.records import take
from turnout.telemetry.ring import HEAD, Ring

CORE = str(Path(turnout.__file__).parent.parent)


def a_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def in_process(code: str, fd: int, *args: str) -> subprocess.Popen[bytes]:
    """Run `code` in another Python that has the ring's descriptor."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(fd), *args],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": CORE},
    )


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(16, 300),
    steps=st.lists(st.one_of(st.binary(max_size=120), st.integers(0, 5)), max_size=80),
)
def test_any_records_come_out_whole_and_in_order_and_the_rest_is_counted(size: int, steps: list[bytes | int]) -> None:
    fd = a_file()
    writer, reader = Ring(fd, size), Ring(fd, size)  # two mappings of one memory, as two processes have them
    model: deque[bytes] = deque()
    used = dropped = 0
    try:
        for step in steps:
            if isinstance(step, bytes):
                fits = used + 4 + len(step) <= size
                assert writer.put_nowait(step) is fits
                if fits:
                    model.append(step)
                    used += 4 + len(step)
                else:
                    dropped += 1
            else:
                got = take(reader, step)
                want = [model.popleft() for _ in range(min(step, len(model)))]
                assert got == want
                used -= sum(4 + len(record) for record in want)
            assert reader.dropped == writer.dropped == dropped
            assert reader.waiting_bytes == used
        assert take(reader) == list(model)
        assert take(reader) == []
    finally:
        writer.close()
        reader.close()
        os.close(fd)


WRITER = """
import os, random, sys
from turnout.telemetry.ring import Ring
ring = Ring(int(sys.argv[1]), int(sys.argv[2]))
rng = random.Random(7)
n = 0
while n < int(sys.argv[3]):
    record = n.to_bytes(4, "little") + bytes([n % 251]) * rng.randrange(0, 300)
    if ring.put_nowait(record):
        n += 1
        if len(sys.argv) > 4:
            os.write(1, n.to_bytes(4, "little"))
print(ring.dropped, flush=True)
"""


def check(record: bytes, n: int) -> None:
    assert int.from_bytes(record[:4], "little") == n
    assert set(record[4:]) <= {n % 251}


def test_two_processes_at_once_lose_and_tear_nothing() -> None:
    fd = a_file()
    ring = Ring(fd, 4096)  # small: it wraps about every 25 records and is full much of the time
    child = in_process(WRITER, fd, "4096", "20000")
    n = 0
    while n < 20000:
        for record in take(ring, 50):
            check(record, n)
            n += 1
        assert child.poll() in (None, 0)
    out, _ = child.communicate(timeout=30)
    assert int(out) == ring.dropped  # what the writer was refused, it put again: the count is all that remains
    assert take(ring) == []
    ring.close()
    os.close(fd)


def test_kill_of_the_writer_loses_nothing_it_had_put() -> None:
    fd = a_file()
    size = 1024 * 1024
    child = in_process(WRITER, fd, str(size), "1000000", "tell")
    assert child.stdout is not None
    told = 0
    while told < 1000:
        told = int.from_bytes(child.stdout.read(4), "little")
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()  # not communicate(): that passes by what the file object has buffered
    child.communicate(timeout=30)
    told = int.from_bytes(rest[len(rest) // 4 * 4 - 4 : len(rest) // 4 * 4], "little") if len(rest) >= 4 else told
    ring = Ring(fd, size)
    got = take(ring, 10_000_000)
    for n, record in enumerate(got):
        check(record, n)
    assert told <= len(got) <= told + 1  # the last put may not have been told any more
    ring.close()
    os.close(fd)


def test_another_reader_goes_on_where_the_first_stopped() -> None:
    fd = a_file()
    writer, first = Ring(fd, 256), Ring(fd, 256)
    for n in range(5):
        writer.put_nowait(bytes([n]))
    assert take(first, 2) == [b"\0", b"\1"]
    first.close()
    second = Ring(fd, 256)
    assert take(second) == [b"\2", b"\3", b"\4"]
    for ring in (writer, second):
        ring.close()
    os.close(fd)


def test_a_damaged_length_empties_the_ring_and_the_next_record_is_sound() -> None:
    fd = a_file()
    ring = Ring(fd, 256)
    ring.put_nowait(b"one")
    os.pwrite(fd, (10_000).to_bytes(4, "little"), HEAD)
    assert take(ring) == []
    ring.put_nowait(b"two")
    assert take(ring) == [b"two"]
    ring.close()
    os.close(fd)


@pytest.mark.parametrize("size", [64, 100])
def test_a_record_larger_than_the_ring_is_dropped_and_counted(size: int) -> None:
    fd = a_file()
    ring = Ring(fd, size)
    assert not ring.put_nowait(b"x" * (size - 3))
    assert ring.put_nowait(b"x" * (size - 4))
    assert ring.dropped == 1
    ring.close()
    os.close(fd)
