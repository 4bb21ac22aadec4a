"""What one worker pours for others: all of it for each, from the start, and nothing before somebody wants it."""

import asyncio
from typing import Any

import pytest

from turnout.cache import pouring
from turnout.cache.flight import Flights
from turnout.cache.pouring import Pouring, Tail
from turnout.errors import Fault
from turnout.state import pours
from turnout.state.pours import GONE, MOST_LOG, REFUSED, UNWANTED, Pours

KEY, KIND = b"lease", b"stream"


class Board:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, int, Any]] = []
        self.pours = Pours(lambda peer, number, value: self.heard.append((peer, number, list(value) if isinstance(value, list) else value)))

    def said(self) -> list[tuple[Any, int, Any]]:
        heard, self.heard = self.heard, []
        return heard


@pytest.fixture
def board() -> Board:
    return Board()


def test_the_holder_hears_that_it_is_wanted_and_who_comes_late_reads_from_the_start(board: Board) -> None:
    p = board.pours
    p.pour("h", KEY, KIND, 1, [b"nobody asked"], False)
    assert board.said() == []
    p.follow("a", 7, KEY, KIND, "h")
    assert board.said() == [("h", 0, [KEY, KIND, 1])]
    p.pour("h", KEY, KIND, 1, [b"one"], False)
    p.follow("b", 3, KEY, KIND, "h")
    p.pour("h", KEY, KIND, 1, [b"two"], False)
    p.pour("x", KEY, KIND, 1, [b"not the holder"], False)
    assert board.said() == [("a", 7, [b"one"]), ("b", 3, [b"one"]), ("a", 7, [b"two"]), ("b", 3, [b"two"])]
    assert p.bytes == 6
    p.pour("h", KEY, KIND, 1, [["end"]], True)
    assert board.said() == [("a", 7, [["end"]]), ("b", 3, [["end"]])]
    assert p.bytes == 0
    p.pour("h", KEY, KIND, 1, [b"after the end"], False)
    assert board.said() == []


def test_what_was_poured_for_those_who_left_is_not_taken_for_a_beginning(board: Board) -> None:
    p = board.pours
    p.follow("a", 7, KEY, KIND, "h")
    p.unfollow("a", 7, KEY, KIND)
    assert board.said() == [("h", 0, [KEY, KIND, 1]), ("h", 0, [KEY, KIND, UNWANTED])]
    p.follow("b", 8, KEY, KIND, "h")
    assert board.said() == [("h", 0, [KEY, KIND, 2])]
    p.pour("h", KEY, KIND, 1, [b"the middle"], False)  # it was on its way
    assert board.said() == []
    p.pour("h", KEY, KIND, 2, [b"the start"], False)
    assert board.said() == [("b", 8, [b"the start"])]


def test_there_is_nothing_to_follow_without_a_holder_or_of_ones_own(board: Board) -> None:
    board.pours.follow("a", 1, KEY, KIND, None)
    board.pours.follow("h", 2, KEY, KIND, "h")
    assert board.said() == [("a", 1, REFUSED), ("h", 2, REFUSED)]


def test_all_hear_of_a_death_behind_the_same_beginning(board: Board) -> None:
    p = board.pours
    for peer in ("a", "b"):
        p.follow(peer, 1, KEY, KIND, "h")
    p.follow("a", 2, b"other", KIND, "i")
    p.pour("h", KEY, KIND, 1, [b"one"], False)
    board.said()
    p.forget("b")
    p.pour("h", KEY, KIND, 1, [b"two"], False)
    p.forget("h")
    assert board.said() == [("a", 1, [b"two"]), ("a", 1, GONE)]
    p.forget("a")
    assert board.said() == [("i", 0, [b"other", KIND, UNWANTED])]
    assert p.bytes == 0 and not p._pours


def test_a_holder_that_lost_its_lease_is_as_good_as_dead(board: Board) -> None:
    p = board.pours
    p.follow("a", 1, KEY, KIND, "h")
    p.pour("h", KEY, KIND, 1, [b"one"], False)
    board.said()
    p.follow("b", 2, KEY, KIND, "i")
    assert board.said() == [("a", 1, GONE), ("i", 0, [KEY, KIND, 2])]
    p.pour("h", KEY, KIND, 1, [b"back again"], False)
    assert board.said() == [] and p.bytes == 0


def test_what_is_kept_for_late_ones_is_bounded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    p = board.pours
    p.follow("a", 1, KEY, KIND, "h")
    p.pour("h", KEY, KIND, 1, [b"x" * MOST_LOG], False)
    assert p.bytes == MOST_LOG
    p.pour("h", KEY, KIND, 1, [b"y"], False)
    assert p.bytes == 0
    board.said()
    p.follow("b", 2, KEY, KIND, "h")
    p.pour("h", KEY, KIND, 1, [b"z"], False)
    assert board.said() == [("b", 2, REFUSED), ("a", 1, [b"z"])]  # who was there before goes on
    monkeypatch.setattr(pours, "MOST_ALL", 10)
    p.follow("a", 3, b"second", KIND, "h")
    p.pour("h", b"second", KIND, 2, [b"x" * 10], False)
    p.follow("a", 4, b"third", KIND, "h")
    assert board.said()[-1] == ("a", 4, REFUSED)


# ---- both ends


