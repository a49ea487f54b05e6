"""How much memory a group of networks takes, from its configurations alone, and how much there is.

Nothing here needs torch, so that what does not fit is told before anything is allocated.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, W units of a hidden layer, F
features, C outputs, N samples of a data set, P parameters of all networks.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpexp import spec
from bpexp.chunks import BYTES
from bpexp.data import describe
from bpexp.data.batches import epochs_at_once, is_held
from bpexp.spec import Config

PROCESS = 320 * 2**20
"""A process with all that it imports."""

LAYER = 900 * 2**10
"""What the recorded operators of a layer take beside their numbers."""

RECORDED = {
    "identity": 6.5,
    "relu": 9.5,
    "leaky_relu": 11.0,
    "sigmoid": 11.0,
    "tanh": 10.0,
    "celu": 13.0,
    "silu": 15.0,
    "softplus": 15.0,
    "hardtanh": 15.0,
    "prelu": 16.0,
    "elu": 15.0,
    "softsign": 15.0,
    "selu": 16.0,
    "gelu": 20.5,
    "gelu_tanh": 24.0,
    "mish": 27.0,
}
"""Tensors of (R, B, W) that are alive while a hidden layer's step is recorded, by activation; far more than in a step.

With a norm, a skip connection or dropout there are MORE.
"""

MORE = {"none": 0.0, "batch": 12.5, "layer": 13.5, "plain": 2.0, "scaled": 4.0, "rezero": 5.0, "dropout": 8.0}

AGAIN = 0.25
"""The share of RECORDED that is recorded again where a network diverges, to find out where."""

SHARE = 0.9
"""The share of the free memory that is used."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a group takes at most, a process of its own included.

    vectors:     of parameters, gradients, moments and clones of them, of P numbers each
    activations: of all layers of a batch, with what is made of them
    data:        all samples, the order in which they are drawn, and what networks give for those that are evaluated
    process:     what does not depend on sizes
    """

    vectors: int
    activations: int
    data: int
    process: int

    @property
    def total(self) -> int:
        return self.vectors + self.activations + self.data + self.process


def estimate(configs: Sequence[Config]) -> Estimate:
    """Return what networks that train together take at most: also where one of them diverges.

    Raises:  ValueError: as `bpexp.data.describe`
    """
    config = configs[0]
    item = BYTES[config.dtype]
    data = describe(config.data.name, config.data.root)
    features, outputs = data.features, data.outputs
    parameters = sum(count_parameters(one, features, outputs) for one in configs)
    return Estimate(
        vectors=round(_vectors(configs) * parameters * item),
        activations=round(_activations(configs, features, outputs) * item),
        data=_data(configs),
        process=PROCESS + LAYER * max(one.model.depth for one in configs),
    )


def count_parameters(config: Config, features: int, outputs: int) -> int:
    """Return how many parameters a network has."""
    model = config.model
    inputs = features + (model.depth - 1) * model.width
    biases = outputs + (0 if model.norm == "batch" else model.depth * model.width)
    norms = 0 if model.norm == "none" else 2 * model.depth * model.width
    single = (model.residual == "rezero") * (model.depth - 1) + (model.activation == "prelu") * model.depth
    return inputs * model.width + model.width * outputs + biases + norms + single


def _vectors(configs: Sequence[Config]) -> float:
    """Return how many vectors of all parameters there are at once."""
    one = configs[0].optimizer
    moments = 2 if one.name in spec.ADAPTIVE else any(config.optimizer.momentum for config in configs)
    own = [name for name in ("lr", "l2", "weight_decay", "momentum", "beta1", "beta2") if _differs(configs, name)]
    spread = len(own) + (one.l2 > 0) + (one.weight_decay > 0) + (one.schedule != "constant")
    state = 1 + moments
    # The gradients before clipping, and what is left of one direction in another; norms in twice the precision.
    clipped = 4 * (configs[0].clip.name != "none")
    # Values, gradients and a direction; the clones of a measured step; the state before, now, and written or gone back.
    return 3 + moments + spread + 3 + 3 * state + clipped


def _differs(configs: Sequence[Config], name: str) -> bool:
    return len({getattr(config.optimizer, name) for config in configs}) > 1


def _activations(configs: Sequence[Config], features: int, outputs: int) -> float:
    """Return how many numbers the layers of a batch are, and what is made of them, at most."""
    model, batch = configs[0].model, configs[0].train.batch_size
    has_dropout = any(config.model.dropout > 0 for config in configs)
    more = MORE[model.norm] + MORE[model.residual] + has_dropout * MORE["dropout"]
    hidden = sum((RECORDED[one.model.activation] + more) * one.model.depth * one.model.width for one in configs)
    ends = len(configs) * (4 * features + 24 * outputs)
    return batch * ((1 + AGAIN) * hidden + ends)


def _data(configs: Sequence[Config]) -> int:
    """Return the bytes of the samples, as they are read and as they are held, and of what is evaluated of them."""
    config, seeds = configs[0], len({config.seed for config in configs})
    item, networks = BYTES[config.dtype], len(configs)
    data = describe(config.data.name, config.data.root)
    train, (_, val, test) = data.training_samples(config.data.train_size), data.parts
    samples = seeds * (train + val + test)
    targets = data.outputs * item if config.loss == "mse" else 8
    held = is_held(data.as_bytes, samples, data.features, item)
    read = data.samples * data.features * (1 if data.as_bytes else 8)
    kept = samples * (16 + 2 * targets + (0 if held else data.features * item))
    order = 2 * networks * train * epochs_at_once(networks, train) * 8
    results = 6 * networks * data.outputs * (val + test) * item
    return read + kept + order + results


def split(configs: Sequence[Config], limit: int) -> list[int]:
    """Return the sizes of the pieces, in order, into which a group must be cut for each to fit; one where it fits.

    Edge:    networks that do not even fit alone are alone
    """
    for pieces in range(1, len(configs)):
        sizes = [len(configs) // pieces + (place < len(configs) % pieces) for place in range(pieces)]
        starts = [sum(sizes[:place]) for place in range(pieces)]
        totals = [estimate(configs[start : start + size]).total for start, size in zip(starts, sizes, strict=True)]
        if max(totals) <= limit:
            return sizes
    return [1] * len(configs)


def too_large(config: Config, limit: int) -> str:
    """Return what to say of a network that does not fit: the key that is farthest above its default, and what fits."""
    needed, schema = estimate([config]).total, spec.keys()
    for name in sorted(LOWERED, key=lambda name: _value(config, name) / schema[name].default, reverse=True):
        fits, above = 0, _value(config, name)
        while above - fits > 1:
            middle = (fits + above) // 2
            enough = estimate([_with(config, name, middle)]).total <= limit
            fits, above = (middle, above) if enough else (fits, middle)
        if fits:
            break
    choice = f"choose at most {fits}" if fits else "choose a smaller network"
    takes = f"takes up to {told(needed)} of memory, and {told(limit)} can be used"
    return f"{name}: a network with {_value(config, name)} {takes}; {choice}"


LOWERED = ("model.width", "model.depth", "train.batch_size")
"""The keys that can make a network too large."""


def _value(config: Config, name: str) -> int:
    group, key = name.split(".")
    value: int = getattr(getattr(config, group), key)
    return value


def _with(config: Config, name: str, value: int) -> Config:
    changed = copy.deepcopy(config)
    group, key = name.split(".")
    setattr(getattr(changed, group), key, value)
    return changed


def workers_that_fit(totals: Sequence[int], wanted: int, limit: int) -> int:
    """Return how many groups can train at once, whichever they are, of as many as are wanted; one at least."""
    largest = sorted(totals, reverse=True)
    fitting = [count for count in range(1, wanted + 1) if sum(largest[:count]) <= limit]
    return max(fitting, default=1)


def usable(device: str = "cpu", *, ever: bool = False) -> int | None:
    """Return how many bytes can be used: of the device's memory, or of this machine's or its container's.

    device:  "cpu", or one of CUDA, which needs torch
    ever:    were nothing else in the memory
    Returns: None where the system does not tell
    """
    if device != "cpu":
        import torch

        return int(SHARE * torch.cuda.mem_get_info(device)[ever])
    free = available(ever=ever)
    return None if free is None else int(SHARE * free)


def available(root: Path = Path("/"), *, ever: bool = False) -> int | None:
    """Return how many bytes are free on this machine, and within the limits of the control groups around this process.

    root:    where proc and sys are
    ever:    as of `usable`
    """
    free = [*_of_control_groups(root, ever=ever), *_of_machine(root, ever=ever)]
    if not free and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) if free else None


def _of_machine(root: Path, *, ever: bool) -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:" if ever else "MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_control_groups(root: Path, *, ever: bool) -> Iterator[int]:
    """Give what each control group around this process leaves; the first version's and the second's."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        mount, names = (
            (root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
            if controllers
            else (root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file"))
        )
        group = mount / path.lstrip("/")
        # In a container the path may be the host's, and the mount what is left of it.
        for folder in (group, *group.parents):
            if mount in (folder, *folder.parents):
                yield from _left(folder, *names, ever=ever)


def _left(folder: Path, limit_name: str, usage_name: str, cache_name: str, *, ever: bool) -> Iterator[int]:
    limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
    if not limit.isdecimal() or not usage.isdecimal():  # "max", or no such group
        return
    if ever:
        yield int(limit)
        return
    # What files left in the cache is given back when it is needed.
    cache = [
        int(line.split()[1]) for line in _read(folder / "memory.stat").splitlines() if line.split()[0] == cache_name
    ]
    yield int(limit) - int(usage) + sum(cache)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def told(size: float) -> str:
    """Return bytes as they are told."""
    power = min(4, max(2, int(math.log2(max(size, 1)) // 10)))
    number = size / 2 ** (10 * power)
    return f"{number:,.0f} {' KMGT'[power]}iB" if number >= 10 else f"{number:.1f} {' KMGT'[power]}iB"
