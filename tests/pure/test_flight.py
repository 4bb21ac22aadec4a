"""A shared call's log: everybody reads the same bytes from the start at their own pace, within a bound."""

import asyncio
import random

import pytest

from turnout.cache.flight import AHEAD, MOST_LOG, Flight, Flights, Reader


async def drain(flight: Flight, reader: Reader, chance: random.Random, out: list[bytes]) -> None:
    while True:
        if data := flight.take(reader):
            out.append(data)
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        elif flight.over or reader.slow:
            return
        else:
            await flight.wait(reader)


@pytest.mark.parametrize("seed", range(20))
def test_all_read_the_same_whenever_they_join(seed: int) -> None:
    chance = random.Random(seed)

    async def run() -> None:
        flights = Flights()
        flight = flights.begin("k", True)
        pieces = [chance.randbytes(chance.randrange(1, 3000)) for _ in range(60)]
        outs: list[list[bytes]] = []
        tasks = []

        def join() -> None:
            outs.append([])
            tasks.append(asyncio.create_task(drain(flight, flight.join(), random.Random(seed + len(outs)), outs[-1])))

        join()
        for piece in pieces:
            if chance.random() < 0.2:
                join()
            if chance.random() < 0.5:
                await flight.send(piece, True)
            else:
                assert flight.push(piece)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await flight.send(b"for the leader alone", False)
        join()
        flight.end(None)
        await asyncio.gather(*tasks)
        assert {b"".join(out) for out in outs} == {b"".join(pieces)}
        assert len(flights) == 0 and flights.held == 0

    asyncio.run(run())


def test_the_writer_waits_for_the_fastest_reader() -> None:
    async def run() -> None:
        flight = Flights().begin("k", True)
        reader, other = flight.join(), flight.join()
        written = 0

        async def write() -> None:
            nonlocal written
            while written < 4 * AHEAD:
                await flight.send(bytes(1000), True)
                written += 1000

        task = asyncio.create_task(write())
        for _ in range(2000):
            await asyncio.sleep(0)
        assert AHEAD - 1000 <= written <= AHEAD + 2000 and not flight.push(b"x")
        while not task.done():
            flight.take(reader)
            await asyncio.sleep(0)
        assert written == 4 * AHEAD - 4 * AHEAD % 1000 + 1000 and not other.slow
        task = asyncio.create_task(write())  # and who is left alone with the slow one holds it for him
        await task

    asyncio.run(run())


def test_a_reader_that_lags_too_far_is_let_go_and_nobody_joins_any_more() -> None:
    async def run() -> None:
        flights = Flights()
        flight = flights.begin("k", True)
        quick, slow = flight.join(), flight.join()
        flight.take(slow)
        while not slow.slow:
            await flight.send(bytes(10_000), True)
            while flight.take(quick):
                pass
        assert flights.find("k") is None and flight.log is None
        assert flight.take(slow) == b"" and not quick.slow
        assert flights.held <= MOST_LOG
        flight.end(None)
        assert flights.held == 0

    asyncio.run(run())


def test_the_last_to_leave_ends_the_call() -> None:
    async def run() -> None:
        flights = Flights()
        flight = flights.begin("k", True)
        flight.task = asyncio.create_task(asyncio.sleep(60))
        one, two = flight.join(), flight.join()
        flight.leave(one)
        await asyncio.sleep(0)
        assert not flight.task.done() and flights.find("k") is flight
        flight.leave(two)
        assert flights.find("k") is None
        with pytest.raises(asyncio.CancelledError):
            await flight.task

    asyncio.run(run())


def test_a_key_has_one_open_flight() -> None:
    flights = Flights()
    first = flights.begin("k", True)
    second = flights.begin("k", True)
    assert flights.find("k") is first and not second.open
    second.end(None)
    assert flights.find("k") is first
    first.end(None)
    assert flights.find("k") is None
