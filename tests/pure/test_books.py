"""What is written down of the semantic cache, in a file of the host: found again, told to others, purged to the last byte."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from turnout.cache.purge import Purge
from turnout.cache.semantic import disk
from turnout.cache.semantic.books import Place, read, written
from turnout.cache.semantic.disk import Disk
from turnout.cache.semantic.scopes import Item

HOUR_NS = 3_600_000_000_000
PLACE = Place(b"s" * 16, "tenant", "route", "m")


def item(number: int, text: str = "", *, tenant: str = "tenant", life_ns: int = HOUR_NS, **more: Any) -> Item:
    now = time.time_ns()
    given: dict[str, Any] = {"tag": "tag", "key": "key", "tags": "", **more}
    return Item(digest=number.to_bytes(32, "big"), text=text or f"question {number}", said=None, tenant=tenant, stored_ns=now, dead_ns=now + life_ns, **given)


@contextlib.asynccontextmanager
async def opened(folder: Path, errors: list[str] | None = None, most: int = 1 << 26) -> AsyncIterator[Disk]:
    books = Disk(str(folder), most, (errors if errors is not None else []).append)
    try:
        yield books
    finally:
        await books.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_an_item_is_read_as_it_was_written_and_nothing_else_is() -> None:
    kept = item(1, "how do I cook rice", tags="a,b")
    data = written(kept)
    found = read(data, 0)
    assert found is not None
    assert all(getattr(found, name) == getattr(kept, name) for name in ("digest", "text", "tenant", "tag", "key", "tags", "stored_ns", "dead_ns"))
    assert read(data, kept.dead_ns) is None
    assert all(read(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :], 0) is None for i in range(len(data)))
    assert all(read(data[:i], 0) is None for i in range(len(data)))


def test_what_was_written_is_there_after_the_end(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as books:
            for number in range(100):
                books.add(PLACE, item(number), b"answer %d" % number)
            books.save_meter("n", b"me", b"1")
            books.save_meter("n", b"me", b"2")
        async with opened(tmp_path) as books:
            found = await books.load(PLACE)
            assert found is not None and len(found) == 100
            assert await books.load(Place(b"x" * 16, "", "", "")) == []
            assert await books.answer(item(42)) == b"answer 42"
            assert await books.answer(item(420)) is None
            assert await books.load_meter("n") == [b"2"]
        assert (tmp_path / disk.FILE).stat().st_mode & 0o077 == 0

    run(work)


def test_others_hear_of_it_and_the_writer_does_not(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as one, opened(tmp_path) as two:
            assert await one.news() == await two.news() == []
            kept = item(1)
            one.add(PLACE, kept, b"answer")
            one.drop(PLACE, kept)
            await one.flush()
            news = await two.news()
            assert [(n.what, n.scope) for n in news] == [("add", PLACE.scope), ("drop", PLACE.scope)]
            assert (news[0].value, news[1].value) == (written(kept), kept.digest)
            assert await two.news() == await one.news() == []
            assert await two.load(PLACE) == []

    run(work)


def test_who_is_far_behind_hears_that_something_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MOST_LOG", 20)
    monkeypatch.setattr(disk, "TRIM", 2)

    async def work() -> None:
        async with opened(tmp_path) as one, opened(tmp_path) as two:
            await two.news()
            for number in range(60):
                one.add(PLACE, item(number), b"")
                await one.flush()
            assert (await two.news())[0].what == "lost"

    run(work)


@pytest.mark.parametrize(
    "what, gone",
    [
        ({}, 12), ({"tenant": "alice"}, 4), ({"route": "r1"}, 6), ({"tenant": "alice", "route": "r1"}, 2), ({"model": "m"}, 12), ({"model": "no"}, 0), ({"key": "key1"}, 6),
        ({"tag": "blue"}, 3), ({"tag": "blu"}, 0), ({"entry": (7).to_bytes(32, "big").hex()[:64]}, 1), ({"entry": "0" * 16}, 12),
    ],
)  # fmt: skip
def test_a_purge_is_complete(tmp_path: Path, what: dict[str, Any], gone: int) -> None:
    """Also in the file: not a byte of a question or an answer is left in it."""

    async def work() -> None:
        async with opened(tmp_path) as books, opened(tmp_path) as other:
            await other.news()
            kept = []
            for number in range(12):
                place = Place(bytes([number % 6]) * 16, "o", f"r{number % 2}", "m")
                one = item(number, f"SECRETQUESTION{number:02d}", tenant=("alice", "bob", "carol")[number % 3], key=f"key{number % 2}", tags="red,blue" if number < 3 else "")
                kept.append((place, one))
                books.add(place, one, f"SECRETANSWER{number:02d}".encode())
            asked = Purge(**what, dry=False)
            await books.purge(asked)
            left = [one for place, one in kept if not asked.matches(one, place.route, (place.model,))]
            assert len(left) == 12 - gone
            found = {data for place in {p.scope: p for p, _ in kept}.values() for data in await books.load(place) or ()}
            assert found == {written(one) for one in left}
            for _, one in kept:
                assert (await books.answer(one) is not None) == (one in left)
        data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        for _, one in kept:
            assert (one.text.encode() in data) == (one in left)
            assert (one.text.replace("QUESTION", "ANSWER").encode() in data) == (one in left)

    run(work)


def test_the_file_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TRIM", 5)

    async def work() -> None:
        async with opened(tmp_path, most=1 << 20) as books:
            for number in range(400):
                books.add(PLACE, item(number, life_ns=HOUR_NS + number), bytes(20_000))
                if number % 10 == 9:
                    await books.flush()
            assert await books.answer(item(399)) is not None
            assert await books.answer(item(0)) is None
        assert (tmp_path / disk.FILE).stat().st_size < 4 << 20

    run(work)


@pytest.mark.parametrize("damage", ["garbage", "cut", "folder", "unwritable"])
def test_a_damaged_file_is_put_aside_and_nothing_is_raised(tmp_path: Path, damage: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as books:
            books.add(PLACE, item(1), b"answer")
        file = tmp_path / disk.FILE
        folder = tmp_path
        if damage == "garbage":
            file.write_bytes(b"\xff" * 50_000)
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif damage == "folder":
            file.unlink()
            file.mkdir()
        else:
            (tmp_path / "file").write_text("")
            folder = tmp_path / "file" / "below"  # no folder can be made there
        errors: list[str] = []
        async with opened(folder, errors) as books:
            await books.load(PLACE)
            await books.news()
            books.add(PLACE, item(2), b"answer 2")
            await books.flush()
            found = await books.answer(item(2))
        assert errors
        if damage in ("garbage", "cut"):
            assert found == b"answer 2"

    run(work)
