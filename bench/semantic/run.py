#!/usr/bin/env python3
"""How often the semantic cache of a running gateway is right and wrong, over HTTP.

    python bench/semantic/run.py --data FOLDER [--limit N] [--only NAME,NAME] [--engine native|granian]

FOLDER has pairs of questions as JSON lines {a, b, label}: qqp_s, paws_qqp, fow (label 1: one answer serves both), conv
(a_messages, b_messages), and banking77 ({q, c}: a question and its intent). The upstream gives every call an answer of its
own, so a hit is known by its words, not by what a header says.

Each pair has a scope of its own (a system message that names it): `a` is asked and kept, then `b`. A stream is one scope:
a hit is right when its answer was given to a question of the same intent. What is printed: recall (right hits of those that
should hit), wrong answers of all requests, look-alikes served, each with Wilson's 95 % interval; and whether it is what is
wanted. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import itertools
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from load_proc import Server, cores, free_port, serve
from load_servers import KEY, turnout_python

MIX = ("qqp_s", "paws_qqp", "fow")
THREADS = 8
SETTLE_S = 0.03  # between a question and the next: a kept answer is known behind its end


class Wanted(NamedTuple):
    """One line of what it must show: of which route, over which sets, at least so much recall or at most so much wrong."""

    name: str
    route: str
    sets: tuple[str, ...]
    recall: float | None = None
    wrong: float | None = None  # of all requests
    traps: float | None = None  # of look-alikes


WANTED = (
    Wanted("mix, 1 %", "mix-1", MIX, recall=0.12, wrong=0.01),
    Wanted("mix, 1 %, first look alone", "first-1", MIX, recall=0.09, wrong=0.01),
    Wanted("mix, 0.5 %", "mix-0.5", MIX, recall=0.07, wrong=0.005),
    Wanted("mix, 2 %", "mix-2", MIX, recall=0.20, wrong=0.02),
    Wanted("hand-made traps, as it comes", "mix-1", ("fow",), traps=0.015),
    Wanted("words swapped, as it comes", "mix-1", ("paws_qqp",), traps=0.01),
    Wanted("conversations, as it comes", "mix-1", ("conv",), traps=0.0),
)
# Both from an empty cache: at first there is little to be given.
STREAMS = {
    3000: Wanted("banking77, the first 3,000, faq, 0.5 %, cold", "faq-0.5", ("banking77",), recall=0.20, wrong=0.005),
    0: Wanted("banking77, all of it, faq, 0.5 %, cold", "faq-0.5", ("banking77",), recall=0.20, wrong=0.005),
}


def routes() -> list[dict[str, Any]]:
    def route(name: str, **semantic: Any) -> dict[str, Any]:
        cache = {"exact": {"ttl_s": 3600}, "semantic": semantic}
        return {"name": name, "match": {"model": name}, "targets": [{"provider": "a", "model": "m"}], "cache": cache}

    return [
        route("mix-1"),
        route("first-1", deep="off"),
        route("mix-0.5", max_false_hit_rate=0.005),
        route("mix-2", max_false_hit_rate=0.02),
        route("faq-0.5", max_false_hit_rate=0.005, profile="faq"),
    ]


class Upstream(http.server.ThreadingHTTPServer):
    """Every answer is another one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        numbers = itertools.count()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                message = {"role": "assistant", "content": f"answer {next(numbers)}"}
                usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                body = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body)

        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def gateway(engine: str | None) -> Iterator[Server]:
    upstream = Upstream()
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        config = {
            "listen": {"host": "127.0.0.1", "port": port},
            "admin": {"host": "127.0.0.1", "port": free_port()},
            "auth": {"keys": [{"name": "bench", "key": "env:TURNOUT_KEY"}]},
            "log": {"requests": "off"},
            "state": {"dir": str(folder / "state")},
            "cache": {"max_mb": 1024, "semantic_mb": 1024},
            "providers": {"a": {"kind": "openai", "base_url": f"http://127.0.0.1:{upstream.server_address[1]}/v1", "api_key": "env:A_KEY"}},
            "routes": routes(),
        }
        file = folder / "turnout.json"
        file.write_text(json.dumps(config))
        argv = [turnout_python(), "-m", "turnout", "serve", "--config", str(file), *(["--engine", engine] if engine else [])]
        server = serve("turnout", argv, port, cores()[0], folder, {"TURNOUT_KEY": KEY, "A_KEY": "sk-bench"})
        os.sched_setaffinity(server.root, range(os.cpu_count() or 1))  # no time is measured here, and it has a second thread
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()
            upstream.shutdown()
            upstream.server_close()


