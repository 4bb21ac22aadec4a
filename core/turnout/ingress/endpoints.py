"""Path to handler. Each handler decides for itself who may call it: nothing is open by default."""

import asyncio
import itertools
import os
import re
from random import Random
from typing import Any

import msgspec

from ..cache.wish import NAMES as WISHES
from ..clock import Clock
from ..errors import Fault
from ..exchange import Exchange, Send, Surface, Trace
from ..flow import JSON_HEADER, Flow
from ..native import HeadReader
from ..wire.headers import KEY_HEADERS, OWN_HEADERS, TO_UPSTREAM
from .caller import Callers, ServerCaller
from .incoming import Arrival

SURFACES: dict[str, Surface] = {
    s.path: s
    for s in (
        Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat"),
        Surface("completions", "/v1/completions", "/completions", ("prompt",), True, "text_completion"),
        Surface("embeddings", "/v1/embeddings", "/embeddings", ("input",), False, "embeddings"),
    )
}
MODELS = "/v1/models"
HEALTH = "/healthz"
READY = "/readyz"
FEEDBACK = "/v1/cache/feedback"

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
# What is done with a request header: the first five are HeadReader's own. All others are passed over.
_AUTHORIZATION, _HOST, _LENGTH, _OTHER_KEY, _ENCODING, _OWN, _TRACE, _WISH, _FORWARD = range(9)
_READ: dict[bytes, int] = {
    b"authorization": _AUTHORIZATION,
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"content-encoding": _ENCODING,
    b"traceparent": _TRACE,
    **dict.fromkeys(KEY_HEADERS - {b"authorization"}, _OTHER_KEY),
    **dict.fromkeys(OWN_HEADERS, _OWN),
    **dict.fromkeys(WISHES, _WISH),
    **dict.fromkeys(TO_UPSTREAM, _FORWARD),
}
MOST_HEADERS = 90  # hyper itself answers 431 without a body beyond 100: below that the words are ours
# What HeadReader finds wrong with a head -> kind and message of the Fault.
_BAD_HEAD = {
    "headers": ("bad_header", f"more than {MOST_HEADERS} headers"),
    "hosts": ("bad_host", "more than one Host header"),
    "no_host": ("bad_host", "the Host header is missing"),
    "host": ("bad_host", "the Host header is not valid"),
    "length": ("bad_header", "content-length must be a number"),
    "encoding": ("bad_encoding", "compressed request bodies are not accepted; send them as they are"),
}
# RFC 9110, 15.5.6: a 405 names what is allowed.
_ALLOW_POST = ((b"allow", b"POST"),)
_ALLOW_GET = ((b"allow", b"GET, HEAD"),)
MOST_FEEDBACK = 4096
MOST_OWN = 512  # of an x-turnout header: they end up in logs and traces


