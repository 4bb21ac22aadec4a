"""The semantic look-up, between the exact cache and the upstream call.

    question -> scope -> nearest kept question -> score -> (another's proposal) -> (second look) -> bar -> (gate)
        -> its answer, if it is still there

The first look costs well under 0.1 ms and decides most; the second, a transformer in another thread, only what lies
between. What is served, what is not, and what turned out wrong goes to the meter of the tenant on the route, whose bar
this stage asks for. Answers lie in the exact cache; this is about whose answer may be given.

Where the route has an endpoint (remote/) and the first look serves nothing, that one's vectors propose a question too. Its
score is the verifier's, from what both texts say and their local vectors: a cosine of another model never stands in for
one that the verifier was fitted to. That cosine has a bar of its own, the gate's (meters.py), behind all others.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import numpy

from ...clock import Clock
from ...exchange import Exchange
from ..entry import Entry
from ..memory import Memory
from ..needs import Meter as Counts
from ..policy import Policy
from ..tier import unpack
from . import models
from .books import Place
from .compare import answer_text, same_answer
from .knowledge import Knowledge
from .meters import Meters
from .remote import beside
from .scopes import Item, Scope
from .spec import Semantic

NEAR = 0.35  # cosine of the nearest question; farther ones have nothing to do with it
MOST_TOKENS = 512
LEAST_WORDS = 1  # that carry meaning: "yes" or "why so?" say nothing that could be looked for


class Asked(msgspec.Struct):
    """A request's question on its way through the cache."""

    place: Place
    scope: Scope
    spec: Semantic
    text: str
    said: Any
    tenant: str
    tag: str
    by: Exchange  # who asks: what is asked of an endpoint is booked on it
    endpoint: Any = None  # remote.endpoint.Endpoint, where the route has one
    near: Item | None = None
    cosine: float = 0.0
    others: list[tuple[Item, float]] = []  # nearly as near, which the second look may prefer
    raw: float = 0.0  # score by the first look
    hope: float = 0.0  # the highest of that among all that are near
    score: float = 0.0  # of the look that decided, on the scale of the bar
    vector: bytes | None = None  # of the second look
    weight: float = 0.0  # of the label that a fresh answer gives: the hit was served, and is checked
    fresh: str | None = None  # such an answer, while it is asked once more
    verdict: bool | None = None  # what it said of the one that was served
    remote: bytes | None = None  # the endpoint's vector of the text
    found: Item | None = None  # the nearest by that, unless the verifier has a veto
    found_cosine: float = 0.0
    proposed: Item | None = None  # that one, where its score was better than that of the nearest
    gated: bool = False  # it was served by its cosine
    paired: bool = False  # two fresh ones are compared to know how much answers to one question differ

    @property
    def sim(self) -> float:
        """The cosine by which the question was found that is served."""
        return self.found_cosine if self.gated or self.proposed is self.near is not None else self.cosine