class Client:
    """A connection for each thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._mine = threading.local()

    def ask(self, model: str, messages: list[dict[str, Any]]) -> tuple[str, str]:
        """The answer, and what the cache said. Raises RuntimeError for anything but 200."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        body = json.dumps({"model": model, "messages": messages, "temperature": 0})
        connection.request("POST", "/v1/chat/completions", body, headers)
        found = connection.getresponse()
        data = found.read()
        if found.status != 200:
            raise RuntimeError(f"{found.status}: {data[:200]!r}")
        return json.loads(data)["choices"][0]["message"]["content"], found.headers["x-turnout-cache"]


class Count:
    """Of one route and set."""

    def __init__(self) -> None:
        self.all = self.should = self.right = self.wrong = 0

    def __iadd__(self, other: Count) -> Count:
        self.all += other.all
        self.should += other.should
        self.right += other.right
        self.wrong += other.wrong
        return self


def pairs(client: Client, route: str, name: str, rows: list[dict[str, Any]]) -> Count:
    run = time.time_ns()

    def one(row: dict[str, Any]) -> tuple[bool, bool]:
        scope = {"role": "system", "content": f"{run} {name} {row['id']}"}
        first, second = (row.get(f"{x}_messages") or [{"role": "user", "content": row[x]}] for x in "ab")
        kept, _ = client.ask(route, [scope, *first])
        time.sleep(SETTLE_S)
        given, said = client.ask(route, [scope, *second])
        if (given == kept) != said.startswith("hit"):
            raise RuntimeError(f"the header says {said} of {row['id']}")
        return bool(row["label"]), given == kept

    count = Count()
    with ThreadPoolExecutor(THREADS) as pool:
        for should, hit in pool.map(one, rows):
            count.all += 1
            count.should += should
            count.right += should and hit
            count.wrong += hit and not should
    return count


def stream(client: Client, route: str, rows: list[dict[str, Any]]) -> Count:
    """In the order of the file, one after another. `should`: every request, as no other share of them says what was saved."""
    scope = {"role": "system", "content": f"stream {time.time_ns()}"}
    intent: dict[str, str] = {}
    count = Count()
    for row in rows:
        given, _ = client.ask(route, [scope, {"role": "user", "content": row["q"]}])
        count.all += 1
        count.should += 1
        if given in intent:
            count.right += intent[given] == row["c"]
            count.wrong += intent[given] != row["c"]
        intent.setdefault(given, row["c"])
    return count


def share(k: int, n: int) -> str:
    """With Wilson's interval (Journal of the American Statistical Association 22, 1927)."""
    if not n:
        return "none"
    p, z = k / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{100 * p:.2f} % [{100 * max(0.0, middle - half):.2f}, {100 * (middle + half):.2f}] ({k}/{n})"


def judge(wanted: Wanted, count: Count) -> bool:
    recall, wrong = count.right / max(1, count.should), count.wrong / max(1, count.all)
    looks = count.all - count.should
    traps = count.wrong / max(1, looks)
    good = (
        (wanted.recall is None or recall >= wanted.recall)
        and (wanted.wrong is None or wrong <= wanted.wrong)
        and (wanted.traps is None or traps <= wanted.traps)
    )
    print(f"{'pass' if good else 'MISS'}  {wanted.name}")
    print(f"      right hits   {share(count.right, count.should)}" + (f", wanted {100 * wanted.recall:g} %" if wanted.recall is not None else ""))
    print(f"      wrong of all {share(count.wrong, count.all)}" + (f", at most {100 * wanted.wrong:g} %" if wanted.wrong is not None else ""))
    if looks:
        print(f"      traps served {share(count.wrong, looks)}" + (f", at most {100 * wanted.traps:g} %" if wanted.traps is not None else ""))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of labelled questions")
    parser.add_argument("--limit", type=int, default=0, help="of each set, only so many (every n-th)")
    parser.add_argument("--only", default="", help="routes, by name: " + ", ".join(route["name"] for route in routes()))
    parser.add_argument("--engine", choices=("native", "granian"))
    args = parser.parse_args()
    only = set(filter(None, args.only.split(",")))
    done: dict[tuple[str, str], Count] = {}
    good = True

    def rows(name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (args.data / f"{name}.jsonl").read_text().splitlines()]
        return found[:: max(1, len(found) // args.limit)] if args.limit else found

    with gateway(args.engine) as server:
        client = Client(server.port)
        for wanted in WANTED:
            if only and wanted.route not in only:
                continue
            total = Count()
            for name in wanted.sets:
                if (wanted.route, name) not in done:
                    print(f"      ... {name} at {wanted.route}", file=sys.stderr, flush=True)
                    done[wanted.route, name] = pairs(client, wanted.route, name, rows(name))
                total += done[wanted.route, name]
            good &= judge(wanted, total)
        for first, wanted in STREAMS.items():
            if not only or wanted.route in only:
                found = rows(wanted.sets[0])
                print(f"      ... {wanted.name}", file=sys.stderr, flush=True)
                good &= judge(wanted, stream(client, wanted.route, found[: first or len(found)]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
