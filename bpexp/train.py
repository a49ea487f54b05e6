"""One loop for R networks of one structure. It yields what it measured, and knows no sink.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, C outputs, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp import spec
from bpexp.data import Splits, load
from bpexp.data.batches import Batches, Parts
from bpexp.dropout import Masks
from bpexp.measures import MEASURES, View
from bpexp.models import LOSSES, MLP, Trace
from bpexp.optim import SGD, clip_by_norm, clip_by_value, flatten
from bpexp.plan import Plan
from bpexp.spec import Config, UserError
from bpexp.validation import parse_criterion

DTYPES = {"float32": torch.float32, "float64": torch.float64}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Where a network first went to infinity or NaN: the step, and the layer.

    The layer is the first of the forward pass; where that is finite, it is the output layer if the loss is not, and
    else the first of the backward pass, from the output on.
    """

    step: int
    layer: int


@dataclass(frozen=True)
class Snapshot:
    """What R networks show at one step, before its update; what a network shows after it ended is to be ignored.

    train_loss: of every step since the last snapshot, this one included, (steps, R)
    layers:     by measure, the layers' numbers and the values, (R, layers)
    networks:   by measure, (R,)
    finished:   the networks that met their criterion at this step, or at one before, (R,)
    diverged:   those that went non-finite since the last snapshot
    """

    step: int
    train_loss: Array
    layers: dict[str, tuple[range, Array]]
    networks: dict[str, Array]
    finished: NDArray[np.bool_]
    diverged: dict[int, Divergence]


