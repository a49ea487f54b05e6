"""To which multiple of a depth scale networks train: a logistic curve in the logarithm of depth / scale.

Letters: L = depth, xi = depth scale, m = the multiple at which half of the networks train, s = the curve's slope there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpexp.statistics import LEVEL

Array = NDArray[np.float64]

RESAMPLED = 400
"""Bootstrap samples of the seeds."""
RIDGE = 0.02
"""Penalty of s^2, in networks: where every network below a depth trains and none above it, s would be infinite."""
NEWTON_STEPS = 40


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
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(own), (RESAMPLED, len(own)))
    counts = np.stack([(drawn == k).sum(1) for k in range(len(own))], 1)
    each_a, each_b = fit_logistic(x, trained, counts[:, np.searchsorted(own, seeds)].astype(np.float64))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = np.clip(np.exp(each_a / each_b), ratios.min(), ratios.max())
    found = np.nan_to_num(found[each_b > 0], nan=float(ratios.max()))
    loss = log_loss(x, trained, a, b)
    multiple = math.exp(min(a / b, 700)) if b > 0 else math.nan
    if not ratios.min() < multiple < ratios.max():
        edge = float(np.clip(multiple, ratios.min(), ratios.max()))
        return Multiple(edge, edge, edge, b, loss, inside=False)
    if len(own) < 2 or not found.size:
        return Multiple(multiple, math.nan, math.nan, b, loss, inside=True)
    low, high = (float(q) for q in np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = min(low, float(ratios[ratios <= multiple].max())), max(high, float(ratios[ratios >= multiple].min()))
    return Multiple(multiple, low, high, b, loss, inside=True)


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
