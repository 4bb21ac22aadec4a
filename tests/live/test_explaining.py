"""`turnout explain` and GET /admin/routes of a gateway that runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from support.gateway import ADMIN_KEY, KEY, UPSTREAM_KEY, Gateway, config

CHAT = "/v1/chat/completions"
SIMULATED = {name: {"kind": "simulated", "ttft_ms": ms, "answer_tokens": 3} for name, ms in (("slow", 600), ("quick", 10))}  # further apart than a busy machine puts them
ROUTES: list[dict[str, Any]] = [
    {
        "name": "chat", "match": {"model": "fast"}, "routing_policy": {"kind": "least-latency", "explore": 0.0},
        "targets": [{"provider": "slow", "model": "sim-small"}, {"provider": "quick", "model": "sim-small"}],
    }
]  # fmt: skip


@pytest.fixture
def gateway(serve: Callable[..., Gateway]) -> Gateway:
    return serve(config(SIMULATED, ROUTES))  # type: ignore[arg-type]


def cli(*args: str, admin_key: str = ADMIN_KEY) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TURNOUT_ADMIN_KEY": admin_key, "TEST_KEY": KEY, "TEST_ADMIN_KEY": ADMIN_KEY, "TEST_UPSTREAM_KEY": UPSTREAM_KEY}
    return subprocess.run([sys.executable, "-m", "turnout", "explain", *args], capture_output=True, text=True, timeout=30, env=env)


def test_the_gateway_explains_and_then_does_it(gateway: Gateway) -> None:
    with gateway.client() as client:
        for _ in range(12):
            client.post(CHAT, json={"model": "fast", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        said = cli("--admin", gateway.admin_url, "--route", "chat")
        assert said.returncode == 0, said.stderr
        assert "policy least-latency" in said.stdout
        assert "first attempt: quick/sim-small" in said.stdout
        answer = client.post(CHAT, json={"model": "fast", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        assert answer.headers["x-turnout-provider"] == "quick"
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    report = httpx.get(gateway.admin_url + "/admin/routes", headers=admin, trust_env=False).json()["chat"]["workers"][0]
    assert report["number"] == 0
    assert {line["target"]: line["answers"] > 0 for line in report["candidates"][:2]} == {"slow/sim-small": True, "quick/sim-small": True}
    assert report["order"][0]["ttft_s"]["p50"] > 0
    assert httpx.get(gateway.admin_url + "/admin/routes/none", headers=admin, trust_env=False).status_code == 404
    assert httpx.get(gateway.admin_url + "/admin/routes/chat?bytes=many", headers=admin, trust_env=False).status_code == 400
    assert httpx.get(gateway.admin_url + "/admin/routes/chat", headers={"authorization": f"Bearer {KEY}"}, trust_env=False).status_code == 401
    assert cli("--admin", gateway.admin_url, "--route", "chat", admin_key="wrong").returncode == 1


def test_a_config_is_explained_without_a_gateway(gateway: Gateway) -> None:
    said = cli(str(gateway.file), "--model", "fast")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("fast -> route chat, policy least-latency\n")
    assert cli(str(gateway.file), "--model", "none").returncode == 1
    assert cli(str(gateway.file)).returncode == 2
