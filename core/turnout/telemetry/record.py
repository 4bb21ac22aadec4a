"""The compact record of one request: what the recorder process makes log line, ledger rows and spans from.

It holds names, numbers and times, never a prompt, an answer or a key. A worker encodes it as MessagePack (about 2 us)
and puts it into its ring; everything dearer happens in the other process.
"""

import msgspec

from ..exchange import Attempt, Cut, Exchange, Saved, Usage


class Record(msgspec.Struct, array_like=True):
    """Times are monotonic nanoseconds of one machine; `wall_ns` is the wall clock at `started_ns`."""

    id: str
    wall_ns: int
    started_ns: int
    ended_ns: int
    surface: str
    operation: str
    route: str
    key: str
    fingerprint: str
    tenant: str
    session: str
    tags: str
    prompt_version: str
    model: str  # as asked
    stream: bool
    status: int
    fault: str  # kind, empty = well
    message: str  # our own words about the fault, never the provider's: those may repeat the prompt
    cache: str
    guard: str
    fallback: str
    finish: str
    usage: Usage | None
    cost_nanos: int
    bytes_in: int
    bytes_out: int
    chunks: int
    overhead_ns: int
    admitted_ns: int
    parsed_ns: int
    routed_ns: int
    head_ns: int
    first_byte_ns: int
    first_content_ns: int
    config_version: int
    worker: int
    trace_id: str  # empty = not sampled
    parent_id: str
    attempts: list[Attempt]
    cuts: list[Cut] = []
    saved: Saved | None = None


def of(x: Exchange, worker: int) -> Record:
    """The record of an exchange that has ended."""
    p = x.principal
    f = x.fault
    t = x.trace
    return Record(
        x.id,
        x.wall_ns,
        x.started_ns,
        x.ended_ns,
        x.surface.name,
        x.surface.operation,
        x.route.name if x.route else "",
        p.name if p else "",
        p.fingerprint if p else "",
        p.tenant if p else "",
        x.session,
        x.tags,
        x.prompt_version,
        x.model,
        x.stream,
        x.status,
        f.kind if f else "",
        f.note if f else "",
        x.cache,
        x.guard,
        x.fallback if len(x.attempts) > 1 else "none",
        x.finish,
        x.usage,
        x.cost_nanos,
        len(x.body),
        x.bytes_out,
        x.chunks,
        overhead_ns(x),
        x.admitted_ns,
        x.parsed_ns,
        x.routed_ns,
        x.head_ns,
        x.first_byte_ns,
        x.first_content_ns,
        x.config_version,
        worker,
        t.trace_id if t else "",
        t.parent_id if t else "",
        x.attempts,
        x.cuts,
        x.saved,
    )


def overhead_ns(x: Exchange) -> int:
    """Time to the response head that was ours: all of it less the waiting for upstreams and back-offs."""
    end = x.head_ns or x.ended_ns
    return max(0, end - x.started_ns - x.upstream_ns) if end else 0


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
