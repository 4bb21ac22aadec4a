"""What the config may say about Redis."""

from typing import Annotated

import msgspec
from msgspec import Meta

from ..secret import Secret

Millis = Annotated[int, Meta(ge=1, le=60_000)]


class RedisSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Redis 6 or newer, or Valkey; no modules needed."""

    # redis://host:port/db, rediss:// (TLS), redis+sentinel://host:port,host:port/service/db,
    # redis+cluster://host:port,host:port, and rediss+sentinel, rediss+cluster
    url: str
    username: str | None = None
    password: Secret | None = None
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    ca_bundle: str | None = None  # PEM; without it the system's
    prefix: str = "turnout"  # of all keys: gateways that share one share what they know
    connect_ms: Millis = 50  # until a connection is made, its TLS and its AUTH included
    operation_ms: Millis = 20
