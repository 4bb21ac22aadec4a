"""The meters of a worker: one for each tenant on each route with a semantic cache. They are written down, and what other
workers wrote is taken in, so that all hold to what all have seen. And the latest decisions, for people to look at.

Where an endpoint gives vectors too there is a second one, the *gate*: its score is their cosine. The verifier's thresholds
were chosen for other vectors, so nothing is known of this one beforehand: the gate begins closed, and opens to where the
labels of misses, which are free, bound the rate of wrong answers. Both together hold what the route wants: the gate may
use GATE of it, and the verifier's meter has the rest.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from .books import Books
from .meter.bounds import Bound, added
from .meter.meter import Meter
from .meter.spending import Window
from .spec import Semantic

SHARE_S = 5.0  # between two exchanges with the others
MOST_SHARED = 512  # namespaces of which workers count together what they spend: there are 4,096 rows, for all there is
MOST = 1_000  # meters in memory, 33 KB each; one that is not asked for long is written down and read again
LATEST = 20  # decisions of each kind, of each meter
HOUR_NS = 3_600_000_000_000
# Of the wanted rate. The verifier's own thresholds leave as much of it unused, with both looks (MODEL_CARD.md).
GATE = 0.25
GATE_FLOOR = 0.6  # no cosine under it is worth a label
CLOSED = 2.0
# Where no wrong answer was seen in n requests, the 95 % bound of their share is 3 / n (rule of three): until that is within
# the gate's part it stays closed, whatever the labels above some cosine say, for there may be hardly any.
UNSEEN = 3.0


class Seen(msgspec.Struct, frozen=True):
    """One decision: two questions, whether one answer did for both, and how that is known."""

    asked: str
    kept: str
    score: float
    bar: float
    outcome: str


class _Room:
    """One tenant on one route."""

    def __init__(self, meter: Meter, made_for: tuple[object, ...]) -> None:
        self.meter = meter
        self.made_for = made_for
        self.near: deque[Seen] = deque(maxlen=LATEST)  # just not served
        self.wrong: deque[Seen] = deque(maxlen=LATEST)  # served, or nearly, and a fresh answer was another one
        self.saved = b""


class Meters:
    """`name`: this worker's, the same after a restart. `window(name)`: cells of this name that all workers of the host count
    in; None: there are none."""

    def __init__(
        self,
        books: Books,
        name: bytes,
        wall_ns: Callable[[], int],
        window: Callable[[str], Window | None] = lambda name: None,
    ) -> None:
        self._books = books
        self._name = name
        self._wall = wall_ns
        self._window = window
        self._windows: dict[tuple[str, ...], Window | None] = {}
        # By tenant, route, and for a gate the endpoint's name; the least recently asked first.
        self._rooms: OrderedDict[tuple[str, str, str], _Room] = OrderedDict()
        self._task = asyncio.get_running_loop().create_task(self._share())
        self._fresh: set[asyncio.Task[None]] = set()

    def of(self, tenant: str, route: str, spec: Semantic, factory: float, beside: bool = False) -> Meter:
        """`factory`: the verifier's own bar for the rate that is wanted. `beside`: there is a gate too."""
        return self._of((tenant, route, ""), spec, factory, None, 1.0 - GATE if beside else 1.0)

    def gate(self, tenant: str, route: str, spec: Semantic, endpoint: str) -> Meter:
        return self._of((tenant, route, endpoint), spec, CLOSED, GATE_FLOOR, GATE)

    def _of(self, who: tuple[str, str, str], spec: Semantic, factory: float, floor: float | None, part: float) -> Meter:
        room = self._rooms.get(who)
        checks = spec.checks
        made_for = (spec.max_false_hit_rate, spec.profile, checks, factory, part)
        if room is None or room.made_for != made_for:
            meter = Meter(
                spec.max_false_hit_rate * part,
                factory,
                self._name,
                floor=floor,
                check_share=checks.share,
                most_share=max(0.1, checks.share) if checks.share else 0.0,
                first=checks.first,
                most_nanos=int(checks.max_usd_per_hour * part * 1e9),
                spend_ns=HOUR_NS,
                confirmed=True,
                shared=self._shared(*who),
            )
            room = self._rooms[who] = _Room(meter, made_for)
            task = asyncio.get_running_loop().create_task(self._take(who, room))
            self._fresh.add(task)
            task.add_done_callback(self._fresh.discard)
            if len(self._rooms) > MOST:
                other, old = self._rooms.popitem(last=False)
                self._books.save_meter(_key(*other), self._name, old.meter.dump(self._wall(), everyone=False))
        else:
            self._rooms.move_to_end(who)
        return room.meter

    def _shared(self, *who: str) -> Window | None:
        if who not in self._windows and len(self._windows) < MOST_SHARED:
            self._windows[who] = self._window(f"checks {_key(*who)}")
        return self._windows.get(who)

    def known(self, tenant: str, route: str, endpoint: str = "") -> Meter | None:
        room = self._rooms.get((tenant, route, endpoint))
        return room.meter if room is not None else None

    # ---- for people

    def saw(self, tenant: str, route: str, asked: str, kept: str, score: float, bar: float, outcome: str) -> None:
        """A decision was made."""
        if outcome.startswith("score") and score > bar - 0.2:
            self._rooms[tenant, route, ""].near.append(Seen(asked, kept, round(score, 4), round(bar, 4), outcome))

    def labelled(
        self,
        tenant: str,
        route: str,
        asked: str,
        kept: str,
        score: float,
        right: bool | None,
        kind: str,
        endpoint: str = "",
    ) -> None:
        """A fresh answer said whether the kept one would have done."""
        if right is False and kind == "check":
            self._rooms[tenant, route, endpoint].wrong.append(Seen(asked, kept, round(score, 4), 0.0, kind))

    def view(self) -> list[dict[str, Any]]:
        """Of each namespace: how often it was wrong, what follows from it, and what to change."""
        now = self._wall()
        out = []
        for (tenant, route, endpoint), room in sorted(self._rooms.items()):
            said = msgspec.to_builtins(room.meter.estimate(now))
            rows = {"near_misses": room.near, "wrong_hits": room.wrong}
            out.append(
                {
                    "route": route,
                    "tenant": tenant,
                    **({"embedding": endpoint} if endpoint else {}),
                    "budget": room.meter.budget,
                    **said,
                    "advice": room.meter.advice(now) if not endpoint else "",
                }
                | {name: msgspec.to_builtins(list(seen)) for name, seen in rows.items()}
            )
        return out

    def calibration(self, route: str, tenant: str) -> list[dict[str, Any]]:
        """Of one route, and of one tenant if it is named: by score, how many labels said right and wrong."""
        now = self._wall()
        return [
            {
                "tenant": who,
                "threshold": room.meter.estimate(now).threshold,
                "bins": room.meter.calibration(now),
            }
            for (who, where, endpoint), room in sorted(self._rooms.items())
            if where == route and tenant in ("", who) and not endpoint
        ]

    def seen(self) -> dict[str, dict[tuple[str, ...], float | list[float]]]:
        """For the metrics."""
        now = self._wall()
        rates: dict[tuple[str, ...], float | list[float]] = {}
        bars: dict[tuple[str, ...], float | list[float]] = {}
        alarms: dict[tuple[str, ...], float | list[float]] = {}
        gates: dict[tuple[str, ...], float | list[float]] = {}
        sums: dict[tuple[str, str], list[Bound]] = {}
        for (tenant, route, endpoint), room in self._rooms.items():
            said = room.meter.estimate(now)
            sums.setdefault((route, tenant), []).append(Bound(said.wrong_rate, said.low, said.high))
            alarms[route, tenant] = max(float(bool(said.alarm)), float(alarms.get((route, tenant), 0.0)))  # type: ignore[arg-type]
            if endpoint:
                gates[route, tenant, endpoint] = said.threshold
            else:
                bars[route, tenant] = said.threshold
        for (route, tenant), parts in sums.items():
            for bound, value in zip(("estimate", "low", "high"), added(parts), strict=True):
                rates[route, tenant, bound] = value
        if not rates:
            return {}
        found = {
            "turnout_cache_false_hit_rate": rates,
            "turnout_semantic_threshold": bars,
            "turnout_semantic_alarm": alarms,
        }
        return {**found, "turnout_semantic_gate": gates} if gates else found

    # ---- sharing

    async def _share(self) -> None:
        while True:
            await asyncio.sleep(SHARE_S)
            try:
                for who, room in list(self._rooms.items()):
                    said = room.meter.dump(self._wall(), everyone=False)
                    if said != room.saved:
                        room.saved = said
                        self._books.save_meter(_key(*who), self._name, said)
                    await self._take(who, room)
            except Exception:  # whatever lies in the books, the next exchange is worth it
                continue

    async def _take(self, who: tuple[str, str, str], room: _Room) -> None:
        for data in await self._books.load_meter(_key(*who)):
            room.meter.merge(data, self._wall())  # what is damaged, or of another version, says nothing
        room.meter.tune(self._wall())

    def close(self) -> None:
        """What was learned since the last exchange is written down."""
        self._task.cancel()
        for who, room in self._rooms.items():
            self._books.save_meter(_key(*who), self._name, room.meter.dump(self._wall(), everyone=False))


def _key(tenant: str, route: str, endpoint: str) -> str:
    return f"{tenant}\n{route}\n{endpoint}" if endpoint else f"{tenant}\n{route}"
