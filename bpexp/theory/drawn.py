"""Networks of finite width, drawn at random and passed through once, forward and backward, by plain tensors.

It knows a network as `prediction` does, and nothing of the models that are trained: another way to the same numbers.

Letters: R networks, B samples, F features, W units, C outputs, L hidden layers; z, n, h, c, g, delta as in
`prediction`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bpexp.init import fill_orthogonal
from bpexp.theory.prediction import NORM_EPS, Linear, Network

LSUV_PASSES, LSUV_TOLERANCE = 10, 0.1  # those of bpexp.models, which stands after this module
AXES = {"batch": 1, "layer": 2}
"""What a norm averages over, of (R, B, W)."""

Error = Callable[[Tensor, Tensor], Tensor]
"""Outputs (R, B, C) and targets (R, B, ...) -> delta of the output layer, as if each sample's loss were all."""


@dataclass(frozen=True)
class Hidden:
    """What the backward pass asks of a hidden layer: n (R, B, W), 1/std where there is a norm, the mask of dropout."""

    n: Tensor
    inverse_std: Tensor | None
    mask: Tensor | None


def pass_through(
    network: Network, x: Tensor, y: Tensor, error: Error, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a network for each batch, x (R, B, F); return the logs of delta_rms and of activation_rms, (R, L) float64.

    Edge:    forward all is of x's type, so that it under- and overflows as a network of that type; backward a gradient
             is scaled in each layer, so that its log is known however small it is
    """
    weights, biases = draw(network, len(x), x.dtype, generator)
    if network.init.name == "lsuv":
        forward(network, x, weights, biases, None, scaled=True)
    hidden, sizes, outputs = forward(network, x, weights, biases, generator)
    return backward(network, error(outputs, y), hidden, weights), sizes


def draw(
    network: Network, networks: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Draw weights (R, o, i) and biases (R, 1, o), None where they are zero, of layers 1 to L + 1.

    Edge:    orthogonal weights of layers 2 to L are L - 1 matrices that the R networks have in common, each in an order
             of its own and with rows and columns of random signs: each network's are independent and uniform
    """
    inner = network.linears[1:-1]
    pool, orders = torch.empty(0), torch.empty(0)
    if network.init.fill is fill_orthogonal and inner:
        pool = haar(len(inner), inner[0].fan_in, inner[0].fan_out, dtype, generator)
        orders = torch.stack([torch.randperm(len(inner), generator=generator) for _ in range(networks)], 1)
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for layer, linear in enumerate(network.linears, 1):
        if network.init.fill is not fill_orthogonal:
            weight = torch.empty(networks, linear.fan_out, linear.fan_in, dtype=dtype)
            network.init.fill(weight, math.sqrt(linear.variance), generator)
        elif 1 < layer <= network.depth:
            weight = pool[orders[layer - 2]]
            weight *= signs((networks, linear.fan_out, 1), generator)
            weight *= signs((networks, 1, linear.fan_in), generator) * orthogonal_scale(linear)
        else:
            weight = haar(networks, linear.fan_in, linear.fan_out, dtype, generator) * orthogonal_scale(linear)
        weights.append(weight)
        biases.append(draw_bias(network, linear, networks, dtype, generator))
    return weights, biases


def orthogonal_scale(linear: Linear) -> float:
    """Return what unit vectors are multiplied by for their entries to have the layer's variance."""
    return math.sqrt(linear.variance * max(linear.fan_in, linear.fan_out))


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1)


