"""The checker is tested first: every fault of a Function must be found, and named with the argument it sits in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from bpexp.check import Mismatch, Tolerances, assert_correct, check_function, check_rule
from bpexp.rules import RULES, Sample
from bpexp.rules.table import names_of, renamed


class Product(torch.autograd.Function):
    """The matrix product, right."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.mT, x.mT @ grad


def product(formula=None, **members):
    """Return the product with another backward, `formula(grad, x, weight)`, or with other members."""
    if formula is not None:
        members["backward"] = lambda ctx, grad: formula(grad, *ctx.saved_tensors)
    return type("Product", (Product,), {name: staticmethod(member) for name, member in members.items()})


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SAMPLE = Sample("batch", (normal(4, 3), normal(3, 2, seed=1)))


def one_element(grad, x, weight):
    grad_weight = x.mT @ grad
    return grad @ weight.mT, grad_weight + 1e-4 * F.one_hot(torch.tensor([5]), 6).view(3, 2)


def raise_always(grad, x, weight):
    raise RuntimeError("not\ntoday")


def raise_for_weight(ctx, grad):
    if ctx.needs_input_grad[1]:
        raise IndexError("no such axis")
    return grad @ ctx.saved_tensors[1].mT, None


def change_saved(grad, x, weight):
    grad_x = grad @ weight.mT
    weight.mul_(2)
    return grad_x, x.mT @ grad


def change_incoming(grad, x, weight):
    grads = grad @ weight.mT, x.mT @ grad
    grad.zero_()
    return grads


def change_result(ctx, grad):
    ctx.result.zero_()
    return Product.backward(ctx, grad)


def keep_result(ctx, x, weight):
    ctx.result = Product.forward(ctx, x, weight)
    return ctx.result


def change_input(ctx, x, weight):
    ctx.save_for_backward(x, weight)
    y = x @ weight
    x.add_(1)
    return y


def as_if_contiguous(grad, x, weight):
    return grad @ weight.mT, x.mT @ grad.as_strided(grad.shape, (2, 1))


def needs_x(ctx, grad):
    x, weight = ctx.saved_tensors
    return grad @ weight.mT, x.mT @ grad if ctx.needs_input_grad[0] else torch.zeros_like(weight)


def hide_weight(ctx, x, weight):
    ctx.save_for_backward(x, weight)
    ctx.weight = weight.clone()  # a copy that autograd does not follow
    return x @ weight


def use_hidden(ctx, grad):
    return grad @ ctx.weight.detach().mT, ctx.saved_tensors[0].mT @ grad


def other_value(ctx, x, weight):
    return Product.forward(ctx, x, weight) * (1 + 1e-8)


def random_value(ctx, x, weight):
    return Product.forward(ctx, x, weight) + torch.rand(())


def jvp(formula):
    def tangent(ctx, x_tangent, weight_tangent):
        return formula(*ctx.saved_tensors, x_tangent, weight_tangent)

    def forward(x, weight):
        return x @ weight

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    return product(jvp=tangent, forward=forward, setup_context=setup_context)


