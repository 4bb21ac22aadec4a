"""Several workers on one host know what each of them has seen of a target: what becomes slow is left by all of them, and
what heals is found again."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from support.delays import Load
from support.gateway import TRUST, Gateway, config
from turnout.upstream.simulator.launch import Simulator

WORKERS = 4
TTFT_MS = {"a": 60, "b": 150, "c": 200, "d": 250}
SLOW = {"kind": "slow", "ms": 1500}
DOWN = {"kind": "status", "status": 500}


class Pool:
    """Four simulated providers, each as fast as TTFT_MS says."""

    def __init__(self, simulator: Simulator) -> None:
        spec = {"ttft_sigma": 0.1, "tokens_per_s": 1000, "answer_tokens": 3}
        self.urls = simulator.start({name: {**spec, "ttft_ms": ms, "seed": i} for i, (name, ms) in enumerate(TTFT_MS.items())})

    def _control(self, name: str, path: str) -> str:
        return self.urls[name].removesuffix("/v1") + path

    def set(self, name: str, *faults: dict[str, Any]) -> None:
        httpx.post(self._control(name, "/__faults"), json=list(faults), trust_env=False, verify=TRUST).raise_for_status()

    def asked(self, name: str) -> int:
        return int(httpx.get(self._control(name, "/__stats"), trust_env=False, verify=TRUST).json()["requests"])


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Simulator() as simulator:
        yield Pool(simulator)


@pytest.fixture
def gateway(serve: Callable[..., Gateway], pool: Pool) -> Gateway:
    route = {
        "name": "chat", "match": {"model": "fast"}, "routing_policy": {"kind": "least-latency", "probe_s": 0.5},
        "targets": [{"provider": name, "model": "m"} for name in TTFT_MS],
    }  # fmt: skip
    data = config(pool.urls, [route])  # type: ignore[arg-type]
    data["listen"]["workers"] = WORKERS
    return serve(data)


@pytest.fixture
def load(gateway: Gateway) -> Iterator[Load]:
    load = Load(gateway, 10)
    yield load
    load.stop()


def explained(gateway: Gateway) -> list[dict[str, Any]]:
    """What each worker says: "first", and the line of each candidate by its name."""
    report = gateway.admin("/admin/routes/chat").json()
    assert len(report["workers"]) == WORKERS
    return [{"first": w["first"], **{line["target"]: line for line in w["candidates"] if "score" in line}} for w in report["workers"]]


def lowest(worker: dict[str, Any]) -> str:
    return min((f"{name}/m" for name in TTFT_MS), key=lambda name: float(worker[name]["score"]))


def test_a_target_that_turns_slow_loses_its_traffic_in_all_workers_and_gets_it_back(gateway: Gateway, pool: Pool, load: Load) -> None:
    assert gateway.wait_for(lambda: load.lately("a") > 0.7, 30), "the fastest has the traffic"
    fell = time.monotonic()
    before = load.share("a", fell - 2, fell)
    pool.set("a", SLOW)

    moved_by: dict[int, float] = {}  # worker -> age of the waiting attempts for which it leaves the slow target
    left: set[int] = set()
    while time.monotonic() < fell + 2:
        for number, worker in enumerate(explained(gateway)):
            line = worker["a/m"]
            if lowest(worker) != "a/m":
                left.add(number)
                if line["late"]:
                    moved_by[number] = max(line["late_age_s"], moved_by.get(number, 0.0))
        time.sleep(0.02)  # the workers share the processors with this
    assert left == set(range(WORKERS)), "every worker has left it within two seconds"
    assert len(moved_by) >= WORKERS // 2, "and says which attempts made it do so: those that wait"
    assert all(age > 2 * TTFT_MS["a"] / 1e3 * 0.8 for age in moved_by.values())

    asked = pool.asked("a")
    gateway.wait_for(lambda: time.monotonic() > fell + 5)
    assert load.share("a", fell + 2, fell + 5) <= 0.1 * before
    assert gateway.wait_for(lambda: pool.asked("a") > asked, 30), "it gets probes"
    assert load.share("a", fell + 2, time.monotonic()) <= 0.1 * before
    for worker in explained(gateway):
        assert worker["b/m"]["answers"] > 5, "all know what each has seen"
        assert worker["a/m"]["score"] > worker["b/m"]["score"]

    pool.set("a")
    assert gateway.wait_for(lambda: load.lately("a") > 0.8 * before, 30), "it comes back"
    assert not load.wrong


@pytest.mark.alone
def test_a_target_that_fails_fast_never_gains_traffic(gateway: Gateway, pool: Pool, load: Load) -> None:
    assert gateway.wait_for(lambda: load.lately("a") > 0.7, 30)
    pool.set("a", DOWN)  # had all the traffic
    pool.set("c", DOWN)  # had probes
    assert gateway.wait_for(lambda: load.lately("b", 1.0) > 0.8, 30)
    for _ in range(3):
        asked = {name: pool.asked(name) for name in TTFT_MS}
        began = time.monotonic()
        n = len(load.served)
        gateway.wait_for(lambda began=began: time.monotonic() > began + 1.5)
        more = {name: pool.asked(name) - asked[name] for name in TTFT_MS}
        assert more["a"] + more["c"] <= 0.1 * (len(load.served) - n), more
        assert more["b"] > 0.7 * sum(more.values()), more
    assert not load.wrong, "nobody has seen them fail"
