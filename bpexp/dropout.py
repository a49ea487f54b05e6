"""Dropout masks of R networks, each from its own stream.

Letters: R networks, S streams, one for each distinct seed and depth among them, L hidden layers of the deepest, R_l
networks that have layer l, B samples of a batch, W units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpexp.rules.regularization import kept
from bpexp.spec import LARGEST_DROPOUT, MASK_LEVELS
from bpexp.streams import generator

LOWEST = torch.iinfo(torch.int64).min
BYTE = 256


class Mask(NamedTuple):
    """What a layer's mask is made of, where it is used: noise (R_l, B, W) int8, threshold and scale (R_l, 1, 1)."""

    noise: Tensor
    threshold: Tensor
    scale: Tensor


class Masks:
    """One mask a hidden layer, (R_l, B, W): 0 where a unit is dropped, else what makes the mask's mean 1.

    A unit is dropped where its random byte is below a threshold t. One more byte u for each step and layer decides
    between the two thresholds that are nearest to 256 p.

    Math:  t = floor(256 p + u / 256), so E t / 256 = p, to 2^-16; what is kept is scaled by 256 / (256 - t)
    Edge:  p is at most 255/256. Of two units of a layer the drops correlate by less than 2^-18 / (p (1 - p)).
           Networks of one seed that differ in p drop nested sets of units.
    """

    def __init__(
        self,
        probabilities: Sequence[float],
        seeds: Sequence[int],
        which: Tensor,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        purpose: str = "dropout",
        depths: Sequence[int] = (),
    ) -> None:
        """Take p of each network, the distinct seeds, the place of each network's among them, and (L, B, W).

        purpose: names the stream of a seed
        depths:  how many of the L layers each network has, the most first; all have all where none are given
        """
        device = which.device
        layers, batch, width = shape
        units = layers * batch * width
        depths = depths or [layers] * len(probabilities)
        pairs = list(zip([seeds[place] for place in which.tolist()], depths, strict=True))
        streams = list(dict.fromkeys(pairs))
        self.purpose, self.device = purpose, device
        self.seeds = [seeds.index(seed) for seed, _ in streams]
        self.renew(probabilities, seeds)
        # Of a network with fewer layers a row has a shorter part: the bytes of its units, and behind them its layers'.
        lengths = [-(-(depth * (batch * width + 1)) // 8) for _, depth in streams]
        self.words = torch.zeros(len(streams), max(lengths), dtype=torch.int64, device=device)
        self.rows = [row[:length] for row, length in zip(self.words, lengths, strict=True)]
        self.drawn = self.words.view(torch.int8)
        self.bytes = self.drawn[:, :units].view(len(streams), *shape)
        places, of_network = torch.tensor([streams.index(pair) for pair in pairs]), torch.tensor(depths)
        starts = places * self.drawn.shape[1] + of_network * batch * width
        self.between = (starts[:, None] + torch.arange(layers).minimum(of_network[:, None] - 1)).to(device)
        # With a stream of its own for every network nothing has to be copied.
        self.which = None if places.tolist() == list(range(len(streams))) else places.to(device)
        self.noise = self.bytes if self.which is None else self.bytes.new_empty((len(probabilities), *shape))
        self.threshold = torch.empty(len(probabilities), layers, 1, 1, dtype=torch.int8, device=device)
        self.scale = torch.empty(len(probabilities), layers, 1, 1, dtype=dtype, device=device)
        parts = (self.noise, self.threshold, self.scale)
        live = [sum(depth > layer for depth in depths) for layer in range(layers)]
        self.layers: list[Mask] = [Mask(*(part[:r, layer] for part in parts)) for layer, r in enumerate(live)]

    def renew(self, probabilities: Sequence[float], seeds: Sequence[int]) -> None:
        """Start with other numbers of as many networks and seeds, in the same places."""
        levels = [round(min(p, LARGEST_DROPOUT) * MASK_LEVELS) for p in probabilities]
        self.levels = torch.tensor(levels, dtype=torch.int32).view(-1, 1).to(self.device)
        self.streams = [generator(seeds[place], self.purpose, self.device) for place in self.seeds]

    def fill(self) -> None:
        """Draw new masks."""
        for row, stream in zip(self.rows, self.streams, strict=True):
            row.random_(LOWEST, None, generator=stream)  # from 0 on, the highest of 64 bits would always be 0
        if self.which is not None:
            torch.index_select(self.bytes, 0, self.which, out=self.noise)
        between = self.drawn.take(self.between)
        thresholds = ((self.levels + (between.int() + BYTE // 2)) >> 8)[:, :, None, None]
        self.threshold.copy_(thresholds - BYTE // 2)
        self.scale.copy_(BYTE / (BYTE - thresholds).double())

    @property
    def values(self) -> Tensor:
        """The masks as numbers, (R, L, B, W); those of layers that a network has not mean nothing."""
        return kept(self.noise, self.threshold, self.scale)

    def state(self) -> list[Any]:
        """Return what `restore` needs to draw the same masks again."""
        return [stream.get_state() for stream in self.streams]

    def restore(self, state: list[Any]) -> None:
        """Go back to a state."""
        for stream, before in zip(self.streams, state, strict=True):
            stream.set_state(before)
