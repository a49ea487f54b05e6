"""Arithmetic: what stands between the layers of a model, number by number; and the product of matrices.

Where a forward broadcasts, its gradient is summed back to the argument's shape. A constant may be a number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpexp.rules.samples import Samples, samples_from, samples_of
from bpexp.rules.table import Rule, Sample, elementwise

REAL_BROADCAST = samples_of(
    ("batch", [(2, 3), (2, 3)], ()),
    ("row", [(2, 3), (3,)], ()),
    ("outer", [(2, 1, 1), (2, 1, 3)], ()),
    ("scalar", [(), (2, 3)], ()),
    ("empty", [(0, 3), (3,)], ()),
)
BROADCAST = samples_from(
    REAL_BROADCAST,
    samples_of(("number", [(2, 3)], (2.5,))),
    samples_of(("number-first", [(2, 3)], (2.5,)), constants_first=True),
    samples_of(("complex", [(2, 3), (3,)], ()), ("complex-number", [(2, 3)], (1 + 2j,)), dtype=torch.complex128),
)
REAL_MAP = samples_of(("batch", [(3, 2)], ()), ("scalar", [()], ()), ("empty", [(0, 3)], ()))
COMPLEX_MAP = samples_of(("complex", [(3, 2)], ()), dtype=torch.complex128)
MAP = samples_from(REAL_MAP, COMPLEX_MAP)
PRODUCTS = (
    ("batch", [(4, 2), (2, 3)], ()),
    ("vectors", [(3,), (3,)], ()),
    ("matrix-vector", [(2, 3), (3,)], ()),
    ("vector-matrix", [(3,), (3, 2)], ()),
    ("networks", [(2, 1, 3), (2, 3, 2)], ()),
    ("stack-matrix", [(2, 1, 3), (3, 2)], ()),
    ("matrix-stack", [(4, 2), (2, 2, 1)], ()),
    ("stack-vector", [(2, 2, 3), (3,)], ()),
    ("vector-stack", [(2,), (2, 2, 3)], ()),
    ("broadcast", [(2, 1, 1, 2), (3, 2, 1)], ()),
    ("empty", [(0, 3), (3, 2)], ()),
)


def edges(*args: list[float] | float | None, name: str = "edges") -> Samples:
    """One sample of numbers where a derivative is infinite, missing or a convention; a list becomes a tensor."""
    made = tuple(torch.tensor(arg, dtype=torch.float64) if isinstance(arg, list) else arg for arg in args)
    return lambda generator: [Sample(name, made, kink=True)]


def moved(maker: Samples, move: Callable[[Tensor], Tensor]) -> Samples:
    """The samples with each tensor moved to where a function is defined, or smooth."""

    def make(generator: torch.Generator) -> Sequence[Sample]:
        return [
            Sample(sample.name, tuple(move(arg) if isinstance(arg, Tensor) else arg for arg in sample.args))
            for sample in maker(generator)
        ]

    return make


def away_from_zero(x: Tensor) -> Tensor:
    return x + x.sgn()


def above_zero(x: Tensor) -> Tensor:
    return x.abs() + 0.5


TIES = edges([1.0, 1.0, 0.0, math.inf, math.nan, 1.0], [2.0, 1.0, -0.0, math.inf, 1.0, math.nan], name="ties")
POSITIVE_MAP = samples_from(moved(REAL_MAP, above_zero), COMPLEX_MAP, edges([0.0, math.inf, -1.0, math.nan]))
POWERS = samples_from(
    moved(samples_of(("batch", [(2, 3), (2, 3)], ()), ("outer", [(2, 1), (1, 3)], ())), above_zero),
    moved(samples_of(("number", [(2, 3)], (-1.5,))), above_zero),
    samples_of(("square", [(2, 3)], (2,))),
    samples_of(("base", [(2, 3)], (2.5,)), constants_first=True),
    samples_of(("complex", [(2, 3), (2, 3)], ()), ("complex-number", [(2, 3)], (1 + 2j,)), dtype=torch.complex128),
    edges([0.0, 0.0, 2.0], [1.0, 2.0, 0.0]),
    edges([0.0, 2.0, math.inf], 0, name="zero"),
    edges(0.0, [-1.0, 0.0, 2.0], name="base-zero"),
    samples_of(("integers", [(2, 3)], (torch.tensor([1, 2, 3]),)), constants_first=True),
)


def add_tangent(x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for tangent in (x_tangent, other_tangent):
        if tangent is not None:
            total = total + tangent
    return total


def subtract_tangent(x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor) -> Tensor:
    return add_tangent(x_tangent, None if other_tangent is None else -other_tangent, y)


def multiply_tangent(
    x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor, x: Tensor, other: Tensor | float
) -> Tensor:
    return add_tangent(
        None if x_tangent is None else x_tangent * other, None if other_tangent is None else other_tangent * x, y
    )


def divide_tangent(x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor, other: Tensor | float) -> Tensor:
    return add_tangent(
        None if x_tangent is None else x_tangent / other,
        None if other_tangent is None else -(other_tangent * (y / other)),
        y,
    )


def conjugate(value: Tensor | float) -> Tensor | float:
    return value.conj() if isinstance(value, Tensor) else value.conjugate()


def pow_slope(x: Tensor, exponent: Tensor | float) -> Tensor:
    """Return e x^(e - 1); where e = 0 it is 0, whatever x."""
    if isinstance(exponent, Tensor):
        return torch.where(exponent == 0, 0, exponent * x.pow(exponent - 1))
    return exponent * x.pow(exponent - 1 if exponent else 0)


def pow_exponent_slope(y: Tensor, x: Tensor | float) -> Tensor:
    """Return x^e log x; 0 where x = 0, unless e < 0."""
    base = x.to(y) if isinstance(x, Tensor) else torch.full_like(y, x)
    return torch.where((base == 0) & y.isfinite(), 0, y * torch.log(base))


def pow_tangent(
    x_tangent: Tensor | None,
    exponent_tangent: Tensor | None,
    y: Tensor,
    x: Any,
    exponent: Any,
) -> Tensor:
    return add_tangent(
        None if x_tangent is None else x_tangent * pow_slope(x, exponent),
        None if exponent_tangent is None else exponent_tangent * pow_exponent_slope(y, x),
        y,
    )


def pow_reference(x: Any, exponent: Any) -> Tensor:
    """torch.pow; but torch's derivative of x^0 is 0 without a graph, and here it has one."""
    return 1 + 0 * torch.tanh(x) if isinstance(exponent, int) and exponent == 0 else torch.pow(x, exponent)


