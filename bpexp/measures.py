"""MEASURES: what is looked at while networks train; a row and a pure function each.

Every function takes a View and returns a value for each network and layer, (R, layers), in float64: a norm of float32
values is then finite wherever they are, and zero only where they are. Layers are numbered from 1, next to the input;
the output layer is L + 1.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bpexp.activations import ACTIVATIONS

Layers = Literal["all", "hidden", "gated"]

SATURATED_BELOW = 0.05  # of the activation's largest slope


@dataclass(frozen=True)
class View:
    """One step of R networks, as the measures see it.

    z, delta, weights, grads, updates: L + 1 tensors each, first axis R; delta is B times d loss / dz
    n, a:  L of them: what an activation gets (z, or what a norm makes of it), and what the layer hands on
    gates: of the last layers that are hidden, (R,) each; none where branches have no gate
    slope: the activation's slope of a hidden layer at n
    """

    activation: str
    slope: Callable[[int, Tensor], Tensor]
    z: Sequence[Tensor]
    n: Sequence[Tensor]
    a: Sequence[Tensor]
    delta: Sequence[Tensor]
    weights: Sequence[Tensor]
    grads: Sequence[Tensor]
    updates: Sequence[Tensor]
    gates: Sequence[Tensor] = ()

    @functools.cached_property
    def slopes(self) -> list[Tensor]:
        """The magnitudes |phi'(n)| of the hidden layers, L of (R, B, W)."""
        return [self.slope(layer, n).abs() for layer, n in enumerate(self.n, 1)]

    def layers(self, of: Layers) -> range:
        """Return the numbers of the layers that a measure is of."""
        depth = len(self.n)
        return {
            "all": range(1, depth + 2),
            "hidden": range(1, depth + 1),
            "gated": range(depth + 1 - len(self.gates), depth + 1),
        }[of]


@dataclass(frozen=True)
class Measure:
    """A row: what is measured, of which layers, and where its values are healthy (low, high), if that can be said."""

    name: str
    unit: str
    formula: str
    of: Layers
    function: Callable[[View], Tensor]
    healthy: tuple[float, float] | None = None


def norm(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each network's share, (R,)."""
    result: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64)
    return result


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return 2-norms, layer by layer: (R, layers)."""
    return torch.stack([norm(tensor) for tensor in tensors], 1)


def rms(tensors: Sequence[Tensor]) -> Tensor:
    """Return root mean squares over samples and units, layer by layer: (R, layers)."""
    return torch.stack([norm(tensor) / math.sqrt(tensor[0].numel()) for tensor in tensors], 1)


@functools.cache
def largest_slope(activation: str) -> float:
    """Return max |phi'|, from a grid that holds the extremes of every activation in the table to 1e-6."""
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    return float(ACTIVATIONS[activation].slope(x).abs().max())


def means(tensors: Sequence[Tensor]) -> Tensor:
    """Return means over samples and units, layer by layer: (R, layers)."""
    return torch.stack([tensor.mean((1, 2), dtype=torch.float64) for tensor in tensors], 1)


def dead_fraction(view: View) -> Tensor:
    return torch.stack([(slope == 0).all(1).double().mean(1) for slope in view.slopes], 1)


def saturated_fraction(view: View) -> Tensor:
    line = SATURATED_BELOW * largest_slope(view.activation)
    return torch.stack([(slope < line).double().mean((1, 2)) for slope in view.slopes], 1)


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("activation_rms", "1", "sqrt(mean a^2)", "hidden", lambda view: rms(view.a), (0.1, 10)),
        Measure("activation_mean", "1", "mean a", "hidden", lambda view: means(view.a)),
        Measure("preactivation_rms", "1", "sqrt(mean z^2)", "all", lambda view: rms(view.z), (0.1, 10)),
        Measure("preactivation_mean", "1", "mean z", "all", lambda view: means(view.z)),
        Measure("delta_rms", "loss", "sqrt(mean (B d loss / dz)^2)", "all", lambda view: rms(view.delta)),
        Measure("grad_norm", "loss per weight", "||d loss / dW||", "all", lambda view: norms(view.grads)),
        Measure("weight_norm", "1", "||W||", "all", lambda view: norms(view.weights)),
        Measure(
            "update_ratio",
            "1",
            "||update of W|| / ||W||",
            "all",
            lambda view: norms(view.updates) / norms(view.weights),
            (1e-5, 1e-1),
        ),
        Measure("dead_fraction", "fraction", "units with phi' = 0 on every sample", "hidden", dead_fraction, (0, 0.5)),
        Measure(
            "saturated_fraction",
            "fraction",
            f"|phi'(n)| < {SATURATED_BELOW} max |phi'|",
            "hidden",
            saturated_fraction,
            (0, 0.5),
        ),
        Measure(
            "gate", "1", "factor of the layer's branch", "gated", lambda view: torch.stack([*view.gates], 1).double()
        ),
    )
}
