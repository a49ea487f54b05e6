"""Takes the measures of a step: those that are recorded with it, and those of parameters, gradients and updates.

Letters: R networks, L hidden layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpexp.measures import MEASURES, by_layer, in_one, norms_of, runs
from bpexp.plan.recording import Recording

if TYPE_CHECKING:
    from bpexp.ensemble import Ensemble

Array = NDArray[np.float64]


class Measuring:
    """Updates an ensemble after `compute(observe=True)`, and takes all measures of that step."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.before = torch.empty_like(ensemble.values)
        view = ensemble.view_of_updates(self.before, ensemble.grads, self.before)
        self.numbers = {name: of for name, measure in MEASURES.items() if (of := view.layers(measure.of))}
        self.names = {reads: [n for n in self.numbers if MEASURES[n].reads == reads] for reads in ("update", "both")}
        # Else nothing writes to the gradients after the step.
        self.copied = ensemble.clipper is not None or bool(self.names["both"])
        self.grads = torch.empty_like(ensemble.grads) if self.copied else ensemble.grads
        depths = np.array([[config.model.depth] for config in ensemble.configs])
        layers = np.arange(depths.max() + 2)
        # By number the hidden layers that a network has not, (R, L + 2).
        self.missing = (layers > depths) & (layers <= depths.max())
        self.recording = Recording(self._all_but_both)

    def update(self) -> None:
        """Update the parameters, and remember what they were."""
        self.before.copy_(self.ensemble.values)
        if self.copied:
            self.grads.copy_(self.ensemble.grads)
        self.ensemble.update()

    def take_back(self) -> None:
        """Set the parameters to what they were before the update."""
        self.ensemble.values.copy_(self.before)

    def measure(self) -> Tensor:
        """Return the measures after `update` as one vector, until the next time: `cut` says where each lies."""
        (found,) = self.recording.run()
        if self.names["both"]:
            self._repeat()
            view = self.ensemble.view(self.before, self.grads, self.ensemble.values - self.before)
            found = torch.cat([found, in_one(MEASURES[name].function(view) for name in self.names["both"])])
        return found

    def cut(self, found: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the measures of networks, (R,), and of layers, (R, layers), as views of what `measure` returned."""
        updates = ((name, len(self.numbers[name])) for reads in ("update", "both") for name in self.names[reads])
        rows, start = found.reshape(-1, len(self.ensemble.configs)), 0
        of_networks, of_layers = dict[str, Array](), dict[str, Array]()
        for name, layers in (*self.ensemble.training.seen.items(), ("grad_norm", 0), *updates):
            if layers:
                of_layers[name] = rows[start : start + layers].T
            else:
                of_networks[name] = rows[start]
            start += layers or 1
        return of_networks, {name: of_layers[name] for name in self.numbers}

    def _repeat(self) -> None:
        """Go through the step again, by the plan that keeps all; nothing else changes."""
        values = self.ensemble.values
        after = values.clone()
        values.copy_(self.before)
        self.ensemble.keeping.plan.step()
        values.copy_(after)

    def _all_but_both(self) -> list[Tensor]:
        """Return as one vector the measures of the pass, and behind them those that read none."""
        ensemble = self.ensemble
        view = ensemble.view_of_updates(self.before, self.grads, ensemble.values - self.before)
        found = [MEASURES[name].function(view) for name in self.names["update"]]
        slots = zip(ensemble.model.slots(), ensemble.layout.views(self.grads), strict=True)
        others = [grad.view(len(grad), -1) for slot, grad in slots if slot.kind != "weight"]
        norms = by_layer([view.norms(view.grads).mT, *map(norms_of, runs(others))])
        if self.missing.any():  # what a network has not adds nothing
            networks = torch.arange(len(ensemble.configs), device=ensemble.device)
            live = torch.stack([networks.new_full((), len(grad)) for grad in (*view.grads, *others)])
            norms = norms.masked_fill(networks >= live[:, None], 0)
        grad_norm = torch.linalg.vector_norm(norms, dim=0, dtype=torch.float64)
        return [torch.cat([*ensemble.training.plan.observed, in_one([grad_norm, *found])])]
