"""The suite's own backward pass: a model is run once and recorded, then replayed without autograd.

Two levels are recorded. Rule by rule, what was computed from what: from that the backward pass is scheduled, output to
input. And under each formula, the torch operators that it called: these make the program. Views are resolved once, and
each operator writes into a fixed buffer, one that is no longer read where there is one. So formulas stay pure, and a
step is a flat list of calls that allocates nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bpexp.rules.table import RECORDERS, Rule, autocast, named

Key = int  # identifies a storage while the recording keeps it alive


class PlanError(RuntimeError):
    """The model did something that the plan cannot replay."""


@dataclass
class Operator:
    """One recorded call of a torch operator; `outputs` is empty where it only writes into its arguments."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that it reads or writes."""
        yield from self.outputs
        yield from tensors_in((self.args, tuple(self.kwargs.values())))


@dataclass
class Call:
    """One recorded call of a rule."""

    rule: Rule
    args: tuple[Any, ...]
    y: Tensor


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def key_of(tensor: Tensor) -> Key:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the one identity of a storage, empty ones included


@dataclass
class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Receives rules' calls, and the torch operators under each of them."""

    known: dict[int, Tensor]
    calls: list[Call] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    made: set[Key] = field(default_factory=set)
    alive: list[Any] = field(default_factory=list)  # what must not be freed, so that identities stay unique
    streams: dict[int, tuple[torch.Generator, Tensor]] = field(default_factory=dict)
    foreign: dict[int, str] = field(default_factory=dict)
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.versions = {identity: tensor._version for identity, tensor in self.known.items()}  # noqa: SLF001

    def record(self, rule: Rule, args: tuple[Any, ...]) -> Tensor:
        if rule.autocast is not None and autocast(rule.autocast, args) != args:
            raise PlanError(f"{rule.name}: a plan does not record under autocast; leave it while recording")
        for tensor in tensors_in(args):
            self.check(rule, tensor)
        with self.formula():
            y: Tensor = rule.forward(*args)
        if any(y is argument for argument in args):
            raise PlanError(f"{rule.name}: returned its own argument")
        self.calls.append(Call(rule, args, y))
        self.known[id(y)] = y
        self.versions[id(y)] = y._version  # noqa: SLF001
        return y

    def check(self, rule: Rule, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if id(tensor) not in self.known:
            how = f" by {self.foreign[id(tensor)]}" if id(tensor) in self.foreign else ""
            raise PlanError(
                f"{rule.name}: an argument of shape {shape} was made outside the rules{how}; its gradient would be "
                "missing. Use bpexp.functional, or pass it as an input of the plan"
            )
        if self.versions[id(tensor)] != tensor._version:  # noqa: SLF001
            raise PlanError(f"{rule.name}: an argument of shape {shape} was changed in place outside the rules")

    @contextmanager
    def formula(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None and id(generator) not in self.streams:
            self.streams[id(generator)] = (generator, generator.get_state())
        result = func(*args, **kwargs)
        self.alive.append((args, result))
        outputs = tuple(tensors_in((result,)))
        if not self.inside:
            self.foreign.update({id(tensor): func.name() for tensor in outputs})
            return result
        seen = {key_of(tensor) for tensor in tensors_in((args, tuple(kwargs.values())))}
        fresh = tuple(tensor for tensor in outputs if key_of(tensor) not in seen)
        self.made.update(key_of(tensor) for tensor in fresh)
        if func.overloadpacket.__name__ in ALLOCATIONS:
            return result
        if fresh or writes(func):
            self.operators.append(Operator(func, args, kwargs, fresh))
        return result


def writes(function: Any) -> bool:
    """Whether a torch operator changes an argument."""
    schema = function._schema  # noqa: SLF001 - torch's only statement of it
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments)


ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass
class Buffers:
    """Where each recorded storage lives while the program replays; a storage that is not here lives where it was."""

    places: dict[Key, tuple[torch.UntypedStorage, int]] = field(default_factory=dict)

    def tensor(self, recorded: Tensor) -> Tensor:
        """The recorded tensor's twin in the buffers: same shape, strides and type."""
        place = self.places.get(key_of(recorded))
        if place is None:
            return recorded.detach() if recorded.requires_grad else recorded
        storage, offset = place
        twin = torch.empty(0, dtype=recorded.dtype, device=recorded.device)
        start = recorded.storage_offset() + offset // recorded.itemsize
        return twin.set_(storage, start, recorded.size(), recorded.stride())

    def substitute(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, list | tuple):
            return type(value)(self.substitute(item) for item in value)
        return value


def assign(
    operators: Sequence[Operator], made: set[Key], pinned: dict[Key, tuple[torch.UntypedStorage, int]]
) -> Buffers:
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
                buffers.places[key] = (torch.UntypedStorage(size[0], device=tensor.device), 0)  # type: ignore[no-untyped-call]
        for key in dying - given:
            storage = buffers.places[key][0]
            free.setdefault((storage.nbytes(), storage.device), []).append(storage)
    return buffers


def donor_of(operator: Operator, output: Tensor, dying: set[Key]) -> Key | None:
    """A dying argument whose memory the output of a pointwise operator may take over."""
    if torch.Tag.pointwise not in operator.function.tags or len(operator.outputs) != 1:
        return None
    alike: dict[Key, bool] = {}
    for argument in tensors_in((operator.args, tuple(operator.kwargs.values()))):
        key = key_of(argument)
        alike[key] = alike.get(key, True) and layout(argument) == layout(output)
    return next((key for key, same in alike.items() if same and key in dying), None)


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def fuse_casts(operators: Sequence[Operator]) -> list[Operator]:
    """Let a comparison whose only reader casts it write the cast's type itself: no boolean is stored."""
    readers: dict[Key, int] = {}
    for operator in operators:
        for key in {key_of(tensor) for tensor in operator.tensors()}:
            readers[key] = readers.get(key, 0) + 1
    fused: list[Operator] = []
    for operator in operators:
        before = fused[-1] if fused else None
        cast = operator.function.overloadpacket is torch.ops.aten._to_copy  # noqa: SLF001
        if (
            cast
            and before
            and operator.args[0] is before.outputs[0]
            and is_comparison(before)
            and readers[key_of(operator.args[0])] == 2
        ):
            fused[-1] = Operator(before.function, before.args, before.kwargs, operator.outputs)
        else:
            fused.append(operator)
    return fused


def is_comparison(operator: Operator) -> bool:
    return operator.function.overloadpacket.__name__ in {"eq", "ne", "lt", "le", "gt", "ge"}


def compile_operator(operator: Operator, buffers: Buffers) -> Callable[[], Any]:
    """The operator on its buffers, run once: torch's function with `out=` where it has that, for it is the fastest."""
    args = buffers.substitute(operator.args)
    kwargs = {name: buffers.substitute(value) for name, value in operator.kwargs.items()}
    if not operator.outputs:
        call: Callable[[], Any] = partial(operator.function, *args, **kwargs)
        call()
        return call
    outputs = tuple(buffers.tensor(tensor) for tensor in operator.outputs)
    packet = operator.function.overloadpacket
    if len(outputs) == 1:
        for function in (getattr(torch, packet.__name__, None), getattr(packet, "out", None)):
            if function is not None:
                call = partial(function, *args, **kwargs, out=outputs[0])
                try:
                    call()
                except (TypeError, RuntimeError, NotImplementedError):  # it has no such form
                    continue
                return call

    def copied() -> None:
        results = tensors_in((operator.function(*args, **kwargs),))
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)

    copied()
    return copied


