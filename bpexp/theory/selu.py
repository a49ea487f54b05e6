"""SELU's constants and the map of mean and variance that they make contract to (0, 1).

Letters: x = lambda e(z), e(z) = z for z > 0 and alpha (e^z - 1) below; Phi = distribution of N(0, 1); omega = sum of a
unit's weights, tau = sum of their squares.
Source: Klambauer et al. 2017, arXiv:1706.02515
"""

import math

import numpy as np
import torch

from bpexp.activations import ACTIVATIONS, Function
from bpexp.theory.moments import Array, gaussian_mean


def selu_constants() -> tuple[float, float]:
    """Return alpha and lambda, those that keep N(0, 1): E x = 0 and E x^2 = 1 for z ~ N(0, 1).

    Math:    E e^(k z) [z < 0] = e^(k^2/2) Phi(-k). So E x = 0 is 1/sqrt(2 pi) + alpha (sqrt(e) Phi(-1) - 1/2) = 0, and
             E x^2 = 1 is lambda^2 (1/2 + alpha^2 (e^2 Phi(-2) - 2 sqrt(e) Phi(-1) + 1/2)) = 1
    """
    first, second = (math.exp(k * k / 2) * math.erfc(k / math.sqrt(2)) / 2 for k in (1, 2))
    alpha = 1 / (math.sqrt(2 * math.pi) * (0.5 - first))
    return alpha, 1 / math.sqrt(0.5 + alpha**2 * (second - 2 * first + 0.5))


def selu_map(mean: float, variance: float, omega: float = 0.0, tau: float = 1.0) -> tuple[float, float]:
    """Return the mean and the variance that a selu layer makes of those of its input.

    Math:    z ~ N(omega mean, tau variance); (E x, E x^2 - (E x)^2)
    """
    first, _, _, second, _, _ = _moments(omega * mean, tau * variance)
    return first, second - first**2


def selu_jacobian(mean: float, variance: float, omega: float = 0.0, tau: float = 1.0) -> Array:
    """Return the derivatives of selu_map, rows of mean and variance out, columns of mean and variance in.

    Math:    with z = m + sqrt(v) u: d E f / dm = E f u / sqrt(v), d E f / dv = E f (u^2 - 1) / (2 v) (Stein)
    """
    first, first_m, first_v, _, second_m, second_v = _moments(omega * mean, tau * variance)
    rows = [[first_m, first_v], [second_m - 2 * first * first_m, second_v - 2 * first * first_v]]
    return np.array(rows) * [omega, tau]


def selu_contraction(mean: float = 0.0, variance: float = 1.0, omega: float = 0.0, tau: float = 1.0) -> float:
    """Return the spectral norm of the map's Jacobian: below 1 means and variances nearby come closer together."""
    return float(np.linalg.norm(selu_jacobian(mean, variance, omega, tau), 2))


def _moments(m: float, v: float) -> tuple[float, ...]:
    """Return E x of z ~ N(m, v) and its derivatives by m and by v, then those of E x^2."""
    x, root = ACTIVATIONS["selu"].function, math.sqrt(v)

    def mean(power: int, factor: Function) -> float:
        return float(gaussian_mean("selu", lambda z: x(z + m) ** power * factor(z / root), v, (m,)))

    factors: tuple[Function, ...] = (torch.ones_like, lambda u: u / root, lambda u: (u * u - 1) / (2 * v))
    return tuple(mean(power, factor) for power in (1, 2) for factor in factors)
