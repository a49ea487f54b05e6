"""Digits: real handwritten digits, 8x8 grey values from 0 to 16, ten classes."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@functools.cache
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (1797, 64), and their digits, (1797,), once read from scikit-learn's own copy."""
    import torch

    images, digits = _read_file()
    return torch.from_numpy(images).double(), torch.from_numpy(digits).long()


def _read_file() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read what `load_digits` reads, and import no more of scikit-learn than needed: that takes longer than a sweep."""
    import numpy as np

    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0]) / "datasets" / "data" / "digits.csv.gz" if folders else None
    if path is not None and path.is_file():
        rows = np.loadtxt(path, delimiter=",")
        if rows.shape == (1797, 65):
            return np.ascontiguousarray(rows[:, :-1]), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    return np.ascontiguousarray(images), digits


DIGITS = DataSet(
    name="digits",
    task="classification",
    samples=1797,
    features=64,
    outputs=10,
    source="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (test set), doi:10.24432/C50P49",
    read=read,
)
