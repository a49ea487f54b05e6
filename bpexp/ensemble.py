"""R networks of one structure: their data, parameters, optimizer, and the plans of their step.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpexp import spec
from bpexp.data import Splits, load
from bpexp.data.batches import Batches, Parts
from bpexp.dropout import Masks
from bpexp.measures import View
from bpexp.models import LOSSES, MLP, Statistics, Trace
from bpexp.optim import flatten, make_clipper, make_optimizer
from bpexp.plan import Plan
from bpexp.spec import Config, UserError

DTYPES = {"float32": torch.float32, "float64": torch.float64}

NORM_MOMENTUM = 0.1
"""The share that a batch has in batch norm's running statistics, as in torch.nn."""

LARGEST_EVALUATION = 2**24
"""Numbers of inputs that are evaluated at once, all networks together."""


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
        splits = [
            load(data.name, seed, root=data.root, train_size=data.train_size, dtype=self.dtype) for seed in self.seeds
        ]
        self.classes = splits[0].task == "classification"
        train, self.val, self.test = (self._parts(splits, part) for part in ("train", "val", "test"))
        features, outputs = splits[0].features, splits[0].outputs
        del splits  # the parts hold their numbers
        self.batches = Batches(train, self.seeds, self.config.train.batch_size)
        model = self.config.model
        self.model = MLP(features, outputs, model.depth, model.width, model.activation, model.residual, model.norm)
        drawn = self.model.parameters(configs, self.dtype, self._first_batch)
        self.layout, self.values = flatten([p.to(self.device) for p in drawn])
        self.parameters = self.layout.views(self.values)
        self.grads = torch.zeros_like(self.values)
        self.masks = self._masks([c.model.dropout for c in configs], model.depth, model.width, "dropout")
        self.input_masks = self._masks([c.model.input_dropout for c in configs], 1, features, "input_dropout")
        smoothing = torch.tensor([config.label_smoothing for config in configs], dtype=self.dtype)
        self.smoothing = smoothing.to(self.device) if bool(smoothing.any()) else None
        self.optimizer = make_optimizer(configs, self.layout, self.values)
        self.clipper = make_clipper(configs, self.layout, self.values)
        self.clipped = torch.zeros(len(configs), dtype=self.dtype, device=self.device)
        self.training = Step(self, keep=False) if self.config.train.steps > 0 else None
        self.measuring = Step(self, keep=True)
        self.statistics = RunningStatistics(self)

    def _first_batch(self, network: int) -> Tensor:
        before = self.batches.state()
        self.batches.fill()
        x = self.batches.x[network].cpu()
        self.batches.restore(before)
        return x

    def _masks(self, probabilities: Sequence[float], layers: int, units: int, purpose: str) -> Masks | None:
        if not any(probabilities):
            return None
        shape = (layers, self.config.train.batch_size, units)
        return Masks(probabilities, self.seeds, self.which, shape, self.dtype, purpose)

    def _parts(self, splits: Sequence[Splits], part: str) -> Parts:
        x = torch.stack([getattr(split, f"x_{part}") for split in splits])
        y = torch.stack([getattr(split, f"y_{part}") for split in splits])
        if self.classes and self.config.loss == "mse":
            y = torch.nn.functional.one_hot(y, splits[0].outputs).to(self.dtype)
        return Parts(x.to(self.device), y.to(self.device), self.which)

    def compute(self, *, keep: bool = False) -> Tensor:
        """Draw the next batch and masks, and `differentiate`."""
        self.batches.fill()
        for masks in (self.masks, self.input_masks):
            if masks is not None:
                masks.fill()
        return self.differentiate(keep=keep)

    def differentiate(self, *, keep: bool = False) -> Tensor:
        """Run forward and backward; `grads` are then those of the loss with its L2 penalty.

        keep:    leave every layer's values to be read
        Returns: the losses without the penalty, (R,), until the next step
        """
        step = self.training if self.training is not None and not keep else self.measuring
        loss = step.plan.step()
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
        trace, plan = self.measuring.trace, self.measuring.plan
        parameters = self.layout.views(values)
        sorted_ = self.model.sort(parameters)
        return View(
            activation=self.config.model.activation,
            slope=lambda layer, n: self.model.slope(layer, n, parameters),
            z=[plan.value(z) for z in trace.z],
            n=[plan.value(n) for n in trace.n],
            a=[plan.value(a) for a in trace.a],
            delta=[plan.gradient(z) * self.config.train.batch_size for z in trace.z],
            weights=sorted_.weights,
            grads=self.model.sort(self.layout.views(grads)).weights,
            updates=self.model.sort(self.layout.views(updates)).weights,
            gates=sorted_.gates,
        )

    def evaluate(self, part: Parts) -> tuple[Tensor, Tensor | None]:
        """Return loss and accuracy, (R,) each, on a whole part: no dropout, no smoothing, running statistics.

        What is larger than LARGEST_EVALUATION goes in pieces.
        """
        samples = part.x.shape[1]
        size = max(1, LARGEST_EVALUATION // (len(self.configs) * max(self.model.features, self.model.width)))
        found = [self._evaluate(*part.some(slice(start, start + size))) for start in range(0, samples, size)]
        if len(found) == 1:
            return found[0]
        shares = [min(size, samples - start) / samples for start in range(0, samples, size)]
        loss = sum((loss * share for (loss, _), share in zip(found, shares, strict=True)), torch.zeros(()))
        accuracies = [
            accuracy * share for (_, accuracy), share in zip(found, shares, strict=True) if accuracy is not None
        ]
        return loss, torch.stack(accuracies).sum(0) if accuracies else None

    def _evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            outputs = self.model(x, self.parameters, statistics=self.statistics.pairs() or None)
            return LOSSES[self.config.loss](outputs, y), self.accuracy(outputs, y)

    def accuracy(self, outputs: Tensor, y: Tensor) -> Tensor | None:
        """Return the fraction of samples whose largest output is that of their class, (R,); None without classes."""
        if not self.classes:
            return None
        labels = y.argmax(2) if y.is_floating_point() else y
        return (outputs.argmax(2) == labels).double().mean(1)

    def non_finite_layer(self, network: int) -> int | None:
        """Return where a network went non-finite in the last `compute(keep=True)`, as Divergence says, or None."""
        view, last = self.view(self.values, self.grads, self.grads), self.config.model.depth + 1
        for layer in range(last):
            values = [view.z[layer], *view.n[layer : layer + 1], *view.a[layer : layer + 1]]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer + 1
        if not bool(self.measuring.plan.loss[network].isfinite()):
            return last
        grads = list(zip(self.model.slots(), self.layout.views(self.grads), strict=True))
        for layer in range(last, 0, -1):
            values = [view.delta[layer - 1], *(grad for slot, grad in grads if slot.layer == layer)]
            if not all(bool(value[network].isfinite().all()) for value in values):
                return layer
        return None


class Step:
    """The recorded forward and backward pass of an ensemble, and what is looked at in it.

    keep: every layer's values and gradients can be read after a step
    """

    def __init__(self, ensemble: Ensemble, *, keep: bool) -> None:
        self.trace = Trace()
        batches, masks = ensemble.batches, ensemble.masks.layers if ensemble.masks else ()
        input_mask = ensemble.input_masks.layers[0] if ensemble.input_masks else None

        def model(*inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = ensemble.model(batches.x, ensemble.parameters, masks, self.trace, input_mask=input_mask)
            loss = LOSSES[ensemble.config.loss](outputs, batches.y, ensemble.smoothing)
            return loss, *(tensor for pair in self.trace.statistics for tensor in pair)

        inputs = [batches.x, batches.y, *(part for mask in masks for part in mask), *(input_mask or ())]
        inputs += [] if ensemble.smoothing is None else [ensemble.smoothing]
        batches.x.zero_()
        batches.y.zero_()
        self.plan = Plan(model, inputs, ensemble.parameters, keep=keep, flat=ensemble.grads)
        self.means = [self.plan.value(mean) for mean, _ in self.trace.statistics]
        self.variances = [self.plan.value(variance) for _, variance in self.trace.statistics]


class RunningStatistics:
    """Batch norm's running mean and variance of every hidden unit, which evaluation uses; torch.nn's convention.

    Math:   r <- (1 - m) r + m s, from mean 0 and variance 1, m = NORM_MOMENTUM; a variance s is the unbiased one
    Shapes: values: (2, L, R, W), or empty where nothing is normalized over the batch
    """

    def __init__(self, ensemble: Ensemble) -> None:
        model, networks = ensemble.config.model, len(ensemble.configs)
        layers = model.depth if model.norm == "batch" else 0
        self.values = torch.zeros(2, layers, networks, model.width, dtype=ensemble.dtype, device=ensemble.device)
        self.values[1] = 1.0
        self.means, self.variances = list(self.values[0]), list(self.values[1])
        batch = ensemble.config.train.batch_size
        self.unbiased = batch / max(batch - 1, 1)

    def update(self, step: Step) -> None:
        """Take in the batch of a step."""
        if self.means:
            self.values.mul_(1 - NORM_MOMENTUM)
            torch._foreach_add_(self.means, step.means, alpha=NORM_MOMENTUM)
            torch._foreach_add_(self.variances, step.variances, alpha=NORM_MOMENTUM * self.unbiased)

    def pairs(self) -> list[Statistics]:
        """Return mean and variance of each hidden layer."""
        return list(zip(self.means, self.variances, strict=True))
