"""Makers of samples that several families of rules share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bpexp.rules.table import Sample

Samples = Callable[[torch.Generator], Sequence[Sample]]


def samples_of(
    *rows: tuple[str, Sequence[tuple[int, ...]], tuple[Any, ...]],
    constants_first: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Samples:
    """Samples (name, shapes of the tensors, constants after or before them)."""

    def make(generator: torch.Generator) -> Sequence[Sample]:
        samples = []
        for name, shapes, constants in rows:
            tensors = tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
            samples.append(Sample(name, (*constants, *tensors) if constants_first else (*tensors, *constants)))
        return samples

    return make


def samples_from(*makers: Samples) -> Samples:
    """The samples of several makers together."""
    return lambda generator: [sample for make in makers for sample in make(generator)]