class Plan:
    """Records `model(*inputs)` once; `step()` then replays forward and backward on what inputs and parameters hold.

    Shapes:  the model returns () or (R,): a loss, or one for each network, whose sum is differentiated
    keep:    keeps every rule's output and gradient readable after a step (`value`, `gradient`); else buffers are reused
    flat:    where all gradients go, one vector; made where it is not given
    Raises:  PlanError: a tensor was made or changed outside the rules, or nothing leads from a parameter to the loss
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        keep: bool = False,
        flat: Tensor | None = None,
    ) -> None:
        self.tape = tape = Tape({id(t): t for t in (*inputs, *parameters)})
        self.parameters = tuple(parameters)
        total = sum(p.numel() for p in parameters)
        self.flat_grad = (
            torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device) if flat is None else flat
        )
        shares = self.flat_grad.split([p.numel() for p in parameters])  # type: ignore[no-untyped-call]
        self.grads = tuple(share.view(p.shape) for share, p in zip(shares, parameters, strict=True))
        state = torch.get_rng_state()
        with torch.no_grad():
            RECORDERS.append(tape)
            try:
                with tape:
                    self.loss = model(*inputs)
                    if id(self.loss) not in tape.known:
                        raise PlanError("the model's result was made outside the rules")
                    self.gradients = self.backward(tape, self.loss)
                    pinned = self.place_gradients(tape)
            finally:
                RECORDERS.pop()
            kept = [self.loss, *(tape.known.values() if keep else ()), *(self.gradients.values() if keep else ())]
            for tensor in kept:
                key = key_of(tensor)
                if key in tape.made:
                    pinned.setdefault(key, (tensor.untyped_storage(), 0))
            operators = fuse_casts(tape.operators)
            self.buffers = assign(operators, tape.made, pinned)
            self.program = [compile_operator(operator, self.buffers) for operator in operators]
        for generator, before in tape.streams.values():
            generator.set_state(before)
        torch.set_rng_state(state)
        self.loss = self.buffers.tensor(self.loss)

    def backward(self, tape: Tape, loss: Tensor) -> dict[int, Tensor]:
        """Record the backward pass: from the output to the input, gradients of several uses added up."""
        wanted = {id(p) for p in self.parameters}
        for call in tape.calls:
            if any(id(t) in wanted for t in tensors_in(call.args)):
                wanted.add(id(call.y))
        grads = {id(loss): torch.ones_like(loss)}
        for call in reversed(tape.calls):
            if id(call.y) not in grads:
                continue
            values = {"grad": grads[id(call.y)], "y": call.y, **named(call.rule.parameters, call.args)}
            for arguments, formula, needs in call.rule.backward:
                if not any(id(t) in wanted for t in tensors_in([values[a] for a in arguments])):
                    continue
                with tape.formula():
                    result = formula(*[values[need] for need in needs])
                    results = result if len(arguments) > 1 else (result,)
                    targets = [values[argument] for argument in arguments]
                    for tensor, grad in zip(tensors_in(targets), tensors_in(results), strict=True):
                        if id(tensor) in wanted:
                            grads[id(tensor)] = grads[id(tensor)] + grad if id(tensor) in grads else grad
        return grads

    def place_gradients(self, tape: Tape) -> dict[Key, tuple[torch.UntypedStorage, int]]:
        """Let every parameter's gradient be made in its share of the flat vector, or be copied there."""
        places: dict[Key, tuple[torch.UntypedStorage, int]] = {}
        for parameter, share in zip(self.parameters, self.grads, strict=True):
            grad = self.gradients.get(id(parameter))
            if grad is None:
                continue
            key, whole = key_of(grad), grad.numel() * grad.itemsize
            aligned = (share.storage_offset() * share.itemsize) % 64 == 0
            if (
                key in tape.made
                and key not in places
                and grad.is_contiguous()
                and aligned
                and grad.untyped_storage().nbytes() == whole
            ):
                places[key] = (share.untyped_storage(), share.storage_offset() * share.itemsize)
            else:
                with tape.formula():
                    share.copy_(grad)
        return places

    def step(self) -> Tensor:
        """Replay forward and backward; the loss, () or (R,), and `grads` hold until the next step."""
        with torch.no_grad():
            for call in self.program:
                call()
        return self.loss

    def value(self, recorded: Tensor) -> Tensor:
        """What a tensor of the recorded model holds after the step."""
        return self.buffers.tensor(recorded)

    def gradient(self, recorded: Tensor) -> Tensor:
        """The gradient of the summed loss with respect to a tensor of the recorded model, after the step."""
        return self.buffers.tensor(self.gradients[id(recorded)])
