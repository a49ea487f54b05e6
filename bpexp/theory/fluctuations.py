"""What networks of finite width measure at initialization: how much they differ, and how far from infinite width.

A squared length is a product of random factors, one a layer; its log is close to normal, and lower than the log of its
mean. For one sample of some networks that law is known, and is drawn as it is. The gain of a batch, of which samples
share weights and have the loss's gradients, has none: networks of the same sizes are drawn and passed through, with
weights, masks and batches of their own.

Letters: R networks, B samples, L hidden layers, n_j = width of layer j, p = probability that a unit is on, q = mean
square of a pre-activation.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bpexp.init import fill_normal
from bpexp.theory.drawn import Error, pass_through
from bpexp.theory.moments import Array
from bpexp.theory.prediction import Network, NoPredictionError

LEVEL = 0.99
NETWORKS = (16, 64, 192)
"""Networks that are drawn for a band, and in all if that would be too wide; as many as the last if that can help."""
MEASURED, HALF_WIDTH = 20, 0.02
"""Too wide: the band of the mean of so many measured networks reaches further than this share of it, on either side."""
RESOLUTION = 1e-6
"""What the rounding of float32 makes of a gain, at most: it is all that parts orthogonal linear networks."""
BYTES_AT_ONCE = 2**27
"""Of the weights and values of the networks that are passed through side by side."""

Batch = Callable[[int], tuple[Tensor, Tensor]]
"""R -> inputs (R, B, F) and targets (R, B, ...) of as many networks."""


@dataclass(frozen=True)
class Band:
    """Where the geometric mean of some measured gains lies with probability LEVEL, and the p-value of where it does."""

    mean: float
    low: float
    high: float
    p_value: float


NO_BAND = Band(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Simulation:
    """Networks that were drawn: logs of delta_rms and of activation_rms, (R, L), and of the backward gains, (R,).

    Logs are natural; -inf is a gradient of zero, NaN the gain of a network that has none.
    """

    delta_rms: Array
    activation_rms: Array
    gain: Array

    def band(self, gains: Sequence[float]) -> Band:
        """Return the band of the geometric mean of as many gains as were measured, and the p-value of that mean.

        Math:    m +- t(1 - (1 - LEVEL)/2; R - 1) e, e^2 = s^2 (1/k + 1/R) + RESOLUTION^2, m and s those of the R
                 simulated logs, k gains; p is the probability that Student's t is further from 0 than the measured
                 mean is from m, in units of e. Both are about right, and exact where the logs are normal and s is far
                 above RESOLUTION.
        Edge:    NaN where fewer than two networks have a gain, or nothing was measured
        """
        from scipy.special import stdtr, stdtrit

        own = self.gain[np.isfinite(self.gain)]
        if len(own) < 2 or not len(gains):
            return NO_BAND
        mean, freedom = float(own.mean()), len(own) - 1
        error = math.hypot(float(own.std(ddof=1)) * math.sqrt(1 / len(gains) + 1 / len(own)), RESOLUTION)
        off = abs(float(np.log(np.asarray(gains)).mean()) - mean)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
        with np.errstate(over="ignore"):
            middle, low, high = (float(value) for value in np.exp([mean, mean - half, mean + half]))
        return Band(middle, low, high, 2 * float(stdtr(freedom, -off / error)))

    def spread(self, measure: str) -> tuple[Array, Array]:
        """Return the ends between which a measure of a network's layers lies with probability LEVEL, (L,) each.

        Math:    m +- t(1 - (1 - LEVEL)/2; R - 1) s sqrt(1 + 1/R) of the R logs of a layer
        Edge:    NaN for a layer where a network has zero, or a value that is not finite
        """
        from scipy.special import stdtrit

        logs: Array = getattr(self, measure)
        logs = np.where(np.isfinite(logs).all(axis=0), logs, np.nan)
        factor = float(stdtrit(len(logs) - 1, (1 + LEVEL) / 2)) * math.sqrt(1 + 1 / len(logs))
        mean, half = logs.mean(axis=0), factor * logs.std(axis=0, ddof=1)
        with np.errstate(over="ignore"):
            return np.exp(mean - half), np.exp(mean + half)


def simulate(network: Network, batch: Batch, error: Error, generator: torch.Generator) -> Simulation:
    """Draw networks, and pass a batch through each, forward and backward.

    Edge:    the gradient of the loss is that of the drawn network's own outputs and targets; deltas that are no normal
             numbers of the inputs' type count as zero
    """
    few, more, most = NETWORKS
    found = draw_networks(network, *batch(few), error, generator)
    if is_wide(found, networks=few):
        found = join(found, draw_networks(network, *batch(more - few), error, generator))
    if is_wide(found, networks=more) and not is_wide(found):
        found = join(found, draw_networks(network, *batch(most - more), error, generator))
    return found


def is_wide(simulation: Simulation, networks: float = math.inf) -> bool:
    """Return whether the band of MEASURED networks is too wide, or would be if that many were drawn, equally far apart.

    Edge:    networks without a gain have no band that could be too wide
    """
    from scipy.special import stdtrit

    own = simulation.gain[np.isfinite(simulation.gain)]
    if len(own) < 2:
        return False
    factor = float(stdtrit(networks - 1, (1 + LEVEL) / 2))
    half = factor * float(own.std(ddof=1)) * math.sqrt(1 / MEASURED + 1 / networks)
    return half > math.log1p(HALF_WIDTH)


def join(one: Simulation, other: Simulation) -> Simulation:
    parts = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return Simulation(*map(np.concatenate, parts))


def draw_networks(network: Network, x: Tensor, y: Tensor, error: Error, generator: torch.Generator) -> Simulation:
    """Draw a network for each batch, and pass that through it; BYTES_AT_ONCE bound how many go side by side."""
    numbers = sum(one.fan_in * one.fan_out + 3 * x.shape[1] * one.fan_out for one in network.linears)
    at_once = max(1, BYTES_AT_ONCE // (numbers * x.element_size()))
    parts = [
        pass_through(network, *one, error, generator) for one in zip(x.split(at_once), y.split(at_once), strict=True)
    ]
    deltas, sizes = (torch.cat(logs).numpy() for logs in zip(*parts, strict=True))
    deltas[deltas <= math.log(x.shape[1] * torch.finfo(x.dtype).tiny)] = -math.inf
    return Simulation(deltas, sizes, np.array([log_gain(row) for row in deltas]))


def log_gain(log_delta: Array) -> float:
    """Return the log of the backward gain of one network, as `bpexp.verdict.judge` says; NaN where it has none."""
    if np.isnan(log_delta).any() or np.isposinf(log_delta).any():
        return math.nan
    zeros = np.flatnonzero(np.isneginf(log_delta))
    start = int(zeros[-1]) + 1 if len(zeros) else 0
    layers = len(log_delta) - 1 - start
    return float(log_delta[start] - log_delta[-1]) / layers if layers > 0 else math.nan


ON = {"relu": 0.5, "identity": 1.0}
"""p, of activations that are linear where a unit is on."""


def draw_law(network: Network, networks: int, generator: np.random.Generator) -> Array:
    """Draw the logs of the factors of one sample's squared length, layer by layer, (R, L), of relu and linear networks.

    Math:    |h_l|^2 = |h_{l-1}|^2 Var W_l chi2_K, K ~ Binomial(n_l, p) units that are on, independent of all layers
             below; |delta_{l-1}|^2 = |delta_l|^2 Var W_l chi2_K with n_{l-1} units: the same where widths are equal.
             For He's relu the factor is (2/n) chi2_K, of mean 1 and mean square 1 + 5/n.
             It is exact for lengths, and for gradients that do not depend on the outputs, as the loss's do a little.
    Edge:    -inf where no unit is on
    Raises:  NoPredictionError: networks of another kind
    Source:  Hanin and Nica 2019, arXiv:1812.05994: signs of symmetric weights make masks independent of them
    """
    hidden = network.linears[:-1]
    plain = network.residual == network.norm == "none" and network.dropout == 0
    biased = any(linear.bias_variance for linear in hidden)
    if network.phi.name not in ON or network.init.fill is not fill_normal or not plain or biased:
        raise NoPredictionError("no law: it is known of relu or identity with normal weights and nothing else")
    units = np.array([linear.fan_out for linear in hidden])
    on = generator.binomial(units, ON[network.phi.name], (networks, len(hidden)))
    squares = generator.chisquare(np.maximum(on, 1)) * (on > 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(squares * np.array([linear.variance for linear in hidden])))
