"""The semantic look-up with vectors from elsewhere, without a gateway around it: whose question is found, what is kept of it,
and when the gate lets it pass."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_lookup import READER, World

from turnout.cache.policy import Policy
from turnout.cache.purge import Purge
from turnout.cache.semantic.books import Place
from turnout.cache.semantic.meters import CLOSED, GATE, UNSEEN, Meters
from turnout.cache.semantic.remote import beside
from turnout.cache.semantic.remote.vectors import read_vector
from turnout.cache.semantic.spec import Semantic
from turnout.cache.spec import CacheSpec
from turnout.exchange import Exchange

DIMENSIONS = 16
ENDPOINT = {"provider": "v", "model": "m", "dimensions": DIMENSIONS}


class Given:
    """Stands for an endpoint: the vector of a text is that of its last word, and every text is noted."""

    def __init__(self, space: bytes = b"one") -> None:
        self.space = space
        self.name = f"v/{space.decode()}"
        self.asked: list[str] = []
        self.away = False

    async def within(self, x: Exchange, text: str) -> bytes | None:
        self.asked.append(text)
        lot = random.Random(f"{self.space!r} {text.rstrip(' ?.!').rpartition(' ')[2].lower()}")
        vector = [lot.gauss(0, 1) for _ in range(DIMENSIONS)]
        return None if self.away else read_vector(msgspec.json.encode({"data": [{"embedding": vector}]}), DIMENSIONS)

    later = within


class Beside(World):
    def __init__(self, folder: Path, endpoint: Given | None = None, mb: int = 64, **semantic: Any) -> None:
        super().__init__(folder, mb, **semantic)
        self.given = endpoint or Given()
        spec = msgspec.convert({"semantic": {"deep": "off", "checks": {"share": 0, "first": 0}, "embedding": ENDPOINT, **semantic}}, CacheSpec)
        self.policy = Policy(spec, READER.names, b"v" * 16, endpoint=self.given)
        self.route.cache = self.policy

    async def learned(self, text: str, tenant: str, answer: str, *before: str) -> None:
        self.keep(self.request(text, tenant, *before), answer)
        await asyncio.sleep(0.001)

    @property
    def vectors(self) -> int:
        return self.room.lookup.knowledge.scopes.vectors


def run(work: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(120):
            await work()

    asyncio.run(whole())


FAR, FAR_SAME = "где лежит ключ?", "где лежит ключ"


def test_what_the_local_table_does_not_know_is_found_by_the_endpoint(tmp_path: Path) -> None:
    async def work() -> None:
        world = Beside(tmp_path)
        await world.learned(FAR, "t", "under the mat")
        assert await world.ask(world.request(FAR_SAME, "t")) == "under the mat"
        assert await world.ask(world.request("где лежит нож", "t")) == ""
        assert await world.ask(world.request("почему скрипит ключ", "t")) == ""  # as near by its vector; but not the same
        plain = World(tmp_path / "plain")
        plain.keep(plain.request(FAR, "t"), "under the mat")
        assert await plain.ask(plain.request(FAR_SAME, "t")) == ""
        await plain.room.close()
        await world.room.close()

    run(work)


@pytest.mark.parametrize("profile", ["strict", "faq"])
def test_a_foreign_cosine_never_reaches_the_verifier(tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the verifier is told is the cosine of the local vectors, for each pair that it is asked about."""

    async def work() -> None:
        import numpy

        from turnout.cache.semantic import models

        told: list[float] = []
        real = models.verifier(profile)

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def score(self, new: Any, kept: Any, cosine: float, deep: float | None = None) -> float:
                mine = float(numpy.frombuffer(new.vector, numpy.float32) @ numpy.frombuffer(kept.vector, numpy.float32))
                told.append(abs(cosine - mine))
                return float(real.score(new, kept, cosine, deep))

        monkeypatch.setattr(models, "verifier", lambda profile: Watched())
        world = Beside(tmp_path, profile=profile)
        for text in (FAR, "How do I repair a bicycle?", "How do I paint a bicycle?", "Is it a bicycle?"):
            await world.learned(text, "t", text)
        for text in (FAR_SAME, "how can I repair the bicycle", "where is my old bicycle", "why does it creak, the bicycle"):
            await world.ask(world.request(text, "t"))
        assert len(told) >= 6 and max(told) < 1e-5
        await world.room.close()

    run(work)


def test_nobody_is_given_what_is_somebody_elses(tmp_path: Path, full: bool) -> None:
    """All texts that end alike have one vector, for all tenants and models: only the scope keeps them apart."""
    looked = 30_000 if full else 2_000

    async def work() -> None:
        lot = random.Random(3)
        world, hits = Beside(tmp_path, mb=1), 0
        for i in range(looked):
            tenant, before = f"t{lot.randrange(5)}", (f"system {lot.randrange(3)}",)
            thing = lot.choice(("ключ", "нож", "паспорт", "bicycle"))
            text = f"где лежит {thing}" if thing != "bicycle" else "How do I repair a bicycle"
            asked = text + lot.choice(("", "?", " ?", "."))
            mine = repr((tenant, before, text))
            given = await world.ask(world.request(asked, tenant, *before))
            assert given in ("", mine), (given, mine)
            hits += bool(given)
            if not given:
                await world.learned(asked, tenant, mine, *before)
            if i % 500 == 499:
                await world.room.close()
                world = Beside(tmp_path, mb=1)
        assert hits > looked / 3
        await world.room.close()

    run(work)


