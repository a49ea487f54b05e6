"""Claim 27, the gradient noise scale, with its expectations from before a run.

McCandlish et al. 2018, arXiv:1812.06162. Letters: g_i = gradient of sample i's loss, G = their mean over the data,
Sigma = their covariance, G_B = the mean of B samples that are drawn independently, with replacement.

As G_B is a mean of B independent draws, E G_B = G and Var G_B = Sigma/B, so that E |G_B|^2 = |G|^2 + tr(Sigma)/B
exactly, whatever the network. B_simple = tr(Sigma)/|G|^2 is the batch at which noise and signal are even. |G|^2 and
tr(Sigma) are those of all samples of digits; the batches' gradients come from backward passes of their own. The mean of
TRIALS batches over the law is 1 to 3 %, which is the sampling error alone. The control is the law without noise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, mean_interval
from experiments.ledger import Study, around

if TYPE_CHECKING:
    import polars
    from torch import Generator, Tensor

SIZES = (64, 32, 10)
BATCHES = (1, 8, 64, 512)
TRIALS, TOGETHER = 1024, 128
TOLERANCE = 0.03


def compute(seeds: int) -> polars.DataFrame:
    """Return for each seed, batch size and law the mean |G_B|^2 of one network's batches over what the law says."""
    import polars
    import torch

    from bpexp.streams import generator

    rows = []
    for seed in range(seeds):
        stream = generator(seed, "gradient noise")
        weights, (x, _) = draw(stream), data()
        singles = [squares(weights, rows_of.reshape(-1, 1)) for rows_of in torch.arange(len(x)).split(TOGETHER)]
        each = torch.cat(singles).mean()
        (whole,) = squares(weights, torch.arange(len(x))[None])
        for batch in BATCHES:
            drawn = torch.randint(len(x), (TRIALS, batch), generator=stream)
            measured = torch.cat([squares(weights, some) for some in drawn.split(TOGETHER)]).mean()
            laws = {"noise": whole + (each - whole) / batch, "no noise": whole}
            rows += [
                {"seed": seed, "batch": batch, "law": law, "ratio": float(measured / expected)}
                for law, expected in laws.items()
            ]
    return polars.DataFrame(rows)


def draw(stream: Generator) -> list[Tensor]:
    """Return the weights and biases of a network."""
    import torch

    from bpexp.init import initialize

    pairs = [initialize("lecun", (o, i), generator=stream, dtype=torch.float32) for i, o in itertools.pairwise(SIZES)]
    return [parameter for pair in pairs for parameter in pair]


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    from bpexp.data import digits

    x, y = digits.read()
    return x.float() / 16, y


def squares(weights: Sequence[Tensor], samples: Tensor) -> Tensor:
    """Return |G_B|^2 of every batch of sample numbers, (R, B): (R,)."""
    import torch

    from bpexp import functional
    from bpexp.rules.linear import linear

    x, y = data()
    own = [weight.expand(len(samples), *weight.shape).requires_grad_() for weight in weights]
    h = functional.tanh(linear(x[samples], *own[:2]))
    logits = linear(h, *own[2:]).flatten(0, 1)
    loss = functional.cross_entropy(logits, y[samples].flatten(), reduction="sum") / samples.shape[1]
    grads = torch.autograd.grad(loss, own)
    return torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)


def ratio(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["ratio"])


NOISE = Study("noise_scale", compute, {"smoke": 3, "default": 6, "full": 40})

CLAIMS = tuple(
    around(
        27,
        f"tanh {'-'.join(map(str, SIZES))}, digits, B = {batch}: E |G_B|^2 over |G|^2 + tr(Sigma)/B",
        1.0,
        TOLERANCE,
        NOISE,
        {"batch": batch, "law": "noise"},
        {"batch": batch, "law": "no noise"},
        ratio,
    )
    for batch in BATCHES
)
