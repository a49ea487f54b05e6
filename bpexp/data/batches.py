"""Batches of R networks side by side, each with its own split and its own order.

Letters: R networks, S distinct seeds among them, N training samples, B samples of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bpexp.data.splits import Splits, standardize
from bpexp.streams import generator

if TYPE_CHECKING:
    import torch

LARGEST_COPIES = 2**27
"""Bytes up to which the samples of all seeds are standardized once and held as numbers, which are faster to draw from.

What is larger, and is bytes where it comes from, is held as these bytes, once for all seeds.
"""

MOST_EPOCHS, MOST_PLACES = 8, 2**17
"""Epochs that are drawn at once, and places of all networks in them: a small draw takes less than the calls for it."""


class Bytes:
    """Samples of S seeds, held once as the bytes of their data set, and standardized when they are looked at.

    The numbers are bit for bit those of samples that are standardized beforehand.

    Shapes: raw: (M, F) uint8; rows: (S, N) places in it; mean, std: (S, F) float64
    """

    def __init__(
        self, raw: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.raw, self.rows, self.mean, self.std, self.dtype = raw, rows, mean, std, dtype
        self.shape = (*rows.shape, raw.shape[1])

    def some(self, which: slice) -> torch.Tensor:
        """Return samples of each seed, in their order, (S, n, F)."""
        rows = self.rows[:, which]
        found = self.mean.new_empty((*rows.shape, self.shape[2]), dtype=self.dtype)
        standardize(self.raw, rows, self.mean, self.std, found)
        return found

    def take(self, places: torch.Tensor, out: torch.Tensor) -> None:
        """Put samples of each seed into `out`, (S, n, F), by their places among the S * N of all, (S, n)."""
        standardize(self.raw, self.rows.flatten()[places], self.mean, self.std, out)


class Parts:
    """The same part of the data sets of S seeds, and which of them each of R networks has.

    Shapes: x: (S, N, F), y: (S, N, ...); which: (R,) places in S, of which each occurs; first: (S,) where it first does
    """

    def __init__(self, x: torch.Tensor | Bytes, y: torch.Tensor, which: torch.Tensor) -> None:
        import torch

        self.x, self.y = x, y
        self.flat_x, self.flat_y = x if isinstance(x, Bytes) else x.flatten(0, 1), y.flatten(0, 1)
        self.seeds, self.samples, self.features = x.shape[0], x.shape[1], x.shape[2]
        places = which.tolist()
        # With a seed of its own for every network nothing has to be copied.
        self.which = None if places == list(range(self.seeds)) else which
        self.networks = len(places)
        self.first = torch.tensor([places.index(seed) for seed in range(self.seeds)]).to(which.device)

    def some(self, which: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return samples of each network, in their order: x (R, N, F), y (R, N, ...); both may be views."""
        x = self.x.some(which) if isinstance(self.x, Bytes) else self.x[:, which]
        y = self.y[:, which]
        return (x, y) if self.which is None else (x[self.which], y[self.which])

    def take(self, places: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        """Put samples of each network into x (R * B, F) and y (R * B, ...), by their places among S * N, (R * B,)."""
        import torch

        torch.index_select(self.flat_y, 0, places, out=y)
        if not isinstance(self.flat_x, Bytes):
            torch.index_select(self.flat_x, 0, places, out=x)
            return
        x, of_networks = x.view(self.networks, -1, self.features), places.view(self.networks, -1)
        if self.which is None:
            self.flat_x.take(of_networks, x)
        else:
            of_seeds = x.new_empty((self.seeds, *x.shape[1:]))
            self.flat_x.take(of_networks[self.first], of_seeds)
            torch.index_select(of_seeds, 0, self.which, out=x)


def make_parts(
    splits: Sequence[Splits], which: torch.Tensor, targets: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[Parts, Parts, Parts]:
    """Return the training, validation and test part of S seeds' data on the device of `which`.

    which:   (R,) places in S
    targets: makes of the (S, N, ...) that the splits have those to learn
    """
    import torch

    device, one = which.device, splits[0]
    mean, std = (torch.stack([getattr(split, name) for split in splits]) for name in ("mean", "std"))
    samples = len(splits) * sum(map(len, one.rows.values()))
    raw = one.x  # all seeds split one data set, read once
    held = is_held(raw.dtype == torch.uint8, samples, one.features, one.dtype.itemsize)
    if held:
        raw, mean, std = raw.to(device), mean.to(device), std.to(device)

    def inputs(part: str) -> torch.Tensor | Bytes:
        rows = torch.stack([split.rows[part] for split in splits])
        if held:
            return Bytes(raw, rows.to(device), mean, std, one.dtype)
        x = torch.empty(*rows.shape, one.features, dtype=one.dtype)
        standardize(raw, rows, mean, std, x)
        return x.to(device)

    def part(name: str) -> Parts:
        y = torch.stack([getattr(split, f"y_{name}") for split in splits])
        return Parts(inputs(name), targets(y).to(device), which)

    return part("train"), part("val"), part("test")


def is_held(as_bytes: bool, samples: int, features: int, itemsize: int) -> bool:
    """Whether samples stay bytes: such as are, and would be many bytes more as numbers.

    samples: of all seeds together
    """
    return as_bytes and samples * features * itemsize > LARGEST_COPIES


def epochs_at_once(networks: int, samples: int) -> int:
    """Return how many epochs of so many networks and training samples are drawn at once."""
    return max(1, min(MOST_EPOCHS, MOST_PLACES // (networks * samples)))


class Batches:
    """Fills `x` (R, B, F) and `y` (R, B, ...) with the next batch.

    Every epoch each network goes through its training samples in an order drawn from its own stream, and leaves out the
    last ones where they do not fill a batch.
    """

    def __init__(self, part: Parts, seeds: Sequence[int], batch_size: int) -> None:
        """Take the S distinct seeds in the order of `part`."""
        import torch

        self.batch_size = batch_size
        self.renew(part, seeds)
        dtype, y = part.x.dtype, part.y
        self.x = torch.empty(part.networks, batch_size, part.features, dtype=dtype, device=y.device)
        self.y = y.new_empty((part.networks, batch_size, *y.shape[2:]))
        self.flat_x, self.flat_y = self.x.flatten(0, 1), self.y.flatten(0, 1)  # views

    def renew(self, part: Parts, seeds: Sequence[int]) -> None:
        """Start with another part, of the same sizes; `x` and `y` stay where they are."""
        self.part, self.samples = part, part.samples
        self.batches = self.samples // self.batch_size  # of an epoch
        self.epochs = epochs_at_once(part.networks, self.samples)
        self.streams = [generator(seed, "order") for seed in seeds]
        self.drawn: list[torch.Tensor] | None = None  # the streams' states, where they are known
        self.order: torch.Tensor | None = None
        self.next = 0  # the first batch draws the first epochs

    def fill(self) -> None:
        """Go on to the next batch."""
        if self.order is None or self.next == len(self.order):
            self.order, self.next = self._draw(), 0
        self.part.take(self.order[self.next], self.flat_x, self.flat_y)
        self.next += 1

    def _draw(self) -> torch.Tensor:
        """Draw epochs: the places of every batch's samples, (batches, R * B), among the S * N of all."""
        import torch

        seeds, used, self.drawn = self.part.seeds, self.batches * self.batch_size, None
        drawn = torch.empty(seeds, self.epochs, self.samples, dtype=torch.int64)
        for stream, epochs in zip(self.streams, drawn, strict=True):
            for epoch in epochs:
                torch.randperm(self.samples, generator=stream, out=epoch)
        places = drawn[:, :, :used] + torch.arange(seeds)[:, None, None] * self.samples
        by_batch = places.to(self.y.device, non_blocking=True).view(seeds, -1, self.batch_size).transpose(0, 1)
        return (by_batch if self.part.which is None else by_batch.index_select(1, self.part.which)).flatten(1)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to draw the same batches again."""
        if self.drawn is None:
            self.drawn = [stream.get_state() for stream in self.streams]
        # States and orders are replaced, never changed.
        return {"streams": self.drawn, "order": self.order, "next": self.next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.drawn = state["streams"]
        for stream, before in zip(self.streams, state["streams"], strict=True):
            stream.set_state(before)
        order = state["order"]
        self.order, self.next = None if order is None else order.to(self.y.device), state["next"]
