"""Correlation maps, depth scales, critical line and phase diagrams against closed forms, sums and random numbers."""

import math

import numpy as np
import pytest
import torch

from bpexp import theory
from bpexp.activations import ACTIVATIONS, Activation

CORRELATIONS = np.array([-1.0, -0.6, 0.0, 0.3, 0.9, 0.999, 1 - 1e-6, 1.0])
LENGTHS = np.array([1e-3, 30.0])
SIGMA_W2, SIGMA_B2 = 1.4, 0.1
SMOOTH = ("tanh", "gelu", "softplus", "silu", "mish", "sigmoid")


def relu_kernel(c):
    return (np.sqrt(1 - c**2) + (math.pi - np.arccos(c)) * c) / math.pi


def normalized(product, square):
    return (SIGMA_W2 * product + SIGMA_B2) / (SIGMA_W2 * square + SIGMA_B2)


CLOSED_FORMS = {  # E phi(u1) phi(u2) and E phi'(u1) phi'(u2)
    "relu": (
        torch.relu,
        lambda c, q: q / 2 * relu_kernel(c),
        lambda c, q: (math.pi - np.arccos(c)) / (2 * math.pi),
    ),
    "sin": (torch.sin, lambda c, q: np.exp(-q) * np.sinh(q * c), lambda c, q: np.exp(-q) * np.cosh(q * c)),
    "erf": (
        torch.erf,
        lambda c, q: 2 / math.pi * np.arcsin(2 * q * c / (1 + 2 * q)),
        lambda c, q: 4 / math.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("q", LENGTHS)
def test_maps_are_the_closed_forms(name, q):
    function, product, slopes = CLOSED_FORMS[name]
    phi = "relu" if name == "relu" else function
    c = theory.correlation_map(phi, CORRELATIONS, q, SIGMA_W2, SIGMA_B2)
    np.testing.assert_allclose(c, normalized(product(CORRELATIONS, q), product(1.0, q)), rtol=0, atol=1e-10)
    tolerance = 1e-12 if name == "relu" else 1e-7  # slopes of a function of the user's own are differences
    chi = theory.chi(phi, CORRELATIONS, q, SIGMA_W2)
    np.testing.assert_allclose(chi, SIGMA_W2 * slopes(CORRELATIONS, q), rtol=tolerance, atol=tolerance)


def test_what_is_lost_is_exact_close_to_one():
    c = 1 - np.logspace(-7, -1, 7)
    lost = 1 - theory.correlation_map("relu", c, 1.0, 2.0, 0.0)
    np.testing.assert_allclose(lost, 1 - relu_kernel(c), rtol=1e-7)


@pytest.mark.parametrize("name", SMOOTH)
def test_maps_are_those_of_a_sum_over_two_hermite_rules(name):
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    weight, phi, q, c = weight / weight.sum(), ACTIVATIONS[name], 0.2, 0.7
    u = math.sqrt(q) * torch.from_numpy(z)[:, None].expand(80, 80)
    v = c * u + math.sqrt(1 - c**2) * u.T
    product, square, slopes = (
        float(weight @ (a * b).numpy() @ weight)
        for a, b in ((phi.function(u), phi.function(v)), (phi.function(u),) * 2, (phi.slope(u), phi.slope(v)))
    )
    assert float(theory.correlation_map(name, c, q, SIGMA_W2, SIGMA_B2)) == pytest.approx(
        normalized(product, square), abs=1e-9
    )
    assert float(theory.chi(name, c, q, SIGMA_W2)) == pytest.approx(SIGMA_W2 * slopes, rel=1e-8)


def test_every_activation_agrees_with_random_numbers():
    draws = np.random.default_rng(0).standard_normal((2, 20_000))
    for name, phi in ACTIVATIONS.items():
        for q, c in ((0.5, 0.6), (4.0, -0.4)):
            u = math.sqrt(q) * draws[0]
            v = c * u + math.sqrt(q * (1 - c**2)) * draws[1]
            a, b = (torch.from_numpy(x) for x in (u, v))
            for f, found in (
                (phi.function, theory.correlation_map(name, c, q, 1.0, 0.0) * theory.activation_second_moment(name, q)),
                (phi.slope, theory.chi(name, c, q, 1.0)),
            ):
                products = (f(a) * f(b)).numpy()
                error = products.std() / math.sqrt(products.size)
                assert abs(products.mean() - float(found)) < 5 * error + 1e-12, (name, q, c)


def test_a_function_of_the_users_own_with_kinks_has_the_map_of_the_rule():
    own = Activation("own", lambda x: x.clamp(-1, 1), lambda x: (x.abs() < 1).to(x.dtype))
    for q in LENGTHS:
        expected = theory.correlation_map("hardtanh", CORRELATIONS, q, 2.0, 0.1)
        np.testing.assert_allclose(theory.correlation_map(own, CORRELATIONS, q, 2.0, 0.1), expected, atol=1e-13)


@pytest.mark.parametrize(("activation", "sigma_w2", "sigma_b2"), [("tanh", 2.5, 0.0), (torch.erf, 3.0, 0.1)])
def test_chaotic_inputs_come_to_rest_at_the_fixed_correlation(activation, sigma_w2, sigma_b2):
    scales = theory.depth_scales(activation, sigma_w2, sigma_b2)
    assert scales.chi_1 > 1 > scales.chi_c_star
    c = float(theory.correlation_map(activation, scales.c_star, scales.q_star, sigma_w2, sigma_b2))
    assert c == pytest.approx(scales.c_star, abs=1e-11)
    assert theory.fixed_correlation(activation, sigma_w2, sigma_b2) == pytest.approx(scales.c_star, abs=1e-12)
    away = 1 - theory.follow_correlation(activation, [0.1, 0.9], 90, sigma_w2, sigma_b2) - scales.c_star
    np.testing.assert_allclose(away[90] / away[89], math.exp(-1 / scales.xi_c), rtol=1e-3)
    assert np.abs(away[90]).max() < 0.01


def test_lengths_and_correlations_come_to_rest_at_their_depth_scales():
    scales = theory.depth_scales("tanh", 1.3, 0.05)
    q = [scales.q_star * 1.001]
    for _ in range(20):
        q.append(float(theory.length_map("tanh", q[-1], 1.3, 0.05)))
    assert (q[20] - scales.q_star) / (q[19] - scales.q_star) == pytest.approx(math.exp(-1 / scales.xi_q), rel=1e-5)
    apart = theory.follow_correlation("tanh", 0.2, 100, 1.3, 0.05)
    assert apart[100] / apart[99] == pytest.approx(math.exp(-1 / scales.xi_c), rel=1e-5)
    assert (scales.c_star, scales.xi_gradient) == (1.0, scales.xi_c)


def test_relu_has_the_scales_of_its_straight_maps():
    scales = theory.depth_scales("relu", 1.8, 0.1)
    assert scales.q_star == pytest.approx(1.0, rel=1e-12)
    assert [scales.xi_q, scales.xi_c, scales.xi_gradient] == pytest.approx([-1 / math.log(0.9)] * 3, rel=1e-10)
    critical = theory.depth_scales("relu", 2.0, 0.0)
    assert (critical.c_star, critical.xi_q, critical.xi_c, critical.xi_gradient) == (1.0, *[math.inf] * 3)


def test_correlations_are_followed_as_the_map_takes_them():
    apart = theory.follow_correlation("relu", [0.0, 0.5], 3, 2.0, 0.0)
    c = np.array([0.0, 0.5])
    for layer in range(4):
        np.testing.assert_allclose(apart[layer], 1 - c, rtol=1e-9)
        c = relu_kernel(c)


@pytest.mark.parametrize(("name", "sigma_b2", "rate"), [("tanh", 0.05, 6.171), ("erf", 0.1, None)])
def test_edge_rate_is_published_and_derived(name, sigma_b2, rate):
    """Of erf(x): E phi'^2 = 4/pi (1 + 4q)^-1/2, E phi''^2 = 16 q/pi (1 + 4q)^-3/2."""
    phi = "tanh" if name == "tanh" else torch.erf
    gain = theory.critical(phi, math.sqrt(sigma_b2))
    q = theory.fixed_point(phi, gain**2, sigma_b2)
    expected = rate or (1 + 4 * q) / (2 * q**2)
    assert theory.edge_rate(phi, q) == pytest.approx(expected, rel=1e-4 if rate else 1e-6)
    with pytest.raises(ValueError, match=r"'relu': its slope jumps at 0"):
        theory.edge_rate("relu", q)


def trapezoids(phi, slope):
    """Return E phi^2 and E phi'^2 in extended precision, by trapezoids, which are exact for smooth functions."""
    z = np.linspace(-14, 14, 4001, dtype=np.longdouble)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    return lambda q: [(weight * f(np.sqrt(q) * z) ** 2).sum() for f in (phi, slope)]


def elu_moments(q):
    """E e^(k x) [x < 0] = e^(k^2 q / 2) P(z > k sqrt(q))."""
    first, second = (math.exp(k * k * q / 2) * math.erfc(k * math.sqrt(q / 2)) / 2 for k in (1, 2))
    return q / 2 + second - 2 * first + 0.5, 0.5 + second


PRECISE = {
    "tanh": trapezoids(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": trapezoids(lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (2 + np.exp(x) + np.exp(-x))),
    "silu": trapezoids(lambda x: x / (1 + np.exp(-x)), lambda x: (1 + np.exp(-x) * (1 + x)) / (1 + np.exp(-x)) ** 2),
    "elu": elu_moments,
}


@pytest.mark.parametrize(
    ("name", "sigma_b2"),
    [("tanh", 0.01), ("tanh", 0.05), ("tanh", 1.0), ("sigmoid", 0.05), ("silu", 1.0), ("elu", 0.1), ("elu", 1.0)],
)
def test_critical_gain_is_that_of_a_precise_quadrature(name, sigma_b2):
    low, high = 1e-3, 400.0
    for _ in range(60):
        q = math.sqrt(low * high)
        value, steepness = PRECISE[name](q)
        low, high = (q, high) if value / steepness + sigma_b2 > q else (low, q)
    expected = 1 / math.sqrt(PRECISE[name](low)[1])
    assert theory.critical(name, math.sqrt(sigma_b2)) == pytest.approx(expected, rel=1e-9)


def test_critical_line_has_the_published_values_and_none_where_there_is_none():
    """Claim 4 of tanh; with biases relu's lengths grow at the gain that would be critical."""
    np.testing.assert_allclose(theory.critical_line("tanh", [0.01, 0.05, 0.1]), [1.4242, 1.7610, 1.9861], atol=5e-5)
    np.testing.assert_allclose(theory.critical_line("relu", [[0.0], [0.1]]), [[2.0], [math.nan]], rtol=1e-12)


def test_tabulated_moments_are_those_of_direct_quadrature():
    q = np.logspace(-9, 9, 97)
    for name in ACTIVATIONS:
        table = theory.moment_table(name)
        np.testing.assert_allclose(table.second_moment(q), theory.activation_second_moment(name, q), rtol=1e-7)
        np.testing.assert_allclose(table.slope_second_moment(q), theory.slope_second_moment(name, q), rtol=1e-7)


def test_phase_diagram_is_that_of_direct_quadrature():
    sigma_w2, sigma_b2 = np.array([0.3, 1.1, 2.7]), np.array([0.0, 1.3])
    for name in ("tanh", "mish", "hardtanh"):
        found = theory.phase_diagram(name, sigma_w2, sigma_b2)
        for i, bias in enumerate(sigma_b2):
            for j, weight in enumerate(sigma_w2):
                q = theory.fixed_point(name, weight, bias)
                assert found.q_star[i, j] == pytest.approx(q, rel=1e-5)
                if math.isfinite(q):
                    chi_1 = float(theory.chi_1(name, max(q, 1e-10), weight))
                    assert found.chi_1[i, j] == pytest.approx(chi_1, rel=1e-6)
                    assert found.phase[i, j] == np.sign(chi_1 - 1)
                    assert found.xi_gradient[i, j] == pytest.approx(1 / abs(math.log(chi_1)), rel=1e-4)


def test_phase_diagram_of_relu_is_the_closed_form():
    found = theory.phase_diagram("relu", [1.0, 1.9, 2.0, 2.1], [0.0, 0.2])
    np.testing.assert_allclose(found.q_star, [[0, 0, 1, math.inf], [0.4, 4, math.inf, math.inf]], rtol=1e-6)
    np.testing.assert_allclose(found.chi_1, [[0.5, 0.95, 1.0, 1.05]] * 2, rtol=1e-12)
    np.testing.assert_array_equal(found.phase, [[-1, -1, 0, 1]] * 2)


WRONG = (
    (lambda: theory.correlation_map("tanh", 1.1, 1.0, 1.0, 0.0), r"c: 1\.1 is not a correlation from -1 to 1"),
    (lambda: theory.chi("tanh", math.nan, 1.0, 1.0), "c: nan is not a correlation"),
    (lambda: theory.correlation_map("tanh", 0.5, -1.0, 1.0, 0.0), r"q: -1\.0 is not a mean square"),
    (lambda: theory.correlation_map("tanh", 0.5, 1.0, -1.0, 0.0), "sigma_w2: -1.0 is not a finite number"),
    (lambda: theory.correlation_map("tanh", 0.5, 1.0, 0.0, 0.0), "'tanh': the next layer is zero"),
    (lambda: theory.follow_correlation("tanh", -0.5, 1, 1.0, 0.0), r"c: -0\.5 is not a correlation from 0 to 1"),
    (lambda: theory.depth_scales("relu", 2.5, 0.1), r"'relu': lengths grow without bound at sigma_w2=2\.5"),
    (lambda: theory.fixed_correlation("thanh", 1.0, 0.1), "activation: unknown 'thanh'; did you mean 'tanh'"),
    (lambda: theory.depth_scales(lambda x: x.sum(), 1.0, 0.1), "must map each number to one"),
    (lambda: theory.correlation_map(torch.log, 0.5, 1.0, 1.0, 0.1), "'log': not finite at x ="),
    (lambda: theory.edge_rate("tanh", 0.0), "q: 0 is not a positive mean square"),
    (lambda: theory.critical_line("tanh", [0.1, -0.1]), r"sigma_b2: -0\.1 is not a finite number of at least 0"),
    (lambda: theory.phase_diagram("tanh", [1.0, math.inf], [0.0]), "sigma_w2: inf is not a finite number"),
    (lambda: theory.phase_diagram(torch.log, [1.0], [0.0]), "'log': not finite at x ="),
)


@pytest.mark.parametrize(("call", "message"), WRONG, ids=map(str, range(len(WRONG))))
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
