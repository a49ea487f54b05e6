"""Reductions over dimensions."""

import torch
from torch import Tensor

from bpexp.rules import reductions


def sum(
    input: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    return reductions.sum(input if dtype is None else input.to(dtype), dim, keepdim)


def mean(
    input: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    return reductions.mean(input if dtype is None else input.to(dtype), dim, keepdim)


def amax(input: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    return reductions.amax(input, dim, keepdim)


def amin(input: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    return reductions.amin(input, dim, keepdim)


def var(
    input: Tensor, dim: int | tuple[int, ...] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    return reductions.var(input, dim, 1 if correction is None else correction, keepdim)
