"""When everything is down the gateway says so, asks hardly more than once a request, and comes back by itself."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.conftest import MODEL, ask, body, error_of
from faults.server import FaultServer
from support.gateway import KEY, Gateway, config

RATE = 200


class Load:
    """An open loop: a request every 1/RATE s, however long the answers take. `sent` is by second."""

    def __init__(self, gateway: Gateway, model: str, seconds: float) -> None:
        self.gateway = gateway
        self.data = json.dumps(body(model)).encode()
        self.seconds = seconds
        self.at: list[float] = []
        self.answers: list[tuple[int, bytes]] = []
        self.failed: list[str] = []
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.started = time.monotonic()
        tasks = []
        for n in range(int(self.seconds * RATE)):
            await asyncio.sleep(max(0, self.started + n / RATE - time.monotonic()))
            self.at.append(time.monotonic())
            tasks.append(asyncio.ensure_future(self._one()))
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def _one(self) -> None:
        try:
            async with asyncio.timeout(20):
                while (
                    self._idle and self._idle[-1][0].at_eof()
                ):  # the gateway closes connections that are idle for long
                    self._idle.pop()[1].close()
                reader, writer = (
                    self._idle.pop()
                    if self._idle
                    else await asyncio.open_connection(self.gateway.host, self.gateway.port)
                )
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(self.data)}\r\n\r\n"
                writer.write(head.encode() + self.data)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:")
                )
                answer += await reader.readexactly(length)
                self.answers.append((int(answer.split(b" ", 2)[1]), answer))
                self._idle.append((reader, writer))
        except Exception as e:
            self.failed.append(repr(e))


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, FaultServer]]:
    made = {name: FaultServer().start() for name in ("503a", "503b", "reseta", "resetb", "refuseda", "refusedb")}
    yield made
    for server in made.values():
        server.stop()


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], servers: dict[str, FaultServer]) -> Gateway:
    providers: dict[str, Any] = {f"p{name}": server.url for name, server in servers.items()}
    routes = [
        {"name": how, "match": {"model": how}, "targets": [{"provider": f"p{how}{n}", "model": MODEL} for n in "ab"]}
        for how in ("503", "reset", "refused")
    ]
    return serve(config(providers, routes))


def outage(gateway: Gateway, servers: dict[str, FaultServer], how: str, seconds: float, settled: float) -> None:
    pair = [servers[f"{how}{n}"] for n in "ab"]
    with gateway.client() as client:
        for _ in range(5):
            assert ask(client, how).status_code == 200
    before = gateway.metrics()
    for server in pair:
        server.refuse() if how == "refused" else setattr(server, "default", how)
    load = Load(gateway, how, seconds)
    load.run()
    for server in pair:
        server.listen() if how == "refused" else server.heal()
    healed = time.monotonic()

    assert not load.failed, (len(load.failed), len(load.answers), load.failed[:3], gateway.said[-5:])
    since = load.started + settled
    sent = sum(at >= since for at in load.at)
    # By the gateway's own rows, which have the time of every attempt; the servers' counts are checked against their sum.
    log = gateway.wait_for(
        lambda: len(lines := [r for r in list(gateway.log) if r["route"] == how]) >= len(load.at) + 5 and lines, 15
    )
    lines = sorted(log, key=lambda r: r["ts"])[5:]
    asked = sum(r["attempts"] for r in lines[len(load.at) - sent :])
    total = sum(r["attempts"] for r in lines)
    if how != "refused":
        seen = [s for server in pair for s in server.seen if s.fault == how and s.started_at >= load.started]
        # A pooled connection that is reset unanswered is replaced within the attempt: once for each that was open.
        assert 0 <= len(seen) - total <= (50 if how == "reset" else 0)
        # Once more by the servers' own clock, the same process's as the load's.
        asked = max(asked, sum(s.started_at >= since for s in seen))
    grown = {k: v - before.get(k, 0) for k, v in gateway.metrics().items()}
    assert (
        sum(v for k, v in grown.items() if k.startswith("turnout_attempts_total{") and f'route="{how}"' in k) == total
    )
    opens = sum(v for k, v in grown.items() if k.startswith("turnout_breaker_opens_total") and f"p{how}" in k)
    print(
        f"\nall targets {how}, {RATE} requests/s for {seconds:.0f} s: {asked / sent:.3f} upstream requests per request from second "
        f"{settled:.0f} on ({asked} for {sent}), {total / len(load.at):.3f} in all, breakers opened {opens:.0f} times, "
        f"statuses {dict(Counter(status for status, _ in load.answers))}"
    )
    assert asked / sent <= 1.1
    assert len(load.answers) == len(load.at)
    for status, answer in load.answers:
        assert status in (502, 503)
        head, _, _ = answer.partition(b"\r\n\r\n")
        assert b"x-should-retry: false" in head.lower()
        assert b'"type":"upstream_error"' in answer

    with gateway.client() as client:
        first = gateway.wait_for(lambda: (r := ask(client, how)).status_code == 200 and r)
        assert first
        back = time.monotonic() - healed
        answers = [ask(client, how) for _ in range(50)]
        # ... and the other one is not left alone for minutes.
        opened = lambda: any(
            gateway.metrics().get(f'turnout_breaker_open{{provider="p{how}{n}",account="",model="{MODEL}"}}', 0)
            for n in "ab"
        )
        both = gateway.wait_for(lambda: not opened(), 70) if how == "503" else True
    print(f"first good answer {back * 1000:.0f} ms after the targets healed")
    assert back < 5
    assert all(r.status_code == 200 for r in answers)
    assert both
    assert gateway.metric("turnout_in_flight") == 0


@pytest.mark.parametrize("how", ["503", "reset", "refused"])
def test_an_outage_of_15_s_is_not_amplified(gateway: Gateway, servers: dict[str, FaultServer], how: str) -> None:
    outage(gateway, servers, how, 15, 5)


@pytest.mark.full
@pytest.mark.parametrize("how", ["503", "reset", "refused"])
def test_an_outage_of_60_s_is_not_amplified(gateway: Gateway, servers: dict[str, FaultServer], how: str) -> None:
    outage(gateway, servers, how, 60, 10)


def test_every_error_of_an_outage_has_openais_shape(gateway: Gateway, servers: dict[str, FaultServer]) -> None:
    pair = [servers[f"503{n}"] for n in "ab"]
    for server in pair:
        server.default = "503"
    with gateway.client() as client:
        answer = ask(client, "503")
    for server in pair:
        server.heal()
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "upstream_overloaded"
    assert answer.headers["x-should-retry"] == "false"
