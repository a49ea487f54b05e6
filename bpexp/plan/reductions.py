"""Norms and sums that a formula asks for in float64, those of float32 in a quarter of torch's time.

They are right to 1e-5: a norm of itself, a sum of the sum of the magnitudes, however much of that cancels.

A dot product of numpy's BLAS reads the numbers once, in their own type. Where it cannot say what float64 would, it is
taken again for that one result: another's bits do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp.plan.program import Operator

Numbers = NDArray[np.float32] | NDArray[np.float64]

SAFE = {"float32": (1e-15, 1e15), "float64": (0.0, math.inf)}
"""Norms whose squares a type adds up to 1e-5: what is rounded to zero, or loses bits, does not count."""

UP, DOWN = (np.float32(2.0**power) for power in (100, -100))
"""They bring numbers whose norm is not SAFE to where it is, to the last bit."""

LONGEST = 2**13
"""Numbers that are added up in a row: to 1e-5, be they all equal. More are cut into rows."""

SHORTEST = 2**10
"""Fewer numbers are no row of several."""

AXES = {"linalg_vector_norm": 2, "sum": 1, "amax": 1}
"""Operators that reduce, and which of their arguments says along which axes."""


def fast_reduction(operator: Operator, output: Tensor, x: Tensor) -> Callable[[], None] | None:
    """Return the call that puts the 2-norm, or the sum, of some axes of x into output.

    None:  it is no such operator, or x and output do not lie in memory as it needs them
    """
    dims, usual = axes_of(operator), x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if not dims or operator.name not in CALLS or not usual or operator.kwargs.get("dtype") != torch.float64:
        return None
    size, left = math.prod(x.shape[dim] for dim in dims), [dim for dim in range(x.dim()) if dim not in dims]
    x = x.detach().permute(*left, *dims)
    if output.shape != x.shape[: len(left)] or not output.is_contiguous() or x.numel() == 0:
        return None
    rows = next(rows for rows in range(-(-size // LONGEST), size + 1) if size % rows == 0)
    if rows > 1 and size // rows < SHORTEST:
        return None  # a length with few divisors: one call for each of many rows is slower than torch
    parts = x.reshape(-1, rows, size // rows)
    if parts.data_ptr() != x.data_ptr():
        return None
    return CALLS[operator.name](parts.numpy(), output.detach().view(-1).numpy())


def axes_of(operator: Operator) -> tuple[int, ...]:
    """Return the axes that an operator reduces to their sum, 2-norm or maximum, in their order; none if it does not."""
    place = AXES.get(operator.name)
    if place is None or len(operator.args) <= place or (place == 2 and operator.args[1] != 2):
        return ()
    dims: Sequence[int] = operator.args[place] or ()
    return tuple(sorted(dim % max(operator.args[0].dim(), 1) for dim in dims))


def dot_call(x: Numbers, other: Numbers, output: NDArray[np.float64]) -> Callable[[], Any]:
    """Return the call that puts the products of x, (M, rows, n), and another, row by row, into their sums, (M,)."""
    if x.shape[1] == 1:
        return partial(np.vecdot, x[:, 0], other[..., 0, :], output)
    parts = np.empty(x.shape[:2], x.dtype)

    def dot() -> None:
        np.vecdot(x, other, parts)
        np.add.reduce(parts, axis=1, dtype=np.float64, out=output)

    return dot


def norm_call(x: Numbers, output: NDArray[np.float64]) -> Callable[[], None]:
    """Return the call that puts the 2-norms of x, (M, rows, n), into output, (M,)."""
    dot, sqrt, (low, high) = dot_call(x, x, output), np.sqrt, SAFE[x.dtype.name]

    def norm() -> None:
        dot()
        sqrt(output, output)
        norms = output.tolist()
        if not (low <= min(norms) and max(norms) <= high):  # so it is with NaN in front, which stays
            for which, factor in ((output < low, UP), (output > high, DOWN)):
                if which.any():
                    scaled = x[which]
                    scaled *= factor
                    output[which] = sqrt(np.vecdot(scaled, scaled).sum(1, dtype=np.float64)) / np.float64(factor)

    return norm


def sum_call(x: Numbers, output: NDArray[np.float64]) -> Callable[[], None]:
    """Return the call that puts the sums of x, (M, rows, n), into output, (M,)."""
    dot, isfinite = dot_call(x, np.ones((1, x.shape[2]), x.dtype), output), math.isfinite

    def add() -> None:
        dot()
        if not isfinite(sum(output.tolist())):
            which = ~np.isfinite(output)
            output[which] = x[which].sum((1, 2), dtype=np.float64)

    return add


CALLS = {"linalg_vector_norm": norm_call, "sum": sum_call}
