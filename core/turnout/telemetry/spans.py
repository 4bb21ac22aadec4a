"""Spans from records: one SERVER span per request, one CLIENT span per attempt, sent by OTLP over HTTP.

Only records with a trace id are traced: the sampling was decided when the request came in. Span objects are built
straight as the SDK's `ReadableSpan` with the record's ids and times; a tracer would invent both and costs 3 times as
much. Their encoding for the wire, in the processor's thread, is what costs: about 90 us a span.

Who counts what: the request's span carries the sums (`llm.token_count.*`, `cost_usd`), the attempts' spans carry their
own `gen_ai.usage.*`, as the conventions say of the call to a model. So a sum over all spans of a trace counts every
token and every dollar once, by either name. No span ever carries a prompt or an answer.

The exporter's death is quiet: at most `MOST_WAITING` spans wait, further ones are dropped and counted, and there is at
most one line a minute about it.
"""

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from .. import __version__
from ..exchange import OUTRUN, Attempt, stands_in_for
from . import attrs
from .log import cost_known, final, ttft_ns
from .record import Record
from .redact import scrub

MOST_WAITING = 16_384  # spans, about 3 KB each: 50 MB at the worst
BATCH = 512
EVERY_MS = 1_000.0
EXPORT_S = 5.0  # one export with its retries
CLOSE_S = 4.0
SAY_EVERY_S = 60.0

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
SCOPE = InstrumentationScope("turnout", __version__)
OK = Status(StatusCode.UNSET)

Value = str | int | float | bool | Sequence[str]


class Provider(msgspec.Struct, frozen=True):
    """What spans say of a provider beyond its name. All of it may be left out."""

    kind: str = ""  # of the config
    address: str = ""  # host of its base_url
    port: int = 0


def spans_of(
    record: Record,
    resource: Resource,
    providers: Mapping[str, Provider],
    new_id: Callable[[], int],
) -> list[ReadableSpan]:
    """The request's span and its attempts', in that order. About 9 us a span.

    `new_id` gives a random 64-bit number that is not 0.
    """
    trace_id = int(record.trace_id, 16)
    context = SpanContext(trace_id, new_id(), is_remote=False, trace_flags=SAMPLED)
    parent = (
        SpanContext(trace_id, int(record.parent_id, 16), is_remote=True, trace_flags=SAMPLED)
        if record.parent_id
        else None
    )
    wall = record.wall_ns - record.started_ns  # monotonic -> wall
    out = [
        ReadableSpan(
            f"{record.operation} {record.model}".strip(),
            context,
            parent,
            resource,
            server_attributes(record, providers),
            _events(record, wall),
            kind=SpanKind.SERVER,
            status=_status(record),
            start_time=record.wall_ns,
            end_time=record.ended_ns + wall,
            instrumentation_scope=SCOPE,
        )
    ]
    for i, attempt in enumerate(record.attempts):
        out.append(
            ReadableSpan(
                f"{record.operation} {attempt.model}".strip(),
                SpanContext(trace_id, new_id(), is_remote=False, trace_flags=SAMPLED),
                context,
                resource,
                client_attributes(record, attempt, i + 1, providers),
                _first_content(attempt.started_ns, attempt.first_content_ns, wall) if record.stream else (),
                kind=SpanKind.CLIENT,
                status=Status(StatusCode.ERROR, attempt.reason) if attempt.reason not in ("", OUTRUN) else OK,
                start_time=attempt.started_ns + wall,
                end_time=(attempt.ended_ns or record.ended_ns) + wall,
                instrumentation_scope=SCOPE,
            )
        )
    return out


