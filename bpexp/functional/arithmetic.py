"""Arithmetic between the layers of a model."""

from torch import Tensor

from bpexp.rules import arithmetic


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


sub, mul, div, neg = subtract, multiply, divide, negative  # torch's short names
