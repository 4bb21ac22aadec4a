"""Config of routes: what a client asks for, where it may go, how long that may take."""

import itertools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .hedge import HedgeSpec, Millis
from .latency import HALF_LIFE_S
from .policies import POLICIES, Ordered
from .policies.least_latency import LeastLatency
from .tree import Branch

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Weight = Annotated[float, Meta(ge=0)]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: Name  # what the client sends as `model`; `*` stands for any run of characters


class TargetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A provider (and a model there), or a group: targets of its own under a policy of its own, which the policy above
    ranks as one, by the best of them."""

    provider: str = ""
    model: str | None = None  # not set: the client's own model name is passed on
    name: Name | None = None  # what policies call it; not set: provider/model
    weight: Weight = 1.0
    rpm: Annotated[int, Meta(ge=1)] | None = None  # requests and tokens it takes in a minute, for policy `usage`
    tpm: Annotated[int, Meta(ge=1)] | None = None
    # How it takes an answer to go on with after a cut-over. `auto`: what is known of the host, else `none`, which asks
    # for it in words. A target that refuses is asked in words from then on.
    prefill: Literal["auto", "assistant-prefix", "continue_final_message", "none"] = "auto"
    targets: list["TargetSpec"] = []
    routing_policy: POLICIES | None = None  # of `targets`; not set: ordered

    @property
    def label(self) -> str:
        return self.name or (f"{self.provider}/{self.model}" if self.model else self.provider)


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


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of an answer is held back before it is shown: up to `tokens` or for `ms`, whichever ends first."""

    tokens: Annotated[int, Meta(ge=1, le=10_000)] = 32
    ms: Annotated[int, Meta(ge=1, le=60_000)] = 1_000


# Neutral in language: it must not change the answer's language or tone. `{words}` is what the answer is to begin with.
INSTRUCTION = (
    "Continue your last message from where it stops, in its own language, voice and format. No greeting, no comment, "
    "nothing said twice. Begin with exactly these characters:\n{words}"
)
INSTRUCTION_LITERAL = (
    "Continue your last message from where it stops, in its own language, voice and format. No greeting, no comment, "
    "nothing said twice. Your first character is the one that comes next."
)


class StreamSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What happens to a stream that breaks after something of it was shown.

    `continue`: another target goes on with it; `terminate`: an error event. `restart`: a `restart_window` of the answer
    is held back, and until that is over another target begins again; then as `terminate`. A `restart_window` may be set
    with the other two as well.
    """

    on_failure: Literal["continue", "restart", "terminate"] = "continue"
    tool_calls: Literal["hold", "pass"] = (
        "hold"  # hold: shown once they are whole, so that a cut in one can be repaired
    )
    max_cutovers: Annotated[int, Meta(ge=0, le=10)] = 2
    restart_window: Window | None = None
    instruction: Annotated[str, Meta(min_length=1, max_length=4_000)] = INSTRUCTION
    instruction_literal: Annotated[str, Meta(min_length=1, max_length=4_000)] = INSTRUCTION_LITERAL


class RouteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    match: Match
    targets: Annotated[list[TargetSpec], Meta(min_length=1)]
    routing_policy: POLICIES = Ordered()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    hedge: HedgeSpec | None = None  # not set: none
    stream: StreamSpec = StreamSpec()
    # assemble: upstreams are asked to stream what a client wants whole, so that silence and cuts are met in seconds
    plain: Literal["pass", "assemble"] = "pass"
    max_body_bytes: Annotated[int, Meta(ge=1024)] | None = None
    set: dict[str, object] = {}  # top-level fields of the request body to write over the client's


def leaves(spec: "RouteSpec | TargetSpec") -> list[TargetSpec]:
    """The targets that requests can go to, from left to right; groups are opened."""
    return [leaf for t in spec.targets for leaf in (leaves(t) if t.targets else [t])]


def policies(spec: "RouteSpec | TargetSpec") -> list[Any]:
    """Of the route or group and of all groups in it."""
    return [spec.routing_policy or Ordered(), *(p for t in spec.targets if t.targets for p in policies(t))]


def counting(spec: RouteSpec) -> bool:
    """Whether any of its policies reads statistics, or hedging does."""
    return spec.hedge is not None or any(policy.counts for policy in policies(spec))


def half_life_s(spec: RouteSpec) -> float:
    return next((p.half_life_s for p in policies(spec) if isinstance(p, LeastLatency)), HALF_LIFE_S)


def tree_of(spec: RouteSpec) -> Branch | None:
    """The tree of a route with groups; None where its targets are a plain list."""
    if not any(t.targets for t in spec.targets):
        return None
    numbers = itertools.count()

    def branch(at: "RouteSpec | TargetSpec", label: str, weight: float) -> Branch:
        children = tuple(branch(t, t.label, t.weight) if t.targets else next(numbers) for t in at.targets)
        return Branch(policy=at.routing_policy or Ordered(), children=children, label=label, weight=weight)

    return branch(spec, spec.name, 1.0)
