"""The `simulated` provider: an OpenAI-compatible server of our own on loopback.

A provider of this kind has no address and no key: the supervisor starts one
`turnout.upstream.simulator` process for all of them and fills in the address it gets
back. From then on it is an ordinary OpenAI provider; nothing on the request's way knows
that it is not real. This file holds only what a config may say about it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]

FaultKind = Literal[
    "status",  # answers with `status` (and Retry-After, if `retry_after_s` is given)
    "reset",  # TCP reset before any byte of the answer
    "refuse",  # closes the connection (FIN) before any byte of the answer
    "silent",  # takes the request and never answers
    "slow",  # the first token comes `ms` later than it would have
    "html",  # 200 with a text/html page, as a proxy in front of a provider does
    "cut",  # TCP reset after `after_tokens` tokens
    "stall",  # says nothing more after `after_tokens` tokens; the connection stays open
    "error-event",  # an error event inside the stream after `after_tokens` tokens
    "truncate",  # a clean chunked end after `after_tokens`: no finish_reason, no [DONE]
]


class SimFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way for a simulated provider to fail, and how often.

    A fault applies to POSTed model calls, never to `GET /v1/models` or the control paths.
    `every` > 0: every Nth request gets it; otherwise a random `share` of the requests does,
    drawn from the provider's seed. `count` > 0: it happens at most that many times. With
    several faults the first in the list that applies wins.

    On a request that is not streamed the mid-stream kinds do what a broken provider does to
    a plain answer: `cut` and `truncate` send half of the JSON body and then reset or close,
    `stall` sends half and goes silent, `error-event` sends an error under status 200.
    An answer shorter than `after_tokens` fails where its finish_reason would have been.
    """

    kind: FaultKind
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 503
    retry_after_s: NotNegative | None = None
    share: Share = 1.0
    every: Count = 0
    ms: NotNegative = 0.0
    after_tokens: Count = 12
    count: Count = 0


class SimulatedSpec(
    msgspec.Struct,
    tag_field="kind",
    tag="simulated",
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
):
    """A simulated provider: its pace, its voice and its faults.

    Two providers with the same `seed` give the same text for the same prompt, as two
    deployments of one model at temperature 0 would. Time to first token is log-normal
    around `ttft_ms` (the median), the gaps between tokens log-normal with the mean
    1 / `tokens_per_s`; both come from `random.Random(seed)`, so a run can be repeated.
    """

    embeds: ClassVar[bool] = True  # has an endpoint for embeddings

    seed: int = 0
    ttft_ms: NotNegative = 150.0
    ttft_sigma: NotNegative = 0.35
    tokens_per_s: Annotated[float, msgspec.Meta(gt=0.0)] = 60.0
    token_sigma: NotNegative = 0.25
    answer_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 60
    models: list[str] = msgspec.field(default_factory=lambda: ["sim-small", "sim-large"])
    faults: list[SimFault] = []
