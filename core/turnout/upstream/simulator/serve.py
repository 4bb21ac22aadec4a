"""One request from arrival to last byte: pace, faults, writing. The only file that waits.

It is given a `Wire` (the connection) and runs as a task of its own, which the connection
cancels when the client leaves; then nothing more is written and the request counts as
cancelled. An answer that the simulator itself breaks off is not a cancellation.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from ..providers.simulated import SimFault
from .answers import error_body, error_event, stream_frames
from .asks import Refused, Request
from .faults import MIDWAY
from .provider import Pace, Provider, Streamed

JSON = "application/json"
_HTML = b"<!doctype html><html><head><title>502 Bad Gateway</title></head><body><h1>Bad gateway</h1></body></html>\n"


class Wire(Protocol):
    """What the connection offers to the request that it carries."""

    def head(self, status: int, content_type: str, length: int | None, more: dict[str, str]) -> None:
        """Send the response head; `length` None = chunked."""

    def body(self, data: bytes) -> None: ...

    def chunk(self, data: bytes) -> None: ...

    def end_chunks(self) -> None: ...

    def reset(self) -> None:
        """TCP RST; what is not sent yet is lost."""

    def close(self) -> None:
        """Send what is left, then FIN."""

    async def wait_drained(self) -> None:
        """Wait while the client reads too slowly."""


async def serve(wire: Wire, provider: Provider, request: Request) -> None:
    """Answer one request, counting it as open meanwhile."""
    provider.open += 1
    try:
        await _serve(wire, provider, request)
    except Refused as refused:
        _send(wire, refused.status, error_body(refused.status, refused.message, refused.code))
    except asyncio.CancelledError:
        provider.cancelled += 1
        raise
    finally:
        provider.open -= 1


async def _serve(wire: Wire, provider: Provider, request: Request) -> None:
    if request.path.startswith("/__"):
        _control(wire, provider, request)
        return
    fault = provider.next_fault(request)
    if fault is not None and await _fail_at_once(wire, fault):
        return
    reply = provider.reply(request, int(time.time()))
    if isinstance(reply, Streamed):
        await _send_stream(wire, reply, provider.next_pace(), fault)
    elif reply.tokens is None:
        _send(wire, 200, reply.data)
    else:
        await _send_plain(wire, reply.data, reply.tokens, provider.next_pace(), fault)


def _control(wire: Wire, provider: Provider, request: Request) -> None:
    if request.path == "/__stats" and request.method == "GET":
        # This request is itself open while it asks; nobody wants to see it.
        _send(wire, 200, msgspec.json.encode({**provider.stats(), "open": provider.open - 1}))
    elif request.path == "/__faults" and request.method == "POST":
        _send(wire, 200, msgspec.json.encode({"faults": provider.replace_faults(request.body)}))
    else:
        raise Refused(404, f"no such control: {request.method} {request.path}")


async def _fail_at_once(wire: Wire, fault: SimFault) -> bool:
    """The faults that need no answer; whether this was one of them."""
    if fault.kind == "status":
        more = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
        code = "rate_limit_exceeded" if fault.status == 429 else None
        _send(wire, fault.status, error_body(fault.status, "Simulated failure of the provider.", code), more)
    elif fault.kind == "html":
        wire.head(200, "text/html; charset=utf-8", len(_HTML), {})
        wire.body(_HTML)
    elif fault.kind == "reset":
        wire.reset()
    elif fault.kind == "refuse":
        wire.close()
    elif fault.kind == "silent":
        await _silence()
    else:
        return False
    return True


async def _send_plain(wire: Wire, data: bytes, tokens: int, pace: Pace, fault: SimFault | None) -> None:
    wait_s = pace.ttft_s + sum(pace.gap_s() for _ in range(tokens))
    if fault is not None and fault.kind == "slow":
        wait_s += fault.ms / 1000.0
    await asyncio.sleep(wait_s)
    if fault is None or fault.kind not in MIDWAY:
        _send(wire, 200, data)
        return
    if fault.kind == "error-event":
        _send(wire, 200, error_body(500, "Simulated error under status 200.", "server_error"))
        return
    wire.head(200, JSON, len(data), {})
    wire.body(data[: len(data) // 2])
    await wire.wait_drained()
    # The half that was written must be on its way, or a reset would take it back.
    await asyncio.sleep(0.01)
    if fault.kind == "cut":
        wire.reset()
    elif fault.kind == "truncate":
        wire.close()
    else:
        await _silence()


async def _send_stream(wire: Wire, reply: Streamed, pace: Pace, fault: SimFault | None) -> None:
    loop = asyncio.get_running_loop()
    first_token_at = loop.time() + pace.ttft_s
    if fault is not None and fault.kind == "slow":
        first_token_at += fault.ms / 1000.0
    # Providers send the head and the role as soon as they have taken the request in, the
    # first token later: half of the usual wait each.
    await asyncio.sleep(pace.ttft_s / 2)
    wire.head(200, "text/event-stream; charset=utf-8", None, {"cache-control": "no-cache"})
    due = first_token_at
    sent = 0
    for frame in stream_frames(reply.answer, reply.include_usage):
        if frame.part == "token":
            await asyncio.sleep(max(0.0, due - loop.time()))
        if fault is not None and fault.kind in MIDWAY and _is_due(fault, frame.part, sent):
            await _break_off(wire, fault)
            return
        wire.chunk(frame.data)
        if frame.part == "token":
            sent += 1
            # From when it was due, not from now: lateness must not add up over a long answer.
            due += pace.gap_s()
        await wire.wait_drained()
    wire.end_chunks()


def _is_due(fault: SimFault, part: str, sent: int) -> bool:
    return part == "finish" or (part == "token" and sent >= fault.after_tokens)


async def _break_off(wire: Wire, fault: SimFault) -> None:
    if fault.kind == "cut":
        wire.reset()
    elif fault.kind == "stall":
        await _silence()
    else:
        if fault.kind == "error-event":
            wire.chunk(error_event("Simulated error inside the stream."))
        wire.end_chunks()


def _send(wire: Wire, status: int, data: bytes, more: dict[str, str] | None = None) -> None:
    wire.head(status, JSON, len(data), more or {})
    wire.body(data)


async def _silence() -> None:
    """Until the client leaves (the connection then cancels this task)."""
    await asyncio.get_running_loop().create_future()
