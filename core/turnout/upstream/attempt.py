"""One attempt against one provider account: ask, read the head, say what a refusal means."""

import email.utils
import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ..errors import Fault
from ..exchange import Headers, Usage
from ..wire.answer import read_answer
from .call import Call, Request
from .connect import Origin

MAX_ERROR_BYTES = 1024 * 1024
# What a provider says in an error is shown to the client up to here.
MAX_MESSAGE = 2_000
LEAST_SECRET = 8  # characters: a shorter header value is no secret, and would be found in any text


class ErrorObject(msgspec.Struct):
    """What providers put into errors, in all the dialects seen in recorded traffic."""

    message: Any = None
    code: Any = None
    type: Any = None
    param: Any = None
    status_code: Any = None


class ErrorEnvelope(msgspec.Struct):
    error: Any = None
    message: Any = None
    detail: Any = None


_decode_envelope = msgspec.json.Decoder(ErrorEnvelope).decode


class Client(Protocol):
    """What a port needs of a client (client.py and native_client.py satisfy it)."""

    def prepare(self, origin: Origin, target: str, lines: list[tuple[str, str]]) -> Any: ...
    def open_nowait(self, origin: Origin, head: Any, request: Request) -> Call | None: ...
    async def open(self, origin: Origin, head: Any, request: Request) -> Call: ...


class OpenAIPort:
    """The way to one account of an OpenAI-wire provider. Heads are put together once per config."""

    def __init__(
        self, client: Client, origin: Origin, credential: dict[str, str], *, include_usage: bool, user_agent: str
    ) -> None:
        self._client = client
        self._origin = origin
        self._lines = [
            ("host", origin.authority),
            ("user-agent", user_agent),
            # Compressed answers would have to be opened to find usage and events; loopback and data centres do not need it.
            ("accept-encoding", "identity"),
            ("content-type", "application/json"),
            *origin.proxy_lines,
            *credential.items(),
        ]
        self._heads: dict[tuple[str, bool], Any] = {}
        # What must not come back in an error: the key, and whatever else the config sends along.
        values = [value.removeprefix("Bearer ") for value in credential.values()]
        self._ours = tuple(value.encode() for value in values if len(value) >= LEAST_SECRET)
        self.include_usage = include_usage

    def _head(self, path: str, stream: bool) -> Any:
        head = self._heads.get((path, stream))
        if head is None:
            o = self._origin
            accept = "text/event-stream" if stream else "application/json"
            target = f"{o.target_prefix}{o.base_path}{path}"
            head = self._heads[path, stream] = self._client.prepare(o, target, [*self._lines, ("accept", accept)])
        return head

    def scrub(self, body: bytes) -> bytes:
        """An error body without our key: some providers repeat what was presented to them."""
        for value in self._ours:
            if value in body:
                body = body.replace(value, b"***")
        return body

    def open_nowait(self, request: Request) -> Call | None:
        """Send the request, if that needs no waiting; else None."""
        return self._client.open_nowait(self._origin, self._head(request.path, request.stream), request)

    async def open(self, request: Request) -> Call:
        """Send the request on a connection of its own. Raises Fault connect, connect_timeout or tls."""
        return await self._client.open(self._origin, self._head(request.path, request.stream), request)

    async def whole(self, request: Request, most: int = 0) -> tuple[bytes, Call]:
        """Send the request and wait for all of the answer, of at most `most` bytes. Raises the call's Fault."""
        call = self.open_nowait(request) or await self.open(request)
        try:
            try:
                return await call.wait_whole(most), call
            except Fault:
                if not call.stale:
                    raise
                call = await self.open(request)
                return await call.wait_whole(most), call
        except BaseException:
            call.close()
            raise


def told(call: Call, body: bytes, scrub: Callable[[bytes], bytes]) -> tuple[str | None, Usage | None] | None:
    """Finish reason and usage of a whole answer; None: it is compressed, nobody looks into it. Raises Fault for half a body
    or an error under status 200."""
    if call.encoding not in (b"", b"identity"):
        return None
    try:
        finish, error, usage = read_answer(body)
    except ValueError:
        raise Fault("bad_answer", "the upstream's answer is not valid JSON", upstream_status=call.status) from None
    if error:
        raise event_fault(msgspec.Raw(error), scrub)
    return finish, usage


def is_json(media_type: bytes) -> bool:
    return media_type == b"application/json" or media_type.endswith(b"+json")


def passed_headers(headers: Headers, allowed: frozenset[bytes]) -> Headers:
    return [pair for pair in headers if pair[0] in allowed]  # the names are in lower case already