class Endpoints:
    """What one worker serves. `flow` is exchanged as a whole when a new config comes."""

    def __init__(self, flow: Flow, clock: Clock, callers: Callers, rng: Random, sample: float) -> None:
        self.flow = flow
        self.sample = sample
        self.ready = True
        self._now = clock.now_ns
        self._wall = clock.wall_ns
        self._callers = callers
        self._loop = asyncio.get_running_loop()
        self._rng = rng
        self._reader = HeadReader(_READ, MOST_HEADERS)
        # Unique across restarts and workers, and cheap: a random start for the process, then a counter.
        self._ids = map(f"req_{os.urandom(8).hex()}%07x".__mod__, itertools.count(1))

    async def serve(self, incoming: Arrival) -> None:
        """One request."""
        path = incoming.path
        surface = SURFACES.get(path)
        if surface is None:
            await self._small(incoming, path)
            return
        started_ns = self._now()
        flow, callers = self.flow, self._callers
        x = Exchange(
            id=next(self._ids),
            surface=surface,
            started_ns=started_ns,
            wall_ns=self._wall(),
            config_version=flow.version,
        )
        method = incoming.method
        if flow.heeds_headers:
            x.headers = incoming.headers()
        try:
            try:
                key, length, rest = incoming.head(self._reader)
            except ValueError as exc:
                raise Fault(*_BAD_HEAD[exc.args[0]]) from None
            if rest or self.sample:
                self._read_rest(x, rest)
            if method != "POST":
                raise Fault("bad_method", f"{method[:20]} is not allowed here; use POST", headers=_ALLOW_POST)
        except Fault as fault:
            x.fault = fault
            await flow.refuse(x, fault, ServerCaller(incoming, -1, started_ns, None, callers.draining))
            flow.settle(x)
            return
        task = asyncio.current_task(self._loop)  # given the loop it asks the system for nothing
        caller = ServerCaller(incoming, length, started_ns, task, callers.draining)
        callers.add(caller)
        try:
            await flow.handle(x, key, caller)
        except asyncio.CancelledError:
            if not caller.gone:
                raise
        finally:
            callers.remove(caller)

    def _read_rest(self, x: Exchange, rest: list[tuple[int, bytes, bytes]]) -> None:
        """The headers that not every request has. Raises Fault."""
        for kind, name, value in rest:
            if kind == _OWN:
                self._own_header(x, name, value)
            elif kind == _TRACE:
                self._traceparent(x, value)
            elif kind == _WISH:
                x.wishes = (*x.wishes, (name, value))
            else:
                x.forward = [*x.forward, (name, value)]
        if self.sample and x.trace is None and self._rng.random() < self.sample:
            x.trace = Trace(f"{self._rng.getrandbits(128) or 1:032x}", "")

    def _traceparent(self, x: Exchange, value: bytes) -> None:
        """A sampled W3C trace context is carried on when traces are exported; anything malformed is ignored."""
        found = _TRACEPARENT.match(value)
        if found and self.sample and int(found[3], 16) & 1 and found[1] != b"0" * 32 and found[2] != b"0" * 16:
            x.trace = Trace(found[1].decode(), found[2].decode())

    def _own_header(self, x: Exchange, name: bytes, value: bytes) -> None:
        """`x-turnout-*` of a request. None of them can choose a host or a credential; unknown ones are ignored."""
        if len(value) > MOST_OWN:
            raise Fault("bad_header", f"'{name.decode()}' is longer than {MOST_OWN} bytes")
        text = value.decode("latin-1")
        if name == b"x-turnout-route":
            x.asked_route = text
        elif name == b"x-turnout-session":
            x.session = text
        elif name == b"x-turnout-tags":
            x.tags = text
        elif name == b"x-turnout-prompt-version":
            x.prompt_version = text
        elif name == b"x-turnout-metadata":
            x.metadata = text.lower() in ("1", "true", "yes")
        elif name == b"x-turnout-timeout-ms":
            if not text.isdecimal() or not 1 <= int(text) <= 86_400_000:
                raise Fault("bad_header", "'x-turnout-timeout-ms' must be a whole number of milliseconds above 0")
            x.timeout_ms = int(text)

    # ---- what is not a model surface

    async def _small(self, incoming: Arrival, path: str) -> None:
        method, send = incoming.method, incoming.send
        request_id = next(self._ids)
        try:
            try:
                key, length, _ = incoming.head(self._reader)
            except ValueError as exc:
                raise Fault(*_BAD_HEAD[exc.args[0]]) from None
            if path == FEEDBACK:
                if method != "POST":
                    raise Fault("bad_method", f"{method[:20]} is not allowed here; use POST", headers=_ALLOW_POST)
                who = self.flow.keyring.admit(key)
                body = await ServerCaller(incoming, length, self._now(), None, False).read_body(MOST_FEEDBACK)
                await _answer(send, 200, {"known": self.flow.feedback(who.tenant, body)}, request_id)
                return
            if path in (HEALTH, READY):
                if method not in ("GET", "HEAD"):
                    raise Fault("bad_method", f"{method[:20]} is not allowed here; use GET", headers=_ALLOW_GET)
                good = path == HEALTH or self.ready
                await _answer(send, 200 if good else 503, {"status": "ok" if good else "draining"}, request_id)
                return
            if path == MODELS or path.startswith(MODELS + "/"):
                if method not in ("GET", "HEAD"):
                    raise Fault("bad_method", f"{method[:20]} is not allowed here; use GET", headers=_ALLOW_GET)
                await _answer(send, 200, self._models(key, path[len(MODELS) + 1 :]), request_id)
                return
            raise Fault("no_path", f"unknown request URL: {method[:20]} {path[:200]}")
        except Fault as fault:
            body = fault.to_body()
            headers = [
                JSON_HEADER,
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", request_id.encode()),
                *fault.headers,
            ]
            if fault.status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            await send({"type": "http.response.start", "status": fault.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _models(self, key: bytes | None, wanted: str) -> dict[str, Any]:
        """What this key may ask for, in a shape that OpenAI's and Anthropic's SDKs both take."""
        names = self.flow.routes.names_for(self.flow.keyring.admit(key))
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "turnout"} for name in names]
        if wanted:
            for row in rows:
                if row["id"] == wanted:
                    return row
            raise Fault(
                "no_route", f"the model {wanted[:200]!r} does not exist or you do not have access to it", param="model"
            )
        return {
            "object": "list",
            "data": rows,
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }


async def _answer(send: Send, status: int, body: dict[str, Any], request_id: str) -> None:
    data = msgspec.json.encode(body)
    headers = [JSON_HEADER, (b"content-length", b"%d" % len(data)), (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
