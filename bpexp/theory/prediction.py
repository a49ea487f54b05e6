"""What an MLP should measure at initialization: how far signals and gradients reach, layer by layer.

Letters: q = mean square of a pre-activation z, h = what a layer hands on, phi = activation, c = factor of a residual
branch, p = probability to drop a unit, g and delta = gradients with respect to h and z.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bpexp.activations import Activation, Function
from bpexp.init import INITS, Init, Place, unknown_choice
from bpexp.spec import NORMS, RESIDUALS
from bpexp.theory.moments import (
    LARGEST,
    Array,
    activation_mean,
    activation_second_moment,
    refuse_negative,
    resolve,
    slope_second_moment,
)

NORM_EPS = 1e-5  # that of bpexp.models, which stands after this module

NOT_RANDOM = {
    "identity": "its weights are not random, so that what a layer does depends on its very input",
    "fixup": "its output layer starts at zero, so that no gradient reaches a hidden layer",
}


class NoPredictionError(ValueError):
    """Theory has no answer for such a network; the sentence says why."""


@dataclass(frozen=True)
class Prediction:
    """What an MLP at initialization should measure, root mean square over units and samples.

    preactivation_rms: of z, before any norm, layers 1..L+1, (L+1,)
    activation_rms:    layers 1..L, what each hands on to the next (its skip connection included), (L,)
    delta_rms:         layers 1..L, relative to layer L, (L,)
    backward_gain:     geometric mean factor a layer of delta_rms, towards the input; NaN at depth 1
    """

    preactivation_rms: Array
    activation_rms: Array
    delta_rms: Array
    backward_gain: float


@dataclass(frozen=True)
class Linear:
    """A linear layer: its sizes, and the variances of a weight and of a bias."""

    fan_in: int
    fan_out: int
    variance: float
    bias_variance: float

    @property
    def backward_factor(self) -> float:
        return self.fan_out * self.variance


@dataclass(frozen=True)
class Network:
    """An MLP as the theory sees it: its linear layers, 1..L+1, and how a hidden layer puts things together.

    init, gain: what the weights are drawn by; uniform_biases: whether biases are the row's own, not normal
    """

    phi: Activation
    linears: tuple[Linear, ...]
    residual: str
    norm: str
    gate: float
    dropout: float
    input_dropout: float
    init: Init
    gain: float
    uniform_biases: bool

    @property
    def depth(self) -> int:
        return len(self.linears) - 1

    def skips(self, layer: int) -> bool:
        return layer > 1 and self.residual != "none"

    def branch(self, layer: int) -> float:
        """Return c, the factor of the layer's branch."""
        factors = {"scaled": 1 / math.sqrt(self.depth), "rezero": self.gate}
        return factors.get(self.residual, 1.0) if layer > 1 else 1.0

    def normalized(self, q: Array) -> Array:
        """Return the mean squares of what the activation gets; over a wide layer's units z has the mean 0."""
        if self.norm == "none":
            return q
        with np.errstate(divide="ignore"):
            return np.asarray(1 / (1 + NORM_EPS / q))  # q may be infinite

    def log_variance(self, q: Array) -> Array:
        """Return the log of what the norm divides mean squares by."""
        return np.log(q + NORM_EPS) if self.norm == "layer" else np.zeros_like(q)


