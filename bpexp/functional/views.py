"""Reshaping, and its like."""

from collections.abc import Sequence

from torch import Tensor

from bpexp.rules import views


def reshape(input: Tensor, shape: tuple[int, ...]) -> Tensor:
    return views.reshape(input, shape)


def squeeze(input: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    return views.squeeze(input, dim)


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    return views.unsqueeze(input, dim)


def expand(input: Tensor, size: tuple[int, ...]) -> Tensor:
    """Repeat a tensor to a size: torch has it as a method of tensors alone."""
    return views.expand(input, size)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return views.transpose(input, dim0, dim1)


def permute(input: Tensor, dims: tuple[int, ...]) -> Tensor:
    return views.permute(input, dims)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shapes = [list(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)]
    sizes = max(shapes, key=len, default=[])
    if [0] in shapes and len(sizes) > 1:  # torch joins an empty vector to anything
        sizes[dim] = 0
        tensors = [views.reshape(tensor, sizes) if tensor.shape == (0,) else tensor for tensor in tensors]
    return views.cat(dim, *tensors)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return views.stack(dim, *tensors)


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return `length` places of a dimension from `start` on: the rule `slice`."""
    return views.slice(input, dim, start, start + length)
