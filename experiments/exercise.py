"""An exercise: write the backward of a layer, y = tanh(z) with z = x weight^T + bias.

Open experiments/exercise.py and write the four functions that stand first in it; then run

  python -m experiments.exercise

It tells which argument's gradient is wrong, on which sample, and by how much: against torch autograd and against finite
differences. It ends with code 1 until all three are right, and with 0 then. Step 3 of the walkthrough shows each of
them in numbers: python -m experiments.walkthrough
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import entry

if TYPE_CHECKING:
    from torch import Tensor

    from bpexp.check import Mismatch
    from bpexp.rules import Sample

# What you need: a @ b multiplies matrices, a * b entries, a.T transposes, a.sum(0) sums over the rows, a ** 2 squares.
# n samples, i inputs, o outputs. Every gradient has the shape of what it belongs to.


def grad_z(grad: Tensor, y: Tensor) -> Tensor:
    """Return dL/dz, (n, o), from grad = dL/dy, (n, o), and y = tanh(z), (n, o)."""
    return grad  # as if there were no tanh: its slope is missing


def grad_x(grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return dL/dx, (n, i). Start from grad_z(grad, y)."""
    return 0 * x


def grad_weight(grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return dL/dweight, (o, i)."""
    return 0 * weight


def grad_bias(grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return dL/dbias, (o,)."""
    return 0 * bias


# That is all there is to write. What follows checks it.

FILE = "experiments/exercise.py"
ARGUMENTS = ("x", "weight", "bias")
SHAPES = {"one number": (1, 1, 1), "one sample": (1, 3, 2), "batch": (4, 3, 2), "square": (3, 3, 3)}
"""The samples: n, i, o. Only where they differ does a transpose show in the shape; only if n > 1 does a sum matter."""

HINTS = {
    "x": "x[n,i] acts through every output of its sample: add up dL/dz[n,o] weight[o,i] over the outputs o.",
    "weight": "weight[o,i] acts in every sample: add up dL/dz[n,o] x[n,i] over the samples n.",
    "bias": "bias[o] acts in every sample, with slope 1: add up dL/dz[n,o] over the samples n.",
}
FACTORS = "a factor is transposed, or the two should change places: write down the shape of each"
NO_TANH = "the slope of tanh is missing (grad_z): it is 1 - tanh(z)^2"
REPAIRS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "": lambda g, n: g,
    "its sign is wrong": lambda g, n: -g,
    "it is transposed": lambda g, n: g.mT if g.dim() == 2 else g,
    "it is not summed over the samples": lambda g, n: g.sum(0),
    "it is a mean over the samples, where a sum is due": lambda g, n: g * n,
}
"""What may have gone wrong, and what undoes it for n samples."""


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x @ weight.T + bias).tanh()


def formulas() -> dict[str, Callable[..., Tensor]]:
    return {"x": grad_x, "weight": grad_weight, "bias": grad_bias}


def samples(seed: int) -> list[Sample]:
    """Return the calls that are checked, drawn from N(0, 1)."""
    import torch

    from bpexp.rules import Sample
    from bpexp.streams import generator

    stream = generator(seed, "data")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    return [Sample(name, (normal(n, i), normal(o, i), normal(o))) for name, (n, i, o) in SHAPES.items()]


def layer(place: int, args: Sequence[Tensor]) -> Any:
    """Return the layer as a function of one of its arguments, with your backward: a torch.autograd.Function."""
    import torch

    class LinearTanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            values = [*args[:place], tensor, *args[place + 1 :]]
            y = forward(*values)
            ctx.save_for_backward(y, *values)
            return y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return formulas()[ARGUMENTS[place]](grad, *ctx.saved_tensors)

    return LinearTanh


def mistakes(calls: Sequence[Sample]) -> list[Mismatch]:
    """Return what is wrong: for each sample the arguments that are, by the first oracle that disagrees.

    Each argument is differentiated with the others frozen, so that a formula that raises hides no other's mistake.
    """
    import torch.nn.functional as F

    from bpexp.check import check_function
    from bpexp.rules import Sample

    found = []
    for place, argument in enumerate(ARGUMENTS):
        for call in calls:

            def truth(tensor: Tensor, place: int = place, args: Sequence[Tensor] = call.args) -> Tensor:
                return F.linear(*args[:place], tensor, *args[place + 1 :]).tanh()

            one = Sample(call.name, (call.args[place],))
            wrong = check_function(layer(place, call.args), [one], truth, second_order=False)
            found += [replace(miss, argument=miss.argument.replace("tensor", argument)) for miss in wrong]
    return found


