"""What the networks of a sweep's cells should measure at their width: bands, and p-values of what was measured.

Each cell's networks are drawn anew, with streams that no experiment has, and passed through by `bpexp.theory`; nothing
that was measured, and no code that measured it, has a part in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars

from bpexp import spec
from bpexp.streams import generator
from bpexp.threads import one_thread

if TYPE_CHECKING:
    from torch import Tensor

    from bpexp.theory import Simulation
    from bpexp.theory.drawn import Error
    from bpexp.theory.fluctuations import Batch

KEYS = (
    "model.depth",
    "model.width",
    "model.activation",
    "model.norm",
    "model.residual",
    "model.dropout",
    "model.input_dropout",
    "init",
    "init.gain",
    "init.bias_std",
    "init.gate",
    "data",
    "data.root",
    "data.train_size",
    "train.batch_size",
    "loss",
    "label_smoothing",
    "dtype",
)
"""What a network at initialization, its first batch and its loss depend on, the seed apart."""

SPLITS = 4
"""Splits of the data that the batches are drawn from, in turn."""
FIRST_SPLIT = 10**9
"""The seed of the first of them: one that no experiment has."""

Values = tuple[tuple[str, Any], ...]


@one_thread()
def simulate_cells(numbered: polars.DataFrame) -> dict[int, Simulation | None]:
    """Return a simulation of every cell's networks; cells that differ in other keys than KEYS have one in common.

    Edge:    None where theory has no answer, where the data that the cell learnt is no longer in its folder, and where
             all networks failed; a key that older results have not is at its default
    """
    found: dict[int, Simulation | None] = dict.fromkeys(numbered["cell"].unique(maintain_order=True))
    ran = numbered.filter(numbered["status"] != "failed").group_by("cell", maintain_order=True).first()
    for row in ran.iter_rows(named=True):
        one = spec.defaults() | row
        found[int(row["cell"])] = simulate_case(tuple((name, one[name]) for name in KEYS))
    return found


@functools.cache
def simulate_case(values: Values) -> Simulation | None:
    """Return a simulation of the networks that have these values of KEYS; None as `simulate_cells` says."""
    import torch

    from bpexp.data import describe
    from bpexp.theory import NoPredictionError, describe_network, simulate

    one, stream = dict(values), generator(0, f"simulation of {values}")
    try:
        data = describe(one["data"], one["data.root"])
        batch = batches(one, stream)
    except ValueError:
        return None
    sizes = (data.features, *[one["model.width"]] * one["model.depth"], data.outputs)
    try:
        network = describe_network(
            one["model.activation"],
            one["init"],
            sizes,
            one["init.gain"],
            one["init.bias_std"],
            one["model.residual"],
            norm=one["model.norm"],
            gate=one["init.gate"],
            dropout=one["model.dropout"],
            input_dropout=one["model.input_dropout"],
        )
    except NoPredictionError:
        return None
    error = error_of(one["loss"], data.task == "classification", data.outputs, one["label_smoothing"])
    with torch.no_grad():
        return simulate(network, batch, error, stream)


def batches(one: dict[str, Any], stream: Any) -> Batch:
    """Return what draws first batches of as many networks, each from one of SPLITS splits of the data.

    Raises:  ValueError: the data cannot be read
    """
    import torch

    from bpexp.data import load

    dtype = {"float32": torch.float32, "float64": torch.float64}[one["dtype"]]
    splits = [
        load(one["data"], FIRST_SPLIT + k, root=one["data.root"], train_size=one["data.train_size"], dtype=dtype)
        for k in range(SPLITS)
    ]

    def draw(networks: int) -> tuple[Tensor, Tensor]:
        x, y = [], []
        for network in range(networks):
            split = splits[network % SPLITS]
            rows = torch.randperm(len(split.x_train), generator=stream)[: one["train.batch_size"]]
            x.append(split.x_train[rows])
            y.append(split.y_train[rows])
        return torch.stack(x), torch.stack(y)

    return draw


def error_of(loss: str, classes: bool, outputs: int, smoothing: float) -> Error:
    """Return the gradient of each sample's loss with respect to the outputs.

    Math:    cross entropy: softmax(z) - q, q the target's classes under label smoothing; mse: 2 (z - y) / C
    """
    import torch

    def of_targets(y: Tensor, like: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(y, outputs).to(like.dtype) if classes else y

    def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
        return z.softmax(2) - ((1 - smoothing) * of_targets(y, z) + smoothing / outputs)

    def mse(z: Tensor, y: Tensor) -> Tensor:
        return 2 * (z - of_targets(y, z)) / outputs

    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}
    return kinds[loss]
