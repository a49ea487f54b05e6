"""The table of differentiation rules: what a rule is, and the torch.autograd.Function that drives it.

A rule states a forward formula and, for each differentiable argument, a backward formula. A backward formula names
what it needs: its parameters are picked from `grad` (the incoming gradient), `y` (the output), the arguments of the
forward formula, and `<argument>_shape`. What the backward formulas name is what is saved, and nothing else.

A rule may have intermediates, such as the mean and the variance of a norm: its forward formula returns them after y,
and its backward formulas name them as they name arguments. They are constants to autograd, so a backward that is itself
differentiated makes them again from the arguments.

Two drivers run the same formulas: the Function below, so that a rule drops into any torch program, and the plan of
`bpexp.plan`, which replays a recorded program without autograd.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd import forward_ad

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

    def record(self, rule: "Rule", args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]: ...


RECORDERS: list[Recorder] = []  # the plan that is recording stands last
RULES: dict[str, "Rule"] = {}
LOW = frozenset({torch.float16, torch.bfloat16})


@dataclass(eq=False)
class Rule:
    """One differentiation rule: forward, backward, reference, samples and source stand together.

    forward:   a pure formula of tensors and constants; a last `*tensors` takes any number; it returns y, or a tuple of
               y and the intermediates
    gradients: by argument (or by a tuple of arguments, for a joint backward) the formula for its gradient
    reference: the torch function of the same arguments that the rule must equal
    samples:   makes the sample calls, drawing from the generator that it is given
    jvp:       tangent of y; picks `<argument>_tangent`, `y` and arguments by name as backward formulas do
    intermediates: their names, and the formula of arguments, picked by name, that returns them in a tuple
    autocast:  "lower" or "float32": the list of torch.autocast on which the reference stands; "... on cuda": there
    slope:     of an elementwise rule the derivative of y itself, where it has a formula of its own
    widen:     compute gradients and tangents of float16 and bfloat16 in float32, as torch does, and round once
    """

    name: str
    forward: Formula
    gradients: Mapping[str | tuple[str, ...], Formula]
    reference: Formula
    samples: Callable[[torch.Generator], Sequence[Sample]]
    source: str
    jvp: Formula | None = None
    autocast: str | None = None
    widen: bool = False
    intermediates: tuple[tuple[str, ...], Formula] | None = None
    slope: Formula | None = None
    parameters: tuple[str, ...] = field(init=False)
    backward: tuple[Gradient, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.name in RULES:
            raise ValueError(f"rule {self.name!r} stands in the table already")
        self.parameters = names_of(self.forward)
        self.backward = tuple(
            Gradient(
                (key,) if isinstance(key, str) else key, widened(formula) if self.widen else formula, names_of(formula)
            )
            for key, formula in self.gradients.items()
        )
        intermediates, restate = self.intermediates or ((), nothing)
        restate = widened(restate, rounded=False) if self.widen else restate
        self.function = autograd_function(
            self.name, self.forward, self.parameters, self.backward, intermediates, restate
        )
        self.forward_mode = self.function
        if self.jvp is not None:
            jvp = widened(self.jvp) if self.widen else self.jvp
            self.forward_mode = with_jvp(self.function, jvp, self.parameters, self.backward, intermediates, restate)
        RULES[self.name] = self

    def __call__(self, *args: Any) -> torch.Tensor:
        return self._run(args)[0]

    def outputs(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """Return y and the intermediates, which are constants to autograd."""
        y, *others = self._run(args)
        return (y, *(others if RECORDERS else [other.detach() for other in others]))

    def evaluate(self, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        """Return y and the intermediates by the forward formula alone."""
        result: Any = self.forward(*args)
        return (result,) if self.intermediates is None else tuple(result)

    def _run(self, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        if RECORDERS:
            return RECORDERS[-1].record(self, args)
        if self.autocast is not None:
            args = autocast(self.autocast, args)
        if torch.compiler.is_compiling() and not requires_grad(args):
            return self.evaluate(args)  # where no gradient is asked for, compilation inlines a Function, and wrongly
        # Compilation with fullgraph=True refuses a Function that has its own jvp; elsewhere it would save more.
        function = self.forward_mode if is_forward_mode() else self.function
        result: Any = function.apply(*args)
        return (result,) if self.intermediates is None else result


def elementwise(
    name: str,
    forward: Formula,
    slope: Formula,
    reference: Formula,
    samples: Callable[[torch.Generator], Sequence[Sample]],
    source: str,
    *,
    autocast: str | None = None,
    flat: bool = False,
) -> Rule:
    """A rule y = f(x, constants...) whose gradient is grad * slope, picking `x`, `y`, constants by name.

    A slope that picks `grad` first is the gradient itself: it need not be a product.
    flat: the slope is constant between its jumps; second derivatives are then 0, as torch's are, and not missing
    """
    needs = names_of(slope)
    whole = needs[0] == "grad"

    def gradient(grad: torch.Tensor, *known: Any) -> torch.Tensor:
        if whole:
            result: torch.Tensor = slope(grad, *known)
            return result
        factor: torch.Tensor = slope(*known).conj()
        if flat and torch.is_grad_enabled():
            factor = factor + 0 * torch.sign(known[0])
        return grad * factor

    def tangent(x_tangent: torch.Tensor, *known: Any) -> torch.Tensor:
        result: torch.Tensor = slope(x_tangent, *known) if whole else x_tangent * slope(*known)
        return result

    picks = needs[1:] if whole else needs
    return Rule(
        name,
        forward,
        {"x": renamed(gradient, ("grad", *picks))},
        reference,
        samples,
        source,
        jvp=renamed(tangent, ("x_tangent", *picks)),
        autocast=autocast,
        widen=True,
        slope=None if whole else slope,
    )


def widened(formula: Formula, *, rounded: bool = True) -> Formula:
    """The formula, computed in float32 where a tensor is of lower precision, and rounded at its end where all are.

    Where only some are, autograd rounds a gradient to the type of its argument.
    """

    def wide(*values: Any) -> Any:
        dtypes = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}
        if not dtypes & LOW:
            return formula(*values)
        result = formula(*map(raised, values))
        return result.to(*dtypes) if rounded and len(dtypes) == 1 else result

    return renamed(wide, names_of(formula))


def raised(value: Any) -> Any:
    """A tensor of lower precision as float32."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in LOW else value


