"""The activations of the networks against torch's own functions at their defaults, and torch autograd."""

import functools

import pytest
import torch
import torch.nn.functional as F

from bpexp import spec
from bpexp.activations import ACTIVATIONS, CONSTANTS
from bpexp.rules import RULES
from bpexp.rules.activations import network_prelu

TORCH = {"identity": lambda x: x.clone()} | {
    name: functools.partial(
        lambda rule, constants, x: rule.reference(x, *constants), RULES[name], CONSTANTS.get(name, ())
    )
    for name in spec.ACTIVATIONS
    if name not in ("identity", "prelu")
}
TORCH["prelu"] = lambda x: F.prelu(x, torch.nn.PReLU().weight.detach().to(x))
GRID = torch.cat([torch.linspace(-30, 30, 1201), torch.tensor([-1e4, -1.0, -1e-8, 0.0, 1e-8, 1.0, 20.0, 1e4])]).double()


def test_the_table_is_what_a_configuration_may_say():
    assert set(ACTIVATIONS) == set(spec.ACTIVATIONS) == set(TORCH)
    assert all(name == activation.name for name, activation in ACTIVATIONS.items())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_and_slope_are_torchs(name):
    x = GRID.clone().requires_grad_()
    y = TORCH[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ACTIVATIONS[name].function(GRID), y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ACTIVATIONS[name].slope(GRID), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_shape_and_type_are_kept(name, dtype):
    x = torch.linspace(-3, 3, 24, dtype=dtype).view(2, 3, 4)
    for function in (ACTIVATIONS[name].function, ACTIVATIONS[name].slope):
        assert (function(x).shape, function(x).dtype) == (x.shape, dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_function_can_be_differentiated(name):
    x = torch.linspace(-2.5, 2.5, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[name].function(x).sum(), x)
    torch.testing.assert_close(slope, ACTIVATIONS[name].slope(x.detach()), rtol=1e-12, atol=0)


def test_prelu_of_networks_has_a_slope_for_each():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weight = torch.tensor([0.25, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
    results = [network_prelu(x, weight), torch.stack([F.prelu(x[r], weight[r : r + 1]) for r in range(3)])]
    ours, theirs = [(y.detach(), *torch.autograd.grad(y.square().sum(), [x, weight])) for y in results]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
