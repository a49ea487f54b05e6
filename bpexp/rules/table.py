"""The table of differentiation rules: what a rule is, and the torch.autograd.Function that drives it.

A rule states a forward formula and, for each differentiable argument, a backward formula. A backward formula names
what it needs: its parameters are picked from `grad` (the incoming gradient), `y` (the output), the arguments of the
forward formula, and `<argument>_shape`. What the backward formulas name is what is saved, and nothing else.

Two drivers run the same formulas: the Function below, so that a rule drops into any torch program, and the plan of
`bpexp.plan`, which replays a recorded program without autograd.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

Formula = Callable[..., Any]


class Gradient(NamedTuple):
    """One backward formula: the arguments whose gradients it returns, and the names of what it needs."""

    arguments: tuple[str, ...]
    formula: Formula
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One call that every check makes: the forward formula's arguments, in float64.

    kink: a derivative is a convention here (torch's), so finite differences do not apply
    """

    name: str
    args: tuple[Any, ...]
    kink: bool = False


class Recorder(Protocol):
    """What receives every rule's call while a plan records."""

    def record(self, rule: "Rule", args: tuple[Any, ...]) -> torch.Tensor: ...


RECORDERS: list[Recorder] = []  # the plan that is recording stands last
RULES: dict[str, "Rule"] = {}


