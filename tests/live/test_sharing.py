"""Several workers on one host know what each of them has seen of a target."""

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from support.delays import Load, Server, made, serving
from support.gateway import ADMIN_KEY, Gateway


@pytest.fixture
def providers() -> Iterator[dict[str, Server]]:
    with serving({"a": 0.02, "b": 0.05, "c": 0.07, "d": 0.09}) as servers:
        yield servers


def test_a_target_that_turns_slow_loses_its_traffic_in_all_workers_and_gets_it_back(
    serve: Callable[..., Gateway], providers: dict[str, Server]
) -> None:
    gateway = serve(made(providers, 4))
    load = Load(gateway, 10)
    try:
        time.sleep(4)
        before = time.monotonic()
        assert load.share("a", before - 2, before) > 0.6
        providers["a"].delay_s = 0.6
        time.sleep(4)
        assert load.share("a", before + 2, before + 4) <= 0.1 * load.share("a", before - 2, before) + 0.02
        report = httpx.get(gateway.admin_url + "/admin/routes/chat", headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False).json()
        assert len(report["workers"]) == 4
        for worker in report["workers"]:
            lines = {line["target"]: line for line in worker["candidates"] if "score" in line}
            assert lines["b/m"]["answers"] > 5
            assert lines["a/m"]["score"] > lines["b/m"]["score"]
        providers["a"].delay_s = 0.02
        time.sleep(8)
        end = time.monotonic()
        assert load.share("a", end - 2, end) > 0.5
    finally:
        load.stop()
    assert not load.wrong
