"""Joining without a copy: what is put together along the first axis is made in its place there.

So several networks' tensors become one where groups of networks differ in a layer: in its activation, or in whether
they have it.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bpexp.plan.program import ALIGNED, Key, Operator, Program, key_of, keys_of, view_in


def join_paddings(operators: Sequence[Operator]) -> list[Operator]:
    """Let a sum of two tensors, each padded with zeros where the other is, put them one behind the other."""
    makers = {key_of(output): operator for operator in operators for output in operator.outputs}
    readers = count_readers(operators)
    joined: dict[int, Operator] = {}
    dropped: set[int] = set()
    for operator in operators:
        pads = [makers.get(key_of(tensor)) for tensor in operator.arguments()] if operator.name == "add" else []
        parts = parts_of(pads[0], pads[1], readers) if len(pads) == 2 and not operator.kwargs else None
        if parts is not None:
            joined[id(operator)] = Operator(torch.ops.aten.cat.default, (parts, 0), {}, operator.outputs)
            dropped |= {id(pad) for pad in pads}
    return [joined.get(id(operator), operator) for operator in operators if id(operator) not in dropped]


def parts_of(one: Operator | None, other: Operator | None, readers: Mapping[Key, int]) -> list[Tensor] | None:
    """The tensors that two paddings pad, in their order along the first axis, if together they fill it."""
    if one is None or other is None:
        return None
    pads = [one, other]
    if any(pad.name != "constant_pad_nd" or pad.args[2:] not in ((), (0,)) for pad in pads):
        return None
    if any(any(pad.args[1][:-2]) or readers[key_of(pad.outputs[0])] != 1 for pad in pads):
        return None
    first, last = sorted(pads, key=lambda pad: int(pad.args[1][-2]))
    start, end = list(first.args[1][-2:]), list(last.args[1][-2:])
    parts = [first.args[0], last.args[0]]
    return parts if start == [0, len(parts[1])] and end == [len(parts[0]), 0] else None


def join_in_place(program: Program) -> None:
    """Let what is joined along the first axis be made there, or be copied there where it has to stay where it is."""
    owners = count_owners(program.operators)
    blocked = set(program.pinned)
    places: dict[Key, Tensor] = {}
    result: list[Operator] = []
    for operator in program.operators:
        shares = list(shares_of(operator))
        # What a step needs is not made where there is only what is looked at.
        able = program.made - blocked if not program.observes(operator) else program.seen - blocked
        fit = [
            key_of(part) in able
            and owners.get(key_of(part)) == 1
            and is_whole(part)
            and (is_aligned(share) or key_of(part) in program.seen)
            for part, share in shares
        ]
        if not any(fit) or len({key_of(part) for part, _ in shares}) < len(shares):
            result.append(operator)
            continue
        for (part, share), one in zip(shares, fit, strict=True):
            if one:
                places[key_of(part)] = share
                blocked.add(key_of(part))
            else:
                result.append(Operator(torch.ops.aten.clone.default, (part,), {}, (share,)))
    move = functools.partial(moved, places)
    program.operators = [one.with_tensors(move, tuple(map(move, one.outputs))) for one in result]


def shares_of(operator: Operator) -> Iterator[tuple[Tensor, Tensor]]:
    """What an operator joins along the first axis, each with its share of the result."""
    (whole,) = operator.outputs if operator.name == "cat" and len(operator.outputs) == 1 else (None,)
    along_first = len(operator.args) == 1 or operator.args[1] == 0
    if whole is None or not along_first or not whole.is_contiguous() or whole.dim() == 0:
        return
    start = 0
    for part in operator.args[0]:
        yield part, whole.flatten()[start : start + part.numel()].view(part.shape)
        start += part.numel()


def moved(places: Mapping[Key, Tensor], tensor: Tensor) -> Tensor:
    """The tensor where it is now; what it is joined to may be joined to others in turn."""
    share = places.get(key_of(tensor))
    if share is None:
        return tensor
    start = int(share.storage_offset() + tensor.storage_offset())
    return moved(places, view_in(share.untyped_storage(), start, tensor))


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all that its storage holds."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


def is_aligned(tensor: Tensor) -> bool:
    return tensor.storage_offset() * tensor.itemsize % ALIGNED == 0


def count_readers(operators: Sequence[Operator]) -> dict[Key, int]:
    """How many operators read or change each storage."""
    counts: dict[Key, int] = {}
    for operator in operators:
        for key in keys_of(operator.arguments()):
            counts[key] = counts.get(key, 0) + 1
    return counts


def count_owners(operators: Sequence[Operator]) -> dict[Key, int]:
    """How many operators make or change each storage."""
    counts: dict[Key, int] = {}
    for operator in operators:
        for key in keys_of(operator.outputs) | keys_of(operator.written()):
            counts[key] = counts.get(key, 0) + 1
    return counts
