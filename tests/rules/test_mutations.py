"""Every derivative of the table is changed in every way that `changes` knows, and every change is noticed.

A helper that several formulas share is changed under each of them until one notices; a change that one formula does not
notice, since its own constants or samples make no use of it, must be noticed by another that runs the same line.
"""

import ast
import functools
import math

import pytest
import torch
from changes import changes_of
from mutants import (
    TANGENT,
    Mutant,
    Place,
    evaluated_places,
    formulas,
    mutants,
    node_of,
    places,
    reachable,
    rebuilt,
    slots,
)

from bpexp.rules import RULES, Rule, Sample

# The advice that torch gives where input and target of mse_loss broadcast; the rule gives the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

FIRST_TERM = "the sum starts from zeros of the shape of the result"
ONLY_SHAPE = "only the shape of it is used, and what is added has the full shape"
ANY_POSITIVE = "stands for NaN, of which the slope is that of any positive number: 1"
ONE_CLASS = (
    "the number of classes is at least 1; where it is 1, log p = 0 and p = 1, so that every slope is 0 whatever q"
)
SQUARED = "the difference is squared"
NO_TANGENT = "torch hands zeros, not None, for a tensor without tangent"
ONE_PRODUCT = "one product of all rows is the sum of the products of its parts"
TAKES_DTYPE = "`to` takes the type from a tensor as well"
ONE_TYPE = "a sample's tensors are all of one type"
NO_MEAN = "it stands for 0 values, and what they would be the mean of is empty"
TWICE = "the sign of what is centred cancels: it stands twice in each term"

BOOLEAN_FACTOR = "a product of a boolean and a number has the number's type"

EQUIVALENT = {  # what no check can notice, and why
    "gradient: flat and torch.is_grad_enabled() -> flat": "adds 0 in the first-order pass as well",
    "gradient: factor + 0 * torch.sign(known[0]) -> factor - 0 * torch.sign(known[0])": "subtracts 0",
    "relu: (y != 0).to(y.dtype) -> y != 0": BOOLEAN_FACTOR,
    "relu: y.dtype -> y": TAKES_DTYPE,
    "kept: (noise >= threshold).to(scale.dtype) -> noise >= threshold": BOOLEAN_FACTOR,
    "kept: scale.dtype -> scale": TAKES_DTYPE,
    "nan_as_positive: torch.nan_to_num(x, 1.0, math.inf, -math.inf) -> torch.nan_to_num(x, math.inf, 1.0, -math.inf)": (
        f"infinity {ANY_POSITIVE}, and so does 1 for infinity"
    ),
    "nan_as_positive: 1.0 -> 2.0": ANY_POSITIVE,
    "nan_as_positive: 1.0 -> 1.001": ANY_POSITIVE,
    "matmul_grad_other: other.dim() <= 2 -> other.dim() < 2": ONE_PRODUCT,
    "matmul_grad_other: 2 -> 2.002": ONE_PRODUCT,
    "deviation: max(y.numel(), 1) -> y.numel()": "torch warns of an empty result: it is tested with the functions",
    "kept_shape: [1] * len(shape) -> [1]": "one number broadcasts to any shape",
    "index_slope: 0 -> 1": "the class that stands for an ignored one gets the weight 0",
    "index_slope: x.dtype -> x": TAKES_DTYPE,
    "classes: 1 -> 2": ONE_CLASS,
    "classes: 1 -> 1.001": ONE_CLASS,
    "probability_tangent: total + x_tangent * probability_slope(x, target, weight, reduction, label_smoothing) -> "
    "x_tangent * probability_slope(x, target, weight, reduction, label_smoothing)": FIRST_TERM,
    "squares_grad_weight: squares_weight_slope(y, x, target, weight, reduction) -> "
    "squares_weight_slope(y, target, x, weight, reduction)": SQUARED,
    "squares_weight_slope: x - target -> target - x": SQUARED,
    "squares_tangent: x - target -> x": ONLY_SHAPE,
    "squares_tangent: x - target -> target": ONLY_SHAPE,
    "squares_tangent: x - target -> x + target": ONLY_SHAPE,
    "squares_tangent: x - target -> target - x": ONLY_SHAPE,
    "squares_tangent: total + x_tangent * squares_slope(x, target, weight, reduction) -> "
    "x_tangent * squares_slope(x, target, weight, reduction)": FIRST_TERM,
    "squares_tangent: weight is not None and weight_tangent is not None -> "
    "weight is not None or weight_tangent is not None": "there is a tangent where there is a weight, and no other",
    "squares_tangent: weight is not None and weight_tangent is not None -> weight is not None": NO_TANGENT,
    "squares_tangent: weight is not None and weight_tangent is not None -> weight_tangent is not None": (
        "without a weight there is no tangent of it"
    ),
    "squares_tangent: squares_weight_slope(y, x, target, weight, reduction) -> "
    "squares_weight_slope(y, target, x, weight, reduction)": SQUARED,
    "network_log_p: x.mT.contiguous() -> x.mT": "the same numbers in another order in memory",
    "network_squares_tangent: total + x_tangent -> x_tangent": FIRST_TERM,
    "pulled_back: 1 -> 2": NO_MEAN,
    "pulled_back: 1 -> 1.001": NO_MEAN,
    "layer_statistics: x - mean -> mean - x": SQUARED,
    "batch_statistics: x - channels(mean, x) -> channels(mean, x) - x": SQUARED,
    "batch_norm_eval: grad.to(bias.dtype) -> grad": ONE_TYPE,
    "batch_norm_eval: bias.dtype -> bias": TAKES_DTYPE,
    "network_layer_grad_x: x - mean -> mean - x": TWICE,
}


