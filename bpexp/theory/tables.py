"""Moments of an activation, tabulated over log q: what asks for a hundred thousand of them gets them at once.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), x = sqrt(q) z, phi = activation.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bpexp.activations import Activation, Function
from bpexp.theory.moments import EDGES_X, LEGENDRE_NODES, LEGENDRE_WEIGHTS, TAIL, Array, evaluate, resolve

POINTS = 1025  # of which the middle one is q = 1
LONGEST = 1e10  # lengths beyond it or its inverse count as these
LOG_LENGTHS = math.log(LONGEST) * np.linspace(-1, 1, POINTS)
TABLED = np.exp(LOG_LENGTHS)
STEP = float(LOG_LENGTHS[1] - LOG_LENGTHS[0])
RATIO = 1.4  # of a panel's ends


@dataclass(frozen=True)
class Table:
    """E phi^2 and E phi'^2 at POINTS lengths, with their slopes over log q, (4, POINTS)."""

    name: str
    values: Array

    def second_moment(self, q: ArrayLike) -> Array:
        """Return E phi(sqrt(q) z)^2, to about 1e-8."""
        return self._between(q, 0)

    def slope_second_moment(self, q: ArrayLike) -> Array:
        """Return E phi'(sqrt(q) z)^2, to about 1e-8."""
        return self._between(q, 1)

    def _between(self, q: ArrayLike, row: int) -> Array:
        """Return a moment by Hermite's cubic between two points."""
        with np.errstate(divide="ignore"):
            at = (np.clip(np.log(q), LOG_LENGTHS[0], LOG_LENGTHS[-1]) - LOG_LENGTHS[0]) / STEP
        place = np.minimum(at.astype(np.int64), POINTS - 2)
        t = at - place
        cubic = self.cubics[row][place]
        return np.asarray(cubic[..., 0] + t * (cubic[..., 1] + t * (cubic[..., 2] + t * cubic[..., 3])))

    @functools.cached_property
    def cubics(self) -> Array:
        """The coefficients of each moment between the points, (2, POINTS - 1, 4)."""
        value, slope = self.values[:2], self.values[2:] * STEP
        rise, first, last = np.diff(value), slope[:, :-1], slope[:, 1:]
        return np.stack([value[:, :-1], first, 3 * rise - 2 * first - last, first + last - 2 * rise], axis=-1)


def moment_table(activation: str | Function | Activation) -> Table:
    """Return an activation's moments, tabulated for lengths from 1e-10 to 1e10.

    Math:    E f(x) = integral of (f(x) + f(-x)) exp(-x^2 / (2q)) / sqrt(2 pi q) over x > 0, by Gauss-Legendre on panels
             that have kinks at their ends and are the same for all q; its slope over log q is E f(x) (x^2/q - 1) / 2
    Raises:  ValueError: an unknown, non-scalar or non-finite activation
    Edge:    kinks as for `gaussian_mean`; names are remembered, functions of the user's own are not
    Source:  derived here
    """
    return _remembered(activation) if isinstance(activation, str) else _tabulate(resolve(activation))


@functools.lru_cache(maxsize=64)
def _remembered(activation: str) -> Table:
    return _tabulate(resolve(activation))


def _tabulate(phi: Activation) -> Table:
    x, weights, slopes = _quadrature(phi.kinks)
    both = np.concatenate([x, -x])
    values = evaluate(phi.name, phi.function, both) ** 2, evaluate(f"{phi.name}, its slope", phi.slope, both) ** 2
    folded = np.stack([value[: len(x)] + value[len(x) :] for value in values], axis=1)
    return Table(phi.name, np.concatenate([(weights @ folded).T, (slopes @ folded).T]))


@functools.lru_cache(maxsize=4)
def _quadrature(kinks: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """Return nodes x > 0, (N,), and for each length their weights of a mean and of its slope, (POINTS, N)."""
    smallest, largest = 1 / math.sqrt(LONGEST) / 4, TAIL * math.sqrt(LONGEST)
    panels = math.ceil(math.log(largest / smallest, RATIO))
    edges = np.unique(np.concatenate([[0.0], np.geomspace(smallest, largest, panels), EDGES_X, np.abs(kinks)]))
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half * (1 + LEGENDRE_NODES)).ravel()
    q = TABLED[:, None]
    squares = x**2 / q
    weights = (half * LEGENDRE_WEIGHTS).ravel() * np.exp(-squares / 2) / np.sqrt(2 * math.pi * q)
    return x, weights, weights * (squares - 1) / 2
