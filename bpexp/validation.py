"""What a configuration may say: types, ranges, and values that go together. Needs torch where theory decides."""

from __future__ import annotations

import functools
import math
import operator
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpexp.data import DATA, check_sizes
from bpexp.init import initialize, unknown_choice
from bpexp.spec import ADAPTIVE, LARGEST_DROPOUT, MASK_LEVELS, Config, Key, UserError, flatten, keys

LARGEST_INTEGER = 2**63 - 1
"""What a column of the results can hold."""

PRECISION = {"float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127), "float64": (2.0**-1022, sys.float_info.max)}
"""The smallest normal and the largest number of each dtype: beyond, a value is not what the network gets."""

CRITERION_MEASURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "grad_norm")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Criterion:
    """A stated criterion of convergence: a whole-network measure against a bound."""

    measure: str
    comparison: str
    bound: float

    def met(self, value: float) -> bool:
        """Return whether a value of the measure meets the criterion; NaN never does."""
        return COMPARISONS[self.comparison](value, self.bound)


def parse_criterion(text: str) -> Criterion:
    """Read a criterion such as `train_loss<0.01`.

    Raises:  UserError: another form, an unknown measure, a bound that is no finite number
    """
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*", text)
    if not found:
        raise UserError(f"train.until: {text!r} is not a criterion; write one such as 'train_loss<0.01'")
    measure, comparison, bound = found.groups()
    if measure not in CRITERION_MEASURES:
        raise UserError(str(unknown_choice("train.until", measure, CRITERION_MEASURES)))
    try:
        value = float(bound)
    except ValueError:
        raise UserError(f"train.until: {bound!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"train.until: {bound!r} is not a finite number")
    return Criterion(measure, comparison, value)


def validate(config: Any) -> None:
    """Refuse a configuration that cannot run as it says.

    Raises:  UserError: a value of the wrong type, out of range or unknown; values that contradict each other; a
             value that is set but would be ignored; sizes that the data does not have
    """
    values = flatten(config)
    for name, declared in keys(type(config)).items():
        check_value(declared, values[name])
    if isinstance(config, Config):
        _check_together(config)


def validate_sweep(config: Config) -> None:
    """Refuse settings of a sweep, which all its jobs have in common.

    Raises:  UserError: as `validate` says
    """
    values = flatten(config)
    for name, declared in keys(type(config)).items():
        if name.startswith("sweep."):
            check_value(declared, values[name])
    _check_sweep(config)


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def wrong_type(declared: Key, value: object) -> UserError:
    """Return the error for a value that is not of the key's type."""
    shown = "null" if value is None else repr(value)
    return UserError(f"{declared.name}: {shown} is not {_KINDS[declared.type]}")


def check_value(declared: Key, value: Any) -> None:
    """Refuse a value that its key does not take.

    Raises:  UserError: as `validate` says
    """
    if value is None and declared.optional:
        return
    fits = isinstance(value, (int, float) if declared.type is float else declared.type)
    if not fits or (isinstance(value, bool) and declared.type is not bool):
        raise wrong_type(declared, value)
    if declared.choices and value not in declared.choices:
        raise UserError(str(unknown_choice(declared.name.removesuffix(".name"), value, declared.choices)))
    if declared.type in (int, float):
        _check_number(declared, value)


def _check_number(declared: Key, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{declared.name}: {value} is not a finite number")
    if declared.range is not None and value not in declared.range:
        raise UserError(f"{declared.name}: {value} is out of range; must be {declared.range}")
    if value > LARGEST_INTEGER and declared.type is int:
        raise UserError(f"{declared.name}: {value} is out of range; must be at most {LARGEST_INTEGER}")


def _check_precision(config: Config) -> None:
    """Refuse a number that the networks' dtype, or the masks' levels, would take for another."""
    smallest, largest = PRECISION[config.dtype]
    values = flatten(config)
    for name, declared in keys().items():
        value = values[name]
        if declared.type is float and value and not smallest <= abs(value) <= largest:
            raise UserError(
                f"{name}: {value} is out of range; {config.dtype} tells numbers from {smallest:.2g} to {largest:.2g}"
            )
    for name in ("model.dropout", "model.input_dropout"):
        if values[name] and not round(values[name] * MASK_LEVELS) >= 1:
            raise UserError(
                f"{name}: {values[name]} is out of range; masks tell probabilities {1 / MASK_LEVELS:.2g} apart"
            )
        if values[name] > LARGEST_DROPOUT:
            raise UserError(f"{name}: {values[name]} is out of range; masks drop at most {LARGEST_DROPOUT:g} of all")


def _check_together(config: Config) -> None:
    _check_precision(config)
    if config.loss == "cross_entropy" and DATA[config.data.name].task == "regression":
        raise UserError(f"loss: cross_entropy needs classes, which {config.data.name} has not; choose mse")
    if config.label_smoothing and config.loss != "cross_entropy":
        raise UserError(f"label_smoothing: {config.label_smoothing} would be ignored by loss={config.loss}")
    _check_applies(config, "optimizer.momentum", ("momentum", "nesterov"))
    _check_applies(config, "optimizer.beta1", ADAPTIVE)
    _check_applies(config, "optimizer.beta2", ADAPTIVE)
    _check_applies(config, "clip.threshold", ("norm", "value", "adaptive"))
    _check_optimizer(config)
    _check_model(config)
    _check_init(config)
    if config.train.until is not None:
        _check_until(config.train.until, config)
    _check_sweep(config)
    try:
        check_sizes(config.data.name, config.data.train_size, config.train.batch_size, root=config.data.root)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_sweep(config: Config) -> None:
    sweep = config.sweep
    if sweep.workers is not None and sweep.executor == "inline":
        raise UserError(
            f"sweep.workers: {sweep.workers} would be ignored by sweep.executor=inline; choose processes or submitit"
        )
    if sweep.cluster is not None and sweep.executor != "submitit":
        raise UserError(
            f"sweep.cluster: {sweep.cluster} would be ignored by sweep.executor={sweep.executor}; choose submitit"
        )
    slurm = {"partition": sweep.partition, "minutes": sweep.minutes, "memory": sweep.memory}
    for name, value in slurm.items():
        if value is not None and sweep.executor != "submitit":
            raise UserError(
                f"sweep.{name}: {value} would be ignored by sweep.executor={sweep.executor}; choose submitit"
            )
        if value is not None and sweep.cluster == "local":
            raise UserError(f"sweep.{name}: {value} would be ignored by sweep.cluster=local; choose slurm")


def _check_applies(config: Config, name: str, users: tuple[str, ...]) -> None:
    """Refuse a value that only some options of its group use where another is chosen, and the lack of one elsewhere."""
    group = name.split(".")[0]
    option, value = getattr(config, group).name, flatten(config)[name]
    if option not in users and value is not None:
        others = " or ".join(f"{group}={o}" for o in users)
        raise UserError(f"{name}: {value} would be ignored by {group}={option}; choose {others}")
    if option in users and value is None:
        raise UserError(f"{name}: null is not a number; {group}={option} needs one")


def _check_optimizer(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.name == "adam" and optimizer.weight_decay:
        raise UserError(
            f"optimizer.weight_decay: {optimizer.weight_decay} is decoupled, which makes adam adamw; "
            "choose optimizer=adamw, or optimizer.l2"
        )
    if optimizer.schedule == "cosine" and 0 < steps == optimizer.warmup:
        raise UserError(
            f"optimizer.schedule: cosine would be ignored by optimizer.warmup={steps}, "
            f"which ends with train.steps={steps}"
        )
    if 0 < steps < optimizer.warmup:
        raise UserError(
            f"optimizer.warmup: {optimizer.warmup} steps would end after train.steps={steps}; choose at most {steps}"
        )


def _check_model(config: Config) -> None:
    model = config.model
    if model.residual != "none" and model.depth == 1:
        raise UserError(
            f"model.residual: {model.residual} would be ignored by model.depth=1, whose input is of another size"
        )
    if model.norm == "batch" and config.train.batch_size < 2:
        raise UserError(
            "model.norm: batch needs more than one sample to normalize over, and train.batch_size is 1; "
            "choose a larger batch or model.norm=layer"
        )
    if model.norm == "layer" and model.width < 2:
        raise UserError(
            "model.norm: layer needs more than one unit to normalize over, and model.width is 1; choose a larger width"
        )


def _check_init(config: Config) -> None:
    init, model = config.init, config.model
    if init.name == "zeros" and init.gain != 1:
        raise UserError(f"init.gain: {init.gain} would be ignored by init=zeros; choose another init")
    if init.name != "pytorch" and init.bias_std is None:
        raise UserError("init.bias_std: null is pytorch's own biases; give a number or choose init=pytorch")
    if init.gate and model.residual != "rezero":
        raise UserError(
            f"init.gate: {init.gate} would be ignored by model.residual={model.residual}; choose model.residual=rezero"
        )
    if init.name == "lsuv" and init.gain == 0:
        raise UserError("init.gain: 0.0 leaves lsuv no variance to reach; choose a positive one")
    if init.name == "fixup" and model.residual == "none":
        raise UserError(
            "init: fixup starts every residual branch at zero, and model.residual=none has none; "
            "choose model.residual=plain or scaled, or rezero with init.gate=1"
        )
    if init.name == "fixup" and model.residual == "rezero" and init.gate == 0:
        raise UserError(
            "init.gate: 0.0 closes gates on branches that fixup starts at zero, so that neither would ever learn; "
            "choose init.gate=1, Fixup's multiplier"
        )
    if init.name == "fixup" and model.norm != "none":
        raise UserError(
            f"model.norm: {model.norm} would divide by the deviation of branches that fixup starts at zero; "
            "choose model.norm=none, which fixup is made for"
        )
    if init.name in ("critical", "fixup"):  # they depend on the activation, and to ask them takes torch
        _try_init(init.name, init.bias_std, model.activation)


@functools.cache
def _try_init(name: str, bias_std: float | None, activation: str) -> None:
    import torch

    try:
        initialize(
            name,
            (1, 1),
            bias_std=bias_std,
            generator=torch.Generator(),
            dtype=torch.float64,
            activation=activation,
            layer=2,
            depth=2,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_until(text: str, config: Config) -> None:
    criterion = parse_criterion(text)
    if config.train.steps == 0:
        raise UserError(f"train.until: {text!r} would be ignored with train.steps=0; choose more steps")
    if criterion.measure.endswith("accuracy") and DATA[config.data.name].task == "regression":
        raise UserError(f"train.until: {criterion.measure} is not defined on {config.data.name}; choose a loss")
