"""Normalization of R networks side by side, each by its own statistics: over its batch, or over the units of a sample.

Letters: R networks, B samples, W units. With h = (x - mean) / sqrt(var + eps) and y = weight * h + bias,

    grad_x = (g - mean(g) - h * mean(g * h)) / sqrt(var + eps)   where g = grad * weight
    grad_weight = sum(grad * h)     grad_bias = sum(grad)

with means over what the statistics are over. What has the size of the statistics is multiplied first, so that fewer
passes go over (R, B, W), and sums over the batch are cheaper than any kernel that takes mean and variance at once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.norms import BA, IOFFE, normal
from bpexp.rules.table import Rule, Sample


def row(vector: Tensor) -> Tensor:
    """Give (R, W) an axis of samples."""
    return vector[:, None]


def network_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each unit's mean and biased variance over its network's batch, (R, W)."""
    mean = x.sum(1) / x.shape[1]
    return mean, (x - row(mean)).square().sum(1) / x.shape[1]


def network_batch_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = network_statistics(x)
    return network_given_forward(x, mean, var, weight, bias, eps), mean, var


def network_given_forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.addcmul(row(bias), x - row(mean), row(weight * torch.rsqrt(var + eps)))


def network_batch_grad_x(grad: Tensor, x: Tensor, weight: Tensor, eps: float, mean: Tensor, var: Tensor) -> Tensor:
    rstd, size = torch.rsqrt(var + eps), x.shape[1]
    slope = network_batch_grad_weight(grad, x, eps, mean, var) * rstd
    rest = torch.addcmul(grad, x - row(mean), row(slope), value=-1 / size)
    return torch.sub(rest, row(grad.sum(1)), alpha=1 / size) * row(weight * rstd)


def network_batch_grad_weight(grad: Tensor, x: Tensor, eps: float, mean: Tensor, var: Tensor) -> Tensor:
    return (grad * (x - row(mean))).sum(1) * torch.rsqrt(var + eps)


def network_batch_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    networks = range(len(x))
    return torch.stack([F.batch_norm(x[r], None, None, weight[r], bias[r], True, 0.0, eps) for r in networks])


def network_given_reference(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    networks = range(len(x))
    return torch.stack([F.batch_norm(x[r], mean[r], var[r], weight[r], bias[r], False, 0.0, eps) for r in networks])


def unit_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Each sample's mean and 1 / standard deviation over its units, (R, B, 1)."""
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    return mean, torch.rsqrt((x - mean).square().sum(-1, keepdim=True) / x.shape[-1] + eps)


def network_layer_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    centred = x - mean
    # The norm is one pass where the sum of squares is two; its own derivative at 0 would not do for `unit_statistics`.
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rstd = torch.rsqrt(torch.addcmul(x.new_full((), eps), norm, norm, value=1 / x.shape[-1]))
    return torch.addcmul(row(bias), centred * rstd, row(weight)), mean, rstd


def network_layer_grad_x(grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    h, size = (x - mean) * rstd, x.shape[-1]
    rest = torch.addcmul(grad * row(weight), h, weighted_sum(grad * h, weight), value=-1 / size)
    return torch.sub(rest, weighted_sum(grad, weight), alpha=1 / size) * rstd


def weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """The sum over units, (R, B, 1); as a product with a column it would take five times as long."""
    return (row(weight) @ x.mT).mT


def network_layer_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.stack([F.layer_norm(x[r], x.shape[-1:], weight[r], bias[r], eps) for r in range(len(x))])


def network_inputs(generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """(R, B, W) in the shapes and with the numbers that a norm may meet."""
    constant = normal(generator, 2, 4, 3)
    constant[:, :, 1] = 0.7
    return [
        ("batch", normal(generator, 2, 5, 3)),
        ("one", normal(generator, 1, 4, 2)),
        ("two-samples", normal(generator, 3, 2, 2)),
        ("constant-unit", constant),
        ("constant-samples", constant.mT.contiguous()),
        ("far", 100 + normal(generator, 2, 4, 3)),
        ("transposed", normal(generator, 2, 3, 5).mT),
    ]


def network_samples(generator: torch.Generator) -> Sequence[Sample]:
    samples = []
    for name, x in network_inputs(generator):
        shape = len(x), x.shape[-1]
        samples.append(Sample(name, (x, normal(generator, *shape), normal(generator, *shape), 1e-3)))
    return samples


def network_given_samples(generator: torch.Generator) -> Sequence[Sample]:
    samples = []
    for name, (x, weight, bias, eps) in [(sample.name, sample.args) for sample in network_samples(generator)]:
        mean, var = normal(generator, *weight.shape), normal(generator, *weight.shape).square()
        samples.append(Sample(name, (x, mean, var, weight, bias, eps)))
    single = (normal(generator, 2, 1, 3), *[normal(generator, 2, 3).square() for _ in range(4)], 0.0)
    return [*samples, Sample("one-sample", single)]


network_batch_norm = Rule(
    "network_batch_norm",
    network_batch_forward,
    {
        "x": network_batch_grad_x,
        "weight": network_batch_grad_weight,
        "bias": lambda grad: grad.sum(1),
    },
    network_batch_reference,
    network_samples,
    IOFFE,
    intermediates=(("mean", "var"), network_statistics),
)
network_batch_norm_eval = Rule(
    "network_batch_norm_eval",
    network_given_forward,
    {
        "x": lambda grad, var, weight, eps: grad * row(weight * torch.rsqrt(var + eps)),
        "weight": network_batch_grad_weight,
        "bias": lambda grad: grad.sum(1),
    },
    network_given_reference,
    network_given_samples,
    IOFFE,
)
network_layer_norm = Rule(
    "network_layer_norm",
    network_layer_forward,
    {
        "x": network_layer_grad_x,
        "weight": lambda grad, x, mean, rstd: (grad * ((x - mean) * rstd)).sum(1),
        "bias": lambda grad: grad.sum(1),
    },
    network_layer_reference,
    network_samples,
    BA,
    intermediates=(("mean", "rstd"), unit_statistics),
)
