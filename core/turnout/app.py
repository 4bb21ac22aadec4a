"""The composition root: Config -> rooms -> Flow. The one place that constructs things.

`turnout.app:app` is a plain ASGI 3 application for any server; it reads the file that TURNOUT_CONFIG names when its
lifespan starts. `turnout serve` builds `App` itself, with the config the supervisor has checked.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from . import __version__
from .admit.keys import Keyring
from .cache.policy import LOOKED_AT, Policy
from .cache.semantic.question import LOOKED_AT as LOOKED_AT_TOO
from .cache.shelf import Shelf
from .cache.tier import Tier
from .catalog import Catalog, patience_ms
from .clock import SystemClock
from .config.model import Config, RouteConfig
from .config.version import facts_of, heeds_headers, version_of
from .embedding import Embeddings
from .exchange import Receive, Route, Send, Target
from .flow import Flow
from .ingress import sharing
from .ingress.caller import Callers
from .ingress.endpoints import Endpoints
from .ingress.incoming import Incoming
from .ingress.lifespan import lifespan
from .ingress.question import Question, answer
from .route.lasting import Lasting
from .route.share import Cells
from .route.spec import Match, RouteSpec, StreamSpec, TargetSpec, counting, leaves, tree_of
from .route.spec import Window as RestartWindow
from .route.stage import Routes
from .telemetry.metrics import Metrics, Snapshot
from .telemetry.ring import Ring
from .upstream.attempt import OpenAIPort
from .upstream.client import TICK_S, Client
from .upstream.connect import Origin
from .upstream.prefill import ASSISTANT_PREFIX, known_prefill
from .upstream.providers.openai import AccountSpec, OpenAISpec
from .upstream.providers.simulated import SimulatedSpec
from .wire.headers import header_value
from .wire.request import RequestReader

if TYPE_CHECKING:
    from .cache.semantic.room import Room
    from .state.depot import Depot

USER_AGENT = f"turnout/{__version__}"


class App:
    """One worker's application. Needs a running event loop to be made."""

    def __init__(
        self,
        config: Config,
        *,
        version: int = 1,
        dev: bool = False,
        worker: int = 0,
        ring: Ring | None = None,
        simulators: dict[str, str] | None = None,
        make_client: Callable[[asyncio.AbstractEventLoop, Callable[[], int]], Any] = Client,
        window: Callable[[str], Cells | None] = lambda name: None,
        board: Tier | None = None,
        tell: Callable[[str, Any], None] = lambda kind, value: None,
    ) -> None:
        """`board`: what the workers of this host share their caches through. `tell(kind, value)`: the supervisor, see ingress/control.py. `window(name)`: cells for this name that all workers count in; None where there are none to share."""
        self._loop = asyncio.get_running_loop()
        self._clock = SystemClock()
        self._rng = Random()
        self._worker = worker
        self._tell_supervisor = tell
        self._window = window
        self._ring = ring
        self._dev = dev
        self.metrics = Metrics(ring, worker)
        self.client = make_client(self._loop, self._clock.now_ns)
        self.callers = Callers(config.listen.body_timeout_ms)
        self._lasting = Lasting(self._rng, window)
        self.shelf = Shelf(config.cache, board)
        self._depot: Depot | None = None
        self.room: Room | None = None  # the semantic cache, once a route has one
        self._embeddings = Embeddings(self._clock, self.metrics.observe, self.metrics)
        self._ending: list[asyncio.Task[None]] = []
        flow = self._build(config, version, simulators or {})
        sample = config.traced_share
        self.endpoints = Endpoints(flow, self._clock, self.callers, self._rng, sample)
        self.direct = self.endpoints.serve  # what engine native calls instead
        self._timer: asyncio.TimerHandle | None = None
        self._drain_until = 0.0
        self._tick()

    # ---- ASGI

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine itself: a frame less on every resumption of every request.
        kind = scope["type"]
        if kind == "http":
            return self.endpoints.serve(Incoming(scope, receive, send))
        if kind == "lifespan":
            return lifespan(receive, send, None, self.finish)
        raise ValueError(f"{kind} connections are not served")

    # ---- life

    def apply(self, config: Config, version: int, simulators: dict[str, str]) -> None:
        """Swap the config: new requests get the new flow, those under way keep the one they began with."""
        before = self.client.swap([])
        depot = self._depot
        if depot is not None and depot.spec != config.state.shared:
            self._depot = None
        try:
            flow = self._build(config, version, simulators)
        except BaseException:  # the old config stays in force, and so do its connections
            self.client.retire(self.client.swap(before))
            self._depot = depot
            raise
        if depot is not None and depot is not self._depot:
            self._ending.append(self._loop.create_task(depot.close()))
        self.client.retire(before)
        self.endpoints.flow = flow
        self.shelf.memory.resize(*config.cache.bounds)
        self.endpoints.sample = config.traced_share
        self.callers.body_ns = config.listen.body_timeout_ms * 1_000_000

    def drain(self, seconds: float) -> None:
        """Not ready any more; connections close after their next answer. Live requests have `seconds` to finish."""
        self.endpoints.ready = False
        self.callers.draining = True
        self._drain_until = self._loop.time() + seconds

    async def finish(self) -> None:
        """The end: wait for live requests as long as `drain` allowed, then close what is left."""
        flights = self.shelf.flights
        while (self.callers.live or flights.running) and self._loop.time() < self._drain_until:
            await asyncio.sleep(0.01)
        await flights.finish()
        if self.room is not None:
            await self.room.close()
        self.close()
        for task in self._ending:
            await task

    def depot(self, config: Config) -> "Depot | None":
        """This worker's client of Redis, made (and redis loaded) when something first needs it; None: not configured."""
        if self._depot is None and config.state.shared is not None:
            self._depot = sharing.make(config.state.shared, self._rng)
        return self._depot

    def _lookup(self, config: Config) -> Any:
        """The semantic look-up; None where no route has one."""
        if not config.needs_semantic:
            return None
        depot = self.depot(config)
        if self.room is None or self.room.depot is not depot:
            from .cache.semantic.room import Room

            if self.room is not None:
                self._ending.append(self._loop.create_task(self.room.close()))
            self.room = Room(
                config.cache,
                directory=config.state.dir,
                depot=depot,
                worker=self._worker,
                memory=self.shelf.memory,
                clock=self._clock,
                rng=self._rng,
                counts=self.metrics,
                say=lambda text: self._tell_supervisor("note", text),
                told=lambda: self._tell_supervisor("news", None),
                window=self._window,
            )
        self.room.resize(config.cache)
        return self.room.lookup

    def close(self) -> None:
        if self._depot is not None:
            self._ending.append(self._loop.create_task(self._depot.close()))
            self._depot = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.client.close()

    def snapshot(self) -> Snapshot:
        """This worker's metrics now."""
        out = self.metrics.snapshot()
        now = self._clock.now_ns()
        out["turnout_in_flight"] = {(): self.callers.live}
        out["turnout_upstream_connections"] = {(): self.client.connections}
        out["turnout_workers"] = {(): 1}
        if self._ring is not None:
            out["turnout_records_dropped_total"] = {(): self._ring.dropped}
        out.update(self.shelf.memory.seen())
        if self._depot is not None:
            out.update(sharing.seen(self._depot))
        out.update(self._lasting.seen(now))
        if self.room is not None:
            out.update(self.room.seen())
        out.update(self._embeddings.seen())
        return out

    def explain(self, question: Question) -> dict[str, Any]:
        """What would become of such a request now."""
        return answer(self.endpoints.flow, question, self._clock.now_ns(), self._clock.wall_ns())

    def _tick(self) -> None:
        now = self._clock.now_ns()
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self.client.tick(now)
        self.callers.tick(now)
        self._lasting.tick(now)

    # ---- building

    def _build(self, config: Config, version: int, simulators: dict[str, str]) -> Flow:
        catalog = Catalog.builtin().with_overrides(config.models) if config.models else Catalog.builtin()
        accounts = {name: self._accounts(name, spec, simulators) for name, spec in config.providers.items()}

        def targets(spec: TargetSpec, route: RouteSpec | None) -> tuple[Target, ...]:
            return tuple(self._target(spec, route, account, catalog) for account in accounts[spec.provider])

        looked_at: tuple[str, ...] = LOOKED_AT if any(spec.cache is not None for spec in config.routes) else ()
        if config.needs_semantic:
            looked_at += LOOKED_AT_TOO
        reader = RequestReader((*looked_at, *{name for spec in config.routes for name in spec.set}))
        routes = [
            self._route(
                spec,
                config,
                reader.names,
                tuple(targets(t, spec) for t in leaves(spec)),
                endpoint=self._embeddings.of(config.embedding_of(spec), config.providers, accounts, catalog),
            )
            for spec in config.routes
        ]
        direct = {}
        for name in config.providers:
            # Past the routes one asks for what this very provider says: as it comes, and nobody goes on for it.
            spec = RouteConfig(
                name=name,
                match=Match(model=f"{name}/*"),
                targets=[TargetSpec(provider=name)],
                stream=StreamSpec(on_failure="terminate", tool_calls="pass"),
            )
            direct[name] = self._route(spec, config, reader.names, (targets(spec.targets[0], spec),), strip_prefix=True)
        return Flow(
            version=version,
            keyring=Keyring(config.auth.keys, open_door=self._dev),
            routes=Routes(routes, direct, self._rng),
            reader=reader,
            catalog=catalog,
            clock=self._clock,
            rng=self._rng,
            settled=self.metrics.observe,
            body_limit=config.most_body_bytes,
            shelf=self.shelf,
            tier=self.shelf.tier(self.depot(config)) if looked_at else None,
            lookup=self._lookup(config),
            meter=self.metrics,
            heeds_headers=any(map(heeds_headers, config.routes)),
        )

    def _accounts(
        self, name: str, spec: OpenAISpec | SimulatedSpec, simulators: dict[str, str]
    ) -> list[tuple[AccountSpec | None, OpenAIPort, str]]:
        """A port per account of one provider, and how the provider takes an answer to go on with."""
        prefill = ASSISTANT_PREFIX if isinstance(spec, SimulatedSpec) else known_prefill(spec.base_url)
        if isinstance(spec, SimulatedSpec):
            url = simulators.get(name, "http://127.0.0.1:9/v1")
            spec = OpenAISpec(base_url=url, headers={"authorization": "Bearer simulated"})
        origin = Origin(spec.base_url, ca_bundle=spec.ca_bundle, proxy=spec.proxy, max_idle=spec.max_idle_connections)
        self.client.add(origin)
        ports: list[tuple[AccountSpec | None, OpenAIPort, str]] = []
        named: Sequence[AccountSpec | None] = spec.accounts or (None,)
        for account in named:
            key = account.api_key if account is not None else spec.api_key
            lines = dict(spec.headers)
            if key is not None:
                lines["authorization"] = f"Bearer {key.reveal()}"
            if account is not None and account.organization:
                lines["openai-organization"] = account.organization
            if account is not None and account.project:
                lines["openai-project"] = account.project
            port = OpenAIPort(self.client, origin, lines, include_usage=spec.include_usage, user_agent=USER_AGENT)
            ports.append((account, port, prefill))
        return ports

    def _target(
        self,
        spec: TargetSpec,
        route: RouteSpec | None,
        account: tuple[AccountSpec | None, OpenAIPort, str],
        catalog: Catalog,
    ) -> Target:
        who, port, known = account
        prefill = known if spec.prefill == "auto" else spec.prefill
        model = catalog.find(spec.model, spec.provider) if spec.model else None
        limits = route.timeouts if route is not None else None
        key = (spec.provider, who.name if who else "", spec.model or "")
        head = [(b"x-turnout-provider", header_value(spec.provider))]
        if spec.model:
            head.append((b"x-turnout-model", header_value(spec.model)))
        return Target(
            provider=spec.provider,
            account=who.name if who else "",
            model=spec.model,
            weight=spec.weight,
            account_weight=who.weight if who else 1.0,
            ttft_ms=(limits and limits.ttft_ms) or (patience_ms(model, True) if spec.model else 0),
            plain_ms=(limits and limits.plain_ms) or (patience_ms(model, False) if spec.model else 0),
            health=self._lasting.breaker(key),
            port=port,
            ability=self._lasting.ability(key, prefill),
            stats=self._lasting.statistics(spec, route, self._clock.now_ns())
            if route is not None and counting(route)
            else None,
            label=spec.label,
            rpm=spec.rpm or 0,
            tpm=spec.tpm or 0,
            facts=model,
            context_tokens=(model.context_tokens or 0) if model is not None else 0,
            price=model.price if model is not None else None,
            model_json=msgspec.json.encode(spec.model) if spec.model else None,
            head=tuple(head),
        )

    def _route(
        self,
        spec: RouteConfig,
        config: Config,
        names: Sequence[str],
        groups: tuple[tuple[Target, ...], ...],
        strip_prefix: bool = False,
        endpoint: Any = None,
    ) -> Route:
        stream = spec.stream
        if stream.on_failure == "restart" and stream.restart_window is None:
            stream = msgspec.structs.replace(stream, restart_window=RestartWindow())
        sets = tuple((name.encode(), msgspec.json.encode(value)) for name, value in spec.set.items())
        asks = spec.cache
        return Route(
            name=spec.name,
            match=spec.match.model,
            groups=groups,
            policy=spec.routing_policy,
            tree=tree_of(spec),
            retries_max=spec.retries.max,
            budget=self._lasting.budget(spec, strip_prefix),
            hedge=self._lasting.hedge(spec),
            stream=stream,
            assemble=spec.plain == "assemble",
            connect_ms=spec.timeouts.connect_ms,
            idle_ms=spec.timeouts.idle_ms,
            total_ms=spec.timeouts.total_ms,
            max_body_bytes=spec.max_body_bytes or config.listen.max_body_bytes,
            sets=sets,
            header=(b"x-turnout-route", header_value(spec.name)),
            strip_prefix=strip_prefix,
            cache=asks and Policy(asks, names, version_of(spec, config), sets, facts_of(spec), endpoint),
        )


class _FromFile:
    """The application of the file that TURNOUT_CONFIG names, made when a server starts it."""

    def __init__(self) -> None:
        self._app: App | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send, self._start, self._stop)
            return
        if self._app is None:
            self._start()
        assert self._app is not None
        await self._app(scope, receive, send)

    def _start(self) -> None:
        from .config.load import load_file

        path = os.environ.get("TURNOUT_CONFIG")
        if not path:
            raise RuntimeError("set TURNOUT_CONFIG to a config file, or start with `turnout serve`")
        self._app = App(load_file(path).config)

    async def _stop(self) -> None:
        if self._app is not None:
            await self._app.finish()


app = _FromFile()
