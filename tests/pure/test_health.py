"""A target's breaker and cool-downs, with the time moved by hand."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.routing import target
from turnout.errors import Fault
from turnout.native import Counters
from turnout.route.attempts import Attempts, Try
from turnout.route.health import (
    COOL_MAX_NS,
    COOL_NS,
    FAILURES_TO_OPEN,
    JITTER,
    OPEN_MAX_NS,
    OPEN_NS,
    PROBE_LEASE_NS,
    RATE_NS,
    RETRY_AFTER_MAX_NS,
    RETURN_NS,
    Breaker,
)
from turnout.route.retry import RetryBudget
from turnout.state.table import memory, row

S = 1_000_000_000
T0 = 1_000 * S
DOWN = Fault("server_error", "down", upstream_status=500)


class Fixed(Random):
    """Draws that are always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def limited(after_s: float | None = None) -> Fault:
    return Fault("rate_limited", "too many", retry_after_s=after_s, upstream_status=429)


def opened(now: int = T0) -> Breaker:
    b = Breaker(Fixed(0.5))
    for _ in range(FAILURES_TO_OPEN):
        assert b.allows(now)
        b.taken(now)
        b.failed(DOWN, now)
    assert not b.allows(now)
    return b


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    b = Breaker(Random(1))
    for _ in range(FAILURES_TO_OPEN - 1):
        b.failed(DOWN, T0)
    assert b.allows(T0)
    assert b.state(T0) == "closed"
    b.failed(DOWN, T0)
    assert b.state(T0) == "open"
    assert b.opens == 1


def test_a_success_in_between_starts_the_count_anew() -> None:
    b = Breaker(Random(1))
    now = T0
    for _ in range(10):
        for _ in range(FAILURES_TO_OPEN - 1):
            b.failed(DOWN, now)
        b.succeeded(now)
        now += RATE_NS
    assert b.allows(now)
    assert b.opens == 0


def test_more_failures_than_answers_open_it_though_never_five_in_a_row() -> None:
    b = Breaker(Random(1))
    now = T0
    while b.state(now) != "open":
        assert now < T0 + 15 * S
        for _ in range(2):
            b.failed(DOWN, now)
        if not b.open_until_ns:
            b.succeeded(now)
        now += S
    assert b.opens == 1