def server_attributes(record: Record, providers: Mapping[str, Provider]) -> dict[str, Value]:
    """What the request's span says. Empty values are left out."""
    last = final(record.attempts)
    usage = record.usage
    ttft = ttft_ns(record)
    out: dict[str, Value] = {
        attrs.OPERATION: record.operation,
        attrs.REQUEST_MODEL: record.model,
        attrs.REQUEST_STREAM: record.stream,
        attrs.HTTP_METHOD: "POST",
        attrs.HTTP_STATUS: record.status,
        attrs.REQUEST_ID: record.id,
        attrs.SURFACE: record.surface,
        attrs.ROUTE: record.route,
        attrs.KEY: record.key,
        attrs.TENANT: record.tenant,
        attrs.SESSION: record.session,
        attrs.CONVERSATION: record.session,
        attrs.TAGS: record.tags,
        attrs.PROMPT_VERSION: record.prompt_version,
        attrs.CACHE: record.cache,
        attrs.GUARDRAIL: record.guard,
        attrs.FALLBACK: record.fallback,
        attrs.ATTEMPTS: len(record.attempts),
        attrs.OVERHEAD_US: record.overhead_ns // 1000,
        attrs.CONFIG_VERSION: record.config_version,
        attrs.ERROR_TYPE: record.fault,
    }
    if last is not None:
        word = _word(last.provider, providers)
        out[attrs.PROVIDER] = out[attrs.SYSTEM] = word
        out[attrs.UPSTREAM] = last.provider
        out[attrs.ACCOUNT] = last.account
        if not last.reason:
            out[attrs.RESPONSE_MODEL] = last.model
    if record.finish:
        out[attrs.FINISH_REASONS] = (record.finish,)
    if usage is not None:
        out[attrs.LLM_PROMPT] = usage.prompt
        out[attrs.LLM_COMPLETION] = usage.completion
        out[attrs.ESTIMATED] = usage.estimated
    if cost_known(record):
        out[attrs.COST_USD] = record.cost_nanos / 1e9
    if ttft:
        out[attrs.TTFT_MS] = ttft / 1e6
        out[attrs.TIME_TO_FIRST_CHUNK] = ttft / 1e9
    return {name: value for name, value in out.items() if value != ""}


def client_attributes(record: Record, a: Attempt, number: int, providers: Mapping[str, Provider]) -> dict[str, Value]:
    """What an attempt's span says. Route, key and tenant are repeated, so that a sum by them needs no join."""
    word = _word(a.provider, providers)
    out: dict[str, Value] = {
        attrs.OPERATION: record.operation,
        attrs.PROVIDER: word,
        attrs.SYSTEM: word,
        attrs.UPSTREAM: a.provider,
        attrs.ACCOUNT: a.account,
        attrs.REQUEST_MODEL: a.model,
        attrs.REQUEST_STREAM: record.stream,
        attrs.ATTEMPT: number,
        attrs.CAUSE: a.cause,
        attrs.REQUEST_ID: record.id,
        attrs.ROUTE: record.route,
        attrs.KEY: record.key,
        attrs.TENANT: record.tenant,
        attrs.ERROR_TYPE: "" if a.reason == OUTRUN else a.reason,
        attrs.REASON: OUTRUN if a.reason == OUTRUN else "",
    }
    known = providers.get(a.provider)
    if known is not None and known.address:
        out[attrs.SERVER_ADDRESS] = known.address
        if known.port:
            out[attrs.SERVER_PORT] = known.port
    if a.status:
        out[attrs.HTTP_STATUS] = a.status
    if not a.reason:
        out[attrs.RESPONSE_MODEL] = a.model
        if record.finish:
            out[attrs.FINISH_REASONS] = (record.finish,)
    if record.stream and a.first_content_ns:
        out[attrs.TIME_TO_FIRST_CHUNK] = (a.first_content_ns - a.started_ns) / 1e9
    u = a.usage
    if u is not None:
        out[attrs.INPUT_TOKENS] = u.prompt
        out[attrs.OUTPUT_TOKENS] = u.completion
        out[attrs.ESTIMATED] = u.estimated
        if u.cached:
            out[attrs.CACHE_READ_TOKENS] = u.cached
        if u.cache_write:
            out[attrs.CACHE_WRITE_TOKENS] = u.cache_write
        if u.reasoning:
            out[attrs.REASONING_TOKENS] = u.reasoning
        if a.priced:
            out[attrs.ATTEMPT_COST_USD] = a.cost_nanos / 1e9
    return {name: value for name, value in out.items() if value != ""}


def _word(provider: str, providers: Mapping[str, Provider]) -> str:
    """The conventions' name of a provider's kind; its name in the config where the kind is not known."""
    known = providers.get(provider)
    return attrs.PROVIDER_NAMES.get(known.kind, known.kind) if known is not None and known.kind else provider


def _status(record: Record) -> Status:
    # HTTP conventions: a caller's mistake (4xx) is no error of the server's span. A stream that broke under 200 is.
    if record.status >= 500 or (record.fault and record.status < 400):
        return Status(StatusCode.ERROR, scrub(record.message) or record.fault or None)
    return OK


