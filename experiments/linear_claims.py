"""Claim 7, how deep linear networks learn, with its expectations from before a run.

Saxe, McClelland and Ganguli 2014, arXiv:1312.6120. Letters: W = weight layers, so W - 1 hidden ones; s = singular
value of a mode of the task, u(t) = how much of it is learnt; t in steps.

Modes. Weights start decoupled and balanced, u_0 = a^W of each mode. Full-batch gradient descent with a small rate
follows tau du/dt = W u^(2 - 2/W) (s - u), tau = 1/rate. Its error against that is Euler's, of the order of the rate: at
W rate s <= 2e-3 once 1.4e-3 of s was seen, and 2e-3 is the bound. The control is the law of another number of layers.

Depth. The loss is half the squared error on the first 32 principal components of digits, whitened, of one-hot labels
less their mean; no layer but the last has fewer outputs than inputs, so that orthogonal ones keep all of them. The
continuous time falls as 1/W, and as the curvature rises so, the largest stable rate falls too: with the best rate the
number of steps does not depend on depth where the product of the initial weights stays an isometry. A product of
Gaussian ones, whose variance 1/n keeps the mean square alone, has a spectrum that spreads with depth, so that its slow
directions take ever longer. The steps are those of the best of many rates, to a hundredth of the first loss. To a
tenth they are one or two, too few to compare. To 1e-4, which the smallest modes decide, they were once seen to rise 1.6
times from 10 to 100 hidden layers, and to level off there: so that has a row as well, with the same bounds.
"Independent" is a ratio between 10 and 100 hidden layers of at most 1.25 either way, "grows" one of at least 2; what
has not learnt after 200 steps counts as 200.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpexp.statistics import Interval, geometric_interval, mean_interval
from experiments.ledger import Claim, Study

if TYPE_CHECKING:
    import numpy as np
    import polars
    from numpy.typing import NDArray
    from torch import Tensor

RATE = 2e-3
"""W times the rate of learning, of modes of size 1 at most."""
LARGEST_ERROR = 2e-3
MODES, WIDTH = 4, 16
SIZES, STARTS = (0.5, 1.0), (0.05, 0.3)
"""Between which s and u_0/s are drawn."""
STEPS, EVERY = 4000, 20
LAWS = (2, 4)
"""Weight layers, of the network and of the law."""

DEPTHS = (10, 100)
"""Hidden layers."""
HIDDEN = 32
INDEPENDENT, GROWS = 1.25, 2.0
MOST_STEPS = 200
LEARNT, FINER = 0.01, 0.0001
"""Of the first loss."""
CRITERIA = {"orthogonal": (LEARNT, FINER), "lecun": (LEARNT,)}
RATES = tuple(2.0 ** (k / 2) for k in range(-20, 3))
"""Times 1/W: the rates that are tried."""


def compute_modes(seeds: int) -> polars.DataFrame:
    """Return for each seed, number of weight layers and law the largest error of a mode on the way, over its size."""
    import numpy as np
    import polars
    import torch

    from bpexp.theory.linear_dynamics import mode_strength

    rows = []
    for weights in LAWS:
        random = np.random.default_rng(weights)
        sizes = random.uniform(*SIZES, (seeds, MODES))
        starts = sizes * random.uniform(*STARTS, (seeds, MODES))
        times, found = learn_modes(torch.from_numpy(sizes), torch.from_numpy(starts), weights)
        for law in LAWS:
            for seed in range(seeds):
                errors = [
                    np.abs(found[:, seed, k] - mode_strength(times, s, u_0, weights / RATE, law)).max() / s
                    for k, (s, u_0) in enumerate(zip(sizes[seed], starts[seed], strict=True))
                ]
                rows.append({"seed": seed, "weights": weights, "law": law, "error": float(max(errors))})
    return polars.DataFrame(rows)


def learn_modes(sizes: Tensor, starts: Tensor, weights: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the times, (T,), and how much of each mode, (T, R, modes), networks have that start with u_0 of it.

    sizes, starts: (R, modes). The task's input and output directions and the networks' own between are random.
    """
    import numpy as np
    import torch

    from bpexp.init import fill_orthogonal
    from bpexp.streams import generator

    networks, modes = sizes.shape
    stream = generator(weights, "deep linear networks")
    bases = torch.empty(weights + 1, networks, WIDTH, WIDTH, dtype=torch.float64)
    for base in bases.flatten(0, 1):
        fill_orthogonal(base, 1.0, stream)
    target = bases[-1, :, :, :modes] * sizes[:, None] @ bases[0, :, :, :modes].mT
    layers = [
        (new[..., :modes] * (starts ** (1 / weights))[:, None] @ old[..., :modes].mT).requires_grad_()
        for old, new in itertools.pairwise(bases)
    ]
    times, found = [], []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            times.append(step)
            product = product_of([layer.detach() for layer in layers])
            strengths = bases[-1, :, :, :modes].mT @ product @ bases[0, :, :, :modes]
            found.append(strengths.diagonal(dim1=1, dim2=2).numpy())
        descend(layers, target, torch.tensor(RATE / weights, dtype=torch.float64))
    return np.array(times, dtype=np.float64), np.array(found)


