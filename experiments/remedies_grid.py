"""Networks that fail, what may cure them, and the cells that the two make: the tables FAILING, REMEDIES and DEEP.

A row is all that another network or remedy takes. A remedy's values replace those of the network that it is tried on.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bpexp import spec

Values = Mapping[str, object]
"""Values of keys, by their Hydra names."""


@dataclass(frozen=True)
class Failing:
    """A network that does not train, and what its gradient does at initialization, towards the input."""

    name: str
    overrides: Values
    gradient: str


@dataclass(frozen=True)
class Remedy:
    """Something that is said to help, and what it acts on."""

    name: str
    acts_on: str
    overrides: Values


@dataclass(frozen=True)
class Deep:
    """A network of DEEP_LAYERS layers that is to train, and its keys."""

    name: str
    overrides: Values


UNTREATED = Remedy("untreated", "nothing", {})

FAILING = (
    Failing("sigmoid, Xavier", {"model.activation": "sigmoid"}, "vanishing"),
    Failing("tanh, gain 0.5", {"model.activation": "tanh", "init.gain": 0.5}, "vanishing"),
    Failing("ReLU, Xavier", {"model.activation": "relu"}, "vanishing"),
    Failing("ReLU, PyTorch's default", {"model.activation": "relu", "init": "pytorch"}, "vanishing"),
    Failing("tanh, gain 3", {"model.activation": "tanh", "init.gain": 3.0}, "exploding"),
    Failing("ReLU, He x 2", {"model.activation": "relu", "init": "he", "init.gain": 2.0}, "exploding"),
    Failing(
        "ReLU, He, skip connections without norm",
        {"model.activation": "relu", "init": "he", "model.residual": "plain"},
        "exploding",
    ),
)
"""The networks, deep and narrow; a network is called by what is wrong with it."""

REMEDIES = (
    UNTREATED,
    Remedy("tanh", "activation", {"model.activation": "tanh"}),
    Remedy("ReLU", "activation", {"model.activation": "relu"}),
    Remedy("SELU", "activation", {"model.activation": "selu"}),
    Remedy("He", "initialization", {"init": "he", "init.gain": 1.0}),
    Remedy("orthogonal", "initialization", {"init": "orthogonal", "init.gain": 1.0}),
    Remedy("critical", "initialization", {"init": "critical", "init.gain": 1.0}),
    Remedy("LSUV", "initialization", {"init": "lsuv", "init.gain": 1.0}),
    Remedy("batch norm", "normalization", {"model.norm": "batch"}),
    Remedy("layer norm", "normalization", {"model.norm": "layer"}),
    Remedy("plain skips", "skip connections", {"model.residual": "plain"}),
    Remedy("scaled skips", "skip connections", {"model.residual": "scaled"}),
    Remedy("ReZero", "skip connections", {"model.residual": "rezero"}),
    Remedy("clip norm", "clipping", {"clip": "norm"}),
    Remedy("clip value", "clipping", {"clip": "value"}),
    Remedy("clip adaptive", "clipping", {"clip": "adaptive"}),
    Remedy("momentum", "optimizer", {"optimizer": "momentum"}),
    Remedy("Adam", "optimizer", {"optimizer": "adam"}),
    Remedy("warm-up", "optimizer", {"optimizer.warmup": 100}),
)

LEARNING_RATES = {
    "sgd": (0.004, 0.02, 0.1, 0.5),
    "momentum": (0.0004, 0.002, 0.01, 0.05),
    "adam": (0.0003, 0.001, 0.003, 0.01),
}
"""What each network and remedy may choose from, by optimizer; momentum 0.9 makes each step ten times as long."""

DEEP = (
    Deep(
        "plain tanh, critical orthogonal",
        {"model.activation": "tanh", "init": "orthogonal", "optimizer.lr": 2e-5, "train.steps": 1500},
    ),
    Deep(
        "ReLU, ReZero",
        {
            "model.activation": "relu",
            "init": "he",
            "model.residual": "rezero",
            "optimizer.lr": 0.01,
            "train.steps": 300,
        },
    ),
)
"""tanh is critical at sigma_w = 1 and sigma_b = 0, where an orthogonal matrix has gain 1. Learning rates and steps were
chosen by the validation accuracy of seed 0, which is none of DEEP_SEEDS."""

DEEP_LAYERS = 1000
DEEP_SEEDS = (1, 2)
DEEP_OVERRIDES = (
    f"model.depth={DEEP_LAYERS}",
    "optimizer=adam",
    "optimizer.schedule=cosine",
    "train.batch_size=128",
    "train.measure_every=100",
    "train.evaluate_every=100",
)


@functools.cache
def neutral() -> Mapping[str, object]:
    """Return the values that the tables' keys have where no row names them: the defaults of the configuration."""
    named = {name for row in (*FAILING, *REMEDIES) for name in row.overrides}
    keys = spec.keys()
    return {name: keys[name if name in keys else f"{name}.name"].default for name in sorted(named)}


def values(failing: Failing, remedy: Remedy) -> dict[str, object]:
    """Return the value of every key that some row names."""
    return {**neutral(), **failing.overrides, **remedy.overrides}


def learning_rates(failing: Failing, remedy: Remedy) -> tuple[float, ...]:
    """Return what a network with a remedy chooses its learning rate from."""
    return LEARNING_RATES[str(values(failing, remedy)["optimizer"])]


def cell_overrides(failing: Failing, remedy: Remedy, *rates: float) -> list[str]:
    """Return a cell's values that are not neutral, and its learning rates, as overrides."""
    own = {name: value for name, value in values(failing, remedy).items() if value != neutral()[name]}
    return [*assignments(own), f"optimizer.lr={','.join(map(str, rates))}"]


def assignments(keys: Values) -> list[str]:
    return [f"{name}={value}" for name, value in keys.items()]


def grid_argument(failing: Sequence[Failing] = FAILING, remedies: Sequence[Remedy] = REMEDIES) -> str:
    """Return the cells of networks and remedies as the override that declares them; equal cells are one."""
    return cells_argument(cell_overrides(one, cure, *learning_rates(one, cure)) for one in failing for cure in remedies)


def cells_argument(cells: Iterable[Sequence[str]]) -> str:
    """Return the override that declares cells, each given by its overrides."""
    return f"hydra.sweeper.params.cells=[{','.join(repr(' '.join(cell)) for cell in dict.fromkeys(map(tuple, cells)))}]"


def command(overrides: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the command that trains a cell's networks again."""
    return shlex.join(["python", "-m", "experiments.remedies", "-m", *overrides, seed_argument(seeds)])


def seed_argument(seeds: Sequence[int]) -> str:
    """Return the override of these seeds, as a range where they are one of several."""
    first, last = min(seeds), max(seeds)
    if len(seeds) == 1 or list(seeds) != list(range(first, last + 1)):
        return f"seed={','.join(map(str, seeds))}"
    return f"seed=range({f'{first},' if first else ''}{last + 1})"
