"""Four workers of a host as one cache: one upstream call for all, and nobody waits for a worker that died."""

import asyncio
import contextlib
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
from support.crowd import Answer, body, crowd, one
from support.gateway import Gateway, config
from turnout.state.board_process import Notices

WORKERS = 4


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], a: FaultServer) -> Gateway:
    faults = {"late": "slow-head:ms=2500", "begun": "late-token:ms=2500", "slowly": "ok:gap_ms=250", "quick": "ok", "down": "500"}
    caches: dict[str, Any] = {"quick": {"exact": {"ttl_s": 600}}, "slowly": {"exact": {"ttl_s": 600}}}
    routes = [
        {
            "name": name, "match": {"model": name}, "targets": [{"provider": name, "model": "gpt-4o-mini"}],
            "cache": caches.get(name, {"single_flight": True}), "retries": {"max": 0},
        }
        for name in faults
    ]  # fmt: skip
    data = config({name: a.at(fault) for name, fault in faults.items()}, routes)
    data["listen"]["workers"] = WORKERS
    return serve(data)


def spread(gateway: Gateway, asked: dict[str, Any], count: int = 12) -> list[Answer]:
    """One after the other, each on a connection of its own: the kernel spreads them over the workers."""
    return [crowd(gateway, asked, 1)[0] for _ in range(count)]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_thousand_over_four_workers_are_one_upstream_call(gateway: Gateway, a: FaultServer, stream: bool) -> None:
    before = a.requests
    answers = crowd(gateway, body("begun" if stream else "late", "crowd", stream), 1_000)
    assert a.requests == before + 1
    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        text = said(answer.body) if stream else json.loads(answer.body)["choices"][0]["message"]["content"]
        assert text == TEXT
    outcomes = [answer.headers["x-turnout-cache"] for answer in answers]
    assert (outcomes.count("miss"), outcomes.count("hit-exact;shared")) == (1, 999)


