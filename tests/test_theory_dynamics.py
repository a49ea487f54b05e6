"""Deep linear dynamics, Jacobian spectra and shattered gradients against closed forms and simulation."""

import math
import re

import numpy as np
import pytest
from scipy.special import binom

from bpexp.theory import (
    centred_correlation,
    follow_correlation,
    gradient_correlation,
    largest_eigenvalue,
    learning_time,
    mode_strength,
    phase_diagram,
    residual_growth,
    spectrum_variance,
)
from bpexp.theory.shattered import PAPER, both_on, next_correlation


def euler(s, u_0, tau, weights, steps, parts=200):
    """The layers' own equation, tau da/dt = a^(W-1) (s - a^W), by small steps of Euler's."""
    a = u_0 ** (1 / weights)
    for _ in range(steps * parts):
        a += a ** (weights - 1) * (s - a**weights) / (tau * parts)
    return a**weights


@pytest.mark.parametrize("weights", [1, 2, 3, 6])
def test_modes_follow_the_equation_of_their_layers(weights):
    found = mode_strength(np.array([0.0, 20.0, 50.0]), 1.5, 0.2, 40.0, weights)
    expected = [0.2, *(euler(1.5, 0.2, 40.0, weights, steps) for steps in (20, 50))]
    np.testing.assert_allclose(found, expected, rtol=5e-4)


@pytest.mark.parametrize("weights", [2, 3, 8])
def test_learning_times_and_strengths_are_inverse(weights):
    time = learning_time(1.5, 0.1, 1.2, 30.0, weights)
    assert mode_strength(np.array([time]), 1.5, 0.1, 30.0, weights)[0] == pytest.approx(1.2, rel=1e-7)


