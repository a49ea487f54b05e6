"""Every rule on every sample, against torch autograd of its reference and against finite differences."""

import pytest
import torch

from bpexp.rules import RULES, Rule, Sample


def sample_calls() -> list:
    return list(every_sample())


def every_sample():
    for rule in RULES.values():
        for sample in rule.samples(torch.Generator().manual_seed(0)):
            yield pytest.param(rule, sample, id=f"{rule.name}-{sample.name}")


def leaves_of(rule: Rule, sample: Sample) -> tuple[list, list[torch.Tensor]]:
    """The sample's arguments with every differentiable tensor a leaf, and those leaves."""
    wanted = {argument for gradient in rule.backward for argument in gradient.arguments}
    args, leaves = [], []
    for index, value in enumerate(sample.args):
        name = rule.parameters[min(index, len(rule.parameters) - 1)]
        if isinstance(value, torch.Tensor) and name in wanted:
            leaves.append(value.detach().requires_grad_())
            args.append(leaves[-1])
        else:
            args.append(value)
    return args, leaves


def function_of(rule: Rule, args: list, leaves: list[torch.Tensor]):
    """The rule as a function of its differentiable tensors alone."""

    def call(*tensors):
        replaced = {id(leaf): tensor for leaf, tensor in zip(leaves, tensors, strict=True)}
        return rule(*[replaced.get(id(a), a) for a in args])

    return call


@pytest.mark.parametrize(("rule", "sample"), sample_calls())
def test_value_and_gradient_equal_the_reference(rule, sample):
    args, leaves = leaves_of(rule, sample)
    ours, theirs = rule(*args), rule.reference(*args)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("rule", "sample"), sample_calls())
def test_second_derivatives_equal_the_reference(rule, sample):
    args, leaves = leaves_of(rule, sample)
    second = []
    for call in (rule, rule.reference):
        y = call(*args)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
        first = torch.autograd.grad((y.square() * weights).sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("rule", "sample"), sample_calls())
def test_gradients_equal_finite_differences(rule, sample):
    args, leaves = leaves_of(rule, sample)
    if not sample.kink and all(leaf.numel() for leaf in leaves):
        call = function_of(rule, args, leaves)
        assert torch.autograd.gradcheck(call, leaves, rtol=1e-6, atol=1e-8, check_forward_ad=rule.jvp is not None)


@pytest.mark.parametrize(("rule", "sample"), sample_calls())
def test_first_order_backward_dispatches_no_backward_operator(rule, sample):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    args, leaves = leaves_of(rule, sample)
    with Watch():
        y = rule(*args)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert names
    assert not [name for name in names if "backward" in name]


@pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))
def test_a_frozen_argument_gets_no_gradient_and_saves_nothing_for_it(rule):
    sample = rule.samples(torch.Generator().manual_seed(0))[0]
    args, leaves = leaves_of(rule, sample)
    for kept in leaves:
        for leaf in leaves:
            leaf.requires_grad_(leaf is kept)
        y = rule(*args)
        (grad,) = torch.autograd.grad(y.sum(), [kept])
        assert grad.shape == kept.shape
    if rule.name == "linear":
        args[1].requires_grad_(False)
        args[0].requires_grad_(True)
        args[2].requires_grad_(False)
        assert [t.shape for t in rule(*args).grad_fn.saved_tensors] == [args[1].shape]


@pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))
def test_function_transforms_and_compilation(rule):
    sample = next(s for s in rule.samples(torch.Generator().manual_seed(0)) if s.name == "batch")
    args, leaves = leaves_of(rule, sample)
    call = function_of(rule, args, leaves)
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
