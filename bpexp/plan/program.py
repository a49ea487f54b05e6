"""A recorded program of torch operators: rewritten to be faster, placed in buffers, and made into calls.

Nothing here knows a rule. What a rewrite leaves away or puts in another form is bit for bit the same number, so plans
that keep more or less of what they compute agree bit for bit.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

Key = int  # identifies a storage while the recording keeps it alive
Places = dict[Key, tuple[torch.UntypedStorage, int]]  # by recorded storage the one to use instead, and the first byte

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
COPIES = frozenset({"clone", "_to_copy"})
# They read no number of their argument.
FILLS = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})


@dataclass
class Operator:
    """One recorded call of a torch operator; `outputs` is empty where it only writes into its arguments."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return str(self.function.overloadpacket.__name__)

    def arguments(self) -> Iterator[Tensor]:
        """Every tensor that it is called with."""
        yield from tensors_in((self.args, tuple(self.kwargs.values())))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that it reads or writes."""
        yield from self.outputs
        yield from self.arguments()

    def written(self) -> Iterator[Tensor]:
        """The arguments that it changes."""
        schema = self.function._schema.arguments  # noqa: SLF001 - torch's only statement of it
        values = {argument.name: value for argument, value in zip(schema, self.args, strict=False)} | self.kwargs
        yield from tensors_in([values[argument.name] for argument in schema if is_written(argument)])

    def is_pure(self) -> bool:
        """Whether its outputs are all that it does, and depend on its arguments alone."""
        return bool(self.outputs) and not writes(self.function) and torch.Tag.nondeterministic_seeded not in self.tags

    @property
    def tags(self) -> Sequence[torch.Tag]:
        tags: Sequence[torch.Tag] = self.function.tags
        return tags


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def replaced(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """A value with every tensor in it replaced."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, replace) for item in value)
    return value


def key_of(tensor: Tensor) -> Key:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the one identity of a storage, empty ones included


def keys_of(tensors: Iterable[Tensor]) -> set[Key]:
    return {key_of(tensor) for tensor in tensors}


def writes(function: Any) -> bool:
    """Whether a torch operator changes an argument."""
    return any(map(is_written, function._schema.arguments))  # noqa: SLF001 - torch's only statement of it


def is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def view_in(storage: torch.UntypedStorage, start: int, like: Tensor) -> Tensor:
    """A tensor of the type, sizes and strides of another, in a storage from an element on."""
    return torch.empty(0, dtype=like.dtype, device=like.device).set_(storage, start, like.size(), like.stride())


def hoist_constants(operators: Sequence[Operator], made: set[Key], fixed: Iterable[Key]) -> list[Operator]:
    """Leave away what is the same on every replay: its storage holds it already, and is no longer among `made`.

    fixed: storages that others may write, such as those of gradients
    """
    changing = {key for operator in operators for key in keys_of(operator.written())} | set(fixed)
    constant: set[Key] = set()
    kept = []
    for operator in operators:
        outputs = keys_of(operator.outputs)
        steady = operator.name in FILLS or keys_of(operator.arguments()) <= constant
        if steady and operator.is_pure() and not outputs & changing:
            constant |= outputs
        else:
            kept.append(operator)
    made -= constant
    return kept


def share_results(operators: Sequence[Operator], fixed: Iterable[Key]) -> list[Operator]:
    """Let an operator run once where others do the same with the same tensors.

    So a backward formula may restate what the forward formula computed, at no cost.
    fixed: storages in which their own operator must leave its result
    """
    changing = {key for operator in operators for key in keys_of(operator.written())}
    fixed = set(fixed)
    first: dict[Any, Operator] = {}
    same: dict[Key, Tensor] = {}

    def shared(tensor: Tensor) -> Tensor:
        other = same.get(key_of(tensor))
        return tensor if other is None else view_in(other.untyped_storage(), int(tensor.storage_offset()), tensor)

    kept = []
    for recorded in operators:
        operator = Operator(
            recorded.function,
            replaced(recorded.args, shared),
            {name: replaced(value, shared) for name, value in recorded.kwargs.items()},
            recorded.outputs,
        )
        if operator.is_pure() and not keys_of(operator.tensors()) & changing:
            before = first.setdefault(signature(operator), operator)
            alike = [layout(tensor) for tensor in before.outputs] == [layout(tensor) for tensor in operator.outputs]
            if before is not operator and alike and not keys_of(operator.outputs) & fixed:
                same.update(zip(map(key_of, operator.outputs), before.outputs, strict=True))
                continue
        kept.append(operator)
    return kept


