"""`turnout cache` and /admin/cache of a gateway that runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from support.gateway import ADMIN_KEY, Gateway, config

CHAT = "/v1/chat/completions"
SIMULATED: Any = {"sim": {"kind": "simulated", "ttft_ms": 1, "tokens_per_s": 5000, "answer_tokens": 3, "models": ["sim-small"]}}
ROUTES: list[dict[str, Any]] = [
    {"name": f"to-{model}", "match": {"model": model}, "targets": [{"provider": "sim", "model": "sim-small"}], "cache": {"exact": {"ttl_s": 600}}} for model in ("fast", "slow")
]


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway]) -> Gateway:
    return serve(config(SIMULATED, ROUTES))


def ask(client: httpx.Client, model: str, text: str, tags: str = "") -> httpx.Response:
    return client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": text}]}, headers={"x-turnout-tags": tags})


def fill(client: httpx.Client) -> dict[str, str]:
    """Four entries; their keys."""
    asked = {"a": ("fast", "one", "red"), "b": ("fast", "two", "red, blue"), "c": ("slow", "one", ""), "d": ("slow", "two", "")}
    return {name: ask(client, *what).headers["x-turnout-cache-key"] for name, what in asked.items()}


def outcomes(client: httpx.Client) -> list[str]:
    return [ask(client, model, text).headers["x-turnout-cache"] for model in ("fast", "slow") for text in ("one", "two")]


def cli(*args: str, key: str = ADMIN_KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "turnout", "cache", *args], capture_output=True, text=True, timeout=30, env={**os.environ, "TURNOUT_ADMIN_KEY": key})


def test_a_purge_counts_first_and_then_lets_go_of_what_fits(gateway: Gateway) -> None:
    hit, miss = "hit-exact", "miss"
    admin = ("--admin", gateway.admin_url, "--purge")
    with gateway.client() as client:
        keys = fill(client)
        for what, left in (
            (("--entry", keys["b"][:12]), [hit, miss, hit, hit]),
            (("--tag", "red"), [miss, miss, hit, hit]),
            (("--tag", "blue", "--route", "to-fast"), [hit, miss, hit, hit]),
            (("--model", "slow"), [hit, hit, miss, miss]),
            (("--model", "sim-small", "--route", "to-slow"), [hit, hit, miss, miss]),
            (("--route", "to-fast"), [miss, miss, hit, hit]),
            (("--key", "tester"), [miss] * 4),
            (("--tenant", "key:tester"), [miss] * 4),
            ((), [miss] * 4),
            (("--key", "nobody"), [hit] * 4),
        ):
            assert cli(*admin, "--yes").returncode == 0
            fill(client)
            gone = left.count(miss)
            dry = cli(*admin, *what)
            assert dry.returncode == 0 and dry.stdout.startswith(f"{gone} entries (") and "would go" in dry.stdout, (what, dry.stdout, dry.stderr)
            done = cli(*admin, *what, "--yes")
            assert done.stdout.startswith(f"{gone} entries (") and " went" in done.stdout
            assert outcomes(client) == left, what


def test_the_view_has_hit_rates_by_route_and_tenant(gateway: Gateway) -> None:
    with gateway.client() as client:
        ask(client, "fast", "viewed")
        ask(client, "fast", "viewed")
    said = cli("--admin", gateway.admin_url)
    assert said.returncode == 0
    view = gateway.admin("/admin/cache").json()
    row = next(row for row in view["by_tenant"] if row["route"] == "to-fast")
    assert row["tenant"] == "key:tester" and row["hits"] >= 1 and row["hit_rate"] == round(row["hits"] / (row["hits"] + row["misses"]), 4)
    assert view["entries"] >= 1 and view["bytes"] > 500


def test_what_makes_no_sense_is_refused(gateway: Gateway) -> None:
    for args, said in ((("--purge", "--entry", "xyz"), "hex digits"), (("--route", "r"), "--purge"), (("--yes",), "--purge")):
        done = cli("--admin", gateway.admin_url, *args)
        assert done.returncode in (1, 2) and said in done.stderr, done.stderr
    assert "401" in cli("--admin", gateway.admin_url, key="wrong").stderr
    bad = gateway.admin("/admin/cache/purge?rout=x", "POST")
    assert bad.status_code == 400  # a name mistyped must not purge everything
    assert gateway.admin("/admin/cache/purge").status_code == 404
