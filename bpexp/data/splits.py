"""What a data set is, and how it becomes standardized training, validation and test parts.

Without a test part of its own a data set is split into 60 % training, 20 % validation and 20 % test. One that has a
test part keeps it, and the rest is split 75 % to 25 %, the proportion of the 60 to the 20.

Letters: N samples, F features, T targets, C channels of an image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bpexp.streams import generator

if TYPE_CHECKING:
    import torch

Task = Literal["classification", "regression"]

ROWS_AT_ONCE = 128
"""Samples that are standardized at once: 60,000 images of 28x28 in float64 would be 376 MB."""


@dataclass(frozen=True)
class DataSet:
    """A row of DATA: what is known without reading it, and how to read it.

    `read()` returns x, (N, F) float64 or uint8, and y: (N,) int64 classes or (N, T) float64 targets. `outputs` counts
    the classes or the targets. `shape` is that of an image, (C, rows, columns), and None where a sample is none. The
    last `test_samples` of the samples are the data set's own test part, 0 where it has none. `as_bytes` is whether x is
    uint8.
    """

    name: str
    task: Task
    samples: int
    features: int
    outputs: int
    source: str
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    shape: tuple[int, int, int] | None = None
    test_samples: int = 0
    as_bytes: bool = False

    @property
    def parts(self) -> tuple[int, int, int]:
        """Return how many samples the training, validation and test part have."""
        return part_sizes(self.samples, self.test_samples)

    def training_samples(self, train_size: int | None = None) -> int:
        """Return how many samples `data.train_size` leaves to train on; None is the whole training part.

        Raises:  ValueError: more than there are; fewer than classes, or than the two that a deviation needs
        """
        available, _, _ = self.parts
        if train_size is None:
            return available
        if train_size > available:
            raise ValueError(
                f"data.train_size: {train_size} is larger than the training part of {self.name} ({available}); "
                f"choose at most {available}"
            )
        if self.task == "classification" and train_size < self.outputs:
            raise ValueError(
                f"data.train_size: {train_size} is too small to stratify {self.outputs} classes; "
                f"choose at least {self.outputs}"
            )
        if train_size < 2:
            raise ValueError(f"data.train_size: {train_size} is too small to standardize; choose at least 2")
        return train_size


@dataclass(frozen=True)
class Splits:
    """A data set in three disjoint parts, which are standardized when they are asked for.

    Shapes:  x: (N, F) as it was read; rows: by part the places of its samples in x; y_*: (n,) int64 classes or (n, T)
             targets; mean, std: (F,) float64; x_*: (n, F) of `dtype`
    Units:   x_*, and the targets of a regression, in standard deviations of the training part; mean and std in raw
             units, equal in all pixels of a channel where the samples are images of bytes
    """

    name: str
    task: Task
    x: torch.Tensor
    rows: dict[str, torch.Tensor]
    y_train: torch.Tensor
    y_val: torch.Tensor
    y_test: torch.Tensor
    features: int
    outputs: int
    mean: torch.Tensor
    std: torch.Tensor
    dtype: torch.dtype
    shape: tuple[int, int, int] | None = None

    @functools.cached_property
    def x_train(self) -> torch.Tensor:
        return self._standardized("train")

    @functools.cached_property
    def x_val(self) -> torch.Tensor:
        return self._standardized("val")

    @functools.cached_property
    def x_test(self) -> torch.Tensor:
        return self._standardized("test")

    def _standardized(self, part: str) -> torch.Tensor:
        return standardized(self.x, self.rows[part], self.mean, self.std, self.dtype)


def split(data: DataSet, seed: int, *, train_size: int | None, dtype: torch.dtype) -> Splits:
    """Read, check and split a data set, and find what standardizes it.

    The validation and test samples depend on the seed alone, a test part of the data set's own not even on that, and a
    smaller training set is the beginning of a larger one. Means and deviations come from the `train_size` samples that
    are trained on, so they alone do move with it.

    Raises:  ValueError: a bad `train_size`; nan or inf in the data
    """
    import torch

    chosen = data.training_samples(train_size)
    x, y = data.read()
    check_finite(data.name, x, y)
    own_test = torch.arange(data.samples - data.test_samples, data.samples)
    labels = y if data.task == "classification" else torch.zeros(len(y), dtype=torch.int64)
    order = torch.cat([stratified_order(labels[: len(y) - len(own_test)], generator(seed, "split")), own_test])
    available, val_size, _ = data.parts
    val_end = available + val_size
    train, val, test = order[:chosen], order[available:val_end], order[val_end:]

    if x.dtype == torch.uint8:
        mean, std = byte_standardization(x, train, data.shape[0] if data.shape else data.features)
    else:
        mean, std = standardization(x[train])
    if data.task == "regression":
        target_mean, target_std = standardization(y[train])
        y = ((y - target_mean) / target_std).to(dtype)
    return Splits(
        name=data.name,
        task=data.task,
        x=x,
        rows={"train": train, "val": val, "test": test},
        y_train=y[train],
        y_val=y[val],
        y_test=y[test],
        features=data.features,
        outputs=data.outputs,
        mean=mean,
        std=std,
        dtype=dtype,
        shape=data.shape,
    )


def part_sizes(samples: int, own_test: int = 0) -> tuple[int, int, int]:
    """Return the sizes of the training, validation and test part; what rounding leaves goes to the last that is split.

    own_test: how many of the samples are a test part of the data set's own
    """
    if own_test:
        train = (samples - own_test) * 75 // 100
        return train, samples - own_test - train, own_test
    train, val = samples * 60 // 100, samples * 20 // 100
    return train, val, samples - train - val


def stratified_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random order of the samples in which every run has the classes in proportion.

    The first runs hold one sample of each class, so any beginning as long as there are classes has them all.

    Math:    ascending in rank / count: the sample's place within its shuffled class over the size of that class
    Shapes:  labels: (N,) int64 from 0; returns (N,) int64
    Source:  the divisor method of J. Q. Adams: Balinski and Young 1982, Fair Representation
    """
    import numpy as np
    import torch

    shuffled = torch.randperm(len(labels), generator=generator)
    # In numpy, whose small sorts take half of torch's time.
    drawn = labels[shuffled].numpy()
    by_class, counts = drawn.argsort(kind="stable"), np.bincount(drawn)
    classes = drawn[by_class]
    ranks = np.arange(len(drawn)) - (counts.cumsum() - counts)[classes]
    progress = np.empty(len(drawn))
    progress[by_class] = ranks / counts[classes]
    return shuffled[torch.from_numpy(progress.argsort(kind="stable"))]


