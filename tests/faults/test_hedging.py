"""A stream that waits too long for its first token is put to the next target as well; the first token wins."""

import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from faults.conftest import MODEL, Wire, ask, body, text_of
from faults.server import TEXT, FaultServer, Seen
from support.gateway import KEY, Gateway, config
from turnout.account.ledger import Row, rows

HEDGE = {"budget": 0.5, "unknown_ms": 150, "least_ms": 150}
EARN = 4  # requests that earn two hedges
ROUTES: dict[str, dict[str, Any]] = {
    "won": {"hedge": HEDGE},
    "lost": {"hedge": HEDGE},
    "fails": {"hedge": HEDGE},
    "none": {},
    "gone": {"hedge": HEDGE},
    "whole": {"hedge": HEDGE, "plain": "assemble"},
    "window": {"hedge": HEDGE, "stream": {"on_failure": "restart", "restart_window": {"tokens": 4, "ms": 2000}}},
    "learns": {"hedge": HEDGE, "routing_policy": {"kind": "least-latency", "explore": 0.0}},
    "slow3": {"hedge": {"least_ms": 20}},
    "slow3-alone": {},
}


class Pair:
    """Two providers; `ways` says how each answers on which route, as `a/won`."""

    def __init__(self) -> None:
        self.ways: dict[str, str | Callable[[], str]] = {}
        self.a, self.b = (FaultServer(default=lambda head, n=name: self._way(n, head)) for name in "ab")

    def _way(self, name: str, head: bytes) -> str:
        way = self.ways.get(f"{name}/{head.split(b'/', 2)[1].decode()}", "ok")
        return way if isinstance(way, str) else way()

    def seen(self, name: str, route: str) -> list[Seen]:
        server = self.a if name == "a" else self.b
        return [s for s in server.seen if s.head.startswith(b"POST /%s/" % route.encode())]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    with made.a, made.b:
        yield made


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], pair: Pair) -> Gateway:
    pair.ways.clear()
    for server in (pair.a, pair.b):
        server.seen.clear()
    providers: dict[str, Any] = {}
    routes = []
    for name, more in ROUTES.items():
        providers |= {f"a-{name}": f"http://127.0.0.1:{pair.a.port}/{name}/v1", f"b-{name}": f"http://127.0.0.1:{pair.b.port}/{name}/v1"}
        routes.append({"name": name, "match": {"model": name}, "targets": [{"provider": f"{n}-{name}", "model": MODEL} for n in "ab"], **more})
    return serve(config(providers, routes))


def earn(gateway: Gateway, model: str, n: int = EARN, stream: bool = True) -> None:
    with gateway.client() as client:
        for _ in range(n):
            answer = ask(client, model, stream)
            assert (answer.status_code, answer.headers["x-turnout-attempts"]) == (200, "1")


def written(gateway: Gateway, request_id: str) -> list[Row]:
    """The request's ledger rows; they are written after its log line."""
    gateway.logged(request_id)
    return list(Gateway.wait_for(lambda: [r for r in rows(gateway.state) if r.request_id == request_id]))


@pytest.mark.alone
def test_the_next_target_wins_and_the_first_is_closed_at_once(gateway: Gateway, pair: Pair) -> None:
    after: list[float] = []
    for _ in range(7):
        pair.ways.pop("a/won", None)
        earn(gateway, "won")
        pair.ways["a/won"] = "silence"
        with gateway.client() as client:
            began = time.monotonic()
            answer = ask(client, "won", True)
            took = time.monotonic() - began
        assert text_of(answer) == TEXT
        assert took >= 0.15
        lost, won = pair.seen("a", "won")[-1], pair.seen("b", "won")[-1]
        assert Gateway.wait_for(lambda lost=lost: lost.lost_at)
        after.append(lost.lost_at - won.started_at)
    print(f"\nthe loser's socket was closed {statistics.median(after) * 1e3:.1f} ms after the winner was asked")
    assert statistics.median(after) <= 0.05
    headers = answer.headers
    assert headers["x-turnout-provider"] == "b-won"
    assert headers["x-turnout-attempts"] == "2"
    assert headers["x-turnout-fallback"] == "a-won>b-won;reason=outrun"
    first, second = written(gateway, headers["x-request-id"])
    assert (first.cause, first.reason, first.served, first.provider) == ("first", "outrun", False, "a-won")
    assert (second.cause, second.reason, second.served, second.provider) == ("hedge", "", True, "b-won")
    assert first.cost_nanos > 0, "its prompt is billed"
    assert first.estimated
    assert second.cost_nanos > 0
    assert second.started_ms - first.started_ms >= 140
    line = gateway.logged(headers["x-request-id"])
    assert (line["attempts"], line["provider"], line["status"]) == (2, "b-won", 200)
    assert float(line["cost_usd"]) * 1e9 == pytest.approx(first.cost_nanos + second.cost_nanos)
    assert gateway.metric("turnout_attempts_total", route="won", cause="hedge", outcome="ok") == 7
    assert gateway.metric("turnout_attempts_total", route="won", cause="first", outcome="outrun") == 7
    assert gateway.metric("turnout_breaker_opens_total", provider="a-won") == 0, "to be outrun is no failure"