class Wires:
    """A board between one who pours and those who follow, each a peer of its own."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.wanted: Any = None
        self.feeds: dict[int, asyncio.Queue[Any]] = {}
        self.pours = Pours(self._say)
        self.poured = 0
        self.numbers = iter(range(1, 100))

    def _say(self, peer: object, number: int, value: Any) -> None:
        if number:
            self.feeds[number].put_nowait(value)
        elif self.wanted is not None:
            self.wanted(value[2])

    def offer(self, key: bytes, kind: bytes, wanted: Any) -> None:
        self.wanted = wanted

    def withdraw(self, key: bytes, kind: bytes) -> None:
        self.wanted = None

    def pour(self, key: bytes, kind: bytes, number: int, pieces: list[Any], over: bool) -> None:
        self.poured += 1
        builtin = [pouring.msgspec.to_builtins(p) if isinstance(p, pouring.End) else p for p in pieces]
        self.pours.pour(self.holder, key, kind, number, builtin, over)

    def follow(self, key: bytes, kind: bytes) -> Any:
        number = next(self.numbers)
        queue = self.feeds[number] = asyncio.Queue()
        wires = self

        class Feed:
            async def next(self) -> Any:
                return await queue.get()

            def close(self) -> None:
                wires.pours.unfollow("follower", number, key, kind)

        self.pours.follow("follower", number, key, kind, self.holder)
        return Feed()


class Leader:
    attempts: list[Any] = []
    finish = "stop"
    cost_nanos = 5


async def told(flight: Any) -> bytes:
    reader = flight.join()
    out = b""
    while piece := flight.take(reader):
        out += piece
    return out


def test_a_stream_is_the_same_on_the_other_side_and_nothing_moves_before_it_is_asked_for() -> None:
    async def run() -> None:
        wires = Wires("h")
        here, there = Flights().begin("k", True), Flights().begin("k", True)
        here.leader = Leader()
        own = here.join()
        poured = Pouring(wires, KEY, KIND, here)
        await here.start(200, [(b"a", b"b")])
        await here.send(b"one", True)
        await asyncio.sleep(0.01)
        assert wires.poured == 0
        tail = Tail(wires, KEY, KIND, there, lambda headers: [*headers, (b"own", b"1")])
        running = asyncio.create_task(tail.run())
        await here.send(b"two", True)
        while tail.had < 6:
            await asyncio.sleep(0)
        here.leave(own)  # its own reader leaves: it goes on for the other
        await here.send(b"three", True)
        here.end(None)
        await poured.close()
        await running
        assert await told(there) == b"onetwothree"
        assert there.headers == [(b"a", b"b"), (b"own", b"1")]
        assert tail.end is not None and (tail.end.finish, tail.end.cost_nanos, tail.end.fault) == ("stop", 5, "")

    asyncio.run(run())


def test_the_next_who_pours_is_read_from_where_the_last_one_stopped() -> None:
    async def run() -> None:
        there = Flights().begin("k", True)
        tail = Tail(Wires("nobody"), KEY, KIND, there, lambda headers: headers)
        for text in (b"one", b"onetwo", b"onetwothree"):
            wires = tail._live = Wires("h")
            here = Flights().begin("k", True)
            here.leader = Leader()
            Pouring(wires, KEY, KIND, here)
            here.join()
            await here.start(200, [])
            for i in range(len(text)):
                here.write(text[i : i + 1])
            running = asyncio.create_task(tail.run())
            while tail.had < len(text):
                await asyncio.sleep(0)
            wires.pours.forget("h")
            await running
            assert tail.end is None and not tail.refused
        assert await told(there) == b"onetwothree"

    asyncio.run(run())


def test_one_that_has_another_beginning_is_not_read_on() -> None:
    async def run() -> None:
        there = Flights().begin("k", True)
        tail = Tail(Wires("nobody"), KEY, KIND, there, lambda headers: headers)
        for text in (b"onetwo", b"onetwXthree"):
            wires = tail._live = Wires("h")
            here = Flights().begin("k", True)
            here.leader = Leader()
            Pouring(wires, KEY, KIND, here)
            here.join()
            await here.start(200, [])
            for i in range(0, len(text), 4):
                here.write(text[i : i + 4])
            running = asyncio.create_task(tail.run())
            if text == b"onetwo":
                while tail.had < len(text):
                    await asyncio.sleep(0)
                wires.pours.forget("h")
            await asyncio.wait_for(running, 20)
        assert tail.refused and tail.had == 6
        assert await told(there) == b"onetwo"

    asyncio.run(run())


def test_a_pour_that_fails_is_told_as_an_end_of_its_own() -> None:
    async def run() -> None:
        wires = Wires("h")
        here, there = Flights().begin("k", True), Flights().begin("k", True)
        here.leader = None  # whatever goes wrong
        Pouring(wires, KEY, KIND, here)
        await here.start(200, [])
        here.write(b"one")
        tail = Tail(wires, KEY, KIND, there, lambda headers: headers)
        running = asyncio.create_task(tail.run())
        while tail.had < 3:
            await asyncio.sleep(0)
        here.end(None)
        await running
        assert tail.end is None and not tail.refused

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(run())
    loop.close()


@pytest.mark.parametrize(("kind", "theirs"), [("client_gone", True), ("draining", True), ("interrupted", False)])
def test_an_end_that_was_the_other_workers_own_is_no_end(kind: str, theirs: bool) -> None:
    async def run() -> None:
        wires = Wires("h")
        here, there = Flights().begin("k", True), Flights().begin("k", True)
        here.leader = Leader()
        Pouring(wires, KEY, KIND, here)
        await here.start(200, [])
        here.write(b"one")
        tail = Tail(wires, KEY, KIND, there, lambda headers: headers)
        running = asyncio.create_task(tail.run())
        while tail.had < 3:
            await asyncio.sleep(0)
        here.end(Fault(kind, "why"))
        await running
        assert (tail.end is None) == theirs

    asyncio.run(run())
