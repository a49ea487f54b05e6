"""MEASURES: what is looked at while networks train; a row and a pure function each.

Every function takes a View and returns a value for each network and layer, (R, layers), in float64. Layers are numbered
from 1, next to the input; the output layer is L + 1. In memory values lie layer by layer, and so they are joined.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bpexp.activations import ACTIVATIONS
from bpexp.plan.program import follows

Layers = Literal["all", "hidden", "gated"]
Reads = Literal["pass", "update", "both"]

SATURATED_BELOW = 0.05  # of the activation's largest slope


@dataclass(frozen=True)
class View:
    """One step of R networks, as the measures see it.

    z, delta, weights, grads, updates: L + 1 tensors each, of layer l the first axis is R_l; delta is d loss / dz
    n, a:  L of them: what an activation gets (z, or what a norm makes of it), and what the layer hands on
    gates: of the last layers that are hidden, (R_l,) each; none where branches have no gate
    batch: B
    activations: the networks' activations, each name with how many networks in a row have it
    slope: the activation's slope of a hidden layer at n
    """

    activations: Sequence[tuple[str, int]]
    slope: Callable[[int, Tensor], Tensor]
    batch: int
    z: Sequence[Tensor] = ()
    n: Sequence[Tensor] = ()
    a: Sequence[Tensor] = ()
    delta: Sequence[Tensor] = ()
    weights: Sequence[Tensor] = ()
    grads: Sequence[Tensor] = ()
    updates: Sequence[Tensor] = ()
    gates: Sequence[Tensor] = ()
    found: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @functools.cached_property
    def slopes(self) -> list[Tensor]:
        """The magnitudes |phi'(n)| of the hidden layers, L of (R_l, B, W)."""
        slopes = [self.slope(layer, n) for layer, n in enumerate(self.n, 1)]
        rises = all(smallest_slope(name) >= 0 for name, _ in self.activations)
        return slopes if rises else [slope.abs() for slope in slopes]

    @functools.cached_property
    def is_step(self) -> bool:
        """Whether every slope is 0 or 1: then their sum says all."""
        return all(slopes_of(name) <= {0.0, 1.0} for name, _ in self.activations)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return 2-norms, layer by layer: (R, layers)."""
        key = tuple(map(id, tensors))
        if key not in self.found:
            self.found[key] = by_layer([norms_of(run) for run in runs(tensors)]).mT
        return self.found[key]

    def rms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return root mean squares over samples and units, layer by layer: (R, layers)."""
        return self.norms(tensors) / sizes(tensors).sqrt()

    def means(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return means over samples and units, layer by layer: (R, layers)."""
        return by_layer([sum_of(tensor)[None] for tensor in tensors]).mT / sizes(tensors)

    def layers(self, of: Layers) -> range:
        """Return the numbers of the layers that a measure is of."""
        depth = len(self.weights) - 1
        return {
            "all": range(1, depth + 2),
            "hidden": range(1, depth + 1),
            "gated": range(depth + 1 - len(self.gates), depth + 1),
        }[of]


@dataclass(frozen=True)
class Measure:
    """A row: what is measured, of which layers, and where its values are healthy (low, high), if that can be said.

    reads: "pass":   of the view z, n, a, delta, slopes, weights and gates alone: it is recorded with the step, once,
                     so it cannot branch on a number
           "update": weights, grads and updates alone
           "both":   any of the view; it costs a second pass, which keeps them all
    """

    name: str
    unit: str
    formula: str
    of: Layers
    function: Callable[[View], Tensor]
    healthy: tuple[float, float] | None = None
    reads: Reads = "pass"


def by_layer(values: Sequence[Tensor], networks: int = 0) -> Tensor:
    """Join (layers, R_l, ...) of the first R_l networks: (layers, R, ...), NaN where a network has no such layer.

    networks: R, where all may lack some layer
    """
    alike = [torch.cat(list(same)) for _, same in itertools.groupby(values, lambda value: value.shape[1])]
    networks = max(networks, *(value.shape[1] for value in alike))
    if any(value.shape[1] < networks for value in alike):
        beside = (0, 0) * (alike[0].dim() - 2)
        alike = [torch.nn.functional.pad(v, (*beside, 0, networks - v.shape[1]), value=math.nan) for v in alike]
    return alike[0] if len(alike) == 1 else torch.cat(alike)


def in_one(values: Iterable[Tensor]) -> Tensor:
    """Join measures of layers, (R, layers), and of networks, (R,), as one vector, each as it lies in memory."""
    return torch.cat([(value.mT if value.dim() == 2 else value).flatten() for value in values])


def runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one shape that lie one behind the other in a storage as one, (k, R_l, ...)."""
    found: list[list[Tensor]] = []
    for tensor in tensors:
        if found and follows(found[-1][-1], tensor):
            found[-1].append(tensor)
        else:
            found.append([tensor])
    return [run[0].as_strided((len(run), *run[0].shape), (run[0].numel(), *run[0].stride())) for run in found]


def norms_of(run: Tensor) -> Tensor:
    """Return the 2-norm of each network's share of a layer, (k, R_l), of k layers (k, R_l, ...)."""
    norms: Tensor = torch.linalg.vector_norm(dense(run), dim=tuple(range(2, run.dim())), dtype=torch.float64)
    return norms


def sum_of(tensor: Tensor) -> Tensor:
    """Return the sum over samples and units of (R_l, B, W), (R_l,)."""
    return dense(tensor).sum((1, 2), dtype=torch.float64)


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor, or its transpose where that is how its numbers lie: to a sum the order does not matter."""
    return tensor if tensor.is_contiguous() else tensor.mT


def sizes(tensors: Sequence[Tensor]) -> Tensor:
    """Return how many numbers a network has in each tensor, (layers,)."""
    return torch.stack([t.new_full((), t[0].numel(), dtype=torch.float64) for t in tensors])


@functools.cache
def slopes_of(activation: str) -> frozenset[float]:
    """Return phi' on a grid that holds the extremes of every activation in the table to 1e-6.

    The slope that prelu learns may be any.
    """
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    learned = {-math.inf} if activation == "prelu" else set()
    return frozenset(ACTIVATIONS[activation].slope(x).tolist()) | learned


@functools.cache
def smallest_slope(activation: str) -> float:
    """Return the smallest phi'."""
    return min(slopes_of(activation))


@functools.cache
def largest_slope(activation: str) -> float:
    """Return max |phi'|, of prelu that of its start."""
    return max(abs(slope) for slope in slopes_of(activation) if math.isfinite(slope))


def by_unit(values: Sequence[Tensor]) -> Tensor:
    """Join (R_l, W) of the first R_l networks: (layers, R, W), NaN where a network has no such layer."""
    return by_layer([value[None] for value in values])


def dead_fraction(view: View) -> Tensor:
    most = by_unit([slope.sum(1) if view.is_step else slope.amax(1) for slope in view.slopes])
    return 1 - most.sign().sum(2, dtype=torch.float64).mT / most.shape[2]


def saturated_fraction(view: View) -> Tensor:
    size = sizes(view.n)
    if view.is_step:
        steep = by_unit([slope.sum(1) for slope in view.slopes]).sum(2, dtype=torch.float64)
        return 1 - steep.mT / size
    lines = [SATURATED_BELOW * largest_slope(name) for name, _ in view.activations]
    if len(lines) == 1:
        below = [(slope < lines[0]).to(slope.dtype) for slope in view.slopes]
    else:
        parts = zip(view.activations, lines, strict=True)
        line = torch.cat([view.n[0].new_full((networks, 1, 1), line) for (_, networks), line in parts])
        below = [(slope < line[: len(slope)]).to(slope.dtype) for slope in view.slopes]
    return by_layer([sum_of(one)[None] for one in below]).mT / size


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("activation_rms", "1", "sqrt(mean a^2)", "hidden", lambda view: view.rms(view.a), (0.1, 10)),
        Measure("activation_mean", "1", "mean a", "hidden", lambda view: view.means(view.a)),
        Measure("preactivation_rms", "1", "sqrt(mean z^2)", "all", lambda view: view.rms(view.z), (0.1, 10)),
        Measure("preactivation_mean", "1", "mean z", "all", lambda view: view.means(view.z)),
        Measure(
            "delta_rms",
            "loss",
            "sqrt(mean (B d loss / dz)^2)",
            "all",
            lambda view: view.rms(view.delta) * view.batch,
        ),
        Measure(
            "grad_norm",
            "loss per weight",
            "||d loss / dW||",
            "all",
            lambda view: view.norms(view.grads),
            None,
            "update",
        ),
        Measure("weight_norm", "1", "||W||", "all", lambda view: view.norms(view.weights), None, "update"),
        Measure(
            "update_ratio",
            "1",
            "||update of W|| / ||W||",
            "all",
            lambda view: view.norms(view.updates) / view.norms(view.weights),
            (1e-5, 1e-1),
            "update",
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
            "gate",
            "1",
            "factor of the layer's branch",
            "gated",
            lambda view: by_layer([g[None] for g in view.gates], sum(r for _, r in view.activations)).double().mT,
        ),
    )
}