def test_the_first_may_still_win(gateway: Gateway, pair: Pair) -> None:
    earn(gateway, "lost")
    pair.ways |= {"a/lost": "late-token:ms=400", "b/lost": "silence"}
    with gateway.client() as client:
        answer = ask(client, "lost", True)
    assert text_of(answer) == TEXT
    headers = answer.headers
    assert (headers["x-turnout-provider"], headers["x-turnout-attempts"], headers["x-turnout-fallback"]) == ("a-lost", "2", "none")
    assert Gateway.wait_for(lambda: pair.seen("b", "lost")[-1].lost_at)
    hedge, first = written(gateway, headers["x-request-id"])
    assert (hedge.cause, hedge.reason, hedge.served) == ("hedge", "outrun", False)
    assert (first.cause, first.reason, first.served) == ("first", "", True)
    assert gateway.logged(headers["x-request-id"])["provider"] == "a-lost"


def test_a_hedge_that_fails_leaves_the_first_alone(gateway: Gateway, pair: Pair) -> None:
    earn(gateway, "fails")
    pair.ways |= {"a/fails": "late-token:ms=500", "b/fails": "500"}
    with gateway.client() as client:
        answer = ask(client, "fails", True)
    assert text_of(answer) == TEXT
    assert (answer.headers["x-turnout-provider"], answer.headers["x-turnout-attempts"]) == ("a-fails", "2")
    hedge, first = written(gateway, answer.headers["x-request-id"])
    assert (hedge.cause, hedge.reason, first.served) == ("hedge", "500", True)


def test_no_hedge_when_the_budget_is_spent(serve: Callable[..., Gateway], pair: Pair) -> None:
    """Of all workers together: they have one purse."""
    hedge = {"least_ms": 20, "unknown_ms": 20, "quantile": 0.5}
    route = {"name": "spent", "match": {"model": "spent"}, "targets": [{"provider": n, "model": MODEL} for n in "ab"], "hedge": hedge}
    data = config({n: f"http://127.0.0.1:{s.port}/spent/v1" for n, s in (("a", pair.a), ("b", pair.b))}, [route])
    data["listen"]["workers"] = 3
    gateway = serve(data)
    turns = itertools.cycle(("late-token:ms=30", "late-token:ms=30", "late-token:ms=90"))  # a third is later than usual
    pair.ways["a/spent"] = lambda: next(turns)
    n = 200
    before = len(pair.seen("b", "spent"))
    for _ in range(n):
        with gateway.client() as client:  # a connection each, so that all workers get some
            assert ask(client, "spent", True).status_code == 200
    asked = len(pair.seen("b", "spent")) - before
    refused = gateway.metric("turnout_hedges_refused_total", route="spent")
    print(f"\n{asked} hedges for {n} requests; {refused:.0f} more were wanted")
    assert 1 <= asked <= n * 0.05
    assert refused >= 20


def test_a_route_that_does_not_ask_for_it_waits(gateway: Gateway, pair: Pair) -> None:
    earn(gateway, "none")
    pair.ways["a/none"] = "late-token:ms=600"
    with gateway.client() as client:
        answer = ask(client, "none", True)
    assert (answer.headers["x-turnout-provider"], answer.headers["x-turnout-attempts"]) == ("a-none", "1")
    assert not pair.seen("b", "none")