def product_of(layers: Sequence[Tensor]) -> Tensor:
    """Return W_W ... W_1, (R, o, i): what networks of weights (R, o, i) make of whitened inputs."""
    import torch

    from bpexp.rules.linear import linear

    networks, _, inputs = layers[0].shape
    x = torch.eye(inputs, dtype=layers[0].dtype).expand(networks, -1, -1)
    for layer in layers:
        x = linear(x, layer, None)
    return x.mT


def descend(layers: Sequence[Tensor], target: Tensor, rates: Tensor) -> Tensor:
    """Take a step of gradient descent, by our own backward; return the losses before it, (R,). Rates: (R, 1, 1)."""
    import torch

    losses = (product_of(layers) - target).square().sum((1, 2)) / 2
    grads = torch.autograd.grad(losses.sum(), layers)
    with torch.no_grad():
        for layer, grad in zip(layers, grads, strict=True):
            layer.sub_(rates * grad)
    return losses.detach()


def compute_depth(seeds: int) -> polars.DataFrame:
    """Return for each seed, initialization and part of the loss the steps of the best rate, `steps_10`, `steps_100`."""
    import polars

    rows = []
    for seed in range(seeds):
        for init, parts in CRITERIA.items():
            found = [steps_to_learn(depth, init, seed) for depth in DEPTHS]
            for learnt, *steps in zip(parts, *found, strict=True):
                named = {f"steps_{depth}": count for depth, count in zip(DEPTHS, steps, strict=True)}
                rows.append({"seed": seed, "init": init, "learnt": learnt, **named})
    return polars.DataFrame(rows)


def steps_to_learn(depth: int, init: str, seed: int) -> list[int]:
    """Return for each of the CRITERIA the steps until the first of the RATES is there, MOST_STEPS where none is."""
    import torch

    from bpexp.init import INITS
    from bpexp.streams import generator

    task = task_of_digits()
    sizes = [task.shape[1], *[HIDDEN] * depth, task.shape[0]]
    row, stream = INITS[init], generator(seed, "init")
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weight = torch.empty(fan_out, fan_in)
        row.fill(weight, row.std(fan_in, fan_out), stream)
        layers.append(weight.repeat(len(RATES), 1, 1).requires_grad_())
    rates = torch.tensor(RATES)[:, None, None] / len(layers)
    start = descend(layers, task, torch.zeros(()))
    found: list[int] = []
    for step in range(MOST_STEPS):
        left = (descend(layers, task, rates) / start).nan_to_num(math.inf).min()
        found += [step for part in CRITERIA[init][len(found) :] if left <= part]
        if len(found) == len(CRITERIA[init]):
            return found
    return found + [MOST_STEPS] * (len(CRITERIA[init]) - len(found))


@functools.cache
def task_of_digits() -> Tensor:
    """Return the correlation of one-hot labels, less their mean, with digits' whitened components, (10, HIDDEN)."""
    import torch

    from bpexp.data import digits

    x, y = digits.read()
    x = x.double() - x.double().mean(0)
    labels = torch.nn.functional.one_hot(y, 10).double()
    components, _, _ = torch.linalg.svd(x, full_matrices=False)
    task = (labels - labels.mean(0)).T @ components[:, :HIDDEN]
    found: Tensor = (task / torch.linalg.matrix_norm(task, 2)).float()
    return found


def error(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return mean_interval(rows["error"])


def ratio(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """How many times as many steps a hundred hidden layers take as ten."""
    return geometric_interval(rows["steps_100"] / rows["steps_10"])


MODES_OF_LINEAR = Study("linear_modes", compute_modes, {"smoke": 2, "default": 5, "full": 20})
DEPTH_OF_LINEAR = Study("linear_depth", compute_depth, {"full": 10})

CLAIMS = (
    *(
        Claim(
            7,
            f"linear, {hidden}, W rate = {RATE:g}: largest error of u(t) of a mode against its law, over its size",
            0.0,
            0.0,
            LARGEST_ERROR,
            MODES_OF_LINEAR,
            {"weights": weights, "law": weights},
            {"weights": weights, "law": sum(LAWS) - weights},
            error,
        )
        for weights, hidden in zip(LAWS, ("one hidden layer", "three hidden layers"), strict=True)
    ),
    *(
        Claim(
            7,
            f"linear, width {HIDDEN}, orthogonal: steps to learn digits to {learnt:g} of the first loss with 100 "
            "hidden layers over those with 10",
            1.0,
            1 / INDEPENDENT,
            INDEPENDENT,
            DEPTH_OF_LINEAR,
            {"init": "orthogonal", "learnt": learnt},
            {"init": "lecun", "learnt": LEARNT},
            ratio,
        )
        for learnt in (LEARNT, FINER)
    ),
    Claim(
        7,
        f"linear, width {HIDDEN}, scaled Gaussian: steps to learn digits to {LEARNT:g} of the first loss with "
        f"100 hidden layers at least {GROWS:g} times those with 10",
        GROWS,
        GROWS,
        float(MOST_STEPS),
        DEPTH_OF_LINEAR,
        {"init": "lecun", "learnt": LEARNT},
        {"init": "orthogonal", "learnt": LEARNT},
        ratio,
    ),
)
