"""Cost in whole nano-dollars."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.account.cost import cost_nanos, estimate, usd
from turnout.catalog import Price
from turnout.exchange import Usage

USD = 1_000_000_000  # nano-dollars per million tokens at $1


def price(input: float, output: float = 0, cached: float | None = None, write: float | None = None) -> Price:
    rate = lambda x: None if x is None else round(x * USD)
    return Price(input=rate(input), output=rate(output), cached_input=rate(cached), cache_write=rate(write))


def test_an_embedding_of_eight_tokens_is_not_free() -> None:
    assert cost_nanos(Usage(prompt=8), price(0.02)) == 160
    assert usd(160) == "0.000000160"


@pytest.mark.parametrize(
    "usage, rates, nanos",
    [
        (Usage(prompt=1000, completion=500), price(2.5, 10), 7_500_000),
        (Usage(prompt=1000, completion=0, cached=400), price(2.5, 10, cached=1.25), 600 * 2500 + 400 * 1250),
        (Usage(prompt=1000, cached=400), price(2.5, 10), 1000 * 2500),  # no rate of its own: as plain input
        (Usage(prompt=1000, cached=300, cache_write=200), price(3, 15, 0.3, 3.75), 500 * 3000 + 300 * 300 + 200 * 3750),
        (Usage(prompt=10, cached=10), price(1, cached=0), 0),  # a rate of 0 is a rate
        (Usage(prompt=10, completion=50, reasoning=40), price(1, 4), 10 * 1000 + 50 * 4000),  # reasoning is in completion
        (Usage(prompt=5, cached=4, cache_write=4), price(1, cached=1, write=1), 8000),  # nonsense never goes below nothing
        (Usage(), price(100, 100), 0),
    ],
)
def test_each_kind_of_token_at_its_rate(usage: Usage, rates: Price, nanos: int) -> None:
    assert cost_nanos(usage, rates) == nanos


counts = st.integers(0, 10_000_000)
rates = st.integers(0, 10**12)


@given(counts, counts, counts, rates, rates, rates)
def test_rounded_once_and_half_up(plain: int, cached: int, completion: int, a: int, b: int, c: int) -> None:
    got = cost_nanos(Usage(prompt=plain + cached, completion=completion, cached=cached), Price(input=a, output=c, cached_input=b))
    exact = Fraction(plain * a + cached * b + completion * c, 1_000_000)
    assert got == int(exact + Fraction(1, 2))
    assert isinstance(got, int)


@given(st.integers(-(10**18), 10**18))
def test_dollars_are_exact(nanos: int) -> None:
    assert Decimal(usd(nanos)) * USD == nanos
    assert len(usd(nanos).partition(".")[2]) == 9


@pytest.mark.parametrize("asked, said, prompt, completion", [(0, 0, 0, 0), (400, 40, 100, 10), (3, 1, 0, 1), (7, 5, 1, 2)])
def test_our_own_count_is_flagged(asked: int, said: int, prompt: int, completion: int) -> None:
    assert estimate(asked, said) == Usage(prompt=prompt, completion=completion, estimated=True)


def test_a_sum_of_usages_is_estimated_if_a_part_is() -> None:
    assert Usage(1, 2, 3, 4, 5).plus(Usage(10, 20, 30, 40, 50, True)) == Usage(11, 22, 33, 44, 55, True)
