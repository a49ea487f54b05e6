"""The typed configuration: every key of conf/ with its default, its range and its meaning.

Nothing here needs torch, so that a mistake is answered at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from bpexp.data import DATA, fingerprint
from bpexp.init import INITS

RECORD_VERSION = 1
"""The version of the record format; part of every identity, so that a new format is never mixed with an old one."""

MASK_LEVELS = 2**16
"""The probabilities that a dropout mask can tell apart: 8 random bits of a unit, and 8 of its layer, decide."""

LARGEST_DROPOUT = 255 / 256
"""The largest probability that a dropout mask has."""

ACTIVATIONS = (
    "celu",
    "elu",
    "gelu",
    "gelu_tanh",
    "hardtanh",
    "identity",
    "leaky_relu",
    "mish",
    "prelu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
)


EXECUTORS = ("inline", "processes", "submitit")
UNMIXED = "prelu"
"""The activation that has a parameter: networks with it do not train with networks of other activations."""

NORMS = ("none", "batch", "layer")
RESIDUALS = ("none", "plain", "scaled", "rezero")
ADAPTIVE = ("adam", "adamw")
"""The update rules with a step size of each parameter's own, from running moments of its gradient."""


class UserError(ValueError):
    """A user's mistake: one line that names the key, the value and the choices. It ends the command with code 2."""


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes: from `low` (excluded where `above`) to `below`, which is always excluded."""

    low: float
    below: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value < self.below

    def __str__(self) -> str:
        start = f"{'greater than' if self.above else 'at least'} {self.low:g}"
        return start if self.below == math.inf else f"{start} and below {self.below:g}"


AT_LEAST_0, AT_LEAST_1, POSITIVE, FRACTION = Range(0), Range(1), Range(0, above=True), Range(0, 1)


def key(default: Any, meaning: str, *, range: Range | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Declare a key: a dataclass field that carries its meaning and what it takes."""
    return field(default=default, metadata={"meaning": meaning, "range": range, "choices": choices})


@dataclass
class Data:
    """What the network learns."""

    name: str = key("digits", "data set", choices=tuple(DATA))
    root: str | None = key(None, "folder of the files of data=idx or data=cifar10")
    train_size: int | None = key(None, "training samples, stratified; null is all there are", range=AT_LEAST_1)


@dataclass
class Model:
    """The network."""

    name: str = key("mlp", "network", choices=("mlp",))
    depth: int = key(4, "hidden layers, L", range=AT_LEAST_1)
    width: int = key(64, "units of a hidden layer", range=AT_LEAST_1)
    activation: str = key("tanh", "activation of the hidden layers", choices=ACTIVATIONS)
    norm: str = key("none", "normalization between a linear map and its activation", choices=NORMS)
    residual: str = key(
        "none", "skip connections around hidden layers; how their branches are scaled", choices=RESIDUALS
    )
    dropout: float = key(0.0, "probability to drop a hidden unit", range=FRACTION)
    input_dropout: float = key(0.0, "probability to drop an input", range=FRACTION)


@dataclass
class Init:
    """How weights and biases start."""

    name: str = key("glorot", "initialization", choices=tuple(INITS))
    gain: float = key(1.0, "factor on the standard deviation of the weights", range=AT_LEAST_0)
    bias_std: float | None = key(
        0.0, "standard deviation of the biases; null is pytorch's own uniform ones", range=AT_LEAST_0
    )
    gate: float = key(0.0, "first value of the gates of model.residual=rezero; 0 is that of ReZero and SkipInit")


