"""Host names to addresses: whatever the system's resolver does, nobody waits for longer than their own deadline."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from turnout.errors import Fault
from turnout.upstream import resolve
from turnout.upstream.resolve import FRESH_NS, STALE_NS, Resolver

ROW = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))


class System:
    """The system's resolver: names in `dead` take until `free` is set, others are answered by `answer`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.dead: set[str] = set()
        self.free = threading.Event()
        self.answer: Callable[[], list[Any]] = lambda: [ROW]

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host in self.dead:
            self.free.wait(10)
            return []
        return self.answer()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = System()
    monkeypatch.setattr(resolve.socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.free.set()


def run(test: Callable[[Resolver, list[int]], Any]) -> None:
    async def main() -> None:
        now = [0]
        await test(Resolver(asyncio.get_running_loop(), lambda: now[0]), now)
        await asyncio.sleep(0.01)  # threads that are done say so

    asyncio.run(main())


def raise_(exc: Exception) -> Any:
    raise exc


def test_one_look_up_is_in_flight_for_a_name(system: System) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        found = await asyncio.gather(*(resolver.find("a.test", 80, 1) for _ in range(20)))
        assert found == [[("10.0.0.1", 80)]] * 20
        assert system.asked == ["a.test"]

    run(test)


def test_four_dead_names_do_not_delay_a_fifth(system: System) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        system.dead = {f"dead{n}.test" for n in range(4)}
        waits = [asyncio.ensure_future(resolver.find(name, 80, 0.3)) for name in sorted(system.dead)]
        async with asyncio.timeout(0.2):
            assert await resolver.find("good.test", 80, 1) == [("10.0.0.1", 80)]
        for wait in waits:
            with pytest.raises(Fault) as caught:
                await wait
            assert caught.value.kind == "connect_timeout"
        system.free.set()

    run(test)


def test_an_old_answer_is_used_for_five_minutes_while_a_new_one_is_looked_for(system: System) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        await resolver.find("a.test", 80, 1)
        system.answer = lambda: raise_(socket.gaierror("down"))
        now[0] = FRESH_NS + 1
        assert resolver.known("a.test", 80) == [("10.0.0.1", 80)]
        assert resolver.known("a.test", 80) == [("10.0.0.1", 80)]
        await asyncio.sleep(0.05)
        assert system.asked == ["a.test"] * 2
        now[0] = STALE_NS + 1
        with pytest.raises(Fault) as caught:
            await resolver.find("a.test", 80, 1)
        assert caught.value.kind == "connect"

    run(test)


@pytest.mark.parametrize("exc", [socket.gaierror("no"), UnicodeError("label too long"), OSError("no")])
def test_a_name_that_cannot_be_looked_up_is_an_error_at_once_and_each_time(system: System, exc: Exception) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        system.answer = lambda: raise_(exc)
        for _ in range(2):
            with pytest.raises(Fault) as caught:
                await resolver.find("a..test", 80, 5)
            assert caught.value.kind == "connect"
        system.answer = lambda: [ROW]
        assert await resolver.find("a..test", 80, 1)

    run(test)


def test_no_thread_for_a_look_up_is_an_error_at_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(resolve.threading.Thread, "start", lambda self: raise_(RuntimeError("can't start new thread")))
            with pytest.raises(Fault) as caught:
                await resolver.find("a.test", 80, 5)
            assert caught.value.kind == "connect"
        assert await resolver.find("a.test", 80, 1)

    run(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_addresses_are_not_looked_up(system: System, host: str) -> None:
    async def test(resolver: Resolver, now: list[int]) -> None:
        assert resolver.known(host, 80) == [(host, 80)]
        assert not system.asked

    run(test)
