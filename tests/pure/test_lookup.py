"""The semantic look-up without a gateway around it: whoever asks, whatever was evicted, also after a restart, nobody is ever
given what was kept for somebody else."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from support.counts import Counts
from turnout.cache.entry import Entry
from turnout.cache.memory import Memory
from turnout.cache.policy import LOOKED_AT, Policy
from turnout.cache.semantic import models, room
from turnout.cache.semantic.question import LOOKED_AT as LOOKED_AT_TOO
from turnout.cache.semantic.room import Room
from turnout.cache.semantic.scopes import Item
from turnout.cache.spec import CacheSpec, MemorySpec
from turnout.clock import SystemClock
from turnout.exchange import Exchange, Principal, Surface
from turnout.wire.request import RequestReader

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
READER = RequestReader((*LOOKED_AT, *LOOKED_AT_TOO))


class World:
    """One worker's room, and requests for it. `mb`: of questions; little makes it evict."""

    def __init__(self, folder: Path, mb: int = 64, **semantic: Any) -> None:
        spec = msgspec.convert({"semantic": {"deep": "off", "checks": {"share": 0, "first": 0}, **semantic}}, CacheSpec)
        self.policy = Policy(spec, READER.names, b"v" * 16)
        self.route: Any = type("Route", (), {"name": "chat", "cache": self.policy})()
        self.clock = SystemClock()
        self.counts = Counts()
        self.memory = Memory(1 << 26, 1 << 26)
        self.room = Room(
            MemorySpec(semantic_mb=mb, tenant_share=1), directory=str(folder), depot=None, worker=0, memory=self.memory, clock=self.clock, rng=random.Random(1), counts=self.counts,
        )  # fmt: skip
        self.lookup = self.room.lookup

    def request(self, text: str, tenant: str, *before: str, key: str = "k", **more: Any) -> Exchange:
        messages = [{"role": ("system", "user", "assistant")[i % 3], "content": said} for i, said in enumerate(before)]
        body = msgspec.json.encode({"model": "m", "messages": [*messages, {"role": "user", "content": text}], **more})
        x = Exchange(id="1", surface=CHAT, started_ns=0, wall_ns=0, config_version=1, body=body, spans=READER.scan(body), model="m", route=self.route)
        x.principal = Principal(name=key, tenant=tenant, fingerprint="")
        return x

    def entry(self, x: Exchange, answer: str) -> Entry:
        now = self.clock.now_ns()
        assert x.principal is not None
        body = msgspec.json.encode({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]})
        return Entry(
            digest=self.policy.digest(x), body=body, tenant=x.principal.tenant, route="chat", model="m", key="k", tags="", provider="a", served_model="m", finish="stop",
            prompt=1, completion=1, cost_nanos=1, stored_ns=now, fresh_ns=now + 10**12, dead_ns=now + 10**12,
        )  # fmt: skip

    def keep(self, x: Exchange, answer: str) -> None:
        entry = self.entry(x, answer)
        self.memory.put(entry, self.clock.now_ns())
        asked = self.lookup.ask(x, self.policy)
        assert asked is not None
        self.lookup.learn(asked, entry)

    def kept(self) -> list[Item]:
        return [item for scope in self.room.knowledge.scopes for item in scope.items.values()]

    async def ask(self, x: Exchange) -> str:
        """The answer that is given; empty: none."""
        asked = self.lookup.ask(x, self.policy)
        entry = await self.lookup.answer(x, asked, 0.0) if asked is not None else None
        return msgspec.json.decode(entry.body)["choices"][0]["message"]["content"] if entry is not None else ""


TOPICS = [f"How do I {verb} a {thing}?" for verb in ("repair", "clean", "paint", "sell") for thing in ("bicycle", "kitchen", "guitar", "boiler", "carpet")]


def who(lot: random.Random) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """A tenant, what was said before, and parameters."""
    before = (f"system {lot.randrange(4)}", *(("hi", "hello") if lot.random() < 0.3 else ()))
    more = {"seed": lot.randrange(2)} if lot.random() < 0.3 else {"tools": [{"type": "function", "function": {"name": f"f{lot.randrange(2)}"}}], "tool_choice": "none"}
    return f"t{lot.randrange(6)}", before, more if lot.random() < 0.5 else {}


