"""Recorded streams of real providers, cut at every byte: what is joined is what the provider said, or there is an error.

Without sockets the whole of them (thousands of cuts); through a gateway on real sockets a sample of the cuts.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from faults import server as faults
from faults.conftest import MODEL, Wire, dechunk
from faults.server import FaultServer
from support.gateway import Gateway, config
from support.replay import Recording, load
from turnout.asking import Asking
from turnout.catalog import Catalog
from turnout.clock import SystemClock
from turnout.errors import Fault
from turnout.exchange import Ability, Attempt, Exchange, Principal, Route, Surface, Target
from turnout.route.health import Breaker
from turnout.route.policies import Ordered
from turnout.route.retry import RetryBudget
from turnout.route.spec import StreamSpec
from turnout.route.stage import Routes
from turnout.streaming import Passage
from turnout.wire.request import RequestReader

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


class Said:
    """What a client makes of a stream, as an SDK would."""

    def __init__(self, out: bytes) -> None:
        self.text, self.finish, self.error, self.done = "", "", False, False
        self.calls: dict[int, list[str]] = {}
        self.ids: set[str] = set()
        self.choices: set[int] = set()
        for line in out.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.done = True
                continue
            chunk = json.loads(data)
            self.error |= bool(chunk.get("error"))
            for choice in chunk.get("choices") or []:
                delta = choice.get("delta") or {}
                self.choices.add(choice.get("index") or 0)
                self.text += delta.get("content") or ""
                self.finish = choice.get("finish_reason") or self.finish
                for call in delta.get("tool_calls") or []:
                    have = self.calls.setdefault(call.get("index", 0), ["", ""])
                    have[0] += call["function"].get("name") or ""
                    have[1] += call["function"].get("arguments") or ""

    @property
    def whole(self) -> tuple[str, str, list[list[str]]]:
        return self.text, self.finish, [c for _, c in sorted(self.calls.items())]


# ---- without sockets: the real flow of a stream over scripted calls


class Call:
    """An upstream call that has its bytes already, and then breaks or ends."""

    def __init__(self, data: bytes, breaks: bool) -> None:
        self.status, self.headers, self.media_type = 200, [], b"text/event-stream"
        self.progress = self.stale = False
        self.first_byte_ns = 1
        self._data = data
        self._fault = Fault("reset", "the upstream closed the connection") if breaks else None

    @property
    def drained(self) -> bool:
        return self._fault is None and not self._data

    async def wait_head(self) -> None: ...

    async def wait(self) -> None:
        if not self._data and self._fault is not None:
            raise self._fault

    def take_nowait(self) -> bytes:
        data, self._data = self._data, b""
        return data

    async def wait_pushing(self, push: Callable[[], bool]) -> None:
        if self._data and not push():
            return
        await self.wait()

    def idle(self, idle_ns: int, now_ns: int) -> None: ...
    def linger(self, now_ns: int) -> None: ...
    def close(self) -> None: ...


class Port:
    include_usage = False

    def __init__(self, answer: Callable[[bytes], Call]) -> None:
        self._answer = answer

    def scrub(self, body: bytes) -> bytes:
        return body

    def open_nowait(self, request: Any) -> Call:
        return self._answer(b"".join(bytes(p) for p in request.pieces))


class Client:
    def __init__(self) -> None:
        self.out = b""

    async def send(self, data: bytes, more: bool) -> None:
        self.out += data

    def push(self, data: bytes) -> bool:
        self.out += data
        return True


def target(name: str, answer: Callable[[bytes], Call]) -> Target:
    return Target(
        provider=name, account="", model=MODEL, weight=1, account_weight=1, ttft_ms=1000, plain_ms=1000,
        health=Breaker(random.Random(1)), port=Port(answer), ability=Ability("none"), model_json=b'"m"',
    )  # fmt: skip


def passage(first: Callable[[bytes], Call], then: Callable[[bytes], Call]) -> Callable[[], Awaitable[tuple[Fault | None, bytes]]]:
    clock = SystemClock()
    route = Route(
        name="r", match="m", groups=((target("a", first),), (target("b", then),)), policy=Ordered(), retries_max=0, budget=RetryBudget(0.1),
        stream=StreamSpec(), connect_ms=1, idle_ms=1000, total_ms=10_000, max_body_bytes=10_000, header=(b"x", b"y"),
    )  # fmt: skip
    rng = random.Random(1)
    reader = RequestReader()
    asking = Asking(routes=Routes([route], {}, rng), reader=reader, catalog=Catalog.builtin(), clock=clock, rng=rng)

    async def run() -> tuple[Fault | None, bytes]:
        x = Exchange(id="x", surface=CHAT, started_ns=clock.now_ns(), wall_ns=0, config_version=1, principal=Principal("p", "t", "f"))
        x.body, x.stream, x.model, x.route = BODY, True, "m", route
        x.spans, x.deadline_ns = reader.scan(BODY), clock.now_ns() + 10_000_000_000
        client = Client()
        relay, served = await asking.attempts(x, asking.ask_stream)
        fault = await Passage(asking, x, client, relay, served).carry()
        assert all(isinstance(a, Attempt) and a.usage is not None for a in x.attempts if a.first_content_ns)
        return fault, client.out

    return run


def chosen(shared: Path, full: bool) -> list[Recording]:
    """Text streams and tool-call streams of several providers, each finished and of one choice."""
    out: list[Recording] = []
    seen: Counter[str] = Counter()
    for r in load(shared, full):
        if r.api != "chat" or not r.stream or r.status != 200 or not 500 < len(r.body) < 12_000:
            continue
        try:
            said = Said(r.body)
        except (ValueError, KeyError, TypeError):
            continue
        kind = f"{r.provider} {'calls' if said.calls else 'text'}"
        if said.error or not said.finish or not (said.text or said.calls) or seen[kind] >= (3 if full else 1):
            continue
        seen[kind] += 1
        out.append(r)
    return out


@pytest.mark.parametrize("how", ["reset", "end"])
def test_cut_at_every_byte_the_answer_is_whole_or_an_error(shared: Path, full: bool, how: str) -> None:
    """The same model elsewhere gives the same answer from the beginning: it is swallowed up to the seam."""
    outcomes: Counter[str] = Counter()

    async def all_cuts() -> None:
        for recording in chosen(shared, full):
            data = recording.body
            wanted = Said(data)
            step = 1 if full else max(1, len(data) // 150)
            for cut in range(1, len(data), step):
                run = passage(lambda _, d=data[:cut]: Call(d, how == "reset"), lambda _, d=data: Call(d, False))  # type: ignore[misc]
                fault, out = await run()
                said = Said(out)
                if fault is None:
                    assert said.whole == wanted.whole, (recording.id, cut)
                    outcomes["cut-over" if b"cut-over" in out else "whole"] += 1
                else:
                    assert not said.done and (not said.finish or len(wanted.choices) > 1), (recording.id, cut)
                    outcomes[f"error {recording.provider} {fault.kind}"] += 1

    asyncio.run(all_cuts())
    total = sum(outcomes.values())
    print(f"\n{how}: {total} cuts of {len(chosen(shared, full))} recorded streams: {dict(outcomes)}")
    assert total >= 1_000
    assert outcomes["cut-over"] > 0.5 * total


# ---- through a gateway


def test_cut_on_real_sockets(shared: Path, serve: Callable[..., Gateway], full: bool) -> None:
    recordings = [r for r in chosen(shared, False) if Said(r.body).text][:6]

    def make(name: str, cut: bool) -> Any:
        async def act(c: Any, seen: Any, n: int = 0, at: int = 0) -> None:
            data = recordings[int(n)].body
            piece = data[: int(at)] if cut else data
            await c.send(faults.STREAM_HEAD + (faults.chunked(piece) if piece else b""))
            if not cut:
                await c.send(faults.END)
                return
            await asyncio.sleep(0.005)
            c.reset()

        return act

    faults.FAULTS["recorded-cut"] = faults.K(make("cut", True))
    faults.FAULTS["recorded"] = faults.K(make("whole", False))
    outcomes: Counter[str] = Counter()
    try:
        with FaultServer() as a, FaultServer() as b:
            routes = [{"name": "r", "match": {"model": "r"}, "targets": [{"provider": n, "model": MODEL} for n in "ab"]}]
            routes.append({"name": "heal", "match": {"model": "heal"}, "targets": [{"provider": "a", "model": MODEL}]})
            gateway = serve(config({"a": a.url, "b": b.url}, routes))
            for n, recording in enumerate(recordings):
                wanted = Said(recording.body)
                for at in range(1, len(recording.body), 23 if full else max(1, len(recording.body) // 25)):
                    a.script.append(f"recorded-cut:n={n},at={at}")
                    b.default = f"recorded:n={n}"
                    w = Wire(gateway, {"model": "r", "messages": [{"role": "user", "content": "hi"}], "stream": True})
                    while not w.data.endswith(b"0\r\n\r\n") and (piece := w.socket.recv(65536)):
                        w.data += piece
                    w.close()
                    out = dechunk(w.data.partition(b"\r\n\r\n")[2])
                    said = Said(out)
                    if w.data.endswith(b"0\r\n\r\n"):
                        assert said.whole == wanted.whole, (recording.id, at)
                        outcomes["cut-over" if b"cut-over" in out else "whole"] += 1
                    else:
                        assert said.error and (not said.finish or len(wanted.choices) > 1)
                        outcomes["error"] += 1
                    with gateway.client() as client:  # or the breaker opens, and nothing is cut any more
                        assert client.post("/v1/chat/completions", json={"model": "heal", "messages": [], "stream": True}).status_code == 200
            assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    finally:
        del faults.FAULTS["recorded-cut"], faults.FAULTS["recorded"]
    print(f"\non sockets: {dict(outcomes)}")
    assert outcomes["cut-over"] > 20


