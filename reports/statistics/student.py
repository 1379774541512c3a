"""Student's t distribution, and the normal one as its limit. No scipy."""

from __future__ import annotations

import math
from functools import lru_cache

STEPS = 300  # of the continued fraction; it converges in about sqrt(degrees of freedom)


@lru_cache(maxsize=4096)
def tail(t: float, df: float) -> float:
    """The probability of a value above `t`; `df`: degrees of freedom, math.inf for the normal distribution."""
    if math.isinf(df) or df > 1e5:
        return 0.5 * math.erfc(t / math.sqrt(2))
    below = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return below if t >= 0 else 1 - below


@lru_cache(maxsize=4096)
def quantile(probability: float, df: float) -> float:
    """The value with that probability above it, for 0 < probability < 0.5."""
    low, high = 0.0, 1.0
    while tail(high, df) > probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > probability else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(b, a, 1 - x) / b
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, STEPS):
        before = value
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(value - before) < 1e-14 * abs(value):
            break
    return value
