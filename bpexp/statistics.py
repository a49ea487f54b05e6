"""Intervals over seeds, and what they decide about an expectation that was written down beforehand.

Letters: n values, m their mean, s their standard deviation (n - 1), t the quantile of Student's distribution.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 % confidence; `count` values made it. NaN is what they cannot tell."""

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: Iterable[float | None]) -> Interval:
    """Return the mean of the finite values with its interval.

    Math:    m +- t(0.975; n - 1) s / sqrt(n)
    Edge:    one value has no interval, none has no mean: NaN
    Source:  Student 1908, The probable error of a mean, doi:10.1093/biomet/6.1.1
    """
    from scipy.special import stdtrit

    finite = np.array([value for value in values if value is not None and math.isfinite(value)])
    count = len(finite)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * finite.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def geometric_interval(values: Iterable[float | None]) -> Interval:
    """Return the geometric mean of the positive finite values with its interval: that of their logs.

    Edge:    zeros and values that are not finite have no log and are left out; `count` says how many remained
    """
    logs = [math.log(value) for value in values if value is not None and 0 < value < math.inf]
    found = mean_interval(logs)
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.exp(value)) for value in (found.mean, found.low, found.high))
    return Interval(mean, low, high, found.count)


def decide(measured: Interval, low: float, high: float) -> str:
    """Compare an interval with the expected range [low, high].

    Returns: `confirmed` where it lies inside, `refuted` where the two have no point in common, else `inconclusive`;
             without an interval nothing is decided
    """
    if not math.isfinite(measured.low) or not math.isfinite(measured.high):
        return "inconclusive"
    if low <= measured.low and measured.high <= high:
        return "confirmed"
    return "refuted" if measured.high < low or measured.low > high else "inconclusive"


def coverage_p_value(inside: int, count: int, level: float) -> float:
    """Return how likely it is that as few of the values, or fewer, lie in their intervals of this level.

    Math:    P(X <= inside), X ~ Binomial(count, level); values are independent
    Edge:    1 where there are none
    """
    from scipy.special import bdtr

    return float(bdtr(inside, count, level)) if count else 1.0


def share_interval(hits: int, count: int) -> Interval:
    """Return the share of `hits` among `count` independent trials with its exact interval.

    Math:    from the 2.5 % quantile of Beta(k, n - k + 1) to the 97.5 % quantile of Beta(k + 1, n - k)
    Edge:    no trials have no share: NaN
    Source:  Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404
    """
    from scipy.special import betaincinv

    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return Interval(hits / count, low, high, count)
