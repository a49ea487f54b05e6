"""From configurations to the update rule and the clipping of R networks that train together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bpexp.optim.clip import clip_by_norm, clip_by_unit, clip_by_value
from bpexp.optim.layout import Layout
from bpexp.optim.schedule import factors
from bpexp.optim.update import SGD, Adam, Common, Optimizer
from bpexp.spec import ADAPTIVE, Config

Clipper = Callable[[Tensor], Tensor]
"""Clips flat gradients in place, and returns which networks' were clipped, (R,) bool."""


def make_optimizer(configs: Sequence[Config], layout: Layout, values: Tensor) -> Optimizer:
    """Return the update rule of the networks, with the numbers of each; `values` are updated in place."""
    optimizers, config = [c.optimizer for c in configs], configs[0]

    def numbers(name: str, dtype: torch.dtype = values.dtype) -> Tensor:
        return torch.tensor([getattr(o, name) or 0.0 for o in optimizers], dtype=dtype).to(values.device)

    common: Common = {
        "lr": numbers("lr"),
        "l2": numbers("l2"),
        "weight_decay": numbers("weight_decay"),
        "max_norm": numbers("max_norm", torch.float64) if config.optimizer.max_norm is not None else None,
        "factors": factors(config.optimizer.schedule, [o.warmup for o in optimizers], config.train.steps),
    }
    if config.optimizer.name in ADAPTIVE:
        # 1 - beta of a beta in float32 would be off by 1e-5.
        beta1, beta2 = numbers("beta1", torch.float64), numbers("beta2", torch.float64)
        return Adam(layout, values, beta1=beta1, beta2=beta2, **common)
    nesterov = config.optimizer.name == "nesterov"
    return SGD(layout, values, momentum=numbers("momentum"), nesterov=nesterov, **common)


def make_clipper(configs: Sequence[Config], layout: Layout, values: Tensor) -> Clipper | None:
    """Return what clips the networks' gradients, before the update of `values`; None where nothing does."""
    name = configs[0].clip.name
    if name == "none":
        return None
    threshold = torch.tensor([c.clip.threshold for c in configs], dtype=values.dtype).to(values.device)
    clippers: dict[str, Clipper] = {
        "norm": lambda grads: clip_by_norm(layout, grads, threshold) > threshold,
        "value": lambda grads: clip_by_value(layout, grads, threshold) > threshold,
        "adaptive": lambda grads: clip_by_unit(layout, grads, values, threshold),
    }
    return clippers[name]
