"""The critical gain of an activation: that at which a layer neither grows nor shrinks the gradient."""

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from bpexp.activations import Activation, Function
from bpexp.theory.lengths import bisect, fixed_point
from bpexp.theory.moments import (
    Array,
    activation_second_moment,
    refuse_negative,
    resolve,
    slope_second_moment,
    slopes_beside_zero,
)

LENGTHS = np.concatenate([[1e-30, 1e-20], np.logspace(-10, 6, 161)])
SIGNIFICANT = 1e-7  # a residue below this share of q has no sign: slopes by differences are as exact as that
TOLERANCE = 1e-6  # of chi_1 at the fixed point
OTHER_BIASES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)  # that an error proposes


def critical(activation: str | Function | Activation, bias_std: float = 0.0) -> float:
    """Return sigma_w, the gain over lecun's standard deviation at which the activation is critical.

    Math:    sigma_w^2 E phi'(sqrt(q) z)^2 = 1 (chi_1) at q = sigma_w^2 E phi(sqrt(q) z)^2 + bias_std^2, so that
             q = E phi^2 / E phi'^2 + bias_std^2, in which sigma_w is no more. Its zeros are sign changes on a
             logarithmic grid of q, and q = 0 where bias_std = 0 and phi(0) = 0: there
             sigma_w^2 = 2 / (phi'(0-)^2 + phi'(0+)^2). The length map has to tend to that q from q = 1.
    Raises:  ValueError: there is no such length; bias_std negative or not finite
    Edge:    where there are several the smallest q counts; names are remembered, functions of the user's own are not,
             for they may change; their slopes are differences, see `resolve`
    Source:  Poole et al. 2016, arXiv:1606.05340; Hayou et al. 2019, arXiv:1902.06853 (the edge of chaos)
    """
    refuse_negative(**{"init.bias_std": bias_std})
    if isinstance(activation, str | Activation):
        return _remembered(activation, float(bias_std))
    return _solve(resolve(activation), bias_std)


@functools.lru_cache(maxsize=1024)
def _remembered(activation: str | Activation, bias_std: float) -> float:
    return _solve(resolve(activation), bias_std)


def _solve(phi: Activation, bias_std: float) -> float:
    found = first_attracting(phi, bias_std)
    if isinstance(found, float):
        return found
    others = [other for other in OTHER_BIASES if isinstance(first_attracting(phi, other), float)]
    choice = f"init.bias_std={others[0]:g} or another model.activation" if others else "another model.activation"
    raise ValueError(
        f"init: critical: {phi.name} has no critical point at init.bias_std={bias_std:g}: {found}; choose {choice}"
    )


def first_attracting(phi: Activation, bias_std: float) -> float | str:
    """Return the critical sigma_w, or in a few words why there is none."""
    moments = [moment(phi, LENGTHS) for moment in (activation_second_moment, slope_second_moment)]
    if not np.all(moments[1] > 0):
        return "its slope is zero almost everywhere"
    rejected = []
    for q, sigma_w2 in _candidates(phi, moments, bias_std**2):
        end = fixed_point(phi, sigma_w2, bias_std**2)
        if math.isfinite(end) and abs(sigma_w2 * _slope_moment(phi, end) - 1) < TOLERANCE:
            return math.sqrt(sigma_w2)
        rejected.append((q, end))
    if not rejected:
        return "a gain that makes chi_1 = 1 makes lengths grow without bound"
    q, end = rejected[0]
    what = f"tend to q = {end:.3g}" if math.isfinite(end) else "grow without bound"
    return f"the gain that makes chi_1 = 1 at q = {q:.3g} makes lengths {what}"


def _candidates(phi: Activation, moments: list[Array], sigma_b2: float) -> Iterator[tuple[float, float]]:
    """Yield the lengths that may be critical, each with its sigma_w^2, in rising order."""
    beside = slopes_beside_zero(phi)
    if sigma_b2 == 0 and beside is not None and any(beside):
        yield 0.0, 1 / _slope_moment(phi, 0.0)

    def residue(q: Array) -> Array:
        return activation_second_moment(phi, q) / slope_second_moment(phi, q) + sigma_b2 - q

    at_grid = moments[0] / moments[1] + sigma_b2 - LENGTHS
    clear = np.flatnonzero(np.abs(at_grid) > SIGNIFICANT * LENGTHS)
    for low, high in itertools.pairwise(clear):
        if (at_grid[low] > 0) != (at_grid[high] > 0):
            q = bisect(residue, LENGTHS[low], LENGTHS[high])
            yield q, 1 / _slope_moment(phi, q)


def _slope_moment(phi: Activation, q: float) -> float:
    """Return E phi'^2, and its limit at q = 0, where half of the inputs are on either side."""
    beside = slopes_beside_zero(phi) if q == 0 else None
    return float(slope_second_moment(phi, q)) if beside is None else (beside[0] ** 2 + beside[1] ** 2) / 2
