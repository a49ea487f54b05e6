"""What a data set is, and how it becomes standardized training, validation and test parts.

Letters: N samples, F features, T targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bpexp.streams import generator

if TYPE_CHECKING:
    import torch

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class DataSet:
    """A row of DATA: what is known without reading it, and how to read it.

    `read()` returns x, (N, F) float64, and y: (N,) int64 classes or (N, T) float64 targets. `outputs` counts the
    classes or the targets.
    """

    name: str
    task: Task
    samples: int
    features: int
    outputs: int
    source: str
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    def training_samples(self, train_size: int | None = None) -> int:
        """Return how many samples `data.train_size` leaves to train on; None is the whole training part.

        Raises:  ValueError: more than there are; fewer than classes, or than the two that a deviation needs
        """
        available, _, _ = part_sizes(self.samples)
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
    """A standardized data set in three disjoint parts.

    Shapes:  x_*: (N, F); y_*: (N,) int64 classes or (N, T) targets; mean, std: (F,)
    Units:   x, and the targets of a regression, in standard deviations of the training part; mean and std in raw units
    """

    name: str
    task: Task
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    features: int
    outputs: int
    mean: torch.Tensor
    std: torch.Tensor


def split(data: DataSet, seed: int, *, train_size: int | None, dtype: torch.dtype) -> Splits:
    """Read, check, split and standardize a data set.

    The validation and test samples depend on the seed alone, and a smaller training set is the beginning of a larger
    one. Means and deviations come from the `train_size` samples that are trained on, so they alone do move with it.

    Raises:  ValueError: a bad `train_size`; nan or inf in the data
    """
    import torch

    chosen = data.training_samples(train_size)
    x, y = data.read()
    check_finite(data.name, x, y)
    labels = y if data.task == "classification" else torch.zeros(len(y), dtype=torch.int64)
    order = stratified_order(labels, generator(seed, "split"))
    available, val_size, _ = part_sizes(data.samples)
    val_end = available + val_size
    train, val, test = order[:chosen], order[available:val_end], order[val_end:]

    mean, std = standardization(x[train])
    x = ((x - mean) / std).to(dtype)
    if data.task == "regression":
        target_mean, target_std = standardization(y[train])
        y = ((y - target_mean) / target_std).to(dtype)
    return Splits(
        name=data.name,
        task=data.task,
        x_train=x[train],
        y_train=y[train],
        x_val=x[val],
        y_val=y[val],
        x_test=x[test],
        y_test=y[test],
        features=data.features,
        outputs=data.outputs,
        mean=mean.to(dtype),
        std=std.to(dtype),
    )


def part_sizes(samples: int) -> tuple[int, int, int]:
    """Return the sizes of the training, validation and test part: 60, 20 and 20 %, what rounding leaves to the last."""
    train, val = samples * 60 // 100, samples * 20 // 100
    return train, val, samples - train - val


def stratified_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random order of the samples in which every run has the classes in proportion.

    The first runs hold one sample of each class, so any beginning as long as there are classes has them all.

    Math:    ascending in rank / count: the sample's place within its shuffled class over the size of that class
    Shapes:  labels: (N,) int64 from 0; returns (N,) int64
    Source:  the divisor method of J. Q. Adams: Balinski and Young 1982, Fair Representation
    """
    import torch

    shuffled = torch.randperm(len(labels), generator=generator)
    labels = labels[shuffled]
    progress = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = labels == label
        count = int(members.sum())
        progress[members] = torch.arange(count, dtype=torch.float64) / count
    return shuffled[progress.argsort(stable=True)]


def standardization(train: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each column's mean and population standard deviation, with 1 for the deviation of a constant column."""
    # A constant such as 0.1 has a rounding error for its deviation, so constancy is seen from the extremes.
    constant = train.amax(0) == train.amin(0)
    return train.mean(0), train.std(0, correction=0).masked_fill(constant, 1.0)


def check_finite(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """Refuse data with nan or inf, naming the first.

    Shapes:  x: (N, F); y: (N,) int64 or (N, T)
    Raises:  ValueError: which feature or target of which sample is what
    """
    for column, values in (("feature", x), ("target", y)):
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
