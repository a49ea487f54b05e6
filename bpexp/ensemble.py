"""R networks of one structure: their data, parameters, optimizer, and the plans of their step.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, C outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bpexp import spec
from bpexp.data import load
from bpexp.data.batches import Batches, Parts, make_parts
from bpexp.dropout import Masks
from bpexp.evaluation import Evaluation
from bpexp.measures import MEASURES, View, in_one
from bpexp.measuring import Measuring
from bpexp.models import LOSSES, MLP, Statistics, Trace
from bpexp.optim import flatten, make_clipper, make_optimizer
from bpexp.plan import PASSES, Plan
from bpexp.spec import Config, UserError

DTYPES = {"float32": torch.float32, "float64": torch.float64}

NORM_MOMENTUM = 0.1
"""The share that a batch has in batch norm's running statistics, as in torch.nn."""


def resolve_device(name: str) -> torch.device:
    """Return the device that `device=auto|cpu|cuda` means here.

    Raises:  UserError: CUDA asked for where there is none
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device: cuda was asked for, but there is none; choose auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def seeds_of(configs: Sequence[Config]) -> tuple[list[int], list[int]]:
    """Return the distinct seeds of networks, and the place of each network's among them."""
    seeds = list(dict.fromkeys(config.seed for config in configs))
    return seeds, [seeds.index(config.seed) for config in configs]


def structure(configs: Sequence[Config], device: torch.device | str) -> tuple[object, ...]:
    """Return all that decides which operators an ensemble records, and of which shapes."""
    return torch.device(device), tuple(map(spec.group_key, configs)), *seeds_of(configs)[1]


