"""Config of the cache: what a route may answer from it, and how much of it there is."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .semantic.spec import Embedding, Semantic

# Fields that say who asks and how it is accounted for, not what is asked. They are part of the digest all the same,
# because an upstream may look at them; a route that knows better leaves them out.
Labels = Literal[
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"
]


class Exact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Complete answers are kept and given again to who asks the very same."""

    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400)]
    jitter: Annotated[float, Meta(ge=0, le=0.5)] = 0.1  # each answer lives this share shorter at most, by lot
    stale_s: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 0.0  # for so long it is still given while it is asked anew
    max_kb: Annotated[int, Meta(ge=1, le=32 * 1024)] = 1024  # of one answer


class CacheSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Off unless a route asks for it. Answers never pass from one tenant to another."""

    exact: Exact | None = None
    # Answers are also given to who asks the same in other words. Its answers are kept as `exact` says; without that, as
    # long as `semantic.ttl_s`.
    semantic: Semantic | None = None
    # Those who ask the same at the same time share one upstream call. Not set: as `exact`.
    single_flight: bool | None = None
    # A temperature above 0 asks for an answer of one's own; `share` gives the same one to all.
    sampled: Literal["bypass", "share"] = "bypass"
    ignore: list[Labels] = []

    @property
    def kept(self) -> Exact | None:
        """How answers are kept; None: they are not."""
        if self.exact is None and self.semantic is not None:
            return Exact(ttl_s=self.semantic.ttl_s)
        return self.exact

    @property
    def shares(self) -> bool:
        return self.kept is not None if self.single_flight is None else self.single_flight


class MemorySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of each worker."""

    max_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 128
    tenant_share: Annotated[float, Meta(gt=0, le=1)] = 0.5  # the most of it that one tenant may hold
    semantic_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 64  # questions and their vectors, beside the answers
    disk_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = (
        512  # of the semantic cache in state.dir, where there is no Redis
    )
    embedding: Embedding | None = None  # of all routes with a semantic cache that do not say another thing

    @property
    def bounds(self) -> tuple[int, int]:
        """Bytes of all, and of one tenant's part."""
        return self._share(self.max_mb)

    @property
    def semantic_bounds(self) -> tuple[int, int]:
        """The same of questions and vectors."""
        return self._share(self.semantic_mb)

    @property
    def snapshot_bounds(self) -> tuple[int, int]:
        """The same of the snapshots of large scopes, in state.dir."""
        return self._share(self.disk_mb // 4)

    def _share(self, mb: int) -> tuple[int, int]:
        most = mb << 20
        return most, int(most * self.tenant_share)