FAULTS = {  # the Function, the argument that must be named, what the message must say
    "scaled-x": (product(lambda grad, x, weight: (1.0001 * grad @ weight.mT, x.mT @ grad)), "x", "gradient is off by"),
    "scaled-weight": (product(lambda grad, x, weight: (grad @ weight.mT, 1.0001 * x.mT @ grad)), "weight", "is off by"),
    "sign": (product(lambda grad, x, weight: (-(grad @ weight.mT), x.mT @ grad)), "x", "12 of 12 elements"),
    "one-element": (product(one_element), "weight", "at [2, 1] ("),
    "ignores-grad": (
        product(lambda grad, x, weight: (grad @ weight.mT, x.mT @ torch.ones_like(grad))),
        "weight",
        "gradient is off",
    ),
    "shape": (
        product(lambda grad, x, weight: (grad @ weight.mT, grad.mT @ x)),
        "weight",
        "has shape ([2, 3]) instead of ([3, 2])",
    ),
    "shape-that-autograd-sums": (
        product(lambda grad, x, weight: (grad @ weight.mT, x[:, :, None] * grad[:, None])),
        "weight",
        "has shape ([4, 3, 2]) instead of ([3, 2])",
    ),
    "dtype": (
        product(lambda grad, x, weight: (grad @ weight.mT, (x.mT @ grad).float())),
        "weight",
        "has dtype torch.float32 instead of torch.float64",
    ),
    "none": (product(lambda grad, x, weight: (grad @ weight.mT, None)), "weight", "None was returned"),
    "too-few": (product(lambda grad, x, weight: grad @ weight.mT), "weight", "1 gradients for 2 arguments"),
    "number": (product(lambda grad, x, weight: (1.0, x.mT @ grad)), "x", "gradient is a float"),
    "nan": (product(lambda grad, x, weight: (grad @ weight.mT, x.mT @ grad * float("nan"))), "weight", "(nan instead"),
    "infinity": (product(lambda grad, x, weight: (grad @ weight.mT / 0, x.mT @ grad)), "x", "inf instead"),
    "raises": (product(raise_always), "x, weight", "backward raised RuntimeError: not today"),
    "raises-for-weight": (product(backward=raise_for_weight), "weight", "backward raised IndexError: no such axis"),
    "forward-raises": (product(forward=raise_always), "value", "forward raised RuntimeError: not today"),
    "forward-changes-x": (product(forward=change_input), "x", "forward changed it in place"),
    "backward-changes-weight": (product(change_saved), "weight", "backward changed it in place"),
    "backward-changes-grad": (product(change_incoming), "x, weight", "backward changed the incoming gradient in place"),
    "backward-changes-result": (
        product(forward=keep_result, backward=change_result),
        "value",
        "backward changed the forward's result in place",
    ),
    "view": (
        product(lambda grad, x, weight: (grad @ weight.mT, x.mT @ grad.view(-1).view(4, 2))),
        "x, weight",
        "backward raised RuntimeError: view",
    ),
    "as-if-contiguous": (product(as_if_contiguous), "weight", "oracle: another layout"),
    "needs-the-other": (product(backward=needs_x), "weight", "oracle: frozen arguments"),
    "random": (product(forward=random_value), "value", "oracle: a second call"),
    "no-tensor": (product(forward=lambda ctx, x, weight: 1.0), "value", "a result is a float"),
    "hidden-weight": (
        product(forward=hide_weight, backward=use_hidden),
        "x",
        "derivative of its gradient by weight is off",
    ),
    "once-differentiable": (
        product(backward=once_differentiable(Product.backward)),
        "x",
        "derivative of its gradient by weight is off",
    ),
    "jvp-weight": (
        jvp(lambda x, weight, dx, dw: dx @ weight + 1.0001 * x @ dw),
        "weight",
        "oracle: forward mode",
    ),
    "jvp-of-both": (
        jvp(lambda x, weight, dx, dw: dx @ weight + x @ dw * (2 if dx.any() and dw.any() else 1)),
        "x, weight",
        "oracle: forward mode",
    ),
}


