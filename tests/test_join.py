"""Joining in a plan: nothing is copied that can be made in its place, and the numbers are the same, bit for bit."""

import pytest
import torch
from conftest import configure

from bpexp.ensemble import Ensemble
from bpexp.plan import Plan, plan
from bpexp.plan.buffers import assign
from bpexp.plan.passes import PASSES
from bpexp.rules.activations import relu, tanh
from bpexp.rules.arithmetic import multiply, square
from bpexp.rules.networks import network_activation
from bpexp.rules.reductions import sum as total
from bpexp.rules.views import cat, slice

WITHOUT = [name for name in PASSES if name != "join_parts"]
JOINED = {"cat", "constant_pad_nd"}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(x, weight):
    parts = (("tanh", (), 1), ("relu", (), 2), ("identity", (), 1))
    return total(square(network_activation(multiply(x, weight), parts)), (1, 2), False)


def layers_that_end(x, weight):
    h = multiply(x, weight)
    ended, h = slice(h, 0, 2, 4), slice(h, 0, 0, 2)
    return total(square(cat(0, tanh(h), ended)), (1, 2), False)


def joined_twice(x, weight):
    h = multiply(x, weight)
    inner = cat(0, tanh(slice(h, 0, 0, 1)), relu(slice(h, 0, 1, 3)))
    return total(square(cat(0, inner, square(slice(h, 0, 3, 4)))), (1, 2), False)


def overlapping(x, weight):
    h = multiply(x, weight)
    return total(square(cat(0, tanh(slice(h, 0, 0, 3)), slice(h, 0, 2, 3))), (1, 2), False)


def the_same_part_twice(x, weight):
    h = tanh(slice(multiply(x, weight), 0, 0, 2))
    return total(square(cat(0, h, h)), (1, 2), False)


def along_the_last_axis(x, weight):
    h = multiply(x, weight)
    return total(square(cat(2, tanh(slice(h, 2, 0, 3)), slice(h, 2, 3, 8))), (1, 2), False)


MODELS = {
    "activations": (activations, set()),
    "layers-that-end": (layers_that_end, set()),
    "joined-twice": (joined_twice, {"constant_pad_nd"}),  # three paddings are added up
    "overlapping": (overlapping, {"constant_pad_nd"}),
    "the-same-part-twice": (the_same_part_twice, JOINED),
    "along-the-last-axis": (along_the_last_axis, JOINED),
}


@pytest.fixture
def programs(monkeypatch):
    """The names of the operators of each plan that is made, after its passes."""
    found = []

    def assigning(program, **options):
        found.append({operator.name for operator in program.operators if not program.observes(operator)})
        return assign(program, **options)

    monkeypatch.setattr(plan, "assign", assigning)
    return found


@pytest.mark.parametrize("keep", [False, True], ids=["step", "keep"])
@pytest.mark.parametrize(("model", "left"), MODELS.values(), ids=MODELS)
def test_joined_is_what_can_be_and_the_numbers_are_the_same(model, left, keep, programs):
    x, weight = normal(4, 3, 8), normal(4, 1, 8, seed=1)
    plans = [
        Plan(lambda x: model(x, weight), [x], [weight], keep=keep, passes=passes) for passes in (tuple(PASSES), WITHOUT)
    ]
    if not keep:  # else what is joined is kept where it was made
        assert programs[0] & JOINED == left
        assert programs[1] & JOINED > left or left == programs[1] & JOINED
    leaf = weight.clone().requires_grad_()
    for _ in range(2):
        x.copy_(x.flip(1))
        joined, plain = (plan.step().clone() for plan in plans)
        assert torch.equal(joined, plain)
        assert torch.equal(plans[0].flat_grad, plans[1].flat_grad)
        (grad,) = torch.autograd.grad(model(x, leaf).sum(), leaf)
        torch.testing.assert_close(plans[0].grads[0], grad, rtol=1e-12, atol=1e-12)


KINDS = {
    "depths": [(4, "tanh"), (4, "tanh"), (3, "tanh"), (1, "tanh")],
    "activations": [(3, "relu"), (3, "relu"), (3, "gelu"), (3, "identity")],
    "both": [(4, "relu"), (4, "sigmoid"), (2, "relu"), (2, "identity")],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_networks_of_several_kinds_train_the_same_bit_for_bit(kinds, dtype, programs):
    """In layers of 16 units: where a kernel's last bits depend on it, a part begins as aligned as it did before."""
    sizes = {"model.width": 16, "train.batch_size": 8, "train.steps": 3, "dtype": dtype}
    configs = [
        configure(sizes | {"seed": seed, "model.depth": depth, "model.activation": name})
        for seed, (depth, name) in enumerate(kinds)
    ]
    ensembles = [Ensemble(configs, passes=passes) for passes in (tuple(PASSES), WITHOUT)]
    assert "constant_pad_nd" not in programs[0]
    for _ in range(3):
        losses = [ensemble.compute().clone() for ensemble in ensembles]
        assert torch.equal(*losses)
        for ensemble in ensembles:
            ensemble.update()
        assert torch.equal(*(ensemble.values for ensemble in ensembles))
