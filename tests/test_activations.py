"""The activations of the networks against torch's own functions at their defaults, and torch autograd."""

import functools

import pytest
import torch

from bpexp import spec
from bpexp.activations import ACTIVATIONS, CONSTANTS
from bpexp.rules import RULES

TORCH = {"identity": lambda x: x.clone()} | {
    name: functools.partial(
        lambda rule, constants, x: rule.reference(x, *constants), RULES[name], CONSTANTS.get(name, ())
    )
    for name in spec.ACTIVATIONS
    if name != "identity"
}
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
