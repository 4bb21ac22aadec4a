"""Calls that nobody waits for any more when a gateway stops: they have their time to end, and are booked however they end."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.server import FaultServer
from support.crowd import body, crowd
from support.gateway import Gateway, config
from turnout.account.ledger import Row, rows


@pytest.fixture
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def gateway(serve: Callable[..., Gateway], a: FaultServer) -> Callable[[float], Gateway]:
    def start(drain_s: float) -> Gateway:
        a.default = "ok"
        cache = {"exact": {"ttl_s": 1, "jitter": 0, "stale_s": 600}}
        data = config({"a": a.url}, [{"name": "stale", "match": {"model": "stale"}, "targets": [{"provider": "a", "model": "gpt-4o-mini"}], "cache": cache}])
        data["listen"]["drain_s"] = drain_s
        return serve(data)

    return start


def refreshed(gateway: Gateway, a: FaultServer, fault: str, stream: bool) -> tuple[str, Any]:
    """Have one stale answer asked for anew by a call that takes its time; the id of that call, and what the upstream saw."""
    asked = body("stale", f"{fault} {stream}", stream)
    crowd(gateway, asked, 1)
    before = a.requests
    a.default = fault

    def stale() -> str:
        (answer,) = crowd(gateway, asked, 1)
        return answer.headers["x-request-id"] if answer.headers["x-turnout-cache"] == "hit-exact;stale" else ""

    id = Gateway.wait_for(stale)
    assert id
    assert Gateway.wait_for(lambda: a.requests > before and a.seen[-1].body)
    return f"{id}-refresh", a.seen[-1]


def booked(gateway: Gateway, id: str) -> Row:
    (row,) = [row for row in rows(gateway.state) if row.request_id == id]
    return row


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_refresh_that_is_cut_at_the_end_is_booked(gateway: Callable[[float], Gateway], a: FaultServer, stream: bool) -> None:
    host = gateway(0.3)
    id, seen = refreshed(host, a, "ok:gap_ms=1500" if stream else "slow-head:ms=20000", stream)
    if stream:
        # Its first token comes after the first gap; the second would come after another.
        assert Gateway.wait_for(lambda: time.monotonic() - seen.started_at > 1.9)
    assert host.stop() == 0
    row = booked(host, id)
    assert (row.cause, row.provider, row.served) == ("first", "a", False)
    if stream:  # what was said until then is paid for
        assert row.completion_tokens > 0 and row.cost_nanos > 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_refresh_may_end_while_the_gateway_drains(gateway: Callable[[float], Gateway], a: FaultServer, stream: bool) -> None:
    host = gateway(30)
    id, seen = refreshed(host, a, "ok:gap_ms=100" if stream else "slow-head:ms=1000", stream)
    assert host.stop(30) == 0
    row = booked(host, id)
    assert (row.cause, row.provider, row.served, row.reason) == ("first", "a", True, "")
    assert row.completion_tokens == len(seen.tokens)
