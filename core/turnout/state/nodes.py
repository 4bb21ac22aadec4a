"""Which lane a key's commands take: the one there is, or that of the cluster's node that has its slot."""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

from .dial import Node, Slots, slot_of
from .lane import Lane, Wrong

LOOK_AGAIN_S = 0.25  # between two looks at the map, at least
LOOK_S = 30.0  # and at most: nodes that were added take over slots without a word to us
MOST_NODES = 500
MakeLane = Callable[[Node | None, Callable[[], None]], Lane]


class Nodes(Protocol):
    @property
    def up(self) -> bool: ...
    @property
    def opens(self) -> int: ...
    @property
    def opened_at(self) -> float: ...
    def lane(self, key: bytes) -> Lane | None: ...
    def moved(self, to: Node) -> Lane | None: ...
    def some(self) -> Node | None: ...
    async def close(self) -> None: ...


class One:
    """One server, or the master that sentinels name."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def up(self) -> bool:
        return self._lane.up

    @property
    def opens(self) -> int:
        return self._lane.opens

    @property
    def opened_at(self) -> float:
        return self._lane.opened_at

    def lane(self, key: bytes) -> Lane | None:
        return self._lane

    def moved(self, to: Node) -> Lane | None:
        return None  # a cluster's node under redis://: what it has not, we do not have

    def some(self) -> Node | None:
        return None

    async def close(self) -> None:
        await self._lane.close()


class Cluster:
    """A lane for each node that has slots. The map is looked at anew when a node says that a slot has moved, when a lane
    breaks, and now and then."""

    def __init__(
        self,
        seeds: list[Node],
        slots: Callable[[list[Node]], Awaitable[Slots | Wrong]],
        make: MakeLane,
        rng: Random,
        count: Callable[[str], None],
    ) -> None:
        self._seeds = seeds
        self._slots = slots
        self._make = make
        self._rng = rng
        self._count = count
        self._lanes: dict[Node, Lane] = {}
        self._firsts: list[int] = []
        self._ranges: list[tuple[int, Node]] = []  # last slot, whose it is
        self._opened = 0  # breakers of nodes that are none any more
        self._look = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def up(self) -> bool:
        """Whether any node is: the others' keys are not available then."""
        return any(lane.up for lane in self._lanes.values())

    @property
    def opens(self) -> int:
        return self._opened + sum(lane.opens for lane in self._lanes.values())

    @property
    def opened_at(self) -> float:
        return max((lane.opened_at for lane in self._lanes.values()), default=0.0)

    def lane(self, key: bytes) -> Lane | None:
        slot = slot_of(key)
        at = bisect_right(self._firsts, slot) - 1
        if at < 0 or self._ranges[at][0] < slot:
            return None
        return self._lanes.get(self._ranges[at][1])

    def moved(self, to: Node) -> Lane | None:
        self._look.set()
        return self._lanes.get(to)

    def some(self) -> Node | None:
        """One that answers, to listen to: what is published reaches all."""
        up = [node for node, lane in self._lanes.items() if lane.up]
        return self._rng.choice(up) if up else self._seeds[0]

    async def _run(self) -> None:
        while True:
            known = [node for node, lane in self._lanes.items() if lane.up]
            self._rng.shuffle(known)
            found = await self._slots([*known, *self._seeds])
            if isinstance(found, Wrong):
                self._count(found.kind)
                await asyncio.sleep(LOOK_AGAIN_S * (0.5 + self._rng.random()))
                continue
            self._take(found)
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()

    def _take(self, found: Slots) -> None:
        found = sorted(found)
        nodes = list(dict.fromkeys(node for _, _, node in found))[:MOST_NODES]
        for node in nodes:
            if node not in self._lanes:
                self._lanes[node] = self._make(node, self._look.set)
        self._firsts = [first for first, _, _ in found]
        self._ranges = [(last, node) for _, last, node in found]
        for node in self._lanes.keys() - set(nodes):
            lane = self._lanes.pop(node)
            self._opened += lane.opens
            task = asyncio.get_running_loop().create_task(lane.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        for lane in self._lanes.values():
            await lane.close()
        for task in tuple(self._closing):
            await task
