"""One loop for R networks of one structure. It yields what it measured, and knows no sink.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, C outputs, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp.ensemble import Ensemble
from bpexp.measures import MEASURES
from bpexp.spec import Config
from bpexp.validation import parse_criterion

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
        numbers = {name: view.layers(measure.of) for name, measure in MEASURES.items()}
        layers = {name: MEASURES[name].function(view) for name, of in numbers.items() if len(of) > 0}
        if ensemble.clipper is not None:
            networks["clip_fraction"] = ensemble.clipped.double() / (step + 1)
        if step == self.config.train.steps:
            ensemble.values.copy_(values)
        seen = to_host({"train_loss": self.losses[: step - self.since + 1], **networks}, layers)
        return self._snapshot(step, networks=seen[0], layers=seen[1], numbers=numbers)

    def _networks(self) -> dict[str, Tensor]:
        """Return the whole-network measures but for the loss on the batch, (R,) each."""
        ensemble, found = self.ensemble, {}
        outputs = ensemble.measuring.plan.value(ensemble.measuring.trace.z[-1])
        found["train_accuracy"] = ensemble.accuracy(outputs, ensemble.batches.y)
        for name, part in (("val", ensemble.val), ("test", ensemble.test)):
            found[f"{name}_loss"], found[f"{name}_accuracy"] = ensemble.evaluate(part)
        found["grad_norm"] = ensemble.layout.norms(ensemble.grads)
        return {name: value for name, value in found.items() if value is not None}

    def _snapshot(
        self, step: int, *, networks: dict[str, Array], layers: dict[str, Array], numbers: dict[str, range]
    ) -> Snapshot:
        losses = networks.pop("train_loss")
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
