"""Dropout masks of R networks, each from its own stream.

Letters: R networks, S distinct seeds among them, L hidden layers, B samples of a batch, W units.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpexp.spec import MASK_LEVELS
from bpexp.streams import generator

LOWEST = torch.iinfo(torch.int64).min


class Masks:
    """One mask a hidden layer, (R, B, W): 0 where a unit is dropped, 1 / (1 - p) where it is kept.

    Sixteen random bits decide a unit, so p is rounded to a multiple of 2^-16 (and less than 1). They are drawn as whole
    words, once for each seed: networks of one seed that differ in p drop nested sets of units.
    """

    def __init__(
        self,
        probabilities: Sequence[float],
        seeds: Sequence[int],
        which: Tensor,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        purpose: str = "dropout",
    ) -> None:
        """Take p of each network, the S distinct seeds, the place of each network's among them, and (L, B, W).

        purpose: names the stream of a seed
        """
        device = which.device
        layers, batch, width = shape
        words = -(-layers * batch * width // 4)
        levels = torch.tensor([min(round(p * MASK_LEVELS), MASK_LEVELS - 1) for p in probabilities])
        self.threshold = (levels - MASK_LEVELS // 2).to(torch.int16).to(device).view(-1, 1, 1, 1)
        # What is kept is scaled for the level, so that the mean is exact.
        self.scale = (MASK_LEVELS / (MASK_LEVELS - levels).double()).to(dtype).to(device).view(-1, 1, 1, 1)
        self.streams = [generator(seed, purpose, device) for seed in seeds]
        self.words = torch.empty(len(seeds), words, dtype=torch.int64, device=device)
        self.bits = self.words.view(torch.int16)[:, : layers * batch * width].view(len(seeds), *shape)
        self.which = which
        self.values = torch.empty(len(probabilities), *shape, dtype=dtype, device=device)
        self.layers: tuple[Tensor, ...] = self.values.unbind(1)

    def fill(self) -> None:
        """Draw new masks."""
        for row, stream in zip(self.words, self.streams, strict=True):
            row.random_(LOWEST, None, generator=stream)  # from 0 on, the highest of 64 bits would always be 0
        torch.ge(self.bits[self.which], self.threshold, out=self.values)
        self.values.mul_(self.scale)

    def state(self) -> list[Any]:
        """Return what `restore` needs to draw the same masks again."""
        return [stream.get_state() for stream in self.streams]

    def restore(self, state: list[Any]) -> None:
        """Go back to a state."""
        for stream, before in zip(self.streams, state, strict=True):
            stream.set_state(before)
