"""Who asks the same on another worker of the host reads the stream while it comes; whichever worker asks may die."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from faults.conftest import said
from faults.server import TEXT, TOKENS, FaultServer
from live.test_shared_cache import holder, ready
from support.crowd import Answer, body, crowd
from support.gateway import KEY, Gateway, config
from turnout.account.ledger import rows

WORKERS = 4
GAP_S = 0.25


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], a: FaultServer) -> Gateway:
    faults = {"slowly": f"ok:gap_ms={GAP_S * 1e3:g}", "calls": f"tools:n=2,gap_ms={GAP_S * 1e3:g}", "cut": "stall:after=4"}
    routes: list[dict[str, Any]] = [
        {"name": name, "match": {"model": name}, "targets": [{"provider": name, "model": "gpt-4o-mini"}], "cache": {"exact": {"ttl_s": 600}}} for name in faults
    ]
    routes[-1] |= {"stream": {"max_cutovers": 0}, "timeouts": {"idle_ms": 1000}}
    routes.append({**routes[0], "name": "whole", "match": {"model": "whole"}, "stream": {"on_failure": "terminate"}})
    data = config({name: a.at(fault) for name, fault in faults.items()}, routes)
    data["listen"]["workers"] = WORKERS
    return serve(data)


class Read:
    """One client's stream: when its first token came and when its end."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.first = self.ended = 0.0
        self.data = b""
        self.lost = False
        self.task: asyncio.Task[None] | None = None

    async def run(self, gateway: Gateway) -> None:
        raw = json.dumps(self.asked).encode()
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
        try:
            while piece := await reader.read(65536):
                self.data += piece
                if not self.first and TOKENS[0].encode() in self.data:
                    self.first = time.monotonic()
        except ConnectionError:
            self.lost = True
        finally:
            writer.close()
        self.ended = time.monotonic()
        self.lost = self.lost or not self.data.endswith(b"0\r\n\r\n")

    @property
    def answer(self) -> Answer:
        return Answer(self.data)


async def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    return value


async def many(gateway: Gateway, a: FaultServer, asked: dict[str, Any], count: int = 24) -> list[Read]:
    """Clients of one stream: the first alone until it is asked for upstream, so that all know who asks."""
    before = a.requests
    reads = [Read(asked) for _ in range(count)]
    reads[0].task = asyncio.create_task(reads[0].run(gateway))
    await until(lambda: a.requests > before and a.seen[-1].body)
    for read in reads[1:]:
        read.task = asyncio.create_task(read.run(gateway))
    return reads


async def all_of(reads: list[Read]) -> None:
    await asyncio.gather(*(read.task for read in reads if read.task is not None))


def test_the_first_token_comes_to_all_workers_long_before_the_end(gateway: Gateway, a: FaultServer) -> None:
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    before = a.requests

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", "at once", True))
        await all_of(reads)
        return reads

    reads = uvloop.run(run())
    assert a.requests == before + 1
    assert {said(read.answer.body) for read in reads} == {TEXT}
    assert len({read.answer.body for read in reads}) == 1
    outcomes = [read.answer.headers["x-turnout-cache"] for read in reads]
    assert (outcomes.count("miss"), outcomes.count("hit-exact;shared")) == (1, len(reads) - 1)
    assert len({read.answer.headers["x-request-id"] for read in reads}) == len(reads)
    late = sorted(read.ended - read.first for read in reads)
    print(f"\nfirst token {late[0]:.2f} to {late[-1]:.2f} s before the end")
    assert late[0] > GAP_S * (len(TOKENS) - 2) / 2