def abs_tangent(x_tangent: Tensor, x: Tensor) -> Tensor:
    return (x_tangent.conj() * x.sgn()).real


def share_of_larger(x: Tensor, other: Tensor) -> Tensor:
    """Return 1 where x is larger than the other or one of them is NaN, 1/2 where they are equal, else 0."""
    return 1 - ((x < other).to(x) + (x <= other)) / 2


def clamp_slope(x: Tensor, min: float | None, max: float | None) -> Tensor:
    """Return whether x lies from min to max, both included: the slope is 1 there, else 0."""
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    return (x >= low) & (x <= high)


def as_matrix(x: Tensor, dim: int) -> Tensor:
    """X with at least two dimensions: of a vector, one of size 1 is put at `dim`."""
    return x.unsqueeze(dim) if x.dim() == 1 else x


def as_product(grad: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """The gradient with the dimensions back that a vector's product lacks."""
    grad = grad.unsqueeze(-1) if other.dim() == 1 else grad
    return grad.unsqueeze(-2) if x.dim() == 1 else grad


def matmul_grad_x(grad: Tensor, x: Tensor, other: Tensor) -> Tensor:
    grads = as_product(grad, x, other) @ as_matrix(other, 1).mH
    return grads.sum_to_size(x.shape)


def matmul_grad_other(grad: Tensor, x: Tensor, other: Tensor) -> Tensor:
    grad, rows = as_product(grad, x, other), as_matrix(x, 0)
    if other.dim() <= 2:  # one product of all rows, where a stack of products would have to be added up
        grad, rows = grad.flatten(0, -2), rows.flatten(0, -2)
    return (rows.mH @ grad).sum_to_size(as_matrix(other, 1).shape).reshape(other.shape)


add = Rule(
    "add",
    lambda x, other: x + other,
    {
        "x": lambda grad, x_shape: grad.sum_to_size(x_shape),
        "other": lambda grad, other_shape: grad.sum_to_size(other_shape),
    },
    torch.add,
    BROADCAST,
    "the sum rule",
    jvp=add_tangent,
)
subtract = Rule(
    "subtract",
    lambda x, other: x - other,
    {
        "x": lambda grad, x_shape: grad.sum_to_size(x_shape),
        "other": lambda grad, other_shape: -grad.sum_to_size(other_shape),
    },
    torch.subtract,
    BROADCAST,
    "the sum rule",
    jvp=subtract_tangent,
)
multiply = Rule(
    "multiply",
    lambda x, other: x * other,
    {
        "x": lambda grad, other, x_shape: (grad * conjugate(other)).sum_to_size(x_shape),
        "other": lambda grad, x, other_shape: (grad * conjugate(x)).sum_to_size(other_shape),
    },
    torch.multiply,
    BROADCAST,
    "the product rule",
    jvp=multiply_tangent,
)
divide = Rule(
    "divide",
    lambda x, other: x / other,
    {
        "x": lambda grad, other, x_shape: (grad / conjugate(other)).sum_to_size(x_shape),
        "other": lambda grad, x, other, other_shape: -(grad * (x / other / other).conj()).sum_to_size(other_shape),
    },
    torch.divide,
    moved(BROADCAST, away_from_zero),
    "the quotient rule",
    jvp=divide_tangent,
    widen=True,
)
negative = Rule(
    "negative",
    lambda x: -x,
    {"x": lambda grad: -grad},
    torch.negative,
    MAP,
    "the sum rule",
    jvp=lambda x_tangent: -x_tangent,
)
pow = Rule(
    "pow",
    lambda x, exponent: torch.pow(x, exponent),
    {
        "x": lambda grad, x, exponent, x_shape: (grad * pow_slope(x, exponent).conj()).sum_to_size(x_shape),
        "exponent": lambda grad, y, x, exponent_shape: (grad * pow_exponent_slope(y, x).conj()).sum_to_size(
            exponent_shape
        ),
    },
    pow_reference,
    POWERS,
    "the power rule, and the derivative of the exponential",
    jvp=pow_tangent,
    autocast="float32 on cuda",
    widen=True,
)
exp = elementwise(
    "exp",
    lambda x: torch.exp(x),
    lambda y: y,
    torch.exp,
    samples_from(MAP, edges([math.nan, math.inf, -math.inf, 800.0, -800.0])),
    "definition",
    autocast="float32 on cuda",
)
log = elementwise(
    "log",
    lambda x: torch.log(x),
    lambda x: x.reciprocal(),
    torch.log,
    POSITIVE_MAP,
    "the derivative of an inverse",
    autocast="float32 on cuda",
)
sqrt = elementwise(
    "sqrt",
    lambda x: torch.sqrt(x),
    lambda y: 0.5 / y,
    torch.sqrt,
    POSITIVE_MAP,
    "the derivative of an inverse",
)
rsqrt = elementwise(
    "rsqrt",
    lambda x: torch.rsqrt(x),
    lambda y: -0.5 * y * y * y,
    torch.rsqrt,
    POSITIVE_MAP,
    "the power rule",
    autocast="float32 on cuda",
)
square = elementwise(
    "square",
    lambda x: torch.square(x),
    lambda x: 2 * x,
    torch.square,
    samples_from(MAP, edges([0.0, math.inf, math.nan])),
    "the power rule",
)
abs = Rule(
    "abs",
    lambda x: torch.abs(x),
    {"x": lambda grad, x: grad * x.sgn()},
    torch.abs,
    samples_from(MAP, edges([0.0, -0.0, math.inf, -math.inf, math.nan])),
    "definition; at 0 torch's slope 0",
    jvp=abs_tangent,
)
maximum = Rule(
    "maximum",
    lambda x, other: torch.maximum(x, other),
    {
        "x": lambda grad, x, other, x_shape: (grad * share_of_larger(x, other)).sum_to_size(x_shape),
        "other": lambda grad, x, other, other_shape: (grad * share_of_larger(other, x)).sum_to_size(other_shape),
    },
    torch.maximum,
    samples_from(REAL_BROADCAST, TIES),
    "definition; where both are the largest, torch's equal parts",
    jvp=lambda x_tangent, other_tangent, x, other: (
        x_tangent * share_of_larger(x, other) + other_tangent * share_of_larger(other, x)
    ),
)
minimum = Rule(
    "minimum",
    lambda x, other: torch.minimum(x, other),
    {
        "x": lambda grad, x, other, x_shape: (grad * share_of_larger(other, x)).sum_to_size(x_shape),
        "other": lambda grad, x, other, other_shape: (grad * share_of_larger(x, other)).sum_to_size(other_shape),
    },
    torch.minimum,
    samples_from(REAL_BROADCAST, TIES),
    "definition; where both are the smallest, torch's equal parts",
    jvp=lambda x_tangent, other_tangent, x, other: (
        x_tangent * share_of_larger(other, x) + other_tangent * share_of_larger(x, other)
    ),
)
clamp = elementwise(
    "clamp",
    lambda x, min, max: torch.clamp(x, min, max),
    lambda x, min, max: clamp_slope(x, min, max),
    torch.clamp,
    samples_from(
        samples_of(("batch", [(5, 3)], (-0.5, 1.0)), ("empty", [(0, 3)], (-0.5, 1.0)), ("none", [(5, 3)], (1.0, -0.5))),
        edges([-1.0, -0.5, 0.0, 1.0, 2.0, math.nan, math.inf], -0.5, 1.0),
        edges([-1.0, -0.5, 2.0, math.inf], -0.5, None, name="from-below"),
        edges([-1.0, 1.0, 2.0, -math.inf], None, 1.0, name="from-above"),
    ),
    "definition; at its bounds torch's slope 1",
)
matmul = Rule(
    "matmul",
    lambda x, other: torch.matmul(x, other),
    {"x": matmul_grad_x, "other": matmul_grad_other},
    torch.matmul,
    samples_from(samples_of(*PRODUCTS), samples_of(("complex", [(2, 3), (3, 2)], ()), dtype=torch.complex128)),
    "the product rule",
    jvp=lambda x_tangent, other_tangent, x, other: x_tangent @ other + x @ other_tangent,
    autocast="lower",
)
