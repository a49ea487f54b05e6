"""DATA: the data sets by name. A new one is a file with a DataSet, and its name in the tuple below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpexp.data.digits import DIGITS
from bpexp.data.regression import REGRESSION
from bpexp.data.splits import DataSet, Splits, check_batch_size, check_finite, refuse_batch_size, split
from bpexp.init import unknown_choice

if TYPE_CHECKING:
    import torch

__all__ = ["DATA", "DataSet", "Splits", "check_batch_size", "check_finite", "check_sizes", "load"]

DATA: dict[str, DataSet] = {data.name: data for data in (DIGITS, REGRESSION)}


def load(name: str, seed: int, *, train_size: int | None = None, dtype: torch.dtype) -> Splits:
    """Return a data set, split by `seed` into 60 % training, 20 % validation and 20 % test, and standardized.

    Raises:  ValueError: unknown name; a `train_size` that does not fit; nan or inf in the data
    """
    return split(_find(name), seed, train_size=train_size, dtype=dtype)


def check_sizes(name: str, train_size: int | None, batch_size: int) -> None:
    """Refuse sizes that do not fit the data set, without reading it and without torch.

    Raises:  ValueError: unknown name; a `train_size` or `batch_size` that does not fit
    """
    refuse_batch_size(_find(name).training_samples(train_size), batch_size)


def _find(name: str) -> DataSet:
    if name not in DATA:
        raise unknown_choice("data", name, DATA)
    return DATA[name]
