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
from .cache.shelf import Shelf
from .cache.tier import Tier
from .catalog import Catalog, patience_ms
from .clock import SystemClock
from .config.model import Config, RouteConfig
from .config.version import facts_of, version_of
from .exchange import Ability, Exchange, Receive, Route, Send, Target
from .flow import Flow
from .ingress import sharing
from .ingress.caller import Callers
from .ingress.endpoints import Endpoints
from .ingress.lifespan import lifespan
from .ingress.question import Question, answer
from .route.health import Breaker
from .route.hedge import Hedge, Purse
from .route.retry import RetryBudget
from .route.share import Cells, Share, name_of
from .route.spec import Match, RouteSpec, StreamSpec, TargetSpec, counting, half_life_s, leaves, tree_of
from .route.spec import Window as RestartWindow
from .route.stage import Routes
from .route.stats import Stats
from .telemetry import record
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
    ) -> None:
        """`board`: what the workers of this host share their caches through. `window(name)`: cells for this name that all workers count in; None where there are none to share."""
        self._loop = asyncio.get_running_loop()
        self._clock = SystemClock()
        self._rng = Random()
        self._worker = worker
        self._ring = ring
        self._dev = dev
        self._window = window
        self.metrics = Metrics()
        self.client = make_client(self._loop, self._clock.now_ns)
        self.callers = Callers(config.listen.body_timeout_ms)
        # Breakers and budgets outlive a config: a reload does not forget which target is down.
        self._breakers: dict[tuple[str, str, str], Breaker] = {}
        self._abilities: dict[tuple[str, str, str, str], Ability] = {}
        self._budgets: dict[tuple[str, float], RetryBudget] = {}
        self._purses: dict[tuple[str, float], Purse] = {}
        self._stats: dict[tuple[str, str, str, float], Stats] = {}
        self._turns: dict[str, dict[str, int]] = {}
        self._shares: list[Share] = []
        self.shelf = Shelf(config.cache, board)
        self._depot: Depot | None = None
        self._closing: asyncio.Task[None] | None = None
        flow = self._build(config, version, simulators or {})
        sample = self._sample(config)
        self.endpoints = Endpoints(flow, self._clock, self.callers, self._rng, sample)
        self._timer: asyncio.TimerHandle | None = None
        self._drain_until = 0.0
        self._tick()

    # ---- ASGI

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine itself: a frame less on every resumption of every request.
        kind = scope["type"]
        if kind == "http":
            return self.endpoints.http(scope, receive, send)
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
            self._closing = self._loop.create_task(depot.close())
        self.client.retire(before)
        self.endpoints.flow = flow
        self.shelf.memory.resize(*config.cache.bounds)
        self.endpoints.sample = self._sample(config)
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
        self.close()
        if self._closing is not None:
            await self._closing

    def depot(self, config: Config) -> "Depot | None":
        """This worker's client of Redis, made (and redis loaded) when something first needs it; None: not configured."""
        if self._depot is None and config.state.shared is not None:
            self._depot = sharing.make(config.state.shared, self._rng)
        return self._depot

    def close(self) -> None:
        if self._depot is not None:
            self._closing = self._loop.create_task(self._depot.close())
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
        for key, breaker in self._breakers.items():
            out.setdefault("turnout_breaker_open", {})[key] = float(breaker.state(now) == "open")
            if breaker.opens:
                out.setdefault("turnout_breaker_opens_total", {})[key] = breaker.opens
        for (route, _), purse in self._purses.items():
            if purse.refused:
                out.setdefault("turnout_hedges_refused_total", {})[(route,)] = purse.refused
        return out

    def explain(self, question: Question) -> dict[str, Any]:
        """What would become of such a request now."""
        return answer(self.endpoints.flow, question, self._clock.now_ns(), self._clock.wall_ns())

    def _tick(self) -> None:
        now = self._clock.now_ns()
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self.client.tick(now)
        self.callers.tick(now)
        for share in self._shares:
            share.sync(now)

    def _settled(self, x: Exchange) -> None:
        self.metrics.observe(x)
        if self._ring is not None:
            self._ring.put_nowait(record.encode(record.of(x, self._worker)))

    # ---- building

    @staticmethod
    def _sample(config: Config) -> float:
        traces = config.telemetry.traces
        return traces.sample if traces.endpoint else 0.0

    def _build(self, config: Config, version: int, simulators: dict[str, str]) -> Flow:
        catalog = Catalog.builtin().with_overrides(config.models) if config.models else Catalog.builtin()
        accounts = {name: self._accounts(name, spec, simulators) for name, spec in config.providers.items()}

        def targets(spec: TargetSpec, route: RouteSpec | None) -> tuple[Target, ...]:
            return tuple(self._target(spec, route, account, catalog) for account in accounts[spec.provider])

        looked_at = LOOKED_AT if any(spec.cache is not None for spec in config.routes) else ()
        reader = RequestReader((*looked_at, *{name for spec in config.routes for name in spec.set}))
        routes = [
            self._route(spec, config, reader.names, tuple(targets(t, spec) for t in leaves(spec)))
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
            settled=self._settled,
            body_limit=config.most_body_bytes,
            shelf=self.shelf,
            tier=self.shelf.tier(self.depot(config)) if looked_at else None,
            meter=self.metrics,
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
            health=self._breaker(key),
            port=port,
            ability=self._abilities.setdefault((*key, prefill), Ability(prefill)),
            stats=self._statistics(spec, route) if route is not None and counting(route) else None,
            label=spec.label,
            rpm=spec.rpm or 0,
            tpm=spec.tpm or 0,
            facts=model,
            context_tokens=(model.context_tokens or 0) if model is not None else 0,
            price=model.price if model is not None else None,
            model_json=msgspec.json.encode(spec.model) if spec.model else None,
            head=tuple(head),
        )

    def _breaker(self, key: tuple[str, str, str]) -> Breaker:
        if key not in self._breakers:
            self._breakers[key] = Breaker(self._rng, self._window(f"probes {' '.join(key)}"))
        return self._breakers[key]

    def _statistics(self, spec: TargetSpec, route: RouteSpec) -> Stats:
        """All accounts of one target have one."""
        key = (route.name, spec.provider, spec.model or "", half_life_s(route))
        if key not in self._stats:
            self._stats[key] = stats = Stats(key[3], self._turns.setdefault(route.name, {}))
            if (cells := self._window(name_of(*key))) is not None:
                self._shares.append(Share(stats, cells, self._clock.now_ns()))
        return self._stats[key]

    def _hedge(self, spec: RouteSpec) -> Hedge | None:
        if spec.hedge is None:
            return None
        key = (spec.name, spec.hedge.budget)
        if key not in self._purses:
            self._purses[key] = Purse(spec.hedge.budget, self._window(f"hedges {spec.name} {spec.hedge.budget}"))
        return Hedge(spec.hedge, self._purses[key])

    def _route(
        self,
        spec: RouteConfig,
        config: Config,
        names: Sequence[str],
        groups: tuple[tuple[Target, ...], ...],
        strip_prefix: bool = False,
    ) -> Route:
        key = (spec.name, spec.retries.budget)
        if key not in self._budgets:
            shared = self._window(f"retries {'direct ' if strip_prefix else ''}{spec.name} {spec.retries.budget}")
            self._budgets[key] = RetryBudget(spec.retries.budget, shared)
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
            budget=self._budgets[key],
            hedge=self._hedge(spec),
            stream=stream,
            assemble=spec.plain == "assemble",
            connect_ms=spec.timeouts.connect_ms,
            idle_ms=spec.timeouts.idle_ms,
            total_ms=spec.timeouts.total_ms,
            max_body_bytes=spec.max_body_bytes or config.listen.max_body_bytes,
            sets=sets,
            header=(b"x-turnout-route", header_value(spec.name)),
            strip_prefix=strip_prefix,
            cache=Policy(asks, names, version_of(spec, config), sets, facts_of(spec)) if asks is not None else None,
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
