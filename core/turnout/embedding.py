"""Vectors of a provider's model for the semantic cache: each is one plain call by the same client as all upstream traffic,
booked on the tenant whose request wanted it, as a request of its own with a cost, a log line and a span."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from .account.cost import cost_nanos, estimate
from .cache.needs import Meter
from .cache.semantic.spec import Embedding
from .catalog import Catalog
from .clock import Clock
from .errors import Fault
from .exchange import Attempt, Exchange, Surface
from .upstream.attempt import OpenAIPort, refusal, told
from .upstream.call import Call, Request
from .upstream.providers.openai import AccountSpec

if TYPE_CHECKING:
    from .cache.semantic.remote.endpoint import Endpoint, State

SURFACE = Surface("embeddings", "/v1/embeddings", "/embeddings", ("input",), False, "embeddings")
CAUSE = "embedding"  # of the ledger's row
MOST_BYTES = 256 * 1024  # of an answer: 4096 numbers in at most 32 characters each


class Embeddings:
    """Of one worker, over all its configs: a reload forgets nothing of an endpoint that is still in it."""

    def __init__(self, clock: Clock, settled: Callable[[Exchange], None], meter: Meter) -> None:
        self._clock = clock
        self._settled = settled
        self._meter = meter
        # As long as some config that is in use has it.
        self._states: WeakValueDictionary[bytes, State] = WeakValueDictionary()

    def of(
        self,
        spec: Embedding | None,
        providers: Mapping[str, Any],
        accounts: Mapping[str, Sequence[tuple[AccountSpec | None, OpenAIPort, str]]],
        catalog: Catalog,
    ) -> "Endpoint | None":
        """The endpoint as this config has it; None: a route has none."""
        if spec is None:
            return None
        from .cache.semantic.remote.endpoint import Endpoint, State  # numpy: only who has an endpoint pays for it

        # What makes vectors: by it spaces are told apart. Not the provider's name, nor how long one waits.
        provider = providers[spec.provider]
        where = getattr(provider, "base_url", None) or msgspec.to_builtins(provider)
        said = msgspec.json.encode([where, spec.model, spec.dimensions], order="deterministic")
        space = hashlib.blake2b(said, digest_size=16).digest()
        whole = space + msgspec.json.encode(spec)
        state = self._states.get(whole)
        if state is None:
            state = self._states[whole] = State(spec)
        ports = [(who.name if who is not None else "", port) for who, port, _ in accounts[spec.provider]]
        ask = Asker(spec, ports, catalog, self._clock, self._settled)
        return Endpoint(space, state, ask, self._clock.now_ns, self._meter)

    def seen(self) -> dict[str, dict[tuple[str, ...], float | list[float]]]:
        """For the metrics."""
        paused: dict[tuple[str, ...], bool] = {}
        for state in list(self._states.values()):
            name = (state.spec.provider, state.spec.model)
            paused[name] = state.pause.on or paused.get(name, False)
        return (
            {"turnout_semantic_embeddings_paused": {name: float(on) for name, on in paused.items()}} if paused else {}
        )


class Asker:
    """Asks one provider for one model's vectors, by the first of its accounts that did not fail last."""

    def __init__(
        self,
        spec: Embedding,
        ports: Sequence[tuple[str, OpenAIPort]],
        catalog: Catalog,
        clock: Clock,
        settled: Callable[[Exchange], None],
    ) -> None:
        model = catalog.find(spec.model, spec.provider)
        self._spec = spec
        self._price = model.price if model is not None else None
        self._ports = ports
        self._at = 0
        self._clock = clock
        self._settled = settled

    async def __call__(self, x: Exchange, text: str, why: str, until_ns: int) -> bytes:
        """The body of an answer whose status was well; it is JSON. `why`: in the name of the request that it is booked as.
        Raises Fault."""
        at = self._at
        account, port = self._ports[at]
        now = self._clock.now_ns()
        spec = self._spec
        attempt = Attempt(spec.provider, account, spec.model, CAUSE, now)
        side = Exchange(
            id=f"{x.id}-{why}", surface=SURFACE, principal=x.principal, route=x.route, trace=x.trace, model=spec.model,
            wall_ns=self._clock.wall_ns(), started_ns=now, admitted_ns=now, parsed_ns=now, routed_ns=now, deadline_ns=until_ns,
            config_version=x.config_version, session=x.session, tags=x.tags, attempts=[attempt],
        )  # fmt: skip
        asked: dict[str, Any] = {"model": spec.model, "input": text}
        if spec.dimensions is not None:
            asked["dimensions"] = spec.dimensions
        side.body = msgspec.json.encode(asked)
        left_ns = until_ns - now
        path = SURFACE.upstream_path
        connect_ms = max(1, left_ns // 1_000_000)
        request = Request(path, False, [side.body], len(side.body), [], now, until_ns, until_ns, connect_ms, left_ns)
        try:
            body, call = await port.whole(request, MOST_BYTES)
            attempt.status, attempt.first_byte_ns = call.status, call.first_byte_ns
            self._book(side, attempt, port, call, body, len(text))
            side.status = 200
            return body
        except Fault as fault:
            attempt.reason = fault.reason
            attempt.status = attempt.status or fault.upstream_status
            side.fault, side.status = fault, fault.status
            if self._at == at:  # else another call has found out already
                self._at = (at + 1) % len(self._ports)
            raise
        except BaseException:
            attempt.reason, side.status = "client_gone", 499
            raise
        finally:
            attempt.ended_ns = side.ended_ns = self._clock.now_ns()
            side.upstream_ns = side.ended_ns - now
            self._settled(side)

    def _book(self, side: Exchange, attempt: Attempt, port: OpenAIPort, call: Call, body: bytes, size: int) -> None:
        """What it cost, if it is an answer. Raises Fault."""
        if not 200 <= call.status < 300:
            raise refusal(call.status, port.scrub(body), call.media_type, call.headers, self._clock.wall_ns() / 1e9)
        _, usage = told(call, body, port.scrub) or (None, None)
        attempt.usage = side.usage = usage or estimate(size, 0)
        if self._price is None:
            attempt.priced = False
            return
        attempt.cost_nanos = side.cost_nanos = cost_nanos(attempt.usage, self._price)
