"""How R networks' parameters lie in one flat vector, and a hyperparameter over it.

Networks lie deepest first, and a block has those of the first R_k of them that have the parameter.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Spread = float | Tensor
"""A hyperparameter: one number, or a vector with an entry a parameter."""

Where = Callable[[torch.Size], bool]
"""Which parameters: a choice by their shape."""


def anywhere(_shape: torch.Size) -> bool:
    """Every parameter."""
    return True


def is_weight(shape: torch.Size) -> bool:
    """Weights are penalized, biases and gains are not: (R_k, out, in) and more axes against (R_k, n)."""
    return len(shape) > 2


@dataclass(frozen=True)
class Layout:
    """How the flat vector is cut: a block a parameter, each with the network axis first.

    Shapes: block k of the vector is (R_k, ...) with shapes[k], contiguous, one after another
    """

    networks: int
    shapes: tuple[torch.Size, ...]

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return the blocks of a flat vector, as views of the parameters' shapes."""
        sizes = [shape.numel() for shape in self.shapes]
        return tuple(v.view(s) for v, s in zip(torch.split(flat, sizes), self.shapes, strict=True))

    def runs(self, flat: Tensor, where: Where = anywhere) -> tuple[Tensor, ...]:
        """Return neighbours of equal shape as one view each, (blocks, R_k, entries of a network in a block)."""
        return tuple(run for _, run in self._runs(flat, where))

    def units(self, flat: Tensor, where: Where = anywhere) -> tuple[Tensor, ...]:
        """Return neighbours of equal shape cut into units, (blocks, R_k, units, entries of a unit).

        A unit is what leads into one output: a row of a weight. A bias or a gain, (R_k, n) or (R_k,), is one whole.
        """
        return tuple(
            run.view(len(run), shape[0], shape[1] if is_weight(shape) else 1, -1)
            for shape, run in self._runs(flat, where)
        )

    @functools.cached_property
    def _equal(self) -> list[tuple[torch.Size, int]]:
        return [(shape, len(list(same))) for shape, same in itertools.groupby(self.shapes)]

    def _runs(self, flat: Tensor, where: Where) -> list[tuple[torch.Size, Tensor]]:
        parts = torch.split(flat, [shape.numel() * count for shape, count in self._equal])
        return [
            (shape, part.view(count, shape[0], -1))
            for part, (shape, count) in zip(parts, self._equal, strict=True)
            if where(shape)
        ]

    def spread(self, values: Tensor, where: Where = anywhere) -> Spread:
        """Return per-network values (R,) over the vector, 0 outside of `where`; one number if all entries are alike."""
        if bool((values == values[0]).all()) and all(map(where, self.shapes)):
            return float(values[0])
        flat = values.new_zeros(sum(shape.numel() for shape in self.shapes))
        for run in self.runs(flat, where):
            run.copy_(first(values, run)[:, None])
        return flat

    def norms(self, flat: Tensor) -> Tensor:
        """Return the 2-norm of each network's share of a flat vector, (R,) float64: no square overflows."""
        runs = [torch.linalg.vector_norm(run, dim=2, dtype=torch.float64) for run in self.runs(flat)]
        total: Tensor = torch.linalg.vector_norm(torch.cat([self.filled(run) for run in runs]), dim=0)
        return total

    def largest(self, flat: Tensor) -> Tensor:
        """Return the largest magnitude in each network's share of a flat vector, (R,)."""
        # Not vector_norm(run, inf), which takes ten times as long.
        return torch.cat([self.filled(run.abs().amax(2)) for run in self.runs(flat)]).amax(0)

    def filled(self, numbers: Tensor, value: float = 0.0) -> Tensor:
        """Return numbers of the first networks, (..., R_k), with a value for the others, (..., R)."""
        others = self.networks - numbers.shape[-1]
        return torch.nn.functional.pad(numbers, (0, others), value=value) if others else numbers


def first(numbers: Tensor, run: Tensor) -> Tensor:
    """Return the entries, of one for each network, that belong to the networks of a run, (blocks, R_k, ...)."""
    return numbers if len(numbers) == run.shape[1] else numbers[: run.shape[1]]


def add_scaled(y: Tensor, scale: Spread, x: Tensor, *, negative: bool = False, out: Tensor) -> Tensor:
    """Compute y + scale * x, or y - scale * x, in one pass."""
    sign = -1 if negative else 1
    if isinstance(scale, Tensor):
        return torch.addcmul(y, scale, x, value=sign, out=out)
    return torch.add(y, x, alpha=sign * scale, out=out)


def unit_norms(units: Tensor) -> Tensor:
    """Return the 2-norm of each unit, (blocks, R_k, units, 1) float64: no square overflows."""
    norms: Tensor = torch.linalg.vector_norm(units, dim=3, keepdim=True, dtype=torch.float64)
    return norms


def shrink_units(units: Tensor, largest: Tensor) -> Tensor:
    """Scale each unit, in place, so that its 2-norm is at most `largest`.

    Shapes:  units: (blocks, R_k, units, entries); largest: as `unit_norms`, or (R_k, 1, 1) for all units of a network
    Returns: what each unit was multiplied by, at most 1
    Edge:    a unit at zero stays there; one with a NaN turns NaN whole, and so is seen
    """
    scale = (largest / unit_norms(units)).clamp_(max=1).to(units.dtype)
    units.mul_(scale)
    return scale


def flatten(parameters: Sequence[Tensor]) -> tuple[Layout, Tensor]:
    """Return the layout of parameters, each with a network axis, the first's of all networks, and their values."""
    layout = Layout(len(parameters[0]), tuple(p.shape for p in parameters))
    return layout, torch.cat([p.detach().reshape(-1) for p in parameters])