def signature(operator: Operator) -> Any:
    """What two operators have in common that compute the same."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return key_of(value), value.dtype, value.size(), value.stride(), value.storage_offset()
        if isinstance(value, list | tuple):
            return tuple(map(describe, value))
        return repr(value)  # 0.0 and -0.0 are equal, but not the same

    return operator.function, describe(operator.args), tuple((k, describe(v)) for k, v in operator.kwargs.items())


def fuse_casts(operators: Sequence[Operator]) -> list[Operator]:
    """Let a comparison whose only reader casts it write the cast's type itself: no boolean is stored."""
    readers: dict[Key, int] = {}
    for operator in operators:
        for key in keys_of(operator.tensors()):
            readers[key] = readers.get(key, 0) + 1
    fused: list[Operator] = []
    for operator in operators:
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
    return fused


def wrap_numbers(operators: Sequence[Operator]) -> list[Operator]:
    """Make a number beside a tensor a tensor, once: torch itself would on every call, and that costs as much again."""
    return [with_wrapped_number(operator) for operator in operators]


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
    elif not isinstance(function._schema.arguments[1].type, torch.TensorType):  # noqa: SLF001 - as above
        return operator
    return Operator(function, (x, wrapped), operator.kwargs, operator.outputs)


@dataclass
class Buffers:
    """Where each recorded storage lives while the program replays; a storage that is not here lives where it was."""

    places: Places = field(default_factory=dict)

    def tensor(self, recorded: Tensor) -> Tensor:
        """The recorded tensor's twin in the buffers: same shape, strides and type."""
        place = self.places.get(key_of(recorded))
        if place is None:
            return recorded.detach() if recorded.requires_grad else recorded
        storage, offset = place
        return view_in(storage, int(recorded.storage_offset()) + offset // recorded.itemsize, recorded)


def assign(operators: Sequence[Operator], made: set[Key], pinned: Mapping[Key, Any]) -> Buffers:
    """Give every recorded storage a buffer: its own where it is pinned, else one whose last reader has run.

    A pointwise operator may write over an argument that it is the last to read, if both lie in memory alike.
    """
    last = {key_of(tensor): index for index, operator in enumerate(operators) for tensor in operator.tensors()}
    buffers = Buffers(dict(pinned))
    free: dict[tuple[int, torch.device], list[torch.UntypedStorage]] = {}
    for index, operator in enumerate(operators):
        given: set[Key] = set()
        dying = {k for k in map(key_of, operator.tensors()) if k in made and k not in pinned and last[k] == index}
        for tensor in operator.tensors():
            key = key_of(tensor)
            if key in buffers.places or key not in made:
                continue
            size = (tensor.untyped_storage().nbytes(), tensor.device)
            donor = donor_of(operator, tensor, dying - given)
            if donor is not None:
                given.add(donor)
                buffers.places[key] = buffers.places[donor]
            elif free.get(size):
                buffers.places[key] = (free[size].pop(), 0)
            else:
                buffers.places[key] = (torch.UntypedStorage(size[0], device=tensor.device), 0)
        for key in dying - given:
            storage = buffers.places[key][0]
            free.setdefault((storage.nbytes(), storage.device), []).append(storage)
    return buffers


def donor_of(operator: Operator, output: Tensor, dying: set[Key]) -> Key | None:
    """A dying argument whose memory the output of a pointwise operator may take over."""
    if torch.Tag.pointwise not in operator.tags or len(operator.outputs) != 1:
        return None
    alike: dict[Key, bool] = {}
    for argument in operator.arguments():
        key = key_of(argument)
        alike[key] = alike.get(key, True) and layout(argument) == layout(output)
    return next((key for key, same in alike.items() if same and key in dying), None)


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
    if operator.name in COPIES:
        yield partial(output.copy_, args[0])
    in_place = in_place_form(operator, args, output)
    if in_place is not None and key_of(args[0]) == key_of(output):
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
    if pointwise and args and isinstance(args[0], Tensor) and layout(args[0]) == layout(output):
        method: Callable[..., Any] | None = getattr(output, f"{operator.name}_", None)
        return method
    return None
