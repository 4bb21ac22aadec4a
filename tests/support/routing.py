"""Targets and requests for policies: real `Target`s with statistics, no ports."""

from random import Random
from typing import Any

from turnout.exchange import Exchange, Principal, Surface, Target
from turnout.route.health import Breaker
from turnout.route.stats import Stats

S = 1_000_000_000
T0 = 1_000 * S
CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")


def target(name: str, **more: Any) -> Target:
    fields: dict[str, Any] = {
        "provider": name, "account": "", "model": "m", "weight": 1.0, "account_weight": 1.0, "ttft_ms": 15_000, "plain_ms": 120_000,
        "health": Breaker(Random(1)), "port": None, "stats": Stats(), "label": name,
    }  # fmt: skip
    return Target(**{**fields, **more})


def ask(body: bytes = b'{"model":"m","messages":[]}', **more: Any) -> Exchange:
    fields: dict[str, Any] = {
        "id": "r", "surface": CHAT, "started_ns": T0, "wall_ns": 0, "config_version": 1, "body": body, "model": "m", "stream": True,
        "principal": Principal("k", "key:k", "000000"),
    }  # fmt: skip
    return Exchange(**{**fields, **more})


def served(stats: Stats, seconds: float, now_ns: int, size: int = 1000, key: int = 1) -> None:
    """One streamed attempt whose first token came at `now_ns`, after so long."""
    took_ns = int(seconds * S)
    stats.begin(key, True, now_ns - took_ns)
    stats.first(key, now_ns - took_ns, took_ns, size, now_ns)
    stats.done()


def failed(stats: Stats, now_ns: int, seconds: float = 0.002, key: int = 1) -> None:
    began_ns = now_ns - int(seconds * S)
    stats.begin(key, True, began_ns)
    stats.failed(key, began_ns, True, now_ns)
    stats.done()
