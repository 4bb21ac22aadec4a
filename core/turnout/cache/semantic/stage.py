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

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from ...clock import Clock
from ...exchange import Exchange
from ..entry import Entry
from ..memory import Memory
from ..needs import Meter as Counts
from ..policy import Policy
from ..tier import unpack
from . import models
from .again import Again
from .books import Place, place_of
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
    scope: Scope  # where it is kept
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
    also: Scope | None = None  # another one whose answers it may be given
    raw: float = 0.0  # score by the first look
    score: float = 0.0  # of the look that decided, on the scale of the bar
    vector: bytes | None = None  # of the second look, as that compares it
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
        """`deep()`: what the second look asks (deep.py), or None where its package is not installed."""
        self.knowledge = knowledge
        self.meters = meters
        self._memory = memory
        self._clock = clock
        self._now = clock.now_ns
        self._wall = clock.wall_ns
        self._rng = rng
        self._count = counts.count
        self._time = counts.time
        self._again = Again(deep, clock, counts)
        self._parse = models.lexicon().parse

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
        scope.vector_bytes = self._again.kept_bytes(spec)
        found = self._nearest(asked, question.also)
        if found:
            (asked.near, asked.cosine), *asked.others = found
            asked.raw = models.verifier(spec.profile).score(said, asked.near.said, asked.cosine)
            asked.score = self._again.on_scale(spec, asked.raw)
        self._time("turnout_cache_backend_seconds", ("semantic", "look"), (self._now() - began) / 1e9)
        return asked

    def _nearest(self, asked: Asked, also: bytes) -> list[tuple[Item, float]]:
        """The kept questions that may be meant, with their cosines, the nearest first."""
        vector, most = asked.said.vector, self._again.candidates(asked.spec)
        scopes = [asked.scope]
        if also:
            place = msgspec.structs.replace(asked.place, scope=also)
            asked.also = self.knowledge.scope(place)
            scopes.append(asked.also)
        found = [pair for scope in scopes for pair in self.knowledge.nearest(scope, vector, most) if pair[1] >= NEAR]
        return sorted(found, key=lambda pair: -pair[1])[:most] if also else found

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
            elif (preferred := await self._again.look(x, asked, item)) is None:
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
            asked.score = self._again.on_scale(asked.spec, asked.raw)

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
        return self.meters.of(
            asked.tenant, asked.place.route, spec, self._again.threshold(spec), asked.endpoint is not None
        )

    def _served(self, asked: Asked) -> tuple[Any, float, Item | None]:
        """The meter, the score and the question of what was served, or would have been."""
        if asked.gated:
            return beside.gate_of(self.meters, asked), asked.found_cosine, asked.found
        return self._meter(asked), asked.score, asked.near

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
            for scope in (asked.scope, asked.also):
                if scope is not None:
                    self.knowledge.scopes.remove(scope, item)
            asked.near = asked.near if asked.near is not item else None
            asked.found = asked.found if asked.found is not item else None
        return entry

    # ---- learning

    def learn(self, asked: Asked, entry: Entry) -> bool:
        """A fresh answer: it is kept for who asks the same, and tells whether the nearest kept one would have done. True:
        ask once more, to know whether the difference is more than that between any two answers to this question."""
        text = answer_text(entry.body)
        again = self._judge(asked, entry, text)
        # One intent has one answer: what a check brought is kept where it showed that another one was wanted.
        spare = asked.spec.profile == "faq" and asked.weight > 0 and (again or asked.verdict is not False)
        if entry.finish == "stop" and text and not spare:
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
                remote=asked.remote,
            )
            self._again.keep(asked, item)
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
        asked.verdict = right
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
                        self.knowledge.drop(place_of(scope), scope, item)
                    return True
        return False


_VERDICTS = {True: "right", False: "wrong", None: "unclear"}
