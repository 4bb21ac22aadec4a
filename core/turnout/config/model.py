"""The root of the config: only puts the rooms' own specs together."""

from typing import Annotated, Any, Union

import msgspec
from msgspec import Meta

from ..admit.spec import AuthSpec
from ..cache.semantic.spec import Embedding
from ..cache.spec import CacheSpec, MemorySpec
from ..catalog import Override
from ..route.spec import RouteSpec
from ..secret import Certificate, Pem, Secret
from ..state.spec import RedisSpec
from ..telemetry.spec import LogSpec, TelemetrySpec
from ..upstream.providers import PROVIDERS

Provider: Any = Union[tuple(PROVIDERS)]  # noqa: UP007  (a union of a list that grows by one line per provider)
Port = Annotated[int, Meta(ge=0, le=65535)]
Millis = Annotated[int, Meta(ge=1, le=86_400_000)]


class ListenTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """TLS 1.2 and 1.3 on the listener. Renewed files are taken over while it runs (engine granian: at the next start)."""

    cert: Certificate  # PEM, its chain behind it
    key: Pem


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 8080  # 0: the system picks one; it is printed at start
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    backlog: Annotated[int, Meta(ge=16, le=65535)] = 4096
    max_connections: Annotated[int, Meta(ge=16)] = 20_000  # per worker, idle ones counted
    header_timeout_ms: Millis = 5_000  # for a request head that has begun; engine granian: see idle_timeout_ms
    # Keep-alive: longer than clients and load balancers keep theirs (httpx 5 s, AWS 60 s), or they lose a request to the
    # race with our close. granian has one timer for both, so there the longer of the two holds for heads too.
    idle_timeout_ms: Millis = 75_000
    body_timeout_ms: Millis = 30_000
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 32 * 1024 * 1024
    drain_s: Annotated[float, Meta(ge=0)] = 60.0  # how long SIGTERM waits for live requests
    tls: ListenTls | None = None


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 8081
    key: Secret | None = None  # needed unless the host is loopback


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    dir: str = "./turnout-state"
    redis: str | RedisSpec | None = None  # its URL, or more than that

    @property
    def shared(self) -> RedisSpec | None:
        """`redis` in its long form."""
        return RedisSpec(url=self.redis) if isinstance(self.redis, str) else self.redis


class RouteConfig(RouteSpec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A route with all that rooms beside `route` have to say about it."""

    cache: CacheSpec | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One whole configuration. It is checked as a whole and swapped as a whole."""

    providers: dict[str, Provider]
    routes: list[RouteConfig]
    listen: Listen = Listen()
    auth: AuthSpec = AuthSpec()
    admin: Admin = Admin()
    log: LogSpec = LogSpec()
    telemetry: TelemetrySpec = TelemetrySpec()
    state: State = State()
    cache: MemorySpec = MemorySpec()
    models: dict[str, Override] = {}  # prices and sizes over the built-in catalog's

    @property
    def most_body_bytes(self) -> int:
        """The largest request body that any route takes; until the route is known this is the limit."""
        return max([self.listen.max_body_bytes, *(route.max_body_bytes or 0 for route in self.routes)])

    @property
    def traced_share(self) -> float:
        """Of the requests that nobody traces already."""
        return self.telemetry.traces.sample if self.telemetry.traces.endpoint else 0.0

    @property
    def needs_semantic(self) -> bool:
        return any(route.cache is not None and route.cache.semantic is not None for route in self.routes)

    def embedding_of(self, route: RouteConfig) -> Embedding | None:
        """By whose vectors this route's kept questions are found too."""
        semantic = route.cache.semantic if route.cache is not None else None
        if semantic is None or semantic.embedding == "off":
            return None
        return semantic.embedding if isinstance(semantic.embedding, Embedding) else self.cache.embedding

    @property
    def needs_board(self) -> bool:
        """Whether workers share a cache, and have no Redis to do it through."""
        return self.state.shared is None and any(route.cache is not None for route in self.routes)