def test_vectors_of_two_models_never_meet(tmp_path: Path) -> None:
    """A reload with another model, and back: on one file, and in one worker."""

    async def work() -> None:
        world = Beside(tmp_path)
        await world.learned(FAR, "t", "under the mat")
        first, second = world.policy, Given(b"two")
        for endpoint, given in ((second, ""), (world.given, "under the mat")):
            world.policy = Policy(first.spec, READER.names, b"v" * 16, endpoint=endpoint)
            assert await world.ask(world.request(FAR_SAME, "t")) == given
        await world.room.close()
        other = Beside(tmp_path, Given(b"two"))
        for _ in range(20):
            assert await other.ask(other.request(FAR_SAME, "t")) == ""
            await asyncio.sleep(0.01)
        assert len(other.room.knowledge.scopes) == 1 and not other.vectors
        await other.room.close()

    run(work)


def test_vectors_are_there_after_a_restart_and_for_other_workers(tmp_path: Path) -> None:
    async def work() -> None:
        world, other = Beside(tmp_path), Beside(tmp_path)
        assert await other.ask(other.request(FAR_SAME, "t")) == ""  # the scope is open here too
        while other.room.knowledge.books._seen < 0 or not all(scope.loaded for scope in other.room.knowledge.scopes):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        await world.learned(FAR, "t", "under the mat")
        while not other.vectors:
            await asyncio.sleep(0.01)
        assert FAR not in other.given.asked
        assert await other.ask(other.request(FAR_SAME, "t")) == "under the mat"
        await world.room.close()
        await other.room.close()
        again = Beside(tmp_path)
        while not await again.ask(again.request(FAR_SAME, "t")):
            await asyncio.sleep(0.01)
        assert FAR not in again.given.asked
        await again.room.close()

    run(work)


def test_one_that_was_kept_without_a_vector_is_found_by_the_local_table_alone(tmp_path: Path) -> None:
    async def work() -> None:
        world = Beside(tmp_path)
        world.given.away = True
        await world.learned(FAR, "t", "under the mat")
        await world.learned("How do I repair a bicycle?", "t", "with tools")
        assert await world.ask(world.request(FAR_SAME, "t")) == "" and not world.vectors
        assert await world.ask(world.request("how can I repair a bicycle?", "t")) == "with tools"
        world.given.away = False
        await world.learned(FAR, "t", "under the mat")  # asked anew, e.g. when it was stale
        assert await world.ask(world.request(FAR_SAME, "t")) == "under the mat"
        await world.room.close()

    run(work)


@pytest.mark.parametrize("evicted", [False, True])
def test_a_vector_that_comes_after_a_purge_brings_nothing_back(tmp_path: Path, evicted: bool) -> None:
    async def work() -> None:
        world = Beside(tmp_path)
        comes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        real = world.given.within

        async def later(x: Exchange, text: str) -> bytes | None:
            await comes
            return await real(x, text)

        world.given.later = later  # type: ignore[method-assign]
        await world.learned(FAR, "t", "under the mat")
        (scope,) = world.room.knowledge.scopes
        if evicted:
            world.room.knowledge.scopes.drop(scope)
        await world.room.knowledge.purge(Purge(tenant="t", dry=False))
        comes.set_result(None)
        await asyncio.sleep(0.05)
        await world.room.knowledge.books.flush()
        place = Place(scope.key, scope.owner, scope.route, scope.model)
        assert await world.room.knowledge.books.load(place) == [] and not world.vectors
        await world.room.close()

    run(work)


def test_vectors_count_as_their_tenants_memory_and_go_with_their_questions(tmp_path: Path) -> None:
    async def work() -> None:
        world, plain = Beside(tmp_path / "a"), World(tmp_path / "b")
        for i in range(100):
            text = f"вопрос про ключ {chr(1072 + i % 32) * (i // 32 + 3)}"
            await world.learned(text, "t", "x")
            plain.keep(plain.request(text, "t"), "x")
        scopes, others = world.room.knowledge.scopes, plain.room.knowledge.scopes
        assert scopes.items == scopes.vectors == 100
        assert scopes.bytes - others.bytes >= 100 * 5 * DIMENSIONS  # float32 to look in, int8 to write down
        before = scopes.bytes
        (scope,) = scopes
        for item in list(scope.items.values()):
            scopes.remove(scope, item)
        assert scope.space is not None and scope.space.size == 0 and scopes.bytes < before
        assert scope._texts == 0
        await world.room.close()
        await plain.room.close()

    run(work)