def _first_content(started_ns: int, at_ns: int, wall: int) -> tuple[Event, ...]:
    return (Event(attrs.EVENT_TTFT, {attrs.TTFT_MS: (at_ns - started_ns) / 1e6}, at_ns + wall),) if at_ns else ()


def _events(record: Record, wall: int) -> list[Event]:
    tries = record.attempts
    out: list[Event] = []
    for i in range(1, len(tries)):
        b = tries[i]
        if b.cause != "cut-over" and (a := stands_in_for(tries, i)) is not None:
            what = {attrs.FROM: f"{a.provider}/{a.model}", attrs.TO: f"{b.provider}/{b.model}", attrs.REASON: a.reason}
            out.append(Event(attrs.EVENT_FALLBACK, what, b.started_ns + wall))
    for cut in record.cuts:
        story: dict[str, Value] = {
            attrs.FROM: cut.origin,
            attrs.TO: cut.to,
            attrs.REASON: cut.reason,
            attrs.CHARS: cut.chars,
            attrs.OUTCOME: cut.outcome,
        }
        if cut.joined_ns:
            story[attrs.GAP_MS] = (cut.joined_ns - cut.broke_ns) / 1e6
        out.append(Event(attrs.EVENT_CUTOVER, story, cut.broke_ns + wall))
    if record.stream:
        out.extend(_first_content(record.started_ns, record.first_content_ns, wall))
    out.sort(key=lambda event: event.timestamp)
    return out


class _Counting(SpanExporter):
    """The exporter, with a count of what it took off the queue and of what it could not deliver."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.done = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self.done += len(spans)
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class _Quiet(logging.Handler):
    """Takes what OpenTelemetry logs (several lines per failed export) and keeps the last one, scrubbed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = scrub(record.getMessage(), 200)


class Spans:
    """The sink. `say` gets the rare line about lost spans; `lost` counts them."""

    name = "spans"

    def __init__(
        self,
        endpoint: str,
        service_name: str,
        headers: Mapping[str, str],
        providers: Mapping[str, Provider],
        say: Callable[[str], None],
    ) -> None:
        """`endpoint` is the collector's base URL; the spans go to `<endpoint>/v1/traces`."""
        self._say = say
        self._providers = providers
        self._quiet = _Quiet()
        logger = logging.getLogger("opentelemetry")
        logger.handlers = [self._quiet]
        logger.propagate = False
        base = endpoint.rstrip("/")
        url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
        self._exporter = _Counting(OTLPSpanExporter(endpoint=url, headers=dict(headers), timeout=EXPORT_S))
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=MOST_WAITING, schedule_delay_millis=EVERY_MS, max_export_batch_size=BATCH
        )
        self._resource = Resource.create(
            {
                attrs.SERVICE_NAME: service_name,
                attrs.SERVICE_VERSION: __version__,
                attrs.SERVICE_INSTANCE_ID: str(uuid.uuid4()),
            }
        )
        self._given = 0
        self._full = 0
        self._said = 0
        self._say_ns = 0

    @property
    def lost(self) -> int:
        """Spans that were dropped because the queue was full, or that the collector did not take."""
        return self._full + self._exporter.failed

    def add(self, record: Record) -> None:
        """Take one record; nothing happens for one that is not traced."""
        if not record.trace_id:
            return
        spans = spans_of(record, self._resource, self._providers, _new_id)
        if self._given - self._exporter.done + len(spans) > MOST_WAITING:  # a whole request or nothing of it
            self._full += len(spans)
            return
        self._given += len(spans)
        for span in spans:
            self._processor.on_end(span)

    def flush(self, now_ns: int) -> None:
        """Say, at most once a minute, that spans were lost. Sending is the processor's own thread's."""
        lost = self.lost
        if lost > self._said and (not self._say_ns or now_ns - self._say_ns >= SAY_EVERY_S * 1e9):
            self._say_ns = now_ns
            self._say(f"{lost - self._said} spans were lost: {self._quiet.last or 'the queue is full'}")
            self._said = lost

    def close(self) -> None:
        """Send what waits, for at most `CLOSE_S`; a collector that is down must not keep the process alive."""
        ending = threading.Thread(target=self._processor.shutdown, name="spans-close", daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            self._full += max(0, self._given - self._exporter.done)
            self._exporter.shutdown()  # wakes its back-off
        self._say_ns = 0
        self.flush(time.monotonic_ns())


def _new_id() -> int:
    return random.getrandbits(64) or 1
