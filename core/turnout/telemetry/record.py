"""The compact record of one request: what the recorder process makes log line, ledger rows and spans from.

It holds names, numbers and times, never a prompt, an answer or a key. A worker puts it as MessagePack into its ring
(native.Tally); everything dearer happens in the other process.
"""

from typing import Any

import msgspec
from msgspec.structs import astuple

from ..exchange import Attempt, Cut, Exchange, Saved, Usage


class Record(msgspec.Struct, array_like=True):
    """Times are monotonic nanoseconds of one machine; `wall_ns` is the wall clock at `started_ns`."""

    surface: str
    operation: str
    route: str
    key: str
    fingerprint: str
    tenant: str
    fault: str  # kind, empty = well
    message: str  # our own words about the fault, never the provider's: those may repeat the prompt
    fallback: str
    bytes_in: int
    worker: int
    trace_id: str  # empty = not sampled
    parent_id: str
    # From here on as in `Exchange`.
    id: str
    wall_ns: int
    started_ns: int
    ended_ns: int
    stream: bool
    status: int
    cache: str
    guard: str
    usage: Usage | None
    cost_nanos: int
    chunks: int
    admitted_ns: int
    parsed_ns: int
    routed_ns: int
    upstream_ns: int
    head_ns: int
    first_byte_ns: int
    first_content_ns: int
    bytes_out: int
    model: str  # as asked
    session: str
    tags: str
    prompt_version: str
    finish: str
    config_version: int
    attempts: list[Attempt]
    cuts: list[Cut] = []
    saved: Saved | None = None

    @property
    def overhead_ns(self) -> int:
        """Time to the response head that was ours: all of it less the waiting for upstreams and back-offs."""
        end = self.head_ns or self.ended_ns
        return max(0, end - self.started_ns - self.upstream_ns) if end else 0


CONTEXT = Record.__struct_fields__.index("id")


def context(x: Exchange, worker: int) -> tuple[Any, ...]:
    """The first fields of the record of an exchange that has ended; the others are the last ones of the exchange."""
    surface, route, p, fault, trace = x.surface, x.route, x.principal, x.fault, x.trace
    return (
        surface.name,
        surface.operation,
        route.name if route is not None else "",
        p.name if p is not None else "",
        p.fingerprint if p is not None else "",
        p.tenant if p is not None else "",
        fault.kind if fault is not None else "",
        fault.note if fault is not None else "",
        x.fallback if len(x.attempts) > 1 else "none",
        len(x.body),
        worker,
        trace.trace_id if trace is not None else "",
        trace.parent_id if trace is not None else "",
    )


def of(x: Exchange, worker: int) -> Record:
    """The whole record, as the recorder will read it."""
    return Record(*context(x, worker), *astuple(x)[CONTEXT - len(Record.__struct_fields__) :])


decode = msgspec.msgpack.Decoder(Record).decode
encode = msgspec.msgpack.Encoder().encode
