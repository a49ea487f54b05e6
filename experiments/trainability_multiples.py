"""To which multiple of a depth scale networks train: a logistic curve in the logarithm of depth / scale.

Letters: L = depth, xi = depth scale, m = the multiple at which half of the networks train, s = the curve's slope there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpexp.statistics import LEVEL, Interval

Array = NDArray[np.float64]

RESAMPLED = 400
"""Bootstrap samples of the seeds."""
RIDGE = 0.02
"""Penalty of s^2, in networks: where every network below a depth trains and none above it, s would be infinite."""
NEWTON_STEPS = 40
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class Multiple:
    """A fitted curve: m with its 95 % interval over resampled seeds, s, and the curve's mean log loss.

    Where all networks train, or none, or the curve says so, m is only known to lie beyond the multiples that there are:
    `multiple` and its interval are the largest of them, or the smallest, and `inside` is false; NaN where deeper
    networks train more.
    """

    multiple: float
    low: float
    high: float
    slope: float
    log_loss: float
    inside: bool


def fit_multiple(ratios: Array, trained: Array, seeds: NDArray[np.int64]) -> Multiple:
    """Fit P(trains) = 1 / (1 + (L / (m xi))^s) to networks, with an interval from resampled seeds.

    Math:    logit P = s (log m - log L/xi), by maximum likelihood with the penalty RIDGE s^2 / 2. The interval reaches
             to the multiples on either side of m that were trained, for it is not known finer than they lie
    Shapes:  ratios, L / xi, trained, 0 or 1, and seeds: (N,)
    Raises:  ValueError: no networks
    Source:  the bootstrap's percentiles: Efron 1979, doi:10.1214/aos/1176344552
    """
    if not len(ratios):
        raise ValueError("ratios: no networks to fit a multiple to")
    x, own = np.log(ratios), np.unique(seeds)
    if trained.min() == trained.max():
        edge = float(ratios.max() if trained[0] else ratios.min())
        return Multiple(edge, edge, edge, math.nan, 0.0, inside=False)
    a, b = (float(value[0]) for value in fit_logistic(x, trained, np.ones((1, len(x)))))
    loss = log_loss(x, trained, a, b)
    multiple = math.exp(min(a / b, 700)) if b > 0 else math.nan
    if not ratios.min() < multiple < ratios.max():
        edge = float(np.clip(multiple, ratios.min(), ratios.max()))
        return Multiple(edge, edge, edge, b, loss, inside=False)
    if len(own) < 2:
        return Multiple(multiple, math.nan, math.nan, b, loss, inside=True)
    each_a, each_b = fit_logistic(x, trained, resample(seeds))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = np.clip(np.exp(each_a / each_b), ratios.min(), ratios.max())
    found = np.nan_to_num(found[each_b > 0], nan=float(ratios.max()))
    if not found.size:
        return Multiple(multiple, math.nan, math.nan, b, loss, inside=True)
    low, high = (float(q) for q in np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = min(low, float(ratios[ratios <= multiple].max())), max(high, float(ratios[ratios >= multiple].min()))
    return Multiple(multiple, low, high, b, loss, inside=True)


def resample(seeds: NDArray[np.int64]) -> Array:
    """Return how often each network counts in RESAMPLED samples of the seeds, (RESAMPLED, N)."""
    own = np.unique(seeds)
    drawn = np.random.default_rng(0).integers(0, len(own), (RESAMPLED, len(own)))
    counts = np.stack([(drawn == k).sum(1) for k in range(len(own))], 1)
    return counts[:, np.searchsorted(own, seeds)].astype(np.float64)


def compare_scales(first: Array, second: Array, trained: Array, seeds: NDArray[np.int64]) -> Interval:
    """Return how much more likely one curve over the second depth scale makes what happened than one over the first.

    Math:    the difference of the log likelihoods of the two fitted curves; its interval is that over resampled seeds,
             with both curves fitted again to each sample
    Shapes:  first and second, L / xi of either scale, trained and seeds: (N,)
    Edge:    one seed has no interval: NaN
    """
    weights = np.concatenate([np.ones((1, len(trained))), resample(seeds)])
    likelihoods = []
    for ratios in (first, second):
        x = np.log(ratios)
        a, b = fit_logistic(x, trained, weights)
        margins = np.where(trained > 0, 1, -1) * (a[:, None] - b[:, None] * x)
        likelihoods.append(-(weights * np.logaddexp(0, -margins)).sum(1))
    gains = likelihoods[1] - likelihoods[0]
    count = len(np.unique(seeds))
    low, high = (float(q) for q in np.quantile(gains[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return (
        Interval(float(gains[0]), low, high, count) if count > 1 else Interval(float(gains[0]), math.nan, math.nan, 1)
    )


def one_number(multiples: Sequence[Multiple]) -> float:
    """Return how likely multiples are to differ as much as these, or more, if all were one number.

    Math:    Q = sum w (log m - mean)^2, mean = sum w log m / sum w, is chi2 of one less than there are; 1/sqrt w is the
             width of the interval of log m over 2 * 1.96, which has the distances of the depths in it
    Edge:    fewer than two that lie inside, with an interval: NaN
    Source:  Cochran 1954, doi:10.2307/3001666
    """
    from scipy.special import chdtrc

    known = [own for own in multiples if own.inside and math.isfinite(own.low) and 0 < own.low < own.high]
    if len(known) < 2:
        return math.nan
    logs = np.log([own.multiple for own in known])
    weights = (2 * NORMAL_QUANTILE / np.log([own.high / own.low for own in known])) ** 2
    mean = (weights * logs).sum() / weights.sum()
    return float(chdtrc(len(known) - 1, float((weights * (logs - mean) ** 2).sum())))


def fit_logistic(x: Array, trained: Array, weights: Array) -> tuple[Array, Array]:
    """Return a and b of logit P = a - b x for each row of weights, (R, N), by Newton's method.

    Edge:    where a row's networks all train, or none, a is as large as the steps let it become
    """
    a, b = np.zeros(len(weights)), np.ones(len(weights))
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(np.clip(b[:, None] * x - a[:, None], -500, 500)))
        error, curve = weights * (trained - p), weights * p * (1 - p) + 1e-9
        gradient = np.stack([error.sum(1), -(error * x).sum(1) - RIDGE * b], 1)
        mixed = -(curve * x).sum(1)
        hessian = np.stack([curve.sum(1), mixed, mixed, (curve * x * x).sum(1) + RIDGE], 1).reshape(-1, 2, 2)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step *= np.minimum(1.0, 4.0 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        a, b = a + step[:, 0], b + step[:, 1]
    return a, b


def log_loss(x: Array, trained: Array, a: float, b: float) -> float:
    """Return the mean of -log P of what happened."""
    margin = np.where(trained > 0, 1, -1) * (a - b * x)
    return float(np.logaddexp(0, -margin).mean())
