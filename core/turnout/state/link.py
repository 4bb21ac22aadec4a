"""Messages with a length of four bytes in front, on Unix sockets of one host: what both ends of them need."""

import asyncio
import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator

AGAIN_S = 0.2  # between two tries to reach the other end
_PR_SET_PDEATHSIG = 1


class TooLarge(Exception):
    """A message is over the limit: what follows cannot be read any more."""


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def messages(buffer: bytearray, most: int) -> Iterator[bytes]:
    """Take the whole messages off the front of `buffer`. Raises TooLarge for one of over `most` bytes."""
    while len(buffer) >= 4:
        size = int.from_bytes(buffer[:4], "big")
        if size > most:
            raise TooLarge
        if len(buffer) < 4 + size:
            return
        message = bytes(buffer[4 : 4 + size])
        del buffer[: 4 + size]
        yield message


def is_ours(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end is of the same user: the address is one that everybody on the machine can reach."""
    sock = transport.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.getuid())


def listener_of(fd: int, parent: int) -> socket.socket:
    """For a process that serves on a socket it was given: it ends with its parent, and Ctrl-C, which reaches the whole
    group, is the supervisor's to decide about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    return listener


async def reach(address: bytes | str, protocol: asyncio.Protocol, given_up: Callable[[], bool]) -> None:
    """Connect, as often as it takes."""
    loop = asyncio.get_running_loop()
    while not given_up():
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(address)  # at once or not at all; uvloop knows no addresses without a file
            await loop.create_unix_connection(lambda: protocol, sock=sock)
            return
        except OSError:
            sock.close()
        await asyncio.sleep(AGAIN_S)
