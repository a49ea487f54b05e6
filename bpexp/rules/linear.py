"""The linear map. Letters: r networks, n rows of the batch, i inputs, o outputs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import Rule, Sample


def rows(x: Tensor, networks: bool) -> Tensor:
    """X as (n, i), or as (r, n, i) where the weight has a network axis."""
    return x.flatten(1, -2) if networks else x.reshape(-1, x.shape[-1])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 1:
        y = x @ weight
        return y if bias is None else y + bias
    if weight.dim() == 2 or x.dim() == 3:
        if bias is None:
            return x @ weight.mT
        if x.dim() == weight.dim():
            return torch.addmm(bias, x, weight.mT) if x.dim() == 2 else torch.baddbmm(bias[:, None], x, weight.mT)
    y = x @ spread(weight, x).mT
    return y if bias is None else y + (bias if bias.dim() == 1 else spread(bias[:, None], x))


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """Give a weight with a network axis the missing axes of x between the network's and its own."""
    return weight[(slice(None), *[None] * (x.dim() - 3))] if weight.dim() == 3 else weight


def grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return grad[..., None] * weight
    return grad @ spread(weight, grad)


def grad_weight(grad: Tensor, x: Tensor, weight_shape: torch.Size) -> Tensor:
    if len(weight_shape) == 1:
        return grad.reshape(-1) @ x.reshape(-1, x.shape[-1])
    networks = len(weight_shape) == 3
    return rows(grad, networks).mT @ rows(x, networks)


def grad_bias(grad: Tensor, bias_shape: torch.Size) -> Tensor:
    if not bias_shape:
        return grad.sum()
    return rows(grad, len(bias_shape) == 2).sum(-2)


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
        total = total + (spread(bias_tangent[:, None], y) if bias_tangent.dim() == 2 else bias_tangent)
    return total


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() < 3:
        return F.linear(x, weight, bias)
    biases = [None] * len(weight) if bias is None else list(bias)
    return torch.stack([F.linear(x[r], weight[r], biases[r]) for r in range(len(weight))])


def samples(generator: torch.Generator) -> Sequence[Sample]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        Sample("batch", (normal(5, 3), normal(4, 3), normal(4))),
        Sample("no-bias", (normal(5, 3), normal(4, 3), None)),
        Sample("vector", (normal(3), normal(4, 3), normal(4))),
        Sample("sequence", (normal(2, 5, 3), normal(4, 3), normal(4))),
        Sample("weight-vector", (normal(5, 3), normal(3), None)),
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
