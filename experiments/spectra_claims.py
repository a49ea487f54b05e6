"""Claim 6, spectra of the input-output Jacobian, with its expectations from before a run.

Pennington, Schoenholz and Ganguli 2017, arXiv:1711.04735, and 2018, arXiv:1802.09979. Letters: J = D_L W_L ... D_1 W_1
of n x n weights and slopes D, L = depth, p = probability that a unit is on: 1/2 of relu and 1 of linear ones.

Of the eigenvalues of J J^T the variance over the squared mean tends to L/p with Gaussian weights and to L (1/p - 1)
with orthogonal ones, as n grows at fixed L, and the largest of the Gaussian linear network over the mean to
(L + 1)^(L + 1) / L^L. At n = 400, L = 16 these are 16, 32, 0, 16 and 44.8; what finite width changes is of the order
L/n and, at the edge, n^(-2/3), so that the tolerance is 15 %. The slopes are those of the network's own forward pass.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study, around

if TYPE_CHECKING:
    import polars
    from torch import Tensor

WIDTH, DEPTH = 400, 16
TOLERANCE = 0.15
EXACT = 1e-9
"""What rounding may leave of a variance that is 0."""


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed, activation and initialization the spectrum of one network's J J^T, over its mean.

    variance: of the eigenvalues; largest: of them
    """
    import polars
    import torch

    from bpexp.init import INITS
    from bpexp.streams import generator

    rows = []
    for seed in range(seeds):
        for init in ("lecun", "orthogonal"):
            row, stream = INITS[init], generator(seed, f"spectra of {init}")
            weights = torch.empty(DEPTH, WIDTH, WIDTH, dtype=torch.float64)
            for weight in weights:
                row.fill(weight, row.std(WIDTH, WIDTH), stream)
            h = torch.empty(WIDTH, dtype=torch.float64).normal_(generator=stream)
            for activation in ("identity", "relu"):
                values = eigenvalues(weights, h, activation)
                values /= values.mean()
                found = {"variance": float(values.var(correction=0)), "largest": float(values.max())}
                rows.append({"seed": seed, "init": init, "activation": activation, **found})
    return polars.DataFrame(rows)


def eigenvalues(weights: Tensor, h: Tensor, activation: str) -> Tensor:
    """Return the eigenvalues of J J^T at the input h, (n,), of a network with these weights, (L, n, n)."""
    import torch

    jacobian = torch.eye(len(h), dtype=h.dtype)
    for weight in weights:
        z = weight @ h
        on = (z > 0).to(z.dtype) if activation == "relu" else torch.ones_like(z)
        h = on * z
        jacobian = on[:, None] * (weight @ jacobian)
    values: Tensor = torch.linalg.svdvals(jacobian)
    return values.square()


def mean_of(column: str, rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows[column])


SPECTRA = Study("spectra", compute, {"smoke": 2, "default": 10, "full": 30})
SIZE = f"n = {WIDTH}, L = {DEPTH}"

variance = functools.partial(mean_of, "variance")
largest = functools.partial(mean_of, "largest")


def of(init: str, activation: str) -> dict[str, object]:
    return {"init": init, "activation": activation}


CLAIMS = (
    around(
        6,
        f"Gaussian weights, linear, {SIZE}: variance of the spectrum of J J^T over its squared mean L",
        DEPTH,
        TOLERANCE,
        SPECTRA,
        of("lecun", "identity"),
        of("lecun", "relu"),
        variance,
    ),
    around(
        6,
        f"Gaussian weights, relu, {SIZE}: variance of the spectrum of J J^T over its squared mean 2L",
        2 * DEPTH,
        TOLERANCE,
        SPECTRA,
        of("lecun", "relu"),
        of("orthogonal", "relu"),
        variance,
    ),
    Claim(
        6,
        f"orthogonal weights, linear, {SIZE}: variance of the spectrum of J J^T over its squared mean 0",
        0.0,
        -EXACT,
        EXACT,
        SPECTRA,
        of("orthogonal", "identity"),
        of("orthogonal", "relu"),
        variance,
    ),
    around(
        6,
        f"orthogonal weights, relu, {SIZE}: variance of the spectrum of J J^T over its squared mean L",
        DEPTH,
        TOLERANCE,
        SPECTRA,
        of("orthogonal", "relu"),
        of("lecun", "relu"),
        variance,
    ),
    around(
        6,
        f"Gaussian weights, linear, {SIZE}: largest eigenvalue of J J^T over their mean (L + 1)^(L + 1) / L^L",
        (DEPTH + 1) ** (DEPTH + 1) / DEPTH**DEPTH,
        TOLERANCE,
        SPECTRA,
        of("lecun", "identity"),
        of("orthogonal", "identity"),
        largest,
    ),
)
