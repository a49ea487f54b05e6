"""Critical gains against an independent quadrature, published values and the length map itself."""

import itertools
import math
import re
import time

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from bpexp import theory
from bpexp.activations import ACTIVATIONS, CONSTANTS, Activation
from bpexp.rules.table import RULES
from bpexp.theory import chi_1, critical, fixed_point, value_and_slope_at_zero

CRITICAL = {  # sigma_w^2 to six digits, where there is one, without biases and with sigma_b = 0.1 and 0.5
    "identity": (1.0, None, None),
    "sigmoid": (103.007554, 103.031767, 103.609182),
    "tanh": (1.0, 1.424205, 2.401489),
    "relu": (2.0, None, None),
    "leaky_relu": (1.999800, None, None),
    "elu": (1.0, 1.383325, 1.705928),
    "celu": (1.0, 1.383325, 1.705928),
    "selu": (0.476771, 0.760233, 1.101739),
    "gelu": (None, None, 1.959631),
    "gelu_tanh": (None, None, 1.959445),
    "silu": (None, None, None),
    "mish": (None, None, 1.941647),
    "softplus": (None, None, None),
    "softsign": (1.0, 2.288770, 4.692540),
    "hardtanh": (1.0, 1.052061, 1.471728),
    "prelu": (1.882353, None, None),
}
BIASES = (0.0, 0.1, 0.5)
CASES = [(name, bias, row[k]) for name, row in CRITICAL.items() for k, bias in enumerate(BIASES)]


def test_every_activation_is_in_the_table():
    assert CRITICAL.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize(("name", "bias_std", "expected"), CASES)
def test_table_of_critical_gains(name, bias_std, expected):
    if expected is None:
        with pytest.raises(ValueError, match=rf"^init: critical: {name} has no critical point at init.bias_std="):
            critical(name, bias_std)
        return
    gain = critical(name, bias_std)
    assert gain**2 == pytest.approx(expected, abs=6e-7)
    length = fixed_point(name, gain**2, bias_std**2)
    slope = float(chi_1(name, max(length, 1e-20), gain**2))
    assert slope == pytest.approx(1, abs=1e-6)


def reference(name):
    """A function and its slope, by torch's own of one number and its autograd."""
    rule, constants = RULES[name], CONSTANTS.get(name, ())

    def both(x):
        t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        y = rule.reference(t, *constants)
        (slope,) = torch.autograd.grad(y, t)
        return y.item(), slope.item()

    return both


def adaptive_moments(name, q):
    """E phi^2 and E phi'^2 by adaptive quadrature between the kinks."""
    both, root = reference(name), math.sqrt(q)
    edges = sorted({-12.0, 0.0, 12.0, *(sign / root for sign in (-1, 1) if q > 1 / 144)})

    def moment(which):
        def weighted(z):
            return both(root * z)[which] ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(quad(weighted, *ends, epsabs=1e-11, epsrel=1e-10)[0] for ends in itertools.pairwise(edges))

    return moment(0), moment(1)


QUADRATURES = [
    ("tanh", 0.1, (0.1, 1.0)),
    ("tanh", math.sqrt(0.05), (0.2, 2.0)),
    ("selu", 0.1, (0.1, 1.0)),
    ("gelu", 0.5, (3.0, 12.0)),
    ("mish", 0.5, (3.0, 12.0)),
    ("hardtanh", 0.1, (0.1, 1.0)),
    ("softsign", 0.5, (0.5, 3.0)),
    ("sigmoid", 0.0, (30.0, 60.0)),
]


@pytest.mark.parametrize(("name", "bias_std", "bracket"), QUADRATURES)
def test_critical_gain_is_that_of_an_adaptive_quadrature(name, bias_std, bracket):
    def residue(q):
        second, slope = adaptive_moments(name, q)
        return second / slope + bias_std**2 - q

    q = brentq(residue, *bracket, xtol=1e-9, rtol=1e-9)
    assert critical(name, bias_std) ** 2 == pytest.approx(1 / adaptive_moments(name, q)[1], rel=1e-6)


@pytest.mark.parametrize(("sigma_b2", "sigma_w2"), [(0.01, 1.4242), (0.05, 1.7610), (0.10, 1.9861)])
def test_critical_gain_of_tanh_is_the_published_one(sigma_b2, sigma_w2):
    """Claim 4."""
    assert critical("tanh", math.sqrt(sigma_b2)) ** 2 == pytest.approx(sigma_w2, abs=5e-5)