def diagnose(argument: str, calls: Sequence[Sample]) -> str:
    """Return what explains a wrong gradient on every sample; empty where nothing in the list does."""
    import torch

    place = ARGUMENTS.index(argument)
    pairs: list[tuple[Tensor, dict[str, Tensor]]] = []
    for call in calls:
        leaves = [value.clone().requires_grad_() for value in call.args]
        z = leaves[0] @ leaves[1].T + leaves[2]
        grad = torch.linspace(1, 2, z.numel(), dtype=z.dtype).reshape(z.shape)
        ends = {"": z.tanh(), NO_TANH: z}
        truths = {why: torch.autograd.grad(end, leaves[place], grad, retain_graph=True)[0] for why, end in ends.items()}
        try:
            own = [value.clone() for value in call.args]  # a formula may change them in place
            ours = formulas()[argument](grad, forward(*own), *own).detach()
        except Exception as error:  # the reader's own code: anything may be raised
            return FACTORS if "cannot be multiplied" in str(error) else ""
        pairs.append((ours, truths))
    if not any(ours.any() for ours, _ in pairs):
        return "it is zero everywhere: not written yet"
    for target in ("", NO_TANH):
        for why, repair in REPAIRS.items():
            if all(
                _equal(repair(ours, len(call.args[0])), truths[target])
                for call, (ours, truths) in zip(calls, pairs, strict=True)
            ):
                return "; ".join(filter(None, (why, target)))
    return ""


def _equal(ours: Tensor, truth: Tensor) -> bool:
    return ours.shape == truth.shape and bool((ours - truth).abs().max() < 1e-9)


def text(found: Sequence[Mismatch], calls: Sequence[Sample]) -> str:
    """Return what the reader is told: a table of samples and arguments, then each wrong argument with a hint."""
    wrong = {name: [one for one in found if name in one.argument.split(", ")] for name in ARGUMENTS}
    lines = ["The backward of y = tanh(x weight^T + bias), against torch autograd and finite differences", ""]
    lines.append(f"  {'sample':<14}{'n, i, o':<12}" + "".join(f"{name:<16}" for name in ARGUMENTS).rstrip())
    for call in calls:
        shape = ", ".join(map(str, SHAPES[call.name]))
        cells = (next((one for one in wrong[name] if one.sample == call.name), None) for name in ARGUMENTS)
        lines.append(f"  {call.name:<14}{shape:<12}" + "".join(f"{cell(one):<16}" for one in cells).rstrip())
    for one in found:
        if not set(one.argument.split(", ")) & set(ARGUMENTS):
            lines += ["", f"{one.argument}, sample {one.sample!r}: {one.message}"]
    for name, misses in wrong.items():
        if misses:
            lines += ["", *explain(name, misses, calls)]
    right = sum(not misses for misses in wrong.values())
    if found:
        return "\n".join([*lines, "", f"{right} of {len(ARGUMENTS)} arguments are right. Edit {FILE} and run again."])
    return "\n".join([*lines, "", *CONGRATULATION])


CONGRATULATION = (
    "All three are right, on every sample and by both oracles: well done, this is backpropagation.",
    "Next: bpexp/rules has the same two formulas, linear.py and activations.py, with all that a library must honour.",
    "And bpexp.check.check_function(YOUR_FUNCTION, samples) checks any torch.autograd.Function of your own like this.",
)


def cell(one: Mismatch | None) -> str:
    """Return what the table says of one argument on one sample."""
    if one is None:
        return "right"
    if one.error < math.inf:
        return f"off by {one.error:.2g}"
    return "raises" if " raised " in one.message else "wrong shape" if "shape" in one.message else "see below"


def explain(name: str, misses: Sequence[Mismatch], calls: Sequence[Sample]) -> list[str]:
    """Return the lines on one wrong argument: where, its first message, what explains it, and a hint."""
    where = ", ".join(repr(sample) for sample in dict.fromkeys(one.sample for one in misses))
    why = diagnose(name, calls)
    return [
        f"{name}: wrong on {where}",
        f"  {misses[0].sample!r}: {misses[0].message}",
        *([f"  It looks as if {why}."] if why else []),
        f"  Hint: {HINTS[name]}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 once the backward is right."""
    found: list[Mismatch] = []

    def program(config: Any, folder: Path) -> None:
        from bpexp.sweep.files import write_text

        calls = samples(config.seed)
        found.extend(mistakes(calls))
        said = text(found, calls)
        write_text(folder / "exercise.txt", said + "\n")
        print(said)

    return entry.main("exercise", __doc__, program=program, arguments=arguments) or int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
