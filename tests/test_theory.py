"""Moments, length maps and selu's map against closed forms, published values and sums."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from bpexp import spec
from bpexp.activations import ACTIVATIONS, CONSTANTS, Activation
from bpexp.rules.table import RULES
from bpexp.theory import (
    activation_mean,
    activation_second_moment,
    chi_1,
    fixed_point,
    length_map,
    resolve,
    selu_constants,
    selu_contraction,
    selu_jacobian,
    selu_map,
    slope_second_moment,
)

TABLED = [name for name in ACTIVATIONS if name in RULES and name != "prelu"]  # of which the rule has a second argument
LENGTHS = np.array([1e-12, 1e-3, 0.3, 1.0, 7.0, 400.0, 1e6])


def phi_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def hardtanh_second_moment(q):
    a = 1 / math.sqrt(q)
    inside = math.erf(a / math.sqrt(2)) - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return q * inside + 2 * phi_cdf(-a)


SECOND_MOMENTS = {
    "identity": lambda q: q,
    "relu": lambda q: q / 2,
    "leaky_relu": lambda q: q * (1 + 0.01**2) / 2,
    "hardtanh": hardtanh_second_moment,
}
SLOPE_SECOND_MOMENTS = {
    "identity": lambda q: 1.0,
    "relu": lambda q: 0.5,
    "leaky_relu": lambda q: (1 + 0.01**2) / 2,
    "hardtanh": lambda q: math.erf(1 / math.sqrt(2 * q)),
}


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_moments_are_the_closed_forms(name):
    expected = [SECOND_MOMENTS[name](q) for q in LENGTHS]
    np.testing.assert_allclose(activation_second_moment(name, LENGTHS), expected, rtol=1e-10)
    expected = [SLOPE_SECOND_MOMENTS[name](q) for q in LENGTHS]
    np.testing.assert_allclose(slope_second_moment(name, LENGTHS), expected, rtol=1e-10)


def test_mean_of_relu_is_the_closed_form():
    np.testing.assert_allclose(activation_mean("relu", LENGTHS), np.sqrt(LENGTHS / (2 * math.pi)), rtol=1e-12)


@pytest.mark.parametrize("name", TABLED)
@pytest.mark.parametrize("q", [0.01, 1.0, 30.0, 1e4])
def test_moments_are_those_of_a_fine_sum(name, q):
    """An independent oracle: midpoints of the Gaussian, by torch's own function and autograd."""
    z = torch.linspace(-9, 9, 1_000_001, dtype=torch.float64)
    x = math.sqrt(q) * (z[1:] + z[:-1]) / 2
    weight = torch.exp(-x.square() / (2 * q)) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    x.requires_grad_()
    y = RULES[name].reference(x, *CONSTANTS.get(name, ()))
    (slope,) = torch.autograd.grad(y.sum(), x)
    y = y.detach()
    assert float(activation_mean(name, q)) == pytest.approx(float((y * weight).sum()), rel=1e-6, abs=1e-9)
    assert float(activation_second_moment(name, q)) == pytest.approx(float((y.square() * weight).sum()), rel=1e-6)
    assert float(slope_second_moment(name, q)) == pytest.approx(float((slope.square() * weight).sum()), rel=2e-3)


@pytest.mark.parametrize("name", TABLED)
def test_constants_are_torchs_defaults(name):
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    torch.testing.assert_close(resolve(name).function(x), RULES[name].reference(x), rtol=1e-14, atol=1e-14)


def test_every_configurable_activation_is_predicted():
    assert set(spec.ACTIVATIONS) <= set(ACTIVATIONS)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "relu"])
def test_function_of_the_users_own_has_the_rules_moments(name):
    own = RULES[name].reference
    coarse = LENGTHS[1:]  # below, the step of the difference is no longer small
    np.testing.assert_allclose(slope_second_moment(own, coarse), slope_second_moment(name, coarse), rtol=1e-6)
    np.testing.assert_array_equal(length_map(own, LENGTHS, 1.3, 0.1), length_map(name, LENGTHS, 1.3, 0.1))


def test_module_is_an_activation():
    module = torch.nn.PReLU(init=0.01, dtype=torch.float64)
    assert float(slope_second_moment(module, 1.0)) == pytest.approx(float(slope_second_moment("leaky_relu", 1.0)))
    assert resolve(module).name == "PReLU"


def test_stated_kinks_are_met():
    """A step at 0.7 has E phi^2 = P(x > 0.7)."""
    step = Activation("step", lambda x: (x > 0.7).to(x.dtype), torch.zeros_like, kinks=(0.7,))
    expected = [phi_cdf(-0.7 / math.sqrt(q)) for q in LENGTHS]
    np.testing.assert_allclose(activation_second_moment(step, LENGTHS), expected, rtol=1e-10, atol=1e-20)


