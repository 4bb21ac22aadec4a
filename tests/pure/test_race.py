"""Attempts that race before the commit."""

import asyncio

import pytest

from turnout.errors import Fault
from turnout.hedging import race


class Runner:
    """An attempt that commits, or fails, after so many turns of the loop."""

    def __init__(self, turns: int, fault: BaseException | None = None) -> None:
        self.turns, self.fault = turns, fault
        self.ran = self.cancelled = False

    async def run(self) -> "Runner":
        self.ran = True
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fault is not None:
            raise self.fault
        return self


def won(first: Runner, second: Runner | None, delay_s: float = 0.0) -> Runner:
    return asyncio.run(race(first.run(), delay_s, lambda: second.run() if second is not None else None))


def test_the_first_to_commit_wins_and_the_other_is_cancelled() -> None:
    slow, fast = Runner(100_000), Runner(3)
    assert won(slow, fast) is fast
    assert slow.cancelled
    assert not fast.cancelled


def test_the_second_is_not_asked_before_its_time() -> None:
    first, second = Runner(20), Runner(1)
    assert won(first, second, 60.0) is first
    assert not second.ran


def test_without_a_second_the_first_goes_on_alone() -> None:
    first = Runner(200)
    assert won(first, None) is first


def test_a_second_that_is_slower_is_cancelled() -> None:
    first, second = Runner(50), Runner(100_000)
    assert won(first, second) is first
    assert second.cancelled


@pytest.mark.parametrize("first_fails", [True, False])
def test_a_failure_leaves_the_race_to_the_other(first_fails: bool) -> None:
    bad, good = Runner(10, Fault("reset", "x")), Runner(50)
    assert won(*(bad, good) if first_fails else (good, bad)) is good
    assert not good.cancelled


def test_when_both_fail_a_fault_is_told() -> None:
    with pytest.raises(Fault) as caught:
        won(Runner(10, Fault("reset", "x")), Runner(20, Fault("ttft_timeout", "y")))
    assert caught.value.kind in ("reset", "ttft_timeout")


def test_a_first_that_fails_in_time_fails_alone() -> None:
    second = Runner(1)
    with pytest.raises(Fault, match="x"):
        won(Runner(3, Fault("reset", "x")), second, 60.0)
    assert not second.ran


def test_a_mistake_of_ours_is_not_taken_for_a_fault() -> None:
    other = Runner(100_000)
    with pytest.raises(ZeroDivisionError):
        won(Runner(10, ZeroDivisionError()), other)
    assert other.cancelled


def test_a_client_that_leaves_cancels_both() -> None:
    a, b = Runner(10_000_000), Runner(10_000_000)

    async def leave() -> None:
        task = asyncio.create_task(race(a.run(), 0.0, b.run))
        while not b.ran:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert a.cancelled
    assert b.cancelled