def test_who_asks_for_usage_too_gets_his_own_kind_of_stream(gateway: Gateway, a: FaultServer) -> None:
    """It is another worker's then only at its end, or the same worker's; never with what was not asked for."""

    async def run() -> tuple[list[Read], list[Read]]:
        plain = await many(gateway, a, body("slowly", "usage", True), 8)
        reads = [Read(body("slowly", "usage", True, stream_options={"include_usage": True})) for _ in range(8)]
        for read in reads:
            read.task = asyncio.create_task(read.run(gateway))
        await all_of([*plain, *reads])
        return plain, reads

    plain, usage = uvloop.run(run())
    assert {said(read.answer.body) for read in (*plain, *usage)} == {TEXT}
    assert all(b'"usage"' not in read.answer.body for read in plain)
    assert all(b'"completion_tokens":' in read.answer.body.replace(b": ", b":") for read in usage)


@pytest.mark.parametrize("model", ["calls", "whole"])
def test_what_cannot_be_gone_on_with_is_right_too(gateway: Gateway, a: FaultServer, model: str) -> None:
    before = a.requests

    async def run() -> list[Read]:
        reads = await many(gateway, a, body(model, "right", True, tools=[{"type": "function", "function": {"name": "f0"}}]))
        await all_of(reads)
        return reads

    reads = uvloop.run(run())
    assert a.requests == before + 1
    assert not any(read.lost for read in reads)
    bodies = {read.answer.body for read in reads if read.answer.headers["x-turnout-cache"] == "hit-exact;shared"}
    assert all(b"[DONE]" in each for each in bodies)
    if model == "calls":
        assert all(each.count(b'"tool_calls"') > 1 for each in bodies)
    else:
        assert {said(each) for each in bodies} == {TEXT}


def test_a_break_that_cannot_be_mended_is_told_to_all(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("cut", "breaks", True))
        await all_of(reads)
        return reads

    reads = uvloop.run(run())
    assert a.requests == before + 1
    for read in reads:
        assert b"upstream_stream_interrupted" in read.data and b"[DONE]" not in read.data


def test_the_call_goes_on_for_other_workers_when_its_own_clients_leave(gateway: Gateway, a: FaultServer) -> None:
    before, cancelled = a.requests, a.cancelled

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", "leaves", True))
        await until(lambda: all(read.first for read in reads))
        first = reads[0]
        assert first.task is not None
        first.task.cancel()
        await asyncio.wait([first.task])
        await all_of(reads[1:])
        return reads[1:]

    reads = uvloop.run(run())
    assert {said(read.answer.body) for read in reads} == {TEXT}
    assert (a.requests, a.cancelled) == (before + 1, cancelled)


def test_the_call_ends_when_nobody_on_any_worker_wants_it(gateway: Gateway, a: FaultServer) -> None:
    cancelled = a.cancelled

    async def run() -> None:
        reads = await many(gateway, a, body("slowly", "all leave", True))
        await until(lambda: all(read.first for read in reads))
        tasks = [read.task for read in reads if read.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: a.cancelled == cancelled + 1)

    uvloop.run(run())


def test_what_a_dead_worker_was_asking_for_is_booked_by_who_goes_on(gateway: Gateway, a: FaultServer) -> None:
    assert Gateway.wait_for(lambda: ready(gateway), 20)

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", "who pays", True))
        asked_by = a.seen[-1]
        await until(lambda: all(TOKENS[3].encode() in read.data for read in reads))
        os.kill(await asyncio.to_thread(holder, gateway, asked_by.peer_port), signal.SIGKILL)
        await all_of(reads)
        return [read for read in reads if not read.lost]

    ids = {read.answer.headers["x-request-id"] for read in uvloop.run(run())}
    found = Gateway.wait_for(lambda: (r := [row for row in rows(gateway.state) if row.request_id in ids]) and len(r) == len(ids) + 1 and r)
    paid = sorted((row for row in found if row.cause != "cache"), key=lambda row: row.attempt)
    assert [(row.cause, row.served, row.reason) for row in paid] == [("first", False, "interrupted"), ("cut-over", True, "")]
    assert len({row.request_id for row in paid}) == 1
    assert all(row.cost_nanos > 0 and row.completion_tokens > 0 for row in paid)
    assert gateway.metric("turnout_breaker_opens_total") == 0, "no provider is to blame"


