"""Compare any backward with its oracles: torch autograd of a reference, and finite differences, in float64.

Every check computes derivatives (see `bpexp.oracles`) of the function under test on fresh copies of a sample, with
random incoming gradients. Whatever is raised, and whatever is changed in place, is a mismatch with a name rather than
a crash; what the reference raises is raised.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bpexp import oracles
from bpexp.oracles import Results, Trial
from bpexp.rules.table import Rule, Sample


@dataclass(frozen=True)
class Tolerances:
    """What a difference in float64 may be. An error passes up to absolute + relative * |expected|.

    reference:          value, gradient and forward mode against torch, both absolute and relative
    second_order:       second derivatives against torch, both absolute and relative
    relative, absolute: anything against finite differences
    step:               finite differences take the values at x - step and x + step
    """

    reference: float = 1e-10
    second_order: float = 1e-8
    relative: float = 1e-6
    absolute: float = 1e-8
    step: float = 1e-6


@dataclass(frozen=True)
class Mismatch:
    """One thing that is wrong: in which rule (or function), on which sample, with which argument.

    argument:  the argument whose gradient is wrong or that was changed, or "value" for the result of the forward
    oracle:    "torch", "finite differences", "second order", "second order, finite differences", "forward mode",
               "forward mode, finite differences", "another layout" (of the incoming gradient), "frozen arguments",
               "a second call", or "autograd", for what torch asks of any Function
    error:     the largest difference; inf where there is no number for it
    tolerance: what the difference may be there
    """

    name: str
    sample: str
    argument: str
    oracle: str
    error: float
    tolerance: float
    message: str

    def __str__(self) -> str:
        where = f"{self.name}, sample {self.sample!r}, argument {self.argument!r}"
        return f"{where}: {self.message} (oracle: {self.oracle}, tolerance {self.tolerance:.1e})"


def check_rule(rule: Rule, samples: Iterable[Sample] | None = None, **options: Any) -> list[Mismatch]:
    """Check a rule of the table on its own samples, or on those given; for the options see `check_function`."""
    if samples is None:
        samples = rule.samples(torch.Generator().manual_seed(0))
    return check_function(rule, samples, rule.reference, **options)


def check_function(
    function: Any,
    samples: Iterable[Sample | Sequence[Any] | Tensor],
    reference: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    arguments: Sequence[str] | None = None,
    second_order: bool = True,
    first: bool = False,
    tolerances: Tolerances | None = None,
) -> list[Mismatch]:
    """Check value, gradients, second derivatives and, where there is one, forward mode; return what is wrong.

    A sample that fails one check is not put to the next. Finite differences do not apply at a kink, nor to
    complex numbers.

    function:     a torch.autograd.Function or its `apply`, a rule, or any function of tensors
    samples:      bpexp.rules.Sample, or the arguments alone: a tuple, or a tensor; they are checked in float64
    reference:    the torch function that it must equal; without one, finite differences are the only oracle
    arguments:    the arguments that must have a gradient; by default every tensor of real or complex numbers
    second_order: whether the gradients are differentiated too
    first:        stop at the first mismatch
    Raises:       ValueError: there is nothing to check, or no such argument

    >>> class Scale(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x, factor):
    ...         ctx.save_for_backward(x, factor)
    ...         return x * factor
    ...
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         x, factor = ctx.saved_tensors
    ...         return grad * factor, grad * factor  # the second should be grad * x
    >>> sample = Sample("row", (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
    >>> for mismatch in check_function(Scale, [sample], torch.mul):
    ...     print(mismatch)  # doctest: +ELLIPSIS
    Scale, sample 'row', argument 'factor': gradient is off by ... (oracle: torch, tolerance ...)
    """
    subject = subject_of(function, reference, name, arguments, tolerances or Tolerances())
    checks = [check for check in CHECKS if second_order or check is not check_second_order]
    found = find(subject, as_samples(samples), checks)
    return list(islice(found, 1) if first else found)


def assert_correct(
    function: Any,
    samples: Iterable[Sample | Sequence[Any] | Tensor] | None = None,
    reference: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Raise AssertionError with every mismatch on a line, for a rule (with its own samples) or any function.

    >>> assert_correct(torch.sin, [torch.tensor([0.5, 2.0])])
    """
    if isinstance(function, Rule):
        found = check_rule(function, samples if samples is None else as_samples(samples), **options)
    else:
        found = check_function(function, samples or (), reference, **options)
    if found:
        raise AssertionError("\n".join(map(str, found)))


def as_samples(samples: Iterable[Sample | Sequence[Any] | Tensor]) -> list[Sample]:
    """Name the samples that are arguments alone by their number."""
    made = [
        sample
        if isinstance(sample, Sample)
        else Sample(str(number), (sample,) if isinstance(sample, Tensor) else tuple(sample))
        for number, sample in enumerate(samples)
    ]
    if not made:
        raise ValueError("there are no samples to check")
    return made


class BrokenError(Exception):
    """The function under test raises on a sample, or changes its arguments there."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


@dataclass(frozen=True)
class Subject:
    """What is checked: the call, what it must equal, and how its arguments are named."""

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any] | None
    parameters: Sequence[inspect.Parameter]
    arguments: Sequence[str] | None
    direct: bool  # its backward returns a gradient for each of its arguments, in their order
    forward_mode: bool
    drop_in: bool  # a zero second derivative is a tensor where torch's is; else None may stand for it
    tolerances: Tolerances

    def names(self, count: int) -> list[str]:
        """The names of `count` arguments; those of a variadic parameter are numbered."""
        names: list[str] = []
        for parameter in self.parameters:
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
            else:
                names.append(parameter.name)
        return (names + [f"argument {i}" for i in range(len(names), count)])[:count]

    def trial(self, sample: Sample, only: str | None = None) -> Trial:
        names = self.names(len(sample.args))
        unknown = set(self.arguments or ()) - {*names, *[parameter.name for parameter in self.parameters]}
        if unknown:
            raise ValueError(f"{self.name} has no argument {', '.join(sorted(unknown))}; it has {', '.join(names)}")
        places = {
            name: place
            for place, (name, value) in enumerate(zip(names, sample.args, strict=True))
            if oracles.differentiable(value) and only in (None, name)
            if self.arguments is None or name in self.arguments or name.split("[")[0] in self.arguments
        }
        if not places:
            raise ValueError(f"{self.name}, sample {sample.name!r}: there is no argument to differentiate")
        trial = Trial(sample.args, places, self.tolerances.step)
        trial.watched = [
            (name, "it", arg, value)
            for name, arg, value in zip(names, trial.args, sample.args, strict=True)
            if isinstance(value, Tensor)
        ]
        return trial

    def run(self, sample: Sample, stage: str, compute: Callable[[Any, Trial], Any], only: str | None = None) -> Any:
        """Compute for the function under test. Raises BrokenError where it raises or changes its arguments."""
        trial = self.trial(sample, only)
        try:
            result = compute(self.call, trial)
        except Exception as error:
            names = [name for name in trial.places if self.raises(compute, self.trial(sample, name))]
            argument = "value" if stage == "forward" else ", ".join(names or trial.places)
            what = f"{stage} raised {type(error).__name__}: {error}"
            raise BrokenError(self.mismatch(sample, argument, "autograd", what)) from error
        for name, what, tensor, before in trial.watched:
            if not identical(tensor, before):
                raise BrokenError(self.mismatch(sample, name, "autograd", f"{stage} changed {what} in place"))
        return result

    def raises(self, compute: Callable[[Any, Trial], Any], trial: Trial) -> bool:
        try:
            compute(self.call, trial)
        except Exception:
            return True
        return False

    def differences_apply(self, sample: Sample) -> bool:
        """Whether finite differences apply: not at a kink, and not in the complex plane."""
        return not sample.kink and not any(isinstance(arg, Tensor) and arg.is_complex() for arg in sample.args)

    def mismatch(
        self, sample: Sample, argument: str, oracle: str, message: str, error: float = math.inf, tolerance: float = 0.0
    ) -> Mismatch:
        return Mismatch(self.name, sample.name, argument, oracle, error, tolerance, " ".join(message.split()))

    def compare(
        self, sample: Sample, oracle: str, ours: Results, expected: Results, relative: float, absolute: float
    ) -> Iterator[Mismatch]:
        """Yield a mismatch for each result that is not as expected; None stands for zeros."""
        for argument, what in {**expected, **ours}:
            mine, want = ours.get((argument, what)), expected.get((argument, what))
            like = mine if want is None else want
            if like is None:
                continue
            zeros = torch.zeros_like(like)
            found = difference(zeros if mine is None else mine, zeros if want is None else want, relative, absolute)
            if found:
                error, allowed, message = found
                none = "; None was returned, which stands for zeros" if mine is None else ""
                yield self.mismatch(sample, argument, oracle, f"{what} {message}{none}", error, allowed)
            elif mine is None and (oracle == "torch" or (oracle == "second order" and self.drop_in)):
                yield self.mismatch(sample, argument, oracle, f"{what} is None where torch's is a tensor")


def subject_of(
    function: Any,
    reference: Callable[..., Any] | None,
    name: str | None,
    arguments: Sequence[str] | None,
    tolerances: Tolerances,
) -> Subject:
    owner = getattr(function, "__self__", function)  # `Function.apply` is bound to its class
    call, direct, forward_mode = function, False, False
    if isinstance(function, Rule):
        name, direct, forward_mode = name or function.name, True, function.jvp is not None
        arguments = arguments or [argument for gradient in function.backward for argument in gradient.arguments]
    elif isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        function, call, direct = owner, owner.apply, True
        forward_mode = owner.jvp is not torch.autograd.Function.jvp
    shown = name or str(getattr(function, "__name__", type(function).__name__))
    names, drop_in = parameters_of(function), isinstance(function, Rule)
    return Subject(shown, call, reference, names, arguments, direct, forward_mode, drop_in, tolerances)


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """The positional parameters of a function, a module, a rule or a torch.autograd.Function, without its context."""
    try:
        parameters = list(inspect.signature(getattr(function, "forward", function)).parameters.values())
    except (TypeError, ValueError):  # torch's functions in C++ do not tell
        return []
    is_function = isinstance(function, type) and issubclass(function, torch.autograd.Function)
    if is_function and function.setup_context is torch.autograd.Function.setup_context:
        parameters = parameters[1:]
    return [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]


def identical(tensor: Tensor, before: Tensor) -> bool:
    """Whether a tensor still holds what it held before; NaN equals NaN."""
    now, then = tensor.detach(), before.detach().to(tensor.dtype)
    return bool(((now == then) | ((now != now) & (then != then))).all())


def difference(ours: Tensor, expected: Tensor, relative: float, absolute: float) -> tuple[float, float, str] | None:
    """The largest error, its tolerance, and where it sits; None where every element is within tolerance."""
    for what in ("shape", "dtype", "device"):
        have, want = getattr(ours, what), getattr(expected, what)
        if have != want:
            return math.inf, 0.0, f"has {what} {have} instead of {want}".replace("torch.Size", "")
    exact = torch.promote_types(ours.dtype, torch.float64)
    ours, expected = ours.detach().to(exact), expected.detach().to(exact)
    same = (ours == expected) | (ours.isnan() & expected.isnan())
    error = torch.where(same, 0.0, (ours - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf))
    allowed = absolute + relative * expected.abs().nan_to_num(nan=0.0, posinf=0.0)
    wrong = ~same & ~((error <= allowed) & error.isfinite())
    if not wrong.any():
        return None
    worst = int(error.where(wrong, -1.0).argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
    largest, mine, want, bound = (t.reshape(-1)[worst].item() for t in (error, ours, expected, allowed))
    where = f"at {index} ({mine:.12g} instead of {want:.12g}), {int(wrong.sum())} of {wrong.numel()} elements wrong"
    return largest, bound, f"is off by {largest:.3g} {where}"


def check_value(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    ours = subject.run(sample, "forward", oracles.values)
    expected = {"a second call": subject.run(sample, "forward", oracles.values)}
    if subject.reference is not None:
        expected["torch"] = oracles.values(subject.reference, subject.trial(sample))
    exact = subject.tolerances.reference
    for oracle, theirs in expected.items():
        if len(ours) == len(theirs):
            yield from subject.compare(sample, oracle, ours, theirs, exact, exact)
        else:
            yield subject.mismatch(sample, "value", oracle, f"{len(ours)} results instead of {len(theirs)}")


def check_returned(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    """A backward returns a gradient for each argument, of its shape and type."""
    result = subject.run(sample, "backward", oracles.returned) if subject.direct else None
    if result is None:
        return
    grads = result if isinstance(result, tuple) else (result,)
    trial = subject.trial(sample)
    for name, place in trial.places.items():
        grad, leaf = grads[place] if place < len(grads) else None, trial.leaves[name]
        if place >= len(grads):
            what = f"backward returned {len(grads)} gradients for {len(trial.args)} arguments"
            yield subject.mismatch(sample, name, "autograd", what)
        elif isinstance(grad, Tensor) and (grad.shape != leaf.shape or grad.dtype != leaf.dtype):
            found = difference(grad, leaf, 0.0, 0.0)
            yield subject.mismatch(sample, name, "autograd", f"returned gradient {found[2] if found else ''}")
        elif grad is not None and not isinstance(grad, Tensor):
            yield subject.mismatch(sample, name, "autograd", f"returned gradient is a {type(grad).__name__}")


def check_gradient(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    if subject.reference is not None:
        ours = subject.run(sample, "backward", oracles.gradients)
        expected = oracles.gradients(subject.reference, subject.trial(sample))
        exact = subject.tolerances.reference
        yield from subject.compare(sample, "torch", ours, expected, exact, exact)


def check_calls(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    """The gradient is the same for any layout of the incoming one, and where the other arguments are frozen."""

    def run(layout: oracles.Layout = torch.clone, only: str | None = None) -> Results:
        grads: Results = subject.run(sample, "backward", partial(oracles.gradients, layout=layout), only)
        return grads

    whole, exact = run(), subject.tolerances.reference
    yield from subject.compare(sample, "another layout", run(spaced), whole, exact, exact)
    expanded = run(lambda grad: grad.new_full((), 0.7).expand(grad.shape))
    constant = run(lambda grad: torch.full_like(grad, 0.7))
    yield from subject.compare(sample, "another layout", expanded, constant, exact, exact)
    for key, grad in whole.items() if len(whole) > 1 else ():
        yield from subject.compare(sample, "frozen arguments", run(only=key[0]), {key: grad}, exact, exact)


def spaced(grad: Tensor) -> Tensor:
    """The same numbers with the axes in another order in memory, and others between them."""
    axes = list(reversed(range(grad.dim())))
    turned = grad.permute(axes)
    return torch.stack([turned, turned + 1], -1)[..., 0].permute(axes)


def check_finite_differences(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    if subject.differences_apply(sample):
        ours = subject.run(sample, "backward", oracles.gradients)
        expected = subject.run(sample, "forward", oracles.gradients_by_differences)
        bounds = subject.tolerances.relative, subject.tolerances.absolute
        yield from subject.compare(sample, "finite differences", ours, expected, *bounds)


def check_second_order(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    ours = subject.run(sample, "second backward", oracles.second_gradients)
    if subject.reference is not None:
        expected = oracles.second_gradients(subject.reference, subject.trial(sample))
        bounds = subject.tolerances.second_order, subject.tolerances.second_order
        yield from subject.compare(sample, "second order", ours, expected, *bounds)
    elif subject.differences_apply(sample):
        expected = subject.run(sample, "backward", oracles.second_gradients_by_differences)
        bounds = subject.tolerances.relative, subject.tolerances.absolute
        yield from subject.compare(sample, "second order, finite differences", ours, expected, *bounds)


def check_forward_mode(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    if subject.forward_mode:
        ours = subject.run(sample, "forward mode", oracles.tangents)
        if subject.reference is not None:
            expected = oracles.tangents_by_reverse(subject.reference, subject.trial(sample))
            exact = subject.tolerances.reference
            yield from subject.compare(sample, "forward mode", ours, expected, exact, exact)


def check_forward_differences(subject: Subject, sample: Sample) -> Iterator[Mismatch]:
    if subject.forward_mode and subject.differences_apply(sample):
        ours = subject.run(sample, "forward mode", oracles.tangents)
        expected = subject.run(sample, "forward", oracles.tangents_by_differences)
        bounds = subject.tolerances.relative, subject.tolerances.absolute
        yield from subject.compare(sample, "forward mode, finite differences", ours, expected, *bounds)


CHECKS: tuple[Callable[[Subject, Sample], Iterator[Mismatch]], ...] = (
    check_value,
    check_returned,
    check_gradient,
    check_calls,
    check_finite_differences,
    check_second_order,
    check_forward_mode,
    check_forward_differences,
)


def find(
    subject: Subject, samples: Sequence[Sample], checks: Sequence[Callable[[Subject, Sample], Iterator[Mismatch]]]
) -> Iterator[Mismatch]:
    """Make each check on all samples before the next one; a sample that fails goes no further."""
    failed: set[int] = set()
    for check in checks:
        for number, sample in enumerate(samples):
            if number in failed:
                continue
            try:
                for mismatch in check(subject, sample):
                    failed.add(number)
                    yield mismatch
            except BrokenError as broken:
                failed.add(number)
                yield broken.mismatch
