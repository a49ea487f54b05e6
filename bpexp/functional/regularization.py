"""Regularization."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.functional.activations import elementwise
from bpexp.rules import regularization


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    mask = F.dropout(torch.ones_like(input), p)  # drawn by torch: the same seed, the same mask
    return elementwise(regularization.dropout, input, mask, inplace=inplace)
