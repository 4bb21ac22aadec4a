"""The hook for hedging: attempts that race before the commit."""

import asyncio

import pytest

from turnout.asking import race
from turnout.errors import Fault


class Runner:
    """An attempt that commits, or fails, after so many turns of the loop."""

    def __init__(self, turns: int, fault: Fault | None = None) -> None:
        self.turns, self.fault = turns, fault
        self.cancelled = self.closed = False

    async def run(self) -> "Runner":
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fault is not None:
            raise self.fault
        return self

    def close(self) -> None:
        self.closed = True


def won(*runners: Runner) -> tuple[int, Runner]:
    return asyncio.run(_race(runners))


async def _race(runners: tuple[Runner, ...]) -> tuple[int, Runner]:
    return await race([r.run() for r in runners], Runner.close)


def test_the_first_to_commit_wins_and_the_other_is_cancelled() -> None:
    slow, fast = Runner(50), Runner(3)
    assert won(slow, fast) == (1, fast)
    assert slow.cancelled and not slow.closed and not fast.closed


def test_two_that_commit_at_once_are_one_winner_and_one_to_close() -> None:
    a, b = Runner(3), Runner(3)
    assert won(a, b) == (0, a)
    assert b.closed and not a.closed


def test_a_failure_leaves_the_race_to_the_others() -> None:
    bad, good = Runner(1, Fault("reset", "x")), Runner(9)
    assert won(bad, good) == (1, good)


def test_when_all_fail_the_last_fault_is_told() -> None:
    with pytest.raises(Fault) as caught:
        won(Runner(1, Fault("reset", "x")), Runner(5, Fault("ttft_timeout", "y")))
    assert caught.value.kind == "ttft_timeout"


def test_a_client_that_leaves_cancels_all() -> None:
    a, b = Runner(1000), Runner(1000)

    async def leave() -> None:
        task = asyncio.create_task(_race((a, b)))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert a.cancelled and b.cancelled
