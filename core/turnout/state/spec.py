"""What the config may say about Redis, and what its URL means."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from ..secret import Secret

Millis = Annotated[int, Meta(ge=1, le=60_000)]


class RedisSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Redis 6 or newer, or Valkey; no modules needed."""

    # redis://host:port/db, redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port,host:port;
    # rediss:// in front for TLS
    url: str
    username: str | None = None
    password: Secret | None = None
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    ca_bundle: str | None = None  # PEM; without it the system's
    prefix: str = "turnout"  # of all keys: gateways that share one share what they know
    connect_ms: Millis = 50  # until a connection is made, its TLS and its AUTH included
    operation_ms: Millis = 20


SINGLE, SENTINEL, CLUSTER = "", "sentinel", "cluster"
PORTS = {SINGLE: 6379, SENTINEL: 26379, CLUSTER: 6379}
_URL = re.compile(r"redis(s?)(?:\+(sentinel|cluster))?://([^/?#]*)(?:/([^?#]*))?\Z", re.IGNORECASE)
_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
_EXPECTED = (
    "expected redis://host:port/db, redis+sentinel://host:port,host:port/service or redis+cluster://host:port,host:port"
    " (rediss for TLS)"
)


class Where(msgspec.Struct, frozen=True):
    """What a URL says."""

    kind: str
    tls: bool
    nodes: tuple[tuple[str, int], ...]  # one server; or sentinels, or some nodes of the cluster
    db: int = 0
    service: str = ""  # a sentinel's name for the master


def where(url: str) -> Where:
    """Raises ValueError with a message for people, which repeats nothing of the URL."""
    found = _URL.match(url)
    if found is None:
        raise ValueError(_EXPECTED)
    kind = (found[2] or SINGLE).lower()
    if "@" in found[3]:
        raise ValueError("holds a user or password: give `username`, and `password` by reference")
    nodes = []
    for part in found[3].split(","):
        node = _NODE.match(part)
        port = int(node[2] or PORTS[kind]) if node else 0
        if node is None or not 0 < port < 65536:
            raise ValueError(_EXPECTED)
        nodes.append((node[1].strip("[]"), port))
    if kind == SINGLE and len(nodes) > 1:
        raise ValueError("one host only: several belong to redis+sentinel:// or redis+cluster://")
    path = (found[4] or "").rstrip("/")
    if kind == SENTINEL:
        service, _, path = path.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", service):
            raise ValueError("the name of the sentinels' service is missing: redis+sentinel://host:port/service")
    if kind == CLUSTER and path:
        raise ValueError("a cluster has no databases: nothing may follow its hosts")
    if path and not re.fullmatch(r"[0-9]{1,5}", path):
        raise ValueError("the database behind the host must be a number")
    return Where(kind, bool(found[1]), tuple(nodes), int(path or 0), service if kind == SENTINEL else "")


def fault(spec: RedisSpec) -> tuple[str, str] | None:
    """The first field that is wrong and what is; None: nothing."""
    try:
        place = where(spec.url)
    except ValueError as wrong:
        return "url", str(wrong)
    if place.kind != SENTINEL and (spec.sentinel_username is not None or spec.sentinel_password is not None):
        field = "sentinel_password" if spec.sentinel_password is not None else "sentinel_username"
        return field, "only with redis+sentinel://"
    if spec.username is not None and spec.password is None:
        return "password", "required with `username`"
    if spec.sentinel_username is not None and spec.sentinel_password is None:
        return "sentinel_password", "required with `sentinel_username`"
    if spec.ca_bundle is not None and not place.tls:
        return "ca_bundle", "only with rediss://"
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,100}", spec.prefix):
        return "prefix", "expected letters, digits, `.`, `_`, `:` and `-`"
    return None
