"""A provider that fails in every way on purpose: OpenAI's wire on raw sockets, one name per fault.

Every fault has a name in `FAULTS`, once. A request gets the fault that

- its path names: `http://127.0.0.1:9001/cut-reset:after=3/v1` as base_url fails each request like that;
- else `script` names next (a list that is used up);
- else `default`, which may also be a function of the request.

A fault is a name, or `name:key=value,key=value` with the parameters its table entry lists. What the server has seen is
open to look at: `requests`, `by_fault`, `open`, `cancelled`, `seen`. Nothing here knows the gateway.

By hand: `python tests/faults/server.py --port 9001 [--default NAME] [--script NAME,NAME]`, `--list` prints the table, and
`GET /__seen` tells the counts.
"""

import argparse
import asyncio
import contextlib
import email.utils
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # by hand: the folder of the tests is where the other helpers are
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.goes_on import continuation, tokens

TOKENS = ["The", " switch", " moves", " the", " train", " while", " it", " rolls", "."]
TEXT = "".join(TOKENS)
PROMPT_TOKENS, COMPLETION_TOKENS = 11, len(TOKENS)
# What a provider says about our account when it refuses it: must not reach a caller.
SECRET_WORDS = "Incorrect API key provided: sk-upstr***cdef. Organization org-SECRET42 (billing@acme.example)"
LEFT_S = 30.0  # no fault holds a socket longer than this

REASONS = {
    200: "OK",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
}


class Seen:
    """One request as the server had it. Times are `time.monotonic()`; 0 = it did not happen."""

    __slots__ = ("body", "cancelled", "fault", "finish", "head", "lost_at", "peer_port", "started_at", "tokens", "written")

    def __init__(self, fault: str, head: bytes, peer_port: int = 0) -> None:
        self.fault = fault
        self.peer_port = peer_port
        self.head = head
        self.body = b""
        self.started_at = time.monotonic()
        self.lost_at = 0.0  # the connection was gone
        self.cancelled = False  # ... before the server was done with this request
        self.written = 0  # bytes of the answer handed to the socket
        self.tokens = TOKENS  # what a good answer says, and how it finishes
        self.finish = "stop"

    @property
    def asked(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.body))
        except ValueError:
            return {}

    @property
    def stream(self) -> bool:
        return bool(self.asked.get("stream"))


class Lost(Exception):
    """The other side is gone."""


