"""Config of routes: what a client asks for, where it may go, how long that may take."""

from typing import Annotated

import msgspec
from msgspec import Meta

from .policies import POLICIES, Ordered

Millis = Annotated[int, Meta(ge=1, le=86_400_000)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Weight = Annotated[float, Meta(ge=0)]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: Name  # what the client sends as `model`; `*` stands for any run of characters


class TargetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    provider: str
    model: str | None = None  # not set: the client's own model name is passed on
    weight: Weight = 1.0


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Milliseconds. `ttft_ms` and `idle_ms` hold for streams, `plain_ms` for the head of an unstreamed answer.

    Not set, `ttft_ms` is 15,000 and `plain_ms` 120,000; for models that the catalog marks as reasoning, 120,000 and
    600,000: they think before the first token.
    """

    connect_ms: Millis = 3_000
    ttft_ms: Millis | None = None
    idle_ms: Millis = 20_000
    plain_ms: Millis | None = None
    total_ms: Millis = 600_000


class Retries(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    max: Annotated[int, Meta(ge=0, le=10)] = 2  # tries again at targets that failed in this request
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.1  # tokens earned per success; see route/retry.py


class RouteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    match: Match
    targets: Annotated[list[TargetSpec], Meta(min_length=1)]
    routing_policy: POLICIES = Ordered()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    max_body_bytes: Annotated[int, Meta(ge=1024)] | None = None
    set: dict[str, object] = {}  # top-level fields of the request body to write over the client's
