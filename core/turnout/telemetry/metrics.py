"""Prometheus metrics of one worker, and the sum over all of them.

A worker only counts: one call of native.Tally per request. The supervisor asks every worker for
a snapshot, adds them up and writes the text. Names and labels are in `FAMILIES`, once.
"""

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from ..errors import TIMEOUTS
from ..exchange import Exchange, stands_in_for
from ..native import Tally
from .record import context
from .ring import Ring

# A hostile client can make up model names on a route that passes them on: beyond this many series they share one.
MOST_SERIES = 2_000

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.5)
OURS = (0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)

WAITS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)

_SERVED = ("route", "surface", "provider", "model")
# What native.Tally has histograms of, in its order.
_SPREADS = (
    "turnout_request_duration_seconds",
    "turnout_overhead_seconds",
    "turnout_ttft_seconds",
    "turnout_inter_token_seconds",
)

# name -> (type, label names, help). Histograms carry their bounds as a fourth.
FAMILIES: dict[str, tuple[str, tuple[str, ...], str, tuple[float, ...]]] = {
    "turnout_requests_total": ("counter", (*_SERVED, "status"), "Requests answered, by the status the client got", ()),
    "turnout_request_duration_seconds": (
        "histogram",
        _SERVED,
        "From the request's head to the end of its answer",
        SECONDS,
    ),
    "turnout_ttft_seconds": (
        "histogram",
        _SERVED,
        "Streams: from the request's head to the first content token",
        SECONDS,
    ),
    "turnout_inter_token_seconds": (
        "histogram",
        _SERVED,
        "Streams: mean gap between content chunks, one value a stream",
        GAPS,
    ),
    "turnout_overhead_seconds": ("histogram", _SERVED, "The gateway's own time to the response head", OURS),
    "turnout_stage_seconds_total": ("counter", ("route", "stage"), "Time per stage, waiting included", ()),
    "turnout_tokens_total": (
        "counter",
        (*_SERVED, "kind"),
        "Tokens: prompt (cached ones too), completion, cached, reasoning",
        (),
    ),
    "turnout_cost_usd_total": ("counter", _SERVED, "Cost by the price table, all attempts", ()),
    "turnout_estimated_total": ("counter", _SERVED, "Requests whose usage is our own estimate", ()),
    "turnout_attempts_total": (
        "counter",
        ("route", "provider", "account", "model", "cause", "outcome"),
        "Tries at upstreams",
        (),
    ),
    "turnout_retries_total": (
        "counter",
        ("route", "provider"),
        "Tries again at a target that had failed in the request",
        (),
    ),
    "turnout_hedges_refused_total": ("counter", ("route",), "Hedges that the route's budget had nothing for", ()),
    "turnout_fallbacks_total": ("counter", ("route", "from", "to", "reason"), "Switches to another target", ()),
    "turnout_cutovers_total": (
        "counter",
        ("route", "from", "to", "reason", "outcome"),
        "Streams that broke after their first token: continued, repeated, terminated",
        (),
    ),
    "turnout_timeouts_total": ("counter", ("route", "provider", "kind"), "Limits that ran out", ()),
    "turnout_cache_total": ("counter", ("route", "outcome"), "Cache outcomes", ()),
    "turnout_cache_requests_total": (
        "counter",
        ("route", "tenant", "outcome"),
        "Requests on routes with a cache: hit-exact (followers too), miss, bypass",
        (),
    ),
    "turnout_cache_bypasses_total": ("counter", ("route", "reason"), "Why the cache was passed by", ()),
    "turnout_cache_followers_total": ("counter", ("route",), "Requests that another's upstream call answered", ()),
    "turnout_cache_stores_total": ("counter", ("route", "outcome"), "Answers kept, or too large for that", ()),
    "turnout_cache_saved_usd_total": ("counter", ("route",), "What hits and followers would have cost", ()),
    "turnout_cache_evictions_total": (
        "counter",
        ("reason",),
        "Answers let go: the whole was full, the tenant's share was, or they were dead",
        (),
    ),
    "turnout_cache_garbage_total": ("counter", ("backend",), "Shared values that were not what they should be", ()),
    "turnout_cache_bytes": ("gauge", (), "Memory of kept answers", ()),
    "turnout_cache_entries": ("gauge", (), "Kept answers", ()),
    "turnout_cache_false_hit_rate": (
        "gauge",
        ("route", "tenant", "bound"),
        "Wrong answers of the semantic cache over all requests it looked at: estimate, and its 95 % interval (low, high)",
        (),
    ),
    "turnout_semantic_total": (
        "counter",
        ("route", "outcome"),
        "Semantic look-ups: hit, hit-deep, far, score, score-deep, gone, or bypass-REASON; of an endpoint: hit-proposed, hit-deep-proposed, hit-gate",
        (),
    ),
    "turnout_semantic_late_total": ("counter", ("route",), "Second looks that did not come in time", ()),
    "turnout_semantic_labels_total": (
        "counter",
        ("route", "kind", "verdict"),
        "Hits asked again (check), misses near a kept question (miss, by an endpoint's vectors: found) and users' words (feedback): right, wrong, unclear",
        (),
    ),
    "turnout_semantic_embeddings_total": (
        "counter",
        ("provider", "model", "outcome"),
        "Vectors asked of an endpoint: ok, or why there was none; late: a request went on without it",
        (),
    ),
    "turnout_semantic_embeddings_paused": (
        "gauge",
        ("provider", "model"),
        "Workers that leave an endpoint alone for now",
        (),
    ),
    "turnout_semantic_gate": (
        "gauge",
        ("route", "tenant", "embedding"),
        "Cosine of an endpoint's vectors from which on an answer is given; over 1: closed",
        (),
    ),
    "turnout_semantic_threshold": ("gauge", ("route", "tenant"), "Score from which on an answer is given", ()),
    "turnout_semantic_alarm": (
        "gauge",
        ("route", "tenant"),
        "1: drift, or the budget of wrong answers is not held",
        (),
    ),
    "turnout_semantic_bytes": ("gauge", (), "Memory of questions and their vectors", ()),
    "turnout_semantic_scopes": ("gauge", (), "Scopes in memory", ()),
    "turnout_semantic_evictions_total": ("counter", ("what",), "Questions (item) and scopes that made room", ()),
    "turnout_semantic_heard_seconds": (
        "histogram",
        (),
        "From when a question was learned by one worker until another knows it",
        WAITS,
    ),
    "turnout_semantic_snapshots_total": (
        "counter",
        ("what",),
        "Snapshots of large scopes on disk: written, used, evicted, refused (damaged, old), failed, large (no room)",
        (),
    ),
    "turnout_semantic_errors_total": ("counter", ("kind",), "What went wrong with the books of the semantic cache", ()),
    "turnout_cache_backend_seconds": ("histogram", ("backend", "operation"), "Looking up and keeping answers", OURS),
    "turnout_guard_total": ("counter", ("route", "outcome"), "Guardrail outcomes", ()),
    "turnout_faults_total": ("counter", ("route", "kind"), "Requests that ended badly", ()),
    "turnout_in_flight": ("gauge", (), "Requests being served", ()),
    "turnout_upstream_connections": ("gauge", (), "Open upstream sockets", ()),
    "turnout_records_dropped_total": ("counter", (), "Records the recorder was too slow for", ()),
    "turnout_breaker_open": (
        "gauge",
        ("provider", "account", "model"),
        "Workers in which this target's breaker is open",
        (),
    ),
    "turnout_breaker_opens_total": ("counter", ("provider", "account", "model"), "Times a breaker opened", ()),
    "turnout_redis_seconds": (
        "histogram",
        ("operation",),
        "Operations on Redis, those that ran out of time too",
        WAITS,
    ),
    "turnout_redis_errors_total": ("counter", ("kind",), "What Redis did not do for us, by the reason", ()),
    "turnout_redis_breaker_open": ("gauge", (), "Processes that leave Redis alone for now", ()),
    "turnout_redis_breaker_opens_total": ("counter", (), "Times a breaker to Redis opened", ()),
    "turnout_workers": ("gauge", (), "Workers that answered", ()),
    "turnout_worker_restarts_total": ("counter", (), "Workers that had to be started again", ()),
    "turnout_worker_resident_bytes": ("gauge", ("worker",), "Resident memory", ()),
    "turnout_config_version": ("gauge", (), "Number of the config in force", ()),
}

