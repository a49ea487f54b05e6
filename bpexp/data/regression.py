"""Regression: a smooth nonlinear function of eight normal features, known up to noise."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bpexp.data.splits import DataSet
from bpexp.streams import generator

if TYPE_CHECKING:
    import torch

SAMPLES, FEATURES, HIDDEN = 1000, 8, 16
NOISE_STD = 0.1


@functools.cache
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features, (1000, 8), and the target, (1000, 1): the same problem for every seed of a network.

    Math:    y = f(x) / std(f) + 0.1 e, f(x) = sum_k v_k tanh(w_k . x + b_k), k = 1..16
             x, e, v_k, b_k ~ N(0, 1), w_k ~ N(0, 4/8)
    Edge:    a mean squared error below the noise's 0.01, of a variance near 1, is noise fitted
    """
    import torch

    stream = generator(0, "data")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    w, b, v = normal(FEATURES, HIDDEN) * (4 / FEATURES) ** 0.5, normal(HIDDEN), normal(HIDDEN, 1)
    x = normal(SAMPLES, FEATURES)
    signal = torch.tanh(x @ w + b) @ v
    return x, signal / signal.std() + NOISE_STD * normal(SAMPLES, 1)


REGRESSION = DataSet(
    name="regression",
    task="regression",
    samples=SAMPLES,
    features=FEATURES,
    outputs=1,
    source="synthetic: a fixed random network of 16 tanh units, with noise",
    read=read,
)
