"""The native server with an app that sends without end, in a process of its own: `python bare_server.py PIECE_BYTES`.

Prints its port, goes on until its stdin ends.
"""

import asyncio
import os
import socket
import sys
from typing import Any

import uvloop

from turnout.config.model import Listen
from turnout.ingress.native_server import NativeServer

PIECE = b"z" * int(sys.argv[1])


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PIECE[:-1] + b"y", "more_body": True})
            await asyncio.sleep(0)  # when the client has gone `send` no longer waits


async def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    sock.setblocking(False)
    server = NativeServer(app, os.dup(sock.fileno()), Listen())
    tasks = [asyncio.create_task(server.serve())]  # the loop itself holds it weakly
    await asyncio.sleep(0)
    print(sock.getsockname()[1], flush=True)
    await asyncio.wait([*tasks, asyncio.create_task(asyncio.to_thread(sys.stdin.read))], return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)


uvloop.run(main())
