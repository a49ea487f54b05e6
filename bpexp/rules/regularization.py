"""Regularization: noise drawn outside, so that a rule stays a pure formula."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bpexp.rules.table import Rule, Sample


def samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, *shape: int) -> Sample:
        mask = torch.rand(shape, generator=generator, dtype=torch.float64) < 0.75
        return Sample(name, (torch.randn(shape, generator=generator, dtype=torch.float64), mask / 0.75))

    return [sample("batch", 5, 7), sample("scalar"), sample("networks", 2, 3, 4), sample("empty", 0, 3)]


def kept(noise: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """Return the mask that is drawn: 0 where the noise is below the threshold, else the scale."""
    return (noise >= threshold).to(scale.dtype) * scale


def network_samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, *shape: int) -> Sample:
        threshold = torch.randint(-128, 64, (shape[0], 1, 1), generator=generator, dtype=torch.int8)
        noise = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        noise[..., :1] = threshold  # noise at the threshold is kept
        scale = 1 + torch.rand(shape[0], 1, 1, generator=generator, dtype=torch.float64)
        return Sample(name, (torch.randn(shape, generator=generator, dtype=torch.float64), noise, threshold, scale))

    return [sample("batch", 2, 5, 3), sample("one", 1, 4, 2), sample("empty", 2, 0, 3)]


dropout = Rule(
    "dropout",
    lambda x, mask: x * mask,  # the mask is scaled already: 0 or 1 / (1 - p)
    {"x": lambda grad, mask: grad * mask},
    lambda x, mask: x * mask,
    samples,
    "Srivastava et al. 2014, JMLR 15:1929, in its inverted form",
    jvp=lambda x_tangent, mask: x_tangent * mask,
)
network_dropout = Rule(
    "network_dropout",
    lambda x, noise, threshold, scale: x * kept(noise, threshold, scale),
    {"x": lambda grad, noise, threshold, scale: grad * kept(noise, threshold, scale)},
    lambda x, noise, threshold, scale: torch.where(noise < threshold, 0.0, x * scale),
    network_samples,
    "Srivastava et al. 2014, JMLR 15:1929, in its inverted form",
    jvp=lambda x_tangent, noise, threshold, scale: x_tangent * kept(noise, threshold, scale),
)
