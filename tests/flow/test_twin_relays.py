"""The native relay and the pure one are twins: the same upstream bytes in the same pieces give the client the same bytes and
the same end, and the log the same line. On real sockets, through a gateway of each engine."""

import base64
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faults.conftest import Wire
from support.gateway import Gateway, config
from turnout import native

if native.Engine is None:
    pytest.skip("the extension is not built: there is one relay only", allow_module_level=True)

TIMEOUTS = {"connect_ms": 1000, "ttft_ms": 2000, "idle_ms": 250}
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ENDS = ("whole", "whole", "fin", "rst", "stall")


class Case(NamedTuple):
    """What an upstream says, in the pieces it says it in, and how it ends."""

    pieces: list[bytes]
    end: str


class Scripted:
    """An upstream that plays the case at hand to everyone who asks."""

    def __init__(self) -> None:
        self.case = Case([], "fin")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._play, args=(sock,), daemon=True).start()

    def _play(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (byte := sock.recv(1)):
                        return
                    head += byte
                left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                while left:
                    left -= len(sock.recv(left))
                for piece in self.case.pieces:
                    sock.sendall(piece)
                    time.sleep(0.002)  # a packet, and a wake-up, of its own
                if self.case.end == "stall":
                    sock.recv(1)
                if self.case.end != "whole":
                    break
            if self.case.end == "rst":
                time.sleep(0.01)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        finally:
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def event(**more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "model": "m", **more}).encode() + b"\n\n"


def choice(finish: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def stream(draw: random.Random) -> list[bytes]:
    """The events of one answer, with all that may stand between them."""
    words = [choice(content=draw.choice([" train", " \u00e9\u00e8", "\U0001f600", "\\n", '"', " "])) for _ in range(draw.randrange(1, 12))]
    out = [choice(role="assistant", content=""), *words, choice(finish="stop")]
    if draw.random() < 0.7:
        out.append(event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}))
    out.append(b"data: [DONE]\n\n")
    odd = [
        b": ping\n\n", b"data: noise\n\n", b"data: {broken\n\n", b'data: {"error":{"message":"overloaded","code":529}}\n\n', b"event: x\r\ndata: {}\r\n\r\n",
        choice(tool_calls=[{"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a":1}'}}]), b"data: {\xff}\n\n", b"\n", b"data: [DONE]\n\n",
    ]  # fmt: skip
    for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
        out.insert(draw.randrange(len(out)), draw.choice(odd))
    return out


def cases(draw: random.Random, recorded: list[list[bytes]]) -> Iterator[Case]:
    while True:
        events = draw.choice(recorded) if recorded and draw.random() < 0.3 else stream(draw)
        end = draw.choice(ENDS)
        framing = draw.choice(["chunked", "chunked", "length", "close"])
        if framing == "chunked":
            raw = SSE + b"transfer-encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events)
            raw += b"0\r\n\r\n" if end == "whole" else b""
        elif framing == "length":
            raw = SSE + b"content-length: %d\r\n\r\n" % (sum(map(len, events)) + (end != "whole")) + b"".join(events)
        else:
            raw = SSE + b"connection: close\r\n\r\n" + b"".join(events)
            end = "fin" if end == "whole" else end
        if draw.random() < 0.3:  # cut anywhere behind the head
            head = raw.index(b"\r\n\r\n") + 4
            raw, end = raw[: draw.randrange(head, len(raw))], "rst" if end == "whole" else end
        most = draw.choice([7, 60, 400, 10_000])
        pieces = []
        while raw:
            size = draw.randrange(1, most + 1) if len(pieces) < 60 else len(raw)
            pieces.append(raw[:size])
            raw = raw[size:]
        yield Case(pieces, end)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


@pytest.fixture(scope="module")
def twins(upstream: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    url = f"http://127.0.0.1:{upstream.port}/v1"
    made: list[Gateway] = []
    for engine in ("granian", "native"):
        # As many providers as cases, so that none of them is avoided for what it did before.
        routes = [
            {"name": f"r{n}", "match": {"model": f"{n}"}, "targets": [{"provider": f"p{n}", "model": "m"}], "timeouts": TIMEOUTS, "stream": {"on_failure": "terminate", "tool_calls": "pass"}}
            for n in range(20)
        ]  # fmt: skip
        made.append(Gateway(config({f"p{n}": url for n in range(20)}, routes), engine=engine, folder=tmp_path_factory.mktemp(engine)).start())
    yield made
    for gateway in made:
        gateway.stop()


def dechunk(data: bytes) -> tuple[bytes, bool]:
    """The body, and whether its last chunk came."""
    out = b""
    while b"\r\n" in data:
        size, _, data = data.partition(b"\r\n")
        if not int(size, 16):
            return out, True
        out, data = out + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return out, False


def outcome(gateway: Gateway, n: int) -> dict[str, Any]:
    wire = Wire(gateway, {"model": f"{n % 20}", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    try:
        head = wire.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0].lower()
        if b"transfer-encoding: chunked" in head:
            while not wire.ended and not wire.data.endswith(b"\r\n0\r\n\r\n"):
                try:
                    piece = wire.socket.recv(65536)
                except ConnectionResetError:
                    break
                wire.data += piece
                if not piece:
                    break
            body, whole = dechunk(wire.data.partition(b"\r\n\r\n")[2])
        else:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(wire.data.partition(b"\r\n\r\n")[2]) < length:
                wire.data += wire.socket.recv(65536)
            body, whole = wire.data.partition(b"\r\n\r\n")[2], True
    finally:
        wire.close()
    line = gateway.logged(head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode())
    kept = ("status", "finish_reason", "error", "error_message", "prompt_tokens", "completion_tokens", "attempts")
    # Comments of ours tell of times and costs.
    lines = [x for x in body.split(b"\n") if not x.startswith(b": turnout ")]
    return {"body": b"\n".join(lines), "whole": whole} | {name: line[name] for name in kept}


@pytest.mark.alone  # a limit that runs out on one of them only is a difference
def test_both_relays_say_the_same_of_the_same(twins: list[Gateway], upstream: Scripted, full: bool) -> None:
    shared = Path(__file__).parents[3] / "shared" / "data" / "sse" / "llm_stream_damage.jsonl"
    recorded: list[list[bytes]] = []
    if shared.is_file():
        rows = [json.loads(line) for line in shared.read_text().splitlines()]
        recorded = [[base64.b64decode(c) for c in row["chunks_b64"]] for row in rows if "chunks_b64" in row]
    else:
        print("the damaged streams are not beside the project: without them")
    draw = random.Random(11)
    made = cases(draw, recorded)
    seen: dict[Any, int] = {}
    for n in range(1500 if full else 80):
        upstream.case = next(made)
        pure, fast = (outcome(gateway, n) for gateway in twins)
        assert fast == pure, (n, upstream.case)
        seen[pure["error"] or "sound"] = seen.get(pure["error"] or "sound", 0) + 1
    print(f"\n{sum(seen.values())} streams, the same twice: {seen}")
    assert len(seen) > 2