def refusal(status: int, body: bytes, media_type: bytes, headers: list[tuple[bytes, bytes]], wall_s: float) -> Fault:
    """What a status other than 2xx means (DESIGN: whose fault, and where trying again makes sense)."""
    message, code = describe(body) if is_json(media_type) or body[:1] == b"{" else ("", "")
    wait = retry_after_s(headers, wall_s)
    if status == 429:
        # An exhausted account will not recover in this request; a rate limit may.
        retry = "other" if code == "insufficient_quota" else None
        return Fault(
            "rate_limited",
            "the upstream limits our rate",
            said=message,
            retry_after_s=wait,
            upstream_status=429,
            retry=retry,
        )
    if status in (503, 529):
        return Fault(
            "overloaded", "the upstream is overloaded", said=message, retry_after_s=wait, upstream_status=status
        )
    if status >= 500 or status == 408:
        return Fault("server_error", f"the upstream failed with status {status}", said=message, upstream_status=status)
    if status in (401, 403):
        # Not the caller's key: ours. The provider's words may name our account, so they are not handed on.
        return Fault("credential", "the upstream refused the gateway's credential", upstream_status=status)
    if status == 404:
        return Fault("not_found", "the upstream does not know this model or endpoint", upstream_status=404)
    if 300 <= status < 400:
        return Fault(
            "protocol", "the upstream answered with a redirect, which is never followed", upstream_status=status
        )
    if code != TOO_LONG and status in (400, 413, 422) and _TOO_LONG.search(message):
        code = TOO_LONG
    # Whatever the content type: DeepSeek says `application/octet-stream`.
    own_words = body if has_error_object(body) else b""
    return Fault(
        "refused",
        f"the upstream refused the request with status {status}",
        said=message,
        upstream_status=status,
        body=own_words,
        code=code or None,
    )


# A prompt that is too long, in the words of those who have no code for it: vLLM, Anthropic, Mistral, Google, Together.
TOO_LONG = "context_length_exceeded"
_TOO_LONG = re.compile(
    r"maximum context length|context length exceeded|context window|prompt is too long|too large for model with"
    r"|exceeds the maximum number of tokens|input token count .{0,40}exceeds|longer than the model's context",
    re.IGNORECASE,
)


def has_error_object(body: bytes) -> bool:
    try:
        return isinstance(_decode_envelope(body).error, dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def describe(body: bytes) -> tuple[str, str]:
    """Message and code of an error body in whatever dialect it is; empty strings where there is none."""
    try:
        e = _decode_envelope(body)
    except (msgspec.DecodeError, RecursionError):
        return "", ""
    inner = e.error if e.error is not None else e.message if e.message is not None else e.detail
    if isinstance(inner, dict):
        message, code = inner.get("message", ""), inner.get("code") or inner.get("type") or ""
    else:
        message, code = inner, ""
    if message is not None and not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return (message or "")[:MAX_MESSAGE], str(code)[:100]


def event_fault(raw: msgspec.Raw, scrub: Callable[[bytes], bytes]) -> Fault:
    """The fault of an error object under status 200, in a stream or a whole answer; `scrub` takes our key out."""
    error = scrub(bytes(raw))
    message, code = describe(b'{"error":' + error + b"}")
    try:
        e = msgspec.json.decode(error, type=ErrorObject)
        status = next((int(v) for v in (e.status_code, e.code) if isinstance(v, int) and 400 <= v < 600), 0)
    except (msgspec.DecodeError, RecursionError):
        status = 0
    if status in (400, 413, 422):
        return Fault(
            "refused", "the upstream refused the request", said=message, upstream_status=status, code=code or None
        )
    if status == 429 or code in ("rate_limit_exceeded", "rate_limit_error"):
        return Fault("rate_limited", "the upstream limits our rate", said=message, upstream_status=429)
    return Fault(
        "server_error", "the upstream reported an error inside its stream", said=message, upstream_status=status
    )


def retry_after_s(headers: list[tuple[bytes, bytes]], wall_s: float) -> float | None:
    """Seconds to stay away, from `retry-after-ms` or `retry-after` (a number or a date); None if not said."""
    found: float | None = None
    for name, value in headers:
        lower = name.lower()
        try:
            if lower == b"retry-after-ms":
                found = float(value) / 1000
                if found > 0:  # Azure sends 0 beside a true retry-after
                    return found
            elif lower == b"retry-after" and not found:
                found = float(value)
        except ValueError:
            if lower == b"retry-after":
                try:
                    found = max(0.0, email.utils.parsedate_to_datetime(value.decode("latin-1")).timestamp() - wall_s)
                except (ValueError, TypeError):
                    continue
    return found if found is not None and 0 <= found < 1e7 else None