@pytest.mark.parametrize("mb", [64, 1], ids=["all of it", "evicting"])
def test_nobody_is_given_what_is_somebody_elses(tmp_path: Path, full: bool, mb: int) -> None:
    looked = 100_000 if full else 4_000

    async def work() -> int:
        lot = random.Random(11)
        hits = 0
        world = World(tmp_path, mb)
        for i in range(looked):
            if i == looked // 2:  # a restart
                await world.room.close()
                world = World(tmp_path, mb)
            topic = lot.choice(TOPICS)
            tenant, before, more = who(lot)
            mine = repr((topic, tenant, before, more))
            asked = topic.replace("How do I", lot.choice(("How do I", "How can I", "how do i"))) + " " * lot.randrange(4)
            given = await world.ask(world.request(asked, tenant, *before, **more))
            assert given in ("", mine), (given, mine)
            hits += bool(given)
            if not given and lot.random() < 0.5:
                world.keep(world.request(asked, tenant, *before, **more), mine)
            if i % 50 == 0:
                await asyncio.sleep(0.001)
        if mb == 1:
            assert world.room.seen()["turnout_semantic_evictions_total"][("scope",)]
        await world.room.close()
        return hits

    hits = asyncio.run(work())
    assert hits > looked / 20
    print(f"\n{looked} look-ups, {hits} hits, all of them one's own")


