"""The retry budget: over any sequence of successes and wishes it gives out no more than it promises."""

from hypothesis import given
from hypothesis import strategies as st

from turnout.native import Counters
from turnout.route.retry import LEAST_PER_S, WINDOW_S, RetryBudget
from turnout.state.table import memory, row

S = 1_000_000_000
T0 = 5_000 * S


def drain(budget: RetryBudget, now: int) -> int:
    n = 0
    while budget.take(now):
        n += 1
    return n


def test_a_quiet_route_may_retry_three_times_a_second() -> None:
    budget = RetryBudget(0.1)
    assert [drain(budget, T0 + n * S) for n in range(5)] == [LEAST_PER_S] * 5


def test_a_tenth_of_the_successes_may_be_spent() -> None:
    budget = RetryBudget(0.1)
    for _ in range(1_000):
        budget.succeeded(T0)
    assert drain(budget, T0) == 100


def test_what_was_earned_is_forgotten_after_ten_seconds() -> None:
    budget = RetryBudget(0.1)
    for _ in range(1_000):
        budget.succeeded(T0)
    assert drain(budget, T0 + WINDOW_S * S) == LEAST_PER_S


def test_what_was_spent_is_forgotten_after_ten_seconds_too() -> None:
    budget = RetryBudget(0.1)
    for _ in range(1_000):
        budget.succeeded(T0)
    assert drain(budget, T0) == 100
    for _ in range(1_000):
        budget.succeeded(T0 + WINDOW_S * S)
    assert drain(budget, T0 + WINDOW_S * S) == 100


def test_has_says_what_take_will_do_and_costs_nothing() -> None:
    budget = RetryBudget(0.1)
    for _ in range(10):
        assert budget.has(T0)
    assert drain(budget, T0) == LEAST_PER_S
    assert not budget.has(T0)
    assert not budget.take(T0)


def test_a_share_of_nothing_still_leaves_the_three_a_second() -> None:
    budget = RetryBudget(0.0)
    for _ in range(1_000):
        budget.succeeded(T0)
    assert drain(budget, T0) == LEAST_PER_S


def test_a_long_pause_clears_everything() -> None:
    budget = RetryBudget(0.5)
    for n in range(30):
        budget.succeeded(T0 + n * S // 3)
        budget.take(T0 + n * S // 3)
    later = T0 + 3_600 * S
    assert drain(budget, later) == LEAST_PER_S


STEPS = st.lists(
    st.tuples(st.integers(0, 4_000_000_000), st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=60
)


@given(STEPS, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_in_any_ten_seconds_no_more_than_the_share_of_the_successes_and_three_a_second(
    steps: list[tuple[int, int, int]], ratio: float
) -> None:
    """A retry is paid with successes of the ten seconds before it, so those before the window count as well. A window
    that does not begin with a second touches eleven of them, and a share is rounded up to a whole retry."""
    budget = RetryBudget(ratio)
    now = T0
    won: list[int] = []
    taken: list[int] = []
    for wait, successes, wishes in steps:
        now += wait
        for _ in range(successes):
            budget.succeeded(now)
            won.append(now)
        for _ in range(wishes):
            had = budget.has(now)
            got = budget.take(now)
            assert had == got
            if got:
                taken.append(now)
    for start in taken:
        end = start + WINDOW_S * S
        used = sum(start <= t < end for t in taken)
        earned = sum(start - WINDOW_S * S <= t < end for t in won)
        assert used <= ratio * earned + 1 + LEAST_PER_S * (WINDOW_S + 1)


@given(STEPS)
def test_without_a_success_it_never_gives_more_than_three_a_second(steps: list[tuple[int, int, int]]) -> None:
    budget = RetryBudget(0.1)
    now = T0
    by_second: dict[int, int] = {}
    for wait, _, wishes in steps:
        now += wait
        for _ in range(wishes):
            if budget.take(now):
                by_second[now // S] = by_second.get(now // S, 0) + 1
    assert all(n <= LEAST_PER_S for n in by_second.values())


def shared(count: int, ratio: float) -> list[RetryBudget]:
    """Budgets of so many workers over one row of cells."""
    cells = Counters(memory())
    return [RetryBudget(ratio, row(cells, "a")) for _ in range(count)]


@given(STEPS, st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 4))
def test_workers_that_share_cells_have_one_budget(steps: list[tuple[int, int, int]], ratio: float, count: int) -> None:
    """They give out what one alone would, whoever is asked; only successes that are not handed in yet may be missing."""
    alone, many = RetryBudget(ratio), shared(count, ratio)
    now = T0
    for i, (wait, successes, wishes) in enumerate(steps):
        now += wait
        for n in range(successes):
            alone.succeeded(now)
            many[(i + n) % count].succeeded(now)
        for budget in many:
            budget.has(now)  # hands in
        for n in range(wishes):
            assert alone.take(now) == many[(i * n) % count].take(now)


def test_eight_workers_may_retry_three_times_a_second_together() -> None:
    many = shared(8, 0.1)
    assert sum(drain(budget, T0) for budget in many) == LEAST_PER_S
    assert sum(drain(RetryBudget(0.1), T0) for _ in range(8)) == 8 * LEAST_PER_S  # what they would do each for himself
    for _ in range(1_000):
        many[0].succeeded(T0 + S)
    assert drain(many[1], T0 + S) == LEAST_PER_S  # the successes come a second later at most
    many[0].succeeded(T0 + 2 * S)
    assert drain(many[1], T0 + 2 * S) == 100 - LEAST_PER_S * 2
