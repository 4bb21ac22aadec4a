"""The tour: a visible list of stops, walked in order against a running gateway.

It talks over real sockets like any client and shows only what really happened. A stop that
does not behave is printed as FAILED with the reason; the walk goes on, and the tour as a
whole has failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx

from .screen import Screen
from .stops import (
    Skipped,
    Stop,
    Visit,
    Wrong,
    cut_over,
    fallback,
    kept,
    metrics,
    plain_chat,
    retry,
    routing,
    streamed_chat,
)

# Another feature = another line here. Metrics are last: they count what the others did.
STOPS: tuple[Stop, ...] = (
    Stop("A chat", 'route "chat": sim-a, then sim-b', plain_chat),
    Stop("A streamed chat", "as it arrives", streamed_chat),
    Stop("A fallback", "sim-a is broken: 503 to everything", fallback),
    Stop("A cut-over", "sim-a dies in the middle of a stream", cut_over),
    Stop("A retry", 'route "solo" has one provider, which fails once', retry),
    Stop("A kept answer", 'route "kept" has an exact and a semantic cache', kept),
    Stop("The routing", "what would be done with a request, and why", routing),
    Stop("The metrics", "GET /metrics on the admin listener", metrics),
)


def run_tour(
    base_url: str,
    key: str,
    controls: Mapping[str, str],
    admin_url: str | None = None,
    admin_key: str | None = None,
    screen: Screen | None = None,
) -> bool:
    """Walk all stops; whether every one behaved.

    `base_url` is the gateway's without /v1; `controls`: provider name -> its simulator's URL
    without /v1; `admin_url`, `admin_key`: the admin listener, for /metrics.
    """
    screen = screen or Screen()
    failed = 0
    # Everything is on loopback: a proxy from the environment must not get in between.
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=30.0, trust_env=False) as gateway:
        visit = Visit(gateway, admin_url, admin_key, controls, screen)
        for number, stop in enumerate(STOPS, 1):
            screen.title(number, stop.title, stop.aside)
            failed += not _visited(visit, stop)
    screen.line()
    if failed:
        screen.failed(f"{failed} of {len(STOPS)} stops did not behave")
    else:
        screen.good(f"all {len(STOPS)} stops behaved, {visit.asked} requests went through the gateway")
    return failed == 0


def _visited(visit: Visit, stop: Stop) -> bool:
    try:
        visit.screen.good(stop.run(visit))
    except Skipped as reason:
        visit.screen.skipped(str(reason))
    except Wrong as wrong:
        visit.screen.failed(str(wrong))
        return False
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        # A broken connection, or an answer that does not look like one.
        visit.screen.failed(f"{type(error).__name__}: {error}")
        return False
    return True
