"""The semantic cache as it comes, judged from outside: by a scorer that knows nothing of it, and on labelled look-alikes."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import KEY, Gateway, config
from support.scholar import Scholar

OTHER = "sk-other-0123456789abcdef"
MOST_TRAPS = 0.015
LEAST_HITS = 0.10
_runs = itertools.count()


@pytest.fixture(scope="module")
def scholar() -> Iterator[Scholar]:
    with Scholar(lambda question, number: f"answer {number} lorem ipsum") as scholar:
        yield scholar


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], scholar: Scholar) -> Gateway:
    cache = {"exact": {"ttl_s": 600}, "semantic": {}}
    routes = [{"name": name, "match": {"model": name}, "targets": [{"provider": "a", "model": "m"}], "cache": cache} for name in ("mock", "mock2")]
    data = config({"a": scholar.url}, routes)
    data["auth"]["keys"].append({"name": "other", "key": "env:OTHER"})
    return serve(data, env={"OTHER": OTHER})


def test_an_outside_scorer_finds_no_leak(gateway: Gateway, shared: Path) -> None:
    """Other keys, prompts, histories, tools, images, parameters, and eight traps; what is the same is a hit."""
    tool = shared / "tools" / "semantic_score.py"
    command = [sys.executable, str(tool), "leaks", "--base", gateway.url + "/v1", "--key", KEY, "--key2", OTHER, "--model", "mock", "--model2", "mock2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and "failures 0" in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize("name", ["fow", "conv"])
def test_look_alikes_are_told_apart(gateway: Gateway, shared: Path, name: str) -> None:
    rows = [json.loads(line) for line in (shared / "data" / "semantic" / f"{name}.jsonl").read_text().splitlines()]
    run = next(_runs)
    with gateway.client(limits=httpx.Limits(max_connections=8)) as client, ThreadPoolExecutor(6) as pool:

        def ask(row: dict[str, Any], messages: list[dict[str, Any]]) -> str:
            scope = {"role": "system", "content": f"{run} {name} {row['id']}"}
            found = client.post("/v1/chat/completions", json={"model": "mock", "messages": [scope, *messages], "temperature": 0})
            assert found.status_code == 200
            return str(found.json()["choices"][0]["message"]["content"])

        def one(row: dict[str, Any]) -> tuple[bool, bool]:
            first, second = (row.get(f"{x}_messages") or [{"role": "user", "content": row[x]}] for x in "ab")
            kept = ask(row, first)
            return bool(row["label"]), ask(row, second) == kept

        found = list(pool.map(one, rows))
    traps = [hit for should, hit in found if not should]
    right = [hit for should, hit in found if should]
    print(f"\n{name}: {sum(right)} of {len(right)} that should hit, {sum(traps)} of {len(traps)} look-alikes")
    assert sum(traps) <= (MOST_TRAPS * len(traps) if name == "fow" else 0)
    if name == "fow":  # a conversation's earlier turns have to be the same, so there a hit is no promise
        assert sum(right) >= LEAST_HITS * len(right)
