"""How fast a wide network learns, from its initialization alone: its tangent kernel between samples of two classes.

A step of gradient descent moves the outputs f of a wide network by -lr K d loss / d f, with K(x, x') the inner product
of the gradients of f at x and at x' (Jacot et al. 2018, arXiv:1806.07572). Means over samples know three values of a
kernel: of a sample with itself, with another of its class, and with one of another class. All here are triples of
these.

Letters: z, n, h, c, g, delta, phi, p as in `prediction`; H, G, D = covariances over units of h, g and delta, (3,).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bpexp.activations import Activation
from bpexp.init import fill_orthogonal
from bpexp.theory.moments import Array, evaluate, half_line
from bpexp.theory.prediction import NORM_EPS, Linear, Network, NoPredictionError, scaled_to_unit_variance

TERMS = 48
SPACING = 0.25
LOG_LENGTHS = np.arange(-24.0, 24.0 + SPACING, SPACING)
TINY = 1e-300


@dataclass(frozen=True)
class Tangent:
    """What the first steps of a wide network depend on.

    kernel:        that of one output, (3,)
    pairs:         shares of a batch's pairs of samples that the three are, (3,)
    classes:       number of classes
    output_length: mean square of an output
    fluctuation:   about the variance, over networks of this width, of the log of a squared gradient
    """

    kernel: Array
    pairs: Array
    classes: int
    output_length: float
    fluctuation: float

    @property
    def step(self) -> float:
        """The largest eigenvalue of a batch's kernel over its size: the sharpest direction that a step can take.

        Math:    eigenvectors are equal in all samples, or in those of a class and of mean 0 over the classes
        """
        own, alike, other = self.kernel
        classes = (own - alike) * self.pairs[0] + (alike - other) * (self.pairs[0] + self.pairs[1])
        return float(max(self.kernel @ self.pairs, classes))

    @property
    def progress(self) -> float:
        """The eigenvalue of what tells classes apart in all the data: the kernel's excess in a class by its share."""
        return float((self.kernel[1] - self.kernel[2]) / self.classes)


@dataclass(frozen=True)
class Duals:
    """E phi(u) phi(v) and E phi'(u) phi'(v) of three covariances, (3,) each; E phi and E phi'^4 / (E phi'^2)^2."""

    values: Array
    slopes: Array
    mean: float
    kurtosis: float


@dataclass(frozen=True)
class Layer:
    """A hidden layer after the forward pass: H of what it gets, covariances of n, and what the norm divided z's by."""

    linear: Linear
    below: Array
    n: Array
    scale: float
    duals: Duals


def shares_of_pairs(batch_size: int, classes: int) -> Array:
    """Return which shares of a batch's pairs are a sample with itself, two of one class, and two of different ones.

    Math:    1/B, (1 - 1/B)/C, (1 - 1/B)(1 - 1/C) on average over batches that are drawn from many samples of classes of
             one size
    """
    apart = 1 - 1 / batch_size
    return np.array([1 / batch_size, apart / classes, apart * (1 - 1 / classes)])


