"""account.cost: one attempt's tokens to nano-dollars, and as decimal dollars."""

from collections.abc import Callable

from cases import Case
from cases import test_speed as test_speed

from turnout.account.cost import cost_nanos, usd
from turnout.catalog import Catalog
from turnout.exchange import Usage


def cost() -> Callable[[], tuple[int, str]]:
    model = Catalog.builtin().find("gpt-4o-mini", "openai")
    assert model is not None
    price, usage = model.price, Usage(1000, 500, 200)

    def work() -> tuple[int, str]:
        nanos = cost_nanos(usage, price)
        return nanos, usd(nanos)

    return work


# 800 tokens at $0.15, 200 cached at $0.075, 500 at $0.60 a million
CASES = [Case("account.cost", cost, (435_000, "0.000435000").__eq__)]
