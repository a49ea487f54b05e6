"""The wall of Pascanu et al. 2013, arXiv:1211.5063, figure 6: one recurrent unit, and how descent meets its wall.

x_t = w sigmoid(x_(t-1)) + b, x_0 = 1/2, E = (sigmoid(x_50) - 0.7)^2. Where w is large the unit ends at its upper fixed
point, where it is small at the lower one. Between them E jumps: that is the wall. Its edge is the valley that descent
follows. The derivatives are those of the suite's own plan, over all starting points at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars

Array = NDArray[np.float64]

RECURRENCES, FIRST, TARGET = 50, 0.5, 0.7
UPDATES = 1000
LEARNING_RATES = (0.1, 0.3, 1.0)
THRESHOLD = 1.0
"""Of the norm; along the valley that is a tenth of it, on the wall it is up to millions."""
CLIPS = {"none": np.inf, "norm": THRESHOLD}
VALLEY = 0.01
"""A path has stayed in the valley where its loss ends below this. On the plateau that plain descent is thrown to the
unit is saturated, and E = 0.09."""
BELOW_WALL = 0.2
"""E is larger than this left of the wall, for the b below, and smaller right of it."""
STARTS_B = (-3.0, -2.0)
STARTS_BESIDE = (0.1, 1.0)
"""Starting points: b, and how far w is right of the wall."""

DRAWN_START, DRAWN_RATE = (5.5, -2.6), 0.1
SURFACE_W, SURFACE_B = (3.0, 8.0, 101), (-3.5, -1.0, 51)
"""The surface that is drawn: from, to, points."""


class Wall:
    """Losses and gradients of R units, each with its own w and b, (R,)."""

    def __init__(self, w: Array, b: Array) -> None:
        import torch

        from bpexp import functional
        from bpexp.plan import Plan

        self.w, self.b = torch.tensor(w), torch.tensor(b)

        def loss(x: torch.Tensor) -> torch.Tensor:
            for _ in range(RECURRENCES):
                x = functional.add(functional.multiply(functional.sigmoid(x), self.w), self.b)
            return functional.square(functional.subtract(functional.sigmoid(x), TARGET))

        self.plan = Plan(loss, [torch.full_like(self.w, FIRST)], [self.w, self.b])

    def loss(self, w: Array, b: Array) -> Array:
        """Return E at other w and b; `gradient` is then that there."""
        import torch

        self.w.copy_(torch.from_numpy(w))
        self.b.copy_(torch.from_numpy(b))
        return self.plan.step().numpy().copy()

    @property
    def gradient(self) -> Array:
        """dE/dw and dE/db, (2, R)."""
        return np.stack([grad.numpy() for grad in self.plan.grads])


@dataclass(frozen=True)
class Descent:
    """Paths of descent, (UPDATES + 1, R) each, and the length of the longest update of each, (R,)."""

    w: Array
    b: Array
    loss: Array
    longest: Array


def descend(w: Array, b: Array, lr: Array, threshold: Array) -> Descent:
    """Follow the gradient from (w, b), its norm clipped to a threshold; inf clips nothing.

    Shapes:  all (R,)
    """
    wall, position = Wall(w, b), np.stack([w, b])
    path, losses, longest = [position], [], np.zeros_like(w)
    for _ in range(UPDATES):
        losses.append(wall.loss(*position))
        gradient = wall.gradient
        norm = np.hypot(*gradient)
        step = lr * np.where(norm > threshold, threshold / np.where(norm > 0, norm, 1.0), 1.0)
        longest = np.maximum(longest, step * norm)
        position = position - step * gradient
        path.append(position)
    losses.append(wall.loss(*position))
    w, b = np.stack(path, axis=1)
    return Descent(w, b, np.stack(losses), longest)


def find_wall(b: Array) -> Array:
    """Return the w at which the unit passes from its lower fixed point to the upper one, by bisection."""
    low, high = np.zeros_like(b), np.full_like(b, 12.0)
    wall = Wall(low, b)
    for _ in range(52):
        middle = (low + high) / 2
        left = wall.loss(middle, b) > BELOW_WALL
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return high


def compute(seeds: int) -> polars.DataFrame:
    """Descend from a starting point a seed, at each learning rate, with and without clipping.

    Returns: a row for each seed, learning rate and clip: whether it `stayed` in the valley, its last loss, its longest
             update
    """
    import polars

    starts = np.array([np.random.default_rng([seed, RECURRENCES]).random(2) for seed in range(seeds)])
    b = STARTS_B[0] + (STARTS_B[1] - STARTS_B[0]) * starts[:, 0]
    w = find_wall(b) + STARTS_BESIDE[0] + (STARTS_BESIDE[1] - STARTS_BESIDE[0]) * starts[:, 1]
    cases = [(seed, lr, clip) for lr in LEARNING_RATES for clip in CLIPS for seed in range(seeds)]
    seed, lr, clip = zip(*cases, strict=True)
    places = np.array(seed)
    found = descend(w[places], b[places], np.array(lr), np.array([CLIPS[name] for name in clip]))
    return polars.DataFrame(
        {
            "seed": seed,
            "optimizer.lr": lr,
            "clip": clip,
            "w": w[places],
            "b": b[places],
            "loss": found.loss[-1],
            "longest": found.longest,
            "stayed": found.loss[-1] < VALLEY,
        }
    )


def drawn_paths() -> polars.DataFrame:
    """Return the two paths that the figure shows, a row for each update: clip, step, w, b, loss."""
    import polars

    (w, b), names = DRAWN_START, list(CLIPS)
    two = np.ones(len(names))
    found = descend(w * two, b * two, DRAWN_RATE * two, np.array(list(CLIPS.values())))
    steps = range(UPDATES + 1)
    parts: list[dict[str, Any]] = [
        {"clip": name, "step": steps, "w": found.w[:, k], "b": found.b[:, k], "loss": found.loss[:, k]}
        for k, name in enumerate(names)
    ]
    return polars.concat([polars.DataFrame(part) for part in parts])


def surface() -> polars.DataFrame:
    """Return E over a grid of w and b, a row for each point."""
    import polars

    w, b = (grid.ravel() for grid in np.meshgrid(np.linspace(*SURFACE_W), np.linspace(*SURFACE_B)))
    return polars.DataFrame({"w": w, "b": b, "loss": Wall(w, b).loss(w, b)})
