"""Update rules on flat vectors, with every hyperparameter a number of each network's own.

Parameters, gradients and moments are one vector each. A hyperparameter that all networks share stays one number; one
that differs is spread over the vector, an entry a parameter.
"""

from abc import ABC, abstractmethod
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from bpexp.optim.layout import Layout, Spread, add_scaled, first, is_weight, shrink_units
from bpexp.optim.schedule import Rate


class Common(TypedDict):
    """What every update rule takes, as `Optimizer` says."""

    lr: Tensor
    l2: Tensor
    weight_decay: Tensor
    max_norm: NotRequired[Tensor | None]
    factors: NotRequired[Tensor | None]


class Optimizer(ABC):
    """What every update rule has: an L2 penalty, decoupled decay, a schedule, and a bound on the units' weights.

    Math:   g <- g + l2 w (`penalize`, before any clipping: the penalty is a term of the loss);
            w <- w - lr weight_decay w - lr (the rule's direction), lr times the step's factor;
            w <- w min(1, max_norm / ||w||), w a unit's incoming weights. Penalty, decay and bound are on weights alone
    Shapes: lr, l2, weight_decay, max_norm: (R,) each; factors: (steps, R), as `schedule.factors` makes them;
            values, grads: flat, cut as `layout` says
    Source: decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101; bound: Srivastava et al. 2014, section 5.1
    """

    def __init__(
        self,
        layout: Layout,
        values: Tensor,
        *,
        lr: Tensor,
        l2: Tensor,
        weight_decay: Tensor,
        max_norm: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        # Which terms there are is settled here, once, on the host: a step asks the device nothing.
        self.layout, self.values = layout, values
        self.lr = Rate(layout, lr, factors)
        self.l2 = layout.spread(l2, is_weight) if bool(l2.any()) else None
        self.decay = Rate(layout, lr * weight_decay, factors, is_weight) if bool(weight_decay.any()) else None
        self.max_norm = None if max_norm is None else max_norm[:, None, None]
        self.units = layout.units(values, is_weight)
        self.steps = 0
        self.moments: dict[str, Tensor] = {}

    def penalize(self, grads: Tensor) -> None:
        """Add the gradient of the L2 penalty, in place."""
        if self.l2 is not None:
            add_scaled(grads, self.l2, self.values, out=grads)

    def step(self, grads: Tensor) -> None:
        """Update the values in place."""
        if self.decay is not None:
            add_scaled(self.values, self.decay.at(self.steps), self.values, negative=True, out=self.values)
        self._descend(grads, self.lr.at(self.steps))
        if self.max_norm is not None:
            for units in self.units:
                shrink_units(units, first(self.max_norm, units))
        self.steps += 1

    @abstractmethod
    def _descend(self, grads: Tensor, lr: Spread) -> None:
        """Bring the moments up to date, and go `lr` along the rule's direction."""

    def state(self) -> dict[str, Any]:
        """Return all but the values that the next steps depend on, as copies."""
        return {"steps": self.steps, **{name: moment.clone() for name, moment in self.moments.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state: from the same values the steps from there are the same, bit for bit."""
        self.steps = state["steps"]
        for name, moment in self.moments.items():
            moment.copy_(state[name])


class SGD(Optimizer):
    """Stochastic gradient descent, plain, with classical momentum, or with Nesterov's.

    Math:   v <- mu v + g; direction: g + mu v if nesterov, else v
    Shapes: momentum: (R,); the rest as Optimizer
    Source: Polyak 1964; Sutskever et al. 2013
    """

    def __init__(
        self, layout: Layout, values: Tensor, *, momentum: Tensor, nesterov: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(layout, values, **common)
        self.nesterov = nesterov
        self.momentum = layout.spread(momentum) if bool(momentum.any()) else None
        self.velocity = torch.zeros_like(values)
        self.direction = torch.empty_like(values)
        self.moments = {} if self.momentum is None else {"velocity": self.velocity}

    def _descend(self, grads: Tensor, lr: Spread) -> None:
        direction = grads
        if self.momentum is not None:
            direction = add_scaled(grads, self.momentum, self.velocity, out=self.velocity)
            if self.nesterov:
                direction = add_scaled(grads, self.momentum, self.velocity, out=self.direction)
        add_scaled(self.values, lr, direction, negative=True, out=self.values)


class Adam(Optimizer):
    """Adam; with weight_decay it is AdamW.

    Math:   m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
            direction: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), t counted from 1
    Shapes: beta1, beta2: (R,) float64; the rest as Optimizer
    Edge:   a gradient that was always zero moves nothing
    Source: Kingma & Ba 2015, arXiv:1412.6980
    """

    def __init__(
        self,
        layout: Layout,
        values: Tensor,
        *,
        beta1: Tensor,
        beta2: Tensor,
        eps: float = 1e-8,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(layout, values, **common)
        self.eps = eps
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.direction = torch.empty_like(values)
        self.moments = {"mean": self.mean, "square": self.square}
        self.count = torch.zeros((), dtype=torch.float32, device=values.device)  # where torch's kernel reads the step
        self.beta1, self.beta2 = beta1, beta2
        self.keep1, self.keep2, self.add1, self.add2 = map(self._spread, (beta1, beta2, 1 - beta1, 1 - beta2))
        self.runs = layout.runs(self.direction)

    def _spread(self, numbers: Tensor) -> Spread:
        spread = self.layout.spread(numbers)
        return spread.to(self.values.dtype) if isinstance(spread, Tensor) else spread

    def _descend(self, grads: Tensor, lr: Spread) -> None:
        # torch's kernel does it all in one pass, but takes one number of each kind.
        if isinstance(self.keep1, Tensor) or isinstance(self.keep2, Tensor):
            self._aim(grads)
        elif isinstance(lr, Tensor):
            self._advance(self.direction.zero_(), grads, -1.0, self.keep1, self.keep2)
        else:
            self._advance(self.values, grads, lr, self.keep1, self.keep2)
            return
        add_scaled(self.values, lr, self.direction, negative=True, out=self.values)

    def _advance(self, values: Tensor, grads: Tensor, lr: float, beta1: float, beta2: float) -> None:
        self.count.fill_(self.steps + 1)
        torch._fused_adam_(
            [values],
            [grads],
            [self.mean],
            [self.square],
            [],
            [self.count],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def _aim(self, grads: Tensor) -> None:
        """Bring the moments up to date, and put the direction into its vector, where the networks differ in beta."""
        direction, dtype = self.direction, self.values.dtype
        bias1, bias2 = (1 - beta ** (self.steps + 1) for beta in (self.beta1, self.beta2))
        self.mean.lerp_(grads, self.add1)
        torch.mul(grads, self.add2, out=direction)
        self.square.mul_(self.keep2).addcmul_(direction, grads)
        torch.sqrt(self.square, out=direction)
        for run in self.runs:
            run.div_(first(bias2, run).sqrt().to(dtype)[:, None])
        torch.div(self.mean, direction.add_(self.eps), out=direction)
        for run in self.runs:
            run.div_(first(bias1, run).to(dtype)[:, None])