def test_learning_times_are_the_paper_s_closed_forms():
    s, u_0, u, tau = 1.5, 0.1, 1.2, 30.0
    log = math.log(u * (s - u_0) / (u_0 * (s - u)))
    assert learning_time(s, u_0, u, tau, 2) == pytest.approx(tau / (2 * s) * log, rel=1e-12)
    deep = tau * (log / s**2 + (1 / u_0 - 1 / u) / s)
    assert 10**7 * learning_time(s, u_0, u, tau, 10**7) == pytest.approx(deep, rel=1e-5)
    slow = tau * (math.log((s - u_0) / (s - u)))
    assert learning_time(s, u_0, u, tau, 1) == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1.0, 0.0, 0.5, 1.0, 2), "u_0: 0.0 is not between 0 and s=1.0"),
        ((1.0, 0.1, 1.0, 1.0, 2), "u: 1.0 is not between u_0=0.1 and s=1.0"),
        ((1.0, 0.1, 0.5, 0.0, 2), "tau: 0.0 is not positive"),
        ((1.0, 0.1, 0.5, 1.0, 0), "weights: 0 is not at least 1"),
    ],
)
def test_dynamics_refuse_what_has_none(values, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        learning_time(*values)


@pytest.mark.parametrize("t", [[0.0, np.nan], [0.0, np.inf], [2.0, 1.0], [-1.0, 0.0], 1.0])
@pytest.mark.parametrize("weights", [1, 2, 4])
def test_times_that_are_none_are_refused(t, weights):
    with pytest.raises(ValueError, match=r"^t: must be a row of finite numbers that rise"):
        mode_strength(np.array(t), 1.0, 0.1, 1.0, weights)


def test_no_times_give_no_strengths():
    assert [mode_strength(np.array([]), 1.0, 0.1, 1.0, weights).size for weights in (1, 2, 4)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gradient_correlation(3, 1.5), "rho: 1.5 is not between"),
        (lambda: gradient_correlation(3, np.nan), "rho: nan is not between"),
        (lambda: centred_correlation(3, "normalized", -1.0), "grows: -1.0 is not"),
        (lambda: residual_growth(-2), "layers: -2 is negative"),
        (lambda: residual_growth(2, np.nan), "scale, chi: nan, 1.0 must be"),
        (lambda: follow_correlation("tanh", 0.5, -1, 1.0, 0.1), "layers: -1 is negative"),
        (lambda: phase_diagram("tanh", [], [0.1]), "neither may be empty"),
    ],
)
def test_theory_refuses_what_is_out_of_range(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_spectra_of_units_that_are_on_or_off_are_the_paper_s():
    for depth in (1, 5):
        for orthogonal, linear in ((True, 0), (False, depth)):
            assert spectrum_variance("identity", 1.0, depth, orthogonal=orthogonal) == pytest.approx(linear, abs=1e-12)
            relu = spectrum_variance("relu", 1.0, depth, orthogonal=orthogonal)
            assert relu == pytest.approx(linear + depth, rel=1e-9)


def fuss_catalan(depth, k):
    return binom(depth * k + k, k) / (depth * k + 1)


@pytest.mark.parametrize("depth", [1, 2, 16])
def test_the_linear_gaussian_spectrum_is_fuss_and_catalan_s(depth):
    variance = fuss_catalan(depth, 2) / fuss_catalan(depth, 1) ** 2 - 1
    assert spectrum_variance("identity", 1.0, depth, orthogonal=False) == pytest.approx(variance, rel=1e-9)
    # The ratio of moments tends to the edge, the largest eigenvalue, as (1 + O(1/k)).
    ratio = [fuss_catalan(depth, k + 1) / fuss_catalan(depth, k) for k in (20, 40)]
    assert 2 * ratio[1] - ratio[0] == pytest.approx(largest_eigenvalue(depth), rel=5e-3)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_spectrum_of_tanh_is_that_of_drawn_matrices(orthogonal):
    random, n, depth = np.random.default_rng(0), 300, 3
    jacobian = np.eye(n)
    for _ in range(depth):
        weight = random.normal(size=(n, n)) / math.sqrt(n)
        weight = np.linalg.qr(weight)[0] if orthogonal else weight
        jacobian = (1 - np.tanh(random.normal(size=n) * math.sqrt(2)) ** 2)[:, None] * (weight @ jacobian)
    values = np.linalg.svd(jacobian, compute_uv=False) ** 2
    expected = spectrum_variance("tanh", 2.0, depth, orthogonal=orthogonal)
    assert values.var() / values.mean() ** 2 == pytest.approx(expected, rel=0.15)


def test_spectra_refuse_what_has_none():
    with pytest.raises(ValueError, match=r"^depth: 0 is not at least 1$"):
        largest_eigenvalue(0)
    with pytest.raises(ValueError, match="its slope is 0 at q=1, so that J has no spectrum"):
        spectrum_variance(lambda x: 0 * x, 1.0, 3, orthogonal=True)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.8])
def test_correlations_of_a_relu_layer_are_those_of_drawn_pairs(rho):
    random = np.random.default_rng(0)
    x, other = random.normal(size=(2, 400_000))
    y = rho * x + math.sqrt(1 - rho**2) * other
    assert next_correlation(rho) == pytest.approx(2 * (x.clip(0) * y.clip(0)).mean(), abs=0.01)
    assert both_on(rho) == pytest.approx(2 * ((x > 0) & (y > 0)).mean(), abs=0.01)


def test_gradients_shatter_by_the_laws():
    assert gradient_correlation(10, 0.0) == pytest.approx(0.03365, rel=1e-3)
    assert gradient_correlation(1, 0.0) == 0.5
    assert gradient_correlation(7, 1.0) == 1.0
    assert centred_correlation(8, "plain") == 2**-8
    assert centred_correlation(12, "residual") == 0.75**12
    assert centred_correlation(1, "normalized") == 0.75
    for grows, power in ((PAPER, -0.5), (1 - 1 / math.pi, -0.5 / (1 - 1 / math.pi))):
        ratio = centred_correlation(8000, "normalized", grows) / centred_correlation(1000, "normalized", grows)
        assert math.log(ratio) / math.log(8) == pytest.approx(power, abs=2e-3)
    with pytest.raises(ValueError, match=r"^kind: unknown 'dense'; choose from plain, residual, normalized$"):
        centred_correlation(3, "dense")
