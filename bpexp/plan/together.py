"""Looking at stacks: one operator does what is looked at in layers that lie one behind another.

Nothing of the step changes its place: what training stacks, and what is made of that, is looked at together.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bpexp.plan.join import is_whole, moved
from bpexp.plan.program import COMPARISONS, Key, Operator, Program, follows, key_of, keys_of
from bpexp.plan.reductions import axes_of


def look_together(program: Program) -> None:
    """Put observing operators together that do the same with tensors of a stack."""
    for kind_of in (comparison, reduction):
        Together(program).build(kind_of)


def comparison(operator: Operator) -> Any:
    """What comparisons with a number have in common that may be one; None where an operator is none."""
    if operator.name not in COMPARISONS or isinstance(operator.args[1], Tensor):
        return None
    return operator.function, operator.args[1], operator.args[0].shape, operator.outputs[0].dtype


def reduction(operator: Operator) -> Any:
    """What reductions have in common that may be one; None where an operator is none, or is one over the first axis."""
    axes = axes_of(operator)
    if not axes or axes[0] == 0:
        return None
    return operator.function, repr(operator.args[1:]), repr(operator.kwargs), operator.args[0].shape


class Together:
    """The observing operators of a program, while some are put together."""

    def __init__(self, program: Program) -> None:
        self.program, self.operators = program, dict(enumerate(program.operators))
        self.places: dict[Key, Tensor] = {}  # of what lies in a stack now its share of it

    def build(self, kind_of: Callable[[Operator], Any]) -> None:
        """Rewrite the program: put those of a kind together."""
        groups: dict[Any, list[int]] = {}
        for index, operator in self.operators.items():
            if self.program.observes(operator) and (kind := kind_of(operator)) is not None:
                groups.setdefault(kind, []).append(index)
        for group in groups.values():
            for run in self.runs(group):
                self.join(run)
        move = functools.partial(moved, self.places)
        self.program.operators = [
            self.operators[index].with_tensors(move, tuple(map(move, self.operators[index].outputs)))
            for index in sorted(self.operators)
        ]

    def runs(self, group: Sequence[int]) -> Iterator[list[int]]:
        """Cut operators of a kind into those whose arguments, and results, lie one behind another."""
        ends = {index: (self.operators[index].args[0], self.operators[index].outputs[0]) for index in group}
        ordered = sorted(group, key=lambda index: [(key_of(t), t.storage_offset()) for t in ends[index]])
        run = ordered[:1]
        for index in ordered[1:]:
            (x, output), (next_x, next_output) = ends[run[-1]], ends[index]
            free = self.is_free(output) and self.is_free(next_output)
            if follows(x, next_x) and (free or follows(output, next_output)):
                run.append(index)
            else:
                yield run
                run = [index]
        yield run

    def is_free(self, output: Tensor) -> bool:
        """Whether a result may be put elsewhere."""
        return is_whole(output) and key_of(output) not in self.program.pinned

    def join(self, run: Sequence[int]) -> None:
        """Make a run one operator where the last of it stood, if nobody reads what it makes before."""
        last = max(run)
        outputs = [self.operators[index].outputs[0] for index in run]
        between = [self.operators[index] for index in range(min(run), last) if index in self.operators]
        if len(run) == 1 or any(keys_of(outputs) & keys_of(operator.arguments()) for operator in between):
            return
        x, output = self.operators[run[0]].args[0], outputs[0]
        if self.is_free(output):
            whole = output.new_empty((len(output) * len(run), *output.shape[1:]))
            self.places |= dict(zip(map(key_of, outputs), whole.split(len(output)), strict=True))
            self.program.made.add(key_of(whole))
            self.program.seen.add(key_of(whole))
        else:
            whole = joined(output, len(run))
        one = self.operators[last]
        self.operators[last] = Operator(one.function, (joined(x, len(run)), *one.args[1:]), one.kwargs, (whole,))
        for index in set(run) - {last}:
            del self.operators[index]


def joined(first: Tensor, count: int) -> Tensor:
    """Return tensors that lie one behind another as one, along the first axis."""
    return first.as_strided((len(first) * count, *first.shape[1:]), first.stride())
