"""Snapshots of large scopes: found at once after a restart, refused when anything is wrong, purged to the last byte, bounded."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_lookup import World

from turnout import native
from turnout.cache.purge import Purge
from turnout.cache.semantic import index, knowledge, models, snapshot
from turnout.cache.semantic.books import Place, written
from turnout.cache.semantic.scopes import Item
from turnout.cache.semantic.snapshots import Snapshots

FLAT = 200
VERSION = b"v" * 8
PLACE = Place(b"s" * 16, "alice", "route", "m")
WORDS = [f"{verb} a {thing} in {place}" for verb in ("repair", "clean", "paint", "sell", "rent") for thing in ("bicycle", "kitchen", "guitar", "boiler", "carpet") for place in ("Rome", "Oslo", "Graz", "Turin", "Paris", "Ghent", "Lyon", "Porto", "Cairo", "Lima", "Bern", "Riga")]  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FLAT", FLAT)
    monkeypatch.setattr(knowledge, "LEAST_AGE_S", 0.0)
    monkeypatch.setattr(knowledge, "LAST_AGE_S", 0.0)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


# ---- the file


def item(number: int, text: str, life_s: float = 3600.0) -> Item:
    now = time.time_ns()
    return Item(digest=number.to_bytes(32, "big"), text=text, said=models.lexicon().parse(text), tenant="alice", tag="t", key="k", tags="", stored_ns=now, dead_ns=now + int(life_s * 1e9))


def write(path: Path, items: list[Item], place: Place = PLACE) -> None:
    writing = snapshot.Writing(str(path), place, len(items))
    for first in range(0, len(items), 7):
        some = items[first : first + 7]
        said = [written(one) for one in some]
        writing.add(said, max(one.dead_ns for one in some))
        writing.write(first, [native.row_of(one.said.vector) for one in some], said)
    writing.finish(VERSION, time.time_ns())


def test_a_file_gives_back_what_is_near(tmp_path: Path) -> None:
    items = [item(number, f"How do I {words}?") for number, words in enumerate(WORDS)]
    write(tmp_path / "a.snap", items)
    found = snapshot.read(str(tmp_path / "a.snap"), VERSION, time.time_ns())
    assert len(found) == len(items) and found.place == PLACE
    for one in items[::17]:
        assert written(one) in found.nearest(one.said.vector)
    assert [path.name for path in tmp_path.iterdir()] == ["a.snap"]
    assert (tmp_path / "a.snap").stat().st_mode & 0o077 == 0


def test_whatever_is_wrong_with_a_file_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    write(path, [item(number, f"How do I {words}?") for number, words in enumerate(WORDS[:20])])
    whole = path.read_bytes()

    def refused(data: bytes, version: bytes = VERSION, now_ns: int = 0) -> bool:
        path.write_bytes(data)
        try:
            snapshot.read(str(path), version, now_ns)
        except (snapshot.Refused, ValueError):
            return True
        return False

    assert not refused(whole)
    assert all(refused(whole[:size]) for size in (0, 1, 11, 55, 64, 100, len(whole) // 2, len(whole) - 1))
    assert refused(whole + b"\0") and refused(bytes(len(whole))) and refused(b"\xff" * len(whole))
    step = max(1, len(whole) // 400)
    assert all(refused(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :]) for i in [*range(64), *range(64, len(whole), step)])
    assert refused(whole, version=b"w" * 8)
    assert refused(whole, now_ns=time.time_ns() + 7200 * 10**9)


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    write(path, [item(1, "How do I cook rice?")])
    before = path.read_bytes()
    unfinished = snapshot.Writing(str(path), PLACE, 5)
    some = item(2, "How do I bake bread?")
    unfinished.add([written(some)], some.dead_ns)
    unfinished.write(0, [native.row_of(some.said.vector)], [written(some)])
    assert path.read_bytes() == before
    unfinished.abandon()
    assert [name.name for name in tmp_path.iterdir()] == ["a.snap"]


# ---- the folder


class Folder:
    def __init__(self, folder: Path, most: int = 1 << 24, owners: int = 1 << 24) -> None:
        self.seen: dict[str, int] = {}
        self.said: list[str] = []
        self.path = folder / "semantic"
        self.snapshots = Snapshots(str(folder), (most, owners), VERSION, self._count, self.said.append, time.time_ns)

    def _count(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    async def write(self, place: Place, items: list[Item], least_age_s: float = 0.0, pause: Callable[[], Coroutine[Any, Any, None]] | None = None) -> bool:
        async def pieces() -> AsyncIterator[tuple[list[bytes], list[bytes], int]]:
            for one in items:
                yield [native.row_of(one.said.vector)], [written(one)], one.dead_ns
                if pause is not None:
                    await pause()

        return await self.snapshots.write(place, len(items), sum(len(one.text) for one in items), pieces(), least_age_s)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.suffix != ".lock")

    def bytes(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.path.iterdir())


def place(number: int, owner: str, route: str = "r", model: str = "m") -> Place:
    return Place(number.to_bytes(16, "big"), owner, route, model)


def test_what_is_torn_is_not_used_and_the_operator_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        folder = Folder(tmp_path)
        assert await folder.write(PLACE, [item(1, "How do I cook rice?")])
        (name,) = folder.files()
        (folder.path / name).write_bytes((folder.path / name).read_bytes()[:-5])
        assert await folder.snapshots.open(PLACE) is None
        await until(lambda: folder.said)
        assert "torn" in folder.said[0] and "rice" not in folder.said[0]
        assert folder.seen["refused"] == 1 and folder.files() == []
        assert await folder.write(PLACE, [item(1, "How do I cook rice?")])
        assert await folder.snapshots.open(PLACE) is not None
        # That of another scope under its name is none of ours.
        other = place(7, "alice")
        os.replace(folder.path / name, folder.snapshots._path(other))
        assert await folder.snapshots.open(other) is None
        await folder.snapshots.close()

    run(work)


def test_one_writes_and_the_others_leave_it_to_him(tmp_path: Path) -> None:
    async def work() -> None:
        one, other = Folder(tmp_path), Folder(tmp_path)
        items = [item(number, f"How do I {words}?") for number, words in enumerate(WORDS[:9])]
        tried = []

        async def meanwhile() -> None:
            if not tried:
                tried.append(await other.write(PLACE, items))

        assert await one.write(PLACE, items, pause=meanwhile)
        assert tried == [False]
        assert not await other.write(PLACE, items, least_age_s=60) and await other.write(PLACE, items)
        for folder in (one, other):
            await folder.snapshots.close()

    run(work)


def test_all_of_it_is_bounded_and_each_tenant_has_his_share(tmp_path: Path) -> None:
    items = [item(number, f"How do I {words}?") for number, words in enumerate(WORDS[:50])]

    async def work() -> None:
        folder = Folder(tmp_path, most=100_000, owners=50_000)
        assert await folder.write(place(0, "quiet"), items)
        (quiet,) = folder.files()
        for number in range(1, 12):
            assert await folder.write(place(number, "loud"), items)
            sizes = {path.name: path.stat().st_size for path in folder.path.iterdir()}
            assert sum(sizes.values()) <= 100_000 and quiet in sizes
            assert sum(size for name, size in sizes.items() if name != quiet) <= 50_000
        assert folder.seen["evicted"] >= 8
        for number in range(20, 26):
            assert await folder.write(place(number, f"owner {number}"), items)
            assert sum(path.stat().st_size for path in folder.path.iterdir()) <= 100_000
        assert not await folder.write(place(30, "large"), items * 10) and folder.seen["large"] == 1
        await folder.snapshots.close()

    run(work)


@pytest.mark.parametrize(
    "what, gone",
    [({}, "abcd"), ({"tenant": "alice"}, "abd"), ({"route": "r2"}, "b"), ({"model": "m2"}, "c"), ({"tenant": "bob"}, "cd"), ({"tenant": "eve"}, "d"), ({"tag": "x"}, "abcd"), ({"dry": True}, "")],
)
def test_a_purge_leaves_no_byte_of_what_may_fit(tmp_path: Path, what: dict[str, Any], gone: str) -> None:
    places = {"a": place(1, "alice"), "b": place(2, "alice", "r2"), "c": place(3, "bob", model="m2"), "d": place(4, "")}

    async def work() -> None:
        folder = Folder(tmp_path)
        for name, where in places.items():
            assert await folder.write(where, [item(1, f"SECRET{name}")])
        asked = Purge(**{"dry": False, **what})
        opened = [await folder.snapshots.open(where) for where in places.values()]  # mapped, as other workers have them
        await folder.snapshots.purge(asked)
        for (name, where), held in zip(places.items(), opened, strict=True):
            assert (f"SECRET{name}".encode() in folder.bytes()) == (name not in gone)
            assert (await folder.snapshots.open(where) is None) == (name in gone)
            assert held is not None and (b"SECRET" in held.item(0)) == (name not in gone)
        await folder.snapshots.close()

    run(work)


def test_a_purge_that_was_missed_takes_what_was_there_and_not_what_came_later(tmp_path: Path) -> None:
    async def work() -> None:
        folder = Folder(tmp_path)
        assert await folder.write(place(1, "alice"), [item(1, "SECRET")]) and await folder.write(place(2, "bob"), [item(2, "OTHER")])
        asked, at = Purge(tenant="alice", dry=False), time.time_ns()
        assert await folder.write(place(3, "alice"), [item(3, "LATER")])
        await folder.snapshots.purge_past([(asked, at), (Purge(tenant="bob"), at)])  # the second only counted
        assert [word for word in (b"SECRET", b"OTHER", b"LATER") if word in folder.bytes()] == [b"OTHER", b"LATER"]
        await folder.snapshots.close()

    run(work)


def test_what_is_written_during_a_purge_goes_too(tmp_path: Path) -> None:
    async def work() -> None:
        folder = Folder(tmp_path)

        async def meanwhile() -> None:
            await folder.snapshots.purge(Purge(tenant="alice", dry=False))

        items = [item(number, f"SECRET{number}") for number in range(3)]
        assert not await folder.write(PLACE, items, pause=meanwhile)
        assert folder.files() == [] and b"SECRET" not in folder.bytes()
        await folder.snapshots.close()

    run(work)


def test_a_side_file_of_a_dead_writer_is_swept_away(tmp_path: Path) -> None:
    async def work() -> None:
        folder = Folder(tmp_path)
        folder.path.mkdir()
        dead = folder.path / f"x.snap.{2**22 + 1}.00{snapshot.SIDE}"  # above any number of a process
        dead.write_bytes(b"SECRET")
        await folder.snapshots.prepare(5.0)
        assert folder.files() == []
        await folder.snapshots.close()

    run(work)


@pytest.mark.parametrize("damage", ["file", "unwritable"])
def test_a_folder_that_cannot_be_had_costs_only_the_snapshot(tmp_path: Path, damage: str) -> None:
    async def work() -> None:
        (tmp_path / "semantic").write_text("")
        folder = Folder(tmp_path if damage == "file" else tmp_path / "semantic" / "below")
        await folder.snapshots.prepare(5.0)
        assert not await folder.write(PLACE, [item(1, "How do I cook rice?")])
        assert await folder.snapshots.open(PLACE) is None
        await folder.snapshots.purge(Purge(dry=False))
        await folder.snapshots.close()
        assert folder.seen["failed"] >= 2

    run(work)


def test_whichever_step_fails_there_is_a_whole_snapshot_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = [item(1, "How do I cook rice?")], [item(number, f"How do I {words}?") for number, words in enumerate(WORDS[:3])]

    async def work() -> int:
        step = 0
        while True:
            folder = Folder(tmp_path / str(step))
            assert await folder.write(PLACE, old)
            calls = 0

            def failing(name: str, left: int) -> Callable[..., Any]:
                real = getattr(os, name)

                def call(*args: Any, **more: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls == left:
                        raise OSError(28, "No space left on device")
                    return real(*args, **more)

                return call

            with monkeypatch.context() as patch:
                for name in ("open", "pwrite", "pread", "fsync", "replace", "makedirs"):
                    patch.setattr(snapshot.os, name, failing(name, step + 1))
                written = await folder.write(PLACE, new)
            found = await folder.snapshots.open(PLACE)
            assert found is not None and len(found) in (len(old), len(new)) and (len(found) == len(new) or not written)
            assert len(folder.files()) == 1
            assert await folder.write(PLACE, new)  # and it goes on
            await folder.snapshots.close()
            if calls <= step:
                return step
            step += 1

    steps = asyncio.run(work())
    assert steps > 10


# ---- a worker that begins again


def fill(world: World, words: list[str], tenant: str = "t") -> None:
    for text in words:
        world.keep(world.request(f"How do I {text}?", tenant), text)


async def filled(folder: Path) -> None:
    """A worker learned all of it and ended in order."""
    world = World(folder)
    fill(world, WORDS)
    await until(lambda: all(scope.loaded for scope in world.room.knowledge.scopes))
    await world.room.close()


def wait_written(world: World, folder: Path) -> Coroutine[Any, Any, None]:
    return until(lambda: world.counts.seen.get("written") and list((folder / "semantic").glob("*.snap")))


def first_look(world: World, text: str) -> Any:
    """Without a turn of the loop in between."""
    return world.lookup.ask(world.request(f"How can I {text}", "t"), world.policy)


def test_as_many_are_found_in_a_snapshot_as_are_wanted(tmp_path: Path) -> None:
    async def work() -> None:
        await filled(tmp_path)
        world = World(tmp_path)
        await world.room.prepare(5.0)
        asked = first_look(world, WORDS[5])
        assert asked is not None and not asked.scope.loaded
        assert len(world.room.knowledge.nearest(asked.scope, asked.said.vector, 16)) == 16  # as the second look of faq has it
        await world.room.close()

    run(work)


@pytest.mark.parametrize("end", ["drained", "killed"])
def test_the_first_look_after_a_restart_finds_what_was_there(tmp_path: Path, end: str) -> None:
    async def work() -> None:
        before = World(tmp_path)
        fill(before, WORDS[:-20])
        await before.room.knowledge.books.flush()
        if end == "killed":
            await wait_written(before, tmp_path)
            for task in (*before.room.knowledge._tasks, before.room.meters._task):
                task.cancel()
            await until(lambda: not before.room.knowledge._tasks)
            fill(before, WORDS[-20:])  # after the snapshot
            await before.room.knowledge.books.flush()
        else:
            fill(before, WORDS[-20:])
            await until(lambda: all(scope.loaded for scope in before.room.knowledge.scopes))
            await before.room.close()
        after = World(tmp_path)
        await after.room.prepare(5.0)
        for words in WORDS[:-60:29]:
            asked = first_look(after, words)
            assert asked is not None and asked.near is not None and asked.near.text == f"How do I {words}?"
            assert asked.cosine > 0.8
        assert after.counts.seen["used"] == 1
        (scope,) = after.room.knowledge.scopes
        assert not scope.loaded and len(scope.items) < 100
        assert await after.ask(after.request(f"How can I {WORDS[0]}", "t")) == WORDS[0]
        await until(lambda: scope.loaded and not scope.index.wants_work)
        assert len(scope.items) == len(WORDS) and scope.rest is None
        for words in WORDS[::31]:
            asked = first_look(after, words)
            assert asked is not None and asked.near is not None and asked.near.text == f"How do I {words}?"
        await after.room.close()

    run(work)


def test_what_the_books_have_let_go_is_never_given_and_goes_from_the_snapshot(tmp_path: Path) -> None:
    async def work() -> None:
        await filled(tmp_path)
        other = World(tmp_path)  # purges by one question, and the snapshot comes back as if nobody had heard of it
        (file,) = (tmp_path / "semantic").glob("*.snap")
        kept = file.read_bytes()
        asked = first_look(other, WORDS[3])
        await until(lambda: next(iter(other.room.knowledge.scopes)).loaded)
        asked = first_look(other, WORDS[3])
        assert asked is not None and asked.near is not None
        assert await other.room.knowledge.purge(Purge(entry=asked.near.digest.hex(), dry=False)) == 1
        await other.room.close()
        for path in (tmp_path / "semantic").glob("*.snap"):
            path.unlink()
        file.write_bytes(kept)
        after = World(tmp_path)
        await after.room.prepare(5.0)
        asked = first_look(after, WORDS[3])
        assert asked is not None and asked.near is not None and asked.near.text == f"How do I {WORDS[3]}?"  # proposed
        assert await after.lookup.answer(after.request(f"How can I {WORDS[3]}", "t"), asked, 0.0) is None  # not given
        (scope,) = after.room.knowledge.scopes
        await until(lambda: scope.loaded and not scope.loading)
        assert len(scope.items) == len(WORDS) - 1
        await until(lambda: after.counts.seen.get("written"))
        data = b"".join(path.read_bytes() for path in (tmp_path / "semantic").iterdir())
        assert WORDS[3].encode() not in data and WORDS[4].encode() in data
        await after.room.close()

    run(work)


def test_a_purge_takes_questions_and_snapshots_and_a_worker_that_begins_has_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        await filled(tmp_path)
        world = World(tmp_path)
        await world.room.prepare(5.0)
        assert first_look(world, WORDS[5]).near is not None  # it is being loaded
        await world.room.knowledge.purge(Purge(tenant="t", dry=False))
        assert first_look(world, WORDS[5]).near is None
        await until(lambda: all(scope.loaded for scope in world.room.knowledge.scopes))
        assert first_look(world, WORDS[6]).near is None
        await world.room.close()
        data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"bicycle" not in data
        after = World(tmp_path)
        await after.room.prepare(5.0)
        assert first_look(after, WORDS[5]).near is None
        await after.room.close()

    run(work)


def test_a_purge_of_one_question_takes_the_snapshot_and_another_is_written(tmp_path: Path) -> None:
    async def work() -> None:
        await filled(tmp_path)
        world = World(tmp_path)
        await world.room.prepare(5.0)
        assert first_look(world, WORDS[5]).near is not None
        (scope,) = world.room.knowledge.scopes
        await until(lambda: scope.loaded and not scope.loading)
        await world.room.knowledge.purge(Purge(entry="0" * 64, dry=False))  # nobody's
        assert not list((tmp_path / "semantic").glob("*.snap"))
        await world.room.close()
        assert list((tmp_path / "semantic").glob("*.snap"))

    run(work)


def test_a_scope_that_made_room_comes_back_from_its_snapshot(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        fill(world, WORDS)
        await wait_written(world, tmp_path)
        (scope,) = world.room.knowledge.scopes
        world.room.knowledge.scopes.drop(scope)
        first_look(world, WORDS[8])
        await until(lambda: world.counts.seen.get("used"))
        (again,) = world.room.knowledge.scopes
        assert again is not scope
        await until(lambda: again.rest is not None or again.loaded)
        assert first_look(world, WORDS[8]).near is not None
        await world.room.close()

    run(work)


def test_the_answers_stay_in_the_books(tmp_path: Path) -> None:
    """Nothing of an answer is in a snapshot."""

    async def work() -> None:
        await filled(tmp_path)
        (file,) = (tmp_path / "semantic").glob("*.snap")
        assert b"choices" not in file.read_bytes()

    run(work)
