"""What is learned of a target, with the clock moved by hand."""

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.routing import T0, S, ask, failed, served, target
from turnout.route.latency import LATE, Latency
from turnout.route.outlook import scored
from turnout.route.sketch import Sketch
from turnout.route.stats import Stats

times = st.lists(st.tuples(st.floats(0.001, 30.0), st.floats(0.0, 2.0), st.integers(0, 100_000)), min_size=1, max_size=60)


def fed(seen: list[tuple[float, float, int]]) -> tuple[Latency, int]:
    latency, now = Latency(), T0
    for seconds, gap, size in seen:
        now += int(gap * S)
        latency.saw(seconds, size, now)
    return latency, now


@given(times)
def test_the_estimate_lies_among_what_was_seen(seen: list[tuple[float, float, int]]) -> None:
    latency, now = fed([(seconds, gap, 1000) for seconds, gap, _ in seen])
    level, w = latency.view(now)
    assert 0 < w <= len(seen)
    assert min(s for s, _, _ in seen) * 0.999 <= level <= max(s for s, _, _ in seen) * 1.001


@example([(3.0, 0.0, 0), (3.0, 0.0, 1), (1.0, 0.0, 0), (1.0, 0.0, 0), (1.0, 0.0, 5)], 0)
@given(times, st.integers(0, 1_000_000))
def test_an_estimate_for_any_prompt_is_a_positive_time(seen: list[tuple[float, float, int]], size: int) -> None:
    latency, now = fed(seen)
    stats = Stats()
    stats.stream = latency
    t = target("a", stats=stats)
    scores, seconds = scored([t], ask(b"x" * (size % 200_000)), now)
    assert 0 < seconds[0] <= scores[0]
    assert latency.slope() >= 0


@given(times, st.floats(0.0, 1000.0))
def test_time_alone_takes_away_certainty_not_the_estimate(seen: list[tuple[float, float, int]], later: float) -> None:
    latency, now = fed([(1.0, gap, size) for _, gap, size in seen])
    before, w = latency.view(now)
    after, less = latency.view(now + int(later * S) + 10 * S)
    assert after == pytest.approx(before)
    assert less <= w / 2 * 1.001


@given(times, times)
def test_merging_two_gives_what_one_would_have_seen_in_any_order(a: list[tuple[float, float, int]], b: list[tuple[float, float, int]]) -> None:
    sums = [(1.0, s, float(p), float(p * p), p * s) for s, _, p in a + b]
    one, other = Latency(), Latency()
    for n, x, p, pp, px in sums:
        one.merge(n, x, p, pp, px, T0)
    for n, x, p, pp, px in reversed(sums):
        other.merge(n, x, p, pp, px, T0)
    assert (one.w, one.wx, one.wp) == pytest.approx((other.w, other.wx, other.wp))
    assert one.wx == pytest.approx(sum(x for _, x, *_ in sums))


def test_half_of_the_past_is_forgotten_in_a_half_life() -> None:
    latency = Latency(10.0)
    for _ in range(100):
        latency.merge(1.0, 1.0, 0.0, 0.0, 0.0, T0)
    latency.merge(50.0, 100.0, 0.0, 0.0, 0.0, T0 + 10 * S)
    assert latency.wx / latency.w == pytest.approx(1.5)


