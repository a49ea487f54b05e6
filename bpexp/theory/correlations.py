"""How alike two inputs stay in a wide network with random weights, and how deep it can tell them apart.

Letters: q = mean square of a pre-activation, c = correlation of those of two inputs, z, z1, z2 ~ N(0, 1) independent,
phi = activation, sigma_w2 = fan_in * Var W, sigma_b2 = Var b; m(x) = E phi(x + sqrt(q (1 - |c|)) z), phi blurred by
what two inputs do not share.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from torch import Tensor

from bpexp.activations import Activation, Function
from bpexp.theory.lengths import chi_1, fixed_point
from bpexp.theory.moments import (
    EDGES_X,
    EDGES_Z,
    LARGEST,
    LEGENDRE_NODES,
    LEGENDRE_WEIGHTS,
    TAIL,
    Array,
    activation_second_moment,
    evaluate,
    gaussian_mean,
    half_line,
    refuse_negative,
    resolve,
    slope_second_moment,
)

SHORTEST = 1e-12  # a length below it counts as this: the maps have their limit there
BLURS = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0])  # edges beside a kink, in widths of the blur
BENDS = 1e-2  # a curvature that changes by more at a point has a kink there
CURVATURE_STEP = 1e-3
DEGREE = 24  # of the polynomial that a map is followed with over many layers


@dataclass(frozen=True)
class DepthScales:
    """Where lengths and correlations come to rest, and over how many layers things change by a factor e.

    q_star, c_star:     fixed points of the length and the correlation map
    chi_1, chi_c_star:  chi at c = 1 and at c*: above 1 gradients grow towards the input, and inputs alike part
    xi_q, xi_c:         layers over which a length, and a correlation, comes closer to its fixed point
    xi_gradient:        layers over which a mean square gradient changes; as xi_c where chi_1 <= 1
    """

    q_star: float
    c_star: float
    chi_1: float
    chi_c_star: float
    xi_q: float
    xi_c: float
    xi_gradient: float


def correlation_map(
    activation: str | Function | Activation, c: ArrayLike, q: ArrayLike, sigma_w2: float, sigma_b2: float
) -> Array:
    """Return the next layer's correlation of two inputs of equal lengths.

    Math:    C(c) = (sigma_w2 E phi(u1) phi(u2) + sigma_b2) / V(q), V(q) = sigma_w2 E phi(u1)^2 + sigma_b2,
             (u1, u2) normal with variances q and correlation c. For c >= 0 E phi(u1) phi(u2) = E m(sqrt(q c) z)^2, and
             1 - C is the mean of phi's variance in the blur, so that it is exact close to c = 1; below 0
             E m(x) m(-x). For relu it is (sqrt(1 - c^2) + (pi - arccos c) c) / pi at sigma_b2 = 0
    Shapes:  c, q: any that broadcast; the result has their shape
    Raises:  ValueError: c outside [-1, 1]; a negative or non-finite q or variance; an unknown, non-scalar or non-finite
             activation; a next layer of zeros
    Edge:    to about 1e-10; q below 1e-12 counts as 1e-12: what is linear beside 0 has its limit
    Source:  Poole et al. 2016, arXiv:1606.05340, eq. 5; relu: Cho and Saul 2009
    """
    refuse_negative(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    phi = resolve(activation)
    lengths = np.maximum(lengths_of(q), SHORTEST)
    total = sigma_w2 * activation_second_moment(phi, lengths) + sigma_b2
    if not np.all(total > 0):
        raise ValueError(f"activation {phi.name!r}: the next layer is zero, which has no correlation")
    return np.asarray(1 - sigma_w2 * _lost(phi, phi.function, _apart(c), lengths) / total)


def chi(activation: str | Function | Activation, c: ArrayLike, q: ArrayLike, sigma_w2: float) -> Array:
    """Return what a layer makes of a small difference of two correlations; at c = 1 it is chi_1.

    Math:    chi(c) = sigma_w2 E phi'(u1) phi'(u2), u1 and u2 as in `correlation_map`; C'(c) = chi(c) q / V(q). For relu
             it is sigma_w2 (pi - arccos c) / (2 pi)
    Shapes:  c, q: any that broadcast; the result has their shape
    Raises:  as `correlation_map`
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, eq. 8
    """
    refuse_negative(sigma_w2=sigma_w2)
    phi = resolve(activation)
    lengths = np.maximum(lengths_of(q), SHORTEST)
    return np.asarray(sigma_w2 * (slope_second_moment(phi, lengths) - _lost(phi, phi.slope, _apart(c), lengths)))


def fixed_correlation(activation: str | Function | Activation, sigma_w2: float, sigma_b2: float) -> float:
    """Return the correlation c* that two inputs tend to, whatever theirs is between 0 and 1.

    Math:    c* = C(c*) at q*. On [0, 1] C is convex with C(1) = 1 (its Taylor coefficients are squares): where
             chi_1 <= 1 it stays above c and c* = 1, else it crosses c once below 1
    Raises:  ValueError: lengths have no fixed point; as `correlation_map`
    Edge:    1 where lengths die out (q* = 0); names are remembered, functions of the user's own are not
    Source:  Poole et al. 2016, arXiv:1606.05340
    """
    return depth_scales(activation, sigma_w2, sigma_b2).c_star


def depth_scales(activation: str | Function | Activation, sigma_w2: float, sigma_b2: float) -> DepthScales:
    """Return the fixed points of a wide network's maps, and over how many layers it comes there.

    Math:    xi_q = -1 / ln V'(q*), V'(q) = sigma_w2 E phi(sqrt(q) z) phi'(sqrt(q) z) z / sqrt(q);
             xi_c = -1 / ln chi(c*); xi_gradient = 1 / |ln chi_1|
    Raises:  ValueError: lengths have no fixed point; a negative or non-finite variance; an unknown, non-scalar or
             non-finite activation
    Edge:    inf where a factor is 1: on the critical line; 0 where a factor is 0
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, eqs. 7, 9 and 18
    """
    refuse_negative(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if isinstance(activation, str | Activation):
        return _remembered(activation, float(sigma_w2), float(sigma_b2))
    return _scales(resolve(activation), sigma_w2, sigma_b2)


@functools.lru_cache(maxsize=4096)
def _remembered(activation: str | Activation, sigma_w2: float, sigma_b2: float) -> DepthScales:
    return _scales(resolve(activation), sigma_w2, sigma_b2)


def _scales(phi: Activation, sigma_w2: float, sigma_b2: float) -> DepthScales:
    q = resting_length(phi, sigma_w2, sigma_b2)
    at_one = float(chi_1(phi, max(q, SHORTEST), sigma_w2))
    c = 1.0 if at_one <= 1 or q == 0 else _crossing(phi, q, sigma_w2, sigma_b2)
    at_c = at_one if c == 1 else float(chi(phi, c, q, sigma_w2))
    layers = [scale_of(factor) for factor in (float(length_slope(phi, q, sigma_w2)), at_c, at_one)]
    return DepthScales(q, c, at_one, at_c, layers[0], layers[1], abs(layers[2]))


def resting_length(phi: Activation, sigma_w2: float, sigma_b2: float) -> float:
    q = fixed_point(phi, sigma_w2, sigma_b2)
    if math.isinf(q):
        raise ValueError(
            f"activation {phi.name!r}: lengths grow without bound at sigma_w2={sigma_w2:g}, sigma_b2={sigma_b2:g}, so "
            "there is no fixed point; choose a smaller sigma_w2"
        )
    return q


def scale_of(factor: float) -> float:
    """Return over how many layers a factor a layer makes one of 1/e."""
    if factor == 0:
        return 0.0
    return math.inf if abs(factor - 1) < 1e-12 else -1 / math.log(abs(factor))


def length_slope(activation: str | Function | Activation, q: ArrayLike, sigma_w2: float) -> Array:
    """Return the slope of the length map: below 1 a fixed point attracts.

    Math:    V'(q) = sigma_w2 E phi(x) phi'(x) x / q, x = sqrt(q) z
    Shapes:  q: any; the result has its shape
    Raises:  as `correlation_map`
    Edge:    q below 1e-12 counts as 1e-12
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, eq. 7, by parts
    """
    refuse_negative(sigma_w2=sigma_w2)
    phi, lengths = resolve(activation), np.maximum(lengths_of(q), SHORTEST)
    mean = gaussian_mean(phi.name, lambda x: phi.function(x) * phi.slope(x) * x, lengths, phi.kinks)
    return np.asarray(sigma_w2 * mean / lengths)


def _crossing(phi: Activation, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """Return where C crosses c below 1: there (1 - C)/(1 - c), which rises with c, is 1."""

    def above(c: float) -> float:
        return float(1 - correlation_map(phi, c, q, sigma_w2, sigma_b2)) / (1 - c) - 1

    if above(0.0) > -1e-12:
        return 0.0
    last = 1 - 1e-9
    return last if above(last) <= 0 else float(brentq(above, 0.0, last, xtol=1e-13, rtol=1e-13))


def follow_correlation(
    activation: str | Function | Activation, c: ArrayLike, layers: int, sigma_w2: float, sigma_b2: float
) -> Array:
    """Return 1 - c of pairs of inputs in each of so many layers, at the length q*.

    Math:    1 - C(c) = (1 - c) r(sqrt(1 - c)), r a polynomial of degree 24 through the map
    Shapes:  c: (...); the result is (layers + 1, ...), the first that of c itself
    Raises:  ValueError: c outside [0, 1]; a negative number of layers; as `depth_scales`
    Edge:    to about 1e-8 of 1 - c a layer where slopes jump away from 0, else to 1e-12
    Source:  the map as in `correlation_map`
    """
    phi, start = resolve(activation), np.asarray(c, dtype=np.float64)
    if not np.all((start >= 0) & (start <= 1)):
        raise ValueError(f"c: {start[~((start >= 0) & (start <= 1))].flat[0]} is not a correlation from 0 to 1")
    if layers < 0:
        raise ValueError(f"layers: {layers} is negative")
    q = max(depth_scales(phi, sigma_w2, sigma_b2).q_star, SHORTEST)
    total = float(sigma_w2 * activation_second_moment(phi, q) + sigma_b2)

    def ratio(root: Array) -> Array:
        return sigma_w2 * _lost(phi, phi.function, root**2, q) / (total * root**2)

    r = np.polynomial.Chebyshev.interpolate(ratio, DEGREE, domain=[0.0, 1.0])
    found = [1 - start]
    for _ in range(layers):
        found.append(found[-1] * r(np.sqrt(found[-1])))
    return np.stack(found)


def edge_rate(activation: str | Function | Activation, q: float) -> float:
    """Return beta_q: on the critical line, at the length q, 1 - c_l tends to beta_q / l of a smooth activation.

    Math:    beta_q = 2 E phi'(x)^2 / (q E phi''(x)^2), x = sqrt(q) z: with chi_1 = 1 the next 1 - c is
             (1 - c) - C''(1) (1 - c)^2 / 2, C''(1) = sigma_w2 q E phi''^2. phi'' by differences, to about 1e-6
    Raises:  ValueError: q not positive; an activation whose slope jumps, and whose 1 - c_l falls as 1/l^2; as
             `correlation_map`
    Edge:    inf of a straight line, which has all correlations stay
    Source:  Hayou et al. 2019, arXiv:1902.06853, proposition 3
    """
    phi, length = resolve(activation), float(lengths_of(q))
    if length == 0:
        raise ValueError(f"q: {length:g} is not a positive mean square")
    corners = [place for place in kinks_of(phi) if _bends(phi, place, slopes=False)]
    if corners:
        raise ValueError(f"activation {phi.name!r}: its slope jumps at {corners[0]:g}, so 1 - c_l falls as 1/l^2")

    def curvature(x: Tensor) -> Tensor:
        return (phi.function(x + CURVATURE_STEP) - 2 * phi.function(x) + phi.function(x - CURVATURE_STEP)).square()

    curved = float(gaussian_mean(phi.name, curvature, length, phi.kinks)) / CURVATURE_STEP**4
    flat = curved < 1e-18
    return math.inf if flat else 2 * float(slope_second_moment(phi, length)) / (length * curved)


def lengths_of(q: ArrayLike) -> Array:
    lengths = np.asarray(q, dtype=np.float64)
    if not np.all((lengths >= 0) & (lengths <= LARGEST)):
        wrong = lengths[~((lengths >= 0) & (lengths <= LARGEST))].flat[0]
        raise ValueError(f"q: {wrong} is not a mean square from 0 to {LARGEST:g}")
    return lengths


def _apart(c: ArrayLike) -> Array:
    """Return 1 - c of correlations."""
    correlations = np.asarray(c, dtype=np.float64)
    if not np.all(np.abs(correlations) <= 1):
        raise ValueError(f"c: {correlations[~(np.abs(correlations) <= 1)].flat[0]} is not a correlation from -1 to 1")
    return np.asarray(1 - correlations)


def _lost(phi: Activation, function: Function, apart: Array, q: ArrayLike) -> Array:
    """Return E f(u1)^2 - E f(u1) f(u2) for each 1 - c and q, f = phi or its slope."""
    gaps, lengths = np.broadcast_arrays(apart, q)
    found = [_lost_at(phi, function, *pair) for pair in zip(gaps.flat, lengths.flat, strict=True)]
    return np.array(found).reshape(gaps.shape)


def _lost_at(phi: Activation, function: Function, apart: float, q: float) -> float:
    gap = min(apart, 2 - apart)
    blur, scale = math.sqrt(q * gap), np.array([math.sqrt(q * (1 - gap))])
    beside = {abs(kink + sign * blur * edge) for kink in kinks_of(phi) for edge in BLURS for sign in (-1, 1)}
    z, weights = half_line(scale, tuple(beside - {0.0}))
    mean, variance = (part.reshape(2, -1) for part in _blurred(phi, function, scale * np.concatenate([z, -z]), blur))
    if apart <= 1:
        return float((variance * weights).sum())
    return float(((variance + mean * (mean - mean[::-1])) * weights).sum())


def _blurred(phi: Activation, function: Function, x: Array, blur: float) -> tuple[Array, Array]:
    """Return mean and variance of f(x + blur z) for each x, (N,)."""
    places = [np.array(kinks_of(phi))]
    if blur > 1:
        places += [EDGES_X, -EDGES_X]
    if TAIL * blur > EDGES_X[-1]:
        far = np.geomspace(EDGES_X[-1], TAIL * blur, 8)
        places += [far, -far]
    edges_x = (np.concatenate(places) - x[:, None]) / max(blur, 1e-300)
    edges_z = np.broadcast_to(np.concatenate([-EDGES_Z, [0.0], EDGES_Z]), (len(x), 2 * len(EDGES_Z) + 1))
    edges = np.sort(np.clip(np.concatenate([edges_x, edges_z], axis=1), -TAIL, TAIL), axis=1)
    half = np.diff(edges)[..., None] / 2
    z = (edges[:, :-1, None] + half * (1 + LEGENDRE_NODES)).reshape(len(x), -1)
    weights = (half * LEGENDRE_WEIGHTS).reshape(len(x), -1) * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    values = evaluate(phi.name, function, x[:, None] + blur * z)
    mean = (values * weights).sum(axis=1)
    return mean, ((values - mean[:, None]) ** 2 * weights).sum(axis=1)


@functools.lru_cache(maxsize=64)
def kinks_of(phi: Activation) -> tuple[float, ...]:
    """Return where phi, its slope or its curvature jumps, of the places where a kink may be."""
    places = {0.0, *(sign * float(place) for place in (*EDGES_X, *phi.kinks) for sign in (-1, 1))}
    return tuple(place for place in sorted(places) if _bends(phi, place))


def _bends(phi: Activation, place: float, *, slopes: bool = True) -> bool:
    """Return whether phi, or its slope as well, has a corner or a jump at a place."""
    steps = np.array([-2.0, -1.0, 1.0, 2.0]) * 1e-5
    looked_at = [(phi.name, phi.function), (f"{phi.name}, its slope", phi.slope)]
    for name, f in looked_at if slopes else looked_at[:1]:
        if np.ptp(np.diff(evaluate(name, f, place + steps)) / np.diff(steps)) > BENDS:
            return True
    return False
