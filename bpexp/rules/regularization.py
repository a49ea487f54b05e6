"""Regularization: noise drawn outside, so that a rule stays a pure formula."""

from collections.abc import Sequence

import torch

from bpexp.rules.table import Rule, Sample


def samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, *shape: int) -> Sample:
        kept = torch.rand(shape, generator=generator, dtype=torch.float64) < 0.75
        return Sample(name, (torch.randn(shape, generator=generator, dtype=torch.float64), kept / 0.75))

    return [sample("batch", 5, 7), sample("scalar"), sample("networks", 2, 3, 4), sample("empty", 0, 3)]


dropout = Rule(
    "dropout",
    lambda x, mask: x * mask,  # the mask is scaled already: 0 or 1 / (1 - p)
    {"x": lambda grad, mask: grad * mask},
    lambda x, mask: x * mask,
    samples,
    "Srivastava et al. 2014, JMLR 15:1929, in its inverted form",
    jvp=lambda x_tangent, mask: x_tangent * mask,
)
