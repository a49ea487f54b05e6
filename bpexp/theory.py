"""Mean-field predictions: how far signals and gradients reach in a wide network with random weights.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), phi = activation, sigma_w2 = fan_in * Var W,
sigma_b2 = Var b, chi_1 = factor a layer of the mean square gradient, towards the input.

The predictions are exact as the width grows at fixed depth; the backward ones take the weights of the backward pass
as independent of those of the forward pass (Schoenholz et al. 2017, arXiv:1611.01232).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bpexp.activations import ACTIVATIONS, Activation, Function
from bpexp.init import INITS, Init, unknown_choice

Array = NDArray[np.float64]

RESIDUALS = ("none", "plain")

LEGENDRE_NODES, LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(12)
TAIL = 10.0  # the Gaussian beyond weighs 1e-23
EDGES_Z = np.arange(1.0, TAIL + 1)
EDGES_X = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0])
LARGEST = 1e200  # a mean square beyond it counts as infinite: its square must still be a float64
SMALLEST = 1e-10  # a fixed point below it counts as 0, where 0 is one


@dataclass(frozen=True)
class Prediction:
    """What an MLP at initialization should measure, root mean square over units and samples.

    preactivation_rms: layers 1..L+1, (L+1,)
    activation_rms:    layers 1..L, what each hands on to the next (its skip connection included), (L,)
    delta_rms:         layers 1..L, relative to layer L, (L,)
    backward_gain:     geometric mean factor a layer of delta_rms, towards the input; NaN at depth 1
    """

    preactivation_rms: Array
    activation_rms: Array
    delta_rms: Array
    backward_gain: float


def resolve(activation: str | Function | Activation) -> Activation:
    """Return the activation of a rule's name, or of a function of the user's own.

    Raises:  ValueError: unknown name
    Edge:    a bare function's slope is taken by central differences, to about 1e-8, of inputs above about 1e-3;
             a kink anywhere but at 0 and on EDGES_X asks for an Activation that states it
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        return Activation(
            getattr(activation, "__name__", type(activation).__name__), activation, central_difference(activation)
        )
    if activation not in ACTIVATIONS:
        raise unknown_choice("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


def central_difference(function: Function) -> Function:
    """Return the slope of a function; the step shrinks with |x|, so that it never reaches over a kink at 0."""

    def slope(x: Tensor) -> Tensor:
        step = (1e-5 * x.abs()).clamp(min=1e-8)
        above, below = x + step, x - step
        return (function(above) - function(below)) / (above - below)

    return slope


def gaussian_mean(name: str, function: Function, q: ArrayLike, kinks: tuple[float, ...] = ()) -> Array:
    """Return E f(sqrt(q) z), z ~ N(0, 1), to about 1e-12 for each q.

    Math:    composite Gauss-Legendre on |z| < 10, the panels' edges at the scale of x and of z both
    Shapes:  q: any; the result has its shape
    Raises:  ValueError: q negative or NaN; f not finite
    Edge:    f's kinks and jumps must be at 0, on +-EDGES_X or among +-kinks, else the error is up to about 1e-2
    """
    lengths = np.asarray(q, dtype=np.float64)
    if not np.all(lengths >= 0):
        raise ValueError(f"q: {lengths[~(lengths >= 0)].flat[0]} is not a mean square of at least 0")
    scale = np.sqrt(np.minimum(lengths, LARGEST))[..., None]
    z, weights = half_line(scale, kinks)
    x = scale * z
    values = evaluate(name, function, x) + evaluate(name, function, -x)
    return np.asarray((values * weights).sum(axis=-1))


def half_line(scale: Array, kinks: tuple[float, ...]) -> tuple[Array, Array]:
    """Return nodes z > 0 and weights, (..., nodes) for scale (..., 1), of the Gaussian on the half line."""
    with np.errstate(divide="ignore"):
        edges_x = np.append(EDGES_X, np.abs(kinks)) / scale
        reach = EDGES_X[-1] / scale
    # From the last edge in x to z = 1 the panels grow geometrically: there a function falls off as a power at most.
    between = np.minimum(reach, TAIL) ** np.linspace(0, 1, 8, endpoint=False)
    edges_z = np.broadcast_to(EDGES_Z, (*scale.shape[:-1], len(EDGES_Z)))
    edges = np.sort(np.minimum(np.concatenate([np.zeros_like(scale), edges_x, between, edges_z], axis=-1), TAIL))
    half = np.diff(edges)[..., None] / 2
    z = edges[..., :-1, None] + half * (1 + LEGENDRE_NODES)
    weights = half * LEGENDRE_WEIGHTS * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return z.reshape(*scale.shape[:-1], -1), weights.reshape(*scale.shape[:-1], -1)


def evaluate(name: str, function: Function, x: Array) -> Array:
    values: Array = np.asarray(function(torch.from_numpy(x)).detach().numpy(), dtype=np.float64)
    if values.shape != x.shape:
        raise ValueError(f"activation {name!r}: must map each number to one, but {x.shape} became {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"activation {name!r}: not finite at x = {x[~np.isfinite(values)].flat[0]:.6g}")
    return values


def activation_mean(activation: str | Function | Activation, q: ArrayLike) -> Array:
    """Return E phi(sqrt(q) z)."""
    phi = resolve(activation)
    return gaussian_mean(phi.name, phi.function, q, phi.kinks)


def activation_second_moment(activation: str | Function | Activation, q: ArrayLike) -> Array:
    """Return E phi(sqrt(q) z)^2."""
    phi = resolve(activation)
    return gaussian_mean(phi.name, lambda x: phi.function(x).square(), q, phi.kinks)


def slope_second_moment(activation: str | Function | Activation, q: ArrayLike) -> Array:
    """Return E phi'(sqrt(q) z)^2."""
    phi = resolve(activation)
    return gaussian_mean(f"{phi.name}, its slope", lambda x: phi.slope(x).square(), q, phi.kinks)


def length_map(activation: str | Function | Activation, q: ArrayLike, sigma_w2: float, sigma_b2: float) -> Array:
    """Return the mean square of the next layer's pre-activations.

    Math:    V(q) = sigma_w2 E phi(sqrt(q) z)^2 + sigma_b2
    Shapes:  q: any; the result has its shape
    Raises:  ValueError: a negative or non-finite variance; an unknown or non-finite activation
    Source:  Poole et al. 2016, arXiv:1606.05340, eq. 3
    """
    refuse_negative(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return np.asarray(sigma_w2 * activation_second_moment(activation, q) + sigma_b2)


def chi_1(activation: str | Function | Activation, q: ArrayLike, sigma_w2: float) -> Array:
    """Return the factor a layer of the mean square gradient: below 1 it vanishes, above 1 it explodes.

    Math:    chi_1 = sigma_w2 E phi'(sqrt(q) z)^2; the backward gain is its root
    Source:  Schoenholz et al. 2017, arXiv:1611.01232, eq. 5
    """
    refuse_negative(sigma_w2=sigma_w2)
    return np.asarray(sigma_w2 * slope_second_moment(activation, q))


def fixed_point(activation: str | Function | Activation, sigma_w2: float, sigma_b2: float) -> float:
    """Return the length q* that the length map, started at q = 1, tends to.

    Math:    q* = V(q*), by bisection of log q
    Raises:  ValueError: as length_map
    Edge:    inf where lengths grow without bound; 0 where they shrink below 1e-10 and 0 is a fixed point;
             1 where that is one already (relu at sigma_w2 = 2: every length is)
    """
    phi = resolve(activation)

    def growth(q: float) -> float:
        return float(length_map(phi, q, sigma_w2, sigma_b2)) - q

    first = growth(1.0)
    if abs(first) < 1e-12:
        return 1.0
    at_zero = growth(0.0)
    factor = 2.0 if first > 0 else 0.5
    low = high = 1.0
    while (growth(high) > 0) == (first > 0):
        low, high = high, high * factor
        if high > LARGEST:
            return math.inf
        if high < SMALLEST and at_zero == 0:
            return 0.0
    while not math.isclose(low, high, rel_tol=1e-14):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (growth(middle) > 0) == (first > 0) else (low, middle)
    return math.sqrt(low * high)


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
) -> Prediction:
    """Predict an MLP's measures at initialization, layer by layer, at its own depth and widths.

    Math:    z_l = W_l h_{l-1} + b_l, h_l = phi(z_l), and h_{l-1} + phi(z_l) for l > 1 where residual is "plain";
             each sample has its own q_l, and mean squares are averaged over samples last;
             mean square g_{l-1} = fan_out Var W_l mean square delta_l (+ mean square g_l), delta_l = phi'(z_l) g_l
    Shapes:  input_mean_squares: (B,), of each sample over its features
    Raises:  ValueError: an unknown activation, init or residual; a number outside its range
    Edge:    a gradient that is zero at layer L (zeros, relu of zeros) makes delta_rms NaN; a length beyond 1e200 is
             inf, and the slopes behind it are those at 1e200; every sample is taken to
             have the same loss gradient, which holds where the outputs are small
    """
    phi = resolve(activation)
    if init not in INITS:
        raise unknown_choice("init", init, INITS)
    if residual not in RESIDUALS:
        raise unknown_choice("residual", residual, RESIDUALS)
    for key, value in {"depth": depth, "width": width, "features": features, "outputs": outputs}.items():
        if value < 1:
            raise ValueError(f"{key}: {value} is not at least 1")
    refuse_negative(gain=gain, bias_std=bias_std or 0.0)
    layers = Layers(INITS[init], gain, bias_std, (features, *[width] * depth, outputs))
    q, h = forward(phi, layers, mean_squares_of(input_mean_squares), residual == "plain")
    delta = backward(phi, layers, q[:-1], residual == "plain")
    with np.errstate(invalid="ignore", over="ignore"):
        relative = np.exp((delta - delta[-1]) / 2)
        backward_gain = math.nan if depth == 1 else float(np.exp((delta[0] - delta[-1]) / (2 * (depth - 1))))
    preactivation = np.where((q > LARGEST).any(axis=1), math.inf, np.sqrt(np.minimum(q, LARGEST).mean(axis=1)))
    return Prediction(preactivation, np.sqrt(h.mean(axis=1)), relative, backward_gain)


@dataclass(frozen=True)
class Layers:
    """The variances of an MLP's linear layers; `sizes` = features, widths, outputs."""

    init: Init
    gain: float
    bias_std: float | None
    sizes: tuple[int, ...]

    def forward_factor(self, layer: int) -> float:
        fan_in, fan_out = self.sizes[layer - 1 : layer + 1]
        return fan_in * self.gain**2 * self.init.variance(fan_in, fan_out)

    def backward_factor(self, layer: int) -> float:
        fan_in, fan_out = self.sizes[layer - 1 : layer + 1]
        return fan_out * self.gain**2 * self.init.variance(fan_in, fan_out)

    def bias_variance(self, layer: int) -> float:
        return self.init.bias_variance(self.sizes[layer - 1], self.bias_std)


def forward(phi: Activation, layers: Layers, mean_squares: Array, plain: bool) -> tuple[Array, Array]:
    """Return the mean squares of z, (L+1, B), and of h, (L, B).

    Math:    E h_l^2 = E h_{l-1}^2 + 2 E h_{l-1} E phi + E phi^2: z_l depends on h_{l-1} through its length alone
    """
    h, mean = mean_squares, np.zeros_like(mean_squares)
    lengths, handed_on = [], []
    for layer in range(1, len(layers.sizes)):
        q = layers.forward_factor(layer) * h + layers.bias_variance(layer)
        lengths.append(q)
        if layer == len(layers.sizes) - 1:
            break
        second = activation_second_moment(phi, q)
        if plain:
            first = activation_mean(phi, q)
            h, mean = (second, first) if layer == 1 else (h + 2 * mean * first + second, mean + first)
        else:
            h = second
        handed_on.append(h)
    return np.stack(lengths), np.stack(handed_on)


def backward(phi: Activation, layers: Layers, lengths: Array, plain: bool) -> Array:
    """Return the log of the mean square delta of layers 1..L, up to one constant, (L,).

    Logs, because 1,000 layers of a wrong gain leave the range of a float64.
    """
    depth, samples = lengths.shape
    deltas = np.empty(depth)
    with np.errstate(divide="ignore"):
        g = np.full(samples, np.log(layers.backward_factor(depth + 1)))
        for layer in range(depth, 0, -1):
            delta = g + np.log(slope_second_moment(phi, lengths[layer - 1]))
            deltas[layer - 1] = np.logaddexp.reduce(delta) - np.log(samples)
            through = np.log(layers.backward_factor(layer)) + delta
            g = np.logaddexp(through, g) if plain else through
    return deltas


def mean_squares_of(values: ArrayLike) -> Array:
    mean_squares = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if mean_squares.ndim != 1 or mean_squares.size == 0:
        raise ValueError(f"input_mean_squares: shape {mean_squares.shape} is not one number a sample, (B,)")
    if not (np.isfinite(mean_squares) & (mean_squares >= 0)).all():
        raise ValueError("input_mean_squares: not all are finite numbers of at least 0")
    return mean_squares


def refuse_negative(**numbers: float) -> None:
    for key, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{key}: {value} is not a finite number of at least 0")
