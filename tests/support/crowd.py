"""Many who ask the same at the same time, each on a connection of its own."""

import asyncio
import json
from typing import Any

import uvloop

from faults.conftest import dechunk
from support.gateway import KEY, Gateway


def body(model: str, text: str, stream: bool, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **({"stream": True} if stream else {}), **more}


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\r\n\r\n")
        self.status = int(head[9:12])
        self.headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        self.body = dechunk(rest) if "chunked" in self.headers.get("transfer-encoding", "") else rest


async def one(gateway: Gateway, asked: dict[str, Any]) -> Answer:
    raw = json.dumps(asked).encode()
    reader, writer = await asyncio.open_connection(gateway.host, gateway.port, limit=1 << 22)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    data = await reader.read(-1)
    writer.close()
    return Answer(data)


def crowd(gateway: Gateway, asked: dict[str, Any], count: int) -> list[Answer]:
    async def run() -> list[Answer]:
        return await asyncio.gather(*(one(gateway, asked) for _ in range(count)))

    return uvloop.run(run())
