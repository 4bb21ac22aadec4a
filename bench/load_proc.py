"""Processes of a measurement: started pinned and in a session of their own, their whole tree's CPU time read, stopped.

CPU time comes from each process's CPU clock: the same sum as utime + stime in /proc/PID/stat (ended threads included),
but in nanoseconds instead of 10 ms ticks. Children that have ended are in their parent's cutime + cstime.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import resource
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

#: Why the kernel did not let us raise a session's weight; empty when it did. For the report.
weight_refusals: set[str] = set()


class LoadError(Exception):
    """Something needed for the measurement is missing or broke; the message says what to do."""


def cores() -> tuple[int, int]:
    """The core of the gateway and the core of mock and load generator (the same one when there is only one)."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1] if len(usable) > 1 else usable[0]


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def raise_file_limit() -> int:
    """Lets this process and its children open as many files as the system allows; returns that number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def raise_weight(pid: int) -> None:
    """Raises the weight of the process's session (autogroup) to that of nice -15.

    The kernel shares the CPU between sessions first, so `nice` means nothing against other sessions: without this the
    neighbours are measured (nginx gave 10 k instead of 37 k requests a second).
    """
    for _ in range(5):
        try:
            Path(f"/proc/{pid}/autogroup").write_text("-15")
            return
        except BlockingIOError:  # one change every 100 ms for those who are not root
            time.sleep(0.11)
        except OSError as why:
            weight_refusals.add(why.strerror or str(why))
            return


@dataclass(frozen=True)
class Cpu:
    """CPU time of a process tree at one moment, and its processes' own."""

    at_ns: int
    total_ns: int
    by_pid: dict[int, int]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty when the process has gone."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return raw[raw.rindex(")") + 2 :].split()


def tree(root: int) -> list[int]:
    """`root`, its descendants, and what else runs in its session (orphans)."""
    stats = {int(entry): _stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    stats = {pid: fields for pid, fields in stats.items() if fields}
    found = {pid for pid, fields in stats.items() if pid == root or int(fields[3]) == root}
    while True:
        more = {pid for pid, fields in stats.items() if int(fields[1]) in found} - found
        if not more:
            return sorted(found)
        found |= more


def _cpu_ns(pid: int, fields: list[str]) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # the process's CPU clock, as clock_getcpuclockid(3) makes it
    except OSError:  # a zombie
        return (int(fields[11]) + int(fields[12])) * TICK_NS


def cpu(root: int) -> Cpu:
    """CPU time that the tree of `root` has used so far. Costs 20 us per process of the machine."""
    by_pid: dict[int, int] = {}
    ended_ns = 0
    pids = tree(root)
    at_ns = time.monotonic_ns()
    for pid in pids:
        fields = _stat(pid)
        if fields:
            by_pid[pid] = _cpu_ns(pid, fields)
            ended_ns += (int(fields[13]) + int(fields[14])) * TICK_NS
    return Cpu(at_ns, sum(by_pid.values()) + ended_ns, by_pid)


def rss_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, now and at its peak, in MB; zeros when it has gone."""
    sizes = {"VmRSS": 0.0, "VmHWM": 0.0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name = line.partition(":")[0]
            if name in sizes:
                sizes[name] = int(line.split()[1]) / 1024
    except OSError:
        pass
    return sizes["VmRSS"], sizes["VmHWM"]


@dataclass
class Server:
    """A started process that listens on loopback. `root` is the pid whose tree is measured."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    key: str = "none"
    model: str = "m"
    headers: tuple[str, ...] = ()
    stop_s: float = 6.0
    _stopped: bool = field(default=False, repr=False)

    @property
    def root(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    def cpu(self) -> Cpu:
        return cpu(self.root)

    def wait_ready(self, path: str = "/readyz", timeout_s: float = 30.0) -> None:
        """Returns when `GET path` gives 200; raises LoadError with the end of the log when it does not."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise LoadError(f"{self.name} ended with {self.process.returncode} while starting:\n{self.log_tail()}")
            if get_status(self.port, path) == 200:
                return
            time.sleep(0.03)
        raise LoadError(f"{self.name} was not ready after {timeout_s:.0f} s (GET {path}):\n{self.log_tail()}")

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Returns when the tree uses less than a tenth of a core: what is left of one run must not be in the next."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            before = self.cpu()
            time.sleep(0.05)
            after = self.cpu()
            if after.total_ns - before.total_ns < (after.at_ns - before.at_ns) / 10:
                return

    def log_tail(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-3000:]
        except OSError:
            return ""

    def stop(self) -> None:
        """Asks the process to end, then ends what is left of its process group. Safe to call twice."""
        if self._stopped:
            return
        self._stopped = True
        left = [pid for pid in tree(self.root) if pid != self.root]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(self.stop_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in left:
            fields = _stat(pid)
            if fields and int(fields[3]) == self.root:  # still ours: the session's id cannot be reused while it lives
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def get_status(port: int, path: str) -> int:
    """Status of a GET on loopback, 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def spawn(
    argv: list[str], core: int, *, out: int, err: int, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `argv` pinned to `core`, in a session of its own with raised weight; it ends when this process dies."""

    def before_exec() -> None:
        os.sched_setaffinity(0, {core})
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        preexec_fn=before_exec,  # safe: we have no threads
    )
    raise_weight(process.pid)
    return process


def serve(name: str, argv: list[str], port: int, core: int, folder: Path, env: dict[str, str] | None = None) -> Server:
    """Starts a server whose output goes to `folder/NAME.log`. Does not wait until it is ready."""
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = spawn(argv, core, out=out.fileno(), err=subprocess.STDOUT, env=env)
    return Server(name, process, port, log)
