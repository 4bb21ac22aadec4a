"""What travels with a request: the one record that every room reads and leaves its marks on.

Rooms on one level do not know each other. What two of them share is a field here, or a Protocol written by the room that needs it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from .catalog import Model, Price
from .errors import Fault

OFF = "bypass;off"  # the cache outcome of a route that has none
OUTRUN = "outrun"
Headers = list[tuple[bytes, bytes]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Principal(msgspec.Struct, frozen=True):
    """Who is asking: one key of the config, without the key."""

    name: str
    tenant: str  # the team where the key has one, else the key itself: what caches and limits are parted by
    fingerprint: str  # six hex digits of the key's digest, safe to log
    team: str | None = None
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ("*",)  # patterns over what a request may ask for as `model`
    direct: bool = False  # may ask for `provider/model` past the routes


class Usage(msgspec.Struct, array_like=True):
    """Tokens in OpenAI's meaning: `prompt` counts cached ones too, `completion` counts reasoning ones too."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False  # the provider gave no number: this is our own count

    def plus(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            self.reasoning + other.reasoning,
            self.estimated or other.estimated,
        )


class Attempt(msgspec.Struct, array_like=True):
    """One try at one target. One ledger row each. Plain values only: it goes to the recorder as it is."""

    provider: str
    account: str
    model: str  # the provider's name of the model
    cause: str  # first | fallback | retry | hedge | cut-over
    started_ns: int
    ended_ns: int = 0
    first_byte_ns: int = 0
    first_content_ns: int = 0
    status: int = 0  # the upstream's HTTP status, 0 if there was none
    # empty = it served; else the fault's reason (429, connect, ttft_timeout ...), `client_gone`, or OUTRUN: another target,
    # asked at the same time, was first
    reason: str = ""
    usage: Usage | None = None
    cost_nanos: int = 0  # nano-dollars
    priced: bool = True  # False: the model is not in the price table, its cost is not known


class Cut(msgspec.Struct, array_like=True):
    """A stream that broke after something of it was shown, and what became of it."""

    origin: str  # the target that broke
    to: str  # the one that went on; empty: none did
    chars: int  # of text that had been shown
    reason: str  # why it broke
    outcome: str  # continued | repeated | terminated
    broke_ns: int
    joined_ns: int = 0  # the client's next event

    @property
    def story(self) -> str:
        """`a>b after=412 chars reason=reset`."""
        to = f">{self.to}" if self.to else ""
        return f"{self.origin}{to} after={self.chars} chars reason={self.reason}"


class Saved(msgspec.Struct, array_like=True):
    """What a request got without an upstream call of its own: whose answer it was, and what that would have cost."""

    provider: str
    model: str
    cost_nanos: int


class Ability(msgspec.Struct):
    """What is known of a target's ways, corrected as it is asked."""

    prefill: str  # wire.resume: how it takes an answer to go on with


class Target(msgspec.Struct, kw_only=True):
    """One place a request can go to: a provider's account and a model there. Built once per config."""

    provider: str
    account: str
    model: str | None  # None: the client's own model name is passed on
    weight: float  # among the targets of a route
    account_weight: float  # among the accounts of one target
    ttft_ms: int  # 0: by the model, see catalog (a reasoning model is silent for long)
    plain_ms: int  # 0: likewise
    health: Any  # route.health.Breaker
    port: Any  # upstream.attempt.OpenAIPort
    ability: Ability = msgspec.field(default_factory=lambda: Ability("none"))
    context_tokens: int = 0  # the longest prompt it takes, 0: not known
    price: Price | None = None
    facts: Model | None = None  # the catalog's row
    stats: Any = None  # route.stats.Stats; None where the route's policy asks for none
    label: str = ""  # what the route's policy calls it
    rpm: int = 0  # requests and tokens it takes in a minute, 0: not said
    tpm: int = 0
    model_json: bytes | None = None  # `model` as JSON, ready to be put into a body
    head: tuple[tuple[bytes, bytes], ...] = ()  # response headers that name this target

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}" if self.model else self.provider


class Route(msgspec.Struct, kw_only=True):
    """A route of the config, ready to use. Policy, limits and schema hang here, never on a target."""

    name: str
    match: str
    groups: tuple[tuple[Target, ...], ...]  # one per target of the config, its accounts in it
    policy: Any  # route.policies: rank(targets, x, now_ns, rng, why) -> order of indexes
    tree: Any = None  # route.tree.Branch, where targets are nested
    heads: tuple[Target, ...] = ()  # the first account of each target: what policies rank
    spread: bool = False  # some target has several accounts
    retries_max: int
    budget: Any  # route.retry.RetryBudget
    hedge: Any = None  # route.hedge.Hedge
    stream: Any = None  # route.spec.StreamSpec
    assemble: bool = False  # upstreams are asked to stream what a client wants whole
    connect_ms: int
    idle_ms: int
    total_ms: int
    max_body_bytes: int
    sets: tuple[tuple[bytes, bytes], ...] = ()  # (field name, JSON value) written over the client's
    header: tuple[bytes, bytes]  # x-turnout-route
    strip_prefix: bool = False  # a direct route: `provider/model` goes on as `model`
    cache: Any = None  # cache.policy.Policy, where the route asks for one

    def __post_init__(self) -> None:
        self.heads = tuple(group[0] for group in self.groups)
        self.spread = any(len(group) > 1 for group in self.groups)