def predict(
    activation: str | Function | Activation,
    init: str,
    depth: int,
    width: int,
    features: int,
    outputs: int,
    gain: float,
    bias_std: float | None,
    input_mean_squares: ArrayLike,
    residual: str = "none",
    *,
    norm: str = "none",
    gate: float = 0.0,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
) -> Prediction:
    """Predict an MLP's measures at initialization, layer by layer, at its own depth and widths.

    Math:    z_l = W_l h_{l-1} + b_l, n_l = norm(z_l), h_l = m phi(n_l) for l = 1 or residual "none", else
             h_{l-1} + c m phi(n_l); c = 1 ("plain"), 1/sqrt(L) ("scaled") or gate ("rezero"); m = 0 with probability
             p, else 1/(1-p), whose mean is 1 and mean square 1/(1-p).
             Each sample has its own q_l = fan_in Var W_l E h_{l-1}^2 + Var b_l, and mean squares are averaged over
             samples last. A layer norm makes the mean square q/(q + eps): the units' mean is 0 in a wide network.
             mean square g_{l-1} = fan_out Var W_l mean square delta_l (+ mean square g_l), and
             mean square delta_l = c^2/(1-p) E phi'(n_l)^2 mean square g_l (/ (q_l + eps) behind a layer norm: the parts
             of a gradient that the norm takes away are two of the width's directions).
             lsuv's weights have the variance that makes the mean of q_l over the samples gain^2, without dropout
    Shapes:  input_mean_squares: (B,), of each sample over its features
    Raises:  ValueError: an unknown activation, init, residual or norm; a number outside its range; critical without a
             critical point; NoPredictionError: theory has no answer
    Edge:    a gradient that is zero at layer L (zeros, relu of zeros, a gate of 0) makes delta_rms NaN; a length beyond
             1e200 is inf, and the slopes behind it are those at 1e200; every sample is taken to have the same loss
             gradient, which holds where the outputs are small; lsuv itself stops when a variance is within 10 %, which
             is 5 % of preactivation_rms
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, dropout: its section 5; residual: Yang and Schoenholz 2017,
             arXiv:1712.08969; layer norm and the factors of the branches are derived here
    """
    mean_squares = mean_squares_of(input_mean_squares)
    sizes = (features, *[width] * depth, outputs)
    network = describe_network(
        activation,
        init,
        sizes,
        gain,
        bias_std,
        residual,
        norm=norm,
        gate=gate,
        dropout=dropout,
        input_dropout=input_dropout,
    )
    if norm == "batch":
        raise NoPredictionError(
            "no prediction for batch norm: mean field follows one sample, and it ties a batch together"
        )
    if init == "lsuv":
        network = scaled_to_unit_variance(network, mean_squares)
    q, h = forward(network, mean_squares)
    delta = backward(network, q[:-1])
    if delta[-1] == -math.inf:
        delta[:] = math.nan
    with np.errstate(over="ignore"):
        relative = np.exp((delta - delta[-1]) / 2)
        backward_gain = math.nan if depth == 1 else float(np.exp((delta[0] - delta[-1]) / (2 * (depth - 1))))
    preactivation = np.where((q > LARGEST).any(axis=1), math.inf, np.sqrt(np.minimum(q, LARGEST).mean(axis=1)))
    return Prediction(preactivation, np.sqrt(h.mean(axis=1)), relative, backward_gain)


def describe_network(
    activation: str | Function | Activation,
    init: str,
    sizes: tuple[int, ...],
    gain: float,
    bias_std: float | None,
    residual: str = "none",
    *,
    norm: str = "none",
    gate: float = 0.0,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
) -> Network:
    """Return an MLP as the theory sees it.

    Shapes:  sizes: features, the widths of the hidden layers, outputs
    Raises:  as `predict`, but that it knows batch norm
    """
    phi = resolve(activation)
    for key, name, choices in (("init", init, INITS), ("residual", residual, RESIDUALS), ("norm", norm, NORMS)):
        if name not in choices:
            raise unknown_choice(key, name, choices)
    names = ("features", *["width"] * (len(sizes) - 2), "outputs")
    for key, value in (("depth", len(sizes) - 2), *zip(names, sizes, strict=True)):
        if value < 1:
            raise ValueError(f"{key}: {value} is not at least 1")
    refuse_negative(gain=gain, bias_std=bias_std or 0.0)
    refuse_no_probability(dropout=dropout, input_dropout=input_dropout)
    if not math.isfinite(gate):
        raise ValueError(f"gate: {gate} is not a finite number")
    if init in NOT_RANDOM:
        raise NoPredictionError(f"no prediction for init={init}: {NOT_RANDOM[init]}")
    linears = linear_layers(phi, INITS[init], gain, bias_std, sizes)
    return Network(
        phi, linears, residual, norm, gate, dropout, input_dropout, INITS[init], gain, uniform_biases=bias_std is None
    )