def test_an_answer_that_is_gone_takes_its_question_along(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        x = world.request(TOPICS[0], "t")
        world.keep(x, "an answer")
        assert await world.ask(x) == "an answer"
        entry = world.memory.find(world.policy.digest(x), world.clock.now_ns())
        assert entry is not None
        world.memory.drop(entry)
        await world.room.knowledge.books.flush()
        assert await world.ask(x) == "an answer"  # from the file
        world.memory.drop(world.memory.find(world.policy.digest(x), world.clock.now_ns()) or entry)
        (scope,) = world.room.knowledge.scopes
        world.room.knowledge.books.drop(world.lookup.ask(x, world.policy).place, next(iter(scope.items.values())))  # type: ignore[union-attr]
        await world.room.knowledge.books.flush()
        assert await world.ask(x) == ""
        assert not scope.items and world.counts.seen["gone"] == 1
        await world.room.close()

    asyncio.run(work())


def test_a_large_scope_is_there_again_after_a_restart(tmp_path: Path) -> None:
    """It is read and put into a graph a little at a time: the loop is never held up for long."""

    async def work() -> None:
        world = World(tmp_path)
        texts = [f"How do I repair the {thing} number {i} of the {place}?" for i in range(130) for thing in ("boiler", "door", "roof") for place in ("school", "station", "harbour", "museum", "farm", "hotel")]
        for i, text in enumerate(texts):
            world.keep(world.request(text, "t"), f"answer {i}")
            if i % 100 == 0:
                await asyncio.sleep(0)
        await world.room.close()
        world = World(tmp_path)
        assert await world.ask(world.request(texts[-1], "t")) == ""
        (scope,) = world.room.knowledge.scopes
        while not scope.loaded or scope.index.wants_work:
            await asyncio.sleep(0.005)
        assert len(scope.items) == len(texts)
        found = [await world.ask(world.request(texts[i], "t")) for i in range(0, len(texts), 100)]
        assert sum(said == f"answer {i}" for said, i in zip(found, range(0, len(texts), 100), strict=True)) >= len(found) - 1
        await world.room.close()

    asyncio.run(work())


# ---- faq


class Thread:
    """In place of the transformer: texts of one intent have nearly one vector. `texts`: by intent."""

    waiting = 0

    def __init__(self, *texts: tuple[str, ...]) -> None:
        lot = numpy.random.default_rng(2)
        self.asked: list[tuple[int, ...]] = []
        self._rows: dict[tuple[int, ...], bytes] = {}
        for same in texts:
            middle = lot.normal(size=384)
            for text in same:
                row = middle + 0.05 * lot.normal(size=384)
                self._rows[tuple(models.lexicon().parse(text).ids())] = (row / numpy.linalg.norm(row)).astype(numpy.float32).tobytes()

    async def vector(self, said: Any) -> bytes | None:
        self.asked.append(tuple(said.ids()))
        return self._rows.get(self.asked[-1])


BLOCK = ("How can I block my lost card from the app?", "how may my lost card be blocked in the app", "What is the way to stop payments with a card that was lost?")
ORDER = ("How can I order a second card in the app?", "In the app, where does one order another card?")


@pytest.fixture
def faq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Its worlds have a thread that knows intents. Call it inside a loop."""
    thread = Thread(BLOCK, ORDER)
    monkeypatch.setattr(room, "open_deep", lambda: thread)
    return lambda **semantic: World(tmp_path, profile="faq", deep="auto", max_false_hit_rate=0.05, **semantic)


async def settled(world: World) -> None:
    async with asyncio.timeout(20):
        while any(item.deep is None for item in world.kept()):
            await asyncio.sleep(0.001)


def test_another_wording_is_preferred_to_a_nearer_one(faq: Callable[..., World]) -> None:
    async def work() -> None:
        world = faq(personal="share")
        world.keep(world.request(ORDER[0], "t"), "order")
        world.keep(world.request(BLOCK[2], "t"), "block")
        await settled(world)
        asked = world.lookup.ask(world.request(BLOCK[0], "t"), world.policy)
        assert asked is not None and asked.near is not None and asked.near.text == ORDER[0]
        assert await world.ask(world.request(BLOCK[0], "t")) == "block"
        await world.room.close()

    asyncio.run(work())


def test_a_kept_question_has_its_vector_before_somebody_needs_it(faq: Callable[..., World]) -> None:
    async def work() -> None:
        world = faq(personal="share")
        world.keep(world.request(BLOCK[0], "t"), "block")
        await settled(world)
        (item,) = world.kept()
        assert item.deep is not None and len(item.deep) == 384
        thread = room.open_deep()
        thread.asked.clear()  # type: ignore[union-attr]
        assert await world.ask(world.request(BLOCK[1], "t")) == "block"
        assert thread.asked == [tuple(models.lexicon().parse(BLOCK[1]).ids())]  # type: ignore[union-attr]
        await world.room.close()

    asyncio.run(work())


def test_what_a_key_asked_of_its_own_is_its_own_and_the_rest_is_there_too(faq: Callable[..., World]) -> None:
    async def work() -> None:
        world = faq()
        mine, common = BLOCK[0], BLOCK[2]  # "my lost card", "a card"
        world.keep(world.request(mine, "t", key="one"), "of one")
        await settled(world)
        assert await world.ask(world.request(BLOCK[1], "t", key="one")) == "of one"
        assert await world.ask(world.request(common, "t", key="one")) == "of one"
        assert await world.ask(world.request(BLOCK[1], "t", key="two")) == ""
        assert await world.ask(world.request(common, "t", key="two")) == ""
        world.keep(world.request(common, "t", key="two"), "of all")
        await settled(world)
        assert await world.ask(world.request(BLOCK[1], "t", key="two")) == "of all"
        assert await world.ask(world.request(BLOCK[1], "t", key="three")) == "of all"
        assert await world.ask(world.request(BLOCK[1], "other", key="two")) == ""
        await world.room.close()

    asyncio.run(work())


def test_what_a_check_finds_no_fault_with_is_not_kept_twice(faq: Callable[..., World]) -> None:
    async def work() -> None:
        world = faq(personal="share")

        async def check(*fresh: str) -> list[str]:
            """Which questions are kept when a hit was asked again, and this came."""
            x = world.request(BLOCK[1], "t")
            asked = world.lookup.ask(x, world.policy)
            assert asked is not None and await world.lookup.answer(x, asked, 0.0) is not None
            asked.weight = 1.0
            again = [world.lookup.learn(asked, world.entry(x, answer)) for answer in fresh]
            assert again[-1] is False
            return [item.text for item in world.kept()]

        world.keep(world.request(BLOCK[0], "t"), "Open the app, choose the card and block it.")
        await settled(world)
        assert await check("Open the app, choose the card and block it.", "Open the app, choose the card and block it.") == [BLOCK[0]]
        assert await check("No, that costs 40 euros.", "Yes, call 12345.") == [BLOCK[0]]
        assert await check("No, that costs 40 euros.", "No, that costs 40 euros.") == [BLOCK[0], BLOCK[1]]
        await world.room.close()

    asyncio.run(work())