def test_a_client_that_leaves_closes_both(gateway: Gateway, pair: Pair) -> None:
    earn(gateway, "gone")
    pair.ways |= {"a/gone": "silence", "b/gone": "silence"}
    wire = Wire(gateway, body("gone", True))
    assert Gateway.wait_for(lambda: pair.seen("b", "gone"))
    wire.reset()
    for name in "ab":
        assert Gateway.wait_for(lambda name=name: pair.seen(name, "gone")[-1].lost_at), name
    line = Gateway.wait_for(lambda: next((r for r in list(gateway.log) if r["route"] == "gone" and r["status"] == 499), None))
    assert [f["reason"] for f in line["failures"]] == ["client_gone", "client_gone"]


@pytest.mark.parametrize("model", ["whole", "window"])
def test_what_is_gathered_or_held_back_is_hedged_too(gateway: Gateway, pair: Pair, model: str) -> None:
    stream = model == "window"
    earn(gateway, model, stream=stream)
    pair.ways[f"a/{model}"] = "silence"
    with gateway.client() as client:
        answer = ask(client, model, stream)
    assert text_of(answer) == TEXT
    assert (answer.headers["x-turnout-provider"], answer.headers["x-turnout-attempts"]) == (f"b-{model}", "2")


def test_the_waiting_of_losers_moves_the_traffic(gateway: Gateway, pair: Pair) -> None:
    pair.ways |= {"a/learns": "ok", "b/learns": "late-token:ms=80"}
    with gateway.client() as client:

        def faster() -> bool:
            """A loaded machine may make it slow once; then it gets probes."""
            before = len(pair.seen("a", "learns"))
            for _ in range(30):
                ask(client, "learns", True)
            return len(pair.seen("a", "learns")) - before > 15

        assert Gateway.wait_for(faster), "it is the faster one"
        before = len(pair.seen("a", "learns"))
        pair.ways["a/learns"] = "silence"
        answers = [ask(client, "learns", True) for _ in range(12)]
    assert [text_of(answer) for answer in answers] == [TEXT] * 12
    assert len(pair.seen("a", "learns")) - before <= 5, "after a few lost races nobody is sent there first"
    report = gateway.admin("/admin/routes/learns").json()["workers"][0]
    assert report["first"].startswith("b-learns")
    assert report["hedge"]["target"].startswith("a-learns")
    assert {line["breaker"] for line in report["order"]} == {"closed"}


def ttfts(gateway: Gateway, model: str, n: int, clients: int = 4) -> list[float]:
    """Seconds to the first token of `n` streams; the head comes with it."""
    data = json.dumps(body(model, True))
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    took: list[float] = []

    def run() -> None:
        connection = HTTPConnection(gateway.host, gateway.port, timeout=30)
        for _ in range(n // clients):
            began = time.monotonic()
            connection.request("POST", "/v1/chat/completions", data, headers)
            answer = connection.getresponse()
            took.append(time.monotonic() - began)
            assert answer.status == 200
            answer.read()
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == n // clients * clients
    return sorted(took)


@pytest.mark.alone
def test_three_slow_starts_in_a_hundred_are_hedged_away(gateway: Gateway, pair: Pair) -> None:
    rng = random.Random(4)

    def usual() -> str:
        return "late-token:ms=600" if rng.random() < 0.03 else "late-token:ms=40"

    pair.ways |= {f"{name}/{route}": usual for name in "ab" for route in ("slow3", "slow3-alone")}
    learning, n = 120, 600
    for route in ("slow3", "slow3-alone"):
        ttfts(gateway, route, learning)  # what is usual has to be known
    alone, hedged = (ttfts(gateway, route, n) for route in ("slow3-alone", "slow3"))
    more = (len(pair.seen("a", "slow3")) + len(pair.seen("b", "slow3"))) / (learning + n) - 1
    p50, p99 = ([t[len(t) * q // 100] * 1e3 for t in (alone, hedged)] for q in (50, 99))
    print(f"\np50 {p50[0]:.0f} -> {p50[1]:.0f} ms, p99 {p99[0]:.0f} -> {p99[1]:.0f} ms, {more:.1%} more requests")
    assert p99[1] <= p99[0] / 2
    assert 0.01 < more <= 0.05
