"""Arithmetic, reductions and views: what stands between the layers of a model.

Where a forward broadcasts, its gradient is summed back to the argument's shape. A constant may be a number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpexp.rules.table import Rule, Sample

Dims = int | tuple[int, ...] | None


def samples_of(
    *rows: tuple[str, Sequence[tuple[int, ...]], tuple[Any, ...]], constants_first: bool = False
) -> Callable[[torch.Generator], Sequence[Sample]]:
    """Samples (name, shapes of the tensors, constants after or before them)."""

    def make(generator: torch.Generator) -> Sequence[Sample]:
        samples = []
        for name, shapes, constants in rows:
            tensors = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
            samples.append(Sample(name, (*constants, *tensors) if constants_first else (*tensors, *constants)))
        return samples

    return make


REAL_BROADCAST = samples_of(
    ("batch", [(5, 3), (5, 3)], ()),
    ("row", [(5, 3), (3,)], ()),
    ("outer", [(5, 1), (1, 3)], ()),
    ("networks", [(2, 1, 4), (2, 3, 4)], ()),
    ("scalar", [(), (2, 3)], ()),
    ("number", [(5, 3)], (2.5,)),
    ("empty", [(0, 3), (3,)], ()),
)


def broadcast(generator: torch.Generator) -> Sequence[Sample]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    return [
        *REAL_BROADCAST(generator),
        Sample("complex", (normal(5, 3), normal(3))),
        Sample("complex-number", (normal(5, 3), 1 + 2j)),
    ]


REDUCE = samples_of(
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


def add_tangent(x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for tangent in (x_tangent, other_tangent):
        if tangent is not None:
            total = total + tangent
    return total


def multiply_tangent(
    x_tangent: Tensor | None, other_tangent: Tensor | None, y: Tensor, x: Tensor, other: Tensor | float
) -> Tensor:
    return add_tangent(
        None if x_tangent is None else x_tangent * other, None if other_tangent is None else other_tangent * x, y
    )


def conjugate(value: Tensor | float) -> Tensor | float:
    return value.conj() if isinstance(value, Tensor) else value.conjugate()


def kept_shape(shape: torch.Size, dim: Dims) -> list[int]:
    """The shape that a reduction over `dim` has with keepdim; None and () stand for all."""
    if dim is None or dim == ():
        return [1] * len(shape)
    dims = {d % max(len(shape), 1) for d in ((dim,) if isinstance(dim, int) else dim)}
    return [1 if d in dims else size for d, size in enumerate(shape)]


def spread(grad: Tensor, x_shape: torch.Size, dim: Dims) -> Tensor:
    return grad.reshape(kept_shape(x_shape, dim)).expand(x_shape)


def split_back(grad: Tensor, dim: int, tensors_shape: tuple[torch.Size, ...]) -> tuple[Tensor, ...]:
    return grad.split_with_sizes([shape[dim] for shape in tensors_shape], dim)


add = Rule(
    "add",
    lambda x, other: x + other,
    {
        "x": lambda grad, x_shape: grad.sum_to_size(x_shape),
        "other": lambda grad, other_shape: grad.sum_to_size(other_shape),
    },
    torch.add,
    broadcast,
    "the sum rule",
    jvp=add_tangent,
)
multiply = Rule(
    "multiply",
    lambda x, other: x * other,
    {
        "x": lambda grad, other, x_shape: (grad * conjugate(other)).sum_to_size(x_shape),
        "other": lambda grad, x, other_shape: (grad * x.conj()).sum_to_size(other_shape),
    },
    torch.multiply,
    broadcast,
    "the product rule",
    jvp=multiply_tangent,
)
sum = Rule(
    "sum",
    lambda x, dim, keepdim: x.sum(dim, keepdim),
    {"x": lambda grad, x_shape, dim: spread(grad, x_shape, dim)},
    torch.sum,
    REDUCE,
    "the sum rule",
    jvp=lambda x_tangent, dim, keepdim: x_tangent.sum(dim, keepdim),
)
mean = Rule(
    "mean",
    lambda x, dim, keepdim: x.mean(dim, keepdim),
    {"x": lambda grad, x_shape, dim: spread(grad / (x_shape.numel() / max(grad.numel(), 1)), x_shape, dim)},
    torch.mean,
    REDUCE,
    "the sum rule",
    jvp=lambda x_tangent, dim, keepdim: x_tangent.mean(dim, keepdim),
)
reshape = Rule(
    "reshape",
    lambda x, shape: x.reshape(shape),
    {"x": lambda grad, x_shape: grad.reshape(x_shape)},
    torch.reshape,
    samples_of(
        ("batch", [(6, 4)], ((3, 8),)),
        ("flatten", [(2, 3, 4)], ((2, -1),)),
        ("same", [(2, 3)], ((2, 3),)),
        ("scalar", [()], ((1, 1),)),
        ("empty", [(0, 3)], ((3, 0),)),
    ),
    "a permutation of places; its gradient undoes it",
    jvp=lambda x_tangent, shape: x_tangent.reshape(shape),
)
transpose = Rule(
    "transpose",
    lambda x, dim0, dim1: x.transpose(dim0, dim1),
    {"x": lambda grad, dim0, dim1: grad.transpose(dim0, dim1)},
    torch.transpose,
    samples_of(
        ("batch", [(5, 3)], (0, 1)),
        ("networks", [(2, 3, 4)], (0, -1)),
        ("same", [(2, 3)], (1, 1)),
        ("empty", [(0, 3)], (0, 1)),
    ),
    "a permutation of places; its gradient undoes it",
    jvp=lambda x_tangent, dim0, dim1: x_tangent.transpose(dim0, dim1),
)
slice = Rule(
    "slice",
    lambda x, dim, start, stop: torch.narrow(x, dim, start, stop - start),
    {"x": lambda grad, x_shape, dim, start, stop: torch.slice_scatter(grad.new_zeros(x_shape), grad, dim, start, stop)},
    lambda x, dim, start, stop: x.transpose(dim, 0)[start:stop].transpose(0, dim),
    samples_of(
        ("batch", [(5, 3)], (0, 1, 3)),
        ("networks", [(2, 3, 4)], (-1, 0, 2)),
        ("whole", [(2, 3)], (1, 0, 3)),
        ("nothing", [(2, 3)], (1, 2, 2)),
    ),
    "a selection of places; the gradient of the others is 0",
    jvp=lambda x_tangent, dim, start, stop: torch.narrow(x_tangent, dim, start, stop - start),
)
cat = Rule(
    "cat",
    lambda dim, *tensors: torch.cat(tensors, dim),
    {"tensors": split_back},
    lambda dim, *tensors: torch.cat(tensors, dim),
    samples_of(
        ("batch", [(5, 3), (2, 3)], (0,)),
        ("three", [(2, 1, 4), (2, 2, 4), (2, 3, 4)], (1,)),
        ("last", [(2, 3), (2, 1)], (-1,)),
        ("one", [(2, 3)], (0,)),
        ("empty", [(0, 3), (2, 3)], (0,)),
        constants_first=True,
    ),
    "a selection of places, undone",
)
