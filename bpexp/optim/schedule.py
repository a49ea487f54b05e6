"""The learning rate from step to step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bpexp.optim.layout import Layout, Spread, Where, anywhere, first


def factors(schedule: str, warmups: Sequence[int], steps: int) -> Tensor | None:
    """Return what the learning rate is multiplied by at each step, from 0 on; None where that is always 1.

    Math:    (t + 1) / warmup while t < warmup; then 1 if constant, (1 + cos(pi (t - warmup) / (steps - warmup))) / 2 if
             cosine
    Shapes:  warmups: R numbers of steps
    Returns: (steps, R) float64, of one step at least; the update after the last, which is looked at and taken back, has
             the last one's factor
    Source:  cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts; warm-up: Goyal et al. 2017,
             arXiv:1706.02677
    """
    if schedule == "constant" and not any(warmups):
        return None
    t, warmup = torch.arange(max(steps, 1)).unsqueeze(1), torch.tensor(warmups)
    rise = (t + 1) / warmup.double()  # infinite, and unused, where there is no warm-up
    if schedule == "constant":
        return torch.where(t < warmup, rise, 1.0)
    passed = (t - warmup) / (steps - warmup).clamp(min=1).double()
    return torch.where(t < warmup, rise, (1 + torch.cos(math.pi * passed)) / 2)


class Rate:
    """A learning rate, or a decay in proportion to it, at each step: one number, or a vector with an entry a parameter.

    Without factors it is the same at every step, and so is its vector. With them all numbers are made here, once.
    """

    def __init__(self, layout: Layout, numbers: Tensor, factors: Tensor | None = None, where: Where = anywhere) -> None:
        """Take a number of each network, (R,), and its factor at each step, (steps, R); 0 outside of `where`."""
        self.table: list[float] | Tensor | None = None
        self.spread = layout.spread(numbers, where)
        if factors is None:
            return
        table = numbers * factors.to(numbers.device)
        if all(map(where, layout.shapes)) and bool((table == table[:, :1]).all()):
            self.table = table[:, 0].tolist()
            return
        if not isinstance(self.spread, Tensor):
            self.spread = numbers.new_empty(sum(shape.numel() for shape in layout.shapes))
        self.table, self.runs = table.to(numbers.dtype).unsqueeze(2), layout.runs(self.spread, where)

    def at(self, step: int) -> Spread:
        """Return the rate at a step; a vector is good until the next call."""
        if self.table is None:
            return self.spread
        row = self.table[min(step, len(self.table) - 1)]
        if isinstance(row, Tensor):
            for run in self.runs:
                run.copy_(first(row, run))
            return self.spread
        return row