@pytest.mark.parametrize("name", ["tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid"])
@pytest.mark.parametrize("bias_std", [0.0, 0.5])
def test_function_of_the_users_own_has_the_rules_gain(name, bias_std):
    own = RULES[name].reference
    expected = CRITICAL[name][BIASES.index(bias_std)]
    if expected is None:
        with pytest.raises(ValueError, match="has no critical point"):
            critical(own, bias_std)
    else:
        assert critical(own, bias_std) == pytest.approx(math.sqrt(expected), abs=1e-6)
    assert critical(Activation("own", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2), 0.5) == critical("tanh", 0.5)


def test_gain_of_scaled_functions_follows_the_scale():
    """sigma_w of a phi(x) is that of phi over a; of phi(a x) at no biases as well."""
    for own in (lambda x: 3 * torch.tanh(x), lambda x: torch.tanh(3 * x)):
        assert critical(own) == pytest.approx(1 / 3, rel=1e-7)
    assert critical(lambda x: 3 * torch.tanh(x), 0.5) == pytest.approx(critical("tanh", 0.5) / 3, rel=1e-7)


def test_tiny_biases_lead_to_the_gain_without():
    """E tanh^2 = q - 2 q^2 + 17/3 q^3 and E tanh'^2 = 1 - 2 q + 7 q^2: sigma_b^2 = 4/3 q^3 and sigma_w^2 = 1 + 2 q."""
    for bias_std in (1e-3, 1e-5, 1e-8):
        assert critical("tanh", bias_std) ** 2 - 1 == pytest.approx(2 * (0.75 * bias_std**2) ** (1 / 3), rel=0.01)


REFUSED = [
    (
        "gelu",
        0.0,
        "init: critical: gelu has no critical point at init.bias_std=0: the gain that makes chi_1 = 1 at q = 0 makes "
        "lengths grow without bound; choose init.bias_std=0.5 or another model.activation",
    ),
    (
        "relu",
        0.1,
        "init: critical: relu has no critical point at init.bias_std=0.1: a gain that makes chi_1 = 1 makes lengths "
        "grow without bound; choose init.bias_std=0 or another model.activation",
    ),
    (
        "silu",
        0.5,
        "init: critical: silu has no critical point at init.bias_std=0.5: the gain that makes chi_1 = 1 at q = 4.43 "
        "makes lengths tend to q = 1.05; choose init.bias_std=1 or another model.activation",
    ),
    (
        "softplus",
        0.0,
        "init: critical: softplus has no critical point at init.bias_std=0: a gain that makes chi_1 = 1 makes lengths "
        "grow without bound; choose another model.activation",
    ),
    (
        lambda x: torch.sign(x),
        0.0,
        "init: critical: <lambda> has no critical point at init.bias_std=0: its slope is zero almost everywhere; "
        "choose another model.activation",
    ),
    ("tanh", -0.1, "init.bias_std: -0.1 is not a finite number of at least 0"),
    ("tanhh", 0.0, "activation: unknown 'tanhh'; did you mean 'tanh'?"),
]


@pytest.mark.parametrize(("activation", "bias_std", "message"), REFUSED)
def test_what_has_no_critical_point_is_told_why(activation, bias_std, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        critical(activation, bias_std)


def test_the_length_map_stays_at_the_critical_point():
    """What makes it critical: from q = 1 lengths come to rest, and there gradients neither vanish nor explode."""
    gain, q = critical("softsign", 0.5), 1.0
    for _ in range(200):
        q = float(theory.length_map("softsign", q, gain**2, 0.25))
    assert float(chi_1("softsign", q, gain**2)) == pytest.approx(1, abs=1e-9)


def test_names_are_remembered():
    critical("elu", 0.123)
    start = time.process_time()
    for _ in range(1000):
        critical("elu", 0.123)
    assert time.process_time() - start < 0.05


def test_function_that_changed_is_asked_again():
    module = torch.nn.PReLU(init=0.5, dtype=torch.float64)
    first = critical(module)
    torch.nn.init.constant_(module.weight, 0.0)
    assert first == pytest.approx(math.sqrt(2 / 1.25))
    assert critical(module) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_at_zero_are_those_of_the_row(name):
    zero = torch.zeros(1, dtype=torch.float64)
    row = ACTIVATIONS[name]
    np.testing.assert_array_equal(value_and_slope_at_zero(name), [row.function(zero).item(), row.slope(zero).item()])


def test_a_function_that_is_not_differentiated_has_no_slope():
    assert value_and_slope_at_zero(lambda x: torch.ones_like(x) * 2) == (2.0, 0.0)