Labels = tuple[str, ...]
Snapshot = dict[str, dict[Labels, float | list[float]]]


class Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Metrics:
    """The counters of one worker. What is counted leaves its record in `ring` too, where there is one."""

    def __init__(self, ring: Ring | None = None, worker: int = 0) -> None:
        self._worker = worker
        self._tally = Tally(ring, (SECONDS, OURS, SECONDS, GAPS), MOST_SERIES)
        self._counts: dict[str, dict[Labels, float]] = {}
        self._spreads: dict[str, dict[Labels, Histogram]] = {}

    def time(self, family: str, labels: Labels, seconds: float) -> None:
        """Into a histogram of its own."""
        values = self._spreads.setdefault(family, {})
        spread = values.get(labels)
        if spread is None:
            if len(values) >= MOST_SERIES:
                return
            spread = values[labels] = Histogram(FAMILIES[family][3])
        spread.observe(seconds)

    def count(self, family: str, labels: Labels, by: float = 1) -> None:
        values = self._counts.get(family)
        if values is None:
            values = self._counts[family] = {}
        if labels in values:
            values[labels] += by
        elif len(values) < MOST_SERIES:
            values[labels] = by

    def observe(self, x: Exchange) -> None:
        """Count one exchange that has ended, and record it."""
        route = x.route.name if x.route else ""
        tries = x.attempts
        usual = None
        if not tries:
            labels = (route, x.surface.name, "", "")
            if x.fault is None:
                usual = ""
        else:
            last = tries[-1]
            labels = (route, x.surface.name, last.provider, last.model)
            if len(tries) == 1 and x.fault is None and not last.reason:
                usual = last.account
        if usual is None:
            self._observe_unusual(x, route)
        self._tally.settle(labels, usual, context(x, self._worker), x)

    def _observe_unusual(self, x: Exchange, route: str) -> None:
        for a in x.attempts:
            self.count("turnout_attempts_total", (route, a.provider, a.account, a.model, a.cause, a.reason or "ok"))
        self.count("turnout_cache_total", (route, x.cache.partition(";")[0]))
        self.count("turnout_guard_total", (route, x.guard))
        for i, a in enumerate(x.attempts):
            if a.cause == "retry":
                self.count("turnout_retries_total", (route, a.provider))
            elif a.cause != "cut-over" and (before := stands_in_for(x.attempts, i)) is not None:
                self.count("turnout_fallbacks_total", (route, before.provider, a.provider, before.reason))
            if a.reason in TIMEOUTS:
                self.count("turnout_timeouts_total", (route, a.provider, a.reason))
        for cut in x.cuts:
            self.count("turnout_cutovers_total", (route, cut.origin, cut.to, cut.reason, cut.outcome))
        if x.fault is not None:
            self.count("turnout_faults_total", (route, x.fault.kind))
            if x.fault.kind == "total_timeout":
                self.count("turnout_timeouts_total", (route, "", "total_timeout"))

    def snapshot(self) -> Snapshot:
        out: Snapshot = {name: dict(values) for name, values in self._counts.items()}
        for name in FAMILIES:
            out.setdefault(name, {})
        for name, spreads in self._spreads.items():
            out[name].update((labels, [*h.counts, h.total]) for labels, h in spreads.items())
        for labels, statuses, spreads, stages, sums, usual in self._tally.rows():
            for status, n in statuses:
                out["turnout_requests_total"][(*labels, str(status))] = n
            for name, (counts, total) in zip(_SPREADS, spreads, strict=True):
                if any(counts):
                    out[name][labels] = [*counts, total]
            *tokens, estimated, cost_nanos = sums
            for kind, n in zip(("prompt", "completion", "cached", "reasoning"), tokens, strict=True):
                out["turnout_tokens_total"][(*labels, kind)] = n
            out["turnout_cost_usd_total"][labels] = cost_nanos / 1e9
            out["turnout_estimated_total"][labels] = estimated
            route, _, provider, model = labels
            for stage, ns in zip(("admit", "parse", "route", "upstream", "answer"), stages, strict=True):
                _more(out["turnout_stage_seconds_total"], (route, stage), ns / 1e9)
            for (account, cache, guard), n in usual:
                if provider:  # else nobody had to be asked
                    _more(out["turnout_attempts_total"], (route, provider, account, model, "first", "ok"), n)
                _more(out["turnout_cache_total"], (route, cache.partition(";")[0]), n)
                _more(out["turnout_guard_total"], (route, guard), n)
        return {name: values for name, values in out.items() if values}


