"""Statistics in cells that all workers have: any order, any worker that dies, the same figures."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.routing import T0, S, failed, served
from turnout.native import Counters
from turnout.route.share import Cells, Share
from turnout.route.stats import Stats
from turnout.state.table import memory, row

TICK = S // 50


def cells(fd: int) -> Cells:
    found = row(Counters(fd), "stats r a m")
    assert found is not None
    return found


def workers(n: int) -> tuple[list[Stats], list[Share], Cells]:
    shared = cells(memory())
    stats = [Stats() for _ in range(n)]
    return stats, [Share(s, shared, T0) for s in stats], shared


def test_what_one_worker_sees_all_know_a_tick_later() -> None:
    stats, shares, _ = workers(4)
    for i in range(40):
        served(stats[0], 0.3, T0 + i * S // 100)
    now = T0 + S
    for share in shares:
        share.sync(now)
    for s in stats:
        assert s.stream.view(now)[0] == pytest.approx(0.3, rel=0.01)
    for i in range(20):
        failed(stats[3], now + i)
    for share in reversed(shares):
        share.sync(now + TICK)
    for share in shares:
        share.sync(now + 2 * TICK)
    assert max(s.success(now) for s in stats) < 0.8
    assert max(s.success(now) for s in stats) == pytest.approx(min(s.success(now) for s in stats), rel=0.05)


def test_what_a_worker_said_itself_does_not_come_back_to_it() -> None:
    stats, shares, _ = workers(2)
    for i in range(30):
        served(stats[0], 0.3, T0 + i)
    w = stats[0].stream.w
    for k in range(20):
        shares[k % 2].sync(T0 + S // 100 + k)
    assert stats[0].stream.w == pytest.approx(w, rel=0.01)
    assert stats[1].stream.w == pytest.approx(w, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.5, 0.9)), min_size=1, max_size=60), st.integers(0, 1000))
def test_any_order_of_ticks_gives_all_workers_the_same_sums(seen: list[tuple[int, float]], seed: int) -> None:
    stats, shares, _ = workers(3)
    rng = Random(seed)
    for i, seconds in seen:
        served(stats[i], seconds, T0)
        for share in rng.sample(shares, rng.randint(0, 3)):
            share.sync(T0)
    for share in [*shares, *shares]:
        share.sync(T0)
    for s in stats:
        assert s.stream.w == pytest.approx(len(seen))
        assert s.stream.wx == pytest.approx(sum(seconds for _, seconds in seen), rel=1e-3, abs=1e-4)


def test_a_worker_that_starts_again_does_not_begin_from_nothing() -> None:
    stats, shares, shared = workers(1)
    for i in range(100):
        served(stats[0], 0.25, T0 + i * S // 10)
        shares[0].sync(T0 + i * S // 10)
    fresh = Stats()
    Share(fresh, shared, T0 + 12 * S)
    level, w = fresh.stream.view(T0 + 12 * S)
    assert level == pytest.approx(0.25, rel=0.01)
    assert 5 < w <= 20
    late = Stats()
    Share(late, shared, T0 + 200 * S)
    assert late.stream.w == 0, "what is older than a minute is not brought up again"


def test_a_target_that_heals_is_known_to_all_by_one_probe_of_each() -> None:
    stats, shares, _ = workers(3)
    now = T0
    for i in range(60):
        now = T0 + i * S // 20
        for s, share in zip(stats, shares, strict=True):
            served(s, 2.0, now)
            share.sync(now)
    for share in shares:
        share.sync(now)  # all have heard of all
    for s, share in zip(stats, shares, strict=True):
        now += S
        served(s, 0.2, now)
        share.sync(now)
    for share in shares:
        share.sync(now)
    for s in stats:
        assert s.stream.view(now)[0] < 1.2
        assert s.begun_ns >= now - S
    assert stats[2].stream.view(now)[0] < 0.6


def test_cells_that_begin_anew_do_no_harm() -> None:
    """The state process was started again: all its cells are zero."""
    stats = Stats()
    first, second = cells(memory()), cells(memory())
    share = Share(stats, first, T0)
    for i in range(50):
        served(stats, 0.3, T0 + i)
    share.sync(T0 + S)
    share._cells = second
    share.sync(T0 + 2 * S)
    assert stats.stream.view(T0 + 2 * S)[0] == pytest.approx(0.3, rel=0.01)
    assert stats.success(T0 + 2 * S) == 1
