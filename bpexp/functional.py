"""Drop-ins for torch.nn.functional: the same names, arguments, defaults, semantics and errors, with our backwards.

The arithmetic and reshaping between the layers of a model (add to narrow) has the names that it has in torch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]  # its stub leaves it out

from bpexp.rules import Rule, activations, arithmetic, losses, regularization
from bpexp.rules import linear as linear_map


def elementwise(rule: Rule, input: Tensor, *constants: Any, inplace: bool) -> Tensor:
    """Apply the rule; in place it differentiates at a copy, since the rule may save what is overwritten."""
    return input.copy_(rule(input.clone(), *constants)) if inplace else rule(input, *constants)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() > 2:  # the rule takes one with a network axis; torch says what it has against it
        return F.linear(input, weight, bias)
    return linear_map.linear(input, weight, bias)


def sigmoid(input: Tensor) -> Tensor:
    return activations.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    return activations.tanh(input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.relu, input, inplace=inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return elementwise(activations.leaky_relu, input, negative_slope, inplace=inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.elu, input, alpha, inplace=inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.selu, input, inplace=inplace)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return (activations.gelu if approximate == "none" else activations.gelu_tanh)(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.silu, input, inplace=inplace)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return activations.softplus(input, beta, threshold)


def softsign(input: Tensor) -> Tensor:
    return activations.softsign(input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.hardtanh, input, min_val, max_val, inplace=inplace)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    mask = F.dropout(torch.ones_like(input), p)  # drawn by torch: the same seed, the same mask
    return elementwise(regularization.dropout, input, mask, inplace=inplace)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None:
        dim = _get_softmax_dim("log_softmax", input.dim(), _stacklevel)
    return losses.log_softmax(input, dim, dtype)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return losses.mse_loss(input, target, weight, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    if target.is_floating_point() and ignore_index < 0:
        return losses.cross_entropy_probabilities(input, target, weight, reduction, label_smoothing)
    if weight is not None and weight.requires_grad:  # torch refuses it in its own words, while gradients are on
        F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    return losses.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def add(input: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    return arithmetic.add(input, other if alpha == 1 else arithmetic.multiply(other, alpha))


def multiply(input: Tensor, other: Tensor | float) -> Tensor:
    return arithmetic.multiply(input, other)


def sum(
    input: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    return arithmetic.sum(input if dtype is None else input.to(dtype), dim, keepdim)


def mean(
    input: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    return arithmetic.mean(input if dtype is None else input.to(dtype), dim, keepdim)


def reshape(input: Tensor, shape: tuple[int, ...]) -> Tensor:
    return arithmetic.reshape(input, shape)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return arithmetic.transpose(input, dim0, dim1)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return arithmetic.cat(dim, *tensors)


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return `length` places of a dimension from `start` on: the rule `slice`."""
    return arithmetic.slice(input, dim, start, start + length)
