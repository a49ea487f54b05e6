"""Arithmetic, reductions and views of bpexp.functional on the samples that torch tests its own with."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from test_functional_samples import (
    Sample,
    assert_errs_at_most_twice_as_much,
    derivatives,
    forward_mode,
    forward_of_reverse,
    result,
    vmapped_gradient,
)
from torch_samples import OP_DB, sample_inputs, some

from bpexp import functional
from bpexp.rules import RULES

OTHERS = {name for name, f in vars(functional).items() if inspect.isfunction(f) and not hasattr(F, name)}
NAMES = {name for name in OTHERS if hasattr(torch, name) or hasattr(torch.Tensor, name)}
VARIANTS = ("", "no_rounding_mode", "multiple")
OPS = {op.name: op for op in OP_DB if op.name in NAMES and op.variant_test_name in VARIANTS}
EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
TOLERANCES = {torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: 1e-5}
INF, NAN = float("inf"), float("nan")
SHORT = {"sub": "subtract", "mul": "multiply", "div": "divide", "neg": "negative"}


def test_every_function_has_samples_of_torch():
    assert {*OPS, *SHORT.values()} == NAMES
    for short, long in SHORT.items():
        assert getattr(functional, short) is getattr(functional, long)
        assert long in [alias.name for alias in OPS[short].aliases]


def is_taken(op, sample):
    """Whether ours takes the arguments: numbers, not tensors, as bounds and places; no `out`, no older names."""
    if op.name in ("clamp", "narrow") and any(isinstance(arg, torch.Tensor) for arg in sample.args):
        return False
    return not {"out", "unbiased"} & set(sample.kwargs)


def samples_of(op, dtype, limit):
    made = [sample for sample in sample_inputs(op, dtype, True) if is_taken(op, sample)]
    return [Sample(sample) for sample in some(made, limit)]


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom", "ignore:Casting complex values to real")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@EVERY_OP
def test_values_and_derivatives_are_those_of_torch(op, dtype):
    tolerance = TOLERANCES[dtype]
    for sample in samples_of(op, dtype, 10) if dtype in op.backward_dtypes else ():
        ours, theirs = [result(derivatives, function, sample) for function in (getattr(functional, op.name), op.op)]
        if isinstance(theirs[0], type):
            assert ours == theirs or "element 0 of tensors does not require grad" in theirs[1]  # of no number at all
            continue
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=tolerance, atol=tolerance)
        if tolerance == 1e-10:
            torch.testing.assert_close(ours[2], theirs[2], rtol=1e-8, atol=1e-8)


def listed(name, device):
    """Whether torch.autocast has an operator of this name on one of its lists."""
    packet = getattr(torch.ops.aten, name)
    operators = [getattr(packet, overload).name() for overload in packet.overloads()]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return any(has_kernel(o, f"Autocast{device}") for o in operators if torch._C._dispatch_has_kernel(o))


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_the_rules_on_autocasts_lists_are_those_of_torch(device):
    alike = set(RULES) - {"cat", "stack"}  # these torch lists for the common type of their arguments, which they have
    ours = {name for name in alike if RULES[name].autocast and (device == "CUDA" or "on" not in RULES[name].autocast)}
    named = {name for name in alike if hasattr(torch.ops.aten, name)}
    assert ours & named == {name for name in named if listed(name, device)}
    assert {"linear", "matmul", "prelu"} <= ours


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EVERY_OP
def test_low_precision_errs_at_most_twice_as_much_as_torch(op, dtype):
    if dtype in op.backward_dtypes:
        for sample in samples_of(op, dtype, 3):
            assert_errs_at_most_twice_as_much(getattr(functional, op.name), op.op, sample, dtype)


@pytest.mark.parametrize("transform", [forward_mode, vmapped_gradient, forward_of_reverse], ids=lambda t: t.__name__)
@EVERY_OP
def test_transforms_agree_with_torch(op, transform):
    small = [s for s in samples_of(op, torch.float64, 100) if all(0 < t.numel() < 30 for t in s.tensors)]
    for sample in some(small, 1):
        ours, theirs = [
            transform(lambda *tensors, f=function, s=sample: s.call(f, *tensors), sample.tensors)
            for function in (getattr(functional, op.name), op.op)
        ]
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.error_inputs_func], ids=lambda op: op.name)
def test_errors_are_those_of_torch(op):
    for error in op.error_inputs("cpu"):
        if not is_taken(op, error.sample_input) or "dtype" in error.sample_input.kwargs:  # ours casts before it
            continue
        sample = Sample(error.sample_input)
        ours, theirs = [result(sample.call, function) for function in (getattr(functional, op.name), op.op)]
        assert ours == theirs
        assert issubclass(theirs[0], error.error_type)


POWERS = [
    ([0.0, 0.0, 0.0, 0.0, -2.0, -2.0, NAN, INF], [0.0, 0.5, -1.0, 2.0, 3.0, 0.5, 0.0, -1.0]),
    ([0.0, 1.0, -1.0, NAN], 0),
    ([0.0, 1.0, -1.0, NAN, INF], -1),
    (0.0, [-1.0, 0.0, 0.5, NAN]),
    (-2.0, [0.0, 1.0, 0.5]),
]


@pytest.mark.parametrize(("base", "exponent"), POWERS, ids=str)
def test_powers_of_zero_and_of_negative_numbers_are_those_of_torch(base, exponent):
    results = []
    for module in (functional, torch):
        args = [torch.tensor(a, requires_grad=True) if isinstance(a, list) else a for a in (base, exponent)]
        leaves = [arg for arg in args if isinstance(arg, torch.Tensor)]
        y = module.pow(*args)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 3), (0, 3)], ids=str)
def test_the_variance_of_too_few_numbers_is_nan_with_a_warning(shape):
    for module in (functional, torch):
        x = torch.ones(shape, requires_grad=True)
        with pytest.warns(UserWarning, match="degrees of freedom is <= 0"):
            y = module.var(x, 0)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert y.isnan().all()
        assert grad.isnan().all()
        assert grad.shape == shape


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: functional.div(x, 2, rounding_mode="floor"),
            ValueError,
            "rounding_mode: 'floor' has the derivative 0",
        ),
        (lambda x: functional.clamp(x, x), TypeError, "min: is a tensor, and clamp takes numbers; choose maximum"),
        (lambda x: functional.clamp(x, max=x), TypeError, "max: is a tensor"),
    ],
)
def test_what_has_no_rule_says_so(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3))


def test_a_negative_start_counts_from_the_end():
    results = []
    for module in (functional, torch):
        x = torch.arange(6.0).view(3, 2).requires_grad_()
        results.append(torch.autograd.grad(module.narrow(x, 0, -1, 1).square().sum(), x))
    torch.testing.assert_close(*results)