CAUGHT: set[tuple[Place, str]] = set()
"""The changes that were caught under some formula: one that has caught another is not changed in the same way."""


@functools.cache
def outcomes(name: str) -> list[tuple[Mutant, bool]]:
    """The mutants of a rule, and whether the rule's own checks catch them."""
    found: list[tuple[Mutant, bool]] = []
    sound: set[str] = set()  # the formulas of which a mutant was caught

    def is_known(argument: str, place: Place, description: str) -> bool:
        return argument in sound and (place, description) in CAUGHT

    for mutant in mutants(RULES[name], is_known):
        caught = mutant.is_caught()
        found.append((mutant, caught))
        if caught:
            sound.add(mutant.argument)
            CAUGHT.add((mutant.place, mutant.description))
    return found


def is_caught_elsewhere(mutant: Mutant) -> bool:
    """Whether the same change of the same line is caught under another formula."""
    for name, rule in RULES.items():
        if (mutant.place, mutant.description) not in CAUGHT and mutant.place in places(rule):
            outcomes(name)
    return (mutant.place, mutant.description) in CAUGHT


@pytest.mark.parametrize("name", list(RULES))
def test_every_mutant_is_caught_or_equivalent(name):
    survivors = [mutant for mutant, caught in outcomes(name) if not caught]
    unexplained = [
        f"{mutant.argument}: {mutant.description}"
        for mutant in survivors
        if mutant.description not in EQUIVALENT and not is_caught_elsewhere(mutant)
    ]
    assert unexplained == []


@pytest.mark.parametrize("name", list(RULES))
def test_every_formula_has_mutants_that_its_own_checks_catch(name):
    assert {mutant.argument for mutant, caught in outcomes(name) if caught} == set(formulas(RULES[name]))


def test_no_equivalent_mutant_is_caught_or_gone():
    survived = {mutant.description for name in RULES for mutant, caught in outcomes(name) if not caught}
    caught = {mutant.description for name in RULES for mutant, caught in outcomes(name) if caught}
    assert set(EQUIVALENT) - survived == set()
    assert set(EQUIVALENT) & caught == set()


def test_every_line_that_can_be_changed_is_run_by_a_sample():
    every = set().union(*[places(rule) for rule in RULES.values()])
    run = {mutant.place for name in RULES for mutant, _ in outcomes(name)}
    assert every - run == set()


