"""Drop-ins for torch.nn.functional: the same names, arguments, defaults, semantics and errors, with our backwards.

The arithmetic and reshaping between the layers of a model (add to narrow) has the names that it has in torch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn._reduction import legacy_get_string
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]  # its stub leaves it out

from bpexp.rules import Rule, activations, arithmetic, losses, norms, reductions, regularization, views
from bpexp.rules import linear as linear_map
from bpexp.rules import softmax as probabilities
from bpexp.rules.table import LOW


def elementwise(rule: Rule, input: Tensor, *constants: Any, inplace: bool) -> Tensor:
    """Apply the rule; in place it differentiates at a copy, since the rule may save what is overwritten."""
    return input.copy_(rule(input.clone(), *constants)) if inplace else rule(input, *constants)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() > 2:  # the rule takes one with a network axis; torch says what it has against it
        return F.linear(input, weight, bias)
    return linear_map.linear(input, weight, bias)


def sigmoid(input: Tensor) -> Tensor:
    return activations.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    return activations.tanh(input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.relu, input, inplace=inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return elementwise(activations.leaky_relu, input, negative_slope, inplace=inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.elu, input, alpha, inplace=inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.selu, input, inplace=inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.celu, input, alpha, inplace=inplace)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return (activations.gelu if approximate == "none" else activations.gelu_tanh)(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.silu, input, inplace=inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    return elementwise(activations.mish, input, inplace=inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    return activations.prelu(input, weight, 1)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return activations.softplus(input, beta, threshold)


def softsign(input: Tensor) -> Tensor:
    return activations.softsign(input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return elementwise(activations.hardtanh, input, min_val, max_val, inplace=inplace)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    mask = F.dropout(torch.ones_like(input), p)  # drawn by torch: the same seed, the same mask
    return elementwise(regularization.dropout, input, mask, inplace=inplace)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    if dim is None:
        dim = _get_softmax_dim("softmax", input.dim(), _stacklevel)
    return probabilities.softmax(input, dim, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None:
        dim = _get_softmax_dim("log_softmax", input.dim(), _stacklevel)
    return probabilities.log_softmax(input, dim, dtype)


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


def add(input: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    return arithmetic.add(input, other if alpha == 1 else arithmetic.multiply(other, alpha))


def subtract(input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    return arithmetic.subtract(input, other if alpha == 1 else arithmetic.multiply(other, alpha))


def multiply(input: Tensor | float, other: Tensor | float) -> Tensor:
    return arithmetic.multiply(input, other)


def divide(input: Tensor | float, other: Tensor | float, *, rounding_mode: None = None) -> Tensor:
    if rounding_mode is not None:
        raise ValueError(
            f"rounding_mode: {rounding_mode!r} has the derivative 0 wherever it has one, so there is no rule for it; "
            "choose None, or torch.div"
        )
    return arithmetic.divide(input, other)


def negative(input: Tensor) -> Tensor:
    return arithmetic.negative(input)


def pow(input: Tensor | float, exponent: Tensor | float) -> Tensor:
    return arithmetic.pow(input, exponent)


def exp(input: Tensor) -> Tensor:
    return arithmetic.exp(input)


def log(input: Tensor) -> Tensor:
    return arithmetic.log(input)


def sqrt(input: Tensor) -> Tensor:
    return arithmetic.sqrt(input)


def rsqrt(input: Tensor) -> Tensor:
    return arithmetic.rsqrt(input)


def square(input: Tensor) -> Tensor:
    return arithmetic.square(input)


def abs(input: Tensor) -> Tensor:
    return arithmetic.abs(input)


def maximum(input: Tensor, other: Tensor) -> Tensor:
    return arithmetic.maximum(input, other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    return arithmetic.minimum(input, other)


def clamp(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    for name, bound in (("min", min), ("max", max)):
        if isinstance(bound, Tensor):
            raise TypeError(f"{name}: is a tensor, and clamp takes numbers; choose maximum and minimum for tensors")
    return arithmetic.clamp(input, min, max)


def matmul(input: Tensor, other: Tensor) -> Tensor:
    return arithmetic.matmul(input, other)


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


def reshape(input: Tensor, shape: tuple[int, ...]) -> Tensor:
    return views.reshape(input, shape)


def squeeze(input: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    return views.squeeze(input, dim)


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    return views.unsqueeze(input, dim)


def expand(input: Tensor, size: tuple[int, ...]) -> Tensor:
    """Repeat a tensor to a size: torch has it as a method of tensors alone."""
    return views.expand(input, size)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return views.transpose(input, dim0, dim1)


def permute(input: Tensor, dims: tuple[int, ...]) -> Tensor:
    return views.permute(input, dims)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shapes = [list(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)]
    sizes = max(shapes, key=len, default=[])
    if [0] in shapes and len(sizes) > 1:  # torch joins an empty vector to anything
        sizes[dim] = 0
        tensors = [views.reshape(tensor, sizes) if tensor.shape == (0,) else tensor for tensor in tensors]
    return views.cat(dim, *tensors)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return views.stack(dim, *tensors)


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return `length` places of a dimension from `start` on: the rule `slice`."""
    return views.slice(input, dim, start, start + length)


sub, mul, div, neg = subtract, multiply, divide, negative  # torch's short names
