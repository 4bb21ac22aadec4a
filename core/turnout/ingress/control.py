"""What supervisor and workers say to each other over a socket pair: MessagePack with a length in front.

Supervisor to worker: ("config", {version, data, secrets, simulators}), ("metrics", [number, None]), ("drain", seconds),
("explain", [number, question]), ("purge", [number, purge]), ("news", None): another worker's, see below.
Worker to supervisor: ("ready", pid), ("applied", version), ("metrics", [number, snapshot]), ("failed", message),
("answer", [number, report]), ("note", a line for the operator), ("news", None): the others
are to look what was written down.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
from typing import Any

import msgspec

MOST_BYTES = 64 * 1024 * 1024
_PR_SET_PDEATHSIG = 1

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode


def pack(kind: str, value: Any) -> bytes:
    data = _encode((kind, value))
    return struct.pack("!I", len(data)) + data


def receive_now(sock: socket.socket) -> tuple[str, Any]:
    """One message from a blocking socket. Raises ConnectionError at its end."""
    head = _exactly(sock, 4)
    kind, value = _decode(_exactly(sock, struct.unpack("!I", head)[0]))
    return kind, value


def _exactly(sock: socket.socket, n: int) -> bytes:
    out = b""
    while len(out) < n:
        piece = sock.recv(n - len(out))
        if not piece:
            raise ConnectionError("the control channel was closed")
        out += piece
    return out


async def receive(reader: asyncio.StreamReader) -> tuple[str, Any]:
    """One message. Raises asyncio.IncompleteReadError at the channel's end."""
    size = struct.unpack("!I", await reader.readexactly(4))[0]
    if size > MOST_BYTES:
        raise ConnectionError("an oversized message on the control channel")
    kind, value = _decode(await reader.readexactly(size))
    return kind, value


def die_with_parent(parent: int) -> None:
    """Be killed when the process that started this one is gone, whatever ended it (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def schedule_in_turns() -> None:
    """Do not preempt each other on wake-up (SCHED_BATCH; threads and processes made later inherit it).

    granian's thread and Python's wake each other several times a request. Where they share a core, each wake-up
    preempted the other in the middle of its turn: 1.2 switches a request. In turns it is 0.2, and a request costs a
    fifth less CPU (measured: 92 instead of 116 us at 32 connections on one core).
    """
    with contextlib.suppress(OSError, AttributeError):  # not everywhere allowed; only speed depends on it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def schedule_at_once() -> None:
    """Undo it for this process: one thread that serves has nobody of its own to preempt, and is late if it must wait."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def raise_file_limit() -> int:
    """Open files up to the hard limit; returns what is in force."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# What a child process may need of the environment. Provider keys are not in it: workers get theirs over the channel.
_PASSED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "TURNOUT_PURE",
    "NO_COLOR",
)


def child_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED if name in os.environ}
