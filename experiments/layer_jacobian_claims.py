"""Claim 1, singular values of layers' Jacobians, with its expectations from before a run.

Glorot and Bengio 2010, PMLR 9:249: with tanh, five hidden layers of 1,000 units and images of 32 x 32 the mean singular
value of dz_(l+1)/dz_l at the start is about 0.5 with the standard initialization and about 0.8 with the normalized one.
Letters: n = units, z_l = pre-activations of layer l, W uniform on +-1/sqrt n, standard, or on +-sqrt(6/(2n)),
normalized, so that n Var W = 1/3 or 1.

The singular values of an n x n matrix of independent entries, n Var W = 1, have the mean 8/(3 pi) = 0.849, by the law
of the quarter circle; with the slopes of tanh, dz_(l+1)/dz_l = W tanh'(z_l) has less: at most 0.490 and 0.849. How much
less depends on the images, which are digits here, enlarged to 32 x 32, with pixels between 0 and 1. "About" gets 0.1,
so that each initialization is the other's control.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study

if TYPE_CHECKING:
    import polars
    from torch import Generator, Tensor

WIDTH, DEPTH, ENLARGED = 1000, 5, 4
ABOUT = 0.1
VARIANCES = {"standard": 1 / 3, "normalized": 1.0}
"""n Var W."""


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed and initialization the mean singular value of the hidden layers' Jacobians at an image."""
    import polars
    import torch

    from bpexp.data import digits
    from bpexp.streams import generator

    images, _ = digits.read()
    rows = []
    for seed in range(seeds):
        stream = generator(seed, "layer Jacobians")
        image = images[int(torch.randint(len(images), (), generator=stream))].reshape(8, 8) / images.max()
        x = image.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1).flatten().float()
        for init, variance in VARIANCES.items():
            found = mean_singular_values(x, math.sqrt(variance), stream)
            rows.append({"seed": seed, "init": init, "singular_value": sum(found) / len(found)})
    return polars.DataFrame(rows)


def mean_singular_values(x: Tensor, sigma_w: float, stream: Generator) -> list[float]:
    """Return the mean singular value of dz_(l+1)/dz_l for l = 1 to DEPTH - 1 of a network at an input."""
    import torch

    found, h, slope = [], x, None
    for _ in range(DEPTH):
        bound = sigma_w * math.sqrt(6 / (WIDTH + len(h)))
        weight = torch.empty(WIDTH, len(h)).uniform_(-bound, bound, generator=stream)
        if slope is not None:
            found.append(float(torch.linalg.svdvals(weight * slope).mean()))
        h = torch.tanh(weight @ h)
        slope = 1 - h * h
    return found


def singular_value(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["singular_value"])


LAYER_JACOBIANS = Study("layer_jacobians", compute, {"full": 10})

CLAIMS = tuple(
    Claim(
        1,
        f"tanh, {DEPTH} layers of {WIDTH} units, {name}: mean singular value of a layer's Jacobian about {value}",
        value,
        value - ABOUT,
        value + ABOUT,
        LAYER_JACOBIANS,
        {"init": init},
        {"init": other},
        singular_value,
    )
    for init, other, name, value in (
        ("standard", "normalized", "weights U(+-1/sqrt n)", 0.5),
        ("normalized", "standard", "normalized initialization", 0.8),
    )
)