class Connection(asyncio.Protocol):
    """One accepted socket: reads a request, lets its fault act, reads the next one."""

    transport: asyncio.Transport

    def __init__(self, server: "FaultServer") -> None:
        self.server = server
        self.data = bytearray()
        self.ended = False
        self.current: Seen | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=16 * 1024)
        server = self.server
        server.open += 1
        server.accepted += 1
        server._connections.add(self)
        fault = server.next_at_accept()
        if fault is not None:
            server._count(fault, b"")
            name, _ = parse(fault)
            self.reset() if name == "accept-reset" else self.transport.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._news.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        server = self.server
        self.ended = True
        server.open -= 1
        server._connections.discard(self)
        self._news.set()
        self._room.set()
        if self.current is not None:
            self.current.lost_at = time.monotonic()
            self.current.cancelled = True
            server.cancelled += 1
        if self._task is not None:
            self._task.cancel()

    # -- what a fault does

    async def _read_more(self) -> None:
        if self.ended:
            raise Lost
        self._news.clear()
        await self._news.wait()
        if self.ended:
            raise Lost

    async def send(self, data: bytes) -> None:
        """Write, and wait while the other side is slow."""
        if self.ended or self.transport.is_closing():
            raise Lost
        if self.current is not None:
            self.current.written += len(data)
        self.transport.write(data)
        await self._room.wait()

    def reset(self) -> None:
        """A TCP reset."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.done()
        self.transport.abort()

    def close(self) -> None:
        """FIN, after what was written."""
        self.done()
        self.transport.close()

    def done(self) -> None:
        """The server has nothing more to say to this request: a connection lost from here on is no cancellation."""
        self.current = None

    async def hold(self) -> None:
        """Say nothing until the other side goes."""
        await asyncio.sleep(LEFT_S)
        self.close()

    async def body(self, seen: Seen, length: int) -> None:
        while len(self.data) < length:
            await self._read_more()
        seen.body = bytes(self.data[:length])
        del self.data[:length]

    async def _serve(self) -> None:
        with contextlib.suppress(Lost, asyncio.CancelledError):
            while not self.transport.is_closing():
                await self._one()

    async def _one(self) -> None:
        while (end := self.data.find(b"\r\n\r\n")) < 0:
            if len(self.data) > 100_000 or self.data[:1] == b"\x16":  # a TLS hello on a plain port
                self.server._count("plain-on-tls", b"")
                await self.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()
                raise Lost
            await self._read_more()
        head = bytes(self.data[:end])
        del self.data[: end + 4]
        path = head.split(b" ", 2)[1].decode("latin-1")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if path == "/__seen":
            await self.send(whole(200, json.dumps(self.server.counts()).encode()))
            return
        spec = self.server.choose(path, head)
        name, params = parse(spec)
        fault = FAULTS[name]
        if fault.where == "accept":  # on a connection that is used again: as if it had been closed while idle
            self.transport.close()
            raise Lost
        seen = self.current = self.server._count(spec, head, self.transport.get_extra_info("peername")[1])
        if fault.where != "early":
            await self.body(seen, length)
            if self.server.on_body is not None:
                self.server.on_body(seen)
        await fault.act(self, seen, **params)
        self.done()


# ---- the wire -------------------------------------------------------------------------------------------------------


def whole(
    status: int, body: bytes, headers: str = "", media: str = "application/json", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    reason = REASONS.get(status, "Status")
    return (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: {media}\r\ncontent-length: {size}\r\n{headers}\r\n".encode()
        + body
    )


def error_body(message: str, type_: str, code: str | None = None, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}}).encode()


def answer(seen: Seen) -> bytes:
    """The plain answer to any of the surfaces."""
    path = seen.head.split(b" ", 2)[1]
    model = seen.asked.get("model", "m")
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": len(seen.tokens),
        "total_tokens": PROMPT_TOKENS + len(seen.tokens),
    }
    if path.endswith(b"/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        return json.dumps(
            {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        ).encode()
    text = "".join(seen.tokens)
    message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": message}
    if path.endswith(b"/v1/completions"):
        choice = {"index": 0, "finish_reason": "stop", "text": text}
    full = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }
    return json.dumps(full).encode()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def event(seen: Seen, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": seen.asked.get("model", "m"),
            "choices": [choice],
        }
    )


def events(seen: Seen) -> list[bytes]:
    """All events of a good stream: role, tokens, finish, usage where it was asked for, [DONE]."""
    out = [event(seen, {"role": "assistant", "content": ""})]
    out += [event(seen, {"content": token}) for token in seen.tokens]
    out.append(event(seen, {}, seen.finish))
    if (seen.asked.get("stream_options") or {}).get("include_usage"):
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": len(seen.tokens),
            "total_tokens": PROMPT_TOKENS + len(seen.tokens),
        }
        out.append(
            sse(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": "m",
                    "choices": [],
                    "usage": usage,
                }
            )
        )
    out.append(b"data: [DONE]\n\n")
    return out


def response(seen: Seen) -> bytes:
    """The whole good answer as it goes over the wire."""
    if not seen.stream:
        return whole(200, answer(seen))
    return STREAM_HEAD + b"".join(map(chunked, events(seen))) + END


# ---- the faults -----------------------------------------------------------------------------------------------------


async def ok(c: Connection, seen: Seen, gap_ms: float = 0) -> None:
    if not seen.stream or not gap_ms:
        await c.send(response(seen))
        return
    await c.send(STREAM_HEAD)
    for piece in events(seen):
        await c.send(chunked(piece))
        await asyncio.sleep(gap_ms / 1000)
    await c.send(END)


async def close(c: Connection, seen: Seen) -> None:
    c.close()


async def reset(c: Connection, seen: Seen) -> None:
    c.reset()


async def silence(c: Connection, seen: Seen) -> None:
    await c.hold()


async def slow_head(c: Connection, seen: Seen, ms: float = 50) -> None:
    await asyncio.sleep(ms / 1000)
    await c.send(response(seen))


async def status(c: Connection, seen: Seen, code: int = 503, headers: str = "", body: bytes | None = None) -> None:
    if body is None:
        body = error_body(f"the provider is unwell ({code})", "server_error")
    await c.send(whole(code, body, headers))


async def too_many(
    c: Connection,
    seen: Seen,
    seconds: float | None = None,
    ms: float | None = None,
    date: float | None = None,
    code: str = "rate_limit_exceeded",
) -> None:
    headers = ""
    if seconds is not None:
        headers = f"retry-after: {seconds:g}\r\n"
    if ms is not None:
        headers = f"retry-after-ms: {ms:g}\r\n"
    if date is not None:
        headers = f"retry-after: {email.utils.formatdate(time.time() + date, usegmt=True)}\r\n"
    await c.send(whole(429, error_body("Rate limit reached for requests", "requests", code), headers))


async def refused_key(c: Connection, seen: Seen, code: int = 401) -> None:
    await c.send(whole(code, error_body(SECRET_WORDS, "invalid_request_error", "invalid_api_key")))


async def bad_request(c: Connection, seen: Seen, code: int = 400) -> None:
    # Odd spacing and key order on purpose: it must arrive byte for byte.
    body = b'{ "error":{"code":"bad_value", "message":"messages[0]: not like this","param":"messages","type":"invalid_request_error","x":1.0} }'
    await c.send(whole(code, body))


async def content_filter(c: Connection, seen: Seen) -> None:
    inner = {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
    }
    said = {
        "message": "The response was filtered",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": inner,
    }
    await c.send(whole(400, json.dumps({"error": said}).encode()))


async def html(c: Connection, seen: Seen) -> None:
    await c.send(whole(200, b"<html><body>Sign in to the network</body></html>", media="text/html"))


async def json_for_stream(c: Connection, seen: Seen) -> None:
    """A plain answer whatever was asked; a plain request gets a stream instead."""
    if seen.stream:
        await c.send(whole(200, answer(seen)))
    else:
        await c.send(STREAM_HEAD + b"".join(map(chunked, events(seen))) + END)


async def half_json(c: Connection, seen: Seen) -> None:
    """Framed as complete, but half a document."""
    body = answer(seen)
    await c.send(whole(200, body[: len(body) // 2]))


async def half_body(c: Connection, seen: Seen) -> None:
    """Half of what content-length promised, then FIN."""
    body = answer(seen)
    await c.send(whole(200, body[: len(body) // 2], length=len(body)))
    c.close()


async def error_200(c: Connection, seen: Seen) -> None:
    await c.send(whole(200, error_body("the model is overloaded", "server_error", "overloaded")))


async def no_finish(c: Connection, seen: Seen) -> None:
    """A well-formed plain answer whose choice has no finish reason; a stream without one."""
    if seen.stream:
        await cut_end(c, seen, 3)
        return
    await c.send(whole(200, answer(seen).replace(b'"finish_reason": "stop"', b'"finish_reason": null')))


async def malformed(c: Connection, seen: Seen) -> None:
    await c.send(b"HTTP/1.1 two-hundred OK\r\ncontent-length: nine\r\n\r\nnonsense\r\n")
    await asyncio.sleep(0.05)
    c.close()


async def redirect(c: Connection, seen: Seen, to: str = "http://127.0.0.1:1/v1/chat/completions") -> None:
    await c.send(whole(307, b"{}", f"location: {to}\r\n"))


async def huge_header(c: Connection, seen: Seen, bytes: int = 60_000) -> None:
    await c.send(response(seen).replace(b"\r\n", b"\r\nx-filler: " + b"f" * int(bytes) + b"\r\n", 1))


async def endless_header(c: Connection, seen: Seen) -> None:
    await c.send(b"HTTP/1.1 200 OK\r\nx-filler: ")
    while True:
        await c.send(b"f" * 16_384)


async def early(c: Connection, seen: Seen, code: int = 413) -> None:
    """Answers when the head is there and never reads the body."""
    await c.send(
        whole(code, error_body("too large for us", "invalid_request_error", "too_large"), "connection: close\r\n")
    )
    c.transport.pause_reading()
    await asyncio.sleep(0.5)
    c.close()


async def interim(c: Connection, seen: Seen) -> None:
    await c.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
    await asyncio.sleep(0.01)
    await c.send(response(seen))


async def switching(c: Connection, seen: Seen) -> None:
    await c.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: nonsense\r\nconnection: upgrade\r\n\r\n\x00\x01\x02")
    await asyncio.sleep(0.05)
    c.close()


async def close_delimited(c: Connection, seen: Seen) -> None:
    """No content-length, not chunked: the close is the end."""
    data = response(seen)
    if seen.stream:
        data = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(events(seen))
    else:
        data = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + answer(seen)
    await c.send(data)
    c.close()


async def trailing(c: Connection, seen: Seen) -> None:
    """A good answer and, in the same packet, the beginning of another that nobody asked for."""
    await c.send(response(seen) + b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n")
    await asyncio.sleep(0.05)
    await c.send(b'{"id":"somebody else"}')


async def big_error(c: Connection, seen: Seen, bytes: int = 900_000) -> None:
    await c.send(whole(500, error_body("x" * int(bytes), "server_error")))


async def late_token(c: Connection, seen: Seen, ms: float = 1_000) -> None:
    """The head and the role come at once, the first token late."""
    if not seen.stream:
        await slow_head(c, seen, ms)
        return
    first, *rest = events(seen)
    await c.send(STREAM_HEAD + chunked(first))
    await asyncio.sleep(ms / 1000)
    await c.send(b"".join(map(chunked, rest)) + END)


async def _begin(c: Connection, seen: Seen, after: int) -> None:
    """The stream up to `after` tokens; half of a plain answer."""
    if seen.stream:
        await c.send(STREAM_HEAD + b"".join(map(chunked, events(seen)[: after + 1])))
    else:
        body = answer(seen)
        await c.send(whole(200, body[: len(body) // 2], length=len(body)))
    # What was written must be there before the end is: a reset may overtake data.
    await asyncio.sleep(0.02)


async def cut_reset(c: Connection, seen: Seen, after: int = 0) -> None:
    await _begin(c, seen, int(after))
    c.reset()


async def cut_close(c: Connection, seen: Seen, after: int = 0) -> None:
    await _begin(c, seen, int(after))
    c.close()


async def cut_end(c: Connection, seen: Seen, after: int = 0) -> None:
    """A clean chunked end, but no finish_reason. A plain answer: framed well, half a document."""
    if not seen.stream:
        await half_json(c, seen)
        return
    await _begin(c, seen, int(after))
    await c.send(END)


async def stall(c: Connection, seen: Seen, after: int = 0) -> None:
    await _begin(c, seen, int(after))
    await c.hold()


async def error_event(c: Connection, seen: Seen, after: int = 0, code: int = 500) -> None:
    if not seen.stream:
        await error_200(c, seen)
        return
    await _begin(c, seen, int(after))
    await c.send(chunked(sse({"error": {"message": "the engine died", "type": "server_error", "code": int(code)}})) + END)


async def bad_chunk(c: Connection, seen: Seen, after: int = 0) -> None:
    if not seen.stream:
        await half_json(c, seen)
        return
    await _begin(c, seen, int(after))
    await c.send(chunked(b'data: {"choices":[{"delta":{"content":"lo\n\n') + chunked(event(seen, {}, "stop")) + END)


async def no_done(c: Connection, seen: Seen) -> None:
    """finish_reason, but no `[DONE]`."""
    if not seen.stream:
        await ok(c, seen)
        return
    await c.send(STREAM_HEAD + b"".join(map(chunked, events(seen)[:-1])) + END)


async def endless(c: Connection, seen: Seen, gap_ms: float = 0, size: int = 1_000) -> None:
    """A stream without an end, as fast as the other side takes it."""
    await c.send(STREAM_HEAD)
    piece = chunked(event(seen, {"content": "x" * int(size)}))
    while True:
        await c.send(piece)
        if gap_ms:
            await asyncio.sleep(gap_ms / 1000)


async def cut_at(c: Connection, seen: Seen, byte: int = 0, how: str = "close") -> None:
    """The first `byte` bytes of the good answer, then `close` or `reset`."""
    data = response(seen)[: int(byte)]
    if data:
        await c.send(data)
        if how == "reset":
            await asyncio.sleep(0.005)
    c.reset() if how == "reset" else c.close()


async def too_long(c: Connection, seen: Seen) -> None:
    said = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
    await c.send(whole(400, error_body(said, "invalid_request_error", "context_length_exceeded", "messages")))


async def slow_tokens(c: Connection, seen: Seen, ms: float = 100, at: int = 1) -> None:
    await c.send(STREAM_HEAD)
    for i, piece in enumerate(events(seen)):
        if i == int(at):
            await asyncio.sleep(ms / 1000)
        await c.send(chunked(piece))
    await c.send(END)


async def noise(c: Connection, seen: Seen, after: int = 3, lines: int = 1) -> None:
    if not seen.stream:
        await ok(c, seen)
        return
    all_ = events(seen)
    all_[int(after) + 1 : int(after) + 1] = [b"data: pardon?\n\n"] * int(lines)
    await c.send(STREAM_HEAD + b"".join(map(chunked, all_)) + END)


def shown(seen: Seen) -> tuple[str, str | None]:
    """The answer that a request wants gone on with, and the words it is to begin with; None where it was prefilled."""
    messages = seen.asked.get("messages") or [{}]
    if messages[-1].get("role") == "assistant":
        return str(messages[-1]["content"]), None
    if len(messages) > 1 and messages[-2].get("role") == "assistant":
        told = str(messages[-1]["content"])
        return str(messages[-2]["content"]), told.partition("characters:\n")[2]
    return "", None


async def go_on(c: Connection, seen: Seen, how: str = "words", prefill: str = "yes", limit: int = 0) -> None:
    """Goes on with an answer as `support.goes_on` says; `prefill=no`: 400 to one that ends the conversation."""
    text = "".join(seen.tokens)
    head, words = shown(seen)
    if head and words is None:
        if prefill == "no":
            said = "the last message must be from the user: this model does not support assistant message prefill"
            await c.send(whole(400, error_body(said, "invalid_request_error")))
            return
        how = "exact"
    if head:
        have = text[: text.find(head) + len(head)]
        if words:
            # The beginning of the words stands where the head ends, whether or not that was shown whole.
            at = text.find(words, max(0, len(head) - len(words) - 2))
            have = text[: at + len(words)] if at >= 0 else have
        seen.tokens = tokens(continuation(how, text, have, words or ""))
    if limit and len(seen.tokens) > seen.asked.get("max_tokens", 1 << 30):
        seen.tokens, seen.finish = seen.tokens[: seen.asked["max_tokens"]], "length"
    await c.send(response(seen))


def calls_of(seen: Seen, text: str, calls: list[tuple[str, str]], size: int) -> list[bytes]:
    """The events of a stream that says `text` and then makes tool calls, their arguments in fragments of `size`."""
    out = [event(seen, {"role": "assistant", "content": "" if text else None})]
    out += [event(seen, {"content": token}) for token in tokens(text)]
    for i, (name, arguments) in enumerate(calls):
        call = {"index": i, "id": f"call_{seen.peer_port}_{i}", "type": "function", "function": {"name": name, "arguments": ""}}
        out.append(event(seen, {"tool_calls": [call]}))
        for at in range(0, len(arguments), size):
            fragment = {"index": i, "function": {"arguments": arguments[at : at + size]}}
            out.append(event(seen, {"tool_calls": [fragment]}))
    return [*out, event(seen, {}, "tool_calls"), b"data: [DONE]\n\n"]


CALLS = [("get_weather", '{"city": "Zürich", "days": 3}'), ("get_time", '{"zone": "Europe/Zurich"}'), ("ping", "{}")]


async def tools(
    c: Connection, seen: Seen, n: int = 1, text: str = "", after: int = -1, size: int = 7, gap_ms: float = 0, how: str = "reset", other: int = 0
) -> None:
    """`n` tool calls behind `text`; cut after `after` events, as a reset or a chunked end. `other`: another argument."""
    calls = [(name, arguments.replace("Zürich", "Bern") if other else arguments) for name, arguments in CALLS[: int(n)]]
    said = text.replace("_", " ")
    if seen.stream:
        all_ = calls_of(seen, said, calls, int(size))
        await c.send(STREAM_HEAD)
        for piece in all_ if after < 0 else all_[: int(after)]:
            await c.send(chunked(piece))
            if gap_ms:
                await asyncio.sleep(gap_ms / 1000)
        if after < 0 or how == "end":
            await c.send(END)
            return
        await asyncio.sleep(0.02)
        c.reset()
        return
    await c.send(response(seen))


async def never(c: Connection, seen: Seen) -> None:
    raise AssertionError("this fault happens before there is a request")


class FaultKind(NamedTuple):
    """`where` it strikes: listen, accept, early (the head is read, not the body), answer. `good`: no failure at all."""

    act: Callable[..., Awaitable[None]]
    where: str = "answer"
    params: dict[str, Any] = {}
    good: bool = False
    says: str = ""


K = FaultKind
FAULTS: dict[str, FaultKind] = {
    "ok": K(ok, good=True, says="a good answer; gap_ms between tokens"),
    # the listener: set up by whoever makes the server (`refuse`, `tls`, an https:// URL on a plain port)
    "refused": K(never, "listen", says="nobody listens on the port"),
    "tls-untrusted": K(never, "listen", says="a certificate of a CA nobody knows"),
    "tls-wrong-name": K(never, "listen", says="a good CA, another host's certificate"),
    "plain-on-tls": K(never, "listen", says="plain HTTP where TLS is spoken"),
    "accept-close": K(never, "accept", says="accepts and closes"),
    "accept-reset": K(never, "accept", says="accepts and resets"),
    # before the head
    "close": K(close, says="reads the request and closes"),
    "reset": K(reset, says="reads the request and resets"),
    "silence": K(silence, says="reads the request and never answers"),
    "slow-head": K(slow_head, good=True, says="the head comes after ms"),
    "malformed-http": K(malformed, says="not HTTP"),
    "redirect": K(redirect, says="307 to somewhere else (to)"),
    "huge-header": K(huge_header, good=True, says="one header of `bytes`"),
    "endless-header": K(endless_header, says="a header without an end"),
    "early": K(early, "early", says="an answer (code) while the body is still on its way"),
    "interim": K(interim, good=True, says="100 and 103 first, then a good answer"),
    "switching": K(switching, says="101 to a protocol nobody asked for"),
    # statuses
    "429": K(too_many, says="no retry-after; or seconds, ms, date (seconds from now); code"),
    "429-seconds": K(too_many, params={"seconds": 1}, says="retry-after: 1"),
    "429-ms": K(too_many, params={"ms": 30}, says="retry-after-ms: 30"),
    "429-date": K(too_many, params={"date": 2}, says="retry-after: a date, two seconds on"),
    "429-quota": K(too_many, params={"code": "insufficient_quota"}, says="the account is empty"),
    "500": K(status, params={"code": 500}),
    "502": K(status, params={"code": 502}),
    "503": K(status, params={"code": 503}),
    "529": K(status, params={"code": 529}),
    "big-error": K(big_error, says="500 with a body of `bytes`"),
    "401": K(refused_key, params={"code": 401}),
    "403": K(refused_key, params={"code": 403}),
    "404": K(refused_key, params={"code": 404}),
    "400": K(bad_request, params={"code": 400}),
    "413": K(bad_request, params={"code": 413}),
    "422": K(bad_request, params={"code": 422}),
    "content-filter": K(content_filter, says="400, Azure's shape"),
    # the body
    "html": K(html, says="200 and a sign-in page"),
    "json-for-stream": K(json_for_stream, says="JSON for a stream request, a stream for a plain one"),
    "half-json": K(half_json, says="half a document, framed as whole"),
    "half-body": K(half_body, says="half of what content-length promised"),
    "error-200": K(error_200, says="an error object under 200"),
    "no-finish": K(no_finish, says="an answer without a finish reason"),
    "close-delimited": K(close_delimited, good=True, says="the end of the connection is the end of the body"),
    "trailing": K(trailing, good=True, says="bytes of another answer behind this one"),
    # streams; a plain request gets what a broken provider does to a plain answer
    "late-token": K(late_token, says="head and role at once, the first token after ms"),
    "cut-reset": K(cut_reset, says="TCP reset after `after` tokens"),
    "cut-close": K(cut_close, says="FIN after `after` tokens"),
    "cut-end": K(cut_end, says="a clean chunked end after `after` tokens, no finish_reason"),
    "stall": K(stall, says="nothing more after `after` tokens"),
    "error-event": K(error_event, says="an error event (code) after `after` tokens"),
    "bad-chunk": K(bad_chunk, says="half a JSON chunk after `after` tokens"),
    "no-done": K(no_done, good=True, says="finish_reason, but no [DONE]"),
    "go-on": K(go_on, good=True, says="goes on with what it is shown; how=words|straight|whole|..., prefill=no refuses"),
    "tools": K(tools, good=True, says="n tool calls behind text; cut after `after` events; size of fragments, gap_ms"),
    "too-long": K(too_long, params={}, says="400, the prompt is too long for the model"),
    "slow-tokens": K(slow_tokens, good=True, says="a good answer, ms before the token number `at`"),
    "noise": K(noise, good=True, says="a good answer with `lines` lines of noise in the middle"),
    "endless": K(endless, says="tokens without an end; gap_ms, size"),
    "cut-at": K(cut_at, says="the answer's first `byte` bytes, then how=close|reset"),
}  # fmt: skip


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value,...` as name and parameters. Raises KeyError for a name that is not in the table."""
    name, _, rest = spec.partition(":")
    params = dict(FAULTS[name].params)
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            params[key] = float(value) if "." in value else int(value)
        except ValueError:
            params[key] = value
    return name, params