def test_many_are_found_through_a_graph(tmp_path: Path) -> None:
    async def work() -> None:
        world = Beside(tmp_path)
        words = ["".join(random.Random(i).choices("абвгдежзиклмнопрст", k=9)) for i in range(2_300)]
        for i, word in enumerate(words):
            world.keep(world.request(f"где лежит {word}?", "t"), word)
            if i % 20 == 0:
                await asyncio.sleep(0.001)
        (scope,) = world.room.knowledge.scopes
        while world.vectors < len(words) or any(index.wants_work for index in scope.indexes):
            await asyncio.sleep(0.01)
        assert scope.space is not None and scope.space.index._graph is not None
        found = [await world.ask(world.request(f"где лежит {word}", "t")) for word in words[::100]]
        assert found == words[::100]
        await world.room.close()

    run(work)


# ---- the gate


SPEC = msgspec.convert({"max_false_hit_rate": 0.05, "checks": {"share": 0.05, "first": 50, "max_usd_per_hour": 1}}, Semantic)


class NoBooks:
    up = True

    async def load_meter(self, name: str) -> list[bytes]:
        return []

    def save_meter(self, name: str, who: bytes, data: bytes) -> None: ...


def stream(meters: Meters, gate: Any, lot: random.Random, requests: int, right_above: float, now: int = 1_790_000_000 * 10**9) -> tuple[int, int]:
    """Requests whose candidates are right from a cosine of `right_above` on, and below it mostly not. Hits and wrong hits."""
    hits = wrong = 0
    for _ in range(requests):
        now += 10**9
        cosine = lot.betavariate(9, 2)
        right = lot.random() < (0.998 if cosine >= right_above else 0.2)
        item = lot.randrange(500)
        gate.request(now)
        asked: Any = type("Asked", (), {"found_cosine": cosine, "tenant": "t", "spec": SPEC, "place": type("P", (), {"scope": b"s", "route": "r"}), "endpoint": type("E", (), {"name": "v/m"})})
        kept: Any = type("Item", (), {"number": item})
        if beside.passes(meters, asked, kept, 0.0, now):
            hits += 1
            wrong += not right
            gate.served(now, cosine, b"s", item)
            if chance := gate.wants_check(cosine, b"s", now, lot.random()):
                gate.label(now, cosine, b"s", item, right, 1 / chance, "check")
        elif cosine >= 0.6:
            gate.missed(now, cosine, b"s", item)
            gate.label(now, cosine, b"s", item, right, 1.0, "miss")
    return hits, wrong


def test_the_gate_begins_closed_opens_by_evidence_and_holds_its_part() -> None:
    async def work() -> None:
        broke = 0
        for seed in range(12):
            meters = Meters(NoBooks(), b"w", lambda: 0)
            gate = meters.gate("t", "r", SPEC, "v/m")
            lot = random.Random(seed)
            assert gate.budget == pytest.approx(0.05 * GATE)
            assert gate.threshold(b"s", 1, 0) == CLOSED
            early, _ = stream(meters, gate, lot, int(UNSEEN / gate.budget) - 1, 0.9)
            assert early == 0
            hits, wrong = stream(meters, gate, lot, 5_000, 0.9, 1_790_001_000 * 10**9)
            assert hits > 80, seed
            broke += wrong > 5_000 * gate.budget
            meters.close()
            await asyncio.sleep(0)
        assert broke <= 1

    run(work)


def test_a_model_whose_cosines_say_nothing_serves_nothing() -> None:
    async def work() -> None:
        for seed in range(6):
            meters = Meters(NoBooks(), b"w", lambda: 0)
            gate = meters.gate("t", "r", SPEC, "v/m")
            hits, wrong = stream(meters, gate, random.Random(seed), 6_000, 2.0)
            assert wrong <= 6_000 * gate.budget and hits < 120, (seed, hits, wrong)
            meters.close()
            await asyncio.sleep(0)

    run(work)


def test_both_meters_together_have_the_routes_rate() -> None:
    async def work() -> None:
        meters = Meters(NoBooks(), b"w", lambda: 0)
        whole, shared, gate = meters.of("t", "q", SPEC, 0.8), meters.of("t", "r", SPEC, 0.8, True), meters.gate("t", "r", SPEC, "v/m")
        assert (whole.budget, shared.budget + gate.budget) == (0.05, pytest.approx(0.05))
        assert shared.threshold(b"s", 1, 0) == whole.threshold(b"s", 1, 0)  # the factory's
        for meter, wrong in ((shared, 1), (gate, 2)):
            for i in range(100):
                meter.request(i)
                meter.served(i, 0.9, b"s", i)
                meter.label(i, 0.9, b"s", i, i >= wrong, 1.0, "check")
        rates = meters.seen()["turnout_cache_false_hit_rate"]
        assert rates["r", "t", "estimate"] == pytest.approx(0.03, rel=0.05)
        assert rates["r", "t", "low"] <= 0.03 <= rates["r", "t", "high"]
        assert set(meters.seen()["turnout_semantic_gate"]) == {("r", "t", "v/m")}
        meters.close()
        await asyncio.sleep(0)

    run(work)
