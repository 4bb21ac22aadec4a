"""The demo's config: what a YAML file would say, as a dict."""

from __future__ import annotations

from typing import Any

KEY_VARIABLE = "TURNOUT_DEMO_KEY"
# Another one: the config check refuses a client key that also opens the admin listener.
ADMIN_KEY_VARIABLE = "TURNOUT_DEMO_ADMIN_KEY"

# Quick enough that the tour is not a wait, slow enough that a stream is seen to stream.
_PACE: dict[str, Any] = {"ttft_ms": 140, "tokens_per_s": 75, "answer_tokens": 50}
_MODELS = ["sim-small", "sim-large", "sim-embed"]


def demo_config(state_dir: str, host: str = "127.0.0.1", port: int = 0) -> dict[str, Any]:
    """The whole config; port 0 = the system picks one. Both keys come from the environment."""
    return {
        "listen": {"host": host, "port": port},
        "auth": {"keys": [{"name": "demo", "key": f"env:{KEY_VARIABLE}", "direct": True}]},
        "admin": {"host": "127.0.0.1", "port": 0, "key": f"env:{ADMIN_KEY_VARIABLE}"},
        "state": {"dir": state_dir},
        # The tour has the terminal; a JSON line per request in between would spoil it.
        "log": {"requests": "off"},
        "providers": {
            # The same seed: two deployments of one model, so a fallback changes nothing.
            "sim-a": {"kind": "simulated", "seed": 7, "models": _MODELS, **_PACE},
            "sim-b": {"kind": "simulated", "seed": 7, "models": _MODELS, **_PACE, "ttft_ms": 180},
            "sim-c": {"kind": "simulated", "seed": 11, "models": _MODELS, **_PACE, "answer_tokens": 20},
        },
        "routes": [
            {
                "name": "chat",
                "match": {"model": "fast"},
                "routing_policy": {"kind": "ordered"},
                "targets": [
                    {"provider": "sim-a", "model": "sim-large"},
                    {"provider": "sim-b", "model": "sim-large"},
                ],
                "retries": {"max": 2, "budget": 0.5},
            },
            {
                "name": "solo",
                "match": {"model": "solo"},
                "targets": [{"provider": "sim-c", "model": "sim-small"}],
                "retries": {"max": 2, "budget": 0.5},
            },
            {
                "name": "kept",
                "match": {"model": "kept"},
                "routing_policy": {"kind": "least-latency"},
                "targets": [
                    {"provider": "sim-a", "model": "sim-large"},
                    {"provider": "sim-b", "model": "sim-large"},
                ],
                "cache": {"exact": {"ttl_s": 300}, "semantic": {"checks": {"share": 0, "first": 0}}},
            },
            {
                "name": "embed",
                "match": {"model": "embed"},
                "targets": [
                    {"provider": "sim-a", "model": "sim-embed"},
                    {"provider": "sim-b", "model": "sim-embed"},
                ],
            },
        ],
        # Made-up prices of an ordinary order, so that there is a cost to show.
        "models": {
            "sim-large": {"input_usd_per_mtok": "2.50", "output_usd_per_mtok": "10.00"},
            "sim-small": {"input_usd_per_mtok": "0.15", "output_usd_per_mtok": "0.60"},
            "sim-embed": {"kind": "embedding", "input_usd_per_mtok": "0.02"},
        },
    }
