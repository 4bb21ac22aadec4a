"""`turnout demo`: the whole gateway with simulated providers, and a short tour of it.

config   the demo's config, the same schema as a YAML file
tour     the list of stops, and the walk along them
stops    the stops: each does something over real sockets and checks what it saw
screen   how it looks in a terminal
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .config import ADMIN_KEY_VARIABLE, KEY_VARIABLE, demo_config
from .screen import Screen
from .tour import run_tour


class Gateway(Protocol):
    """A running gateway, as the command line hands it over."""

    @property
    def base_url(self) -> str: ...  # http://127.0.0.1:PORT

    @property
    def admin_url(self) -> str | None: ...

    @property
    def simulators(self) -> Mapping[str, str]: ...  # provider -> http://127.0.0.1:PORT/v1


StartGateway = Callable[[dict[str, Any], str], AbstractContextManager[Gateway]]


def demo(once: bool, engine: str, start_gateway: StartGateway) -> int:
    """Start, tour, and then end (`once`) or serve until Ctrl-C. Returns the exit code:
    with `once` 0 only if every stop of the tour behaved."""
    screen = Screen()
    own_key = KEY_VARIABLE not in os.environ
    key = os.environ.setdefault(KEY_VARIABLE, "sk-demo-" + secrets.token_hex(12))
    admin_key = os.environ.setdefault(ADMIN_KEY_VARIABLE, "sk-admin-" + secrets.token_hex(12))
    # A directory of its own, gone afterwards: a demo leaves nothing behind.
    with (
        tempfile.TemporaryDirectory(prefix="turnout-demo-") as state_dir,
        start_gateway(demo_config(state_dir), engine) as gateway,
    ):
        controls = {name: url.removesuffix("/v1") for name, url in gateway.simulators.items()}
        screen.line(f"Turnout at {screen.bold(gateway.base_url)}, engine {engine}, in front of")
        screen.line(f"{len(controls)} simulated providers on loopback: {', '.join(sorted(controls))}")
        good = run_tour(gateway.base_url, key, controls, gateway.admin_url, admin_key, screen)
        if once:
            return 0 if good else 1
        _show_how_to_try(screen, gateway.base_url, key if own_key else f"${KEY_VARIABLE}", controls)
        _wait_for_interrupt()
    return 0


def _show_how_to_try(screen: Screen, base_url: str, key: str, controls: dict[str, str]) -> None:
    """`key` is a key made for this run, or the name of the variable that holds the user's."""
    screen.line()
    screen.line(screen.bold("Now you. The gateway keeps running until Ctrl-C."))
    screen.line()
    screen.line(f'  curl -N {base_url}/v1/chat/completions -H "authorization: Bearer {key}" \\')
    body = '{"model":"fast","stream":true,"messages":[{"role":"user","content":"Where do trains sleep?"}]}'
    screen.line(f"       -H 'content-type: application/json' -d '{body}'")
    screen.line()
    python_key = f'os.environ["{KEY_VARIABLE}"]' if key.startswith("$") else f'"{key}"'
    screen.line(f'  client = openai.OpenAI(base_url="{base_url}/v1", api_key={python_key})')
    screen.line('  client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "Hi"}])')
    if "sim-a" in controls:
        screen.line()
        screen.line("  Break the first provider, ask again (add -i to see the headers), and mend it with '[]':")
        screen.line(f'  curl {controls["sim-a"]}/__faults -d \'[{{"kind":"status","status":503}}]\'')


def _wait_for_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
