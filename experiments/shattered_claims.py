"""Claim 11, shattered gradients, with its expectations from before a run.

Balduzzi et al. 2017, arXiv:1702.08591: the correlation of the gradients at two inputs falls as 2^-L in plain relu
networks, (3/4)^L in residual ones, about 1/sqrt L in residual ones with batch norm. Letters: L = relu layers, n =
width, g = gradient of one random output with respect to the input, rho_l = correlation of the pre-activations
of two inputs in layer l; rho_0 = 0: the inputs are orthogonal, of squared length n. Weights are He's.

Where laws disagree. A layer keeps of E <g, g'> the share of units that are on at both inputs, of those on at one:
1 - arccos(rho_l)/pi. It is 1/2, and the law 2^-L, where two inputs stay independent, rho_l = 0. In a network as it is
trained they do not: relu's outputs are positive and have a mean in common, so that rho rises to 1 with depth and the
factors to 1; at L = 10 the product is 0.0337, not 0.00098. Independent they stay where each unit's pre-activation is
centred over the batch (its mean m a constant): there the paper's laws hold. With batch norm it takes for the variance
that a branch adds E relu^2 with the mean in it, which gives L^-1/2; but a standard deviation is about the mean, and
Var relu = (1 - 1/pi) E relu^2: the correlation is prod (sd_l^2 + 1/2) / (sd_l^2 + 1), sd_l^2 = 1 + (1 - 1/pi) l, 0.079
at L = 64, which is of the order L^-0.73 for large L (from L = 8 to 64 it falls as L^-0.66). Mean and standard deviation
of a batch count as constants, here as in the paper's law. Each law has a row, its control another kind; that of the
last are weights of half the variance, by which the same product, with half of what a branch adds, is 0.115.

A correlation is a network's mean of <g_i, g_j> over the pairs of a batch, over that of |g_i|^2, since moments over
networks would be heavy-tailed. Its tolerance is 15 %, which is
0.02 of each of 8 layers' factors; of an exponent it is 0.1. At n = 256 finite width alone adds as much as that, in
proportion to 1/n: n is 512.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study, Where, around

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars
    from torch import Generator, Tensor

WIDTH, BATCH = 512, 128
DEPTHS = {"plain": (8,), "uncentred": (8, 10), "residual": (8, 12), "normalized": (8, 64), "halved": (64,)}
"""By kind: uncentred is a plain network as it is trained, the others are centred over the batch; halved is normalized,
with half of He's variance."""
NETWORKS = {"plain": 8, "uncentred": 16, "residual": 4, "normalized": 1, "halved": 1}
"""Of a seed, over which means are taken: the more, the more they differ from net to net."""
TOLERANCE = 0.15
EXPONENT_TOLERANCE = 0.1
UNCENTRED, NORMALIZED = 0.033652, 0.079032
"""prod (1 - arccos(rho_l)/pi) at L = 10; prod (sd_l^2 + 1/2) / (sd_l^2 + 1), sd_l^2 = 1 + (1 - 1/pi) l, at L = 64."""


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed, kind and depth the correlation of the gradients of its networks."""
    import polars

    rows = [
        {"seed": seed, "kind": kind, "depth": depth, "correlation": correlation(gradients(kind, depth, seed))}
        for seed in range(seeds)
        for kind, depths in DEPTHS.items()
        for depth in depths
    ]
    return polars.DataFrame(rows)


def gradients(kind: str, depth: int, seed: int) -> list[Tensor]:
    """Return the gradients of an output at BATCH orthogonal inputs, (B, n), of each network of a seed."""
    from bpexp.streams import generator

    stream = generator(seed, f"shattered gradients of {kind}")
    return [one_gradient(kind, depth, stream) for _ in range(NETWORKS[kind])]


def one_gradient(kind: str, depth: int, stream: Generator) -> Tensor:
    """Return a gradient at every input; the moments of a batch count as constants. Layer 1's have the variance 1."""
    import torch

    from bpexp import functional
    from bpexp.init import INITS, fill_orthogonal

    def linear(x: Tensor, init: str) -> Tensor:
        weight = torch.empty(WIDTH, WIDTH).normal_(0.0, INITS[init].std(WIDTH, WIDTH), generator=stream)
        return functional.linear(x, weight)

    inputs = torch.empty(BATCH, WIDTH)
    fill_orthogonal(inputs, 1.0, stream)
    x = (inputs * math.sqrt(WIDTH)).requires_grad_()
    h = linear(x, "lecun")
    for _ in range(depth):
        z = h
        if kind != "uncentred":
            z = functional.subtract(z, h.detach().mean(0))
        if kind in ("normalized", "halved"):
            z = functional.divide(z, h.detach().std(0, correction=0))
        branch = linear(functional.relu(z), "lecun" if kind == "halved" else "he")
        h = functional.add(h, branch) if kind in ("residual", "normalized", "halved") else branch
    readout = torch.empty(WIDTH).normal_(generator=stream)
    (found,) = torch.autograd.grad(functional.matmul(h, readout).sum(), x)
    return found


def correlation(gradients: Sequence[Tensor]) -> float:
    """Return the mean of <g_i, g_j>, i != j, over that of |g_i|^2: a mean over networks, of gradients (B, n) each."""
    found = [float(g.sum(0).square().sum() / g.square().sum() - 1) / (len(g) - 1) for g in gradients]
    return sum(found) / len(found)


def own(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["correlation"])


def exponent(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The slope of the log of the correlation against log L between the two depths of a kind."""
    first, second = (rows.filter(rows["depth"] == depth).sort("seed") for depth in rows["depth"].unique().sort())
    ratio = (second["correlation"] / first["correlation"]).log() / math.log(second["depth"][0] / first["depth"][0])
    return mean_interval(ratio)


SHATTERED = Study("shattered", compute, {"smoke": 3, "default": 6, "full": 20})
SIZE = f"rho_0 = 0, n = {WIDTH}"


def law(title: str, expected: float, kind: str, depth: int, control: Where) -> Claim:
    """Return the claim on the correlation of a kind of network at a depth."""
    title = f"{title}, {SIZE}, L = {depth}: correlation of gradients"
    where: Where = {"kind": kind, "depth": depth}
    return around(11, title, expected, TOLERANCE, SHATTERED, where, control, own)


CLAIMS = (
    law("relu, He, centred: 2^-L", 2**-8, "plain", 8, {"kind": "residual", "depth": 8}),
    law("relu, He, not centred: 2^-L", 2**-8, "uncentred", 8, {"kind": "residual", "depth": 8}),
    law(
        "relu, He, not centred: prod (1 - arccos(rho_l)/pi)",
        UNCENTRED,
        "uncentred",
        10,
        {"kind": "plain", "depth": 8},
    ),
    law("relu, He, centred, residual: (3/4)^L", 0.75**12, "residual", 12, {"kind": "plain", "depth": 8}),
    Claim(
        11,
        f"relu, He, residual with batch norm of constant moments, {SIZE}: correlation of gradients about L^-1/2 from "
        "L = 8 to 64",
        -0.5,
        -0.5 - EXPONENT_TOLERANCE,
        -0.5 + EXPONENT_TOLERANCE,
        SHATTERED,
        {"kind": "normalized"},
        {"kind": "residual"},
        exponent,
    ),
    law(
        "relu, He, residual with batch norm of constant moments: prod (sd_l^2 + 1/2) / (sd_l^2 + 1), sd_l^2 = 1 + (1 - "
        "1/pi) l, which is of the order L^-0.73 for large L",
        NORMALIZED,
        "normalized",
        64,
        {"kind": "halved", "depth": 64},
    ),
)
