"""Loss and accuracy on a whole part of the data: a forward pass that is recorded once, and goes through it in pieces.

Letters: R networks, N samples of a part, P of a piece, F features, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpexp.models import LOSSES
from bpexp.plan.recording import Recording

if TYPE_CHECKING:
    from bpexp.data.batches import Parts
    from bpexp.ensemble import Ensemble

PIECE = 2**17
"""Numbers of a layer, all networks together, that go through the network at once: what fits the cache of a core."""

DEVICE_PIECE = 2**24
"""The same where the memory is the limit."""


class Evaluation:
    """Evaluates an ensemble: no dropout, no smoothing, running statistics."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble, model = ensemble, ensemble.model
        networks, self.outputs = len(ensemble.configs), model.outputs
        longest = max(ensemble.val.samples, ensemble.test.samples)
        numbers = PIECE if ensemble.device.type == "cpu" else DEVICE_PIECE
        pieces = -(-longest * networks * max(model.features, model.width) // numbers)
        self.size = -(-longest // min(pieces, longest))
        self.x = torch.zeros(networks, self.size, model.features, dtype=ensemble.dtype, device=ensemble.device)
        statistics = ensemble.statistics.pairs() or None
        self.forward = Recording(lambda: [model(self.x, ensemble.parameters, statistics=statistics)])
        self.parts: dict[str, PartResults] = {}

    def evaluate(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Return loss and accuracy on the part `val` or `test`, (R,) each, until the next time.

        Accuracy is None without classes.
        """
        part: Parts = getattr(self.ensemble, name)
        if name not in self.parts:
            self.parts[name] = PartResults(self.ensemble, part)
        results = self.parts[name]
        results.y.copy_(part.y if part.which is None else part.y[part.which])
        for start in range(0, part.samples, self.size):
            piece = slice(start, min(start + self.size, part.samples))
            count = piece.stop - start
            self.x[:, :count].copy_(part.some(piece)[0])
            results.outputs[:, piece].copy_(self.forward.run()[0][:, :count])
        loss, *accuracy = results.results.run()
        return loss, accuracy[0] if accuracy else None


class PartResults:
    """What the outputs on a part amount to.

    Shapes: outputs: (R, N, C), class by class in memory, as the losses have them; y: (R, N, ...)
    """

    def __init__(self, ensemble: Ensemble, part: Parts) -> None:
        networks, outputs = len(ensemble.configs), ensemble.model.outputs
        shape = (networks, outputs, part.samples)
        self.outputs = torch.zeros(shape, dtype=ensemble.dtype, device=ensemble.device).mT
        self.y = part.y.new_zeros((networks, *part.y.shape[1:]))

        def results() -> list[Tensor]:
            accuracy = ensemble.accuracy(self.outputs, self.y)
            return [LOSSES[ensemble.config.loss](self.outputs, self.y), *([] if accuracy is None else [accuracy])]

        self.results = Recording(results)
