"""The admin listener: a second socket with a key of its own, answered by the supervisor for all workers.

GET /healthz, GET /metrics (Prometheus), GET /admin/status, POST /admin/reload, GET /admin/routes and /admin/routes/NAME
(what each worker would do with a request now), GET /admin/cache (hits by route and tenant), GET
/admin/cache/semantic (what each worker's meters know), GET
/admin/cache/calibration (PNG), POST /admin/cache/purge (`dry=false` does it). A data key opens none of them.
"""

import asyncio
import hmac
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ..cache.purge import Purge
from ..cache.semantic.plot import reliability
from ..config.model import Admin as AdminSpec
from ..errors import error_body
from ..secret import Secret
from ..telemetry import metrics
from .question import Question

if TYPE_CHECKING:
    from .supervisor import Supervisor

HEAD_S = 5.0
MOST_HEAD = 16 * 1024
MOST_CONNECTIONS = 64
ASK_S = 5.0
PURGE_S = 30.0  # how long workers have to look through their caches


class Admin:
    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._key: Secret | None = None
        self._server: asyncio.Server | None = None
        self._open = 0
        self.port = 0

    async def start(self, spec: AdminSpec) -> None:
        self._key = spec.key
        self._server = await asyncio.start_server(self._serve, spec.host, spec.port, limit=MOST_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection: scrapers come every few seconds, keep-alive would buy nothing."""
        self._open += 1
        try:
            if self._open > MOST_CONNECTIONS:
                return
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, media_type, body = await self._answer(head)
            writer.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                % (status, b"OK" if status == 200 else b"Error", media_type, len(body))
                + body
            )
            async with asyncio.timeout(HEAD_S):
                await writer.drain()
                # Closing with something unread, the body of a POST say, would be a reset that destroys the answer.
                writer.write_eof()
                while await reader.read(MOST_HEAD):
                    pass
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> tuple[int, bytes, bytes]:
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        url = urlsplit(rest.partition(" ")[0])
        path = url.path
        headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
        if path == "/healthz":
            return 200, b"application/json", b'{"status":"ok"}'
        if not self._may(headers):
            return _error(
                401, "the admin listener needs its own key: 'Authorization: Bearer <admin.key>'", "invalid_api_key"
            )
        if (method, path) == ("GET", "/metrics"):
            return 200, b"text/plain; version=0.0.4; charset=utf-8", metrics.text(await self._supervisor.snapshot())
        if (method, path) == ("GET", "/admin/status"):
            return 200, b"application/json", msgspec.json.encode(self._status())
        if (method, path) == ("POST", "/admin/reload"):
            good = self._supervisor.reload()
            return 200 if good else 409, b"application/json", msgspec.json.encode({"reloaded": good, **self._status()})
        if method == "GET" and path == "/admin/routes":
            names = [route.name for route in self._supervisor.loaded.config.routes]
            reports = {name: await self._explained(Question(route=name)) for name in names}
            return 200, b"application/json", msgspec.json.encode(reports)
        if method == "GET" and path.startswith("/admin/routes/"):
            return await self._explain(unquote(path.removeprefix("/admin/routes/")), url.query)
        if (method, path) == ("GET", "/admin/cache"):
            return 200, b"application/json", msgspec.json.encode(cache_view(await self._supervisor.snapshot()))
        if (method, path) == ("GET", "/admin/cache/semantic"):
            return await self._semantic(dict(parse_qsl(url.query)))
        if (method, path) == ("GET", "/admin/cache/calibration"):
            return await self._calibration(dict(parse_qsl(url.query)))
        if (method, path) == ("POST", "/admin/cache/purge"):
            return await self._purge(url.query)
        return _error(404, f"unknown request URL: {method[:20]} {path[:200]}", "unknown_url")

    async def _explain(self, name: str, query: str) -> tuple[int, bytes, bytes]:
        """`?model=&key=&tags=&session=&stream=&bytes=&tools=&header.NAME=` describe the request."""
        fields: dict[str, Any] = {"route": name, "headers": {}}
        for field, value in parse_qsl(query, keep_blank_values=True):
            if field.startswith("header."):
                fields["headers"][field.removeprefix("header.")] = value
            else:
                fields[field] = value
        if all(route.name != name for route in self._supervisor.loaded.config.routes):
            return _error(404, f"no route is named {name[:200]!r}", "unknown_route")
        try:
            question = msgspec.convert(fields, Question, strict=False)
        except msgspec.ValidationError as wrong:
            return _error(400, str(wrong), "bad_query")
        return 200, b"application/json", msgspec.json.encode(await self._explained(question))

    async def _explained(self, question: Question) -> dict[str, Any]:
        """What every worker would do with such a request."""
        return _by_worker(await self._supervisor.ask("explain", msgspec.to_builtins(question)))

    async def _purge(self, query: str) -> tuple[int, bytes, bytes]:
        """`?entry=&tag=&model=&key=&route=&tenant=&dry=`."""
        try:
            what = msgspec.convert(dict(parse_qsl(query)), Purge, strict=False)
        except msgspec.ValidationError as wrong:
            return _error(400, str(wrong), "bad_query")
        if said := what.wrong():
            return _error(400, said, "bad_query")
        reports = await self._supervisor.ask("purge", msgspec.to_builtins(what), PURGE_S)
        names = ("entries", "bytes", "questions")
        total = {name: sum(report.get(name, 0) for report in reports.values()) for name in names}
        return 200, b"application/json", msgspec.json.encode({"dry": what.dry, **total, "workers": len(reports)})

    async def _semantic(self, asked: dict[str, str]) -> tuple[int, bytes, bytes]:
        """`?entry=` of one kept question."""
        entry = asked.get("entry", "")
        if entry and (said := Purge(entry=entry).wrong()):
            return _error(400, said, "bad_query")
        views = await self._supervisor.ask("semantic", {"entry": entry}, ASK_S)
        return 200, b"application/json", msgspec.json.encode(_by_worker(views))

    async def _calibration(self, asked: dict[str, str]) -> tuple[int, bytes, bytes]:
        """`?route=&tenant=`: a picture of the worker that knows most; all know what the others knew seconds ago."""
        what = {"calibration": asked.get("route", ""), "tenant": asked.get("tenant", "")}
        views = await self._supervisor.ask("semantic", what, ASK_S)
        rows = [row for view in views.values() for row in view.get("calibration", ()) if row["bins"]]
        if not rows:
            return _error(404, "nothing has been asked of a semantic cache there: name its `route`", "unknown_route")
        best = max(rows, key=lambda row: sum(b["labels"] for b in row["bins"]))
        return 200, b"image/png", reliability(best["bins"], best["threshold"])

    def _may(self, headers: dict[str, str]) -> bool:
        if self._key is None:  # only possible on a loopback address, see config/check.py
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key.reveal().encode())

    def _status(self) -> dict[str, Any]:
        s = self._supervisor
        return {
            "config": {"version": s.version, "digest": s.loaded.digest, "name": s.loaded.name},
            "workers": [
                {
                    "number": slot.number,
                    "pid": slot.process.pid if slot.process else None,
                    "ready": slot.ready.is_set(),
                    "restarts": slot.restarts,
                    "config_version": slot.applied,
                }
                for slot in s.slots
            ],
            "redis": s.sharing.status() if s.sharing is not None else None,
        }


def cache_view(snapshot: metrics.Snapshot) -> dict[str, Any]:
    """What the caches of all workers did, by route and tenant."""

    def by(name: str, labels: tuple[str, ...] = ()) -> float:
        found = snapshot.get(name, {}).get(labels, 0)
        return found if not isinstance(found, list) else 0

    tenants: dict[tuple[str, str], dict[str, Any]] = {}
    for (route, tenant, outcome), count in snapshot.get("turnout_cache_requests_total", {}).items():
        row = tenants.setdefault(
            (route, tenant), {"route": route, "tenant": tenant, "hits": 0, "misses": 0, "bypasses": 0}
        )
        row[{"miss": "misses", "bypass": "bypasses"}.get(outcome, "hits")] += count
    for row in tenants.values():
        looked = row["hits"] + row["misses"]
        row["hit_rate"] = round(row["hits"] / looked, 4) if looked else None
    saved = snapshot.get("turnout_cache_saved_usd_total", {})
    return {
        "entries": by("turnout_cache_entries"),
        "bytes": by("turnout_cache_bytes"),
        "saved_usd": {route: round(usd, 9) for (route,), usd in saved.items() if not isinstance(usd, list)},
        "by_tenant": [row for _, row in sorted(tenants.items())],
    }


def _by_worker(reports: dict[int, Any]) -> dict[str, Any]:
    return {"workers": [{"number": number, **report} for number, report in sorted(reports.items())]}


def _error(status: int, message: str, code: str) -> tuple[int, bytes, bytes]:
    return status, b"application/json", error_body(message, "invalid_request_error", None, code)