def _more(values: dict[Labels, float | list[float]], labels: Labels, by: float) -> None:
    have = values.get(labels, 0)
    assert not isinstance(have, list)
    values[labels] = have + by


def encode(snapshot: Snapshot) -> bytes:
    """For the control channel: labels as lists, because MessagePack maps want plain keys."""
    return msgspec.msgpack.encode(
        [(name, list(labels), value) for name, vs in snapshot.items() for labels, value in vs.items()]
    )


def decode(data: bytes) -> Snapshot:
    out: Snapshot = {}
    for name, labels, value in msgspec.msgpack.decode(data):
        out.setdefault(name, {})[tuple(labels)] = value
    return out


# What every worker says of the same thing.
LARGEST = frozenset(
    (
        "turnout_cache_false_hit_rate",
        "turnout_semantic_threshold",
        "turnout_semantic_gate",
        "turnout_semantic_alarm",
    )
)


def add(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum. Gauges add up too, each worker has its own part of them; but for LARGEST."""
    out: Snapshot = {}
    for snapshot in snapshots:
        for name, values in snapshot.items():
            into = out.setdefault(name, {})
            for labels, value in values.items():
                have = into.get(labels)
                if have is None:
                    into[labels] = list(value) if isinstance(value, list) else value
                elif isinstance(value, list) and isinstance(have, list):
                    into[labels] = [a + b for a, b in zip(have, value, strict=True)]
                elif not isinstance(value, list) and not isinstance(have, list):
                    into[labels] = max(have, value) if name in LARGEST else have + value
    return out


def counters_only(snapshot: Snapshot) -> Snapshot:
    """What of a worker that has gone still counts."""
    return {name: values for name, values in snapshot.items() if FAMILIES[name][0] != "gauge"}


def text(snapshot: Snapshot) -> bytes:
    """Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for name, (kind, label_names, help_, bounds) in FAMILIES.items():
        values = snapshot.get(name)
        if not values:
            continue
        lines += (f"# HELP {name} {help_}", f"# TYPE {name} {kind}")
        for labels, value in sorted(values.items()):
            pairs = [f'{n}="{_escape(v)}"' for n, v in zip(label_names, labels, strict=True)]
            if isinstance(value, list):
                running = 0.0
                for bound, n in zip((*map(_number, bounds), "+Inf"), value[:-1], strict=True):
                    running += n
                    lines.append(f"{name}_bucket{_braces([*pairs, _le(bound)])} {_number(running)}")
                lines.append(f"{name}_sum{_braces(pairs)} {_number(value[-1])}")
                lines.append(f"{name}_count{_braces(pairs)} {_number(running)}")
            else:
                lines.append(f"{name}{_braces(pairs)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 12))


def _le(bound: str) -> str:
    return f'le="{bound}"'
