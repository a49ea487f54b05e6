"""Norms."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from bpexp.rules import norms
from bpexp.rules.table import LOW


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not ends_in(input, normalized_shape):  # torch says what it has against it
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return norms.layer_norm(input, len(normalized_shape), weight, bias, eps)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    numbers = input.is_floating_point() or input.is_complex()
    if not (
        numbers
        and ends_in(input, normalized_shape)
        and (weight is None or list(weight.shape) == list(normalized_shape))
    ):
        return F.rms_norm(input, normalized_shape, weight, eps)
    return norms.rms_norm(input, len(normalized_shape), weight, eps)


def ends_in(input: Tensor, shape: Any) -> bool:
    return isinstance(shape, Sequence) and len(shape) > 0 and tuple(input.shape[-len(shape) :]) == tuple(shape)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel; while training also move the running statistics, in place.

    Math:    running <- (1 - momentum) running + momentum statistic, with the unbiased variance
    """
    vectors = (running_mean, running_var, weight, bias)
    if not takes_batch_norm(input, vectors, training, momentum, eps):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training:
        return norms.batch_norm_eval(input, running_mean, running_var, weight, bias, eps)
    if running_mean is not None and is_transforming():
        # A transform of torch.func lets torch's own kernel move what it captures, and nothing else; and it may refuse.
        with torch.no_grad():
            F.batch_norm(input, running_mean, running_var, None, None, True, momentum, eps)
        return norms.batch_norm(input, weight, bias, eps)
    y, mean, var = norms.batch_norm.outputs(input, weight, bias, eps)
    if running_mean is not None and running_var is not None and input.numel():
        size = input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var, alpha=momentum * size / (size - 1))
    return y


def is_transforming() -> bool:
    """Whether this runs under torch.func.grad, vmap or their like."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


def takes_batch_norm(
    input: Tensor, vectors: Sequence[Tensor | None], training: bool, momentum: Any, eps: float
) -> bool:
    """Whether batch_norm is defined on these; where it is not torch says why."""
    running = [vector is not None for vector in vectors[:2]]
    if input.dim() < 2 or not input.is_floating_point() or not isinstance(momentum, int | float):
        return False
    if training and (eps <= 0 or input.numel() == input.shape[1] or any(running) != all(running)):
        return False
    if not training and (eps < 0 or not all(running)):
        return False
    types = {vector.dtype for vector in vectors if vector is not None} - {input.dtype}
    return (
        all(vector is None or vector.shape == (input.shape[1],) for vector in vectors)
        and not any(vector is not None and vector.requires_grad for vector in vectors[:2])
        and (not types or (input.dtype in LOW and types == {torch.float32}))
    )