@pytest.mark.parametrize(("fails", "of", "gap"), [(4, 10, S // 10), (1, 2, S // 10), (2, 3, 2 * S), (1, 20, S // 100)])
def test_fewer_failures_or_a_slower_pace_do_not(fails: int, of: int, gap: int) -> None:
    b = Breaker(Random(1))
    for n in range(2_000):
        if n % of < fails:
            b.failed(DOWN, T0 + n * gap)
        else:
            b.succeeded(T0 + n * gap)
    assert b.opens == 0


def test_one_that_soon_fails_as_often_again_stays_open_longer() -> None:
    b, now, spans = Breaker(Fixed(0.0)), T0, []
    for _ in range(4):
        while not b.open_until_ns:
            b.succeeded(now)
            now += S // 10
            b.failed(DOWN, now)
            b.failed(DOWN, now)
        spans.append(b.open_until_ns - now)
        now = b.open_until_ns
        b.taken(now)
        b.succeeded(now)
    assert [round(span / OPEN_NS) for span in spans] == [1, 2, 4, 8], spans


def test_one_that_returns_gets_its_share_back_by_and_by() -> None:
    b = opened()
    back = T0 + OPEN_NS
    b.taken(back)
    b.succeeded(back)
    assert b.state(back) == "returning"

    def share(begin: int, end: int) -> float:
        moments = range(begin, end, 1_234_567)
        return sum(b.allows(now) for now in moments) / len(moments)

    assert share(back, back + S) == pytest.approx(0.1, abs=0.05)
    assert share(back + 5 * S, back + 6 * S) == pytest.approx(0.55, abs=0.08)
    assert share(back + 9 * S, back + 10 * S) == pytest.approx(0.95, abs=0.05)
    assert share(back + RETURN_NS, back + 2 * RETURN_NS) == 1.0
    assert b.state(back + RETURN_NS) == "closed"
    moment = back + 3 * S
    assert len({b.allows(moment) for _ in range(10)}) == 1, "to ask twice gives one answer"


def test_the_only_target_gets_all_of_its_share_at_once() -> None:
    b = opened()
    b.taken(T0 + OPEN_NS)
    b.succeeded(T0 + OPEN_NS)
    for n in range(200):
        now = T0 + OPEN_NS + n * 1_234_567
        assert Attempts([target("a", health=b)], 2, RetryBudget(0.1), now + S, Random(1)).next(now) == Try(0, "first")


def test_an_overloaded_one_that_says_for_how_long_is_left_alone_for_that_long() -> None:
    b = Breaker(Random(1))
    b.failed(Fault("overloaded", "x", retry_after_s=3.0, upstream_status=503), T0)
    assert not b.allows(T0 + 3 * S - 1)
    assert b.allows(T0 + 3 * S)
    for _ in range(FAILURES_TO_OPEN - 1):
        b.failed(Fault("overloaded", "x", upstream_status=503), T0)
    assert b.state(T0) == "open", "and it has failed"


def test_half_open_lets_exactly_one_probe_through() -> None:
    b = opened()
    now = T0 + OPEN_NS
    assert b.state(now) == "half-open"
    assert b.allows(now)
    b.taken(now)
    assert not any(b.allows(now + ns) for ns in (0, 1, S, 10 * S, PROBE_LEASE_NS))


def test_a_probe_that_succeeds_closes_it() -> None:
    b = opened()
    b.taken(T0 + OPEN_NS)
    b.succeeded(T0 + OPEN_NS)
    assert not b.open_until_ns
    assert b.state(T0 + OPEN_NS + RETURN_NS) == "closed"


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_quarter_minute() -> None:
    b = opened()
    now = T0
    spans = []
    for _ in range(8):
        until = b.open_until_ns
        spans.append(until - now)
        assert not b.allows(until - 1)
        now = until
        b.taken(now)
        b.failed(DOWN, now)
    assert spans[0] == OPEN_NS
    for n, span in enumerate(spans):
        most = min(OPEN_NS << n, OPEN_MAX_NS)
        assert most * (1 - JITTER) <= span <= most
    assert OPEN_MAX_NS == 16 * S


def test_after_a_success_it_opens_for_the_shortest_time_again() -> None:
    b = opened()
    for _ in range(4):
        now = b.open_until_ns
        b.taken(now)
        b.failed(DOWN, now)
    now = b.open_until_ns
    b.taken(now)
    b.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        b.failed(DOWN, now)
    assert b.open_until_ns == now + OPEN_NS


def test_last_resort_failures_on_an_open_breaker_do_not_lengthen_it() -> None:
    b = opened()
    until = b.open_until_ns
    for n in range(500):
        b.taken(T0 + n * 1_000_000)
        b.failed(DOWN, T0 + n * 1_000_000)
    assert b.open_until_ns == until
    assert b.opens == 1


def test_a_last_resort_success_closes_it_at_once() -> None:
    b = opened()
    b.taken(T0 + 1)
    b.succeeded()
    assert b.allows(T0 + 1)


def test_failures_of_requests_sent_before_it_opened_change_nothing() -> None:
    b = opened()
    until = b.open_until_ns
    for _ in range(20):
        b.failed(DOWN, T0 + S)
    assert b.open_until_ns == until


def test_a_probe_without_a_verdict_gives_its_place_back() -> None:
    b = opened()
    now = T0 + OPEN_NS
    b.taken(now)
    b.released()
    assert b.allows(now)
    assert b.state(now) == "half-open"


def test_a_probe_whose_end_is_never_told_blocks_no_longer_than_its_lease() -> None:
    b = opened()
    now = T0 + OPEN_NS
    b.taken(now)
    assert not b.allows(now + PROBE_LEASE_NS)
    assert b.allows(now + PROBE_LEASE_NS + 1)


@pytest.mark.parametrize("seconds", [0.03, 1, 7, 59])
def test_a_rate_limit_with_a_time_cools_for_exactly_that_time(seconds: float) -> None:
    b = Breaker(Fixed(0.99))
    b.failed(limited(seconds), T0)
    until = T0 + int(seconds * 1e9)
    assert not b.allows(until - 1)
    assert b.allows(until)
    assert b.opens == 0
    assert b.state(until - 1) == "cooling"


def test_a_provider_that_asks_for_an_hour_is_asked_again_after_a_minute() -> None:
    b = Breaker(Random(1))
    b.failed(limited(3600), T0)
    assert b.cool_until_ns == T0 + RETRY_AFTER_MAX_NS == T0 + 60 * S


def test_a_shorter_time_never_cuts_a_longer_one_short() -> None:
    b = Breaker(Random(1))
    b.failed(limited(30), T0)
    b.failed(limited(1), T0 + S)
    assert b.cool_until_ns == T0 + 30 * S


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_a_rate_limit_without_a_time_doubles_with_full_jitter_up_to_half_a_minute(draw: float) -> None:
    b = Breaker(Fixed(draw))
    now = T0
    for n in range(9):
        b.failed(limited(), now)
        assert b.cool_until_ns == now + int(min(COOL_NS << n, COOL_MAX_NS) * draw)
        now = b.cool_until_ns
    b.succeeded()
    b.failed(limited(), now)
    assert b.cool_until_ns == now + int(COOL_NS * draw)


def test_a_burst_of_rate_limits_counts_as_one() -> None:
    b = Breaker(Fixed(0.999))
    for n in range(50):  # all were under way when the first hit the wall
        b.failed(limited(), T0 + n)
    assert b.cool_until_ns <= T0 + COOL_NS


def test_rate_limits_never_open_the_breaker() -> None:
    b = Breaker(Random(1))
    for n in range(100):
        b.failed(limited(0.1), T0 + n * S)
    assert not b.open_until_ns
    assert b.opens == 0


def test_a_rate_limited_probe_gives_its_place_back() -> None:
    b = opened()
    now = T0 + OPEN_NS
    b.taken(now)
    b.failed(limited(1), now)
    assert not b.allows(now)
    assert b.allows(now + S)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "fail", "limit", "win", "release"]), st.integers(0, 20_000_000_000), st.integers(0, 90)
    ),
    max_size=120,
)


