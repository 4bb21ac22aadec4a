"""config: what a worker does with the config that the supervisor hands it."""

from collections.abc import Callable
from typing import Any

from cases import Case
from cases import test_speed as test_speed

from turnout.config.load import from_wire
from turnout.config.model import Config

DATA: dict[str, Any] = {
    "auth": {"keys": [{"name": f"k{i}", "key": f"env:K{i}", "team": "t", "models": ["fast", "r*"]} for i in range(20)]},
    "providers": {
        f"p{i}": {"kind": "openai", "base_url": f"https://p{i}.example/v1", "api_key": f"env:P{i}"} for i in range(5)
    },
    "routes": [
        {
            "name": f"r{i}",
            "match": {"model": f"r{i}"},
            "routing_policy": {"kind": "weighted"},
            "targets": [{"provider": f"p{k}", "model": "gpt-4o-mini", "weight": k + 1} for k in range(5)],
            "timeouts": {"ttft_ms": 15000},
            "set": {"temperature": 0.2},
        }
        for i in range(10)
    ],
}
SECRETS = {f"env:K{i}": f"sk-k{i}" for i in range(20)} | {f"env:P{i}": f"sk-p{i}" for i in range(5)}


def load() -> Callable[[], Config]:
    return lambda: from_wire(DATA, SECRETS)


def right(config: Config) -> bool:
    return len(config.routes) == 10 and config.auth.keys[19].key.reveal() == "sk-k19" and len(config.providers) == 5


CASES = [Case("config.from_wire 10 routes", load, right, 20)]
