"""Activations, with softmax and its logarithm."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]  # its stub leaves it out

from bpexp.rules import Rule, activations
from bpexp.rules import softmax as probabilities


def elementwise(rule: Rule, input: Tensor, *constants: Any, inplace: bool) -> Tensor:
    """Apply the rule; in place it differentiates at a copy, since the rule may save what is overwritten."""
    return input.copy_(rule(input.clone(), *constants)) if inplace else rule(input, *constants)


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


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.celu, input, alpha, inplace=inplace)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return (activations.gelu if approximate == "none" else activations.gelu_tanh)(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.silu, input, inplace=inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.mish, input, inplace=inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    return activations.prelu(input, weight, 1)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return activations.softplus(input, beta, threshold)


def softsign(input: Tensor) -> Tensor:
    return activations.softsign(input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.hardtanh, input, min_val, max_val, inplace=inplace)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    if dim is None:
        dim = _get_softmax_dim("softmax", input.dim(), _stacklevel)
    return probabilities.softmax(input, dim, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None:
        dim = _get_softmax_dim("log_softmax", input.dim(), _stacklevel)
    return probabilities.log_softmax(input, dim, dtype)
