"""Cost in integer nano-dollars: an 8-token embedding costs 160 of them and is not booked as nothing."""

from ..catalog import Price
from ..exchange import Usage


def cost_nanos(usage: Usage, price: Price) -> int:
    """Nano-dollars for one attempt. Prices are nano-dollars per million tokens; the sum is rounded half up, once.

    Cached and cache-write tokens are part of `usage.prompt` (OpenAI's meaning) and are charged at their own rates
    where the provider has such rates, else as plain input.
    """
    base = price.input or 0
    cached_rate = price.cached_input if price.cached_input is not None else base
    write_rate = price.cache_write if price.cache_write is not None else base
    cached, written = usage.cached, usage.cache_write
    plain = usage.prompt - cached - written
    total = cached * cached_rate + written * write_rate + usage.completion * (price.output or 0)
    if plain > 0:  # a call of max() costs as much as all of the rest
        total += plain * base
    return (total + 500_000) // 1_000_000


def usd(nanos: int) -> str:
    """Exact decimal dollars, nine places: 160 -> "0.000000160"."""
    if nanos < 0:
        return "-" + usd(-nanos)
    digits = str(nanos)
    if len(digits) < 10:
        digits = digits.zfill(10)
    return digits[:-9] + "." + digits[-9:]


def estimate(prompt_bytes: int, content_bytes: int) -> Usage:
    """Our own count where the provider gave none, flagged: about four bytes of text a token (OpenAI's rule of thumb)."""
    return Usage(prompt=prompt_bytes // 4, completion=(content_bytes + 3) // 4, estimated=True)