def haar(count: int, fan_in: int, fan_out: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw matrices (count, o, i) with orthonormal rows or columns, uniformly: see `bpexp.init.fill_orthogonal`."""
    shape = (count, max(fan_in, fan_out), min(fan_in, fan_out))
    q, r = torch.linalg.qr(torch.empty(shape, dtype=dtype).normal_(generator=generator))
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    result: Tensor = q if fan_out >= fan_in else q.mT
    return result


def draw_bias(
    network: Network, linear: Linear, networks: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor | None:
    if linear.bias_variance == 0:
        return None
    bias, std = torch.empty(networks, 1, linear.fan_out, dtype=dtype), math.sqrt(linear.bias_variance)
    if network.uniform_biases:
        bias.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    else:
        bias.normal_(0.0, std, generator=generator)
    return bias


def forward(
    network: Network,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    generator: torch.Generator | None,
    *,
    scaled: bool = False,
) -> tuple[list[Hidden], Tensor, Tensor]:
    """Return what the backward pass asks of layers 1 to L, the logs of activation_rms (R, L), and the outputs.

    generator: that of the masks; None for a pass without dropout
    scaled:    scale the weights of each layer in place as lsuv does, until its outputs have the variance gain^2
    """
    found, sizes = [], []
    h = dropped(x, network.input_dropout, generator)[0]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        z = affine(h, weight, bias)
        if scaled:
            z = scale_to_unit_variance(z, h, weight, bias, network.gain)
        if layer > network.depth:
            break
        n, inverse_std = normalized(z, network.norm)
        branch, mask = dropped(network.phi.function(n), network.dropout, generator)
        if network.branch(layer) != 1:
            branch = network.branch(layer) * branch
        h = h + branch if network.skips(layer) else branch
        found.append(Hidden(n, inverse_std, mask))
        sizes.append(rms(h).log())
    return found, torch.stack(sizes, 1), z


def affine(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias, h, weight.mT)


def scale_to_unit_variance(z: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, gain: float) -> Tensor:
    """Scale weights in place until the variance of z, over samples and units, is gain^2 to within LSUV_TOLERANCE."""
    for _ in range(LSUV_PASSES):
        ratio = z.var((1, 2), correction=0) / gain**2
        off = (ratio - 1).abs() >= LSUV_TOLERANCE
        if not off.any():
            break
        weight *= torch.where(off, ratio.rsqrt(), 1.0)[:, None, None]
        z = affine(h, weight, bias)
    return z


def normalized(z: Tensor, norm: str) -> tuple[Tensor, Tensor | None]:
    """Return n, and 1/std where there is a norm."""
    if norm == "none":
        return z, None
    variance, mean = torch.var_mean(z, AXES[norm], correction=0, keepdim=True)
    inverse_std = (variance + NORM_EPS).rsqrt()
    return (z - mean) * inverse_std, inverse_std


def dropped(x: Tensor, probability: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
    """Return x under a mask that is 0 with the probability, else 1/(1 - probability), and the mask."""
    if probability == 0 or generator is None:
        return x, None
    mask = torch.empty_like(x).bernoulli_(1 - probability, generator=generator) / (1 - probability)
    return x * mask, mask


def backward(network: Network, delta: Tensor, hidden: list[Hidden], weights: list[Tensor]) -> Tensor:
    """Return the logs of delta_rms of layers 1 to L, (R, L), from delta of the output layer."""
    g, log_scale = torch.bmm(delta, weights[-1]), delta.new_zeros(len(delta), dtype=torch.float64)
    logs = []
    for layer in range(network.depth, 0, -1):
        size = rms(g)
        log_scale = log_scale + size.log()
        g = g / torch.where(size > 0, size, 1.0).to(g.dtype)[:, None, None]
        delta = through_layer(network, layer, g, hidden[layer - 1])
        logs.append(log_scale + rms(delta).log())
        if layer > 1:
            below = torch.bmm(delta, weights[layer - 1])
            g = g + below if network.skips(layer) else below
    return torch.stack(logs[::-1], 1)


def through_layer(network: Network, layer: int, g: Tensor, hidden: Hidden) -> Tensor:
    """Return delta of a hidden layer, from g of what it hands on."""
    delta = g * network.phi.slope(hidden.n)
    if hidden.mask is not None:
        delta = delta * hidden.mask
    if network.branch(layer) != 1:
        delta = delta * network.branch(layer)
    if hidden.inverse_std is None:
        return delta
    axis = AXES[network.norm]
    along = (delta * hidden.n).mean(axis, keepdim=True)
    return (delta - delta.mean(axis, keepdim=True) - hidden.n * along) * hidden.inverse_std


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each network's numbers, (R,) float64."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return norms / math.sqrt(x[0].numel())