@given(STEPS)
def test_over_any_history_it_lets_somebody_through_again_within_its_longest_limits(
    steps: list[tuple[str, int, int]],
) -> None:
    b = Breaker(Random(3))
    now = T0
    probes = 0
    for what, wait, seconds in steps:
        now += wait
        if what == "ask" and b.allows(now):
            assert now >= b.cool_until_ns
            assert not b.open_until_ns or now >= b.open_until_ns
            probes += bool(b.open_until_ns)
            b.taken(now)
            if b.open_until_ns:
                assert not b.allows(now)
        elif what == "fail":
            b.failed(DOWN, now)
        elif what == "limit":
            b.failed(limited(float(seconds)), now)
        elif what == "win":
            b.succeeded()
        elif what == "release":
            b.released()
        assert b.open_until_ns <= now + OPEN_MAX_NS
        assert b.cool_until_ns <= now + RETRY_AFTER_MAX_NS
    assert b.allows(now + max(OPEN_MAX_NS, RETRY_AFTER_MAX_NS, PROBE_LEASE_NS) + 1)


def test_of_all_workers_one_sends_the_probe() -> None:
    fd = memory()
    rows = [row(Counters(fd), "probes a m") for _ in range(8)]
    breakers = [Breaker(Random(i), cells) for i, cells in enumerate(rows)]
    now = T0
    for b in breakers:
        while not b.open_until_ns:
            b.failed(DOWN, now)
    for turn in range(3):
        now = T0 + (turn + 2) * 2 * S
        allowed = [b for b in breakers if b.allows(now)]
        assert len(allowed) == 8, "nobody has sent one yet"
        assert [b.taken(now) for b in allowed] == [True] + [False] * 7
        assert not any(b.allows(now + S // 2) for b in breakers)
        allowed[0].released()


def test_a_request_that_lost_the_probe_goes_to_the_next_target() -> None:
    fd = memory()
    now = T0 + 4 * S
    courses = []
    for i in range(3):
        ill = Breaker(Random(i), row(Counters(fd), "probes a m"))
        while not ill.open_until_ns:
            ill.failed(DOWN, T0)
        targets = [target("a", health=ill), target("b")]
        courses.append(Attempts(targets, 2, RetryBudget(0.1), now + 60 * S, Random(1)))
    assert [course.next(now) for course in courses] == [Try(0, "first"), Try(1, "first"), Try(1, "first")]