class Ensemble:
    """R networks of one structure, their data, their optimizer and the plans of their step.

    Networks of different depth come deepest first, and layer l has tensors of the first R_l networks alone.

    passes:  those of `PASSES` that make the plans faster
    trains:  record the step of training; without it there is the one alone that keeps all values
    Raises:  ValueError: networks that differ in more than `spec.group_key` allows, or do not lie deepest first
    """

    def __init__(
        self,
        configs: Sequence[Config],
        device: torch.device | str = "cpu",
        *,
        passes: Collection[str] = tuple(PASSES),
        trains: bool = True,
    ) -> None:
        if len({spec.group_key(config, but_for=spec.MIXED) for config in configs}) != 1:
            raise ValueError("networks of different structure cannot train together")
        self.device, self.passes = torch.device(device), passes
        self.config, self.dtype = configs[0], DTYPES[configs[0].dtype]
        model = self.config.model
        train = self._load(configs)
        self.batches = Batches(train, self.seeds, self.config.train.batch_size)
        self.model = MLP.of(configs, train.features, self.outputs)
        self.layout, self.values = flatten(self._draw())
        self.parameters = self.layout.views(self.values)
        self.grads = torch.zeros_like(self.values)
        depths = [c.model.depth for c in configs]
        self.masks = self._masks("dropout", depths, model.width)
        self.input_masks = self._masks("input_dropout", [1] * len(configs), train.features)
        smoothing = self._numbers("label_smoothing")
        self.smoothing = smoothing if self.config.label_smoothing > 0 else None
        self.clipped = torch.zeros(len(configs), dtype=self.dtype, device=self.device)
        self._make_updates()
        self.batches.x.zero_()
        self.batches.y.zero_()
        if trains:
            self.training = Step(self)
        self.statistics = RunningStatistics(self)

    def fits(self, configs: Sequence[Config], device: torch.device | str) -> bool:
        """Return whether `renew` can put these networks in the place of its own."""
        return structure(configs, device) == structure(self.configs, self.device)

    def renew(self, configs: Sequence[Config]) -> None:
        """Put networks that it `fits` in the place of its own: all is then as in an ensemble made of them, bit for bit.

        What was recorded stays, which takes most of the time that it takes to make one.
        """
        self.batches.renew(self._load(configs), self.seeds)
        torch.cat([p.reshape(-1) for p in self._draw()], out=self.values)
        self.grads.zero_()
        for masks, name in ((self.masks, "dropout"), (self.input_masks, "input_dropout")):
            if masks is not None:
                masks.renew([getattr(c.model, name) for c in configs], self.seeds)
        if self.smoothing is not None:
            self.smoothing.copy_(self._numbers("label_smoothing"))
        self.clipped.zero_()
        self._make_updates()
        self.statistics.start()

    def close(self) -> None:
        """Part with all that was recorded, and refers back: the memory is then free as soon as nobody has this."""
        for name in ("training", "keeping", "measuring", "evaluation"):
            self.__dict__.pop(name, None)

    def _load(self, configs: Sequence[Config]) -> Parts:
        """Take the networks and their data; return the training part."""
        self.configs, self.config = configs, configs[0]
        self.seeds, places = seeds_of(configs)
        self.which = torch.tensor(places).to(self.device)
        data = self.config.data
        splits = [
            load(data.name, seed, root=data.root, train_size=data.train_size, dtype=self.dtype) for seed in self.seeds
        ]
        self.classes, self.outputs = splits[0].task == "classification", splits[0].outputs
        train, self.val, self.test = make_parts(splits, self.which, self._targets)
        return train

    def _draw(self) -> list[Tensor]:
        """Return the networks' first parameters."""
        return [p.to(self.device) for p in self.model.parameters(self.configs, self.dtype, self._first_batch)]

    def _numbers(self, name: str) -> Tensor:
        return torch.tensor([getattr(config, name) for config in self.configs], dtype=self.dtype).to(self.device)

    def _make_updates(self) -> None:
        self.optimizer = make_optimizer(self.configs, self.layout, self.values)
        self.clipper = make_clipper(self.configs, self.layout, self.values)

    @functools.cached_property
    def keeping(self) -> Step:
        """The step that keeps every layer's values and gradients."""
        return Step(self, keep=True)

    def _first_batch(self, network: int) -> Tensor:
        before = self.batches.state()
        self.batches.fill()
        x = self.batches.x[network].cpu()
        self.batches.restore(before)
        return x

    def _masks(self, name: str, layers: Sequence[int], units: int) -> Masks | None:
        probabilities = [getattr(config.model, name) for config in self.configs]
        if not any(probabilities):
            return None
        shape = (max(layers), self.config.train.batch_size, units)
        return Masks(probabilities, self.seeds, self.which, shape, self.dtype, name, layers)

    def _targets(self, y: Tensor) -> Tensor:
        if self.classes and self.config.loss == "mse":
            return torch.nn.functional.one_hot(y, self.outputs).to(self.dtype)
        return y

    def compute(self, *, keep: bool = False, observe: bool = False) -> Tensor:
        """Draw the next batch and masks, and `differentiate`."""
        self.batches.fill()
        for masks in (self.masks, self.input_masks):
            if masks is not None:
                masks.fill()
        return self.differentiate(keep=keep, observe=observe)

    def differentiate(self, *, keep: bool = False, observe: bool = False) -> Tensor:
        """Run forward and backward; `grads` are then those of the loss with its L2 penalty.

        keep:    leave every layer's values to be read
        observe: take the measures that are recorded with the step
        Returns: the losses without the penalty, (R,), until the next step
        """
        step = self.keeping if keep else self.training
        loss = step.plan.step(observe=observe)
        self.statistics.update(step)
        self.optimizer.penalize(self.grads)
        return loss

    def update(self) -> None:
        """Clip the gradients of the last `compute`, and update the parameters."""
        if self.clipper is not None:
            self.clipped += self.clipper(self.grads)
        self.optimizer.step(self.grads)

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as copies."""
        return {
            "values": self.values.clone(),
            "optimizer": self.optimizer.state(),
            "clipped": self.clipped.clone(),
            "statistics": self.statistics.values.clone(),
            "batches": self.batches.state(),
            "masks": [masks.state() if masks else None for masks in (self.masks, self.input_masks)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state: the steps from there are the same, bit for bit."""
        self.values.copy_(state["values"])
        self.optimizer.restore(state["optimizer"])
        self.clipped.copy_(state["clipped"])
        self.statistics.values.copy_(state["statistics"])
        self.batches.restore(state["batches"])
        for masks, before in zip((self.masks, self.input_masks), state["masks"], strict=True):
            if masks is not None:
                masks.restore(before)

    def view(self, values: Tensor, grads: Tensor, updates: Tensor) -> View:
        """Return what the measures of layers look at, after `compute(keep=True)`; flat vectors are cut into layers."""
        plan = self.keeping.plan
        of_updates = self.view_of_updates(values, grads, updates)
        return self.view_of_pass(self.keeping.trace, plan.value, plan.gradient, of_updates)

    def view_of_updates(self, values: Tensor, grads: Tensor, updates: Tensor) -> View:
        """Return the part of a view that is there without a pass."""
        parameters = self.layout.views(values)
        sorted_ = self.model.sort(parameters)
        return View(
            activations=self.model.parts(len(self.configs)),
            slope=lambda layer, n: self.model.slope(layer, n, parameters),
            batch=self.config.train.batch_size,
            weights=sorted_.weights,
            grads=self.model.sort(self.layout.views(grads)).weights,
            updates=self.model.sort(self.layout.views(updates)).weights,
            gates=sorted_.gates,
        )

    def view_of_pass(
        self, trace: Trace, value: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], of_updates: View
    ) -> View:
        """Return a view with what a pass left: the value of what it recorded, and its gradient."""
        z, n, a = ([value(tensor) for tensor in tensors] for tensors in (trace.z, trace.n, trace.a))
        return replace(of_updates, z=z, n=n, a=a, delta=[gradient(tensor) for tensor in trace.z], found={})

    @functools.cached_property
    def measuring(self) -> Measuring:
        """What takes the measures of a step."""
        return Measuring(self)

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """What goes through a whole part of the data."""
        return Evaluation(self)

    def accuracy(self, outputs: Tensor, y: Tensor) -> Tensor | None:
        """Return the fraction of samples whose largest output is that of their class, (R,); None without classes."""
        if not self.classes:
            return None
        labels = y.argmax(2) if y.is_floating_point() else y
        # Of outputs that lie class by class it would take ten times as long.
        hits = (outputs.contiguous().argmax(2) == labels).to(self.dtype)
        return hits.sum(1, dtype=torch.float64) / labels.shape[1]

    def non_finite_layer(self, network: int) -> int | None:
        """Return where a network went non-finite in the last `compute(keep=True)`, as Divergence says, or None."""
        view = self.view(self.values, self.grads, self.grads)
        depth: int = self.configs[network].model.depth
        layers = list(enumerate([*range(depth), self.model.depth], 1))  # its own numbers, and their places in the group
        for layer, place in layers:
            values = [view.z[place], *view.n[place : place + 1], *view.a[place : place + 1]]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer
        if not bool(self.keeping.plan.loss[network].isfinite()):
            return depth + 1
        grads = list(zip(self.model.slots(), self.layout.views(self.grads), strict=True))
        for layer, place in layers[::-1]:
            values = [view.delta[place], *(grad for slot, grad in grads if slot.layer == place + 1)]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer
        return None


