"""What processes hold and use, from /proc."""

import os
import time
from pathlib import Path


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def private_bytes(pid: int) -> int:
    """Without what it shares: of a ring as much is resident as its reader was ever behind."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def cpu_s(pid: int) -> float:
    """CPU time of all its threads so far, in nanosecond steps where /proc/PID/stat has hundredths."""
    return sum(int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) for tid in os.listdir(f"/proc/{pid}/task")) / 1e9


def stretch(seconds: float = 0.2) -> float:
    """How many times its CPU time a process that only computes takes now: 1 on a quiet machine, 4 where it gets a quarter of a core."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < seconds:
        pass
    return (time.monotonic() - began) / (time.process_time() - used)


def cpu_share(pid: int, seconds: float) -> float:
    """The part of one core that it uses now."""
    began, used = time.monotonic(), cpu_s(pid)
    time.sleep(seconds)
    return (cpu_s(pid) - used) / (time.monotonic() - began)
