"""The linear map. Letters: r networks, n rows of the batch, i inputs, o outputs."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import Rule, Sample

NARROW = 16  # below this many outputs of a network its product is up to three times as fast with the batch last


def rows(x: Tensor, networks: bool) -> Tensor:
    """X as (n, i), or as (r, n, i) where the weight has a network axis."""
    return x.reshape(*x.shape[:networks], math.prod(x.shape[networks:-1]), x.shape[-1])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() < 3:
        return F.linear(x, weight, bias)
    if x.dim() == 3 and bias is not None:
        if weight.shape[1] < NARROW:
            return torch.baddbmm(bias[:, :, None], weight, x.mT).mT
        return torch.baddbmm(bias[:, None], x, weight.mT)
    y = x @ spread(weight, x).mT
    return y if bias is None else y + spread(bias[:, None], x)


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """Give a weight with a network axis the missing axes of x between the network's and its own."""
    return weight[(slice(None), *[None] * (x.dim() - 3))] if weight.dim() == 3 else weight


def grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return grad[..., None] * weight.conj()
    return grad @ spread(weight, grad).conj()


def grad_weight(grad: Tensor, x: Tensor, weight_shape: torch.Size) -> Tensor:
    if len(weight_shape) == 1:
        return grad.reshape(-1) @ rows(x, False).conj()
    networks = len(weight_shape) == 3
    return rows(grad, networks).mT @ rows(x, networks).conj()


def grad_bias(grad: Tensor, bias_shape: torch.Size, weight_shape: torch.Size) -> Tensor:
    if len(weight_shape) == 3:
        return rows(grad, True).sum(-2)
    return grad.sum_to_size(bias_shape)


def tangent(
    x_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
) -> Tensor:
    total = torch.zeros_like(y)
    if x_tangent is not None:
        total = total + forward(x_tangent, weight, None)
    if weight_tangent is not None:
        total = total + forward(x, weight_tangent, None)
    if bias_tangent is not None:
        total = total + (spread(bias_tangent[:, None], y) if weight.dim() == 3 else bias_tangent)
    return total


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() < 3:
        return F.linear(x, weight, bias)
    biases = [None] * len(weight) if bias is None else list(bias)
    return torch.stack([F.linear(x[r], weight[r], biases[r]) for r in range(len(weight))])


def samples(generator: torch.Generator) -> Sequence[Sample]:
    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    def complex_normal(*shape: int) -> Tensor:
        return normal(*shape, dtype=torch.complex128)

    return [
        Sample("batch", (normal(5, 3), normal(4, 3), normal(4))),
        Sample("no-bias", (normal(5, 3), normal(4, 3), None)),
        Sample("vector", (normal(3), normal(4, 3), normal(4))),
        Sample("sequence", (normal(2, 5, 3), normal(4, 3), normal(4))),
        Sample("deep-sequence", (normal(2, 2, 5, 3), normal(4, 3), normal(4))),
        Sample("weight-vector-sequence", (normal(2, 5, 3), normal(3), None)),
        Sample("complex", (complex_normal(5, 3), complex_normal(4, 3), complex_normal(4))),
        Sample("complex-weight-vector", (complex_normal(5, 3), complex_normal(3), None)),
        Sample("weight-vector", (normal(5, 3), normal(3), None)),
        Sample("one-bias", (normal(5, 3), normal(4, 3), normal(1))),
        Sample("bias-each-row", (normal(5, 3), normal(4, 3), normal(5, 4))),
        Sample("no-inputs", (normal(5, 0), normal(4, 0), normal(4))),
        Sample("transposed", (normal(3, 5).mT, normal(3, 4).mT, normal(4))),
        Sample("square", (normal(3, 3), normal(3, 3), normal(3))),
        Sample("empty", (normal(0, 3), normal(4, 3), normal(4))),
        Sample("networks", (normal(2, 5, 3), normal(2, 4, 3), normal(2, 4))),
        Sample("networks-no-bias", (normal(2, 5, 3), normal(2, 4, 3), None)),
        Sample("networks-sequence", (normal(2, 3, 5, 3), normal(2, 4, 3), normal(2, 4))),
    ]


linear = Rule(
    "linear",
    forward,
    {"x": grad_x, "weight": grad_weight, "bias": grad_bias},
    reference,
    samples,
    "Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0",
    jvp=tangent,
    autocast="lower",
)