class FaultServer:
    """The server, on a thread of its own. `with FaultServer() as s: s.url`."""

    def __init__(
        self,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        default: str | Callable[[bytes], str] = "ok",
        text: str = TEXT,
    ) -> None:
        self.tokens = TOKENS if text == TEXT else tokens(text)
        self.port = port
        self.default = default
        self.script: deque[str] = deque()
        self.on_body: Callable[[Seen], None] | None = None
        self.requests = 0  # all, whatever became of them
        self.by_fault: Counter[str] = Counter()
        self.open = 0  # connections now
        self.accepted = 0  # connections ever
        self.cancelled = 0  # connections lost while a request was not answered yet
        self.seen: deque[Seen] = deque(maxlen=10_000)
        self._tls = tls
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self._server: asyncio.Server | None = None

    # -- which fault

    def choose(self, path: str, head: bytes) -> str:
        first = path.split("/", 2)[1]
        if first.partition(":")[0] in FAULTS:
            return first
        if self.script:
            return self.script.popleft()
        return self.default if isinstance(self.default, str) else self.default(head)

    def next_at_accept(self) -> str | None:
        """The fault that strikes a connection which has only just been accepted, if that is whose turn it is."""
        spec = self.script[0] if self.script else self.default
        if isinstance(spec, str) and FAULTS[spec.partition(":")[0]].where == "accept":
            if self.script:
                self.script.popleft()
            return spec
        return None

    def _count(self, spec: str, head: bytes, peer_port: int = 0) -> Seen:
        self.requests += 1
        self.by_fault[spec.partition(":")[0]] += 1
        seen = Seen(spec, head, peer_port)
        seen.tokens = self.tokens
        self.seen.append(seen)
        return seen

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "by_fault": dict(self.by_fault),
            "open": self.open,
            "cancelled": self.cancelled,
        }

    # -- life

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def at(self, fault: str, scheme: str = "http", host: str = "127.0.0.1") -> str:
        """A base_url whose requests all get this fault."""
        return f"{scheme}://{host}:{self.port}/{fault}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def start(self) -> "FaultServer":
        self._thread.start()
        self._call(self._listen())
        return self

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, ssl=self._tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self, break_open: bool) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if break_open:
            for c in list(self._connections):
                c.reset()

    def refuse(self, break_open: bool = True) -> None:
        """From now on nobody listens on the port; open connections are reset too."""
        self._call(self._refuse(break_open))

    def listen(self) -> None:
        """Listen again, on the same port."""
        self._call(self._listen())

    def heal(self) -> None:
        """Good answers from now on."""
        self.script.clear()
        self.default = "ok"

    def stop(self) -> None:
        async def end() -> None:
            await self._refuse(True)
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for t in tasks:
                t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def __enter__(self) -> "FaultServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--default", default="ok", metavar="FAULT")
    parser.add_argument("--script", default="", metavar="FAULT,FAULT")
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    args = parser.parse_args()
    if args.list:
        for name, kind in FAULTS.items():
            print(f"{name:18}{'good  ' if kind.good else 'fault '} {kind.where:8} {kind.says}")
        return 0
    parse(args.default)
    with FaultServer(args.port, default=args.default) as server:
        server.script.extend(filter(None, args.script.split(",")))
        print(f"listening on {server.url}; faults by path, e.g. {server.at('503')}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print(json.dumps(server.counts()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