@pytest.mark.parametrize("reference", [torch.matmul, None], ids=["torch", "finite-differences"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_found_and_named(fault, reference):
    function, argument, message = FAULTS[fault]
    found = check_function(function, [SAMPLE], reference)
    assert found
    assert found[0].argument == argument
    text = str(found[0])
    assert text.startswith(f"Product, sample 'batch', argument '{argument}': ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("function", "argument", "oracle"),
    [
        (product(lambda grad, x, weight: ((1 + 1e-6) * grad @ weight.mT, x.mT @ grad)), "x", "torch"),
        (product(forward=other_value), "value", "torch"),
        (jvp(lambda x, weight, dx, dw: dx @ weight + (1 + 1e-6) * x @ dw), "weight", "forward mode"),
    ],
    ids=["gradient", "value", "jvp"],
)
def test_the_reference_finds_what_is_too_small_for_finite_differences(function, argument, oracle):
    found = check_function(function, [SAMPLE], torch.matmul)
    assert {(mismatch.argument, mismatch.oracle) for mismatch in found} >= {(argument, oracle)}
    assert not check_function(function, [SAMPLE], torch.matmul, tolerances=Tolerances(1e-4, 1e-4, 1e-4))


class Both(torch.autograd.Function):
    """Two results, and an integer one: the sum, the product and the larger's place."""

    @staticmethod
    def forward(ctx, x, other):
        ctx.save_for_backward(x, other)
        return x + other, x * other, torch.argmax(x)

    @staticmethod
    def backward(ctx, grad_sum, grad_product, grad_place):
        x, other = ctx.saved_tensors
        return grad_sum + grad_product * other, grad_sum + grad_product * x


class ForgetsTheSum(Both):
    @staticmethod
    def backward(ctx, grad_sum, grad_product, grad_place):
        x, other = ctx.saved_tensors
        return grad_product * other, grad_sum + grad_product * x


class Gather(torch.autograd.Function):
    """x at the places, of which the last is not differentiable."""

    @staticmethod
    def forward(ctx, x, places, scale=1.0):
        ctx.save_for_backward(places)
        ctx.shape, ctx.scale = x.shape, scale
        return scale * x[places]

    @staticmethod
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        return ctx.scale * grad.new_zeros(ctx.shape).index_add(0, places, grad), None, None


def both(x, other):
    return x + other, x * other, torch.argmax(x)


class ComplexProduct(Product):
    """The product that is right for complex numbers too."""

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.mH, x.mH @ grad


COMPLEX = tuple(torch.complex(t, t.flip(0)) for t in SAMPLE.args)

RIGHT = {  # the function, the sample, the reference
    "class": (Product, SAMPLE, torch.matmul),
    "apply": (Product.apply, SAMPLE, torch.matmul),
    "call": (lambda x, weight: Product.apply(x, weight).sin(), SAMPLE, lambda x, weight: (x @ weight).sin()),
    "module": (torch.nn.GELU(), (normal(5),), F.gelu),
    "without-signature": (torch.sin, (normal(5),), torch.sin),
    "variadic": (
        lambda *tensors: torch.cat(tensors) ** 2,
        (normal(2), normal(3)),
        lambda a, b: torch.cat((a**2, b**2)),
    ),
    "jvp": (jvp(lambda x, weight, dx, dw: dx @ weight + x @ dw), SAMPLE, torch.matmul),
    "tuple": (Both, (normal(4), normal(4, seed=1)), both),
    "integers": (Gather, (normal(5, 2), torch.tensor([3, 0, 3]), 2.0), lambda x, places, scale: scale * x[places]),
    "empty": (Product, (normal(0, 3), normal(3, 2)), torch.matmul),
    "single-precision": (Product, (normal(4, 3).float(), normal(3, 2).float()), torch.matmul),
    "transposed": (Product, (normal(3, 4).mT, normal(2, 3).mT), torch.matmul),
    "expanded": (Product, (normal(3).expand(4, 3), normal(1).expand(3, 2)), torch.matmul),
    "large": (torch.Tensor.sin, (1e6 * normal(3),), torch.sin),
    "complex": (ComplexProduct, COMPLEX, torch.matmul),
    "number": (Product, (normal(1, 1), normal(1, 1, seed=1)), torch.matmul),
}


@pytest.mark.parametrize("known", [True, False], ids=["torch", "finite-differences"])
@pytest.mark.parametrize("case", list(RIGHT))
def test_a_right_function_passes(case, known):
    function, sample, reference = RIGHT[case]
    assert_correct(function, [sample], reference if known else None)


def test_a_missing_part_of_two_results_is_found():
    sample = (normal(4), normal(4, seed=1))
    for reference in (both, None):
        assert {mismatch.argument for mismatch in check_function(ForgetsTheSum, [sample], reference)} == {"x"}
    (mismatch,) = check_function(Both, [sample], torch.add)
    assert mismatch.argument == "value"
    assert "3 results instead of 1" in str(mismatch)


def test_a_missing_conjugate_is_found():
    found = check_function(Product, [COMPLEX], torch.matmul)
    assert [(mismatch.argument, mismatch.oracle) for mismatch in found] == [("x", "torch"), ("weight", "torch")]


def test_at_a_kink_the_reference_alone_decides():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert check_function(torch.relu, [Sample("zero", (zeros,))])
    assert not check_function(torch.relu, [Sample("zero", (zeros,), kink=True)], torch.relu)
    (mismatch,) = check_function(lambda x: x.clamp(min=0), [Sample("zero", (zeros,), kink=True)], torch.relu)
    assert (mismatch.argument, mismatch.oracle) == ("x", "torch")


def test_none_where_torch_returns_zeros_is_found():
    silent = product(
        lambda grad, x, weight: (2 * grad, None),
        forward=lambda ctx, x, weight: ctx.save_for_backward(x, weight) or 2 * x,
    )
    samples = [(normal(4), normal(4))]
    (mismatch,) = check_function(silent, samples, lambda x, weight: 2 * x + 0 * weight)
    assert (mismatch.argument, mismatch.message) == ("weight", "gradient is None where torch's is a tensor")
    assert not check_function(silent, samples, lambda x, weight: 2 * x)
    assert not check_function(silent, samples)


@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
@pytest.mark.parametrize("factor", [1.0001, 1 + 1e-6])
def test_a_scaled_rule_is_found_on_every_sample_that_has_such_a_gradient(argument, factor):
    rule = RULES["linear"]
    formula = rule.gradients[argument]
    scaled = renamed(lambda *needs: factor * formula(*needs), names_of(formula))
    twin = replace(rule, name="wrong_linear", gradients={**rule.gradients, argument: scaled})
    del RULES["wrong_linear"]
    expected = []
    for sample in rule.samples(torch.Generator().manual_seed(0)):
        value = sample.args[rule.parameters.index(argument)]
        if value is not None:
            leaf = value.clone().requires_grad_()
            y = rule.reference(*[leaf if arg is value else arg for arg in sample.args])
            if torch.autograd.grad(y, leaf, torch.ones_like(y))[0].any():
                expected.append(sample.name)
    found = check_rule(twin)
    assert [(m.name, m.sample, m.argument, m.oracle) for m in found] == [
        ("wrong_linear", name, argument, "torch") for name in expected
    ]
    assert check_rule(twin, first=True) == found[:1]


def test_a_mismatch_says_where_the_largest_error_sits():
    (mismatch,) = check_function(product(one_element), [SAMPLE], torch.matmul)
    assert isinstance(mismatch, Mismatch)
    assert mismatch.error == pytest.approx(1e-4, rel=1e-6)
    assert 1e-10 < mismatch.tolerance < 1e-9
    assert "is off by 0.0001 at [2, 1] (" in mismatch.message
    assert "1 of 6 elements wrong" in mismatch.message


def test_every_sample_is_checked_and_plain_ones_are_numbered():
    wrong = product(lambda grad, x, weight: (grad @ weight.mT, 2 * x.mT @ grad))
    found = check_function(wrong, [SAMPLE, (normal(2, 2), normal(2, 2))], torch.matmul, name="mine")
    assert [(m.name, m.sample, m.argument) for m in found] == [("mine", "batch", "weight"), ("mine", "1", "weight")]
    with pytest.raises(AssertionError) as caught:
        assert_correct(wrong, [SAMPLE, SAMPLE], torch.matmul)
    assert len(str(caught.value).splitlines()) == 2
    assert not check_function(wrong, [SAMPLE], torch.matmul, arguments=["x"])


def test_second_order_can_be_left_out():
    once = product(backward=once_differentiable(Product.backward))
    assert not check_function(once, [SAMPLE], torch.matmul, second_order=False)


def test_nothing_to_check_is_an_error():
    with pytest.raises(ValueError, match="there are no samples to check"):
        check_function(Product, [])
    with pytest.raises(ValueError, match="Product has no argument bias; it has x, weight"):
        check_function(Product, [SAMPLE], arguments=["bias"])
    with pytest.raises(ValueError, match="Product, sample '0': there is no argument to differentiate"):
        check_function(Product, [(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64))])


def test_a_broken_reference_is_not_taken_for_a_broken_function():
    def reference(x, weight):
        raise IndexError("of the reference")

    with pytest.raises(IndexError, match="of the reference"):
        check_function(Product, [SAMPLE], reference)


def test_a_second_derivative_that_is_zero_may_be_none():
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0] > 0)

    x = torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64)
    assert check_function(Relu, [x], torch.relu) == []
