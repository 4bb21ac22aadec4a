"""A reload that turns Redis on: the library is loaded while requests run, and none of them waits for that."""

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from faults.server import FaultServer
from support.crowd import body
from support.gateway import KEY, Gateway, config
from support.redis_server import RedisServer

MOST_S = 0.05  # more than the longest without it; loading takes 0.4 to 0.8 s
TRIES = 4  # on a machine with others: what loading costs would come back each time


@pytest.mark.alone
def test_no_request_waits_for_redis_to_be_loaded(serve: Callable[..., Gateway], tmp_path: Path) -> None:
    redis = RedisServer(tmp_path).start()
    longest: list[float] = []
    try:
        with FaultServer() as a:
            for _ in range(TRIES):
                routes = [{"name": "r", "match": {"model": "r"}, "targets": [{"provider": "a", "model": "gpt-4o-mini"}], "cache": {"exact": {"ttl_s": 600}}}]
                data = config({"a": a.url}, routes)
                gateway = serve(data)
                data["state"]["redis"] = redis.url
                connection = HTTPConnection(gateway.host, gateway.port, timeout=30)
                headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
                asked = json.dumps(body("r", "hello", False))

                def once(connection: HTTPConnection = connection, asked: str = asked, headers: dict[str, str] = headers) -> float:
                    began = time.perf_counter()
                    connection.request("POST", "/v1/chat/completions", asked, headers)
                    answer = connection.getresponse()
                    assert answer.status == 200 and answer.read()
                    return time.perf_counter() - began

                usual = max([once() for _ in range(200)][20:])
                gateway.write(data)
                assert gateway.process is not None
                gateway.process.send_signal(1)
                worst, seen, looked = 0.0, False, time.monotonic()
                while not seen:
                    worst = max(worst, once())
                    if time.monotonic() - looked > 0.2:
                        looked = time.monotonic()
                        seen = redis.ask("INFO", "clients")["connected_clients"] >= 3  # the supervisor's, the worker's and this one
                connection.close()
                gateway.stop()
                longest.append(worst)
                print(f"\nlongest wait {worst * 1e3:.1f} ms, {usual * 1e3:.1f} ms before")
                if worst < usual + MOST_S:
                    return
    finally:
        redis.kill()
    raise AssertionError(f"requests waited {longest}")
