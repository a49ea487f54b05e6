"""DATA: the data sets by name. A new one is a file with a DataSet, and its name in the tuple below.

A FolderData is one whose files the user has, in the folder data.root; `describe` returns the DataSet that it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpexp.data.cifar10 import CIFAR10
from bpexp.data.diabetes import DIABETES
from bpexp.data.digits import DIGITS
from bpexp.data.folder import FolderData
from bpexp.data.idx import IDX
from bpexp.data.mnist import MNIST
from bpexp.data.regression import REGRESSION
from bpexp.data.splits import DataSet, Splits, check_batch_size, check_finite, refuse_batch_size, split
from bpexp.init import unknown_choice

if TYPE_CHECKING:
    import torch

__all__ = [
    "DATA",
    "DataSet",
    "FolderData",
    "Splits",
    "check_batch_size",
    "check_contents",
    "check_finite",
    "check_sizes",
    "describe",
    "fingerprint",
    "load",
]

DATA: dict[str, DataSet | FolderData] = {
    data.name: data for data in (DIGITS, MNIST, DIABETES, REGRESSION, IDX, CIFAR10)
}


def load(name: str, seed: int, *, root: str | None = None, train_size: int | None = None, dtype: torch.dtype) -> Splits:
    """Return a data set, split by `seed` into training, validation and test part, and standardized.

    Without a test part of its own it is split 60/20/20; one that has a test part keeps it, whatever the seed, and the
    rest is split 75/25. See `split`.

    root:    the folder of the files of a FolderData
    Raises:  ValueError: unknown name; a folder or files that are not of the form; a `train_size` that does not fit; nan
             or inf in the data
    """
    return split(describe(name, root), seed, train_size=train_size, dtype=dtype)


def describe(name: str, root: str | None = None) -> DataSet:
    """Return a data set with what is known without reading its samples and without torch.

    Raises:  ValueError: unknown name; a folder or files that are not of the form; a `root` for a data set without
    """
    data = DATA.get(name)
    if data is None:
        raise unknown_choice("data", name, DATA)
    if isinstance(data, FolderData):
        return data.open(root)
    if root is not None:
        others = " or ".join(f"data={other}" for other, row in DATA.items() if isinstance(row, FolderData))
        raise ValueError(f"data.root: {root!r} would be ignored by data={name}; choose {others}")
    return data


def check_sizes(name: str, train_size: int | None, batch_size: int, root: str | None = None) -> None:
    """Refuse sizes that do not fit the data set, and a `root` that does not, without reading it and without torch.

    Raises:  ValueError: as `describe` does; a `train_size` or `batch_size` that does not fit
    """
    refuse_batch_size(describe(name, root).training_samples(train_size), batch_size)


def check_contents(name: str, root: str | None = None) -> None:
    """Read a data set, and refuse what only its contents tell: files that are damaged, nan, inf.

    Raises:  ValueError: as `describe` does; naming the file, or the sample
    """
    check_finite(name, *describe(name, root).read())


def fingerprint(name: str, root: str | None = None) -> str:
    """Return a hash of what the files of a data set hold, wherever they are; "" for one that comes with a package.

    Raises:  ValueError: as `describe` does, but for what is in the files
    """
    data = DATA.get(name)
    return data.fingerprint(root) if isinstance(data, FolderData) else ""
