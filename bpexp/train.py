"""One loop for R networks of one structure. It yields what it measured, and knows no sink.

Letters: R networks, S distinct seeds among them, B samples of a batch, L hidden layers, C outputs, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp.ensemble import Ensemble
from bpexp.optim import clip_effect
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
    layers:     by measure, the layers' numbers and the values, (R, layers), NaN where a network has no such layer; the
                last is the output layer of all, whatever a network's depth
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
        self.measuring = ensemble.measuring
        longest = min(self.config.train.measure_every, self.config.train.steps + 1)  # steps from snapshot to snapshot
        self.finished, self.diverged = np.zeros(networks, dtype=bool), np.zeros(networks, dtype=bool)
        self.losses = torch.empty(longest, networks, dtype=torch.float64, device=ensemble.device)
        self.step, self.ended = 0, False
        self.since = 0  # the first step of which no snapshot has told
        self.before = ensemble.state()  # the state at that step

    def run(self, between: Callable[[], None] = lambda: None) -> Iterator[Snapshot]:
        """Go through the steps that are left.

        between: called after every step, once its snapshot is taken; only then `state` says what the next ones need
        """
        steps, every = self.config.train.steps, self.config.train.measure_every
        while not self.ended:
            measured = self.step % every == 0 or self.step == steps
            self.losses[self.step - self.since].copy_(self.ensemble.compute(observe=measured))
            if measured:
                yield self._measure(self.step)
                self.ended = self.step == steps or bool((self.finished | self.diverged).all())
            else:
                self.ensemble.update()
            self.step += 1
            between()

    def state(self) -> dict[str, Any]:
        """Return all that the steps which are left depend on: plain values and tensors."""
        return {
            "step": self.step,
            "ended": self.ended,
            "since": self.since,
            "losses": self.losses[: self.step - self.since].clone(),
            "finished": torch.from_numpy(self.finished.copy()),
            "diverged": torch.from_numpy(self.diverged.copy()),
            "ensemble": self.ensemble.state(),
            "before": self.before,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back, or on, to a state of networks of the same configurations: the rest is the same, bit for bit."""
        self.step, self.ended, self.since = state["step"], state["ended"], state["since"]
        self.losses[: self.step - self.since].copy_(state["losses"])
        self.finished, self.diverged = state["finished"].numpy().copy(), state["diverged"].numpy().copy()
        self.ensemble.restore(state["ensemble"])
        self.before = state["before"]

    def _measure(self, step: int) -> Snapshot:
        """Measure at a step that is computed, and update; the update after the last step is measured and taken back."""
        ensemble, measuring = self.ensemble, self.measuring
        losses, others = self.losses[: step - self.since + 1], self._evaluate(step)
        measuring.update()
        if ensemble.clipper is not None:
            others["clip_fraction"] = ensemble.clipped.double() / (step + 1)
            # Now, before a measure goes through the step again.
            others["clipped_norm"], others["clip_cosine"] = clip_effect(
                ensemble.layout, measuring.grads, ensemble.grads, turned=self.config.clip.name != "norm"
            )
        networks = to_host({"losses": losses, "measures": measuring.measure()} | others)
        if step == self.config.train.steps:
            measuring.take_back()
        return self._snapshot(step, networks.pop("losses"), networks.pop("measures"), networks)

    def _evaluate(self, step: int) -> dict[str, Tensor]:
        """Return the measures on the validation and the test part where the step is one at which they are taken."""
        train, found = self.config.train, dict[str, Tensor]()
        passed = step // train.evaluate_every > (step - train.measure_every) // train.evaluate_every
        if passed or step == train.steps or train.until is not None:
            for name in ("val", "test"):
                loss, accuracy = self.ensemble.evaluation.evaluate(name)
                found |= {f"{name}_loss": loss} | ({} if accuracy is None else {f"{name}_accuracy": accuracy})
        return found

    def _snapshot(self, step: int, losses: Array, measures: Array, others: dict[str, Array]) -> Snapshot:
        networks, layers = self.measuring.cut(measures)
        new = np.flatnonzero(self._diverging(losses, measures) & ~self.diverged & ~self.finished)
        diverged = self._locate(new, step) if len(new) else {}
        self.diverged[new] = True
        networks = others | networks
        if self.criterion is not None:
            shown = {"train_loss": losses[-1], **networks}[self.criterion.measure]
            self.finished |= [self.criterion.met(value) for value in shown] & ~self.diverged
        self.since, self.before = step + 1, self.ensemble.state()
        return Snapshot(
            step=step,
            train_loss=losses,
            layers={name: (self.measuring.numbers[name], values) for name, values in layers.items()},
            networks=networks,
            finished=self.finished.copy(),
            diverged=diverged,
        )

    def _diverging(self, losses: Array, measures: Array) -> NDArray[np.bool_]:
        """Return the networks of which a loss, a gradient or what a layer makes is not finite, (R,)."""
        if np.isfinite(losses).all() and np.isfinite(measures).all():
            return np.zeros(losses.shape[1], dtype=bool)
        (networks, layers), measuring = self.measuring.cut(measures), self.measuring
        finite = np.isfinite(losses).all(axis=0) & np.isfinite(networks["grad_norm"])
        for name in ("preactivation_rms", "activation_rms", "delta_rms"):
            finite &= (np.isfinite(layers[name]) | measuring.missing[:, measuring.numbers[name]]).all(axis=1)
        diverging: NDArray[np.bool_] = ~finite
        return diverging

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
        outputs = {int(network): ensemble.configs[network].model.depth + 1 for network in networks}
        return {network: Divergence(last, layer) for network, layer in outputs.items()} | found


def to_host(tensors: dict[str, Tensor]) -> dict[str, Array]:
    """Return tensors as float64 arrays, in one copy from the device."""
    flat = torch.cat([tensor.double().flatten() for tensor in tensors.values()]).cpu().numpy()
    host, start = {}, 0
    for name, tensor in tensors.items():
        host[name] = flat[start : start + tensor.numel()].reshape(tensor.shape)
        start += tensor.numel()
    return host
