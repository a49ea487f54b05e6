"""Reductions over dimensions: their gradient is spread over what was reduced."""

import torch
from torch import Tensor

from bpexp.rules.samples import samples_from, samples_of
from bpexp.rules.table import Rule, Sample

Dims = int | tuple[int, ...] | None

REDUCE = (
    ("batch", [(5, 3)], (0, False)),
    ("all", [(5, 3)], (None, False)),
    ("dims", [(2, 3, 4)], ((0, -1), False)),
    ("keepdim", [(2, 3, 4)], ((1, 2), True)),
    ("all-keepdim", [(2, 3)], (None, True)),
    ("scalar", [()], (0, False)),
    ("no-dims", [(5, 3)], ((), False)),
    ("vector", [(4,)], (-1, False)),
    ("empty", [(0, 3)], (1, False)),
)
EXTREMES = (
    ("batch", [(2, 3)], (0, False)),
    ("dims", [(2, 2, 3)], ((0, -1), True)),
    ("all", [(2, 3)], ((), False)),
    ("scalar", [()], (0, False)),
    ("empty", [(0, 3)], (1, False)),
)
TIES = [
    Sample(name, (torch.tensor([[1.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=torch.float64), dim, False), kink=True)
    for name, dim in (("ties", 1), ("ties-of-all", ()))
]


def kept_shape(shape: torch.Size, dim: Dims) -> list[int]:
    """The shape that a reduction over `dim` has with keepdim; None and () stand for all."""
    if dim is None or dim == ():
        return [1] * len(shape)
    dims = {d % max(len(shape), 1) for d in ((dim,) if isinstance(dim, int) else dim)}
    return [1 if d in dims else size for d, size in enumerate(shape)]


def spread(grad: Tensor, x_shape: torch.Size, dim: Dims) -> Tensor:
    return grad.reshape(kept_shape(x_shape, dim)).expand(x_shape)


def shared_out(grad: Tensor, y: Tensor, x: Tensor, dim: Dims) -> Tensor:
    """The gradient of an extreme value, in equal parts to all that have it."""
    hit = x == spread(y, x.shape, dim)
    return spread(grad, x.shape, dim) * hit / hit.sum(dim, keepdim=True)


def shared_tangent(x_tangent: Tensor, y: Tensor, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    return (x_tangent * shared_out(torch.ones_like(y), y, x, dim)).sum(dim, keepdim)


def deviation(x: Tensor, y: Tensor, dim: Dims, correction: float) -> Tensor:
    """Return 2 (x - mean) / (n - correction), where n numbers were reduced to one; n = correction gives NaN."""
    return (x - x.mean(dim, keepdim=True)) * 2 / (x.numel() / max(y.numel(), 1) - correction)


def var_tangent(x_tangent: Tensor, y: Tensor, x: Tensor, dim: Dims, correction: float, keepdim: bool) -> Tensor:
    return (x_tangent.conj() * deviation(x, y, dim, correction)).sum(dim, keepdim).real


sum = Rule(
    "sum",
    lambda x, dim, keepdim: x.sum(dim, keepdim),
    {"x": lambda grad, x_shape, dim: spread(grad, x_shape, dim)},
    torch.sum,
    samples_of(*REDUCE),
    "the sum rule",
    jvp=lambda x_tangent, dim, keepdim: x_tangent.sum(dim, keepdim),
    autocast="float32 on cuda",
)
mean = Rule(
    "mean",
    lambda x, dim, keepdim: x.mean(dim, keepdim),
    {"x": lambda grad, x_shape, dim: spread(grad / (x_shape.numel() / max(grad.numel(), 1)), x_shape, dim)},
    torch.mean,
    samples_of(*REDUCE),
    "the sum rule",
    jvp=lambda x_tangent, dim, keepdim: x_tangent.mean(dim, keepdim),
)
amax = Rule(
    "amax",
    lambda x, dim, keepdim: torch.amax(x, dim, keepdim),
    {"x": shared_out},
    torch.amax,
    samples_from(samples_of(*EXTREMES), lambda generator: TIES),
    "definition; where several are the largest, torch's equal parts",
    jvp=shared_tangent,
)
amin = Rule(
    "amin",
    lambda x, dim, keepdim: torch.amin(x, dim, keepdim),
    {"x": shared_out},
    torch.amin,
    samples_from(samples_of(*EXTREMES), lambda generator: TIES),
    "definition; where several are the smallest, torch's equal parts",
    jvp=shared_tangent,
)
VARIANCES = (
    ("batch", [(3, 2)], (0, 1, False)),
    ("all", [(2, 3)], (None, 0, False)),
    ("dims", [(2, 2, 3)], ((0, -1), 1, False)),
    ("keepdim", [(2, 2, 3)], ((1, 2), 2.5, True)),
)
var = Rule(
    "var",
    lambda x, dim, correction, keepdim: torch.var(x, dim, correction=correction, keepdim=keepdim),
    {"x": lambda grad, y, x, dim, correction: spread(grad, x.shape, dim) * deviation(x, y, dim, correction)},
    lambda x, dim, correction, keepdim: torch.var(x, dim, correction=correction, keepdim=keepdim),
    samples_from(samples_of(*VARIANCES), samples_of(("complex", [(3, 2)], (0, 1, False)), dtype=torch.complex128)),
    "Bessel's correction in general form: the mean squared deviation times n / (n - correction)",
    jvp=var_tangent,
    widen=True,
)