def resolve_device(name: str) -> torch.device:
    """Return the device that `device=auto|cpu|cuda` means here.

    Raises:  UserError: CUDA asked for where there is none
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device: cuda was asked for, but there is none; choose auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


class Ensemble:
    """R networks of one structure, their data, their optimizer and the plans of their step.

    Raises:  ValueError: networks that differ in more than `spec.group_key` allows
    """

    def __init__(self, configs: Sequence[Config], device: torch.device | str = "cpu") -> None:
        if len({spec.group_key(config) for config in configs}) != 1:
            raise ValueError("networks of different structure cannot train together")
        self.configs, self.config = configs, configs[0]
        self.device, self.dtype = torch.device(device), DTYPES[self.config.dtype]
        self.seeds = list(dict.fromkeys(config.seed for config in configs))
        self.which = torch.tensor([self.seeds.index(config.seed) for config in configs]).to(self.device)
        data = self.config.data
        splits = [load(data.name, seed, train_size=data.train_size, dtype=self.dtype) for seed in self.seeds]
        self.classes = splits[0].task == "classification"
        train, self.val, self.test = (self._parts(splits, part) for part in ("train", "val", "test"))
        model = self.config.model
        self.model = MLP(
            splits[0].features, splits[0].outputs, model.depth, model.width, model.activation, model.residual
        )
        self.layout, self.values = flatten([p.to(self.device) for p in self.model.parameters(configs, self.dtype)])
        self.parameters = self.layout.views(self.values)
        self.grads = torch.zeros_like(self.values)
        self.batches = Batches(train, self.seeds, self.config.train.batch_size)
        self.masks: Masks | None = None
        if model.dropout > 0:
            shape = (model.depth, self.config.train.batch_size, model.width)
            self.masks = Masks([c.model.dropout for c in configs], self.seeds, self.which, shape, self.dtype)
        self._choose_update()
        self.training = self._plan(Trace(), keep=False) if self.config.train.steps > 0 else None
        self.trace = Trace()
        self.measuring = self._plan(self.trace, keep=True)

    def _parts(self, splits: Sequence[Splits], part: str) -> Parts:
        x = torch.stack([getattr(split, f"x_{part}") for split in splits])
        y = torch.stack([getattr(split, f"y_{part}") for split in splits])
        if self.classes and self.config.loss == "mse":
            y = torch.nn.functional.one_hot(y, splits[0].outputs).to(self.dtype)
        return Parts(x.to(self.device), y.to(self.device), self.which)

    def _choose_update(self) -> None:
        def numbers(values: Sequence[float | None]) -> Tensor:
            return torch.tensor([value or 0.0 for value in values], dtype=self.dtype).to(self.device)

        optimizers = [config.optimizer for config in self.configs]
        self.optimizer = SGD(
            self.layout,
            self.values,
            lr=numbers([o.lr for o in optimizers]),
            momentum=numbers([o.momentum for o in optimizers]),
            l2=numbers([o.l2 for o in optimizers]),
            weight_decay=numbers([o.weight_decay for o in optimizers]),
            nesterov=self.config.optimizer.name == "nesterov",
        )
        self.clip = {"none": None, "norm": clip_by_norm, "value": clip_by_value}[self.config.clip.name]
        self.threshold = numbers([config.clip.threshold for config in self.configs])
        self.clipped = torch.zeros_like(self.threshold)

    def _plan(self, trace: Trace, *, keep: bool) -> Plan:
        loss = LOSSES[self.config.loss]

        def model(x: Tensor, y: Tensor, *masks: Tensor) -> Tensor:
            return loss(self.model(x, self.parameters, masks, trace), y)

        inputs = (self.batches.x, self.batches.y, *(self.masks.layers if self.masks else ()))
        self.batches.x.zero_()
        self.batches.y.zero_()
        return Plan(model, inputs, self.parameters, keep=keep, flat=self.grads)

    def compute(self, *, keep: bool = False) -> Tensor:
        """Draw the next batch and masks, and `differentiate`."""
        self.batches.fill()
        if self.masks is not None:
            self.masks.fill()
        return self.differentiate(keep=keep)

    def differentiate(self, *, keep: bool = False) -> Tensor:
        """Run forward and backward; `grads` are then those of the loss with its L2 penalty.

        keep:    leave every layer's values to be read
        Returns: the losses without the penalty, (R,), until the next step
        """
        plan = self.training if self.training is not None and not keep else self.measuring
        loss = plan.step()
        self.optimizer.penalize(self.grads)
        return loss

    def update(self) -> None:
        """Clip the gradients of the last `compute`, and update the parameters."""
        if self.clip is not None:
            self.clipped += self.clip(self.layout, self.grads, self.threshold) > self.threshold
        self.optimizer.step(self.grads)

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as copies."""
        return {
            "values": self.values.clone(),
            "velocity": self.optimizer.velocity.clone(),
            "clipped": self.clipped.clone(),
            "batches": self.batches.state(),
            "masks": self.masks.state() if self.masks else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state: the steps from there are the same, bit for bit."""
        self.values.copy_(state["values"])
        self.optimizer.velocity.copy_(state["velocity"])
        self.clipped.copy_(state["clipped"])
        self.batches.restore(state["batches"])
        if self.masks is not None:
            self.masks.restore(state["masks"])

    def view(self, values: Tensor, grads: Tensor, updates: Tensor) -> View:
        """Return what the measures of layers look at, after `compute(keep=True)`; flat vectors are cut into layers."""
        last = self.config.model.depth + 1
        plan = self.measuring
        return View(
            activation=self.config.model.activation,
            z=[plan.value(z) for z in self.trace.z],
            a=[plan.value(a) for a in self.trace.a],
            delta=[plan.gradient(z) * self.config.train.batch_size for z in self.trace.z],
            weights=self.layout.views(values)[:last],
            grads=self.layout.views(grads)[:last],
            updates=self.layout.views(updates)[:last],
        )

    def evaluate(self, part: Parts) -> tuple[Tensor, Tensor | None]:
        """Return loss and accuracy, (R,) each, on a whole part, without dropout."""
        x, y = part.whole()
        with torch.no_grad():
            outputs = self.model(x, self.parameters)
            return LOSSES[self.config.loss](outputs, y), self.accuracy(outputs, y)

    def accuracy(self, outputs: Tensor, y: Tensor) -> Tensor | None:
        """Return the fraction of samples whose largest output is that of their class, (R,); None without classes."""
        if not self.classes:
            return None
        labels = y.argmax(2) if y.is_floating_point() else y
        return (outputs.argmax(2) == labels).double().mean(1)

    def non_finite_layer(self, network: int) -> int | None:
        """Return where a network went non-finite in the last `compute(keep=True)`, as Divergence says, or None."""
        view = self.view(self.values, self.grads, self.grads)
        biases = self.layout.views(self.grads)[len(view.grads) :]
        last = len(view.z)
        for layer in range(last):
            values = [view.z[layer], *view.a[layer : layer + 1]]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer + 1
        if not bool(self.measuring.loss[network].isfinite()):
            return last
        for layer in reversed(range(last)):
            values = [view.delta[layer], view.grads[layer], biases[layer]]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer + 1
        return None


def train(configs: Sequence[Config], device: torch.device | str = "cpu") -> Iterator[Snapshot]:
    """Train R networks of one structure side by side, and yield a Snapshot every `train.measure_every` steps.

    The first is of step 0, the state before the first update; the last of step `train.steps`, or of the one at which
    every network had met its criterion or diverged. In between nothing waits for the device. Measuring changes nothing.

    Raises:  ValueError: as Ensemble
    """
    return Loop(Ensemble(configs, device)).run()


class Loop:
    """The loop of `train`, with what it remembers between snapshots."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble, self.config = ensemble, ensemble.config
        until = self.config.train.until
        self.criterion = None if until is None else parse_criterion(until)
        networks = len(ensemble.configs)
        longest = min(self.config.train.measure_every, self.config.train.steps + 1)  # steps from snapshot to snapshot
        self.finished, self.diverged = np.zeros(networks, dtype=bool), np.zeros(networks, dtype=bool)
        self.losses = torch.empty(longest, networks, dtype=torch.float64, device=ensemble.device)
        self.since = 0  # the first step of which no snapshot has told
        self.before = ensemble.state()  # the state at that step

    def run(self) -> Iterator[Snapshot]:
        """Go through the steps."""
        steps, every = self.config.train.steps, self.config.train.measure_every
        for step in range(steps + 1):
            measured = step % every == 0 or step == steps
            self.losses[step - self.since].copy_(self.ensemble.compute(keep=measured))
            if measured:
                yield self._measure(step)
                if (self.finished | self.diverged).all():
                    return
            else:
                self.ensemble.update()

    def _measure(self, step: int) -> Snapshot:
        """Measure at a step that is computed, and update; the update after the last step is measured and taken back."""
        ensemble = self.ensemble
        networks = self._networks()
        values, grads = ensemble.values.clone(), ensemble.grads.clone()
        ensemble.update()
        view = ensemble.view(values, grads, ensemble.values - values)
        layers = {name: measure.function(view) for name, measure in MEASURES.items()}
        if ensemble.clip is not None:
            networks["clip_fraction"] = ensemble.clipped.double() / (step + 1)
        if step == self.config.train.steps:
            ensemble.values.copy_(values)
        seen = to_host({"train_loss": self.losses[: step - self.since + 1], **networks}, layers)
        return self._snapshot(step, *seen)

    def _networks(self) -> dict[str, Tensor]:
        """Return the whole-network measures but for the loss on the batch, (R,) each."""
        ensemble, found = self.ensemble, {}
        outputs = ensemble.measuring.value(ensemble.trace.z[-1])
        found["train_accuracy"] = ensemble.accuracy(outputs, ensemble.batches.y)
        for name, part in (("val", ensemble.val), ("test", ensemble.test)):
            found[f"{name}_loss"], found[f"{name}_accuracy"] = ensemble.evaluate(part)
        found["grad_norm"] = ensemble.layout.norms(ensemble.grads)
        return {name: value for name, value in found.items() if value is not None}

    def _snapshot(self, step: int, networks: dict[str, Array], layers: dict[str, Array]) -> Snapshot:
        losses = networks.pop("train_loss")
        numbers = {name: range(1, values.shape[1] + 1) for name, values in layers.items()}
        finite = np.isfinite(losses).all(axis=0) & np.isfinite(networks["grad_norm"])
        for name in ("preactivation_rms", "activation_rms", "delta_rms"):
            finite &= np.isfinite(layers[name]).all(axis=1)
        new = np.flatnonzero(~finite & ~self.diverged & ~self.finished)
        diverged = self._locate(new, step) if len(new) else {}
        self.diverged[new] = True
        if self.criterion is not None:
            shown = {"train_loss": losses[-1], **networks}[self.criterion.measure]
            self.finished |= [self.criterion.met(value) for value in shown] & ~self.diverged
        self.since, self.before = step + 1, self.ensemble.state()
        return Snapshot(
            step=step,
            train_loss=losses,
            layers={name: (numbers[name], values) for name, values in layers.items()},
            networks=networks,
            finished=self.finished.copy(),
            diverged=diverged,
        )

    def _locate(self, networks: NDArray[np.intp], last: int) -> dict[int, Divergence]:
        """Go through the steps since the last snapshot once more, and find where networks went non-finite."""
        ensemble, found = self.ensemble, {}
        after = ensemble.state()
        ensemble.restore(self.before)
        for step in range(self.since, last + 1):
            ensemble.compute(keep=True)
            for network in networks:
                layer = None if network in found else ensemble.non_finite_layer(network)
                if layer is not None:
                    found[int(network)] = Divergence(step, layer)
            ensemble.update()
        ensemble.restore(after)
        # Where sums have no fixed order, as on CUDA, it may pass the second time; that the last step was bad is known.
        return {int(network): Divergence(last, self.config.model.depth + 1) for network in networks} | found


def to_host(*groups: dict[str, Tensor]) -> list[dict[str, Array]]:
    """Return tensors as float64 arrays, in one copy from the device."""
    flat = torch.cat([tensor.double().flatten() for group in groups for tensor in group.values()]).cpu().numpy()
    host, start = [], 0
    for group in groups:
        arrays = {}
        for name, tensor in group.items():
            arrays[name] = flat[start : start + tensor.numel()].reshape(tensor.shape)
            start += tensor.numel()
        host.append(arrays)
    return host