CHANGES = {  # an expression, and what must be among its changes
    "return a - b": {"-(a - b)", "(a - b) * 1.001", "a", "b", "a + b", "b - a"},
    "return a @ b": {"-(a @ b)", "a", "b", "b @ a", "a.mT @ b", "a @ b.mT"},
    "return a / 2": {"a * 2", "2 / a", "3", "2.002"},
    "return -a": {"a"},
    "return a.mT": {"a"},
    "return a.sum(0, keepdim=True)": {"a", "1", "a.sum(0)", "False"},
    "return f(a, b, c)": {"a", "f(b, a, c)", "f(a, c, b)"},
    "return torch.exp(a)": {"a"},
    "return a if b > 0 else c": {"a", "c", "not b > 0", "b < 0", "b >= 0"},
    "return a is None": {"a is not None"},
    "return a and b": {"a or b", "a", "b"},
    "return (a > 0) & b": {"(a > 0) | b"},
    "return a[:, None]": {"a"},
    "return a == 'mean'": {"a != 'mean'", "'mean?'"},
    "return a * HALF": {"HALF * 1.001", "a / HALF"},
    "return a * math.pi": {"math.pi * 1.001"},
    "if a:\n    return b": {"not a"},
}


@pytest.mark.parametrize("source", list(CHANGES))
def test_the_changes_of_an_expression(source):
    function = ast.parse(f"def function(a, b, c):\n    {source.replace(chr(10), chr(10) + '    ')}").body[0]
    known = {"torch": torch, "math": math, "HALF": 0.5}
    made = {ast.unparse(new) for s in slots(function) for new in changes_of(s.parent, s.field, s.node, known)}
    assert made >= CHANGES[source]


def test_what_changes_nothing_by_definition_is_not_made():
    function = ast.parse("def function(a: 1 + 2, b=3):\n    'text'\n    return max(a, b) * (a - a)").body[0]
    made = {ast.unparse(new) for s in slots(function) for new in changes_of(s.parent, s.field, s.node, {})}
    assert "max(b, a)" not in made
    assert not {"1", "2", "4", "'text?'"} & made
    assert "max(a, b) / (a - a)" in made


PAIR = (lambda x: x + 1, lambda x: sum(map(lambda y: y - 1, [x, 2 * x])) * 2)  # noqa: C417 - one inside the other


def test_a_formula_is_found_by_its_place_and_keeps_its_closure():
    assert ast.unparse(node_of(PAIR[0])) == "lambda x: x + 1"
    assert "* 2" in ast.unparse(node_of(PAIR[1]))
    assert [rebuilt(f, [f], {f: node_of(f)})(5) for f in PAIR] == [f(5) for f in PAIR]
    rule = RULES["softplus"]
    functions = reachable(rule.gradients["x"], rule.forward)
    assert [function.__name__ for function in functions] == ["gradient", "<lambda>", "softplus_slope"]
    twin = rebuilt(functions[0], functions, {function: node_of(function) for function in functions})
    grad, x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(twin(grad, x, 1.5, 2.0), rule.gradients["x"](grad, x, 1.5, 2.0))
    assert twin.names == rule.gradients["x"].names


@pytest.fixture
def weak():
    """A rule whose only sample, 0, cannot tell a gradient's sign or scale."""
    rule = Rule(
        "weak_in_test",
        lambda x: x * x * x / 3,
        {"x": lambda grad, x: grad * x * x},
        lambda x: x * x * x / 3,
        lambda generator: [Sample("zero", (torch.zeros((), dtype=torch.float64),))],
        "definition",
    )
    yield rule
    del RULES["weak_in_test"]


def test_a_weak_sample_lets_mutants_survive(weak):
    survivors = {mutant.description for mutant in mutants(weak) if not mutant.is_caught()}
    assert survivors == {
        "weak_in_test: grad * x * x -> -(grad * x * x)",
        "weak_in_test: grad * x * x -> grad * x * x * 1.001",
    }


def test_a_wrong_formula_has_no_mutants(weak):
    weak.gradients["x"] = lambda grad, x: grad * x
    with pytest.raises(AssertionError, match="the unchanged formula is wrong: weak_in_test, sample 'zero'"):
        evaluated_places(weak, "x", reachable(weak.gradients["x"], weak.forward))


def test_a_formula_without_source_says_so(weak):
    weak.gradients["x"] = torch.mul
    with pytest.raises(TypeError, match="has no source: write it as a lambda"):
        list(mutants(weak))


def test_the_tangent_is_a_formula_like_the_others(weak):
    assert TANGENT in formulas(RULES["tanh"])
    assert TANGENT not in formulas(weak)
