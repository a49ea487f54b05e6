"""The rewrites of a recorded program: each leaves every number bit for bit as it was, and pays."""

import pytest
import torch

from bpexp.plan import Plan, program
from bpexp.plan import plan as plan_module
from bpexp.plan.program import Buffers, compile_operator, hoist_constants, share_results, wrap_numbers
from bpexp.plan.tape import Tape
from bpexp.rules import RULES, Rule
from bpexp.rules.activations import samples_at

ACTIVATIONS = ["sigmoid", "tanh", "relu", "gelu", "gelu_tanh", "silu", "softsign"]
DTYPES = [torch.float32, torch.float64]
LEFT_OUT = {
    "hoist_constants": lambda operators, made, fixed: list(operators),
    "share_results": lambda operators, fixed: list(operators),
    "fuse_casts": lambda operators: list(operators),
    "wrap_numbers": lambda operators: list(operators),
}


def network(depth, width, dtype=torch.float64):
    """A classifier with odd sizes, so that no vector is whole: three networks, five classes."""
    generator = torch.Generator().manual_seed(0)
    widths = [width] * (depth + 1) + [5]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [torch.randn(3, *shape, generator=generator, dtype=dtype) * width**-0.5 for shape in shapes]
    biases = [torch.randn(3, shape[0], generator=generator, dtype=dtype) for shape in shapes]
    x = torch.randn(3, 7, width, generator=generator, dtype=dtype)
    return weights + biases, (x, torch.randint(5, (3, 7), generator=generator))


def classifier(parameters, activation):
    weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]

    def model(x, target):
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = RULES[activation](RULES["linear"](x, weight, bias))
        return RULES["network_cross_entropy"](RULES["linear"](x, weights[-1], biases[-1]), target, None)

    return model


def replays(activation, dtype, *, keep=False):
    """The losses and gradients of three steps of descent, and the number of calls of a step."""
    parameters, inputs = network(3, 19, dtype)
    plan = Plan(classifier(parameters, activation), inputs, parameters, keep=keep)
    found = []
    for _ in range(3):
        found += [plan.step().clone(), plan.flat_grad.clone()]
        for parameter, grad in zip(parameters, plan.grads, strict=True):
            parameter.sub_(grad, alpha=0.1)
    return found, len(plan.program)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("left_out", [*LEFT_OUT, "in_place_form"])
