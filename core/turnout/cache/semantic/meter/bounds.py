"""Confidence bounds for rates of rare events seen through weighted samples. Pure.

A sum of weighted counts gets the gamma interval of Fay and Feuer (Statistics in Medicine 16, 1997): exact (Garwood) where
all weights are equal, so a sample without any event still has an upper bound. Where weights differ, the next event is
taken to weigh what an average one would (Tiwari, Clegg and Zou 2006), their largest weight being far too cautious here.
The difference of two estimates keeps both their skews by MOVER (Zou and Donner, Statistics in Medicine 27, 2008).
"""

from collections.abc import Sequence
from math import exp, lgamma, log, sqrt
from typing import NamedTuple

MOST_EXACT = 400.0  # above this shape Wilson and Hilferty are exact to 1e-4
NIL = 1e-15  # less of all requests is none, and its square can still be told from nothing
Z95, Z975 = 1.6448536, 1.9599640


class Bound(NamedTuple):
    """An estimate and the interval about it, all in one unit."""

    value: float
    low: float
    high: float


NOTHING_KNOWN = Bound(0.0, 0.0, 1.0)  # of a share


def gamma_below(a: float, x: float) -> float:
    """The regularised lower incomplete gamma function, by its series or its continued fraction (Lentz). O(sqrt(a))."""
    if x <= 0.0:
        return 0.0
    front = exp(a * log(x) - x - lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        n = a
        while term > total * 1e-12:
            n += 1.0
            term *= x / n
            total += term
        return front * total
    b = x + 1.0 - a
    c = 1e300
    d = 1.0 / b
    h = d
    for i in range(1, 500):
        an = -i * (i - a)
        b += 2.0
        d = 1.0 / (an * d + b)
        c = b + an / c
        h *= d * c
        if abs(d * c - 1.0) < 1e-12:
            break
    return 1.0 - front * h


def gamma_quick(a: float, z: float) -> float:
    """The quantile of Gamma(a, 1) at the normal deviate `z`, by Wilson and Hilferty: within 1 % above the median for
    a >= 1, O(1)."""
    return float(a * max(0.0, 1.0 - 1.0 / (9.0 * a) + z / (3.0 * sqrt(a))) ** 3)


def gamma_quantile(a: float, p: float, z: float) -> float:
    """The same quantile, where the share `p` lies below (`z` is its normal deviate), by bisection. About 0.3 ms."""
    quick = gamma_quick(a, z)
    if a > MOST_EXACT:
        return quick
    low, high = 0.0, 2.0 * quick + 10.0
    for _ in range(48):
        middle = 0.5 * (low + high)
        if gamma_below(a, middle) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def rate(y: float, v: float, w: float) -> Bound:
    """95 %, two-sided. `y`: sum of the weights of the events, `v`: of their squares, `w`: what one more would weigh."""
    low = v / y * gamma_quantile(y * y / v, 0.025, -Z975) if v > NIL * NIL else y  # no variance: all of them were seen
    if w < NIL:
        return Bound(y, low, y)
    scale = (v + w * w) / (y + w)
    return Bound(y, low, scale * gamma_quantile((y + w) / scale, 0.975, Z975))


def upper(y: float, v: float, w: float, z: float = Z95) -> float:
    """Only the upper one, one-sided (95 % unless told), O(1): for scans."""
    if w < NIL:
        return y
    scale = (v + w * w) / (y + w)
    return scale * gamma_quick((y + w) / scale, z)


def share(k: float, kk: float, n: float, nn: float) -> Bound:
    """Of `n` (sum of weights, `nn` of their squares) the share of `k` (`kk`); nothing is known of none."""
    if n < 1e-9:
        return NOTHING_KNOWN
    found = rate(k / n, kk / (n * n), nn / (n * n))
    return Bound(min(1.0, found.value), min(1.0, found.low), min(1.0, found.high))


def less_noise(seen: Bound, hits: float, noise: Bound) -> Bound:
    """What remains of `seen` (flagged as wrong, of all) when of `hits` (right and wrong, of all) a share `noise` is
    flagged though right: (seen - hits * noise) / (1 - noise), within 0 and `hits`."""
    f = min(noise.value, 0.9)
    middle = seen.value - hits * f
    low = middle - sqrt((seen.value - seen.low) ** 2 + (hits * (noise.high - f)) ** 2)
    high = middle + sqrt((seen.high - seen.value) ** 2 + (hits * (f - noise.low)) ** 2)
    return Bound(*(min(max(x / (1.0 - f), 0.0), hits) for x in (middle, low, high)))


def added(parts: Sequence[Bound]) -> Bound:
    """The sum of independent estimates, each as skew as it is (MOVER)."""
    value = sum(part.value for part in parts)
    low = value - sqrt(sum((part.value - part.low) ** 2 for part in parts))
    high = value + sqrt(sum((part.high - part.value) ** 2 for part in parts))
    return Bound(value, max(0.0, low), high)


def wilson(p: float, n: float) -> Bound:
    """95 % of a share `p` of `n` (effective) labels, where it need not be rare (Wilson 1927)."""
    zz = Z975 * Z975
    middle = (p + zz / (2.0 * n)) / (1.0 + zz / n)
    half = Z975 * sqrt(p * (1.0 - p) / n + zz / (4.0 * n * n)) / (1.0 + zz / n)
    return Bound(p, max(0.0, middle - half), min(1.0, middle + half))
