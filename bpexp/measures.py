"""MEASURES: what is looked at while networks train; a row and a pure function each.

Every function takes a View and returns a value for each network and layer, (R, layers), in float64. Layers are numbered
from 1, next to the input; the output layer is L + 1.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bpexp.activations import ACTIVATIONS
from bpexp.plan.program import key_of

Layers = Literal["all", "hidden", "gated"]
Reads = Literal["pass", "update", "both"]

SATURATED_BELOW = 0.05  # of the activation's largest slope

SAFE = (1e-15, 1e15)
"""Norms that float32 can say to 1e-5: their squares, and sums of them, lie within its range."""

LARGEST_ROW = 2**13
"""Numbers whose squares float32 adds up in a row to 1e-5, be they all equal; of more, each sample's come first."""


@dataclass(frozen=True)
class View:
    """One step of R networks, as the measures see it.

    z, delta, weights, grads, updates: L + 1 tensors each, of layer l the first axis is R_l; delta is d loss / dz
    n, a:  L of them: what an activation gets (z, or what a norm makes of it), and what the layer hands on
    gates: of the last layers that are hidden, (R_l,) each; none where branches have no gate
    batch: B
    activations: the networks' activations, each name with how many networks in a row have it
    slope: the activation's slope of a hidden layer at n
    wide:  take sums in float64; else in the type of the numbers, and a norm that is not SAFE is NaN
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
    wide: bool = True
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
            self.found[key] = self.checked(by_layer([norms_of(run, wide=self.wide) for run in runs(tensors)]).double())
        return self.found[key]

    def rms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return root mean squares over samples and units, layer by layer: (R, layers)."""
        return self.norms(tensors) / sizes(tensors).sqrt()

    def means(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return means over samples and units, layer by layer: (R, layers)."""
        dtype = torch.float64 if self.wide else None
        return by_layer([t.sum((1, 2), dtype=dtype)[:, None] for t in tensors]).double() / sizes(tensors)

    def checked(self, norms: Tensor) -> Tensor:
        """Return norms, in float64, NaN where they are not SAFE: zero may be what squares were rounded to."""
        if self.wide:
            return norms
        return torch.where(norms.clamp(*SAFE) == norms, norms, math.nan)

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
    """Join (R_l, layers) of the first R_l networks: (R, layers), NaN where a network has no such layer.

    networks: R, where all may lack some layer
    """
    alike = [torch.cat(list(same), 1) for _, same in itertools.groupby(values, len)]
    networks = max(networks, *map(len, alike))
    if all(len(value) == networks for value in alike):
        return alike[0] if len(alike) == 1 else torch.cat(alike, 1)
    return torch.cat([torch.nn.functional.pad(v, (0, 0, 0, networks - len(v)), value=math.nan) for v in alike], 1)


def runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one shape that lie one behind the other in a storage as one, (k, R_l, ...)."""
    found: list[list[Tensor]] = []
    for tensor in tensors:
        if found and follows(found[-1][-1], tensor):
            found[-1].append(tensor)
        else:
            found.append([tensor])
    return [run[0].as_strided((len(run), *run[0].shape), (run[0].numel(), *run[0].stride())) for run in found]


def follows(one: Tensor, other: Tensor) -> bool:
    """Whether a tensor begins where another one, of its shape, ends."""
    return (
        one.shape == other.shape
        and one.is_contiguous()
        and other.is_contiguous()
        and key_of(one) == key_of(other)
        and one.storage_offset() + one.numel() == other.storage_offset()
    )


def norms_of(run: Tensor, *, wide: bool) -> Tensor:
    """Return the 2-norm of each network's share of a layer, (R_l, k), of k layers (k, R_l, rows, units)."""
    dtype = torch.float64 if wide else None
    run = run if run.is_contiguous() else run.mT  # the order does not matter, and of the memory's a product is made
    rows = run if run[0, 0].numel() > LARGEST_ROW and not wide else run.flatten(2)
    result: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=dtype)
    return (result if result.dim() == 2 else torch.linalg.vector_norm(result, dim=-1)).mT


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
    """Join (R_l, W) of the first R_l networks: (R, layers, W), NaN where a network has no such layer."""
    joined = by_layer(values)
    return joined.view(len(joined), len(values), -1)


def dead_fraction(view: View) -> Tensor:
    most = by_unit([slope.sum(1) if view.is_step else slope.amax(1) for slope in view.slopes])
    return 1 - most.sign().sum(2).double() / most.shape[2]


def saturated_fraction(view: View) -> Tensor:
    size = sizes(view.n)
    if view.is_step:
        return 1 - by_unit([slope.sum(1) for slope in view.slopes]).sum(2).double() / size
    line = torch.cat(
        [view.n[0].new_full((r, 1, 1), SATURATED_BELOW * largest_slope(name)) for name, r in view.activations]
    )
    counts = [(slope < line[: len(slope)]).to(slope.dtype).sum((1, 2))[:, None] for slope in view.slopes]
    return by_layer(counts).double() / size


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
            lambda view: by_layer([g[:, None] for g in view.gates], sum(r for _, r in view.activations)).double(),
        ),
    )
}
