"""The passes over a recorded program: each can be left out, and leaves every number bit for bit as it was."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpexp.plan.buffers import write_into_shares
from bpexp.plan.join import join_in_place, join_paddings
from bpexp.plan.program import COMPARISONS, Key, Operator, Program, key_of, key_of_storage, keys_of, layout, view_in
from bpexp.plan.stack import stack

# They read no number of their argument.
FILLS = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})


def hoist_constants(program: Program) -> None:
    """Leave away what is the same on every replay: its storage holds it already, and is no longer among `made`."""
    changing = {key for operator in program.operators for key in keys_of(operator.written())}
    # Where gradients are put others write as well; what is to be read is pinned to where it is.
    changing |= {key for key, (storage, _) in program.pinned.items() if key_of_storage(storage) != key}
    constant: set[Key] = set()
    kept = []
    for operator in program.operators:
        outputs = keys_of(operator.outputs)
        steady = operator.name in FILLS or keys_of(operator.arguments()) <= constant
        if steady and operator.is_pure() and not outputs & changing:
            constant |= outputs
        else:
            kept.append(operator)
    program.made -= constant
    program.operators = kept


def share_results(program: Program) -> None:
    """Let an operator run once where others do the same with the same tensors.

    So a backward formula may restate what the forward formula computed, at no cost. What is pinned is left where it is.
    """
    changing = {key for operator in program.operators for key in keys_of(operator.written())}
    first: dict[Any, Operator] = {}
    same: dict[Key, Tensor] = {}

    def shared(tensor: Tensor) -> Tensor:
        other = same.get(key_of(tensor))
        return tensor if other is None else view_in(other.untyped_storage(), int(tensor.storage_offset()), tensor)

    kept = []
    for recorded in program.operators:
        operator = recorded.with_tensors(shared, recorded.outputs)
        if operator.is_pure() and not keys_of(operator.tensors()) & changing:
            before = first.setdefault(signature(operator), operator)
            alike = [layout(tensor) for tensor in before.outputs] == [layout(tensor) for tensor in operator.outputs]
            if before is not operator and alike and not keys_of(operator.outputs) & set(program.pinned):
                same.update(zip(map(key_of, operator.outputs), before.outputs, strict=True))
                continue
        kept.append(operator)
    program.operators = kept


def signature(operator: Operator) -> Any:
    """What two operators have in common that compute the same."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return key_of(value), value.dtype, value.size(), value.stride(), value.storage_offset()
        if isinstance(value, list | tuple):
            return tuple(map(describe, value))
        return repr(value)  # 0.0 and -0.0 are equal, but not the same

    return operator.function, describe(operator.args), tuple((k, describe(v)) for k, v in operator.kwargs.items())


def fuse_casts(program: Program) -> None:
    """Let a comparison whose only reader casts it write the cast's type itself: no boolean is stored."""
    readers: dict[Key, int] = {}
    for operator in program.operators:
        for key in keys_of(operator.tensors()):
            readers[key] = readers.get(key, 0) + 1
    fused: list[Operator] = []
    for operator in program.operators:
        before = fused[-1] if fused else None
        if (
            operator.name == "_to_copy"
            and before
            and operator.args[0] is before.outputs[0]
            and before.name in COMPARISONS
            and readers[key_of(operator.args[0])] == 2
        ):
            fused[-1] = Operator(before.function, before.args, before.kwargs, operator.outputs)
        else:
            fused.append(operator)
    program.operators = fused


def wrap_numbers(program: Program) -> None:
    """Make a number beside a tensor a tensor, once: torch itself would on every call, and that costs as much again."""
    program.operators = [with_wrapped_number(operator) for operator in program.operators]


def with_wrapped_number(operator: Operator) -> Operator:
    x, number = operator.args if len(operator.args) == 2 else (None, None)
    if (
        not isinstance(x, Tensor)
        or x.dtype not in (torch.float32, torch.float64)
        or not isinstance(number, int | float)
    ):
        return operator
    wrapped = torch.tensor(number, dtype=x.dtype)
    if operator.name == "rsub" and not operator.kwargs:  # it has no form with `out=`
        return Operator(torch.ops.aten.sub.Tensor, (wrapped, x), {}, operator.outputs)
    function = operator.function
    if operator.name in COMPARISONS:
        function = function.overloadpacket.Tensor
    elif not isinstance(function._schema.arguments[1].type, torch.TensorType):  # noqa: SLF001 - its only statement
        return operator
    return Operator(function, (x, wrapped), operator.kwargs, operator.outputs)


def join_parts(program: Program) -> None:
    """Let what is joined along the first axis be made there; two paddings that are added up are joined too."""
    program.operators = join_paddings(program.operators)
    join_in_place(program)


def look_early(program: Program) -> None:
    """Move what is looked at right behind what makes it: it is in the caches there, and need not be kept any longer."""
    last: dict[Key, int] = {}  # by storage the operator, in the new order's own numbers, that wrote it last
    followers: dict[int, list[Operator]] = {}
    numbers: dict[int, int] = {}
    order: list[Operator] = []
    for operator in program.operators:
        if not program.observes(operator):
            numbers[id(operator)] = len(order)
            order.append(operator)
        place = numbers.get(id(operator), max((last.get(key, -1) for key in keys_of(operator.arguments())), default=-1))
        for key in keys_of(operator.outputs) | keys_of(operator.written()):
            last[key] = max(last.get(key, -1), place)  # several may make parts of one storage
        if program.observes(operator):
            followers.setdefault(place, []).append(operator)
    program.operators = followers.get(-1, [])
    for number, operator in enumerate(order):
        program.operators += [operator, *followers.get(number, [])]


class Pass(NamedTuple):
    """What a pass does; `rewrite` is how, where it is a rewrite of the program as such."""

    what: str
    rewrite: Callable[[Program], None] | None = None


PASSES = {
    "place_gradients": Pass("a gradient is made in its place of the flat vector, not copied there"),
    "hoist_constants": Pass("what is the same on every replay is computed once", hoist_constants),
    "share_results": Pass("what is computed twice is computed once", share_results),
    "fuse_casts": Pass("a comparison writes numbers, no booleans that are cast to numbers", fuse_casts),
    "join_parts": Pass("networks that differ in a layer are joined without a copy", join_parts),
    "stack": Pass("the gradients of equal layers are one product and one sum, where the calls cost more", stack),
    "wrap_numbers": Pass("a number beside a tensor is made a tensor once", wrap_numbers),
    "look_early": Pass("what is looked at is reduced right behind where it is made", look_early),
    "reuse_buffers": Pass("what nobody reads any more gives its memory to what comes next"),
    "write_in_place": Pass(
        "a pointwise operator writes over an argument that nobody reads after it", write_into_shares
    ),
}
"""The passes, in the order in which they work."""


def chosen(passes: Collection[str]) -> dict[str, Pass]:
    """Return the passes of these names, in their order.

    Raises:  ValueError: there is no such pass
    """
    unknown = sorted(set(passes) - set(PASSES))
    if unknown:
        raise ValueError(f"passes: unknown {unknown[0]!r}; choose from {', '.join(PASSES)}")
    return {name: one for name, one in PASSES.items() if name in passes}
