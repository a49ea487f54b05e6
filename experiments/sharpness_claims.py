"""Claim 26, the edge of stability, with its expectations from before a run.

Cohen et al. 2021, arXiv:2103.00065. Letters: eta = learning rate, lambda = the largest eigenvalue of the Hessian of the
loss (the sharpness), at which descent on a quadratic is stable up to eta lambda / 2 = 1.

Full-batch gradient descent, dense tanh networks of two hidden layers on 500 digits, half the squared error of one-hot
labels. The sharpness rises to 2/eta and hovers there while the loss falls: once eta lambda / 2 was seen between 1.00
and 1.07, so that the range of its mean over the second half of the steps is 0.95 to 1.1. It is a power iteration's, of
products of the Hessian with a vector by our own rules, differentiated twice. Its control is step 0, before it has
risen. The loss is the mean over 10 steps at the end, over that of the half-way step, and at most 0.9; its control takes
10 steps of 4 eta from there, for which the curvature is four times too large.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Claim, Study

if TYPE_CHECKING:
    import polars
    from torch import Tensor

RATES = (0.3, 0.5)
SIZES, SAMPLES, GAIN = (64, 32, 32, 10), 500, 0.7
STEPS, EVERY, SHORT = 2000, 100, 10
ITERATIONS = 20
"""Of the power iteration, each time from the vector that the last one found."""
TOO_LARGE = 4.0
WORST = 1e3
"""What a loss that grows without bound counts as."""


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed and rate, by phase: `edge` of the second half, `start` of step 0, `jump` of too large steps.

    sharpness: eta lambda / 2, a mean over the phase; loss: that of the phase's end over that of the half-way step
    """
    import polars
    import torch

    weights, rates = draw(seeds), torch.tensor(RATES).repeat(seeds)
    first, _ = descend(weights, rates, STEPS // 2)
    half = [weight.detach().clone().requires_grad_() for weight in weights]
    second, losses = descend(weights, rates, STEPS // 2)
    _, jumps = descend(half, TOO_LARGE * rates, SHORT)
    ends = {"edge": losses[-SHORT:], "start": losses[:SHORT], "jump": jumps}
    means = {"edge": second.mean(0), "start": first[0], "jump": second[0] * TOO_LARGE}
    rows = []
    for phase in ends:
        change = (ends[phase].mean(0) / losses[0]).nan_to_num(WORST).clamp(max=WORST)
        for k in range(len(rates)):
            found = {"sharpness": float(means[phase][k]), "loss": float(change[k])}
            rows.append({"seed": k // len(RATES), "rate": RATES[k % len(RATES)], "phase": phase, **found})
    return polars.DataFrame(rows)


def draw(seeds: int) -> list[Tensor]:
    """Return the weights and biases of a network for each seed and rate, (R, o, i) and (R, o), the rates' alike."""
    import torch

    from bpexp.init import initialize
    from bpexp.streams import generator

    networks = []
    for seed in range(seeds):
        stream = generator(seed, "sharpness")
        pairs = [
            initialize("lecun", (fan_out, fan_in), gain=GAIN, generator=stream, dtype=torch.float32)
            for fan_in, fan_out in itertools.pairwise(SIZES)
        ]
        networks += [[parameter for pair in pairs for parameter in pair]] * len(RATES)
    return [torch.stack(own).requires_grad_() for own in zip(*networks, strict=True)]


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    """Return the images, less their mean, and one-hot labels."""
    import torch

    from bpexp.data import digits

    x, y = digits.read()
    x = x[:SAMPLES].float() / 16
    return x - x.mean(0), torch.nn.functional.one_hot(y[:SAMPLES], SIZES[-1]).float()


def losses_of(weights: Sequence[Tensor]) -> Tensor:
    """Return the loss of each network, (R,)."""
    from bpexp import functional
    from bpexp.rules.linear import linear

    x, y = data()
    h = x.expand(len(weights[0]), -1, -1)
    for k in range(0, len(weights) - 2, 2):
        h = functional.tanh(linear(h, weights[k], weights[k + 1]))
    return functional.square(functional.subtract(linear(h, *weights[-2:]), y)).sum(2).mean(1) / 2


def descend(weights: Sequence[Tensor], rates: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Take steps of gradient descent; return eta lambda / 2 at every EVERY-th, (T, R), and all losses, (steps, R)."""
    import torch

    vectors: Sequence[Tensor] = [torch.ones_like(weight) for weight in weights]
    sharpness, losses = [], []
    for step in range(steps):
        if step % EVERY == 0:
            values, vectors = power_iteration(weights, vectors)
            sharpness.append(rates * values / 2)
        loss = losses_of(weights)
        losses.append(loss.detach())
        grads = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight.sub_(spread(rates, grad) * grad)
    return torch.stack(sharpness), torch.stack(losses)


def power_iteration(weights: Sequence[Tensor], vectors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the largest eigenvalue of each network's Hessian, (R,), and the vector that the iteration has come to."""
    import torch

    grads = torch.autograd.grad(losses_of(weights).sum(), weights, create_graph=True)
    values = torch.zeros(())
    for _ in range(ITERATIONS):
        norms = dots(vectors, vectors).sqrt()
        vectors = [vector / spread(norms, vector) for vector in vectors]
        products = torch.autograd.grad(dots(grads, vectors).sum(), weights, retain_graph=True)
        values, vectors = dots(vectors, products), products
    return values, vectors


def dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of each network's parameters, (R,)."""
    import torch

    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(left, right, strict=True)]).sum(0)


def spread(values: Tensor, parameter: Tensor) -> Tensor:
    """Give a value for each network, (R,), the axes of a parameter."""
    return values.reshape(-1, *[1] * (parameter.dim() - 1))


def sharpness(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["sharpness"])


def loss(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["loss"])


SHARPNESS = Study("sharpness", compute, {"full": 10})
NETWORKS = f"tanh {'-'.join(map(str, SIZES))}, {SAMPLES} digits"

CLAIMS = (
    *(
        Claim(
            26,
            f"{NETWORKS}, eta = {rate:g}: eta lambda / 2, a mean over steps {STEPS // 2} to {STEPS}: 1",
            1.0,
            0.95,
            1.1,
            SHARPNESS,
            {"rate": rate, "phase": "edge"},
            {"rate": rate, "phase": "start"},
            sharpness,
        )
        for rate in RATES
    ),
    Claim(
        26,
        f"{NETWORKS}, eta = {RATES[-1]:g}: while it hovers the loss falls; step {STEPS} over step {STEPS // 2}",
        0.5,
        0.0,
        0.9,
        SHARPNESS,
        {"rate": RATES[-1], "phase": "edge"},
        {"rate": RATES[-1], "phase": "jump"},
        loss,
    ),
)
