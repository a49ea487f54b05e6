"""Batches of R networks side by side, each with its own split and its own order.

Letters: R networks, S distinct seeds among them, N training samples, B samples of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpexp.streams import generator

if TYPE_CHECKING:
    import torch


class Parts:
    """The same part of the data sets of S seeds, and which of them each of R networks has.

    Shapes: x: (S, N, F), y: (S, N, ...); which: (R,) places in S
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, which: torch.Tensor) -> None:
        self.x, self.y, self.which = x, y, which

    def some(self, which: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return samples of each network, in their order: x (R, N, F), y (R, N, ...)."""
        return self.x[:, which][self.which], self.y[:, which][self.which]


class Batches:
    """Fills `x` (R, B, F) and `y` (R, B, ...) with the next batch.

    Every epoch each network goes through its training samples in an order drawn from its own stream, and leaves out the
    last ones where they do not fill a batch.
    """

    def __init__(self, part: Parts, seeds: Sequence[int], batch_size: int) -> None:
        """Take the S distinct seeds in the order of `part`."""
        self.part, self.batch_size = part, batch_size
        self.samples = part.x.shape[1]
        self.batches = self.samples // batch_size
        self.streams = [generator(seed, "order") for seed in seeds]
        networks = len(part.which)
        self.x = part.x.new_empty((networks, batch_size, *part.x.shape[2:]))
        self.y = part.y.new_empty((networks, batch_size, *part.y.shape[2:]))
        self.order: torch.Tensor | None = None
        self.next = self.batches  # the first batch draws the first epoch

    def fill(self) -> None:
        """Go on to the next batch."""
        import torch

        if self.order is None or self.next == self.batches:
            self.order, self.next = self._draw(), 0
        index = self.order[self.next]
        for part, batch in ((self.part.x, self.x), (self.part.y, self.y)):
            torch.index_select(part.flatten(0, 1), 0, index, out=batch.flatten(0, 1))
        self.next += 1

    def _draw(self) -> torch.Tensor:
        """Draw an epoch: the places of every batch's samples, (batches, R * B), among the S * N of all."""
        import torch

        used = self.batches * self.batch_size
        drawn = [torch.randperm(self.samples, generator=stream)[:used] for stream in self.streams]
        places = torch.stack([order + number * self.samples for number, order in enumerate(drawn)])
        places = places.to(self.part.x.device, non_blocking=True)[self.part.which]
        return places.view(len(places), self.batches, -1).transpose(0, 1).flatten(1)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to draw the same batches again."""
        # An order is replaced, never changed.
        return {"streams": [stream.get_state() for stream in self.streams], "order": self.order, "next": self.next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for stream, before in zip(self.streams, state["streams"], strict=True):
            stream.set_state(before)
        self.order, self.next = state["order"], state["next"]
