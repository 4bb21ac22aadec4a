"""Those who ask the same at the same time share one upstream call, and nobody's leaving or failing is another's."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from faults.conftest import Wire, dechunk, said
from faults.server import TEXT, TOKENS, FaultServer
from support.crowd import Answer, body, crowd, one
from support.gateway import KEY, Gateway, config
from turnout.account.ledger import rows

CROWD = 1_000
Open = Callable[[dict[str, Any]], Wire]


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], a: FaultServer) -> Gateway:
    faults = {
        "late": "slow-head:ms=1500",
        "slowly": "ok:gap_ms=40",
        "begun": "late-token:ms=1500",
        "lost": "slow-head:ms=600",
        "down": "500",
        "cut": "cut-reset:after=4",
        "calls": "tools:n=2,gap_ms=20",
    }
    more: dict[str, Any] = {
        "cut": {"stream": {"on_failure": "terminate"}},
        "down": {"retries": {"max": 0}},
    }
    routes = [
        {
            "name": name, "match": {"model": name}, "targets": [{"provider": name, "model": "gpt-4o-mini"}],
            "cache": {"single_flight": True}, **more.get(name, {}),
        }
        for name in faults
    ]  # fmt: skip
    routes.append({"name": "kept", "match": {"model": "kept"}, "targets": [{"provider": "slowly", "model": "gpt-4o-mini"}], "cache": {"exact": {"ttl_s": 600}}})
    return serve(config({name: a.at(fault) for name, fault in faults.items()}, routes))


@pytest.fixture
def wire(gateway: Gateway) -> Iterator[Open]:
    """Opens raw connections that are closed with the test."""
    opened: list[Wire] = []

    def open_one(asked: dict[str, Any]) -> Wire:
        opened.append(Wire(gateway, asked))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_thousand_who_ask_the_same_are_one_upstream_call(gateway: Gateway, a: FaultServer, stream: bool) -> None:
    before = a.requests
    answers = crowd(gateway, body("begun" if stream else "late", "crowd", stream), CROWD)
    assert a.requests == before + 1
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert (said(answers[0].body) if stream else json.loads(answers[0].body)["choices"][0]["message"]["content"]) == TEXT
    outcomes = [answer.headers["x-turnout-cache"] for answer in answers]
    assert (outcomes.count("miss"), outcomes.count("hit-exact;shared")) == (1, CROWD - 1)
    assert len({answer.headers["x-request-id"] for answer in answers}) == CROWD
    assert gateway.metric("turnout_cache_followers_total", route="begun" if stream else "late") == CROWD - 1


def test_the_one_who_asked_pays_and_the_others_saved(gateway: Gateway, a: FaultServer) -> None:
    answers = crowd(gateway, body("late", "who pays", False), 3)
    ids = {answer.headers["x-request-id"]: answer.headers["x-turnout-cache"] for answer in answers}
    found = gateway.wait_for(lambda: (r := [row for row in rows(gateway.state) if row.request_id in ids]) and len(r) == 3 and r)
    paid, *saved = sorted(found, key=lambda row: -row.cost_nanos)
    assert (ids[paid.request_id], paid.cause, paid.served) == ("miss", "first", True)
    assert all((row.cause, row.cost_nanos, row.saved_nanos, row.cache) == ("cache", 0, paid.cost_nanos, "hit-exact;shared") for row in saved)


def test_who_joins_late_reads_from_the_start(gateway: Gateway, a: FaultServer, wire: Open) -> None:
    before = a.requests
    first = wire(body("slowly", "late joiner", True))
    first.read_until(TOKENS[3].encode())
    second = wire(body("slowly", "late joiner", True))
    for each in (first, second):
        each.read_until(b"0\r\n\r\n")
    assert a.requests == before + 1
    assert dechunk(first.data.partition(b"\r\n\r\n")[2]) == dechunk(second.data.partition(b"\r\n\r\n")[2])
    assert second.header("x-turnout-cache") == "hit-exact;shared"


@pytest.mark.parametrize("after", range(len(TOKENS) + 1))
def test_the_one_who_asked_may_leave_at_any_event(gateway: Gateway, a: FaultServer, wire: Open, after: int) -> None:
    """0: before the head. The call goes on for the other, who gets all of it; it is booked to the one who left."""
    before, cancelled = a.requests, a.cancelled
    asked = body("slowly", f"leaves after {after}", True)
    first = wire(asked)
    Gateway.wait_for(lambda: a.requests == before + 1)
    second = wire(asked)
    if after:
        first.read_until(json.dumps(TOKENS[after - 1])[1:-1].encode())
        second.read_until(b"data: ")
    else:
        second.read_until(b"HTTP/1.1 200")  # it is in the flight by then, as it says below
    first.reset()
    second.read_until(b"0\r\n\r\n")
    assert second.header("x-turnout-cache") == "hit-exact;shared"
    assert said(dechunk(second.data.partition(b"\r\n\r\n")[2])) == TEXT
    assert second.data.count(b"[DONE]") == 1
    assert (a.requests, a.cancelled) == (before + 1, cancelled)


def test_the_one_who_asked_for_a_plain_answer_may_leave(gateway: Gateway, a: FaultServer, wire: Open) -> None:
    """The call goes on for the other; it is booked to the one who left."""
    before, cancelled = a.requests, a.cancelled
    asked = body("late", "leaves before a plain answer", False)
    first = wire(asked)
    Gateway.wait_for(lambda: a.requests == before + 1)
    second = wire(asked)
    assert Gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 2)
    first.reset()
    second.read_until(b'"total_tokens"')
    assert second.header("x-turnout-cache") == "hit-exact;shared"
    assert (a.requests, a.cancelled) == (before + 1, cancelled)
    assert Gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    found = Gateway.wait_for(lambda: (r := [row for row in rows(gateway.state) if row.request_id == second.header("x-request-id")]) and r)
    paid = [row for row in rows(gateway.state) if row.cost_nanos == found[0].saved_nanos and row.cause == "first"]
    left = gateway.logged(paid[-1].request_id)
    assert (left["status"], left["error"], left["attempts"]) == (499, "client_gone", 1)


@pytest.mark.parametrize("model", ["lost", "slowly"])
def test_the_call_ends_with_the_last_who_wants_it(gateway: Gateway, a: FaultServer, wire: Open, model: str) -> None:
    before, cancelled = a.requests, a.cancelled
    asked = body(model, "all leave", model == "slowly")
    wires = [wire(asked)]
    Gateway.wait_for(lambda: a.requests == before + 1)
    wires.append(wire(asked))
    if model == "slowly":
        for each in wires:
            each.read_until(TOKENS[1].strip().encode())
    for each in wires:
        each.reset()
    assert Gateway.wait_for(lambda: a.cancelled == cancelled + 1)
    assert a.requests == before + 1
    # and who asks next is served anew
    next_one = wire(asked)
    next_one.read_until(b"[DONE]" if model == "slowly" else b"rolls")
    next_one.close()
    assert a.requests == before + 2


def test_a_call_that_its_own_client_left_is_booked_once(gateway: Gateway, wire: Open) -> None:
    asked = body("slowly", "booked once", True)
    first = wire(asked)
    first.read_until(TOKENS[0].encode())
    second = wire(asked)
    second.read_until(TOKENS[0].encode())
    first.reset()
    second.read_until(b"0\r\n\r\n")
    assert second.header("x-turnout-cache") == "hit-exact;shared"
    left = gateway.logged(first.header("x-request-id"))
    assert (left["status"], left["error"], left["attempts"]) == (499, "client_gone", 1)
    assert left["completion_tokens"] == len(TOKENS)
    (row,) = [row for row in rows(gateway.state) if row.request_id == left["request_id"]]
    assert row.completion_tokens == len(TOKENS) and row.cost_nanos > 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_what_fails_fails_for_all_and_is_asked_once(gateway: Gateway, a: FaultServer, stream: bool) -> None:
    before = a.by_fault["500"]
    answers = crowd(gateway, body("down", "fails", stream), 20)
    assert {answer.status for answer in answers} == {502}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 20
    assert a.by_fault["500"] - before <= 20  # some may come when it is over already, and ask for themselves


def test_a_break_in_the_middle_is_told_to_all(wire: Open) -> None:
    asked = body("cut", "breaks", True)
    first, second = wire(asked), wire(asked)
    for each in (first, second):
        each.read_to_end()
        assert b"upstream_stream_interrupted" in each.data and b"[DONE]" not in each.data


def test_tool_calls_reach_all(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests
    answers = crowd(gateway, body("calls", "tools", True, tools=[{"type": "function", "function": {"name": "f0"}}]), 10)
    assert a.requests == before + 1
    assert len({answer.body for answer in answers}) == 1 and answers[0].body.count(b'"tool_calls"') > 1


def test_a_deadline_of_ones_own_is_not_shared(gateway: Gateway, a: FaultServer) -> None:
    """Nobody is cut off by another's patience."""
    before = a.requests
    asked = body("late", "impatient", False)

    async def run() -> tuple[Answer, Answer]:
        raw = json.dumps(asked).encode()
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nx-turnout-timeout-ms: 200\r\nconnection: close\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
        patient = asyncio.create_task(one(gateway, asked))
        data = await reader.read(-1)
        writer.close()
        return Answer(data), await patient

    impatient, patient = uvloop.run(run())
    assert (impatient.status, patient.status) == (504, 200)
    assert a.requests == before + 2


def test_what_was_shared_is_kept_where_the_route_keeps(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests
    asked = body("kept", "shared and kept", True)
    assert len({answer.body for answer in crowd(gateway, asked, 5)}) == 1
    Gateway.wait_for(lambda: crowd(gateway, asked, 1)[0].headers["x-turnout-cache"] == "hit-exact")
    assert a.requests == before + 1
