"""A recorded program of torch operators, and what can be asked of it. It knows no rule."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Key = int  # identifies a storage while the recording keeps it alive
Place = tuple[torch.UntypedStorage, int]  # a storage to use instead of a recorded one, and the first byte in it
Places = dict[Key, Place]
Layout = tuple[Any, ...]  # how a tensor lies in its storage

ALIGNED = 64
"""Bytes: some kernels' last bits depend on where a tensor begins, and storages begin at a multiple of it."""

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


@dataclass
class Operator:
    """One recorded call of a torch operator; `outputs` is empty where it only writes into its arguments."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    def with_tensors(self, replace: Callable[[Tensor], Tensor], outputs: tuple[Tensor, ...]) -> "Operator":
        """Return the operator on other tensors."""
        args = replaced(self.args, replace)
        return Operator(self.function, args, {name: replaced(v, replace) for name, v in self.kwargs.items()}, outputs)

    @property
    def name(self) -> str:
        return str(self.function.overloadpacket.__name__)

    def arguments(self) -> list[Tensor]:
        """Every tensor that it is called with."""
        return tensors_in((*self.args, *self.kwargs.values()))

    def tensors(self) -> list[Tensor]:
        """Every tensor that it reads or writes."""
        return [*self.outputs, *self.arguments()]

    def written(self) -> list[Tensor]:
        """The arguments that it changes."""
        if not writes(self.function):
            return []
        schema = self.function._schema.arguments  # noqa: SLF001 - torch's only statement of it
        values = {argument.name: value for argument, value in zip(schema, self.args, strict=False)} | self.kwargs
        return tensors_in([values[argument.name] for argument in schema if is_written(argument)])

    def is_pure(self) -> bool:
        """Whether its outputs are all that it does, and depend on its arguments alone."""
        return bool(self.outputs) and not writes(self.function) and torch.Tag.nondeterministic_seeded not in self.tags

    @property
    def tags(self) -> Sequence[torch.Tag]:
        tags: Sequence[torch.Tag] = self.function.tags
        return tags


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):  # not a union: that takes longer, and it is asked very often
            found += tensors_in(value)
    return found


def replaced(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """A value with every tensor in it replaced."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, list | tuple):
        return type(value)([replaced(item, replace) for item in value])
    return value


def key_of(tensor: Tensor) -> Key:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - as below, without a call: it is asked most often


def key_of_storage(storage: torch.UntypedStorage) -> Key:
    return int(storage._cdata)  # noqa: SLF001 - the one identity of a storage, empty ones included


def keys_of(tensors: Iterable[Tensor]) -> set[Key]:
    return {key_of(tensor) for tensor in tensors}


@functools.cache
def writes(function: Any) -> bool:
    """Whether a torch operator changes an argument."""
    return any(map(is_written, function._schema.arguments))  # noqa: SLF001 - torch's only statement of it


def is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def layout(tensor: Tensor) -> Layout:
    return tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def follows(one: Tensor, other: Tensor) -> bool:
    """Whether a tensor begins where another one, of its shape, ends."""
    return (
        one.shape == other.shape
        and one.is_contiguous()
        and other.is_contiguous()
        and key_of(one) == key_of(other)
        and one.storage_offset() + one.numel() == other.storage_offset()
    )


def view_in(storage: torch.UntypedStorage, start: int, like: Tensor) -> Tensor:
    """A tensor of the type, sizes and strides of another, in a storage from an element on."""
    return torch.empty(0, dtype=like.dtype, device=like.device).set_(storage, start, like.size(), like.stride())


@dataclass
class Program:
    """Operators in their order.

    made:   the storages that they make
    pinned: those among them whose place is given: gradients, and what is read after a step
    seen:   those of them that are made to be looked at, and not for the step
    alive:  what must not be freed, so that identities stay unique
    """

    operators: list[Operator]
    made: set[Key]
    pinned: Places
    seen: set[Key] = field(default_factory=set)
    alive: list[Any] = field(default_factory=list)

    def observes(self, operator: Operator) -> bool:
        """Whether the step computes the same without an operator."""
        return bool(operator.outputs) and keys_of(operator.outputs) <= self.seen