def standardization(train: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each column's mean and population standard deviation, with 1 for the deviation of a constant column."""
    # A constant such as 0.1 has a rounding error for its deviation, so constancy is seen from the extremes.
    constant = train.amax(0) == train.amin(0)
    return train.mean(0), train.std(0, correction=0).masked_fill(constant, 1.0)


def byte_standardization(x: torch.Tensor, train: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as `standardization` for some rows of bytes, with one mean and deviation for a group of columns.

    An image's group is a channel: a pixel that is lit in few training images has a deviation so small that the same
    pixel, lit in another image, would stand hundreds of deviations away.

    Math:    sums of bytes and of their squares are exact, and so is n sum(x^2) - sum(x)^2 = n^2 var
    Shapes:  x: (N, F) uint8; train: (n,) rows; groups of F / groups columns each; returns (F,) float64 each
    """
    import torch

    columns = x.shape[1]
    total, squares = torch.zeros(2, columns, dtype=torch.int64)
    low, high = torch.full((columns,), 255, dtype=torch.uint8), torch.zeros(columns, dtype=torch.uint8)
    for rows in train.split(ROWS_AT_ONCE):
        some = x[rows]
        low, high = torch.minimum(low, some.amin(0)), torch.maximum(high, some.amax(0))
        some = some.to(torch.int32)
        total += some.sum(0)
        squares += some.square_().sum(0)
    n = len(train) * (columns // groups)
    total, squares = total.view(groups, -1).sum(1), squares.view(groups, -1).sum(1)
    constant = low.view(groups, -1).amin(1) == high.view(groups, -1).amax(1)
    # Python's integers hold n^2 var, which for 50,000 images of three times 1,024 bytes is past 2^63.
    pairs = zip(total.tolist(), squares.tolist(), strict=True)
    deviations = [math.sqrt(n * square - of * of) / n for of, square in pairs]
    mean, std = total.double() / n, torch.tensor(deviations, dtype=torch.float64).masked_fill(constant, 1.0)
    return mean.repeat_interleave(columns // groups), std.repeat_interleave(columns // groups)


def standardized(
    x: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return some rows of x less the mean, over the deviation, computed in float64 a few rows at a time.

    Shapes:  x: (N, F); rows: (n,); mean, std: (F,) float64; returns (n, F) of `dtype`
    """
    import torch

    result = torch.empty(len(rows), x.shape[1], dtype=dtype, device=x.device)
    standardize(x, rows[None], mean[None], std[None], result[None])
    return result


def standardize(x: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, out: torch.Tensor) -> None:
    """Do as `standardized` for each of S seeds.

    Shapes:  x: (N, F); rows: (S, n); mean, std: (S, F) float64; out: (S, n, F)
    """
    import torch

    scratch = torch.empty(min(rows.shape[1], ROWS_AT_ONCE), x.shape[1], dtype=torch.float64, device=x.device)
    for of_seed, its_mean, its_std, its_out in zip(rows, mean, std, out, strict=True):
        for some, into in zip(of_seed.split(ROWS_AT_ONCE), its_out.split(ROWS_AT_ONCE), strict=True):
            into.copy_(scratch[: len(some)].copy_(x.index_select(0, some)).sub_(its_mean).div_(its_std))


def check_finite(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """Refuse data with nan or inf, naming the first.

    Shapes:  x: (N, F); y: (N,) int64 or (N, T)
    Edge:    integers are finite
    Raises:  ValueError: which feature or target of which sample is what
    """
    for column, values in (("feature", x), ("target", y)):
        # Of what is not finite no sum is; it takes a tenth of the time of looking at each.
        if not values.is_floating_point() or bool(values.sum().isfinite()):
            continue
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            sample, index = bad[0].tolist()
            raise ValueError(f"data: {name}: {column} {index} of sample {sample} is {float(values[sample, index])}")


def check_batch_size(splits: Splits, batch_size: int) -> None:
    """Refuse a batch that is empty or larger than the training set.

    Raises:  ValueError: batch_size is not between 1 and the number of training samples
    """
    refuse_batch_size(len(splits.x_train), batch_size)


def refuse_batch_size(training_samples: int, batch_size: int) -> None:
    """Do as `check_batch_size` where only the number of training samples is known."""
    if batch_size > training_samples:
        raise ValueError(
            f"train.batch_size: {batch_size} is larger than the training set ({training_samples}); "
            f"choose at most {training_samples}"
        )
    if batch_size < 1:
        raise ValueError(f"train.batch_size: {batch_size} is too small; choose at least 1")
