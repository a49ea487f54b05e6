"""The rewrites of a recorded program: each leaves every number bit for bit as it was, and pays."""

import functools

import pytest
import torch
from conftest import configure

from bpexp.ensemble import Ensemble
from bpexp.plan import PASSES, Plan, calls, stack
from bpexp.plan.buffers import Buffers
from bpexp.plan.calls import compile_operator
from bpexp.plan.passes import hoist_constants, share_results, wrap_numbers
from bpexp.plan.program import Program, key_of
from bpexp.plan.tape import Tape
from bpexp.rules import RULES, Rule
from bpexp.rules.activations import samples_at

ACTIVATIONS = ["sigmoid", "tanh", "relu", "gelu", "gelu_tanh", "silu", "softsign"]
DTYPES = [torch.float32, torch.float64]


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


def replays(activation, dtype, *, keep=False, without="", width=19):
    """The losses and gradients of three steps of descent, and the number of calls of a step."""
    parameters, inputs = network(3, width, dtype)
    plan = Plan(classifier(parameters, activation), inputs, parameters, keep=keep, passes=set(PASSES) - {without})
    found = []
    for _ in range(3):
        found += [plan.step().clone(), plan.flat_grad.clone()]
        for parameter, grad in zip(parameters, plan.grads, strict=True):
            parameter.sub_(grad, alpha=0.1)
    return found, len(plan.program)


whole = functools.cache(replays)


@pytest.mark.parametrize(("activation", "width"), [*((activation, 19) for activation in ACTIVATIONS), ("tanh", 16)])
@pytest.mark.parametrize("left_out", [*PASSES, "in_place_form"])
def test_a_plan_without_a_pass_gives_the_same_bits(left_out, activation, width, monkeypatch):
    found, _ = whole(activation, torch.float32, width=width)
    if left_out == "in_place_form":
        monkeypatch.setattr(calls, left_out, lambda operator, args, output: None)
    without, _ = replays(activation, torch.float32, width=width, without=left_out)
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_plan_that_keeps_its_values_gives_the_same_bits(activation, dtype):
    (found, _), (kept, _) = whole(activation, dtype, width=19), replays(activation, dtype, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@pytest.mark.parametrize(
    ("left_out", "activation", "saved"),
    [
        ("place_gradients", "relu", 7),  # a copy for each parameter but one, which is not at a multiple of 64 bytes
        ("hoist_constants", "relu", 3),  # the loss's gradient of ones, that over the batch size, and its negative
        ("share_results", "relu", 1),  # the backward pass of cross entropy restates the forward pass
        ("fuse_casts", "relu", 4),  # a slope a layer; and booleans of odd sizes are in no stack
        (
            "stack",
            "relu",
            4,
        ),  # of layers 2 and 3 the weight gradients, of 1 to 3 the bias gradients, of 1 and 2 the slopes
    ],
)
def test_a_pass_saves_calls(left_out, activation, saved):
    _, count = whole(activation, torch.float64, width=16)
    _, without = replays(activation, torch.float64, width=16, without=left_out)
    assert without - count == saved


@pytest.mark.parametrize(
    ("largest", "width", "saved"),
    [
        (0, 16, 0),
        (2 * 3 * 16 * 16 * 8, 16, 4),  # two gradients of weights: of layers 2 and 3
        (2**18, 19, 0),  # no tensor of an odd size begins where another could
    ],
)
def test_stacks_are_as_large_as_they_may_be(largest, width, saved, monkeypatch):
    monkeypatch.setattr(stack, "LARGEST_STACK", largest)
    calls = [replays("relu", torch.float64, width=width, without=without)[1] for without in ("", "stack")]
    assert calls[1] - calls[0] == saved


STRUCTURES = {
    "plain": {"model.width": 32, "model.depth": 5},
    "batch-norm": {"model.norm": "batch", "model.activation": "relu"},
    "layer-norm": {"model.norm": "layer", "model.activation": "gelu", "model.residual": "scaled"},
    "rezero": {"model.residual": "rezero", "model.activation": "relu", "init.gate": 0.5},
    "dropout": {"model.dropout": 0.2, "model.input_dropout": 0.1, "model.activation": "relu"},
    "prelu": {"model.activation": "prelu", "model.residual": "plain"},
    "smoothing": {"label_smoothing": 0.1, "dtype": "float64"},
    "regression": {"data.name": "regression", "loss": "mse", "optimizer.l2": 0.01},
}


@pytest.mark.parametrize("depths", [(3, 3, 3), (4, 3, 1)], ids=["equal", "ragged"])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_networks_train_the_same_bit_for_bit_whichever_pass_is_left_out(structure, depths):
    sizes = {"model.depth": 3, "model.width": 16, "train.batch_size": 8, "train.steps": 2} | structure
    deeper = sizes["model.depth"] - 3
    configs = [configure(sizes | {"seed": seed, "model.depth": depth + deeper}) for seed, depth in enumerate(depths)]

    def trained(passes):
        ensemble, found = Ensemble(configs, passes=passes), []
        for _ in range(2):
            found += [ensemble.compute().clone(), ensemble.grads.clone()]
            ensemble.update()
        return found

    expected = trained(tuple(PASSES))
    for left_out in PASSES:
        found = trained(set(PASSES) - {left_out})
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), left_out


def test_a_pass_that_there_is_not_is_refused():
    parameters, inputs = network(1, 8)
    with pytest.raises(ValueError, match="passes: unknown 'stak'; choose from place_gradients, hoist_constants"):
        Plan(classifier(parameters, "relu"), inputs, parameters, passes=["stak"])


def record(formula, *inputs):
    """The program under a formula, and its result."""
    tape = Tape({id(tensor): tensor for tensor in inputs})
    with torch.no_grad(), tape, tape.formula():
        result = formula(*inputs)
    return Program(tape.operators, tape.made, {}, tape.alive), result


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
    program, _ = record(formula, X.clone())
    hoist_constants(program)
    assert names(program.operators) == left


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
    program, _ = record(formula, X.clone())
    share_results(program)
    assert names(program.operators) == left


def test_a_result_with_a_place_of_its_own_is_not_shared():
    for place, left in ((0, ["exp"]), (1, ["exp", "exp"])):
        program, results = record(lambda x: (torch.exp(x), torch.exp(x)), X.clone())
        program.pinned[key_of(results[place])] = (results[place].untyped_storage(), 0)
        share_results(program)
        assert names(program.operators) == left


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
    program, result = record(NUMBERS[case], x)
    wrap_numbers(program)
    (operator,) = program.operators
    assert all(isinstance(value, torch.Tensor) for value in operator.args)
    output = Buffers({key: (torch.UntypedStorage(result.nbytes), 0) for key in program.made})
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
        program, _ = record(formula, x)
        before = [operator.args for operator in program.operators]
        wrap_numbers(program)
        assert [operator.args for operator in program.operators] == before


def test_no_call_of_an_activation_allocates():
    for activation in ACTIVATIONS:
        parameters, inputs = network(2, 16, torch.float32)
        for keep in (False, True):
            plan = Plan(classifier(parameters, activation), inputs, parameters, keep=keep)
            general = [call for call in plan.program if getattr(call, "__name__", "") == "copied"]
            assert not general, activation


def test_an_error_of_an_operator_is_its_own():
    program, result = record(lambda x, index: x.gather(0, index), X.clone(), torch.zeros(1, 1).long())
    (operator,) = program.operators
    operator.args[2].fill_(9)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        compile_operator(operator, Buffers({key: (torch.UntypedStorage(result.nbytes), 0) for key in program.made}))
