"""Update rules on flat vectors, with every hyperparameter a number of each network's own.

Parameters, gradients and velocities are one vector each. A hyperparameter that all networks share stays one number; one
that differs is spread over the vector, an entry a parameter (`Layout.spread`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Spread = float | Tensor
"""A hyperparameter: one number, or a vector with an entry a parameter."""


@dataclass(frozen=True)
class Layout:
    """How the flat vector is cut: a block a parameter, each with the network axis first.

    Shapes: block k of the vector is (R, ...) with shapes[k], contiguous, one after another
    """

    networks: int
    shapes: tuple[torch.Size, ...]

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return the blocks of a flat vector, as views of the parameters' shapes."""
        sizes = [shape.numel() for shape in self.shapes]
        return tuple(v.view(s) for v, s in zip(torch.split(flat, sizes), self.shapes, strict=True))

    def runs(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return neighbours of equal shape as one view each, (blocks, R, entries of a network in a block)."""
        runs = [(size, len(list(same))) for size, same in itertools.groupby(shape.numel() for shape in self.shapes)]
        parts = torch.split(flat, [size * count for size, count in runs])
        return tuple(
            part.view(count, self.networks, size // self.networks)
            for part, (size, count) in zip(parts, runs, strict=True)
        )

    def spread(self, values: Tensor, where: Callable[[torch.Size], bool] = lambda shape: True) -> Spread:
        """Return per-network values (R,) over the vector, 0 outside of `where`; one number if all entries are alike."""
        if bool((values == values[0]).all()) and all(map(where, self.shapes)):
            return float(values[0])
        flat = values.new_zeros(sum(shape.numel() for shape in self.shapes))
        for view, shape in zip(self.views(flat), self.shapes, strict=True):
            if where(shape):
                view.copy_(values.view(-1, *[1] * (len(shape) - 1)).expand(shape))
        return flat

    def norms(self, flat: Tensor) -> Tensor:
        """Return the 2-norm of each network's share of a flat vector, (R,) float64: no square overflows."""
        runs = [torch.linalg.vector_norm(run, dim=2, dtype=torch.float64) for run in self.runs(flat)]
        total: Tensor = torch.linalg.vector_norm(torch.cat(runs), dim=0)
        return total

    def largest(self, flat: Tensor) -> Tensor:
        """Return the largest magnitude in each network's share of a flat vector, (R,)."""
        return torch.stack([torch.linalg.vector_norm(run, math.inf, dim=(0, 2)) for run in self.runs(flat)]).amax(0)


def is_weight(shape: torch.Size) -> bool:
    """Weights are penalized, biases and gains are not: (R, out, in) and more axes against (R, n)."""
    return len(shape) > 2


def add_scaled(y: Tensor, scale: Spread, x: Tensor, *, negative: bool = False, out: Tensor) -> Tensor:
    """Compute y + scale * x, or y - scale * x, in one pass."""
    sign = -1 if negative else 1
    if isinstance(scale, Tensor):
        return torch.addcmul(y, scale, x, value=sign, out=out)
    return torch.add(y, x, alpha=sign * scale, out=out)


class SGD:
    """Stochastic gradient descent, plain, with classical momentum, or with Nesterov's.

    Math:   g <- g + l2 w (`penalize`, before any clipping: the penalty is a term of the loss); v <- mu v + g;
            w <- w - lr (g + mu v if nesterov, else v) - lr weight_decay w
    Shapes: lr, momentum, l2, weight_decay: (R,) each; values, grads: flat, cut as `layout` says
    Source: Polyak 1964; Sutskever et al. 2013; decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101
    """

    def __init__(
        self,
        layout: Layout,
        values: Tensor,
        *,
        lr: Tensor,
        momentum: Tensor,
        l2: Tensor,
        weight_decay: Tensor,
        nesterov: bool = False,
    ) -> None:
        # Which terms there are is settled here, once, on the host: a step asks the device nothing.
        self.values, self.nesterov = values, nesterov
        self.lr = layout.spread(lr)
        self.momentum = layout.spread(momentum) if bool(momentum.any()) else None
        self.l2 = layout.spread(l2, is_weight) if bool(l2.any()) else None
        self.decay = layout.spread(lr * weight_decay, is_weight) if bool(weight_decay.any()) else None
        self.velocity = torch.zeros_like(values)
        self.direction = torch.empty_like(values)

    def penalize(self, grads: Tensor) -> None:
        """Add the gradient of the L2 penalty, in place."""
        if self.l2 is not None:
            add_scaled(grads, self.l2, self.values, out=grads)

    def step(self, grads: Tensor) -> None:
        """Update the values in place."""
        direction = grads
        if self.momentum is not None:
            direction = add_scaled(grads, self.momentum, self.velocity, out=self.velocity)
            if self.nesterov:
                direction = add_scaled(grads, self.momentum, self.velocity, out=self.direction)
        if self.decay is not None:
            add_scaled(self.values, self.decay, self.values, negative=True, out=self.values)
        add_scaled(self.values, self.lr, direction, negative=True, out=self.values)


def clip_by_norm(layout: Layout, grads: Tensor, max_norm: Tensor) -> Tensor:
    """Scale each network's gradients together so that their joint 2-norm is at most `max_norm`.

    Math:    g <- g * min(1, max_norm / ||g||)
    Shapes:  grads: flat, changed in place; max_norm: (R,)
    Units:   max_norm in loss per unit of parameter
    Returns: the norms before clipping, (R,)
    Edge:    a zero gradient stays zero; NaN is returned, not hidden
    Source:  Pascanu et al. 2013, arXiv:1211.5063
    """
    norms = layout.norms(grads)
    # Not clamp(max=1): that would let torch's own 1e-6 in the denominator decide what "at most" means.
    scale = torch.where(norms > max_norm, max_norm / norms, 1.0).to(grads.dtype)
    for run in layout.runs(grads):
        run.mul_(scale[:, None])
    return norms


def clip_by_value(layout: Layout, grads: Tensor, threshold: Tensor) -> Tensor:
    """Clamp each entry of each network's gradients to [-threshold, threshold].

    Shapes:  grads: flat, changed in place; threshold: (R,)
    Returns: the largest magnitudes before clipping, (R,)
    """
    largest = layout.largest(grads)
    bound = threshold[:, None]
    for run in layout.runs(grads):
        torch.clamp(run, -bound, bound, out=run)
    return largest


def flatten(parameters: Sequence[Tensor]) -> tuple[Layout, Tensor]:
    """Return the layout of parameters with a leading network axis, and one vector of their values."""
    layout = Layout(len(parameters[0]), tuple(p.shape for p in parameters))
    return layout, torch.cat([p.detach().reshape(-1) for p in parameters])
