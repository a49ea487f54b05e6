"""Claim 3, how much networks of finite width differ, with its expectations from before a run.

Hanin 2018, arXiv:1801.03744; Hanin and Nica 2019, arXiv:1812.05994. Letters: n = width, L = depth, p = probability that
a unit is on, 1/2 of relu and 1 of linear ones; factor = that of a layer on a squared length, |h_l|^2 / |h_(l-1)|^2.

Weights of variance 1/(p n), He's for relu and lecun's for linear ones, keep the mean of squared lengths. Given h_(l-1)
the n pre-activations are independent Gaussians of variance |h_(l-1)|^2 / (p n), each on with probability p, whatever
h_(l-1) is. So layers are independent, and a factor is chi2_K / (p n), K ~ Binomial(n, p). Its mean is 1, its mean
square 1 + (3/p - 1)/n: 1 + 5/n for relu, 1 + 2/n for linear ones. At n = 32, L = 10 that is 4.271 and 1.834 over all
layers. The log of the squared length tends to N(-b/2, b), b = (3/p - 1) L/n; its exact mean and variance there are
-0.825 and 1.775 for relu, where -b/2 = -0.781 and b = 1.5625, -0.316 and 0.645 for linear ones: "close to" gets 20 %.

Distributions are compared by Kolmogorov's distance: sqrt(N) times that of N draws to their own law is 0.87 in the mean,
and above 1.1 in one of six samples; a bound of 1.1 on its mean over seeds leaves room for the interval. Raw moments are
heavy-tailed: those of single layers are taken, and multiplied.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study, around

if TYPE_CHECKING:
    import numpy as np
    import polars
    from numpy.typing import NDArray
    from torch import Tensor

WIDTH, DEPTH = 32, 10
NETWORKS, DRAWS = 2000, 200_000
"""Of a seed; from a law."""
INITS = {"relu": "he", "identity": "lecun"}
"""By activation, which names its law too."""
CLOSE = 0.2
MOMENT_TOLERANCE = 0.05
LARGEST_DISTANCE = 1.1


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed, activation and law what the squared lengths of NETWORKS networks show.

    mean, variance: of the log of the squared length; moment: its mean square, the product of those of the layers;
    distance: Kolmogorov's to the law
    """
    import polars
    import torch

    from bpexp.streams import generator

    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        stream = generator(seed, "finite width")
        weights = torch.empty(DEPTH, NETWORKS, WIDTH, WIDTH).normal_(generator=stream)
        for activation in INITS:
            logs = log_factors(weights, activation).double().numpy()
            total = logs.sum(axis=0)
            found = {"mean": total.mean(), "variance": total.var(ddof=1), "moment": moment(logs)}
            rows += [
                {"seed": seed, "activation": activation, "law": law, **found, "distance": distance(total, draws(law))}
                for law in INITS
            ]
    return polars.DataFrame(rows)


def log_factors(weights: Tensor, activation: str) -> Tensor:
    """Return the logs of the factors of networks with these standard normal weights, (L, R, n, n), layer by layer.

    The first layer gets ones; which vector it is does not matter, as the weights have no direction.
    """
    import torch

    h, logs = torch.ones(*weights.shape[1:3], 1), []
    for weight in weights:
        z = weight @ h * math.sqrt((2 if activation == "relu" else 1) / WIDTH)
        after = z.relu() if activation == "relu" else z
        logs.append(2 * (torch.linalg.vector_norm(after, dim=(1, 2)) / torch.linalg.vector_norm(h, dim=(1, 2))).log())
        h = after
    return torch.stack(logs)


def moment(logs: NDArray[np.float64]) -> float:
    """Return the product over the layers of the mean square of their factors, from the logs of these, (L, R)."""
    import numpy as np

    return float(np.prod(np.exp(2 * logs).mean(axis=1)))


@functools.cache
def draws(law: str) -> NDArray[np.float64]:
    """Return logs of squared lengths from the law of an activation, in rising order."""
    import numpy as np

    from bpexp.theory import describe_network, draw_law

    network = describe_network(law, INITS[law], (WIDTH, *[WIDTH] * DEPTH, 1), 1.0, 0.0)
    return np.sort(draw_law(network, DRAWS, np.random.default_rng(0)).sum(axis=1))


def distance(values: NDArray[np.float64], law: NDArray[np.float64]) -> float:
    """Return Kolmogorov's distance of two samples, times sqrt(N M / (N + M))."""
    import numpy as np

    values, both = np.sort(values), np.concatenate([values, law])
    of_values, of_law = (np.searchsorted(one, both, side="right") / len(one) for one in (values, law))
    scale = math.sqrt(len(values) * len(law) / len(both))
    return scale * float(np.abs(of_values - of_law).max())


def mean_of(column: str, rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows[column])


FINITE_WIDTH = Study("finite_width", compute, {"smoke": 3, "default": 20, "full": 40})


def own(activation: str) -> dict[str, object]:
    return {"activation": activation, "law": activation}


def log_claims(activation: str, other: str, on: float) -> tuple[Claim, Claim]:
    """Return the claims on mean and variance of the log; the control are the networks of the other activation."""
    b = (3 / on - 1) * DEPTH / WIDTH
    name = f"{activation}, n = {WIDTH}, L = {DEPTH}: log of the squared length"
    sides = (FINITE_WIDTH, own(activation), own(other))
    mean = Claim(
        3,
        f"{name}: mean -b/2, b = {3 / on - 1:g} L/n",
        -b / 2,
        -b / 2 * (1 + CLOSE),
        -b / 2 * (1 - CLOSE),
        *sides,
        functools.partial(mean_of, "mean"),
    )
    variance = around(3, f"{name}: variance b", b, CLOSE, *sides, functools.partial(mean_of, "variance"))
    return mean, variance


CLAIMS = (
    Claim(
        3,
        f"He's relu, n = {WIDTH}, L = {DEPTH}: squared lengths are products of independent (2/n) chi2_K, K ~ "
        "Binomial(n, 1/2): Kolmogorov's distance to that law, times sqrt(N)",
        0.8687,
        0.0,
        LARGEST_DISTANCE,
        FINITE_WIDTH,
        own("relu"),
        {"activation": "relu", "law": "identity"},
        functools.partial(mean_of, "distance"),
    ),
    around(
        3,
        f"He's relu, n = {WIDTH}, L = {DEPTH}: second moment of the squared length prod (1 + 5/n)",
        (1 + 5 / WIDTH) ** DEPTH,
        MOMENT_TOLERANCE,
        FINITE_WIDTH,
        own("relu"),
        own("identity"),
        functools.partial(mean_of, "moment"),
    ),
    *log_claims("relu", "identity", 0.5),
    *log_claims("identity", "relu", 1.0),
)