@dataclass(eq=False)
class Rule:
    """One differentiation rule: forward, backward, reference, samples and source stand together.

    forward:   a pure formula of tensors and constants; a last `*tensors` takes any number
    gradients: by argument (or by a tuple of arguments, for a joint backward) the formula for its gradient
    reference: the torch function of the same arguments that the rule must equal
    samples:   makes the sample calls, drawing from the generator that it is given
    jvp:       tangent of y; picks `<argument>_tangent`, `y` and arguments by name as backward formulas do
    autocast:  "lower" or "float32": the list of torch.autocast on which the reference stands
    """

    name: str
    forward: Formula
    gradients: Mapping[str | tuple[str, ...], Formula]
    reference: Formula
    samples: Callable[[torch.Generator], Sequence[Sample]]
    source: str
    jvp: Formula | None = None
    autocast: str | None = None
    parameters: tuple[str, ...] = field(init=False)
    backward: tuple[Gradient, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.name in RULES:
            raise ValueError(f"rule {self.name!r} stands in the table already")
        self.parameters = names_of(self.forward)
        self.backward = tuple(
            Gradient((key,) if isinstance(key, str) else key, formula, names_of(formula))
            for key, formula in self.gradients.items()
        )
        self.function = autograd_function(self.name, self.forward, self.parameters, self.backward)
        self.forward_mode = self.function if self.jvp is None else with_jvp(self.function, self.jvp, self.parameters)
        RULES[self.name] = self

    def __call__(self, *args: Any) -> torch.Tensor:
        if RECORDERS:
            return RECORDERS[-1].record(self, args)
        if self.autocast is not None:
            args = autocast(self.autocast, args)
        # Compilation with fullgraph=True refuses a Function that has its own jvp.
        function = self.function if torch.compiler.is_compiling() else self.forward_mode
        result: torch.Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
        return result


def elementwise(
    name: str,
    forward: Formula,
    slope: Formula,
    reference: Formula,
    samples: Callable[[torch.Generator], Sequence[Sample]],
    source: str,
) -> Rule:
    """A rule y = f(x, constants...) whose gradient is grad * slope, picking `x`, `y`, constants by name."""
    needs = names_of(slope)
    return Rule(
        name,
        forward,
        {"x": renamed(lambda grad, *known: grad * slope(*known), ("grad", *needs))},
        reference,
        samples,
        source,
        jvp=renamed(lambda tangent, *known: tangent * slope(*known), ("x_tangent", *needs)),
    )


def names_of(formula: Formula) -> tuple[str, ...]:
    names: tuple[str, ...] | None = getattr(formula, "names", None)
    return names or tuple(inspect.signature(formula).parameters)


def renamed(formula: Formula, names: tuple[str, ...]) -> Formula:
    """The formula, with the names by which its positional arguments are picked."""
    formula.names = names  # type: ignore[attr-defined]
    return formula


def named(parameters: tuple[str, ...], args: Sequence[Any]) -> dict[str, Any]:
    """Arguments and their shapes by name; arguments beyond the last parameter belong to it, as a tuple."""
    known = dict(zip(parameters, args, strict=False))
    if parameters[-1] == "tensors":
        known["tensors"] = tuple(args[len(parameters) - 1 :])
    for name, value in tuple(known.items()):
        known[name + "_shape"] = shape_of(value)
    return known


def shape_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(shape_of(item) for item in value)
    return value.shape if isinstance(value, torch.Tensor) else None


def autograd_function(
    name: str, forward_formula: Formula, parameters: tuple[str, ...], backward_formulas: tuple[Gradient, ...]
) -> type[torch.autograd.Function]:
    """The Function driver. It closes over plain functions and tuples only, as compilation with fullgraph=True wants."""
    first_variadic = len(parameters) - 1 if parameters[-1] == "tensors" else len(parameters)

    def place(argument: str) -> slice:
        index = parameters.index(argument)
        return slice(index, None) if index == first_variadic else slice(index, index + 1)

    class RuleFunction(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return forward_formula(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            known = {"y": output, **named(parameters, inputs)}
            wanted = []
            for arguments, _, needs in backward_formulas:
                if any(any(ctx.needs_input_grad[place(argument)]) for argument in arguments):
                    wanted.extend([need for need in needs if need != "grad" and need not in wanted])
            ctx.saved = tuple(n for n in wanted if isinstance(known[n], torch.Tensor))
            ctx.constants = {n: known[n] for n in wanted if not isinstance(known[n], torch.Tensor)}
            ctx.save_for_backward(*[known[n] for n in ctx.saved])

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            known = {"grad": grads[0], **ctx.constants, **dict(zip(ctx.saved, ctx.saved_tensors, strict=True))}
            results: list[Any] = [None] * len(ctx.needs_input_grad)
            for arguments, formula, needs in backward_formulas:
                if any(any(ctx.needs_input_grad[place(argument)]) for argument in arguments):
                    value = formula(*[known[need] for need in needs])
                    for argument, grad in zip(arguments, value if len(arguments) > 1 else (value,), strict=True):
                        where = place(argument)
                        results[where] = grad if isinstance(grad, tuple) else (grad,)
            return tuple(results)

    RuleFunction.__name__ = RuleFunction.__qualname__ = name
    return RuleFunction


def with_jvp(
    function: type[torch.autograd.Function], jvp_formula: Formula, parameters: tuple[str, ...]
) -> type[torch.autograd.Function]:
    """The same Function with forward mode."""
    picks = names_of(jvp_formula)

    class ForwardModeFunction(function):  # type: ignore[valid-type, misc]
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            function.setup_context(ctx, inputs, output)
            known = {"y": output, **named(parameters, inputs)}
            ctx.jvp_saved = tuple(n for n in picks if isinstance(known.get(n), torch.Tensor))
            ctx.jvp_constants = {n: known[n] for n in picks if n in known and n not in ctx.jvp_saved}
            ctx.save_for_forward(*[known[n] for n in ctx.jvp_saved])

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            known = {**ctx.jvp_constants, **dict(zip(ctx.jvp_saved, ctx.saved_tensors, strict=True))}
            known.update({parameter + "_tangent": t for parameter, t in zip(parameters, tangents, strict=False)})
            return jvp_formula(*[known[pick] for pick in picks])

    ForwardModeFunction.__name__ = ForwardModeFunction.__qualname__ = function.__name__
    return ForwardModeFunction


def autocast(policy: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the arguments as torch.autocast would cast them for the reference, where it is on."""
    device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
    if not torch.is_autocast_enabled(device):
        return args
    dtype = torch.get_autocast_dtype(device) if policy == "lower" else torch.float32
    return tuple(
        a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() and a.dtype != torch.float64 else a
        for a in args
    )
