"""Spectrum of the input-output Jacobian J of a wide network with random weights, all layers of one width.

Letters: J = D_L W_L ... D_1 W_1, D_l the slopes phi'(z) of layer l, z ~ N(0, q); mu_k = E phi'(z)^(2k); L = depth;
p = probability that a unit of slope 0 or 1 is on, so that mu_1 = mu_2 = p.
Source: Pennington, Schoenholz and Ganguli 2017, arXiv:1711.04735, and 2018, arXiv:1802.09979
"""

from __future__ import annotations

import math

from bpexp.activations import Activation, Function
from bpexp.theory.moments import gaussian_mean, refuse_negative, resolve


def spectrum_variance(activation: str | Function | Activation, q: float, depth: int, *, orthogonal: bool) -> float:
    """Return the variance of the eigenvalues of J J^T over their squared mean, as the width grows at fixed depth.

    Math:    L (mu_2/mu_1^2 - 1 - s), s = -1 of Gaussian and 0 of orthogonal weights. Where phi' is 0 or 1 that is L/p
             and L (1/p - 1). The S transform of a product of free matrices is the product of theirs, and its first two
             terms add up over the layers: D^2 adds mu_2/mu_1^2 - 1, W W^T its own variance over its squared mean,
             which is 1 of Gaussian ones (Marchenko-Pastur) and 0 of orthogonal ones.
    Units:   that of a variance over a squared mean: 1
    Raises:  ValueError: q negative or not finite; depth below 1; the slope is 0 everywhere
    Edge:    the lengths of all layers are q: a fixed point of the length map
    """
    refuse_negative(q=q)
    check_depth(depth)
    phi = resolve(activation)
    name, slope = f"{phi.name}, its slope", phi.slope
    first = float(gaussian_mean(name, lambda x: slope(x).square(), q, phi.kinks))
    second = float(gaussian_mean(name, lambda x: slope(x).square().square(), q, phi.kinks))
    if first == 0:
        raise ValueError(f"activation {phi.name!r}: its slope is 0 at q={q:g}, so that J has no spectrum")
    return depth * (second / first**2 - 1 + (not orthogonal))


def largest_eigenvalue(depth: int) -> float:
    """Return the largest eigenvalue of J J^T over their mean, of a wide linear network with Gaussian weights.

    Math:    (L + 1)^(L + 1) / L^L, the edge of the Fuss-Catalan law, whose k-th moment is C(Lk + k, k) / (Lk + 1);
             about e (L + 1/2) for large L. L = 1: 4, the edge of Marchenko and Pastur's
    Raises:  ValueError: depth below 1
    """
    check_depth(depth)
    return math.exp((depth + 1) * math.log(depth + 1) - depth * math.log(depth))


def check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth: {depth} is not at least 1")
