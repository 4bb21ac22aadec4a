"""What a worker has of the semantic cache, put together when a route first asks for it: reading the models and numpy takes
half a second and 40 MB that nobody else shall pay for."""

import socket
from collections.abc import Callable
from random import Random
from typing import Any

from ...clock import Clock
from ..memory import Memory
from ..needs import Meter as Counts
from ..spec import MemorySpec
from ..tier import Depot
from . import models
from .books import Books
from .deep import open_deep
from .disk import Disk
from .knowledge import Knowledge
from .meter.spending import Window
from .meters import Meters
from .redis_books import RedisBooks
from .scopes import Scopes
from .snapshots import Snapshots
from .stage import Lookup


class Room:
    """Needs a running event loop to be made; `close` it."""

    def __init__(
        self,
        spec: MemorySpec,
        *,
        directory: str,
        depot: Depot | None,
        worker: int,
        memory: Memory,
        clock: Clock,
        rng: Random,
        counts: Counts,
        say: Callable[[str], None] = lambda text: None,
        told: Callable[[], None] = lambda: None,
        window: Callable[[str], Window | None] = lambda name: None,
    ) -> None:
        """`say(text)`: a line for the operator. `told()`: other workers of this host are to `look`. `window(name)`: cells that
        they all count in."""

        def heard(seconds: float) -> None:
            counts.time("turnout_semantic_heard_seconds", (), seconds)

        def snapshot(what: str) -> None:
            counts.count("turnout_semantic_snapshots_total", (what,))

        def wrong(kind: str) -> None:
            counts.count("turnout_semantic_errors_total", (kind,))

        self.depot = depot
        self._wall = clock.wall_ns
        self._scopes = Scopes(*spec.semantic_bounds)
        books: Books = RedisBooks(depot) if depot is not None else Disk(directory, spec.disk_mb << 20, wrong, told)
        self._snapshots = Snapshots(
            directory, spec.snapshot_bounds, models.lexicon_version(), snapshot, say, clock.wall_ns
        )
        self.knowledge = Knowledge(self._scopes, books, self._snapshots, clock, models.lexicon().parse, heard)
        self.meters = Meters(books, f"{socket.gethostname()}/{worker}".encode(), clock.wall_ns, window)
        self.lookup = Lookup(
            knowledge=self.knowledge,
            meters=self.meters,
            memory=memory,
            clock=clock,
            rng=rng,
            counts=counts,
            deep=open_deep,
        )

    def resize(self, spec: MemorySpec) -> None:
        self._scopes.resize(*spec.semantic_bounds)
        self._snapshots.bounds = spec.snapshot_bounds

    async def prepare(self, seconds: float) -> None:
        """Before the first request: have the large scopes at hand, as far as that goes in this time."""
        await self._snapshots.prepare(seconds)

    def look(self) -> None:
        """Another worker has written something down."""
        self.knowledge.look()

    def seen(self) -> dict[str, dict[tuple[str, ...], float | list[float]]]:
        """For the metrics."""
        return {
            "turnout_semantic_bytes": {(): self._scopes.bytes},
            "turnout_semantic_scopes": {(): len(self._scopes)},
            "turnout_semantic_evictions_total": {(what,): n for what, n in self._scopes.evicted.items()},
            **self.meters.seen(),
        }

    def told(self, what: dict[str, str]) -> dict[str, Any]:
        """For the admin listener: of one `entry`, the `calibration` of one route and tenant, or all there is to see."""
        if what.get("entry"):
            return {"entries": self._inspect(what["entry"])}
        if "calibration" in what:
            return {"calibration": self.meters.calibration(what["calibration"], what.get("tenant", ""))}
        return {
            "questions": self._scopes.items,
            "vectors": self._scopes.vectors,
            "bytes": self._scopes.bytes,
            "scopes": len(self._scopes),
            "namespaces": self.meters.view(),
        }

    def _inspect(self, entry: str) -> list[dict[str, Any]]:
        """The kept questions whose key begins so: for the operator's eyes."""
        now = self._wall()
        return [
            {
                "entry": item.digest.hex()[:16],
                "question": item.text,
                "route": scope.route,
                "tenant": item.tenant,
                "model": scope.model,
                "key": item.key,
                "tags": item.tags,
                "scope": scope.key.hex(),
                "scope_size": len(scope.items),
                "age_s": (now - item.stored_ns) // 1_000_000_000,
                "left_s": (item.dead_ns - now) // 1_000_000_000,
                "hits": item.hits,
                "last_score": round(item.last, 4),
            }
            for scope in self._scopes
            for item in scope.items.values()
            if item.digest.hex().startswith(entry)
        ]

    async def close(self) -> None:
        self.meters.close()
        await self.knowledge.close()
