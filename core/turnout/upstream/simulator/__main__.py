"""`python -m turnout.upstream.simulator`: the simulated providers' process.

It reads one JSON line on stdin, `{"providers": {NAME: SimulatedSpec}}`, binds one loopback
port per provider, writes `{NAME: PORT}` as one JSON line to stdout and serves until stdin
ends or SIGTERM comes. The parent holds the other end of stdin and does nothing with it:
whatever happens to the parent, the kernel closes that end, and this process goes too.
Exit code 2: the first line was not what it should be (the reason is on stderr).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading

import msgspec
import uvloop

from ..providers.simulated import SimulatedSpec
from .provider import Provider
from .server import Listener


class Order(msgspec.Struct, forbid_unknown_fields=True):
    providers: dict[str, SimulatedSpec]


def read_line(fd: int) -> bytes:
    """The first line, with os.read: a buffered reader's lock, held by the watching thread at
    exit, would stop the interpreter from ending."""
    data = b""
    while b"\n" not in data and (part := os.read(fd, 65536)):
        data += part
    return data.partition(b"\n")[0]


def watch_for_end(fd: int, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Runs in a thread, so that stdin may be anything: a pipe, a terminal or a file, which
    epoll would refuse."""
    while os.read(fd, 65536):
        pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: SIGTERM was first
        loop.call_soon_threadsafe(stop.set)


async def run(order: Order) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Ctrl-C reaches every process of the terminal; when to stop is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch_for_end, args=(0, loop, stop), daemon=True).start()

    listeners = {name: Listener(Provider(name, spec)) for name, spec in order.providers.items()}
    ports = {name: await listener.wait_bound() for name, listener in listeners.items()}
    os.write(1, msgspec.json.encode(ports) + b"\n")
    await stop.wait()
    for listener in listeners.values():
        listener.close()


def main() -> int:
    try:
        order = msgspec.json.decode(read_line(0), type=Order)
    except msgspec.DecodeError as error:
        print(f"turnout simulator: stdin: {error}", file=sys.stderr)
        return 2
    uvloop.run(run(order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