@dataclass
class Optimizer:
    """The update rule."""

    name: str = key("sgd", "update rule", choices=("sgd", "momentum", "nesterov", *ADAPTIVE))
    lr: float = key(0.05, "learning rate", range=AT_LEAST_0)
    momentum: float | None = key(None, "share of the last update that is kept", range=FRACTION)
    beta1: float | None = key(None, "share of the gradient's running mean that is kept", range=FRACTION)
    beta2: float | None = key(None, "share of the gradient's running mean square that is kept", range=FRACTION)
    l2: float = key(0.0, "adds l2/2 times the squared norm of the weights to the loss", range=AT_LEAST_0)
    weight_decay: float = key(0.0, "decoupled decay of the weights", range=AT_LEAST_0)
    max_norm: float | None = key(None, "largest norm of a unit's incoming weights, after each update", range=POSITIVE)
    schedule: str = key("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup: int = key(0, "steps in which the learning rate rises to its value", range=AT_LEAST_0)


@dataclass
class Clip:
    """Clipping of the gradient before the update."""

    name: str = key(
        "none",
        "what is clipped: the joint norm, each value, or each unit's norm against that of its weights",
        choices=("none", "norm", "value", "adaptive"),
    )
    threshold: float | None = key(None, "largest norm, value, or ratio of norms", range=POSITIVE)


@dataclass
class Train:
    """How long to train, and when to look."""

    steps: int = key(200, "updates; 0 measures the initial state alone", range=AT_LEAST_0)
    batch_size: int = key(128, "samples of a batch", range=AT_LEAST_1)
    measure_every: int = key(20, "steps between measures", range=AT_LEAST_1)
    evaluate_every: int = key(
        100,
        "steps between measures of validation and test parts, at measured steps; with train.until at all of them",
        range=AT_LEAST_1,
    )
    until: str | None = key(None, "criterion that ends training early, such as 'train_loss<0.01'")


@dataclass
class Sweep:
    """How a sweep runs; never what it finds."""

    executor: str = key(
        "processes",
        "where groups of networks train: in this process, in one a core, or on a cluster",
        choices=EXECUTORS,
    )
    workers: int | None = key(
        None, "most groups that train at once; null is one a core, and on Slurm as many as it runs", range=AT_LEAST_1
    )
    cluster: str | None = key(
        None,
        "where submitit trains; null is Slurm where there is one, else local processes",
        choices=("slurm", "local"),
    )
    partition: str | None = key(None, "Slurm's partition; null is its default")
    minutes: int | None = key(None, "Slurm's time limit of a group; null is an hour", range=AT_LEAST_1)
    memory: float | None = key(None, "gigabytes that a group gets on Slurm; null is its default", range=POSITIVE)
    checkpoint_every: float = key(
        30.0, "seconds between the checkpoints from which a group of networks goes on if it is killed", range=POSITIVE
    )
    max_runs: int = key(
        64,
        "most networks of a sweep that TensorBoard shows beside the means over the seeds; 0 is none",
        range=AT_LEAST_0,
    )
    fresh: bool = key(False, "run finished jobs again")
    keep_going: bool | None = key(
        None,
        "null refuses a sweep with wrong jobs, and goes on after one that fails; true runs it in spite of wrong jobs; "
        "false refuses them, and stops at the first that fails",
    )


@dataclass
class Config:
    """The configuration of an experiment that trains networks."""

    seed: int = key(0, "seed of the network: its split, weights, batches and dropout", range=AT_LEAST_0)
    device: str = key("auto", "auto takes CUDA when there is one", choices=("auto", "cpu", "cuda"))
    dtype: str = key("float32", "precision of the network", choices=("float32", "float64"))
    loss: str = key("cross_entropy", "loss; mse on classes has one-hot targets", choices=("cross_entropy", "mse"))
    label_smoothing: float = key(0.0, "share of a target that is spread over all classes", range=FRACTION)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    optimizer: Optimizer = field(default_factory=Optimizer)
    clip: Clip = field(default_factory=Clip)
    train: Train = field(default_factory=Train)
    sweep: Sweep = field(default_factory=Sweep)
    debug: bool = key(False, "show the traceback of an error")


SCALES = ("smoke", "default", "full")


@dataclass
class Walkthrough:
    """The configuration of the walkthrough."""

    seed: int = key(0, "seed of the small network", range=AT_LEAST_0)
    debug: bool = key(False, "show the traceback of an error")


@dataclass
class Exercise:
    """The configuration of the exercise."""

    seed: int = key(0, "seed of the samples that are checked", range=AT_LEAST_0)
    debug: bool = key(False, "show the traceback of an error")


@dataclass
class Cost:
    """The configuration of the benchmark."""

    scale: str = key("default", "how long to measure", choices=SCALES)
    debug: bool = key(False, "show the traceback of an error")


@dataclass
class Claims:
    """The configuration of the ledger of claims."""

    scale: str = key("default", "which claims are tested, and with how many seeds", choices=SCALES)
    only: str | None = key(None, "a claim's number, or the name of a sweep or study: its claims alone")
    debug: bool = key(False, "show the traceback of an error")


@dataclass
class Report:
    """The configuration of the report; its key `from` is Python's word and stands in its file alone."""

    scale: str = key("default", "how much is computed", choices=SCALES)
    only: str | None = key(None, "the one experiment to make")
    publish: bool = key(False, "rewrite the published copy")
    debug: bool = key(False, "show the traceback of an error")


SCHEMAS: dict[str, type] = {
    "networks": Config,
    "walkthrough": Walkthrough,
    "exercise": Exercise,
    "cost": Cost,
    "claims": Claims,
    "report": Report,
}
"""The schemas that a file of conf/experiment chooses from, as `/schema: NAME`."""


@dataclass(frozen=True)
class Key:
    """A key of a schema as its field declares it."""

    name: str
    type: type
    optional: bool
    default: Any
    meaning: str
    range: Range | None
    choices: tuple[str, ...]


def _read_keys(schema: type) -> dict[str, Key]:
    found: dict[str, Key] = {}
    hints = typing.get_type_hints(schema)
    for one in dataclasses.fields(schema):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            inner = _read_keys(typing.cast("type", hint))
            found |= {
                f"{one.name}.{name}": dataclasses.replace(k, name=f"{one.name}.{name}") for name, k in inner.items()
            }
        else:
            optional = isinstance(hint, types.UnionType)
            plain = typing.get_args(hint)[0] if optional else hint
            found[one.name] = Key(one.name, plain, optional, one.default, **one.metadata)
    if schema is Report:
        found["from"] = Key("from", str, True, None, "the folder of one sweep to report on", None, ())
    return found


_KEYS: dict[type, Mapping[str, Key]] = {schema: _read_keys(schema) for schema in SCHEMAS.values()}
_VALUES = {schema: operator.attrgetter(*found) for schema, found in _KEYS.items()}


def keys(schema: type = Config) -> Mapping[str, Key]:
    """Return the keys of a schema by their Hydra names, in the order of its fields."""
    return _KEYS[schema]


GROUPS = tuple(name.removesuffix(".name") for name in keys() if name.endswith(".name"))
"""The groups of conf/: the chosen option of each is its `name`."""


def defaults() -> dict[str, Any]:
    """Return what every key is where it is not given, by the names that columns of results have."""
    return {name.removesuffix(".name"): declared.default for name, declared in keys().items()}


def flatten(config: Any) -> dict[str, Any]:
    """Return the values of a configuration by their Hydra names."""
    schema = type(config)
    return dict(zip(_KEYS[schema], _VALUES[schema](config), strict=True))


NOT_IDENTITY = ("device", "debug", "sweep.")
"""How the keys begin that decide where and how a network trains, but nothing of what it shows."""


def identity(config: Config) -> str:
    """Return the short hash that names a configuration's results: what decides them, and nothing else.

    The device and the sweep's settings do not count, and of a folder of data what is in it, not its path; 1 and 1.0
    are the same value of a number.
    """
    schema = keys(type(config))
    values = {
        name: float(value) + 0.0 if schema[name].type is float and value is not None else value
        for name, value in flatten(config).items()
        if not name.startswith(NOT_IDENTITY) and name != "data.root"
    }
    values["data.fingerprint"] = fingerprint(config.data.name, config.data.root)
    text = json.dumps([RECORD_VERSION, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


_PER_NETWORK = (
    "seed",
    "label_smoothing",
    "model.dropout",
    "model.input_dropout",
    "init.name",
    "init.gain",
    "init.bias_std",
    "init.gate",
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.l2",
    "optimizer.weight_decay",
    "optimizer.max_norm",
    "optimizer.warmup",
    "clip.threshold",
    "debug",
)

_ALL_OR_NONE = ("label_smoothing", "model.dropout", "model.input_dropout", "optimizer.max_norm", "optimizer.warmup")
"""Numbers that cost a network something unless they are zero or null: networks with and without are not mixed."""


MIXED = ("model.depth", "model.activation")
"""Keys in which networks that train together may differ, at a cost: each layer has fewer, or several activations."""


def group_key(config: Config, but_for: Collection[str] = ()) -> tuple[object, ...]:
    """Return what networks must have in common to train together; all else differs from network to network.

    but_for: those of the MIXED keys in which they may differ; without any, the structure is one
    """
    values = flatten(config)
    own = {*_PER_NETWORK, *but_for}
    shared = [value for name, value in values.items() if name not in own and not name.startswith("sweep.")]
    return *shared, *(bool(values[name]) for name in _ALL_OR_NONE), config.model.activation == UNMIXED


def order(config: Config) -> tuple[int, int]:
    """Return the place of a network among those that it trains with: the deepest come first, then by activation."""
    return -config.model.depth, ACTIVATIONS.index(config.model.activation)
