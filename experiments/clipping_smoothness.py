"""How much faster clipped descent is under (L0, L1)-smoothness: Zhang, He, Sra & Jadbabaie 2020, arXiv:1905.11881.

(L0, L1)-smooth: |f''(x)| <= L0 + L1 |f'(x)|. The function of the paper's lower bound, with L0 = L1 = 1, is a parabola
with exponential arms: f' = x for |x| <= 1, and sign(x) e^(|x| - 1) beyond. A path starts at x_0, where the gradient is
M = e^(x_0 - 1), the largest on the way, and ends where |f'| <= EPSILON.

A fixed step has to be below 2 x_0 / M, else the first one leads further away, and from there still further. Within the
parabola a step eta takes log(1/EPSILON) / eta to the end: about M log(x_0/EPSILON) / (2 x_0) steps in all, of order
M / log M. Clipped descent, eta = 1/2 with the norm clipped to 1, goes 1/2 a step down the arm and then halves the rest:
2 (x_0 - 1) + log2(1/EPSILON) steps, of order log M. Neither number is tuned to M, while the best fixed step of a fine
grid is chosen anew for every start. The ratio grows beyond any bound.

The control is the parabola alone, which is smooth: there one step does for all starts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars

Array = NDArray[np.float64]

FUNCTIONS = ("exponential", "parabola")
SIZES = (4.0, 5.5, 7.0, 8.5, 10.0, 11.5)
"""log M; a start is up to JITTER further out."""
JITTER = 0.5
EPSILON = 1e-3
STEP, THRESHOLD = 0.5, 1.0
GRID = 2.0 ** -np.arange(0.0, 18.0, 0.25)
"""The fixed steps that are tried: a factor of 1.19 apart."""
MOST = 200_000


def slope(function: str, x: Array) -> Array:
    """Return f'."""
    if function == "parabola":
        return x
    with np.errstate(over="ignore"):
        arms: Array = np.sign(x) * np.exp(np.abs(x) - 1)
    return np.where(np.abs(x) <= 1, x, arms)


def count_fixed(function: str, start: Array) -> Array:
    """Return the fewest updates with a fixed step of GRID from each start to the end, (R,); NaN where none gets there.

    A path that leads further out than it began is given up: there every next step is longer.
    """
    fewest = np.full(len(start), np.nan)
    of = np.repeat(np.arange(len(start)), len(GRID))
    x, steps = start[of], np.tile(GRID, len(start))
    for updates in range(MOST):
        gradient = slope(function, x)
        arrived = np.abs(gradient) <= EPSILON
        if arrived.any():
            fewest[np.unique(of[arrived])] = updates
            left = np.isnan(fewest[of])
            of, x, steps, gradient = of[left], x[left], steps[left], gradient[left]
        if not len(of):
            break
        x = x - steps * gradient
        if updates < 100:  # by then what diverges has
            inside = np.abs(x) <= np.abs(start[of])
            of, x, steps = of[inside], x[inside], steps[inside]
    return fewest


def count_clipped(function: str, start: Array) -> Array:
    """Return the updates of clipped descent from each start to the end, (R,)."""
    counts, x = np.zeros(len(start)), start
    for _ in range(MOST):
        gradient = slope(function, x)
        moving = np.abs(gradient) > EPSILON
        if not moving.any():
            break
        counts += moving
        x = x - np.where(moving, STEP * np.clip(gradient, -THRESHOLD, THRESHOLD), 0.0)
    return counts


def compute(seeds: int) -> polars.DataFrame:
    """Count updates from a start a seed and size on either function.

    Returns: a row for each seed, function, size and method (fixed, clipped): start, log_m, updates, ratio (of fixed to
             clipped)
    """
    import polars

    shifts = np.array([JITTER * np.random.default_rng([seed, len(SIZES)]).random() for seed in range(seeds)])
    rows: list[dict[str, Any]] = []
    for function in FUNCTIONS:
        for size in SIZES:
            start = 1 + size + shifts
            counts = {"fixed": count_fixed(function, start), "clipped": count_clipped(function, start)}
            ratio = counts["fixed"] / counts["clipped"]
            for method, updates in counts.items():
                rows += [
                    {"seed": k, "function": function, "size": size, "method": method, "start": start[k]}
                    | {"log_m": start[k] - 1, "updates": updates[k], "ratio": ratio[k]}
                    for k in range(seeds)
                ]
    return polars.DataFrame(rows)


def expected_fixed(log_m: float) -> float:
    """Return about how many updates the best fixed step takes, as the module says."""
    start = 1 + log_m
    return math.exp(log_m) * math.log(start / EPSILON) / (2 * start)


def expected_clipped(log_m: float) -> float:
    """Return about how many updates clipped descent takes, as the module says."""
    return log_m * 1 / STEP + math.log2(1 / EPSILON)
