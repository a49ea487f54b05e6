"""The length map of a wide network with random weights, its fixed point, and what a layer does to the gradient there.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), phi = activation, sigma_w2 = fan_in * Var W,
sigma_b2 = Var b, chi_1 = factor a layer of the mean square gradient, towards the input.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from bpexp.activations import Activation, Function
from bpexp.theory.moments import (
    LARGEST,
    Array,
    activation_second_moment,
    refuse_negative,
    resolve,
    slope_second_moment,
)

SMALLEST = 1e-10  # a fixed point below it counts as 0, where 0 is one
FINE, COARSE = 2 ** (1 / 16), 10.0  # factors between the lengths that are tried, up to COARSE_FROM from 1 and beyond
COARSE_FROM = 1e6
CHUNK = 32


def length_map(activation: str | Function | Activation, q: ArrayLike, sigma_w2: float, sigma_b2: float) -> Array:
    """Return the mean square of the next layer's pre-activations.

    Math:    V(q) = sigma_w2 E phi(sqrt(q) z)^2 + sigma_b2
    Shapes:  q: any; the result has its shape
    Raises:  ValueError: a negative or non-finite variance; an unknown or non-finite activation
    Source:  Poole et al. 2016, arXiv:1606.05340, eq. 3
    """
    refuse_negative(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return np.asarray(sigma_w2 * activation_second_moment(activation, q) + sigma_b2)


def chi_1(activation: str | Function | Activation, q: ArrayLike, sigma_w2: float) -> Array:
    """Return the factor a layer of the mean square gradient: below 1 it vanishes, above 1 it explodes.

    Math:    chi_1 = sigma_w2 E phi'(sqrt(q) z)^2; the backward gain is its root
    Shapes:  q: any; the result has its shape
    Raises:  ValueError: as length_map
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, eq. 5
    """
    refuse_negative(sigma_w2=sigma_w2)
    return np.asarray(sigma_w2 * slope_second_moment(activation, q))


def fixed_point(activation: str | Function | Activation, sigma_w2: float, sigma_b2: float) -> float:
    """Return the length q* that the length map, started at q = 1, tends to.

    Math:    q* = V(q*), by bisection of log q
    Raises:  ValueError: as length_map
    Edge:    inf where lengths grow without bound; 0 where they shrink below 1e-10 and 0 is a fixed point;
             1 where that is one already (relu at sigma_w2 = 2: every length is); two fixed points closer together
             than 5 % may be taken for none
    """
    phi = resolve(activation)

    def growth(q: Array) -> Array:
        return length_map(phi, q, sigma_w2, sigma_b2) - q

    first, at_zero = growth(np.array([1.0, 0.0]))
    if abs(first) < 1e-12:
        return 1.0
    low, end = 1.0, 0.0 if at_zero else SMALLEST
    for lengths in lengths_from_one(end, upwards=first > 0):
        turned = np.flatnonzero((growth(lengths) > 0) != (first > 0))
        if turned.size:
            low = low if turned[0] == 0 else float(lengths[turned[0] - 1])
            return bisect(growth, low, float(lengths[turned[0]]))
        low = float(lengths[-1])
    return math.inf if first > 0 else 0.0


def lengths_from_one(smallest: float, *, upwards: bool) -> Iterator[Array]:
    """Yield the lengths to try for a fixed point, some at a time: from 1 up to LARGEST, or down to `smallest`."""
    fine = FINE ** np.arange(1, math.log(COARSE_FROM, FINE))
    coarse = fine[-1] * COARSE ** np.arange(1, math.log(LARGEST / fine[-1], COARSE))
    lengths = np.concatenate([fine, coarse])
    if not upwards:
        lengths = 1 / lengths
        lengths = lengths[lengths > smallest]
    for start in range(0, len(lengths), CHUNK):
        yield lengths[start : start + CHUNK]


def bisect(function: Callable[[Array], Array], low: float, high: float) -> float:
    """Return a zero of a function between two positive numbers where its signs differ, to 1e-14 of it.

    Sixteen numbers between the ends are asked at once, as each call has a price of its own.
    """
    positive = bool(function(np.array([low]))[0] > 0)
    while not math.isclose(low, high, rel_tol=1e-14):
        inner = np.geomspace(low, high, 18)[1:-1]
        turned = np.flatnonzero((function(inner) > 0) != positive)
        k = int(turned[0]) if turned.size else len(inner)
        low, high = (low if k == 0 else float(inner[k - 1])), (high if k == len(inner) else float(inner[k]))
    return math.sqrt(low * high)


def residual_growth(layers: int, scale: float = 1.0, chi: float = 1.0) -> float:
    """Return the factor of the mean square gradient over residual layers, x + a phi(W x), towards the input.

    Math:    g_{l-1} = g_l + a W^T (phi'(z_l) * g_l), and W has mean 0: E g_{l-1}^2 = (1 + a^2 chi_1) E g_l^2;
             (1 + a^2 chi_1)^layers in all. He's weights make chi_1 = 1 for relu: 2^layers at a = 1, and at most e at
             a = 1/sqrt(layers). Of L hidden layers the first has no skip: L - 1 of them grow.
    Raises:  ValueError: a negative number of layers; a scale or chi that is no finite number, a negative chi
    Source:  derived here; for relu known as Hanin and Rolnick 2018, arXiv:1803.01719
    """
    if layers < 0:
        raise ValueError(f"layers: {layers} is negative")
    if not (math.isfinite(scale) and 0 <= chi < math.inf):
        raise ValueError(f"scale, chi: {scale}, {chi} must be finite numbers, and chi not negative")
    return float((1 + scale**2 * chi) ** layers)
