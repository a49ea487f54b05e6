"""Probabilities p = softmax(x) along a dimension, and their logarithms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import Rule, Sample

BRIDLE = "Bridle 1990, doi:10.1007/978-3-642-76153-9_28"


def samples(generator: torch.Generator) -> Sequence[Sample]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        Sample("batch", (normal(5, 4), 1, None)),
        Sample("rows", (normal(5, 4), 0, None)),
        Sample("networks", (normal(2, 3, 4), -1, None)),
        Sample("transposed", (normal(4, 5).mT, 1, None)),
        Sample("dtype", (normal(5, 4), 1, torch.float64)),
        Sample("large", (500 * normal(5, 4), 1, None)),
        Sample("scalar", (normal(), 0, None)),
        Sample("empty", (normal(0, 4), 1, None)),
    ]


softmax = Rule(
    "softmax",
    lambda x, dim, dtype: torch.softmax(x, dim, dtype=dtype),
    {"x": lambda grad, y, dim: y * (grad - (grad * y).sum(dim, keepdim=True))},
    lambda x, dim, dtype: F.softmax(x, dim, dtype=dtype),
    samples,
    BRIDLE,
    jvp=lambda x_tangent, y, dim: y * (x_tangent - (x_tangent * y).sum(dim, keepdim=True)),
    autocast="float32 on cuda",
    widen=True,
)
log_softmax = Rule(
    "log_softmax",
    lambda x, dim, dtype: torch.log_softmax(x, dim, dtype=dtype),
    {"x": lambda grad, y, dim: torch.addcmul(grad, torch.exp(y), grad.sum(dim, keepdim=True), value=-1)},
    lambda x, dim, dtype: F.log_softmax(x, dim, dtype=dtype),
    samples,
    BRIDLE,
    jvp=lambda x_tangent, y, dim: x_tangent - (torch.exp(y) * x_tangent).sum(dim, keepdim=True),
    autocast="float32 on cuda",
    widen=True,
)
