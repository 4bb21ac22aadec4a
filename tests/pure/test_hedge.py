"""When a stream is put to a second target, and how often; what is learned of the one that was slower."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.routing import T0, S, ask, served, target
from turnout.errors import Fault
from turnout.exchange import OUTRUN, Attempt, Exchange
from turnout.native import Counters
from turnout.route.attempts import Attempts, Try
from turnout.route.health import FAILURES_TO_OPEN, OPEN_NS
from turnout.route.hedge import KNOWN, MOST, Hedge, HedgeSpec, Purse
from turnout.route.retry import RetryBudget
from turnout.route.stats import Stats
from turnout.state.table import memory, row


def drain(purse: Purse) -> int:
    n = 0
    while purse.take():
        n += 1
    return n


# ---- the budget


def test_a_route_begins_with_no_hedge_and_earns_one_by_twenty_requests() -> None:
    purse = Purse(0.05)
    assert (purse.take(), purse.refused) == (False, 1)
    for _ in range(19):
        purse.earned(T0)
    assert (purse.left() < 1, purse.left(1)) == (True, 1.0)
    assert not purse.take()
    purse.earned(T0)
    assert drain(purse) == 1


def test_no_more_than_ten_are_kept() -> None:
    purse = Purse(0.05)
    for n in range(10_000):
        purse.earned(T0 + n * S // 100)
    assert purse.left() == MOST
    assert drain(purse) == MOST


steps = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2 * S)), max_size=300)


@given(steps, st.sampled_from([0.02, 0.05, 0.5]), st.booleans())
def test_all_workers_together_never_hedge_more_than_their_share(steps: list[tuple[int, bool, int]], budget: float, share: bool) -> None:
    fd = memory()
    workers = [Purse(budget, row(Counters(fd), "hedges r") if share else None) for _ in range(4)]
    requests, hedges, now = [0] * 4, [0] * 4, T0
    for worker, wish, gap in steps:
        now += gap
        workers[worker].earned(now)
        requests[worker] += 1
        if wish:
            hedges[worker] += workers[worker].take()
        if share:
            assert sum(hedges) <= budget * sum(requests) + 1e-9
        assert share or all(h <= budget * r + 1e-9 for h, r in zip(hedges, requests, strict=True))


# ---- when


def rich() -> Purse:
    """A full one."""
    purse = Purse(0.5)
    for _ in range(2 * MOST):
        purse.earned(T0)
    return purse


def known(seconds: list[float], size: Callable[[int], int] = lambda i: 1000) -> Stats:
    stats = Stats()
    for i, s in enumerate(seconds):
        served(stats, s, T0 + i * S // 10, size(i))
    return stats


def test_a_target_that_little_is_known_of_gets_the_default() -> None:
    hedge = Hedge(HedgeSpec(unknown_ms=1_234), rich())
    assert hedge.delay_ns(Stats(), 1000, T0) == 1_234_000_000
    assert hedge.delay_ns(known([0.1] * (int(KNOWN) - 1)), 1000, T0 + 60 * S) == 1_234_000_000


def test_one_that_is_known_gets_the_time_by_which_most_of_its_answers_began() -> None:
    hedge = Hedge(HedgeSpec(), rich())
    stats = known([0.1] * 95 + [2.0] * 3)
    assert hedge.delay_ns(stats, 1000, T0 + 20 * S) / 1e9 == pytest.approx(0.1, rel=0.08)
    assert hedge.delay_ns(known([0.001] * 100), 1000, T0 + 20 * S) == 50_000_000, "but not less than the floor"


def test_the_fewer_are_left_the_longer_is_waited() -> None:
    stats = known([0.1] * 100)
    full, none = (Hedge(HedgeSpec(), purse).delay_ns(stats, 1000, T0 + 20 * S) for purse in (rich(), Purse(0.05)))
    assert none == pytest.approx(2 * full, rel=0.001)


def test_a_long_prompt_is_given_the_time_that_long_prompts_take() -> None:
    hedge = Hedge(HedgeSpec(), rich())
    stats = known([0.2 + (i % 5) * 0.1 for i in range(100)], lambda i: 1000 + (i % 5) * 10_000)
    usual = hedge.delay_ns(stats, 1000, T0 + 20 * S)
    assert hedge.delay_ns(stats, 61_000, T0 + 20 * S) - usual == pytest.approx(0.4 * S, rel=0.1)


def test_the_percentile_is_not_reckoned_for_every_request_and_follows_all_the_same() -> None:
    hedge = Hedge(HedgeSpec(), rich())
    stats, now = known([0.1] * 100), T0 + 20 * S
    before = hedge.delay_ns(stats, 1000, now)
    for _ in range(900):
        stats.sketch.add(1.0, now)
    assert hedge.delay_ns(stats, 1000, now + 1) == before
    assert hedge.delay_ns(stats, 1000, now + S // 5) > 5 * before


# ---- whom


def course(*targets: Any) -> Attempts:
    return Attempts(targets, 2, RetryBudget(0.1), T0 + 600 * S, Random(1))


def test_it_goes_to_the_next_that_nothing_is_wrong_with() -> None:
    a, b, c = target("a"), target("b"), target("c")
    for _ in range(FAILURES_TO_OPEN):
        b.health.failed(Fault("server_error", ""), T0)
    attempts = course(a, b, c)
    assert attempts.next(T0) == Try(0, "first")
    assert attempts.beside(T0 + OPEN_NS, lambda: True) == Try(2, "hedge"), "b waits for a probe, which a hedge is not"
    assert attempts.beside(T0, lambda: True) is None, "nobody is left"


def test_without_a_token_or_time_there_is_none_and_without_a_target_no_token_is_taken() -> None:
    attempts = course(target("a"), target("b"))
    attempts.next(T0)
    assert attempts.beside(T0, lambda: False) is None
    assert attempts.beside(T0 + 600 * S, lambda: pytest.fail("too late")) is None
    alone = course(target("a"))
    alone.next(T0)
    assert alone.beside(T0, lambda: pytest.fail("nobody to ask")) is None


def test_a_hedge_is_one_of_the_targets_that_were_tried() -> None:
    attempts = course(target("a"), target("b"), target("c"))
    attempts.next(T0)
    assert attempts.beside(T0, lambda: True) == Try(1, "hedge")
    for i in (0, 1):
        attempts.failed(i, Fault("ttft_timeout", ""), T0)
    assert attempts.next(T0) == Try(2, "fallback")


def test_the_loser_is_still_there_if_the_winner_breaks() -> None:
    attempts = course(target("a"), target("b"), target("c"))
    attempts.next(T0)
    attempts.beside(T0, lambda: True)
    attempts.outrun(0)
    attempts.failed(1, Fault("interrupted", ""), T0)
    assert attempts.next(T0) == Try(0, "fallback")


# ---- what is learned of the loser


def outrun(stats: Stats, seconds: float, slow: bool, now: int) -> None:
    stats.begin(7, True, now - int(seconds * S))
    stats.outrun(7, now - int(seconds * S), 1000, slow, now)
    stats.done()


def test_the_time_that_a_loser_waited_counts_and_it_has_not_failed() -> None:
    usual, lost = known([0.2] * 30), known([0.2] * 30)
    now = T0 + 3 * S
    for _ in range(5):
        outrun(lost, 0.8, True, now)
    assert lost.stream.view(now)[0] > 1.8 * usual.stream.view(now)[0]
    assert lost.success(now) == 1.0
    assert lost.in_flight == lost.stream.waiting == 0
    assert lost.sketch.quantile(0.95) > 0.7


def test_a_hedge_that_hardly_had_time_says_nothing() -> None:
    stats = known([0.2] * 30)
    before = stats.stream.view(T0 + 3 * S)
    outrun(stats, 0.01, False, T0 + 3 * S)
    assert stats.stream.view(T0 + 3 * S) == before
    outrun(stats, 0.9, False, T0 + 3 * S)
    assert stats.stream.view(T0 + 3 * S) > before
    new = Stats()
    outrun(new, 0.01, False, T0)
    assert new.stream.w == 0.0, "one that nothing is known of does not look fast now"


# ---- how it is told


def told(*tries: tuple[str, str, str]) -> str:
    x: Exchange = ask()
    x.attempts = [Attempt(provider, "", "m", cause, T0, reason=reason) for provider, cause, reason in tries]
    return x.fallback


def test_a_hedge_that_won_is_a_switch_and_one_that_lost_is_none() -> None:
    assert told(("a", "first", OUTRUN), ("b", "hedge", "")) == "a>b;reason=outrun"
    assert told(("b", "hedge", OUTRUN), ("a", "first", "")) == "none"
    assert told(("b", "hedge", "500"), ("a", "first", "")) == "none"
    assert told(("a", "first", "500"), ("b", "hedge", "")) == "a>b;reason=500"
    assert told(("a", "first", "429"), ("c", "hedge", OUTRUN), ("b", "fallback", "")) == "a>b;reason=429"
    assert told(("b", "hedge", OUTRUN), ("a", "first", "reset"), ("b", "cut-over", "")) == "a>b;reason=reset"
