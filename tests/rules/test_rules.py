"""Every rule on every sample: against its oracles by `bpexp.check`, and what a drop-in must do beyond that."""

import pytest
import torch

from bpexp import functional
from bpexp.check import Tolerances, assert_correct, check_rule, subject_of
from bpexp.oracles import Trial
from bpexp.rules import RULES, Rule, Sample

# The advice that torch gives where input and target of mse_loss broadcast; the rule gives the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

EVERY_RULE = pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))


def samples_of(rule: Rule) -> list[Sample]:
    return list(rule.samples(torch.Generator().manual_seed(0)))


EVERY_SAMPLE = pytest.mark.parametrize(
    ("rule", "sample"),
    [pytest.param(rule, s, id=f"{rule.name}-{s.name}") for rule in RULES.values() for s in samples_of(rule)],
)


def trial_of(rule: Rule, sample: Sample) -> Trial:
    """The sample's arguments with every differentiable tensor a leaf, and those leaves."""
    return subject_of(rule, rule.reference, None, None, Tolerances()).trial(sample)


def function_of(rule: Rule, trial: Trial):
    """The rule as a function of its differentiable tensors alone."""
    places = list(trial.places.values())

    def call(*tensors):
        args = list(trial.args)
        for place, tensor in zip(places, tensors, strict=True):
            args[place] = tensor
        return rule(*args)

    return call


@EVERY_SAMPLE
def test_value_and_derivatives_equal_the_reference_and_finite_differences(rule, sample):
    assert_correct(rule, [sample])


def test_the_tolerances_are_the_promised_ones():
    assert Tolerances() == Tolerances(reference=1e-10, second_order=1e-8, relative=1e-6, absolute=1e-8)


@EVERY_RULE
def test_sample_names_are_unique_and_one_is_the_batch(rule):
    names = [sample.name for sample in samples_of(rule)]
    assert len(set(names)) == len(names)
    assert "batch" in names


@EVERY_SAMPLE
def test_first_order_backward_dispatches_no_backward_operator(rule, sample):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    trial = trial_of(rule, sample)
    with Watch():
        y = rule(*trial.args)
        torch.autograd.grad(y, list(trial.leaves.values()), torch.ones_like(y))
    assert names
    assert not [name for name in names if "backward" in name]


@EVERY_RULE
def test_a_frozen_argument_gets_no_gradient_and_saves_nothing_for_it(rule):
    trial = trial_of(rule, samples_of(rule)[0])
    for kept in trial.leaves.values():
        for leaf in trial.leaves.values():
            leaf.requires_grad_(leaf is kept)
        y = rule(*trial.args)
        (grad,) = torch.autograd.grad(y.sum(), [kept])
        assert grad.shape == kept.shape
    if rule.name == "linear":
        trial.args[1].requires_grad_(False)
        trial.args[0].requires_grad_(True)
        trial.args[2].requires_grad_(False)
        assert [t.shape for t in rule(*trial.args).grad_fn.saved_tensors] == [trial.args[1].shape]


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES.values() if not hasattr(functional, rule.name)], ids=lambda rule: rule.name
)
def test_function_transforms_and_compilation(rule):
    """Those that are functions as well are transformed with torch's own samples."""
    trial = trial_of(rule, next(s for s in samples_of(rule) if s.name == "batch"))
    call, leaves = function_of(rule, trial), list(trial.leaves.values())
    expected = torch.autograd.grad(call(*leaves).sum(), leaves[:1])[0]
    torch.testing.assert_close(torch.func.grad(lambda x: call(x, *leaves[1:]).sum())(leaves[0].detach()), expected)
    stacked = torch.stack([leaves[0].detach(), 2 * leaves[0].detach()])
    per_sample = torch.func.vmap(torch.func.grad(lambda x: call(x, *leaves[1:]).sum()))(stacked)
    torch.testing.assert_close(per_sample[0], expected)
    torch._dynamo.reset()  # else one code object compiled for every rule meets the recompilation limit
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves).sum(), leaves[:1])[0], expected)


def test_a_saved_tensor_changed_in_place_is_detected():
    weight = torch.ones(2, 3, requires_grad=True)
    y = RULES["linear"](torch.ones(4, 3, requires_grad=True), weight, None)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def centred(restate):
    """A rule y = (x - m) * m with its mean m as an intermediate, which `restate` makes again."""

    def forward(x):
        mean = x.mean(0, keepdim=True)
        return (x - mean) * mean, mean

    rule = Rule(
        "centred_in_test",
        forward,
        {"x": lambda grad, x, mean: grad * mean + (grad * (x - 2 * mean)).mean(0, keepdim=True)},
        lambda x: forward(x)[0],
        lambda generator: [Sample("batch", (torch.randn(4, 3, generator=generator, dtype=torch.float64),))],
        "definition",
        intermediates=(("mean",), restate),
    )
    del RULES["centred_in_test"]
    return rule


def test_an_intermediate_is_made_again_where_the_backward_is_differentiated():
    assert check_rule(centred(lambda x: (x.mean(0, keepdim=True),))) == []
    for wrong in (lambda x: (x.mean(0, keepdim=True).detach(),), lambda x: (1.0001 * x.mean(0, keepdim=True),)):
        assert {mismatch.oracle for mismatch in check_rule(centred(wrong))} == {"second order"}


def test_a_first_order_backward_does_not_make_an_intermediate_again():
    def refuse(x):
        raise AssertionError

    x = torch.randn(4, 3, requires_grad=True)
    y, mean = centred(refuse).outputs(x)
    assert not mean.requires_grad
    assert [tensor.shape for tensor in y.grad_fn.saved_tensors] == [x.shape, mean.shape]
    y.sum().backward()
    with pytest.raises(AssertionError):
        torch.autograd.grad(centred(refuse)(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.intermediates is not None])
def test_outputs_are_y_and_constants(name):
    rule = RULES[name]
    trial = trial_of(rule, samples_of(rule)[0])
    y, *others = rule.outputs(*trial.args)
    assert torch.equal(y, rule(*trial.args))
    assert len(others) == len(rule.intermediates[0])
    stacked = torch.stack([trial.args[0], 2 * trial.args[0]])
    mapped = torch.func.vmap(lambda x: rule.outputs(x, *trial.args[1:]))(stacked)
    torch.testing.assert_close([each[0] for each in mapped], [y, *others])
    assert not any(tensor.requires_grad for tensor in (*others, *mapped[1:]))
