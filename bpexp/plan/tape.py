"""The recording of a model: what was computed from what, rule by rule, and the torch operators under each formula."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bpexp.plan.program import Key, Operator, key_of, keys_of, tensors_in, writes
from bpexp.rules.table import Rule, autocast

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class PlanError(RuntimeError):
    """The model did something that the plan cannot replay."""


@dataclass
class Call:
    """One recorded call of a rule."""

    rule: Rule
    args: tuple[Any, ...]
    y: Tensor
    intermediates: tuple[Tensor, ...]


@dataclass
class Tape(TorchDispatchMode):
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
        super().__init__()  # type: ignore[no-untyped-call]  # it carries no types
        self.versions = {identity: version_of(tensor) for identity, tensor in self.known.items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that compilation may look into this mode: to hide it would take the import of torch._dynamo, 2 s."""
        return False

    def record(self, rule: Rule, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if rule.autocast is not None and any(
            cast is not given for cast, given in zip(autocast(rule.autocast, args), args, strict=True)
        ):
            raise PlanError(f"{rule.name}: a plan does not record under autocast; leave it while recording")
        for tensor in tensors_in(args):
            self.check(rule, tensor)
        with self.formula():
            y, *intermediates = outputs = rule.evaluate(args)
        for output in outputs:
            if any(output is argument for argument in args):
                raise PlanError(f"{rule.name}: returned its own argument")
            self.known[id(output)] = output
            self.versions[id(output)] = version_of(output)
        self.calls.append(Call(rule, args, y, tuple(intermediates)))
        return outputs

    def check(self, rule: Rule, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if id(tensor) not in self.known:
            how = f" by {self.foreign[id(tensor)]}" if id(tensor) in self.foreign else ""
            raise PlanError(
                f"{rule.name}: an argument of shape {shape} was made outside the rules{how}; its gradient would be "
                "missing. Use bpexp.functional, or pass it as an input of the plan"
            )
        if self.versions[id(tensor)] != version_of(tensor):
            raise PlanError(f"{rule.name}: an argument of shape {shape} was changed in place outside the rules")

    def check_foreign(self, func: Any, args: tuple[Any, ...]) -> None:
        """Refuse an operator outside the rules that moves what is recorded into a tensor that is not."""
        known = [id(tensor) in self.known for tensor in tensors_in(args)]
        if writes(func) and any(known) and not known[0]:
            raise PlanError(
                f"{func.name()} outside the rules writes what the model computes into another tensor; a replay would "
                "not. Return it beside the loss, and write it after the step"
            )

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
            self.check_foreign(func, args)
            self.foreign.update({id(tensor): func.name() for tensor in outputs})
            return result
        seen = keys_of(tensors_in((args, tuple(kwargs.values()))))
        fresh = tuple(tensor for tensor in outputs if key_of(tensor) not in seen)
        self.made |= keys_of(fresh)
        if func.overloadpacket.__name__ in ALLOCATIONS:
            return result
        if fresh or writes(func):
            self.operators.append(Operator(func, args, kwargs, fresh))
        return result


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return int(tensor._version)  # noqa: SLF001 - torch's only count of it
