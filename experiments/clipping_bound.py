"""How far a gradient reaches in dense recurrent systems: Pascanu et al. 2013, arXiv:1211.5063, sections 2.1 and 2.2.

x_t = W phi(x_(t-1)) + b + u_t, so that dx_t/dx_(t-1) = W diag(phi'(x_(t-1))). lambda_1 is the largest singular value of
W, gamma the largest slope, 1 for tanh and 1/4 for sigmoid: ||dx_t/dx_k|| <= (gamma lambda_1)^(t-k) in the 2-norm. The
bound is put to the test where it is tight: at weak inputs u, and a bias b for which x = 0 is a fixed point, so that
slopes stay close to gamma; and with orthogonal W, all of whose singular values are lambda_1. The slopes are those of
the suite's own backward rules.

Two wrong laws serve as controls: half of gamma, and the largest eigenvalue in place of the largest singular value. Of a
Gaussian W it is about half of that, and products of such matrices grow for a while where it is below 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars
    from torch import Tensor

GAMMAS = {"tanh": 1.0, "sigmoid": 0.25}
MATRICES = ("gaussian", "orthogonal")
LEVELS = (0.5, 0.9, 1.01, 1.2, 2.0)
"""gamma lambda_1 of the systems."""
VANISHING = 0.9
UNITS, STEPS = 32, 20
INPUT_STD = 0.1
LAWS = ("gamma", "half", "radius")
"""The number that is raised to the power t - k: gamma lambda_1, half of it, gamma times the largest eigenvalue."""


def compute(seeds: int) -> polars.DataFrame:
    """Draw a system for each seed, activation, kind of matrix and level, and follow dx_T/dx_k from k = T - 1 to 0.

    Returns: a row for each system and law. base: the law's number; violation: the largest norm over base^(T-k) of all
             k; reach: the norm over all STEPS; explodes: whether a norm is above 1
    """
    import polars
    import torch

    from bpexp.activations import ACTIVATIONS
    from bpexp.streams import generator

    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        stream = generator(seed, "recurrent bound")
        for kind in MATRICES:
            unit = draw(kind, stream)
            inputs = INPUT_STD * torch.randn(STEPS + 1, 1, UNITS, generator=stream, dtype=torch.float64)
            largest = torch.linalg.eigvals(unit).abs().max().item()
            for activation, gamma in GAMMAS.items():
                weights = torch.stack([unit * level / gamma for level in LEVELS])
                found = norms(weights, inputs, ACTIVATIONS[activation].function, ACTIVATIONS[activation].slope)
                distances = torch.arange(1, STEPS + 1, dtype=torch.float64)
                for level, own in zip(LEVELS, found.T, strict=True):
                    bases = dict(zip(LAWS, (level, level / 2, level * largest), strict=True))
                    system = {"seed": seed, "activation": activation, "matrix": kind, "level": level}
                    system |= {"reach": own[-1].item(), "explodes": bool((own > 1).any())}
                    rows += [
                        {**system, "law": law, "base": base, "violation": (own / base**distances).max().item()}
                        for law, base in bases.items()
                    ]
    return polars.DataFrame(rows)


def draw(kind: str, stream: Any) -> Tensor:
    """Return a random matrix whose largest singular value is 1."""
    import torch

    matrix = torch.randn(UNITS, UNITS, generator=stream, dtype=torch.float64)
    if kind == "orthogonal":
        orthogonal: Tensor = torch.linalg.qr(matrix)[0]
        return orthogonal
    largest: Tensor = torch.linalg.matrix_norm(matrix, 2)
    return matrix / largest


def norms(weights: Tensor, inputs: Tensor, function: Any, slope: Any) -> Tensor:
    """Return ||dx_T/dx_k|| of systems with these matrices, (T, R), of distance T - k = 1 first.

    Shapes:  weights: (R, n, n); inputs: (T + 1, 1, n), the first is x_0
    """
    import torch

    x = inputs[0].expand(len(weights), -1)
    bias = -(weights @ function(torch.zeros_like(x))[:, :, None])[:, :, 0]
    states = []
    for u in inputs[1:]:
        states.append(x)
        x = (weights @ function(x)[:, :, None])[:, :, 0] + bias + u
    product, found = torch.eye(weights.shape[1], dtype=weights.dtype).expand_as(weights), []
    for state in reversed(states):
        product = product @ (weights * slope(state)[:, None, :])
        found.append(torch.linalg.matrix_norm(product, 2))
    return torch.stack(found)