def test_long_prompts_do_not_make_a_target_look_slow() -> None:
    rng, latency = Random(1), Latency()
    for i in range(200):
        size = rng.choice((1_000, 100_000))
        latency.saw(0.2 + size * 1e-5, size, T0 + i * S // 50)
    now = T0 + 4 * S
    stats = Stats()
    stats.stream = latency
    for size, seconds in ((1_000, 0.21), (100_000, 1.2)):
        assert scored([target("a", stats=stats)], ask(b"x" * size), now)[1][0] == pytest.approx(seconds, rel=0.1)


def test_attempts_that_wait_too_long_count_with_their_age() -> None:
    latency = Latency()
    for i in range(100):
        latency.saw(0.2, 1000, T0 + i * S // 50)
    now = T0 + 2 * S
    for i in range(30):
        latency.begin(i, now + i * S // 50)
    assert latency.view(now + S // 10)[0] == pytest.approx(0.2, rel=0.01)
    level = latency.view(now + S)[0]
    assert level > 0.35, "a second without a token, and it is seen"
    assert latency.late(now + S)[0] >= 20
    for i in range(30):
        latency.end(i, now + i * S // 50)
    assert latency.waiting == 0
    assert latency.view(now + S + S // 100)[0] == pytest.approx(0.2, rel=0.01)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 3 * S)), max_size=60))
def test_what_waits_is_counted_once_however_it_ends(steps: list[tuple[bool, int, int]]) -> None:
    latency, now = Latency(), T0
    latency.saw(0.2, 1000, now)
    live: dict[int, int] = {}
    for begins, key, pause in steps:
        now += pause
        if begins and key not in live:
            live[key] = now
            latency.begin(key, now)
        elif not begins and key in live:
            latency.end(key, live.pop(key))
        latency.view(now)
        assert latency.waiting == len(live)
        n, age = latency.late(now)
        late = [since for since in live.values() if (now - since) / 1e9 >= age and n]
        assert n == 0 or late, "the oldest is at least as old as the mean"
    assert LATE >= 1


def test_a_target_that_has_healed_is_known_after_three_answers() -> None:
    latency = Latency()
    for i in range(100):
        latency.saw(2.0, 1000, T0 + i * S // 50)
    for i in range(3):
        latency.saw(0.2, 1000, T0 + 4 * S + i * 2 * S)
    assert latency.view(T0 + 8 * S)[0] < 0.9
    latency.saw(0.2, 1000, T0 + 10 * S)
    assert latency.view(T0 + 10 * S)[0] < 0.6


def test_now_and_then_a_slow_answer_is_no_change() -> None:
    latency = Latency()
    for i in range(200):
        latency.saw(2.0 if i % 30 == 0 else 0.2, 1000, T0 + i * S // 50)
    assert latency.view(T0 + 4 * S)[0] < 0.32


def test_of_a_target_whose_answers_differ_a_lot_the_usual_counts_more() -> None:
    """Four slow ones in a hundred are its way, not a change: what one more of them moves is less than where all are alike."""
    moved = []
    for every in (25, 1000):
        latency = Latency()
        for i in range(1, 201):
            latency.saw(2.0 if i % every == 0 else 0.2, 1000, T0 + i * S // 20)
        now = T0 + 10 * S
        before = latency.view(now)[0]
        latency.saw(2.0, 1000, now)
        moved.append(latency.view(now)[0] - before)
    assert moved[0] < 0.8 * moved[1]


def test_a_target_that_fails_fast_never_looks_fast() -> None:
    stats = Stats()
    for i in range(20):
        served(stats, 0.3, T0 + i * S // 20)
    for i in range(200):
        failed(stats, T0 + S + i * S // 50)
    now = T0 + 5 * S
    assert stats.stream.view(now)[0] == pytest.approx(0.3, rel=0.05)
    assert stats.success(now) < 0.1
    assert stats.in_flight == 0


def test_five_failures_in_a_row_outweigh_a_good_past() -> None:
    stats = Stats()
    for i in range(300):
        served(stats, 0.2, T0 + i * S // 50)
    now = T0 + 6 * S
    for _ in range(4):
        failed(stats, now)
    assert stats.success(now) > 0.95, "bad luck"
    failed(stats, now)
    assert stats.success(now) < 0.6
    assert stats.success(now + 20 * S) > 0.8, "and it may be tried again"


@given(st.lists(st.booleans(), max_size=100))
def test_success_is_a_share(ends: list[bool]) -> None:
    stats, now = Stats(), T0
    for good in ends:
        now += S // 10
        stats.verdict(good, now)
    assert 0 < stats.success(now) <= 1
    assert all(ends) == (stats.success(now) == 1)


def test_the_last_minute_is_counted_by_the_minute() -> None:
    stats = Stats()
    for i in range(120):
        stats.begin(i, True, T0 + i * S)
        stats.tokens(100, 10, 5, 0, T0 + i * S)
    requests, tokens = stats.used(T0 + 119 * S)
    assert 55 <= requests <= 60
    assert tokens == 15 * requests
    assert stats.used(T0 + 300 * S) == (0, 0)


def test_gaps_are_between_tokens_not_answers() -> None:
    stats = Stats()
    stats.tokens(400, 100, 101, 2 * S, T0)
    assert stats.gap_s == pytest.approx(0.02)
    assert stats.completion == 101


@given(st.lists(st.floats(0.002, 1000.0), min_size=1, max_size=200), st.sampled_from((0.5, 0.95, 0.99)))
def test_a_percentile_is_within_eight_percent(seen: list[float], q: float) -> None:
    sketch = Sketch()
    for seconds in seen:
        sketch.add(seconds, T0)
    exact = sorted(seen)[max(0, -(-len(seen) * q // 1).__int__() - 1)]
    assert sketch.quantile(q) == pytest.approx(exact, rel=0.09)
    assert Sketch().quantile(q) == 0.0
