#!/usr/bin/env python3
"""How long a semantic hit takes from end to end, at a fixed rate (open loop: a late answer delays no later request).

    python bench/semantic/latency.py [--rate 1000] [--seconds 10] [--engine native|granian]

All requests ask the same in spellings of their own (blanks), so none is an exact hit; every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import KEY, Client, gateway

WANTED_MS = 5.0
CONNECTIONS = 64
WORDS = "How can I cook rice in a small pot without burning it".split()  # noqa: SIM905


def spelling(number: int) -> str:
    """The number in blanks: one or two between each two words, more of them before the last."""
    gaps = [" " * (1 + (number >> i & 1)) for i in range(len(WORDS) - 2)] + [" " * (1 + (number >> (len(WORDS) - 2)))]
    return "".join(word + gap for word, gap in zip(WORDS, [*gaps, ""], strict=True))


class Line:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, text: str) -> str:
        body = json.dumps({"model": "first-1", "messages": [{"role": "user", "content": text}], "temperature": 0}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nx-turnout-cache: read\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.partition(": ")[::2] for line in answer.split("\r\n")[1:] if line)
        await self.reader.readexactly(int(fields["content-length"]))
        if " 200 " not in answer[:16]:
            raise RuntimeError(answer)
        return fields["x-turnout-cache"]


async def run(port: int, rate: int, seconds: float) -> list[float]:
    """Milliseconds of each request, from when it was due."""
    free: asyncio.Queue[Line] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Line(*await asyncio.open_connection("127.0.0.1", port)))
    took: list[float] = []

    async def one(number: int, due: float) -> None:
        line = await free.get()
        said = await line.ask(spelling(number))
        took.append(1e3 * (time.perf_counter() - due))
        free.put_nowait(line)
        if not said.startswith("hit-semantic"):
            raise RuntimeError(f"{said} for {spelling(number)!r}")

    began = time.perf_counter() + 0.05
    tasks = []
    for number in range(1, int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(one(number, due)))
    await asyncio.gather(*tasks)
    return sorted(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--engine", choices=("native", "granian"))
    args = parser.parse_args()
    with gateway(args.engine) as server:
        Client(server.port).ask("first-1", [{"role": "user", "content": spelling(0)}])
        time.sleep(0.3)
        took = asyncio.run(run(server.port, args.rate, args.seconds))
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    good = p99 <= WANTED_MS
    print(f"{'pass' if good else 'MISS'} {len(took)} semantic hits at {args.rate}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, at most {WANTED_MS:g} ms")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