def tangent(network: Network, input_covariances: ArrayLike, pairs: ArrayLike, classes: int) -> Tangent:
    """Return the tangent kernel of a wide network at initialization, and what else its first steps depend on.

    Math:    forward as `prediction.forward`, with E phi(n) phi(n') for E phi^2; D = c^2 G E phi'(n) phi'(n') / Var z
             (behind a norm), and G of the layer below is fan_out Var W D, + G around a skip. A weight matrix adds
             fan_out fan_in D H to the kernel, its biases fan_out D, a gate width G E phi phi', the weights and biases
             of a norm width c^2 G E phi'(n) phi'(n') (E n n' + 1). A mask of dropout is each sample's own: it
             multiplies the sample's product with itself by 1/(1-p). Batch norm takes the mean over pairs from the
             covariances of z and from H in the kernel.
    Shapes:  input_covariances: (3,), means over the features; pairs: (3,), as `shares_of_pairs`
    Raises:  NoPredictionError: lengths or a kernel that are no finite numbers; batch norm over a single sample
    Edge:    under batch norm the kernel is that of gradients without a mean over the batch, which tell classes apart,
             and to about a tenth: what it takes from them along n is left out
    Source:  Jacot et al. 2018, arXiv:1806.07572; its part in trainability: Xiao et al. 2020, arXiv:1912.13053;
             masks, norms, gates and classes are derived here
    """
    inputs, pairs = (np.asarray(values, dtype=np.float64) for values in (input_covariances, pairs))
    if network.norm == "batch" and pairs[0] == 1:
        raise NoPredictionError("no prediction: batch norm over a single sample has no variance")
    if network.init.name == "lsuv":
        network = scaled_to_unit_variance(network, inputs[:1])
    out = network.linears[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        layers, last = forward(network, inputs, pairs)
        kernel = out.fan_in * last + 1 + backward(network, layers, pairs)
        length = float(out.fan_in * out.variance * last[0] + out.bias_variance)
    refuse_infinite(kernel)
    return Tangent(kernel, pairs, classes, length, fluctuation(network, layers))


def forward(network: Network, inputs: Array, pairs: Array) -> tuple[list[Layer], Array]:
    """Return the hidden layers, and H of what the last hands on."""
    layers, h, mean = [], masked(inputs, network.input_dropout), 0.0
    for layer, linear in enumerate(network.linears[:-1], 1):
        z = linear.fan_in * linear.variance * h + linear.bias_variance
        refuse_infinite(z)
        n, scale = normalized(z, network.norm, pairs)
        found, c = duals(network.phi, n), network.branch(layer)
        layers.append(Layer(linear, h, n, scale, found))
        branch = masked(c**2 * found.values, network.dropout)
        if network.skips(layer):
            h, mean = h + 2 * c * mean * found.mean + branch, mean + c * found.mean
        else:
            h, mean = branch, c * found.mean
    return layers, h


def backward(network: Network, layers: list[Layer], pairs: Array) -> Array:
    """Return what the hidden layers add to the kernel of one output."""
    kernel, g = np.zeros(3), np.full(3, network.linears[-1].variance)
    for number in range(network.depth, 0, -1):
        layer, c = layers[number - 1], network.branch(number)
        fan_out, below = layer.linear.fan_out, layer.below
        if network.residual == "rezero" and number > 1:
            kernel = kernel + fan_out * g * masked(layer.duals.values, network.dropout)
        delta = masked(c**2 * g * layer.duals.slopes, network.dropout)
        if network.norm != "none":
            kernel = kernel + fan_out * delta * (layer.n + 1)
            delta = delta / layer.scale
        heard = below - below @ pairs if network.norm == "batch" else below + 1 / layer.linear.fan_in
        kernel = kernel + fan_out * layer.linear.fan_in * delta * heard
        through = layer.linear.backward_factor * delta
        g = through + g if network.skips(number) else through
    return kernel


def refuse_infinite(values: Array) -> None:
    if not np.isfinite(values).all():
        raise NoPredictionError("no prediction: what the layers hand on leaves the range of numbers")


def masked(covariances: Array, dropout: float) -> Array:
    """Return covariances under masks of dropout, of which each sample has its own."""
    factors: Array = np.array([1 / (1 - dropout), 1.0, 1.0])
    return covariances * factors


def normalized(z: Array, norm: str, pairs: Array) -> tuple[Array, float]:
    """Return the covariances of n, and what those of z were divided by."""
    if norm == "none":
        return z, 1.0
    centred = z - z @ pairs if norm == "batch" else z
    scale = float(centred[0]) + NORM_EPS
    return centred / scale, scale


def fluctuation(network: Network, layers: list[Layer]) -> float:
    """Return about the variance, over networks, of the log of a squared gradient.

    Math:    sum over layers of s^2 (3 E phi'^4 / (E phi'^2)^2 - k) / n, s the share of the gradient that comes through
             the layer's branch, k = 1 of independent weights: 5 sum 1/n for relu, as Hanin and Nica 2019,
             arXiv:1812.05994, have it. Orthogonal weights keep the length of what they turn, and k = 3: the variance of
             sum a g^2 / sum g^2 of Gaussian g, not that of sum a g^2 / n; derived here, without what the layers of one
             network have in common
    """
    found, kept = 0.0, 3 if network.init.fill is fill_orthogonal else 1
    for number, layer in enumerate(layers, 1):
        through = layer.linear.backward_factor * network.branch(number) ** 2 * layer.duals.slopes[0] / layer.scale
        share = through / (1 + through) if network.skips(number) else 1.0
        found += share**2 * (3 * layer.duals.kurtosis - kept) / layer.linear.fan_out
    return float(found)


def duals(phi: Activation, covariances: Array) -> Duals:
    """Return the means over pairs of Gaussians of three covariances, of which the first is the variance.

    Math:    E f(sqrt(q) u) f(sqrt(q) v) = sum_k a_k^2 c^k, a_k = E f(sqrt(q) u) He_k(u) / sqrt(k!), c = E u v. E f^2
             knows the sum of the a_k^2 from k = TERMS on, and it is given to one power: of phi to the one that makes
             the slope at c = 1 right, q E phi'^2, of phi' to TERMS
    Edge:    to about 0.2 %, between tabulated q; beyond e^-24 and e^24 functions are taken for powers
    """
    q = max(float(covariances[0]), TINY)
    c = np.clip(covariances / q, -1.0, 1.0)
    at = (math.log(q) - LOG_LENGTHS[0]) / SPACING
    place = min(max(int(at), 0), len(LOG_LENGTHS) - 2)
    low, high = moments(phi)[place : place + 2]
    found = low + (at - place) * (high - low)
    values, slopes, (size, slope, mean, kurtosis, power) = found[:TERMS], found[TERMS:-5], found[-5:]
    powers, tail = c[:, None] ** np.arange(TERMS), np.sign(c) * np.abs(c) ** max(power, TERMS)
    return Duals(
        math.exp(size) * (powers @ values + max(1 - values.sum(), 0.0) * tail),
        math.exp(slope) * (powers @ slopes + max(1 - slopes.sum(), 0.0) * c**TERMS),
        float(mean),
        float(kurtosis),
    )


@functools.lru_cache(maxsize=64)
def moments(phi: Activation) -> Array:
    """Return rows, one for each of LOG_LENGTHS, of what `duals` interpolates between.

    Columns: a_k^2 / E f^2 of phi and of phi', k < TERMS each; log E phi^2, log E phi'^2, E phi,
             E phi'^4 / (E phi'^2)^2, and the power that what is left of phi is given to
    """
    q = np.exp(LOG_LENGTHS)
    scale = np.sqrt(q)[:, None]
    half, half_weights = half_line(scale, phi.kinks)
    z, weights = np.concatenate([half, -half], 1), np.concatenate([half_weights, half_weights], 1)
    basis = [np.ones_like(z), z]
    for k in range(2, TERMS):
        basis.append((z * basis[-1] - math.sqrt(k - 1) * basis[-2]) / math.sqrt(k))
    values, slopes = (evaluate(phi.name, function, scale * z) for function in (phi.function, phi.slope))
    squares = [np.maximum((weights * f**2).sum(1), TINY) for f in (values, slopes)]
    terms = [
        np.stack([(weights * f * one).sum(1) ** 2 / square for one in basis], 1)
        for f, square in zip((values, slopes), squares, strict=True)
    ]
    left = np.maximum(1 - terms[0].sum(1), 1e-12)
    power = (q * squares[1] / squares[0] - terms[0] @ np.arange(TERMS)) / left
    kurtosis = (weights * slopes**4).sum(1) / squares[1] ** 2
    rest = [*map(np.log, squares), (weights * values).sum(1), kurtosis, np.clip(power, TERMS, 1e6)]
    return np.concatenate([*terms, np.stack(rest, 1)], 1)