class Lookup:
    """Of one worker, over all its configs."""

    def __init__(
        self,
        *,
        knowledge: Knowledge,
        meters: Meters,
        memory: Memory,
        clock: Clock,
        rng: Random,
        counts: Counts,
        deep: Callable[[], Any],
    ) -> None:
        """`deep()`: the second look (deep.py), or None where its package is not installed."""
        self.knowledge = knowledge
        self.meters = meters
        self._memory = memory
        self._clock = clock
        self._now = clock.now_ns
        self._wall = clock.wall_ns
        self._rng = rng
        self._count = counts.count
        self._time = counts.time
        self._deep = deep
        self._parse = models.lexicon().parse
        self._loop = asyncio.get_running_loop()

    # ---- asking

    def ask(self, x: Exchange, policy: Policy) -> Asked | None:
        """What this request asks, and the nearest kept question. None: only its own answer answers it."""
        spec, questions = policy.semantic, policy.questions
        assert spec is not None and questions is not None and x.route is not None and x.principal is not None
        began = self._now()
        question = questions.of(x, policy.beta(x))
        if isinstance(question, str):
            self._count("turnout_semantic_total", (x.route.name, f"bypass-{question}"))
            return None
        said = self._parse(question.text)
        if said.tokens > MOST_TOKENS or said.content < LEAST_WORDS:
            why = "long" if said.tokens > MOST_TOKENS else "short"
            self._count("turnout_semantic_total", (x.route.name, f"bypass-{why}"))
            return None
        tenant = x.principal.tenant
        place = Place(question.scope, "" if spec.share == "route" else tenant, x.route.name, x.model)
        scope = self.knowledge.scope(place)
        scope.most = spec.max_entries
        asked = Asked(place, scope, spec, question.text, said, tenant, policy.tag(x), x, policy.endpoint)
        found = [(item, cosine) for item, cosine in self.knowledge.nearest(scope, said.vector) if cosine >= NEAR]
        if found:
            (asked.near, asked.cosine), *others = found
            asked.others = others if spec.profile == "faq" else []
            verifier = models.verifier(spec.profile)
            asked.raw = verifier.score(said, asked.near.said, asked.cosine)
            self._weigh(asked, verifier)
        self._time("turnout_cache_backend_seconds", ("semantic", "look"), (self._now() - began) / 1e9)
        return asked

    def _weigh(self, asked: Asked, verifier: Any) -> None:
        """What follows from `raw` and `others`."""
        scores = (verifier.score(asked.said, item.said, cosine) for item, cosine in asked.others)
        asked.hope = max([asked.raw, *scores])
        asked.score = _on_scale(verifier, asked.spec, asked.raw, self._looks_again(asked.spec))

    async def answer(self, x: Exchange, asked: Asked, least: float) -> Entry | None:
        """The answer that may be given, if there is one. `least`: the caller wants a cosine of at least that."""
        assert x.route is not None
        meter = self._meter(asked)
        now = self._wall()
        meter.request(now)
        if asked.endpoint is not None:
            await self._look_beside(x, asked, least, meter, now)
        item, outcome = asked.near, "far"
        entry: Entry | None = None
        if item is not None:
            scope = asked.place.scope
            bar = meter.threshold(scope, item.number, now)
            if (asked.cosine if asked.endpoint is None else asked.sim) < least:
                outcome = "least"
            elif asked.score >= bar:
                outcome = "hit"
            elif (preferred := await self._look_again(x, asked, item)) is None:
                outcome = "score"
            else:
                if preferred is not item:
                    item = preferred
                    bar = meter.threshold(scope, item.number, now)
                outcome = "hit-deep" if asked.score >= bar else "score-deep"
            if outcome.startswith("hit"):
                entry = await self._entry(x, asked, item)
                outcome = outcome if entry is not None else "gone"
            if entry is not None:
                item.hits += 1
                item.last, item.gate = asked.score, ""
                meter.served(now, asked.score, scope, item.number)
            else:
                meter.missed(now, asked.score, scope, item.number)
            self.meters.saw(asked.tenant, asked.place.route, asked.text, item.text, asked.score, bar, outcome)
        if asked.endpoint is not None:
            entry, outcome = await self._behind(x, asked, entry, outcome, least, now)
        self._count("turnout_semantic_total", (x.route.name, outcome))
        return entry

    async def _look_beside(self, x: Exchange, asked: Asked, least: float, meter: Any, now: int) -> None:
        """What the endpoint proposes, unless the first look serves already."""
        beside.gate_of(self.meters, asked).request(now)
        near = asked.near
        if near is None or asked.cosine < least or asked.score < meter.threshold(asked.place.scope, near.number, now):
            verifier = models.verifier(asked.spec.profile)
            await beside.propose(x, asked, verifier, self._clock)
            self._weigh(asked, verifier)

    async def _behind(
        self, x: Exchange, asked: Asked, entry: Entry | None, outcome: str, least: float, now: int
    ) -> tuple[Entry | None, str]:
        """The gate, where the verifier has let nothing pass; and the outcome's name."""
        if entry is not None:
            return entry, f"{outcome}-proposed" if asked.proposed is asked.near else outcome
        if (item := asked.found) is not None:
            if beside.passes(self.meters, asked, item, least, now):
                entry = await self._entry(x, asked, item)
            beside.tell(self.meters, asked, item, entry, now)
        return entry, "hit-gate" if entry is not None else outcome

    def wants_check(self, asked: Asked) -> bool:
        """Whether this hit is to be asked again, to know whether it was right."""
        meter, score, _ = self._served(asked)
        chance: float = meter.wants_check(score, asked.place.scope, self._wall(), self._rng.random())
        asked.weight = 1.0 / chance if chance > 0 else 0.0
        return chance > 0

    def _meter(self, asked: Asked) -> Any:
        spec = asked.spec
        return self.meters.of(asked.tenant, asked.place.route, spec, self._reference(spec), asked.endpoint is not None)

    def _served(self, asked: Asked) -> tuple[Any, float, Item | None]:
        """The meter, the score and the question of what was served, or would have been."""
        if asked.gated:
            return beside.gate_of(self.meters, asked), asked.found_cosine, asked.found
        return self._meter(asked), asked.score, asked.near

    def _reference(self, spec: Semantic) -> float:
        return float(models.verifier(spec.profile).threshold(spec.max_false_hit_rate, self._looks_again(spec)))

    def _looks_again(self, spec: Semantic) -> bool:
        return bool(spec.deep != "off" and self._deep() is not None)

    async def _look_again(self, x: Exchange, asked: Asked, item: Item) -> Item | None:
        """The score by the second look, or by the first alone where that took too long, and whose it is. None: there is no
        second look, or it could change nothing."""
        spec, verifier = asked.spec, models.verifier(asked.spec.profile)
        deep = self._deep() if spec.deep != "off" else None
        if deep is None or asked.hope < verifier.low(spec.max_false_hit_rate):
            return None
        began = self._now()
        # Of one intent there are many wordings, and the static vectors do not always find the best: there the second look
        # chooses among a few. Where the question has to be the same, that gained nothing.
        few = [(item, asked.cosine), *asked.others]
        looked_at: list[Asked | Item] = [asked, *(other for other, _ in few)]
        lacking = [one for one in looked_at if _vector_of(one) is None]
        if lacking:
            # Who is late is not cancelled: a kept one's vector is there next time.
            tasks = [self._loop.create_task(self._embed(deep, one)) for one in lacking]
            await asyncio.wait(tasks, timeout=spec.deep_ms / 1e3)
        took = self._now() - began
        x.upstream_ns += took  # it waited for another thread: no cost of ours
        self._time("turnout_cache_backend_seconds", ("semantic", "deep"), took / 1e9)
        if asked.vector is None or item.deep is None:
            # The first look alone decides, by the threshold at which it may.
            asked.score = asked.raw + verifier.threshold(spec.max_false_hit_rate, True)
            asked.score -= verifier.threshold(spec.max_false_hit_rate, False)
            self._count("turnout_semantic_late_total", (asked.place.route,))
            return item
        mine = numpy.frombuffer(asked.vector, numpy.float32)
        best = -1.0
        for other, cosine in few:
            if other.deep is not None:
                deeply = float(mine @ numpy.frombuffer(other.deep, numpy.float32))
                if deeply > best:
                    best, item, asked.cosine = deeply, other, cosine
        asked.near = item
        asked.score = verifier.score(asked.said, item.said, asked.cosine, best)
        return item

    @staticmethod
    async def _embed(deep: Any, one: Asked | Item) -> None:
        vector = await deep.vector(one.said)
        if isinstance(one, Item):
            one.deep = vector
        else:
            one.vector = vector

    async def _entry(self, x: Exchange, asked: Asked, item: Item) -> Entry | None:
        """The answer to the kept question; without one the question goes too."""
        entry = self._memory.find(item.digest, self._now())
        books = self.knowledge.books
        if entry is None and books.up:
            began = self._now()
            value = await books.answer(item)
            x.upstream_ns += self._now() - began
            try:
                if value is not None:
                    route = asked.place.route
                    entry = unpack(value, item.digest, item.tenant, route, self._now(), self._wall())
            except ValueError:
                self._count("turnout_cache_garbage_total", ("semantic",))
            if entry is not None:
                self._memory.put(entry, self._now())
        if entry is None:
            self.knowledge.scopes.remove(asked.scope, item)
            asked.near = asked.near if asked.near is not item else None
            asked.found = asked.found if asked.found is not item else None
        return entry

    # ---- learning

    def learn(self, asked: Asked, entry: Entry) -> bool:
        """A fresh answer: it is kept for who asks the same, and tells whether the nearest kept one would have done. True:
        ask once more, to know whether the difference is more than that between any two answers to this question."""
        text = answer_text(entry.body)
        again = self._judge(asked, entry, text)
        if entry.finish == "stop" and text:
            now, wall_ns = self._now(), self._wall()
            item = Item(
                digest=entry.digest,
                text=asked.text,
                said=asked.said,
                tenant=entry.tenant,
                tag=asked.tag,
                key=entry.key,
                tags=entry.tags,
                stored_ns=wall_ns,
                dead_ns=wall_ns + entry.fresh_ns - now,  # a stale answer is nobody else's
                deep=asked.vector,
                remote=asked.remote,
            )
            self.knowledge.add(asked.place, asked.scope, item, entry)
            if asked.endpoint is not None and asked.remote is None:
                self.knowledge.spawn(beside.embed_kept(self.knowledge, asked, item, entry))
        return again

    def _judge(self, asked: Asked, entry: Entry, text: str) -> bool:
        """What a fresh answer says of the nearest kept one. Of a hit that was served, "wrong" is believed only where a
        second fresh answer says the same as the first: many questions have answers that are never twice the same."""
        if asked.found is not None and not asked.weight:
            right = beside.label_miss(self.meters, self._memory, self._clock, asked, entry, text)
            self._count("turnout_semantic_labels_total", (asked.place.route, "found", _VERDICTS[right]))
        meter, score, near = self._served(asked)
        if near is None or near.digest == entry.digest:
            return False
        if asked.weight:
            meter.spent(entry.cost_nanos)
        if asked.fresh is not None:
            same = same_answer(asked.fresh, text)
            if asked.paired:
                meter.pair(self._wall(), same)
            right = asked.verdict if asked.verdict is not False else False if same else None
        else:
            kept = self._memory.find(near.digest, self._now())
            other = answer_text(kept.body) if kept is not None else ""
            if not other:
                return False
            right = same_answer(text, other)
            if asked.weight:
                asked.paired = meter.wants_pair(self._rng.random())
                if right is False or asked.paired:
                    asked.fresh, asked.verdict = text, right
                    return True
        kind = "check" if asked.weight else "miss"
        meter.label(self._wall(), score, asked.place.scope, near.number, right, asked.weight or 1.0, kind)
        self._count("turnout_semantic_labels_total", (asked.place.route, kind, _VERDICTS[right]))
        gate = asked.endpoint.name if asked.gated else ""
        self.meters.labelled(asked.tenant, asked.place.route, asked.text, near.text, score, right, kind, gate)
        return False

    def feedback(self, tenant: str, entry: str, good: bool) -> bool:
        """A user's word on a hit, by the key of its entry. A bad one goes, here and elsewhere. False: it is not known here,
        or not this tenant's."""
        for scope in self.knowledge.scopes:
            for item in scope.items.values():
                if item.tenant == tenant and item.digest.hex().startswith(entry):
                    meter = self.meters.known(tenant, scope.route, item.gate)
                    if meter is not None and item.last:
                        meter.label(self._wall(), item.last, scope.key, item.number, good, 1.0, "feedback")
                    self._count("turnout_semantic_labels_total", (scope.route, "feedback", _VERDICTS[good]))
                    if not good:
                        if (kept := self._memory.find(item.digest, self._now())) is not None:
                            self._memory.drop(kept)
                        place = Place(scope.key, scope.owner, scope.route, scope.model)
                        self.knowledge.drop(place, scope, item)
                    return True
        return False


def _vector_of(one: Asked | Item) -> bytes | None:
    return one.deep if isinstance(one, Item) else one.vector


_VERDICTS = {True: "right", False: "wrong", None: "unclear"}


def _on_scale(verifier: Any, spec: Semantic, raw: float, looks_again: bool) -> float:
    """A score of the first look on the scale of the meter's bar, which begins at the threshold of the last look there is.
    Where another look follows, the first serves only what is surer than that: both share one rate."""
    if not looks_again:
        return raw
    rate = spec.max_false_hit_rate
    return float(raw + verifier.threshold(rate, True) - verifier.sure(rate))