def linear_layers(
    phi: Activation, init: Init, gain: float, bias_std: float | None, sizes: tuple[int, ...]
) -> tuple[Linear, ...]:
    """Return the linear layers that an initialization makes between the sizes: features, widths, outputs."""
    depth, found = len(sizes) - 2, []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), 1):
        place = Place(phi, bias_std or 0.0, layer, depth)
        variance = gain**2 * init.variance(fan_in, fan_out, place)
        found.append(Linear(fan_in, fan_out, variance, init.bias_variance(fan_in, bias_std)))
    return tuple(found)


def scaled_to_unit_variance(network: Network, mean_squares: Array) -> Network:
    """Return the network with the weights that lsuv leaves it: the mean of q over the samples is gain^2 in each layer.

    Raises:  NoPredictionError: lsuv cannot do it, as the biases alone are larger, or nothing comes in
    """
    linears: list[Linear] = []
    gain = network.gain

    def scale(linear: Linear, h: Array) -> Linear:
        wanted, there = gain**2 - linear.bias_variance, linear.fan_in * float(h.mean())
        if wanted <= 0 or there == 0:
            why = "the biases alone are larger" if wanted <= 0 else f"what layer {len(linears) + 1} gets is zero"
            raise NoPredictionError(f"no prediction for init=lsuv: it cannot reach the variance {gain**2:g}, as {why}")
        linears.append(dataclasses.replace(linear, variance=wanted / there))
        return linears[-1]

    forward(dataclasses.replace(network, dropout=0.0, input_dropout=0.0), mean_squares, scale)
    return dataclasses.replace(network, linears=tuple(linears))


def forward(
    network: Network, mean_squares: Array, scale: Callable[[Linear, Array], Linear] = lambda linear, h: linear
) -> tuple[Array, Array]:
    """Return the mean squares of z, (L+1, B), and of h, (L, B); `scale` may change a layer that gets h.

    Math:    E h_l^2 = E h_{l-1}^2 + 2 c E h_{l-1} E phi + c^2/(1-p) E phi^2: z_l depends on h_{l-1} through its length
             alone, and a mask on nothing
    """
    h, mean = mean_squares / (1 - network.input_dropout), np.zeros_like(mean_squares)
    lengths, handed_on = [], []
    for layer, drawn in enumerate(network.linears, 1):
        linear = scale(drawn, h)
        q = linear.fan_in * linear.variance * h + linear.bias_variance
        lengths.append(q)
        if layer > network.depth:
            break
        n, c = network.normalized(q), network.branch(layer)
        second = c**2 * activation_second_moment(network.phi, n) / (1 - network.dropout)
        if network.residual == "none":
            h = second
        else:
            first = c * activation_mean(network.phi, n)
            h, mean = (h + 2 * mean * first + second, mean + first) if network.skips(layer) else (second, first)
        handed_on.append(h)
    return np.stack(lengths), np.stack(handed_on)


def backward(network: Network, lengths: Array) -> Array:
    """Return the log of the mean square delta of layers 1..L, up to one constant, (L,).

    Logs, because 1,000 layers of a wrong gain leave the range of a float64.
    """
    depth, samples = lengths.shape
    deltas = np.empty(depth)
    with np.errstate(divide="ignore"):
        g = np.full(samples, np.log(network.linears[depth].backward_factor))
        for layer in range(depth, 0, -1):
            q = lengths[layer - 1]
            slope = slope_second_moment(network.phi, network.normalized(q)) * network.branch(layer) ** 2
            delta = g + np.log(slope) - np.log1p(-network.dropout) - network.log_variance(q)
            deltas[layer - 1] = np.logaddexp.reduce(delta) - np.log(samples)
            through = np.log(network.linears[layer - 1].backward_factor) + delta
            g = np.logaddexp(through, g) if network.skips(layer) else through
    return deltas


def mean_squares_of(values: ArrayLike) -> Array:
    mean_squares = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if mean_squares.ndim != 1 or mean_squares.size == 0:
        raise ValueError(f"input_mean_squares: shape {mean_squares.shape} is not one number a sample, (B,)")
    if not (np.isfinite(mean_squares) & (mean_squares >= 0)).all():
        raise ValueError("input_mean_squares: not all are finite numbers of at least 0")
    return mean_squares


def refuse_no_probability(**numbers: float) -> None:
    for key, value in numbers.items():
        if not 0 <= value < 1:
            raise ValueError(f"{key}: {value} is not a probability below 1")
