"""Views and their like: the same numbers in another shape or order, a part of them, or several tensors in one.

A gradient takes each number back to where it came from: the places that were left out get 0, and those that were
repeated the sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.samples import samples_of
from bpexp.rules.table import Rule


def inverse(dims: tuple[int, ...]) -> list[int]:
    """The permutation that undoes one."""
    places = [dim % len(dims) for dim in dims]
    return [places.index(d) for d in range(len(dims))]


def put_back(grad: Tensor, x_shape: torch.Size, dim: int, start: int) -> Tensor:
    """The gradient at its place among zeros; a negative start counts from the end."""
    after = len(x_shape) - 1 - dim % len(x_shape)
    before = start + x_shape[dim] * (start < 0)
    return F.pad(grad, [0, 0] * after + [before, x_shape[dim] - before - grad.shape[dim]])


def split_back(grad: Tensor, dim: int, tensors_shape: tuple[torch.Size, ...]) -> tuple[Tensor, ...]:
    return grad.split_with_sizes([shape[dim] for shape in tensors_shape], dim)


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
squeeze = Rule(
    "squeeze",
    lambda x, dim: x.squeeze() if dim is None else x.squeeze(dim),
    {"x": lambda grad, x_shape: grad.reshape(x_shape)},
    lambda x, dim: torch.squeeze(x) if dim is None else torch.squeeze(x, dim),
    samples_of(
        ("batch", [(5, 1, 3)], (1,)),
        ("all", [(1, 5, 1)], (None,)),
        ("dims", [(1, 5, 1, 1)], ((0, -1),)),
        ("kept", [(5, 3)], (0,)),
        ("scalar", [()], (None,)),
    ),
    "a permutation of places; its gradient undoes it",
    jvp=lambda x_tangent, dim: x_tangent.squeeze() if dim is None else x_tangent.squeeze(dim),
)
unsqueeze = Rule(
    "unsqueeze",
    lambda x, dim: x.unsqueeze(dim),
    {"x": lambda grad, dim: grad.squeeze(dim)},
    torch.unsqueeze,
    samples_of(("batch", [(5, 3)], (1,)), ("last", [(2, 3)], (-1,)), ("scalar", [()], (0,))),
    "a permutation of places; its gradient undoes it",
    jvp=lambda x_tangent, dim: x_tangent.unsqueeze(dim),
)
expand = Rule(
    "expand",
    lambda x, shape: x.expand(shape),
    {"x": lambda grad, x_shape: grad.sum_to_size(x_shape)},
    torch.Tensor.expand,
    samples_of(
        ("batch", [(5, 1)], ((-1, 3),)),
        ("row", [(3,)], ((2, 4, 3),)),
        ("same", [(2, 3)], ((2, 3),)),
        ("scalar", [()], ((2, 3),)),
        ("empty", [(1, 3)], ((0, 3),)),
    ),
    "a repetition of places; its gradient adds them up",
    jvp=lambda x_tangent, shape: x_tangent.expand(shape),
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
permute = Rule(
    "permute",
    lambda x, dims: torch.permute(x, dims),
    {"x": lambda grad, dims: grad.permute(inverse(dims))},
    torch.permute,
    samples_of(
        ("batch", [(5, 3)], ((1, 0),)),
        ("turn", [(2, 3, 4)], ((1, 2, 0),)),
        ("from-the-end", [(2, 3, 4)], ((-1, 0, -2),)),
        ("scalar", [()], ((),)),
    ),
    "a permutation of places; its gradient undoes it",
    jvp=lambda x_tangent, dims: x_tangent.permute(dims),
)
slice = Rule(
    "slice",
    lambda x, dim, start, stop: torch.narrow(x, dim, start, stop - start),
    {"x": put_back},
    lambda x, dim, start, stop: x.transpose(dim, 0)[start:stop].transpose(0, dim),
    samples_of(
        ("batch", [(5, 3)], (0, 1, 3)),
        ("networks", [(2, 3, 4)], (1, 0, 2)),
        ("whole", [(2, 3)], (1, 0, 3)),
        ("nothing", [(2, 3)], (1, 2, 2)),
        ("from-the-end", [(5, 3)], (-2, -3, -1)),
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
    jvp=lambda dim, tensors_tangent: torch.cat(tensors_tangent, dim),
)
stack = Rule(
    "stack",
    lambda dim, *tensors: torch.stack(tensors, dim),
    {"tensors": lambda grad, dim: grad.unbind(dim)},
    lambda dim, *tensors: torch.stack(tensors, dim),
    samples_of(
        ("batch", [(5, 3), (5, 3)], (0,)),
        ("three", [(2, 3), (2, 3), (2, 3)], (1,)),
        ("last", [(2,), (2,)], (-1,)),
        ("scalars", [(), ()], (0,)),
        constants_first=True,
    ),
    "a selection of places, undone",
    jvp=lambda dim, tensors_tangent: torch.stack(tensors_tangent, dim),
)
