"""The real way of a stream, from its attempts to its end, over scripted upstream calls: no sockets, no clock to wait for."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

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

MODEL = "gpt-4o-mini"
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


class Call:
    """An upstream call that gives its bytes in these pieces, and then breaks or ends."""

    def __init__(self, pieces: Sequence[bytes], breaks: bool) -> None:
        self.status, self.headers, self.media_type = 200, [], b"text/event-stream"
        self.progress = self.stale = False
        self.first_byte_ns = 1
        self._pieces = list(pieces)
        self._fault = Fault("reset", "the upstream closed the connection") if breaks else None

    @property
    def drained(self) -> bool:
        return self._fault is None and not self._pieces

    async def wait_head(self) -> None: ...

    async def wait(self) -> None:
        if not self._pieces and self._fault is not None:
            raise self._fault

    def take_nowait(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def wait_pushing(self, push: Callable[[], bool]) -> None:
        while self._pieces:
            if not push():
                return
        if self._fault is not None:
            raise self._fault

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


def target(name: str, answer: Callable[[bytes], Call], prefill: str = "none") -> Target:
    return Target(
        provider=name, account="", model=MODEL, weight=1, account_weight=1, ttft_ms=1000, plain_ms=1000,
        health=Breaker(random.Random(1)), port=Port(answer), ability=Ability(prefill), model_json=b'"m"',
    )  # fmt: skip


def passage(first: Callable[[bytes], Call], then: Callable[[bytes], Call], prefill: str = "none") -> Callable[[], Awaitable[tuple[Fault | None, bytes, Exchange]]]:
    clock = SystemClock()
    route = Route(
        name="r", match="m", groups=((target("a", first),), (target("b", then, prefill),)), policy=Ordered(), retries_max=0, budget=RetryBudget(0.1),
        stream=StreamSpec(), connect_ms=1, idle_ms=1000, total_ms=10_000, max_body_bytes=10_000, header=(b"x", b"y"),
    )  # fmt: skip
    rng = random.Random(1)
    reader = RequestReader()
    asking = Asking(routes=Routes([route], {}, rng), reader=reader, catalog=Catalog.builtin(), clock=clock, rng=rng)

    async def run() -> tuple[Fault | None, bytes, Exchange]:
        x = Exchange(id="x", surface=CHAT, started_ns=clock.now_ns(), wall_ns=0, config_version=1, principal=Principal("p", "t", "f"))
        x.body, x.stream, x.model, x.route = BODY, True, "m", route
        x.spans, x.deadline_ns = reader.scan(BODY), clock.now_ns() + 10_000_000_000
        client = Client()
        relay, served = await asking.attempts(x, asking.ask_stream)
        fault = await Passage(asking, x, client, relay, served).carry()
        assert all(isinstance(a, Attempt) and a.usage is not None for a in x.attempts if a.first_content_ns)
        return fault, client.out, x

    return run
