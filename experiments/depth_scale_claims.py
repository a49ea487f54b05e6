"""Claim 4, the depth scales of correlations and of gradients, with its expectations from before a run.

Schoenholz et al. 2017, arXiv:1611.01232. Letters: n = width, c_l = correlation of the pre-activations of two inputs in
layer l, sigma_w2 = n Var W, sigma_b2 = Var b, xi_c = layers over which a deviation from the fixed correlation falls by
a factor e, xi_gradient = those over which the mean square gradient changes by one, up or down.

Both are measured on networks of one width, which are drawn without a matrix: a layer of Gaussian weights makes n
independent pairs of Gaussians from two inputs. Networks first settle. Then two copies with the same weights get pairs
of inputs of which the correlation is higher and lower by AWAY, and the log of the difference falls by 1/xi_c a layer.
In these layers a mean square gradient is multiplied by mean_i phi'(z_i)^2 sigma_w2.

The scales are those of one map, so they agree where c* = 1; in the chaotic phase theory has xi_c = 11.80 and
xi_gradient = 7.98 at sigma_w2 = 2.5. A slope over the FITTED layers is uncertain by about sqrt(5 / (n FITTED)) in a
network, a fiftieth of it: a tolerance of 5 % on the mean.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study, around

if TYPE_CHECKING:
    import numpy as np
    import polars
    from numpy.typing import NDArray

WIDTH = 20_000
SETTLING, PASSING, FITTED = 80, 5, 15
"""Layers: before the copies part, before the fit, and of it."""
AWAY = 0.05
SIGMA_B2 = 0.05
PHASES = {"ordered": (1.3, 1.0), "chaotic": (2.5, 11.7956 / 7.9793)}
"""sigma_w2, and xi_c over xi_gradient."""
TOLERANCE = 0.05


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed and phase the depth scales of a tanh network, and their ratio."""
    import numpy as np
    import polars

    rows = []
    for phase, (sigma_w2, _) in PHASES.items():
        for seed in range(seeds):
            xi_c, xi_gradient = scales(sigma_w2, np.random.default_rng([seed, 6]))
            rows.append({"seed": seed, "phase": phase, "xi_c": xi_c, "xi_gradient": xi_gradient})
    return polars.DataFrame(rows).with_columns(ratio=polars.col("xi_c") / polars.col("xi_gradient"))


def scales(sigma_w2: float, random: np.random.Generator) -> tuple[float, float]:
    """Return xi_c and xi_gradient of a network."""
    import numpy as np

    c, q = 0.5, 1.0
    for _ in range(SETTLING):
        c, q, _ = layer(random.standard_normal((2, WIDTH)), c, q, sigma_w2)
    high, low, logs, factors = min(c + AWAY, 1.0), c - AWAY, [], []
    q_low = q
    for _ in range(PASSING + FITTED):
        units = random.standard_normal((2, WIDTH))
        high, q, factor = layer(units, high, q, sigma_w2)
        low, q_low, _ = layer(units, low, q_low, sigma_w2)
        logs.append(math.log(high - low))
        factors.append(math.log(factor))
    slope = np.polyfit(np.arange(FITTED), logs[PASSING:], 1)[0]
    return -1 / float(slope), 1 / abs(sum(factors[PASSING:]) / FITTED)


def layer(units: NDArray[np.float64], c: float, q: float, sigma_w2: float) -> tuple[float, float, float]:
    """Return correlation and length of the next layer's pre-activations, and what this one does to the gradient.

    Math:    z_1 = sqrt(q) u_1, z_2 = sqrt(q) (c u_1 + sqrt(1 - c^2) u_2), (2, n) standard normal u
    """
    import numpy as np

    first = math.sqrt(q) * units[0]
    second = c * first + math.sqrt(q * (1 - c * c)) * units[1]
    h, other = np.tanh(first), np.tanh(second)
    lengths = [float(sigma_w2 * np.square(a).mean() + SIGMA_B2) for a in (h, other)]
    product = float(sigma_w2 * (h * other).mean() + SIGMA_B2)
    factor = float(sigma_w2 * np.square(1 - h * h).mean())
    return min(product / math.sqrt(lengths[0] * lengths[1]), 1.0), lengths[0], factor


def ratio(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["ratio"])


SCALES = Study("depth_scales", compute, {"smoke": 3, "default": 10, "full": 40})


def claim_of(phase: str, other: str) -> Claim:
    sigma_w2, expected = PHASES[phase]
    agree = "agree" if expected == 1 else "differ"
    title = (
        f"tanh networks, sigma_b^2 = {SIGMA_B2:g}, n = {WIDTH}: in the {phase} phase, sigma_w^2 = {sigma_w2:g}, the "
        f"depth scales of correlations and of gradients {agree}: their ratio"
    )
    return around(4, title, expected, TOLERANCE, SCALES, {"phase": phase}, {"phase": other}, ratio)


CLAIMS = (claim_of("ordered", "chaotic"), claim_of("chaotic", "ordered"))