def requires_grad(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def is_forward_mode() -> bool:
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0  # noqa: SLF001 - no other says


def nothing() -> tuple[torch.Tensor, ...]:
    """Return the intermediates of a rule that has none."""
    return ()


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
    name: str,
    forward_formula: Formula,
    parameters: tuple[str, ...],
    backward_formulas: tuple[Gradient, ...],
    intermediates: tuple[str, ...],
    restate: Formula,
) -> type[torch.autograd.Function]:
    """The Function driver. It closes over plain functions and tuples only, as compilation with fullgraph=True wants."""
    restate_needs = names_of(restate)
    first_variadic = len(parameters) - 1 if parameters[-1] == "tensors" else len(parameters)

    def place(argument: str) -> slice:
        index = parameters.index(argument)
        return slice(index, None) if index == first_variadic else slice(index, index + 1)

    def asked(ctx: Any) -> list[Gradient]:
        """The gradients of which some argument asks for one."""
        wants = ctx.needs_input_grad
        return [gradient for gradient in backward_formulas if any(any(wants[place(a)]) for a in gradient.arguments)]

    class RuleFunction(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return forward_formula(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            known = {**results_of(output, intermediates), **named(parameters, inputs)}
            wanted = [need for gradient in asked(ctx) for need in gradient.needs]
            if any(name in wanted for name in intermediates):
                wanted.extend(restate_needs)
            ctx.save_for_backward(*keep(ctx, wanted, known))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            known = {"grad": grads[0], **ctx.constants, **dict(zip(ctx.saved, ctx.saved_tensors, strict=True))}
            if any(name in known for name in intermediates) and (torch.is_grad_enabled() or is_forward_mode()):
                known.update(zip(intermediates, restate(*[known[need] for need in restate_needs]), strict=True))
            results: list[Any] = [None] * len(ctx.needs_input_grad)
            for arguments, formula, needs in asked(ctx):
                value = formula(*[known[need] for need in needs])
                for argument, grad in zip(arguments, value if len(arguments) > 1 else (value,), strict=True):
                    where = place(argument)
                    results[where] = grad if isinstance(grad, tuple) else (grad,)
            return tuple(results)

    RuleFunction.__name__ = RuleFunction.__qualname__ = name
    RuleFunction._backward_cls.__name__ = f"{name}Backward"  # noqa: SLF001 - how a graph shows it
    return RuleFunction


def results_of(output: Any, intermediates: tuple[str, ...]) -> dict[str, Any]:
    """What a Function's forward returned, by name."""
    return dict(zip(("y", *intermediates), output if intermediates else (output,), strict=True))


def keep(ctx: Any, wanted: Sequence[str], known: Mapping[str, Any]) -> list[torch.Tensor]:
    """Note on ctx what is wanted and known, and return the tensors among it, which ctx has to save."""
    names = [name for name in dict.fromkeys(wanted) if name in known]
    ctx.saved = tuple(name for name in names if isinstance(known[name], torch.Tensor))
    ctx.constants = {name: known[name] for name in names if name not in ctx.saved}
    return [known[name] for name in ctx.saved]


def with_jvp(
    function: type[torch.autograd.Function],
    jvp_formula: Formula,
    parameters: tuple[str, ...],
    backward_formulas: tuple[Gradient, ...],
    intermediates: tuple[str, ...],
    restate: Formula,
) -> type[torch.autograd.Function]:
    """The same Function with forward mode. torch.func.vmap wants both directions to save the same tensors."""
    picks = names_of(jvp_formula)
    needs = dict.fromkeys([need for gradient in backward_formulas for need in gradient.needs])
    wanted = [*needs, *intermediates, *names_of(restate), *picks]

    class ForwardModeFunction(function):  # type: ignore[valid-type, misc]
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            known = {**results_of(output, intermediates), **named(parameters, inputs)}
            tensors = keep(ctx, wanted, known)
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            known = {**ctx.constants, **dict(zip(ctx.saved, ctx.saved_tensors, strict=True))}
            known.update({name + "_tangent": tangent for name, tangent in named(parameters, tangents).items()})
            tangent = jvp_formula(*[known[pick] for pick in picks])
            return (tangent, *[torch.zeros_like(known[name]) for name in intermediates]) if intermediates else tangent

    ForwardModeFunction.__name__ = ForwardModeFunction.__qualname__ = function.__name__
    return ForwardModeFunction


def autocast(policy: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the arguments as torch.autocast would cast them for the reference, where it is on."""
    device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
    policy, _, only = policy.partition(" on ")
    if only not in ("", device) or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return args
    dtype = torch.get_autocast_dtype(device) if policy == "lower" else torch.float32
    return tuple(
        a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() and a.dtype != torch.float64 else a
        for a in args
    )