def test_a_plan_without_a_rewrite_gives_the_same_bits(left_out, activation, dtype, monkeypatch):
    found, _ = replays(activation, dtype)
    if left_out == "in_place_form":
        monkeypatch.setattr(program, left_out, lambda operator, args, output: None)
    else:
        monkeypatch.setattr(plan_module, left_out, LEFT_OUT[left_out])
    without, _ = replays(activation, dtype)
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_plan_that_keeps_its_values_gives_the_same_bits(activation, dtype):
    found, kept = (replays(activation, dtype, keep=keep)[0] for keep in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@pytest.mark.parametrize(
    ("left_out", "activation", "calls"),
    [
        ("hoist_constants", "relu", 3),  # the loss's gradient of ones, that over the batch size, and its negative
        ("share_results", "relu", 1),  # the backward pass of cross entropy restates the forward pass
        ("fuse_casts", "relu", 3),  # a slope a layer
    ],
)
def test_a_rewrite_saves_calls(left_out, activation, calls, monkeypatch):
    _, count = replays(activation, torch.float64)
    monkeypatch.setattr(plan_module, left_out, LEFT_OUT[left_out])
    _, without = replays(activation, torch.float64)
    assert without - count == calls


def record(formula, *inputs):
    """The operators under a formula, the storages that they made, and its result."""
    tape = Tape({id(tensor): tensor for tensor in inputs})
    with torch.no_grad(), tape, tape.formula():
        result = formula(*inputs)
    return tape.operators, tape.made, result, tape


def names(operators):
    return [operator.name for operator in operators]


X = torch.tensor([[-1.5, 0.0, 2.0], [0.25, -0.0, 1.0]])

CONSTANT = {
    "a fill reads only a shape": (lambda x: x + torch.ones_like(x), ["add"]),
    "what is made of constants": (lambda x: x * (torch.full_like(x, 2.0) / 3).exp(), ["mul"]),
    "what is made of nothing": (lambda x: x + torch.arange(3.0), ["add"]),
    "a number drawn is none": (lambda x: x + torch.rand_like(x), ["rand_like", "add"]),
    "what is written into is none": (
        lambda x: torch.zeros_like(x).add_(x) + torch.ones_like(x),
        ["zeros_like", "add_", "add"],
    ),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_constants_leave_the_program(case):
    formula, left = CONSTANT[case]
    operators, made, _, _tape = record(formula, X.clone())
    assert names(hoist_constants(operators, made, ())) == left


def test_a_constant_gradient_is_made_on_every_step():
    total = Rule(
        "total_in_test",
        lambda x: x.sum(1),
        {"x": lambda grad, x: torch.ones_like(x) * grad[:, None]},
        lambda x: x.sum(1),
        samples_at(),
        "definition",
    )
    del RULES["total_in_test"]
    weight = torch.randn(2, 16)
    plan = Plan(total, (weight,), (weight,))
    for _ in range(2):
        plan.flat_grad.zero_()  # as clipping and penalties change it
        plan.step()
        assert torch.equal(plan.grads[0], torch.ones(2, 16))


SHARED = {
    "restated": (lambda x: torch.exp(x) + torch.exp(x), ["exp", "add"]),
    "restated in two steps": (lambda x: torch.exp(x * 2) - torch.exp(x * 2), ["mul", "exp", "sub"]),
    "of the same view": (lambda x: torch.exp(x.mT) + torch.exp(x.mT), ["exp", "add"]),
    "of another view": (lambda x: torch.exp(x[:1]) + torch.exp(x[1:]), ["exp", "exp", "add"]),
    "with another number": (lambda x: torch.mul(x, 2.0) + torch.mul(x, 3.0), ["mul", "mul", "add"]),
    "with a zero of the other sign": (lambda x: torch.mul(x, 0.0) + torch.mul(x, -0.0), ["mul", "mul", "add"]),
    "with another option": (lambda x: torch.sum(x, 0) * torch.sum(x, 0, keepdim=True), ["sum", "sum", "mul"]),
    "drawn twice": (lambda x: torch.rand_like(x) + torch.rand_like(x), ["rand_like", "rand_like", "add"]),
    "written into": (lambda x: torch.exp(x).add_(1) + torch.exp(x), ["exp", "add_", "exp", "add"]),
    "read before and after a write": (
        lambda x: (y := torch.exp(x)) * (torch.sin(y) + torch.sin(y.add_(1))),
        ["exp", "sin", "add_", "sin", "add", "mul"],
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_what_is_restated_is_shared(case):
    formula, left = SHARED[case]
    operators, *_, _tape = record(formula, X.clone())
    assert names(share_results(operators, ())) == left


def test_a_result_with_a_place_of_its_own_is_not_shared():
    operators, _, (first, second), _tape = record(lambda x: (torch.exp(x), torch.exp(x)), X.clone())
    assert names(share_results(operators, {program.key_of(second)})) == ["exp", "exp"]
    assert names(share_results(operators, {program.key_of(first)})) == ["exp"]


NUMBERS = {
    "add": lambda x: x + 0.1,
    "add-scaled": lambda x: torch.add(x, 3, alpha=2),
    "sub": lambda x: x - 0.1,
    "rsub": lambda x: 0.1 - x,
    "mul": lambda x: x * 0.1,
    "div": lambda x: x / 3,
    "floor": lambda x: torch.div(x, 3, rounding_mode="floor"),
    "eq": lambda x: x == 0.1,
    "ne": lambda x: x != 0,
    "lt": lambda x: x < 0.1,
    "le": lambda x: x <= 0.1,
    "gt": lambda x: x > 0.1,
    "ge": lambda x: x >= 0.1,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NUMBERS)
def test_a_wrapped_number_gives_the_same_bits(case, dtype):
    x = torch.tensor([-3.3, -0.0, 0.0, 0.1, torch.tensor(0.1).item(), 7.7, torch.nan, torch.inf], dtype=dtype)
    operators, made, result, _tape = record(NUMBERS[case], x)
    (operator,) = wrap_numbers(operators)
    assert all(isinstance(value, torch.Tensor) for value in operator.args)
    output = Buffers({key: (torch.UntypedStorage(result.nbytes), 0) for key in made})
    call = compile_operator(operator, output)
    call()
    torch.testing.assert_close(output.tensor(result), result, rtol=0, atol=0, equal_nan=True)


def test_numbers_are_left_where_a_tensor_would_mean_something_else():
    integers, halves = torch.arange(3), torch.ones(3, dtype=torch.bfloat16)
    for x, formula in (
        (integers, lambda x: x * 0.5),
        (halves, lambda x: x * 0.1),
        (X, lambda x: x**2),
        (X, lambda x: x.clamp(min=1)),
    ):
        operators, *_, _tape = record(formula, x)
        assert [operator.args for operator in wrap_numbers(operators)] == [operator.args for operator in operators]


def test_no_call_of_an_activation_allocates():
    for activation in ACTIVATIONS:
        parameters, inputs = network(2, 16, torch.float32)
        for keep in (False, True):
            plan = Plan(classifier(parameters, activation), inputs, parameters, keep=keep)
            general = [call for call in plan.program if getattr(call, "__name__", "") == "copied"]
            assert not general, activation


def test_an_error_of_an_operator_is_its_own():
    operators, made, result, _tape = record(lambda x, index: x.gather(0, index), X.clone(), torch.zeros(1, 1).long())
    (operator,) = operators
    operator.args[2].fill_(9)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        compile_operator(operator, Buffers({key: (torch.UntypedStorage(result.nbytes), 0) for key in made}))
