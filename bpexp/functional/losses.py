"""Losses."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from bpexp.rules import losses


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return losses.mse_loss(input, target, weight, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    if target.is_floating_point() and ignore_index < 0:
        return losses.cross_entropy_probabilities(input, target, weight, reduction, label_smoothing)
    if weight is not None and weight.requires_grad:  # torch refuses it in its own words, while gradients are on
        F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    return losses.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
