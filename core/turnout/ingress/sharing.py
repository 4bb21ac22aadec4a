"""What this host has learned of its targets: carried to other hosts through Redis, and over a restart in `state.dir`.

The supervisor does it, one for all workers: it is never on a request's way, whatever Redis or the disk does, a worker that
dies takes nothing along, and Redis hears of a host and not of each worker. The workers see what comes in as if it were one
more worker's (route/share.py).
"""

import asyncio
import importlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ..config.model import Config
from ..route.fleet import Fleet, is_gone
from ..route.share import Outside, name_of
from ..route.spec import counting, half_life_s, leaves
from ..state import keep
from ..state.remote import Remote
from ..state.seal import seal, unseal
from ..state.spec import RedisSpec
from ..state.table import Cells, key_of, row
from ..telemetry.metrics import WAITS, Histogram, Labels, Snapshot

if TYPE_CHECKING:
    from ..state.depot import Depot

# First tokens take 0.2 to 2 s: news a quarter of a second old are as good as new, and four reports a second from each of a
# hundred hosts are nothing to Redis.
EXCHANGE_S = 0.25
SNAPSHOT_S = 10.0
AT_ONCE = 16  # hosts' reports in one reply: some 10 KB each, and a reply has a deadline
KEPT_MS = 3_600_000  # in Redis, after the last host
FILE = "routing.statistics"
LOADING_S = (
    0.0005  # a thread that loads lets the loop have its turn after so long; usual are 5 ms, for each time it sleeps
)
_ROOM = "turnout.state"


class Sharing:
    """One per host. Needs a running event loop."""

    def __init__(self, cells: Cells, say: Callable[[str], None], rng: Random) -> None:
        self._cells = cells
        self._say = say
        self._rng = rng
        self._fleet = Fleet()
        self._host = secrets.token_hex(8)  # of this start: its sums begin at zero
        self._dir = Path()
        self.depot: Depot | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said = ""  # the trouble with the file that was told last

    # ---- life

    def start(self, config: Config) -> None:
        """Before the workers start, so that what is remembered is there when they do."""
        self._share(config)
        data = keep.read(self._dir / FILE)
        if data is not None:
            self._fleet.restore(data, time.monotonic_ns(), time.time())
        elif (self._dir / FILE).exists():
            self._say(f"{FILE} in state.dir is damaged or another version's: routing begins without it")
        loops = (self._connect(config), self._exchange(), self._save_often())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def apply(self, config: Config) -> None:
        """Another config is in force."""
        self._share(config)
        await self._connect(config)

    def _share(self, config: Config) -> None:
        self._dir = Path(os.path.abspath(config.state.dir))
        for route in config.routes:
            if counting(route):
                for target in leaves(route):
                    name = name_of(route.name, target.provider, target.model or "", half_life_s(route))
                    if key_of(name) not in self._fleet.keys and (cells := row(self._cells, name)) is not None:
                        self._fleet.share(key_of(name), Outside(cells))

    async def _connect(self, config: Config) -> None:
        spec = config.state.shared
        await asyncio.to_thread(load, config)
        old = self.depot
        if old is not None and old.spec != spec:
            self.depot = None
            await old.close()
        if self.depot is None and spec is not None:
            try:
                self.depot = make(spec, self._rng)
            except (OSError, ValueError) as wrong:  # its `ca_bundle`: it was good when the config was checked
                self._say(f"state.redis cannot be used: {type(wrong).__name__}")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._fleet.look(time.monotonic_ns())
        await self._save()
        if self.depot is not None:
            await self.depot.close()
        if isinstance(self._cells, Remote):
            self._cells.close()

    # ---- other hosts

    async def _exchange(self) -> None:
        while True:
            await asyncio.sleep(EXCHANGE_S * (0.8 + 0.4 * self._rng.random()))
            self._fleet.look(time.monotonic_ns())
            if self.depot is not None and self.depot.up:
                await self._talk(self.depot)

    async def _talk(self, depot: "Depot") -> None:
        """Say what is new here, hear what the others say. What is wrong or missing is for the next time."""
        key = depot.key("routing", "1")
        me = self._host.encode()
        report = seal(me, self._fleet.report(time.monotonic_ns(), time.time()))
        _, names, _ = await asyncio.gather(
            depot.command(key, b"HSET", key, me, report),
            depot.command(key, b"HKEYS", key),
            depot.command(key, b"PEXPIRE", key, KEPT_MS),
        )
        others = [name for name in names if isinstance(name, bytes) and name != me] if isinstance(names, list) else []
        for i in range(0, len(others), AT_ONCE):
            some = others[i : i + AT_ONCE]
            reports = await depot.command(key, b"HMGET", key, *some)
            if not isinstance(reports, list) or len(reports) != len(some):
                return
            gone = [name for name, sealed in zip(some, reports, strict=True) if not self._hear(depot, name, sealed)]
            if gone:
                await depot.command(key, b"HDEL", key, *gone)

    def _hear(self, depot: "Depot", name: bytes, sealed: object) -> bool:
        """False: this is no host, or none any more."""
        if sealed is None:  # gone since we asked for the names
            return True
        now_ns, wall_s = time.monotonic_ns(), time.time()
        data = unseal(name, sealed)
        if data is None or not self._fleet.heard(name.hex(), data, now_ns, wall_s):
            depot.count("garbage")
            return False
        if is_gone(data, wall_s):
            self._fleet.forget(name.hex())
            return False
        return True

    @property
    def hosts(self) -> int:
        """Other hosts that have spoken of late."""
        return self._fleet.hosts(time.monotonic_ns())

    # ---- the file

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SNAPSHOT_S)
            await self._save()

    async def _save(self) -> None:
        if not self._fleet.keys:  # no policy that learns: nothing to keep
            return
        data = self._fleet.snapshot(time.monotonic_ns(), time.time())
        try:
            await asyncio.to_thread(keep.write, self._dir / FILE, data)
            self._said = ""
        except OSError as wrong:
            said = f"{FILE} in state.dir cannot be written: {wrong.strerror or 'I/O error'}"
            if said != self._said:  # once, not every ten seconds
                self._say(said)
            self._said = said

    # ---- seen from outside

    def snapshot(self) -> Snapshot:
        return seen(self.depot) if self.depot is not None else {}

    def status(self) -> dict[str, Any] | None:
        if self.depot is None:
            return None
        return {"up": self.depot.up, "hosts": self.hosts, "errors": dict(self.depot.errors)}


def load(config: Config) -> None:
    """Load the client of Redis, if this config needs it. That takes most of a second: for a thread of its own."""
    if config.state.shared is None or f"{_ROOM}.depot" in sys.modules:
        return
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(LOADING_S)
    try:
        importlib.import_module(f"{_ROOM}.depot")
    finally:
        sys.setswitchinterval(usual_s)


def make(spec: RedisSpec, rng: Random) -> "Depot":
    """A depot that counts as the metrics want it; loads redis."""
    from ..state.depot import Depot

    return Depot(spec, rng, lambda: Histogram(WAITS))


def seen(depot: "Depot") -> Snapshot:
    """A depot's metrics."""
    out: Snapshot = {
        "turnout_redis_breaker_open": {(): float(not depot.up)},
        "turnout_redis_breaker_opens_total": {(): depot.opens},
    }
    errors: dict[Labels, float | list[float]] = {(kind,): n for kind, n in depot.errors.items()}
    if errors:
        out["turnout_redis_errors_total"] = errors
    for operation, spread in depot.took.items():
        if isinstance(spread, Histogram):
            out.setdefault("turnout_redis_seconds", {})[(operation,)] = [*spread.counts, spread.total]
    return out