class Surface(msgspec.Struct, frozen=True):
    """One endpoint of the wire: what it needs and where it goes upstream."""

    name: str  # chat | completions | embeddings
    path: str
    upstream_path: str  # after the provider's base_url
    required: tuple[str, ...]
    can_stream: bool
    operation: str  # gen_ai.operation.name of the OpenTelemetry conventions


class Trace(msgspec.Struct, frozen=True):
    """W3C trace context of a sampled request."""

    trace_id: str  # 32 hex digits
    parent_id: str  # 16 hex digits, empty if the request starts the trace


class Exchange(msgspec.Struct, kw_only=True):
    """One request on its way. Marks are monotonic nanoseconds, 0 = not reached."""

    surface: Surface
    principal: Principal | None = None
    body: bytes = b""
    spans: tuple[int, ...] = ()  # where the fields of wire.fields lie in the body
    assemble: bool = False  # it wants the answer whole, but the upstream is asked to stream
    asked_usage: bool = False  # the client itself asked for stream_options.include_usage
    forward: Sequence[tuple[bytes, bytes]] = ()  # client headers that may go upstream
    headers: Sequence[tuple[bytes, bytes]] = ()  # all of the client's, where conditions look at them
    wishes: tuple[tuple[bytes, bytes], ...] = ()  # those of them that say something of the cache
    asked_route: str = ""  # x-turnout-route
    metadata: bool = False  # x-turnout-metadata: a stream closes with an event that says what it cost
    timeout_ms: int = 0  # x-turnout-timeout-ms
    trace: Trace | None = None
    route: Route | None = None
    deadline_ns: int = 0
    fault: Fault | None = None  # how it ended, if badly
    cache_key: str = ""  # what the cache knows the answer by, the beginning of it
    wanted: str | None = None  # the model of the target that would have been first; on routes with a cache
    committed: bool = False  # the response head is out: no other answer can be given any more
    settled: bool = False

    # From here on what telemetry/record.py records, in the record's order.
    id: str
    wall_ns: int
    started_ns: int
    ended_ns: int = 0
    stream: bool = False  # the client asked for a stream
    status: int = 0
    cache: str = OFF
    guard: str = "none"
    usage: Usage | None = None
    cost_nanos: int = 0
    chunks: int = 0  # content events relayed
    admitted_ns: int = 0
    parsed_ns: int = 0
    routed_ns: int = 0
    upstream_ns: int = 0  # time spent waiting for upstreams and for back-offs, summed
    head_ns: int = 0  # the response head was handed over
    first_byte_ns: int = 0
    first_content_ns: int = 0
    bytes_out: int = 0
    model: str = ""  # as the client asked
    session: str = ""
    tags: str = ""
    prompt_version: str = ""
    finish: str = ""
    config_version: int
    attempts: list[Attempt] = []  # as they began; but of two that raced the one that goes on stands last
    cuts: Sequence[Cut] = ()
    saved: Saved | None = None

    @property
    def own_model(self) -> str:
        """The model name that goes on where the target names none."""
        return self.model.partition("/")[2] if self.route is not None and self.route.strip_prefix else self.model

    @property
    def fallback(self) -> str:
        """`none`, or `a>b;reason=429`: the last switch from one target to another."""
        tries = self.attempts
        for i in range(len(tries) - 1, 0, -1):
            if (before := stands_in_for(tries, i)) is not None:
                a, b = names_apart(before, tries[i])
                return f"{a}>{b};reason={before.reason}"
        return "none"


def stands_in_for(tries: list[Attempt], i: int) -> Attempt | None:
    """The attempt that number `i` took over from, as another target: a fallback, a cut-over, or a hedge that won."""
    a = tries[i]
    if a.cause not in ("fallback", "cut-over", "hedge") or a.reason == OUTRUN:
        return None
    # A hedge that lost stands in front of the one that it ran against.
    return next((b for b in reversed(tries[:i]) if b.cause != "hedge" or b.reason != OUTRUN), None)


def names_apart(a: Attempt, b: Attempt) -> tuple[str, str]:
    """The shortest names that tell two attempts' targets apart."""
    if a.provider != b.provider:
        return a.provider, b.provider
    one, other = (f"{t.provider}/{t.account or t.model}" for t in (a, b))
    return one, other


class Reply(msgspec.Struct):
    """A whole answer given at once."""

    status: int
    headers: Headers
    body: bytes