def test_an_asking_worker_that_stands_still_is_gone_on_for(gateway: Gateway, a: FaultServer) -> None:
    """Its lease runs out; when it comes to again it ends its own clients' streams."""
    assert Gateway.wait_for(lambda: ready(gateway), 20)

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", "stands still", True))
        asked_by = a.seen[-1]
        await until(lambda: all(TOKENS[3].encode() in read.data for read in reads))
        stopped = await asyncio.to_thread(holder, gateway, asked_by.peer_port)
        os.kill(stopped, signal.SIGSTOP)
        try:
            await until(lambda: sum(read.ended > 0 for read in reads) > 1)
            await asyncio.sleep(2)
        finally:
            os.kill(stopped, signal.SIGCONT)
        await all_of(reads)
        return reads

    for read in uvloop.run(run()):
        assert not read.lost and said(read.answer.body) == TEXT


def test_a_board_that_dies_in_the_middle_costs_nobody_the_rest(gateway: Gateway, a: FaultServer) -> None:
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    before = a.requests
    assert gateway.process is not None
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    (board,) = [int(pid) for pid in children if b"board_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", "without a board", True))
        await until(lambda: all(TOKENS[3].encode() in read.data for read in reads))
        os.kill(board, signal.SIGKILL)
        await all_of(reads)
        return reads

    for read in uvloop.run(run()):
        assert not read.lost and said(read.answer.body) == TEXT
    assert before + 1 < a.requests <= before + WORKERS

    def shares_again() -> bool:
        once = a.requests
        asked = body("slowly", f"again {time.monotonic()}", False)
        return [crowd(gateway, asked, 1) for _ in range(8)] != [] and a.requests == once + 1

    assert Gateway.wait_for(shares_again, 20)


def test_a_tool_call_that_was_shown_is_not_made_twice(gateway: Gateway, a: FaultServer) -> None:
    """Calls are shown whole: the turn is asked for again, and what it makes again is left out."""
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    before = a.requests

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("calls", "killed in calls", True, tools=[{"type": "function", "function": {"name": "f0"}}]))
        asked_by = a.seen[-1]
        await until(lambda: all(b"tool_calls" in read.data for read in reads))
        os.kill(await asyncio.to_thread(holder, gateway, asked_by.peer_port), signal.SIGKILL)
        await all_of(reads)
        return reads

    reads = uvloop.run(run())
    whole = [read for read in reads if not read.lost]
    assert 0 < len(whole) < len(reads)
    assert a.requests == before + 2
    for read in whole:
        calls = [call for event in read.answer.body.split(b"\n\n") if event.startswith(b"data: {") for choice in json.loads(event[6:])["choices"] for call in choice["delta"].get("tool_calls") or ()]
        assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "get_weather"), (1, "get_time")]
        assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
        assert read.data.count(b"[DONE]") == 1 and b"error" not in read.data


@pytest.mark.parametrize("after", range(len(TOKENS) + 2))
def test_the_asking_worker_may_be_killed_at_any_event(gateway: Gateway, a: FaultServer, after: int) -> None:
    """Its own clients lose their connections. The others have their first tokens already and get the rest of the answer."""
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    before = a.requests

    async def run() -> list[Read]:
        reads = await many(gateway, a, body("slowly", f"killed {after}", True))
        asked_by = a.seen[-1]
        if after:
            wanted = TOKENS[min(after, len(TOKENS)) - 1].encode() if after <= len(TOKENS) else b'"finish_reason": "stop"'
            await until(lambda: sum(wanted in read.data for read in reads) == len(reads))
        os.kill(await asyncio.to_thread(holder, gateway, asked_by.peer_port), signal.SIGKILL)
        await all_of(reads)
        return reads

    reads = uvloop.run(run())
    whole = [read for read in reads if not read.lost]
    assert 0 < len(whole) < len(reads)
    assert reads[0].lost
    for read in whole:
        assert said(read.answer.body) == TEXT
        assert read.data.count(b"[DONE]") == 1 and read.data.count(b'"role"') == 1
    assert len({read.answer.body for read in whole}) == 1
    assert a.requests <= before + 2