class Step:
    """The recorded forward and backward pass of an ensemble, and what is looked at in it.

    keep: every layer's values and gradients can be read after a step
    """

    def __init__(self, ensemble: Ensemble, *, keep: bool = False) -> None:
        self.ensemble, self.trace = ensemble, Trace()
        self.seen: dict[str, int] = {}  # what is looked at: of how many layers, or 0 where it is of networks
        batches, masks = ensemble.batches, ensemble.masks.layers if ensemble.masks else ()
        input_mask = ensemble.input_masks.layers[0] if ensemble.input_masks else None

        def model(*inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = ensemble.model(batches.x, ensemble.parameters, masks, self.trace, input_mask=input_mask)
            loss = LOSSES[ensemble.config.loss](outputs, batches.y, ensemble.smoothing)
            return loss, *(tensor for pair in self.trace.statistics for tensor in pair)

        inputs = [batches.x, batches.y, *(part for mask in masks for part in mask), *(input_mask or ())]
        inputs += [] if ensemble.smoothing is None else [ensemble.smoothing]
        self.plan = Plan(
            model,
            inputs,
            ensemble.parameters,
            keep=keep,
            flat=ensemble.grads,
            observe=None if keep else self._observe,
            passes=ensemble.passes,
        )
        self.means = [self.plan.value(mean) for mean, _ in self.trace.statistics]
        self.variances = [self.plan.value(variance) for _, variance in self.trace.statistics]

    def _observe(self, gradient: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Record the measures of the pass."""
        ensemble = self.ensemble
        of_updates = ensemble.view_of_updates(ensemble.values, ensemble.grads, ensemble.grads)
        view = ensemble.view_of_pass(self.trace, lambda tensor: tensor, gradient, of_updates)
        rows = [(n, m) for n, m in MEASURES.items() if m.reads == "pass" and view.layers(m.of)]
        found = {name: measure.function(view) for name, measure in rows}
        accuracy = ensemble.accuracy(self.trace.z[-1], ensemble.batches.y)
        found |= {} if accuracy is None else {"train_accuracy": accuracy}
        self.seen = {name: value.shape[1] if value.dim() == 2 else 0 for name, value in found.items()}
        return [in_one(found.values())]


class RunningStatistics:
    """Batch norm's running mean and variance of every hidden unit, which evaluation uses; torch.nn's convention.

    Math:   r <- (1 - m) r + m s, from mean 0 and variance 1, m = NORM_MOMENTUM; a variance s is the unbiased one
    Shapes: values: (2, L, R, W), of layer l the first R_l used, or empty where nothing is normalized over the batch
    """

    def __init__(self, ensemble: Ensemble) -> None:
        model, networks = ensemble.config.model, len(ensemble.configs)
        layers = model.depth if model.norm == "batch" else 0
        self.values = torch.zeros(2, layers, networks, model.width, dtype=ensemble.dtype, device=ensemble.device)
        self.start()
        live = [ensemble.model.live(layer, networks) for layer in range(1, layers + 1)]
        self.means, self.variances = (
            [of_layer[:r] for of_layer, r in zip(statistic, live, strict=True)] for statistic in self.values
        )
        batch = ensemble.config.train.batch_size
        self.unbiased = batch / max(batch - 1, 1)

    def start(self) -> None:
        """Set the mean to 0 and the variance to 1."""
        self.values[0], self.values[1] = 0.0, 1.0

    def update(self, step: Step) -> None:
        """Take in the batch of a step."""
        if self.means:
            self.values.mul_(1 - NORM_MOMENTUM)
            torch._foreach_add_(self.means, step.means, alpha=NORM_MOMENTUM)
            torch._foreach_add_(self.variances, step.variances, alpha=NORM_MOMENTUM * self.unbiased)

    def pairs(self) -> list[Statistics]:
        """Return mean and variance of each hidden layer."""
        return list(zip(self.means, self.variances, strict=True))
