"""Config of what is seen: request log, traces, alerts."""

from typing import Literal

import msgspec

from ..secret import Secret


class LogSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    requests: Literal["all", "errors", "off"] = "all"  # one JSON line per request on stdout


class TracesSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    endpoint: str | None = None  # OTLP/HTTP, e.g. http://127.0.0.1:4318; not set: no spans are made
    sample: float = 0.05  # share of the requests that start a trace; a caller's sampled traceparent is always kept
    service_name: str = "turnout"
    headers: dict[str, Secret] = {}


class AlertsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    webhook: Secret | None = None  # the URL is a secret: Slack's and others' carry their credential in it
    every_s: float = 60.0  # the same alert at most this often


class TelemetrySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    traces: TracesSpec = TracesSpec()
    alerts: AlertsSpec = AlertsSpec()