def test_what_one_worker_keeps_all_give(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests
    answers = spread(gateway, body("quick", "one for all", False))
    assert a.requests == before + 1
    assert [answer.headers["x-turnout-cache"] for answer in answers] == ["miss"] + ["hit-exact"] * (len(answers) - 1)
    assert len({answer.body for answer in answers}) == 1


def test_routes_without_a_cache_in_time_hand_on_what_is_under_way_only(gateway: Gateway, a: FaultServer) -> None:
    before = a.requests
    asked = body("late", "one after the other", False)
    assert crowd(gateway, asked, 8)[0].status == 200
    assert crowd(gateway, asked, 8)[0].status == 200
    assert a.requests == before + 2


def test_a_purge_reaches_what_all_workers_share(gateway: Gateway, a: FaultServer) -> None:
    asked = body("quick", "purged", False)
    spread(gateway, asked)
    before = a.requests
    done = gateway.admin("/admin/cache/purge?dry=false&route=quick", "POST").json()
    assert done["workers"] == WORKERS and done["entries"] >= 2
    spread(gateway, asked)
    assert a.requests == before + 1


def test_what_fails_is_not_handed_on_as_an_answer(gateway: Gateway, a: FaultServer) -> None:
    answers = crowd(gateway, body("down", "fails", False), 20)
    assert {answer.status for answer in answers} == {502}


# ---- workers that die


def holder(gateway: Gateway, port: int) -> int:
    """The worker whose socket has this local port. Others may have it too, towards somewhere else."""

    def find() -> int:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        wanted = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}")}
        for worker in gateway.status()["workers"]:
            with contextlib.suppress(OSError):
                for fd in Path(f"/proc/{worker['pid']}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if os.readlink(fd) in wanted:
                            return int(worker["pid"])
        return 0

    found = Gateway.wait_for(find)
    assert found, f"nobody has port {port}"
    return int(found)


def ready(gateway: Gateway) -> bool:
    return all(worker["ready"] for worker in gateway.status()["workers"])


@pytest.mark.parametrize(("stream", "after"), [(False, 0), (True, 0), (True, 1), (True, 4), (True, len(TOKENS) - 2)])
def test_the_asking_worker_may_be_killed_at_any_event(gateway: Gateway, a: FaultServer, stream: bool, after: int) -> None:
    """Its own clients lose their connections; everybody else gets the whole answer, of one more upstream call."""
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    before = a.requests
    asked = body("slowly" if stream else "late", f"killed {after} {stream}", stream)

    async def run() -> list[Answer | None]:
        async def safely() -> Answer | None:
            try:
                return await one(gateway, asked)
            except (ConnectionError, ValueError, IndexError):
                return None

        asking = [asyncio.create_task(safely()) for _ in range(60)]
        end = time.monotonic() + 20
        while a.requests == before and time.monotonic() < end:
            await asyncio.sleep(0.01)
        asked_by = a.seen[-1]
        while stream and asked_by.written < 200 * after and not asked_by.cancelled and time.monotonic() < end:
            await asyncio.sleep(0.01)
        try:
            os.kill(await asyncio.to_thread(holder, gateway, asked_by.peer_port), signal.SIGKILL)
        except BaseException:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            raise
        return list(await asyncio.gather(*asking))

    answers = uvloop.run(run())
    whole = [answer for answer in answers if answer is not None and answer.status == 200 and (not stream or b"[DONE]" in answer.body)]
    lost = len(answers) - len(whole)
    assert 0 < lost < len(answers), lost  # those of the one worker
    for answer in whole:
        assert (said(answer.body) if stream else json.loads(answer.body)["choices"][0]["message"]["content"]) == TEXT
    assert a.requests == before + 2


def test_a_board_that_dies_costs_nobody_an_answer(gateway: Gateway, a: FaultServer) -> None:
    assert Gateway.wait_for(lambda: ready(gateway), 20)
    assert gateway.process is not None
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    (board,) = [int(pid) for pid in children if b"board_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(board, signal.SIGKILL)
    answers = spread(gateway, body("quick", "without a board", False), 6)
    assert {answer.status for answer in answers} == {200}
    assert Gateway.wait_for(lambda: any("the board ended" in line for line in gateway.said))

    def shares_again() -> bool:
        before = a.requests
        spread(gateway, body("quick", f"again {time.monotonic()}", False), 8)
        return a.requests == before + 1

    assert Gateway.wait_for(shares_again, 20)


# ---- the board itself


def test_leases_and_values_of_the_board() -> None:
    heard: list[tuple[str, int, Any]] = []
    notices = Notices(100, lambda peer, number, value: heard.append((str(peer), number, value)))

    def take(peer: str, now: float, *message: Any) -> Any:
        heard.clear()
        notices.take(peer, list(message), now)
        return [value for _, _, value in heard]

    assert take("a", 0, 1, "lease", b"k", b"A", 5) == [True]
    assert take("b", 0, 1, "lease", b"k", b"B", 5) == [False]
    assert take("a", 4, 2, "lease", b"k", b"A", 5) == [True]  # renewed
    assert take("b", 8, 2, "lease", b"k", b"B", 5) == [False]
    assert take("b", 9.5, 3, "lease", b"k", b"B", 5) == [True]  # it ran out
    assert take("a", 10, 3, "release", b"k", b"A") == [False]
    assert take("b", 10, 4, "release", b"k", b"B") == [True]
    assert take("a", 10, 4, "get", b"v") == [None]
    assert take("a", 10, 5, "wait", b"v", 5) == []
    assert take("b", 11, 5, "set", b"v", b"x" * 40, 60) == [True, b"x" * 40]  # and the one who waited hears of it
    assert take("a", 12, 6, "get", b"v") == [b"x" * 40]
    take("a", 12, 7, "set", b"w", b"y" * 40, 60)
    take("a", 12, 8, "get", b"v")
    take("a", 12, 9, "set", b"z", b"z" * 40, 60)
    assert [take("a", 12, 10, "get", key)[0] is None for key in (b"v", b"w", b"z")] == [False, True, False]  # the least recently used went
    take("a", 12, 11, "set", b"big", b"b" * 101, 60)
    assert take("a", 12, 12, "get", b"big") == [None]
    assert take("a", 80, 13, "get", b"v") == [None]
    assert notices.bytes == 40
    take("a", 80, 14, "wait", b"n", 1)
    heard.clear()
    notices.tick(82)
    assert heard == [("a", 14, None)]
    take("a", 82, 15, "lease", b"k", b"A", 50)
    take("b", 82, 16, "wait", b"n", 50)
    heard.clear()
    notices.forget("a")
    assert heard == [("b", 16, None)]  # who waits looks again
    assert take("b", 82, 17, "lease", b"k", b"B", 50) == [True]
    assert take("b", 82, 18, "flush", b"") == [True] and notices.bytes == 0
