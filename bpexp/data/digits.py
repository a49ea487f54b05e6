"""Digits: real handwritten digits, 8x8 grey values from 0 to 16, ten classes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import torch


@functools.cache
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (1797, 64), and their digits, (1797,), once read from scikit-learn's own copy."""
    import torch
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    return torch.from_numpy(images).double(), torch.from_numpy(digits).long()


DIGITS = DataSet(
    name="digits",
    task="classification",
    samples=1797,
    features=64,
    outputs=10,
    source="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (test set), doi:10.24432/C50P49",
    read=read,
)
