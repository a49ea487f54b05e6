"""Claims 4 and 5, the critical line and the edge of chaos, with their expectations from before a run.

Claim 4: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232. Claim 5: Hayou et al. 2019,
arXiv:1902.06853. Letters: n = width, l = layer, q_l = mean square of its pre-activations, c_l = correlation of those of
two inputs, sigma_w2 = n Var W, sigma_b2 = Var b, chi_l = mean square of a singular value of the Jacobian of layer l.

On given inputs a layer of Gaussian weights and biases makes n independent Gaussians for each, of covariances that are
those of what comes in: networks of any width are drawn as they are, without a matrix.

The critical line is measured on networks: what they are drawn from stands, sigma_w is turned until the mean of chi_l
over the layers behind the first SETTLING is 1. A mean over the units fluctuates by about sqrt(2/n) = 1 % in a layer,
and less over the layers: a tolerance of 1 %, and of 3 % of q, which a change of sigma_w2 by 1 % moves by 2 %.

At the edge of chaos what is claimed are limits of the maps of infinite width: they are followed for LAYERS layers from
correlations and lengths that differ from seed to seed. A start is worth beta_q / (1 - c_0) or 1 / (2 q_0) layers: c_0
is at most 1/2 and q_0 at least 1/2. What is next to the limit is of order log(l) / l: 1 %. Networks have to follow the
maps: in DEPTH layers of width WIDTH the log of 1 - c_l gets a variance of about 5 DEPTH / WIDTH = 0.0025, and a
tolerance on its mean of 10 %.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study, Where, around

if TYPE_CHECKING:
    import numpy as np
    import polars
    from numpy.typing import NDArray

CRITICAL = {0.01: (1.4242, 0.273), 0.05: (1.7610, 0.570), 0.10: (1.9861, 0.806)}
"""Of tanh, by sigma_b2: sigma_w2 and q*."""
LINE_WIDTH, LINE_DEPTH, SETTLING = 20_000, 40, 15
LINE_TOLERANCE, LENGTH_TOLERANCE = 0.01, 0.03

LAYERS, LENGTH_LAYERS = 10_000, 1000
"""That correlations, and lengths, are followed for."""
LIMIT_TOLERANCE = 0.01
BIAS = 0.05
RATE = 6.171
"""beta_q of tanh at sigma_b2 = BIAS."""
WRONG_W2 = 1.02
"""Just above the critical 1 of tanh without biases."""

WIDTH, DEPTH = 100_000, 50
FOLLOWING_TOLERANCE = 0.10
CASES = {"relu": ("relu", 0.0), "tanh": ("tanh", BIAS), "tanh without biases": ("tanh", 0.0)}
"""Networks at the edge of chaos: activation and sigma_b2."""


def compute_line(seeds: int) -> polars.DataFrame:
    """Return for each seed and sigma_b2 the sigma_w2 at which a tanh network is critical, and q there."""
    import numpy as np
    import polars
    from scipy.optimize import brentq

    rows = []
    for seed in range(seeds):
        random = np.random.default_rng([seed, 4])
        along, biases = random.standard_normal((2, LINE_DEPTH, LINE_WIDTH))
        across = random.chisquare(LINE_WIDTH - 1, (LINE_DEPTH, LINE_WIDTH))
        for sigma_b2 in CRITICAL:
            network = functools.partial(settled, along, across, math.sqrt(sigma_b2) * biases)
            sigma_w2 = brentq(lambda w2, network=network: network(w2)[0] - 1, 1.0, 4.0, xtol=1e-4)
            rows.append({"seed": seed, "sigma_b2": sigma_b2, "sigma_w2": sigma_w2, "q": network(sigma_w2)[1]})
    return polars.DataFrame(rows)


def settled(
    along: NDArray[np.float64], across: NDArray[np.float64], biases: NDArray[np.float64], sigma_w2: float
) -> tuple[float, float]:
    """Return means of chi_l and q_l over the layers behind the first SETTLING of a tanh network on one input.

    Math:    a row of W sqrt(n / sigma_w2) has the part u, `along` what comes in, and its square has |u|^2 + `across`, a
             chi2 of n - 1; z = sigma_w rms(h) u + b. The Jacobian is diag(phi'(z)) W: its mean square singular value
             is mean_i phi'(z_i)^2 |W_i|^2
    Shapes:  (L, n) each
    """
    import numpy as np

    chis, lengths, size = [], [], 1.0
    for u, rest, bias in zip(along, across, biases, strict=True):
        z = math.sqrt(sigma_w2) * size * u + bias
        h = np.tanh(z)
        size = math.sqrt(np.square(h).mean())
        chis.append(float(np.mean(np.square(1 - h * h) * sigma_w2 * (u * u + rest) / len(u))))
        lengths.append(float(np.square(z).mean()))
    behind = slice(SETTLING, None)
    return float(np.mean(chis[behind])), float(np.mean(lengths[behind]))


def compute_edge(seeds: int) -> polars.DataFrame:
    """Return for each seed and case what becomes of a correlation up to 1/2, and a length from 1/2 to 1, by the maps.

    gap: 1 - c_l at LAYERS; length: q_l at LENGTH_LAYERS, of tanh without biases; each null of other cases
    """
    import numpy as np
    import polars

    from bpexp import theory

    start = np.array([np.random.default_rng([seed, 5]).uniform((0, 0.5), (0.5, 1)) for seed in range(seeds)])
    rows: list[dict[str, Any]] = []
    for case in ("relu", "tanh"):
        activation, sigma_b2 = CASES[case]
        gaps = theory.follow_correlation(activation, start[:, 0], LAYERS, critical_w2(case), sigma_b2)[-1]
        rows += [{"seed": seed, "case": case, "gap": gap} for seed, gap in enumerate(gaps.tolist())]
    for sigma_w2 in (1.0, WRONG_W2):
        q = follow_length(start[:, 1], LENGTH_LAYERS, sigma_w2).tolist()
        rows += [{"seed": seed, "case": f"sigma_w2={sigma_w2:g}", "length": length} for seed, length in enumerate(q)]
    return polars.DataFrame(rows, infer_schema_length=None)


def critical_w2(case: str) -> float:
    from bpexp import theory

    activation, sigma_b2 = CASES[case]
    return theory.critical(activation, math.sqrt(sigma_b2)) ** 2


def follow_length(q: NDArray[np.float64], layers: int, sigma_w2: float) -> NDArray[np.float64]:
    """Return the lengths of tanh without biases after so many layers."""
    from bpexp import theory

    for _ in range(layers):
        q = theory.length_map("tanh", q, sigma_w2, 0.0)
    return q


def compute_networks(seeds: int) -> polars.DataFrame:
    """Return for each seed, case of networks and law of a case what was measured at layer DEPTH over what it predicts.

    Of tanh without biases that is q_l, else 1 - c_l. Networks start at orthogonal inputs of mean square 1, those with a
    fixed length at that.
    """
    import polars

    from bpexp.streams import generator

    rows = []
    for case in CASES:
        for seed in range(seeds):
            gap, length = pair_network(case, generator(seed, f"edge of chaos, {case}"))
            rows += [
                {"seed": seed, "case": case, "law": law, "ratio": (length if law == LENGTHS else gap) / predicted(law)}
                for law in CASES
            ]
    return polars.DataFrame(rows)


LENGTHS = "tanh without biases"


def start_length(case: str) -> float:
    from bpexp import theory

    activation, sigma_b2 = CASES[case]
    return 1.0 if case == LENGTHS else theory.fixed_point(activation, critical_w2(case), sigma_b2)


def pair_network(case: str, stream: Any) -> tuple[float, float]:
    """Return 1 - c_l and q_l of a network at layer DEPTH, l = 0 being the first pre-activations, orthogonal ones.

    Math:    z = L u, L L^T = sigma_w2 H^T H / n + sigma_b2, H = (n, 2) what the two inputs made of the layer below, u
             = (2, n) standard normal
    """
    import torch

    from bpexp.activations import ACTIVATIONS

    activation, sigma_b2 = CASES[case]
    sigma_w2, phi = critical_w2(case), ACTIVATIONS[activation].function
    covariance = start_length(case) * torch.eye(2, dtype=torch.float64)
    u = torch.empty(2, WIDTH)
    for _ in range(DEPTH):
        z = torch.linalg.cholesky(covariance).float() @ u.normal_(generator=stream)
        h = phi(z)
        covariance = sigma_w2 * (h @ h.T).double() / WIDTH + sigma_b2
    lengths = covariance.diagonal()
    return float(1 - covariance[0, 1] / lengths.prod().sqrt()), float(lengths.mean())


@functools.cache
def predicted(law: str) -> float:
    """Return 1 - c_l, or q_l of tanh without biases, by the maps."""
    import numpy as np

    from bpexp import theory

    activation, sigma_b2 = CASES[law]
    if law == LENGTHS:
        return float(follow_length(np.array(start_length(law)), DEPTH, critical_w2(law)))
    return float(theory.follow_correlation(activation, 0.0, DEPTH, critical_w2(law), sigma_b2)[-1])


def mean_of(column: str, rows: polars.DataFrame, records: polars.DataFrame, *, factor: float = 1.0) -> Interval:
    return mean_interval(factor * value for value in rows[column])


LINE = Study("critical_line", compute_line, {"smoke": 3, "default": 10, "full": 40})
EDGE = Study("edge_of_chaos", compute_edge, {"smoke": 3, "default": 10, "full": 40})
NETWORKS = Study("edge_networks", compute_networks, {"default": 10, "full": 40})


def line_claims() -> list[Claim]:
    """Return the claims on the critical line; the control of each are the same networks with other biases."""
    found = []
    for sigma_b2, (sigma_w2, q) in CRITICAL.items():
        own: Where = {"sigma_b2": sigma_b2}
        control: Where = {"sigma_b2": 0.10 if sigma_b2 < 0.10 else 0.01}
        for what, value, tolerance, column in (
            ("sigma_w^2", sigma_w2, LINE_TOLERANCE, "sigma_w2"),
            ("q*", q, LENGTH_TOLERANCE, "q"),
        ):
            title = f"tanh networks, sigma_b^2 = {sigma_b2:g}, n = {LINE_WIDTH}: {what} of the critical line"
            measure = functools.partial(mean_of, column)
            found.append(around(4, title, value, tolerance, LINE, own, control, measure))
    return found


def network_claims() -> list[Claim]:
    """Return the claims that networks follow the maps; the control of each are the networks of another case."""
    found = []
    for case, (activation, sigma_b2) in CASES.items():
        what = "q_l" if case == LENGTHS else "1 - c_l"
        control: Where = {"case": "tanh" if case == "relu" else "relu", "law": case}
        found.append(
            around(
                5,
                f"{activation} networks at the edge of chaos, sigma_b^2 = {sigma_b2:g}, n = {WIDTH}, l = {DEPTH}: "
                f"{what} over that of infinite width",
                1.0,
                FOLLOWING_TOLERANCE,
                NETWORKS,
                {"case": case, "law": case},
                control,
                functools.partial(mean_of, "ratio"),
            )
        )
    return found


CLAIMS = (
    *line_claims(),
    around(
        5,
        f"relu at the edge of chaos: 1 - c_l tends to 9 pi^2 / (2 l^2); l^2 (1 - c_l) at l = {LAYERS}",
        9 * math.pi**2 / 2,
        LIMIT_TOLERANCE,
        EDGE,
        {"case": "relu"},
        {"case": "tanh"},
        functools.partial(mean_of, "gap", factor=LAYERS**2),
    ),
    around(
        5,
        f"tanh at the edge of chaos, sigma_b^2 = {BIAS:g}: 1 - c_l tends to beta_q / l; l (1 - c_l) at l = {LAYERS}",
        RATE,
        LIMIT_TOLERANCE,
        EDGE,
        {"case": "tanh"},
        {"case": "relu"},
        functools.partial(mean_of, "gap", factor=LAYERS),
    ),
    around(
        5,
        f"tanh, sigma_w = 1, sigma_b = 0: q_l tends to 1 / (2 l); 2 l q_l at l = {LENGTH_LAYERS}",
        1.0,
        LIMIT_TOLERANCE,
        EDGE,
        {"case": "sigma_w2=1"},
        {"case": f"sigma_w2={WRONG_W2:g}"},
        functools.partial(mean_of, "length", factor=2 * LENGTH_LAYERS),
    ),
    *network_claims(),
)
