"""Derivatives of a function at a sample, each computed in more than one way: what `bpexp.check` compares.

Everything here takes (function, trial) and calls the function on the trial's arguments. Random incoming gradients,
projections and directions come from the trial's own generator, drawn in the same order whichever way is taken, so that
two results are of the same numbers. A result is keyed by the argument that it is about and by what it is.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Results = dict[tuple[str, str], Tensor | None]
Layout = Callable[[Tensor], Tensor]

GRADIENT = "gradient"


class Trial:
    """One call on fresh copies of a sample's arguments, those that are differentiated being leaves.

    places: by name, where the arguments to differentiate stand
    step:   how far finite differences go to either side
    """

    def __init__(self, args: Sequence[Any], places: dict[str, int], step: float) -> None:
        self.args = [copied(value) if isinstance(value, Tensor) else value for value in args]
        self.places = places
        self.step = step
        self.leaves: dict[str, Tensor] = {name: self.args[place].requires_grad_() for name, place in places.items()}
        self.generator = torch.Generator().manual_seed(1)
        self.watched: list[tuple[str, str, Tensor, Tensor]] = []  # argument, what it is, the tensor, and a copy of it

    def call(self, function: Any, points: Sequence[Tensor] = ()) -> list[Tensor]:
        """The outputs, at other points in place of the leaves if they are given."""
        args = list(self.args)
        for place, point in zip(self.places.values(), points, strict=False):
            args[place] = point
        result = function(*args)
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        for output in outputs:
            if not isinstance(output, Tensor):
                raise TypeError(f"a result is a {type(output).__name__}, not a tensor")
        return outputs

    def smooth(self, function: Any, points: Sequence[Tensor] = ()) -> list[Tensor]:
        """The outputs that can be differentiated."""
        return [output for output in self.call(function, points) if differentiable(output)]

    def points(self) -> list[Tensor]:
        return [leaf.detach() for leaf in self.leaves.values()]

    def normal(self, like: Iterable[Tensor]) -> list[Tensor]:
        return [
            torch.randn(
                tensor.shape, generator=self.generator, dtype=torch.complex128 if tensor.is_complex() else torch.float64
            ).to(tensor.device, tensor.dtype)
            for tensor in like
        ]

    def incoming(self, outputs: Sequence[Tensor], layout: Layout = torch.clone) -> list[Tensor]:
        """A random gradient for each output; from here on neither may change."""
        grads = [layout(grad) for grad in self.normal(outputs)]
        self.watched += [("value", "the forward's result", t, t.detach().clone()) for t in outputs]
        self.watched += [(", ".join(self.leaves), "the incoming gradient", t, t.clone()) for t in grads]
        return grads

    def directions(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A random tangent for each argument alone, then for all of them together."""
        tangents = dict(zip(self.leaves, self.normal(self.leaves.values()), strict=True))
        for name, tangent in tangents.items():
            yield name, {name: tangent}
        if len(tangents) > 1:
            yield ", ".join(tangents), tangents


def differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def copied(tensor: Tensor) -> Tensor:
    """A copy with the same strides, even where they let elements share memory; in double precision if not integer."""
    source = tensor.detach()
    if differentiable(source):
        source = source.to(torch.complex128 if source.is_complex() else torch.float64)
    storage = source.untyped_storage().clone()
    return source.new_empty(0).set_(storage, source.storage_offset(), source.size(), source.stride())


def values(function: Any, trial: Trial) -> Results:
    outputs = [output.detach() for output in trial.call(function)]
    return {("value" if len(outputs) == 1 else f"value[{k}]", "value"): output for k, output in enumerate(outputs)}


