"""From an operator on its buffers to the fastest call that torch has for it."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bpexp.plan.buffers import Buffers
from bpexp.plan.products import numpy_product
from bpexp.plan.program import Operator, key_of, replaced, tensors_in
from bpexp.plan.reductions import AXES, fast_reduction

COPIES = frozenset({"clone", "_to_copy"})


def compile_operator(operator: Operator, buffers: Buffers) -> Callable[[], Any]:
    """The operator on its buffers, as the fastest call that torch has for it; it is run once."""
    args = replaced(operator.args, buffers.tensor)
    kwargs = {name: replaced(value, buffers.tensor) for name, value in operator.kwargs.items()}
    outputs = tuple(buffers.tensor(tensor) for tensor in operator.outputs)
    *faster, general = forms(operator, args, kwargs, outputs)
    for call in faster:
        try:
            call()
        except (TypeError, RuntimeError, NotImplementedError):  # it has no such form
            continue
        return call
    general()
    return general


def forms(
    operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[Tensor, ...]
) -> Iterator[Callable[[], Any]]:
    """The calls that do what an operator did, the fastest first; the last one always works."""
    if not outputs:
        yield partial(operator.function, *args, **kwargs)
        return
    if len(outputs) == 1:
        yield from single_forms(operator, args, kwargs, outputs[0])

    def copied() -> None:
        results = tensors_in((operator.function(*args, **kwargs),))
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result.view(output.shape))  # a formula may have squeezed the result in place

    yield copied


def single_forms(
    operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Iterator[Callable[[], Any]]:
    """The calls of an operator with one output that allocate nothing."""
    packet = operator.function.overloadpacket
    if operator.name == "bmm" and (product := numpy_product(args[0], args[1], output)) is not None:
        yield product
    if operator.name in AXES and (reduction := fast_reduction(operator, output, args[0])) is not None:
        yield reduction
    if operator.name in COPIES:
        yield partial(output.copy_, args[0])
    in_place = in_place_form(operator, args, output)
    if in_place is not None and stands_in(args[0], output):
        yield partial(in_place, *args[1:], **kwargs)
    functions = [getattr(place, operator.name, None) for place in (torch, torch._C._nn)]  # noqa: SLF001 - mse_loss's place
    out = getattr(packet, "out", None)
    if out is not None and torch.Tag.generated not in out.tags:  # a generated one allocates its result, and copies it
        functions.append(out)
    for function in functions:
        if function is not None and fits(operator, partial(function, *args, **kwargs), output):
            yield partial(function, *args, **kwargs, out=output)
    if in_place is not None and len(list(tensors_in(args))) == 1:  # another might lie where the output does

        def copied_before() -> None:
            output.copy_(args[0])
            in_place(*args[1:], **kwargs)

        yield copied_before


def fits(operator: Operator, call: Callable[..., Any], output: Tensor) -> bool:
    """Whether a call writes an output of this shape, tried on another tensor: else torch would resize the buffer.

    So does mse_loss, for one: its mean is a tensor of all terms on the way. A pointwise operator on a tensor of the
    output's own shape needs no trial.
    """
    alike = any(argument.shape == output.shape for argument in operator.arguments())
    if torch.Tag.pointwise in operator.tags and alike:
        return True
    trial = torch.empty_like(output)
    with warnings.catch_warnings(record=True, action="always") as warned:
        try:
            call(out=trial)
        except (TypeError, RuntimeError, NotImplementedError):  # it has no such form
            return False
    return not warned and trial.shape == output.shape


def in_place_form(operator: Operator, args: tuple[Any, ...], output: Tensor) -> Callable[..., Any] | None:
    """The method that does to the output, where the first argument stands in it, what the operator did."""
    pointwise = torch.Tag.pointwise in operator.tags
    if pointwise and args and isinstance(args[0], Tensor) and is_alike(args[0], output):
        method: Callable[..., Any] | None = getattr(output, f"{operator.name}_", None)
        return method
    return None


def stands_in(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors begin at the same place of one storage."""
    return key_of(one) == key_of(other) and one.storage_offset() == other.storage_offset()


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in memory in the same way, be it in different places."""
    return (one.dtype, one.size(), one.stride()) == (other.dtype, other.size(), other.stride())
