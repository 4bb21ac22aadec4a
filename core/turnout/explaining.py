"""`turnout explain` and `turnout cache`: questions put to a config, or to a gateway that runs."""

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

__all__ = ["ask_admin", "ask_file", "ask_gateway", "purge_gateway", "show"]

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
    path = f"/admin/routes/{quote(fields['route'], safe='')}?{urlencode(query)}"
    workers: list[dict[str, Any]] = ask_admin(admin, path, key)["workers"]
    return workers


def ask_admin(admin: str, path: str, key: str, method: str = "GET", wait_s: float = WAIT_S) -> dict[str, Any]:
    """What the admin listener answers. Raises OSError, and ValueError for what it answers otherwise."""
    found: dict[str, Any] = json.loads(fetch_admin(admin, path, key, method, wait_s))
    return found


def fetch_admin(admin: str, path: str, key: str, method: str = "GET", wait_s: float = WAIT_S) -> bytes:
    """The same, its bytes."""
    if urlsplit(admin).scheme not in ("http", "https"):
        raise ValueError(f"{admin!r} is not the URL of an admin listener")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(admin.rstrip("/") + path, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=wait_s) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as wrong:
        raise ValueError(f"the gateway answered {wrong.code}: {wrong.read(2000).decode(errors='replace')}") from None


def purge_gateway(admin: str, fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Lets kept answers go, or with `dry` counts them. Raises as `ask_admin`."""
    query = {
        name: str(value).lower() if isinstance(value, bool) else value for name, value in fields.items() if value != ""
    }
    return ask_admin(admin, f"/admin/cache/purge?{urlencode(query)}", key, "POST", 30.0)