@pytest.mark.parametrize(
    ("sigma_b2", "sigma_w2", "q"), [(0.01, 1.4242, 0.273), (0.05, 1.7610, 0.570), (0.10, 1.9861, 0.806)]
)
def test_critical_line_of_tanh(sigma_b2, sigma_w2, q):
    """Claim 4: the published digits of sigma_w^2 give chi_1 = 1 and q*."""
    length = fixed_point("tanh", sigma_w2, sigma_b2)
    assert length == pytest.approx(q, abs=6e-4)
    assert float(chi_1("tanh", length, sigma_w2)) == pytest.approx(1, abs=1e-4)
    assert float(length_map("tanh", length, sigma_w2, sigma_b2)) == pytest.approx(length, rel=1e-12)


def test_fixed_points_of_relu():
    assert fixed_point("relu", 1.0, 0.3) == pytest.approx(0.6, rel=1e-12)
    assert fixed_point("relu", 1.0, 1e-14) == pytest.approx(2e-14, rel=1e-9)
    assert fixed_point("relu", 2.0, 0.0) == 1.0
    assert fixed_point("relu", 1.0, 0.0) == 0.0
    assert fixed_point("relu", 2.1, 0.0) == math.inf


def test_tanh_at_its_edge_has_the_fixed_point_zero():
    assert fixed_point("tanh", 1.0, 0.0) == 0.0


def test_selu_keeps_unit_length():
    """Klambauer et al. 2017: mean 0 and variance 1 are kept at sigma_w^2 = 1."""
    assert float(length_map("selu", 1.0, 1.0, 0.0)) == pytest.approx(1, abs=1e-10)
    assert float(activation_mean("selu", 1.0)) == pytest.approx(0, abs=1e-10)


def test_a_fixed_point_close_to_another_is_not_passed_over():
    """mish at this gain: lengths come to rest at q = 1.5, just below an unstable point at 1.6."""
    length = fixed_point("mish", 2.0195461, 0.09)
    assert 1.4 < length < 1.6
    assert float(length_map("mish", length, 2.0195461, 0.09)) == pytest.approx(length, rel=1e-12)


def test_lengths_grow_without_bound_or_to_a_large_one():
    assert fixed_point("gelu", 4.0, 0.0) == math.inf
    assert fixed_point("relu", 2 - 1e-9, 1.0) == pytest.approx(2e9, rel=1e-6)


def test_selu_constants_are_those_published():
    """Claim 10."""
    alpha, scale = selu_constants()
    assert alpha == pytest.approx(1.6732632423543772848170429916717, abs=1e-14)
    assert scale == pytest.approx(1.0507009873554804934193349852946, abs=1e-14)


def test_selu_constants_solve_the_fixed_point_equations():
    """By an independent quadrature of the two integrals, to 1e-10."""
    alpha, scale = selu_constants()

    def integral(power):
        def weighted(z):
            y = scale * (z if z > 0 else alpha * math.expm1(z))
            return y**power * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(quad(weighted, *ends, epsabs=1e-13)[0] for ends in ((-40, 0), (0, 40)))

    assert integral(1) == pytest.approx(0, abs=1e-10)
    assert integral(2) == pytest.approx(1, abs=1e-10)


def test_selu_map_has_its_fixed_point_and_the_published_jacobian():
    assert selu_map(0.0, 1.0) == pytest.approx((0, 1), abs=1e-12)
    np.testing.assert_allclose(selu_jacobian(0.0, 1.0), [[0, 0.088834], [0, 0.782648]], atol=1e-5)
    assert selu_contraction() == pytest.approx(0.7877, abs=1e-4)


def test_selu_jacobian_is_the_slope_of_the_map():
    place, step = np.array([0.06, 1.3]), 1e-5
    for column, unit in enumerate(np.eye(2)):
        above, below = (np.array(selu_map(*(place + sign * step * unit), 0.08, 1.05)) for sign in (1, -1))
        slope = (above - below) / (2 * step)
        np.testing.assert_allclose(selu_jacobian(*place, 0.08, 1.05)[:, column], slope, atol=1e-8)


def test_selu_contracts_in_the_papers_domain():
    """Theorem 1 of Klambauer et al. 2017: |mean|, |omega| <= 0.1, variance in [0.8, 1.5], tau in [0.95, 1.1]."""
    domain = itertools.product((-0.1, 0, 0.1), (0.8, 1.0, 1.25, 1.5), (-0.1, 0, 0.1), (0.95, 1.0, 1.1))
    assert max(selu_contraction(*place) for place in domain) < 1


def test_selu_map_tends_to_its_fixed_point():
    mean, variance = 0.1, 1.5
    for _ in range(60):
        mean, variance = selu_map(mean, variance)
    assert (mean, variance) == pytest.approx((0, 1), abs=1e-5)


def test_negative_variances_are_named():
    with pytest.raises(ValueError, match=r"^sigma_w2: -1.0 is not a finite number of at least 0$"):
        length_map("tanh", 1.0, -1.0, 0.0)
    with pytest.raises(ValueError, match=r"^sigma_b2: -0.1 is not a finite number of at least 0$"):
        fixed_point("tanh", 1.0, -0.1)
    with pytest.raises(ValueError, match=r"^sigma_w2: inf is not a finite number of at least 0$"):
        chi_1("tanh", 1.0, math.inf)
    with pytest.raises(ValueError, match=r"^q: -2.0 is not a mean square of at least 0$"):
        slope_second_moment("tanh", [1.0, -2.0])
