"""Phase diagrams: where in the plane of weight and bias variance gradients vanish, explode, or do neither.

Letters: q = mean square of a pre-activation, phi = activation, sigma_w2 = fan_in * Var W, sigma_b2 = Var b; M(q) =
E phi(sqrt(q) z)^2, z ~ N(0, 1).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bpexp.activations import Activation, Function
from bpexp.theory.criticality import first_attracting
from bpexp.theory.moments import Array, resolve
from bpexp.theory.tables import POINTS, STEP, TABLED, Table, moment_table

NEWTON = 4  # steps between two points of the table
SAME = 1e-9  # a weight variance this close to what q = 1 needs leaves it where it is
TINY = 1e-300
MIDDLE = POINTS // 2  # where q = 1


@dataclass(frozen=True)
class PhaseDiagram:
    """What becomes of lengths and gradients for every bias variance (rows) and weight variance (columns).

    q_star: where lengths come to rest, 0 where they die out and inf where they grow without bound
    chi_1:  factor a layer of the mean square gradient at that length
    """

    sigma_w2: Array
    sigma_b2: Array
    q_star: Array
    chi_1: Array

    @property
    def phase(self) -> Array:
        """-1 where gradients vanish (inputs come together, "ordered"), 1 where they explode ("chaotic"), 0 between."""
        return np.where(np.abs(self.chi_1 - 1) < 1e-9, 0.0, np.sign(self.chi_1 - 1))

    @property
    def xi_gradient(self) -> Array:
        """Layers over which a mean square gradient changes by a factor e; inf on the critical line."""
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.abs(np.log(self.chi_1)))


def critical_line(activation: str | Function | Activation, sigma_b2: ArrayLike) -> Array:
    """Return the weight variance at which an activation is critical, for each bias variance; NaN where none is.

    Math:    as `critical`
    Shapes:  sigma_b2: any; the result has its shape
    Raises:  ValueError: a negative or non-finite variance; an unknown, non-scalar or non-finite activation
    Source:  Poole et al. 2016, arXiv:1606.05340, figure 1
    """
    phi, variances = resolve(activation), variances_of("sigma_b2", sigma_b2)
    found = [first_attracting(phi, math.sqrt(variance)) for variance in variances.flat]
    gains = [gain if isinstance(gain, float) else math.nan for gain in found]
    return np.square(np.array(gains, dtype=np.float64)).reshape(variances.shape)


def phase_diagram(activation: str | Function | Activation, sigma_w2: ArrayLike, sigma_b2: ArrayLike) -> PhaseDiagram:
    """Return the phases of an activation over weight variances x bias variances.

    Math:    q is a fixed point where sigma_w2 = (q - sigma_b2) / M(q). Lengths that start at q = 1 rise until this is
             as large as sigma_w2, or fall until it is as small: a search in its running maximum and minimum
    Shapes:  sigma_w2: (W,); sigma_b2: (B,); what is found is (B, W)
    Raises:  ValueError: no variance, or a negative or non-finite one; an unknown, non-scalar or non-finite activation
    Edge:    by `moment_table`, to about 1e-7 of q* where V' is not close to 1; q* below 1e-10 or above 1e10 is 0 or
             inf; two fixed points closer together than 2 % may be taken for none
    Source:  Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232
    """
    weights, biases = (np.atleast_1d(variances_of(k, v)) for k, v in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)))
    if not (weights.size and biases.size):
        raise ValueError("sigma_w2, sigma_b2: neither may be empty")
    table = moment_table(activation)
    places = np.stack([_places(table, weights, bias) for bias in biases])
    q = _refined(table, weights, biases[:, None], places)
    return PhaseDiagram(weights, biases, q, weights * table.slope_second_moment(q))


def _places(table: Table, sigma_w2: Array, sigma_b2: float) -> Array:
    """Return behind which point of the table q* is: -1 and POINTS - 1 stand for 0 and inf."""
    needed = (TABLED - sigma_b2) / np.maximum(table.values[0], TINY)
    rising, falling = np.maximum.accumulate(needed[MIDDLE:]), np.minimum.accumulate(needed[MIDDLE::-1])
    upwards = MIDDLE - 1 + np.searchsorted(rising, sigma_w2)
    downwards = MIDDLE - np.searchsorted(-falling, -sigma_w2)
    stays = np.abs(needed[MIDDLE] - sigma_w2) < SAME
    return np.where(stays, MIDDLE, np.where(sigma_w2 > needed[MIDDLE], upwards, downwards))


def _refined(table: Table, sigma_w2: Array, sigma_b2: Array, places: Array) -> Array:
    """Return q* by Newton's steps between two points of the table."""
    inside = np.clip(places, 0, POINTS - 2)
    a, b, c, d = np.moveaxis(table.cubics[0][inside], -1, 0) * sigma_w2
    low = TABLED[inside]
    t = np.where(places == MIDDLE, 0.0, 0.5)
    for _ in range(NEWTON):
        q = low * np.exp(STEP * t)
        growth = a + t * (b + t * (c + t * d)) + sigma_b2 - q
        slope = b + t * (2 * c + t * 3 * d) - STEP * q
        t = np.clip(t - growth / np.where(slope == 0, -TINY, slope), 0, 1)
    q = low * np.exp(STEP * t)
    return np.where(places < 0, 0.0, np.where(places > POINTS - 2, np.inf, q))


def variances_of(name: str, values: ArrayLike) -> Array:
    variances = np.asarray(values, dtype=np.float64)
    if not np.all((variances >= 0) & (variances < math.inf)):
        wrong = variances[~((variances >= 0) & (variances < math.inf))].flat[0]
        raise ValueError(f"{name}: {wrong} is not a finite number of at least 0")
    return variances