def pull_back(
    outputs: Sequence[Tensor], leaves: dict[str, Tensor], incoming: Sequence[Tensor], create_graph: bool = False
) -> dict[str, Tensor | None]:
    """The gradients of the leaves, None where autograd finds none."""
    pairs = [(output, grad) for output, grad in zip(outputs, incoming, strict=True) if output.requires_grad]
    if not pairs:
        return dict.fromkeys(leaves)
    roots, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(roots, list(leaves.values()), grads, create_graph=create_graph, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def gradients(function: Any, trial: Trial, layout: Layout = torch.clone) -> Results:
    outputs = trial.smooth(function)
    grads = pull_back(outputs, trial.leaves, trial.incoming(outputs, layout))
    return {(name, GRADIENT): grad for name, grad in grads.items()}


def gradients_by_differences(function: Any, trial: Trial) -> Results:
    weights = trial.normal(trial.smooth(function, trial.points()))
    rows = jacobians(lambda moved: trial.smooth(function, moved), trial.points(), trial.step)
    return {(name, GRADIENT): pulled(row, weights) for name, row in zip(trial.leaves, rows, strict=True)}


def returned(function: Any, trial: Trial) -> Any:
    """What the backward of a Function itself returns, before autograd casts it and sums it where it was broadcast."""
    outputs = trial.call(function)
    node = next((output.grad_fn for output in outputs if output.requires_grad), None)
    real = iter(trial.incoming([output for output in outputs if differentiable(output)]))
    incoming = [next(real) if differentiable(output) else torch.zeros_like(output) for output in outputs]
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return None
    with torch.no_grad():
        return node.apply(*incoming)


def second_keys(trial: Trial, count: int) -> list[str]:
    """What a gradient is differentiated by: the arguments, and the incoming gradient of each output."""
    numbers = [""] if count == 1 else [f" {k}" for k in range(count)]
    return [f"derivative of its gradient by {what}" for what in (*trial.leaves, *[f"grad{n}" for n in numbers])]


def second_gradients(function: Any, trial: Trial) -> Results:
    """The gradients of a random projection of each argument's gradient."""
    outputs = trial.smooth(function)
    incoming = [grad.requires_grad_() for grad in trial.incoming(outputs)]
    projections = trial.normal(trial.leaves.values())
    grads = pull_back(outputs, trial.leaves, incoming, create_graph=True)
    points = dict(zip(second_keys(trial, len(incoming)), [*trial.leaves.values(), *incoming], strict=True))
    found: Results = {}
    for (name, grad), projection in zip(grads.items(), projections, strict=True):
        second: Sequence[Tensor | None] = [None] * len(points)
        if grad is not None and grad.requires_grad:
            second = torch.autograd.grad(grad, list(points.values()), projection, retain_graph=True, allow_unused=True)
        found.update({(name, key): value for key, value in zip(points, second, strict=True)})
    return found


def second_gradients_by_differences(function: Any, trial: Trial) -> Results:
    incoming = trial.incoming(trial.smooth(function))
    projections = trial.normal(trial.leaves.values())
    points = [*trial.points(), *incoming]

    def evaluate(moved: list[Tensor]) -> list[Tensor]:
        leaves = {name: point.requires_grad_() for name, point in zip(trial.leaves, moved, strict=False)}
        grads = pull_back(trial.smooth(function, list(leaves.values())), leaves, moved[len(leaves) :])
        pairs = zip(leaves.values(), grads.values(), strict=True)
        return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in pairs]

    rows = jacobians(evaluate, points, trial.step)
    return {
        (name, key): pulled(row[k : k + 1], projections[k : k + 1])
        for k, name in enumerate(trial.leaves)
        for key, row in zip(second_keys(trial, len(incoming)), rows, strict=True)
    }


def tangents(function: Any, trial: Trial) -> Results:
    """Forward mode."""
    found: Results = {}
    for names, moves in trial.directions():
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(point, moves[name]) if name in moves else point
                for name, point in zip(trial.leaves, trial.points(), strict=True)
            ]
            for k, output in enumerate(trial.smooth(function, duals)):
                tangent = forward_ad.unpack_dual(output).tangent
                found[names, f"tangent of result {k}"] = tangent
    return found


def tangents_by_reverse(function: Any, trial: Trial) -> Results:
    """The same from reverse mode: a gradient is linear in the incoming one, and its slope is the tangent map."""
    outputs = trial.smooth(function)
    incoming = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    grads = pull_back(outputs, trial.leaves, incoming, create_graph=True)
    found: Results = {}
    for names, moves in trial.directions():
        roots = [(grad, moves[name]) for name, grad in grads.items() if grad is not None and name in moves]
        heads, weights = zip(*roots, strict=True)
        slopes = torch.autograd.grad(heads, incoming, weights, retain_graph=True, allow_unused=True)
        found.update({(names, f"tangent of result {k}"): slope for k, slope in enumerate(slopes)})
    return found


def tangents_by_differences(function: Any, trial: Trial) -> Results:
    rows = jacobians(lambda moved: trial.smooth(function, moved), trial.points(), trial.step)
    by_name = dict(zip(trial.leaves, rows, strict=True))
    found: Results = {}
    for names, moves in trial.directions():
        for k in range(len(rows[0])):
            parts = [torch.tensordot(move, by_name[name][k], move.dim()) for name, move in moves.items()]
            found[names, f"tangent of result {k}"] = torch.stack(parts).sum(0)
    return found


def jacobians(
    evaluate: Callable[[list[Tensor]], list[Tensor]], points: list[Tensor], step: float
) -> list[list[Tensor]]:
    """For each point and each result of `evaluate`, the Jacobian by central differences.

    Shapes: (*shape of the point, *shape of the result)
    """
    rows = [[result.new_zeros(point.shape + result.shape) for result in evaluate(points)] for point in points]
    for j, point in enumerate(points):
        for index in itertools.product(*map(range, point.shape)):
            bump = torch.zeros_like(point)
            bump[index] = step
            upper, lower = point + bump, point - bump
            width = (upper - lower)[index]  # as rounded: at a large element it is not 2 * step
            above, below = (evaluate([*points[:j], side, *points[j + 1 :]]) for side in (upper, lower))
            for jacobian, end, start in zip(rows[j], above, below, strict=True):
                jacobian[index] = (end - start).detach() / width
    return rows


def pulled(row: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of a point from its Jacobians and the gradients of the results."""
    pairs = zip(row, grads, strict=True)
    return torch.stack([torch.tensordot(jacobian, grad, grad.dim()) for jacobian, grad in pairs]).sum(0)
