"""Stacking: equal operators of many layers as one, on what they work on put one behind another.

So the weight gradients of equal layers are one product, and their bias gradients one sum. Nothing is copied: what the
operators read is made in its place of a stack, and what they make lies in the flat vector of gradients, or is a stack.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bpexp.plan.join import moved
from bpexp.plan.program import (
    ALIGNED,
    COMPARISONS,
    Key,
    Operator,
    Program,
    key_of,
    key_of_storage,
    keys_of,
    layout,
    replaced,
)
from bpexp.plan.together import look_together

STACKED = frozenset({"bmm", "sum", "mul", "sub", "rsub", "addcmul"} | COMPARISONS)
"""They do the same at every place along the first axis, to the last bit."""

LARGEST_STACK = 2**18
"""Bytes: stacks are read after the layers that made them, and have to be in the core's own cache still."""

NOWHERE = (0, -1)


def stack(program: Program) -> None:
    """Put equal operators together whose tensors lie one behind another, or can.

    They run where the first of them did, if all that they read is made by then, or where the last did, if nobody reads
    what they make before. Of many as many are put together as LARGEST_STACK allows.
    """
    Stacks(program).build()
    look_together(program)


class Stacks:
    """The stacks of a program, while they are built."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operators = {i: one for i, one in enumerate(program.operators) if not program.observes(one)}
        self.observers = [one for one in program.operators if program.observes(one)]  # they come last
        self.changing = {key for operator in program.operators for key in keys_of(operator.written())}
        self.made = {key: index for index, one in self.operators.items() for key in keys_of(one.outputs)}
        self.read: dict[Key, set[int]] = {}
        for index, operator in self.operators.items():
            for key in keys_of(operator.arguments()):
                self.read.setdefault(key, set()).add(index)
        self.places: dict[Key, Tensor] = {}  # of what lies in a stack its share of it

    def build(self) -> None:
        """Rewrite the program."""
        groups: dict[Any, list[int]] = {}
        for index, operator in self.operators.items():
            if self.can_stack(operator):
                groups.setdefault(kind_of(operator), []).append(index)
        # Gradients first, whose order is given; and the longest, of which others are a part.
        for group in sorted(groups.values(), key=lambda group: (self.has_place(group), len(group)), reverse=True):
            for run in self.runs(group):
                self.join(run)
        operators = [self.operators[index] for index in sorted(self.operators)]
        move = functools.partial(moved, self.places)
        self.program.operators = [
            operator.with_tensors(move, tuple(map(move, operator.outputs)))
            for operator in (*operators, *self.observers)
        ]

    def can_stack(self, operator: Operator) -> bool:
        if operator.name not in STACKED or not operator.is_pure() or len(operator.outputs) != 1:
            return False
        tensors = slots_of(operator)
        if torch.Tag.pointwise in operator.tags and any(tensor.shape != tensors[-1].shape for tensor in tensors):
            return False
        if operator.name == "sum":
            dims = operator.args[1] if len(operator.args) > 1 else None
            if not dims or any(dim in (0, -operator.args[0].dim()) for dim in dims):
                return False
        return all(has_whole_rows(t) and key_of(t) in self.program.made - self.changing for t in tensors)

    def runs(self, group: Sequence[int]) -> Iterator[list[int]]:
        """Cut equal operators, in the order of what is placed already, into those that can be one."""
        slots = {index: slots_of(self.operators[index]) for index in group}
        longest = LARGEST_STACK // max(tensor.untyped_storage().nbytes() for tensor in slots[group[0]])
        ordered = sorted(group, key=lambda index: ([self.place(tensor) for tensor in reversed(slots[index])], index))
        run = [ordered[0]]
        for index in ordered[1:]:
            seen = {key_of(tensor) for member in run for tensor in slots[member]}
            if len(run) < longest and self.follows(slots[run[-1]], slots[index], seen):
                run.append(index)
            else:
                yield run
                run = [index]
        yield run

    def has_place(self, group: Sequence[int]) -> bool:
        return all(key_of(self.operators[index].outputs[0]) in self.program.pinned for index in group)

    def place(self, tensor: Tensor) -> tuple[int, int]:
        """The storage in which a tensor's place is given, and the first byte there."""
        if key_of(tensor) in self.places:
            share = self.places[key_of(tensor)]
            return key_of(share), int(share.storage_offset()) * share.itemsize
        storage, start = self.program.pinned.get(key_of(tensor), (None, 0))
        return NOWHERE if storage is None else (key_of_storage(storage), start)

    def follows(self, before: Sequence[Tensor], tensors: Sequence[Tensor], seen: set[Key]) -> bool:
        """Whether an operator's tensors lie behind those of another, each, or have no place yet."""
        for previous, tensor in zip(before, tensors, strict=True):
            place, (storage, start) = self.place(tensor), self.place(previous)
            if place == (storage, start) == NOWHERE:
                if key_of(tensor) in seen:
                    return False
            elif place != (storage, start + tensor.untyped_storage().nbytes()):
                return False
        return True

    def join(self, run: Sequence[int]) -> None:
        """Make a run one operator, where it can stand in the place of all."""
        members = [self.operators[index] for index in run]
        inputs, outputs = (
            keys_of(t for one in members for t in slots_of(one)[part]) for part in (slice(-1), slice(-1, None))
        )
        readers = set().union(*[self.read.get(key, set()) for key in outputs])
        if len(run) == 1:
            return
        if all(self.made.get(key, -1) < min(run) for key in inputs):
            at = min(run)
        elif all(reader > max(run) for reader in readers):
            at = max(run)
        else:
            return
        stacked = [self.stacked(tensors) for tensors in zip(*map(slots_of, members), strict=True)]
        arguments = iter(stacked)
        joined = members[0].with_tensors(lambda t: next(arguments) if t.dim() else t, (stacked[-1],))
        for index in run:
            del self.operators[index]
        self.operators[at] = joined
        self.made.update(dict.fromkeys(outputs, at))
        for key in inputs:
            self.read[key] = self.read[key] - set(run) | {at}

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors that follow one another as one; those that have no place get one."""
        first, size = tensors[0], tensors[0].numel()
        if self.place(first) == NOWHERE:
            shares = first.new_empty(size * len(tensors)).split(size)
            self.places.update({key_of(tensor): share for tensor, share in zip(tensors, shares, strict=True)})
            self.program.made.add(key_of(shares[0]))
        share = self.places.get(key_of(first))
        storage = self.program.pinned[key_of(first)][0] if share is None else share.untyped_storage()
        start, rows = self.place(first)[1] // first.itemsize, sum(map(len, tensors))
        stride = (size // len(first), *first.stride()[1:])
        return first.new_empty(0).set_(storage, start, (rows, *first.shape[1:]), stride)


def slots_of(operator: Operator) -> list[Tensor]:
    """What a member of a stack brings along: its arguments but for numbers, and its result."""
    return [*(tensor for tensor in operator.arguments() if tensor.dim()), *operator.outputs]


def kind_of(operator: Operator) -> Any:
    """What operators have in common of which stacks can be made."""
    slots = [key_of(tensor) for tensor in slots_of(operator)]

    def describe(tensor: Tensor) -> Any:
        return (slots.index(key_of(tensor)), *layout(tensor)) if tensor.dim() else key_of(tensor)

    kwargs = {name: replaced(value, describe) for name, value in operator.kwargs.items()}
    return operator.function, repr(replaced(operator.args, describe)), repr(kwargs), layout(operator.outputs[0])


def has_whole_rows(tensor: Tensor) -> bool:
    """Whether a tensor is all that its storage holds, one place along the first axis after another.

    Another behind it has to begin where a storage could.
    """
    size = tensor.untyped_storage().nbytes()
    if tensor.dim() == 0 or size % ALIGNED or size != tensor.numel() * tensor.itemsize or tensor.storage_offset():
        return False
    return size > 0 and (len(tensor) == 1 or tensor.stride(0) * len(tensor) == tensor.numel())
