"""Update rules on flat vectors, with every hyperparameter a number of each network's own.

Parameters, gradients and velocities are one vector each. A hyperparameter that all networks share stays a number on the
device; one that differs is spread over the vector, an entry a parameter (`Layout.spread`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def spread(self, values: Tensor, where: Callable[[torch.Size], bool] = lambda shape: True) -> Tensor:
        """Return per-network values (R,) over the vector, 0 outside of `where`; () if all entries are alike."""
        if bool((values == values[0]).all()) and all(map(where, self.shapes)):
            return values[0].clone()
        flat = values.new_zeros(sum(shape.numel() for shape in self.shapes))
        for view, shape in zip(self.views(flat), self.shapes, strict=True):
            if where(shape):
                view.copy_(values.view(-1, *[1] * (len(shape) - 1)).expand(shape))
        return flat

    def norms(self, flat: Tensor) -> Tensor:
        """Return the 2-norm of each network's share of a flat vector, (R,)."""
        squares = [view.reshape(self.networks, -1).square().sum(1) for view in self.views(flat)]
        return torch.stack(squares).sum(0).sqrt()


def is_weight(shape: torch.Size) -> bool:
    """Weights are penalized, biases and gains are not: (R, out, in) and more axes against (R, n)."""
    return len(shape) > 2


class SGD:
    """Stochastic gradient descent, plain, with classical momentum, or with Nesterov's.

    Math:   g <- g + l2 w;  v <- mu v + g;  w <- w - lr (g + mu v if nesterov, else v) - lr weight_decay w
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

    def step(self, grads: Tensor) -> None:
        """Update the values in place. The gradients are changed where an L2 penalty adds to them."""
        if self.l2 is not None:
            grads.addcmul_(self.l2, self.values)
        direction = grads
        if self.momentum is not None:
            self.velocity.mul_(self.momentum).add_(grads)
            direction = self.velocity
            if self.nesterov:
                direction = torch.addcmul(grads, self.momentum, self.velocity, out=self.direction)
        if self.decay is not None:
            self.values.addcmul_(self.decay, self.values, value=-1)
        self.values.addcmul_(self.lr, direction, value=-1)


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
    scale = torch.where(norms > max_norm, max_norm / norms, torch.ones_like(norms))
    for view in layout.views(grads):
        view.mul_(scale.view(-1, *[1] * (view.dim() - 1)))
    return norms


def clip_by_value(layout: Layout, grads: Tensor, threshold: Tensor) -> Tensor:
    """Clamp each entry of each network's gradients to [-threshold, threshold].

    Shapes:  grads: flat, changed in place; threshold: (R,)
    Returns: the norms before clipping, (R,)
    """
    norms = layout.norms(grads)
    for view in layout.views(grads):
        bound = threshold.view(-1, *[1] * (view.dim() - 1))
        torch.clamp(view, -bound, bound, out=view)
    return norms


def flatten(parameters: Sequence[Tensor]) -> tuple[Layout, Tensor]:
    """Return the layout of parameters with a leading network axis, and one vector of their values."""
    layout = Layout(len(parameters[0]), tuple(p.shape for p in parameters))
    return layout, torch.cat([p.detach().reshape(-1) for p in parameters])
