"""`turnout explain`: the question put to a config, or to a gateway that runs."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from .app import App
from .config.load import Loaded
from .ingress.question import Question
from .route.explain import show

__all__ = ["ask_file", "ask_gateway", "show"]

WAIT_S = 5.0


def ask_file(loaded: Loaded, fields: Mapping[str, Any], headers: dict[str, str], dev: bool) -> dict[str, Any]:
    """What a gateway that has just begun with this config would do."""

    async def ask() -> dict[str, Any]:
        app = App(loaded.config, dev=dev)
        try:
            return app.explain(Question(**fields, headers=headers))
        finally:
            app.close()

    return asyncio.run(ask())


def ask_gateway(admin: str, fields: Mapping[str, Any], headers: Mapping[str, str], key: str) -> list[dict[str, Any]]:
    """What each worker of a running gateway would do. Raises OSError, and ValueError for what it answers otherwise."""
    if urlsplit(admin).scheme not in ("http", "https"):
        raise ValueError(f"{admin!r} is not the URL of an admin listener")
    if not fields["route"]:
        raise ValueError("a running gateway is asked about a route: give --route")
    query = {k: str(v).lower() if isinstance(v, bool) else v for k, v in fields.items() if k != "route"}
    query |= {f"header.{name}": value for name, value in headers.items()}
    url = f"{admin.rstrip('/')}/admin/routes/{quote(fields['route'], safe='')}?{urlencode(query)}"
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=WAIT_S) as answer:
            workers: list[dict[str, Any]] = json.load(answer)["workers"]
            return workers
    except urllib.error.HTTPError as wrong:
        raise ValueError(f"the gateway answered {wrong.code}: {wrong.read(2000).decode(errors='replace')}") from None
