"""Moments of an activation under a Gaussian: all that mean-field theory asks of one.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), phi = activation.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bpexp.activations import ACTIVATIONS, Activation, Function
from bpexp.init import unknown_choice

Array = NDArray[np.float64]

LEGENDRE_NODES, LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(12)
TAIL = 10.0  # the Gaussian beyond weighs 1e-23
EDGES_Z = np.arange(1.0, TAIL + 1)
EDGES_X = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0])
LARGEST = 1e200  # a mean square beyond it counts as infinite: its square must still be a float64


def resolve(activation: str | Function | Activation) -> Activation:
    """Return the activation of a rule's name, or of a function of the user's own.

    Raises:  ValueError: unknown name; neither a name nor a function of tensors
    Edge:    a bare function's slope is taken by central differences, to about 1e-8, of inputs above about 1e-3;
             a kink anywhere but at 0 and on EDGES_X asks for an Activation that states it
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        name = getattr(activation, "__name__", type(activation).__name__)
        function = of_tensors(name, activation)
        return Activation(name, function, central_difference(function))
    if activation not in ACTIVATIONS:
        raise unknown_choice("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


def of_tensors(name: str, function: Function) -> Function:
    """Return a user's function, which says so where it does not take tensors, or does not give them."""

    def checked(x: Tensor) -> Tensor:
        try:
            y = function(x)
        except (TypeError, ValueError) as error:
            raise ValueError(f"activation {name!r}: must map a tensor to one, of torch's functions: {error}") from None
        if not isinstance(y, Tensor):
            raise ValueError(f"activation {name!r}: must map a tensor to one, but gave a {type(y).__name__}")
        return y

    return checked


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


def slopes_beside_zero(activation: Activation) -> tuple[float, float] | None:
    """Return phi' just below and just above 0 of a function that is 0 there, or None.

    Math:    f(0+) = 2 f(h) - f(2h) + O(h^2) for f = phi, phi'; h = 1e-6
    """
    h = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    value, slope = (2 * f(h) - f(2 * h) for f in (activation.function, activation.slope))
    if float(value.detach().abs().max()) > 1e-10:
        return None
    below, above = slope.detach().tolist()
    return below, above


def value_and_slope_at_zero(activation: str | Function | Activation) -> tuple[float, float]:
    """Return phi(0) and phi'(0), the latter as a backward pass has it: at a kink by the function's own convention."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        y = resolve(activation).function(x)
    (slope,) = torch.autograd.grad(y.sum(), x, allow_unused=True) if y.requires_grad else (None,)
    return float(y.detach()), 0.0 if slope is None else float(slope)


def refuse_negative(**numbers: float) -> None:
    for key, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{key}: {value} is not a finite number of at least 0")
