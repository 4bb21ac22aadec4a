"""The second look at a pair of questions that the first one leaves open: by MiniLM, in another thread (deep.py).

`strict`: is the nearest kept question the same? One cosine more for the verifier. `faq`: which of the few that are near
wants the same (intents.py)? Kept questions' vectors are made once: with the question that was looked at twice itself, or
behind its request's end, when nobody waits for the thread.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy

from ...clock import Clock
from ...exchange import Exchange
from ..needs import Meter as Counts
from . import models
from .intents import DIMENSIONS, MOST, packed
from .scopes import Item
from .spec import Semantic

if TYPE_CHECKING:
    from .stage import Asked

MOST_LACKING = 3  # kept questions without a vector that a request waits for: 5 ms each, and its own comes first
FEW_WAITING = 4  # in the thread's queue: from here on nothing is put there that nobody waits for
KEPT_BYTES = DIMENSIONS + 33  # of a kept question's vector


class Again:
    """Of one worker. `deep()`: the second look (deep.py), or None where its package is not installed."""

    def __init__(self, deep: Callable[[], Any], clock: Clock, counts: Counts) -> None:
        self._deep = deep
        self._now = clock.now_ns
        self._count = counts.count
        self._time = counts.time
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def looks(self, spec: Semantic) -> bool:
        return bool(spec.deep != "off" and self._deep() is not None)

    def candidates(self, spec: Semantic) -> int:
        """How many kept questions a request is compared with. Where the question has to be the same, more gained nothing."""
        return MOST if spec.profile == "faq" and self.looks(spec) else 1

    def kept_bytes(self, spec: Semantic) -> int:
        """Of the vector that each question keeps."""
        return KEPT_BYTES if spec.profile == "faq" and self.looks(spec) else 0

    def threshold(self, spec: Semantic) -> float:
        """The bar to begin with: that of the last look there is."""
        verifier, rate = models.verifier(spec.profile), spec.max_false_hit_rate
        if spec.profile == "faq" and self.looks(spec):
            return models.intents().threshold(rate)
        return float(verifier.threshold(rate, self.looks(spec)))

    def on_scale(self, spec: Semantic, raw: float) -> float:
        """A score of the first look on the scale of that bar. Where another look follows, the first serves only what is surer
        than what it would serve alone: both share one rate. With `faq` it then serves nothing: the second may spend it all."""
        if not self.looks(spec):
            return raw
        if spec.profile == "faq":
            return 0.0
        return float(raw + self.threshold(spec) - models.verifier(spec.profile).sure(spec.max_false_hit_rate))

    async def look(self, x: Exchange, asked: "Asked", item: Item) -> Item | None:
        """The score by the second look, or by the first alone where that took too long, and whose it is. None: there is no
        second look, or it could change nothing."""
        spec, rate = asked.spec, asked.spec.max_false_hit_rate
        deep = self._deep() if spec.deep != "off" else None
        verifier = models.verifier(spec.profile)
        # With `faq` the vector is made whatever comes: if this is no hit, the question is kept with it.
        low = 0.0 if spec.profile == "faq" else verifier.low(rate)
        if deep is None or asked.raw < low:
            return None
        began = self._now()
        few = [(item, asked.cosine), *asked.others]
        lacking: list[Asked | Item] = [asked] if asked.vector is None else []
        without = [kept for kept, _ in few if not _fits(spec, kept)]
        lacking += without[:MOST_LACKING]
        if lacking:
            # Who is late is not cancelled: a kept one's vector is there next time.
            tasks = [self._loop.create_task(self._embed(deep, spec, one)) for one in lacking]
            await asyncio.wait(tasks, timeout=spec.deep_ms / 1e3)
        took = self._now() - began
        x.upstream_ns += took  # it waited for another thread: no cost of ours
        self._time("turnout_cache_backend_seconds", ("semantic", "deep"), took / 1e9)
        for kept in without[MOST_LACKING:]:
            self._beside(spec, kept)
        few = [pair for pair in few if _fits(spec, pair[0])]
        if asked.vector is None or not few:
            # The first look alone decides, by the threshold at which it may.
            asked.score = asked.raw + self.threshold(spec) - verifier.threshold(rate, False)
            self._count("turnout_semantic_late_total", (asked.place.route,))
            return item
        if spec.profile == "faq":
            content = [kept.said.content for kept, _ in few]
            vectors = [kept.deep or b"" for kept, _ in few]
            of = sum(len(scope.items) for scope in (asked.scope, asked.also) if scope is not None)
            place, asked.score = models.intents().best(asked.vector, vectors, asked.said.content, content, of)
            asked.near, asked.cosine = few[place]
            return asked.near
        cosine = float(
            numpy.frombuffer(asked.vector, numpy.float32) @ numpy.frombuffer(item.deep or b"", numpy.float32)
        )
        asked.score = verifier.score(asked.said, item.said, asked.cosine, cosine)
        return item

    def keep(self, asked: "Asked", item: Item) -> None:
        """A question is kept: so is its vector."""
        spec = asked.spec
        if asked.vector is not None:
            item.deep = packed(asked.vector) if spec.profile == "faq" else asked.vector
        elif spec.profile == "faq" and self.looks(spec):
            self._beside(spec, item)

    def _beside(self, spec: Semantic, item: Item) -> None:
        """Its vector is made when the thread has nothing else to do; else whoever needs it waits for it."""
        deep = self._deep()
        if deep.waiting < FEW_WAITING and len(self._tasks) < FEW_WAITING:
            task = self._loop.create_task(self._embed(deep, spec, item))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _embed(deep: Any, spec: Semantic, one: "Asked | Item") -> None:
        vector = await deep.vector(one.said)
        if vector is not None and spec.profile == "faq":
            vector = models.intents().turned(vector)
        if not isinstance(one, Item):
            one.vector = vector
        elif vector is not None:
            one.deep = packed(vector) if spec.profile == "faq" else vector


def _fits(spec: Semantic, kept: Item) -> bool:
    """Whether it has the vector that this profile compares."""
    return kept.deep is not None and len(kept.deep) == DIMENSIONS * (1 if spec.profile == "faq" else 4)
