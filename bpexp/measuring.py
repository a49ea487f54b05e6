"""Takes the measures of a step: those that are recorded with it, and those of parameters, gradients and updates.

Sums of float32 are taken in float32 on the CPU, where float64 takes four times as long. What float32 cannot say is
taken again in float64, in a pass over the same step, for the one network: another's numbers do not depend on it.

Letters: R networks, L hidden layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp.measures import MEASURES, by_layer, norms_of, runs
from bpexp.plan.recording import Recording

if TYPE_CHECKING:
    from bpexp.ensemble import Ensemble, Step

Array = NDArray[np.float64]


class Measuring:
    """Updates an ensemble after `compute(observe=True)`, and takes all measures of that step."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.before = torch.empty_like(ensemble.values)
        self.names = {reads: [n for n, m in MEASURES.items() if m.reads == reads] for reads in ("update", "both")}
        # Else nothing writes to the gradients after the step.
        self.copied = ensemble.clipper is not None or bool(self.names["both"])
        self.grads = torch.empty_like(ensemble.grads) if self.copied else ensemble.grads
        self.recordings: dict[bool, Recording] = {}
        view = ensemble.view_of_updates(self.before, self.grads, self.before, wide=True)
        self.numbers = {name: of for name, measure in MEASURES.items() if (of := view.layers(measure.of))}
        depths = np.array([[config.model.depth] for config in ensemble.configs])
        layers = np.arange(depths.max() + 2)
        # By number the hidden layers that a network has not, (R, L + 2).
        self.missing = (layers > depths) & (layers <= depths.max())
        self.lacked = np.concatenate([self.missing[:, of] for of in self.numbers.values()], axis=1)

    def update(self) -> None:
        """Update the parameters, and remember what they were."""
        self.before.copy_(self.ensemble.values)
        if self.copied:
            self.grads.copy_(self.ensemble.grads)
        self.ensemble.update()

    def take_back(self) -> None:
        """Set the parameters to what they were before the update."""
        self.ensemble.values.copy_(self.before)

    def measure(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the measures after `update`: of networks, (R,), and of layers, (R, layers).

        step: the one whose plan has gone through the step, observing
        """
        if step.wide not in self.recordings:
            self.recordings[step.wide] = Recording(lambda: self._of_updates(wide=step.wide))
        *of_layers, grad_norm = self.recordings[step.wide].run()
        found = step.seen | dict(zip(self.names["update"], of_layers, strict=True))
        if self.names["both"]:
            self._repeat(self.ensemble.keeping)
            view = self.ensemble.view(self.before, self.grads, self.ensemble.values - self.before)
            found |= {name: MEASURES[name].function(view) for name in self.names["both"]}
        of_networks = {name: value for name, value in found.items() if name not in MEASURES}
        return of_networks | {"grad_norm": grad_norm}, {name: found[name] for name in self.numbers}

    def measure_again(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the measures once more, with all sums in float64."""
        self._repeat(self.ensemble.careful)
        return self.measure(self.ensemble.careful)

    def unsaid(self, networks: dict[str, Array], layers: dict[str, Array]) -> NDArray[np.bool_]:
        """Return the networks of which a measure is not a number, or not finite, (R,)."""
        said: NDArray[np.bool_] = (np.isfinite(np.concatenate([*layers.values()], axis=1)) | self.lacked).all(axis=1)
        return ~(said & np.isfinite(networks["grad_norm"]))

    def _repeat(self, step: Step) -> None:
        """Go through the step again, by another plan; nothing else changes."""
        values = self.ensemble.values
        after = values.clone()
        values.copy_(self.before)
        step.plan.step(observe=True)
        values.copy_(after)

    def _of_updates(self, *, wide: bool) -> list[Tensor]:
        """Return the measures of layers that read no pass, and the norm of the gradient of all parameters, (R,)."""
        ensemble = self.ensemble
        view = ensemble.view_of_updates(self.before, self.grads, ensemble.values - self.before, wide=wide)
        found = [MEASURES[name].function(view) for name in self.names["update"]]
        slots = zip(ensemble.model.slots(), ensemble.layout.views(self.grads), strict=True)
        others = [grad.view(len(grad), -1) for slot, grad in slots if slot.kind != "weight"]
        norms = by_layer([view.norms(view.grads), *(norms_of(run, wide=wide) for run in runs(others))])
        if self.missing.any():  # what a network has not adds nothing
            networks = torch.arange(len(ensemble.configs), device=ensemble.device)[:, None]
            live = torch.stack([networks.new_full((), len(grad)) for grad in (*view.grads, *others)])
            norms = norms.masked_fill(networks >= live, 0)
        return [*found, torch.linalg.vector_norm(norms, dim=1)]
