"""Diabetes: ten measurements of 442 patients, and how their disease had progressed a year later."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import torch


@functools.cache
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the raw measurements, (442, 10), and the progression, (442, 1), once read from scikit-learn's own copy."""
    import torch
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return torch.from_numpy(x).double(), torch.from_numpy(y).double()[:, None]


DIABETES = DataSet(
    name="diabetes",
    task="regression",
    samples=442,
    features=10,
    outputs=1,
    source="Efron, Hastie, Johnstone and Tibshirani 2004, Least Angle Regression, Annals of Statistics 32, 407-499",
    read=read,
)
