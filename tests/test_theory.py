"""Mean-field predictions against closed forms, published values and random networks."""

import math
import re

import numpy as np
import pytest
import torch

from bpexp import spec
from bpexp.activations import ACTIVATIONS, CONSTANTS, Activation
from bpexp.init import INITS, initialize
from bpexp.rules.table import RULES
from bpexp.theory import (
    activation_mean,
    activation_second_moment,
    chi_1,
    fixed_point,
    length_map,
    predict,
    resolve,
    slope_second_moment,
)

TABLED = [name for name in ACTIVATIONS if name in RULES]
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


GAINS = [
    ("identity", "lecun", 1.0, 1.0),
    ("tanh", "pytorch", 1e-12, 1 / math.sqrt(3)),
    ("relu", "pytorch", 1.0, 1 / math.sqrt(6)),
    ("relu", "glorot", 1.0, 1 / math.sqrt(2)),
    ("relu", "he", 1.0, 1.0),
    ("relu", "he_uniform", 1.0, 1.0),
    ("relu", "orthogonal", 1.0, 1 / math.sqrt(2)),
]


@pytest.mark.parametrize(("activation", "init", "square", "gain"), GAINS)
def test_backward_gains_of_the_claims(activation, init, square, gain):
    """Claims 1 and 2; tanh is in its linear regime with no bias and a small input."""
    prediction = predict(activation, init, 20, 256, 256, 10, 1.0, 0.0, [square])
    assert prediction.backward_gain == pytest.approx(gain, rel=1e-9)
    np.testing.assert_allclose(prediction.delta_rms, gain ** np.arange(19, -1, -1.0), rtol=1e-8)


def test_glorot_relu_over_thirty_layers():
    """Claim 2: 1/sqrt(2) a layer is 3.1e-5 over 30 of them."""
    prediction = predict("relu", "glorot", 31, 64, 64, 10, 1.0, 0.0, [1.0])
    assert prediction.delta_rms[0] == pytest.approx(2.0**-15, rel=1e-9)


def test_samples_are_averaged_as_mean_squares():
    """He keeps each sample's length: the rms over samples is the root of the mean of their mean squares."""
    prediction = predict("relu", "he", 3, 64, 64, 64, 1.0, 0.0, [1.0, 7.0])
    np.testing.assert_allclose(prediction.preactivation_rms, math.sqrt(8.0), rtol=1e-12)
    np.testing.assert_allclose(prediction.activation_rms, 2.0, rtol=1e-12)


def test_saturated_samples_pass_less_gradient():
    small, large, both = (predict("tanh", "lecun", 2, 64, 64, 10, 1.0, 0.0, v) for v in ([0.01], [100], [0.01, 100]))
    assert large.delta_rms[0] < both.delta_rms[0] < small.delta_rms[0]


def test_deep_gains_leave_no_float_behind():
    exploding = predict("relu", "normal", 400, 256, 64, 10, 1.0, 0.0, [1.0])
    assert exploding.backward_gain == pytest.approx(math.sqrt(128), rel=1e-9)
    assert exploding.preactivation_rms[0] == pytest.approx(8)
    assert exploding.preactivation_rms[-1] == math.inf
    vanishing = predict("tanh", "lecun", 1000, 64, 64, 10, 0.1, 0.0, [1.0])
    assert vanishing.backward_gain == pytest.approx(0.1, rel=1e-3)


def test_no_gradient_has_no_gain():
    prediction = predict("tanh", "zeros", 3, 64, 64, 10, 1.0, None, [1.0])
    assert math.isnan(prediction.backward_gain)
    assert np.isnan(prediction.delta_rms).all()
    np.testing.assert_array_equal(prediction.preactivation_rms, 0)


def test_one_layer_has_no_gain():
    prediction = predict("tanh", "lecun", 1, 64, 64, 10, 1.0, 0.0, [1.0])
    assert math.isnan(prediction.backward_gain)
    assert prediction.preactivation_rms.shape == (2,)
    np.testing.assert_array_equal(prediction.delta_rms, [1.0])


def random_network(activation, init, residual, inputs, *, depth, width, outputs, gain, bias_std, seed):
    """Mean squares of z, h and delta of one network, by torch autograd of sum(c y) with random signs c."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs.shape[1], *[width] * depth, outputs]
    h, zs, hs = inputs, [], []
    for layer in range(1, depth + 2):
        shape = (sizes[layer], sizes[layer - 1])
        settings = {"gain": gain, "bias_std": bias_std, "generator": generator, "dtype": torch.float64}
        weight, bias = initialize(init, shape, **settings)
        z = (h @ weight.T + bias).requires_grad_()
        zs.append(z)
        if layer <= depth:
            y = RULES[activation].reference(z)
            h = h + y if residual == "plain" and layer > 1 else y
            hs.append(h)
    signs = torch.randint(0, 2, zs[-1].shape, generator=generator, dtype=torch.float64) * 2 - 1
    deltas = torch.autograd.grad((zs[-1] * signs).sum(), zs[:-1])
    return [np.array([float(t.detach().square().mean()) for t in group]) for group in (zs, hs, deltas)]


NETWORKS = [
    ("tanh", "pytorch", "none", None),
    ("tanh", "lecun", "plain", 0.2),
    ("relu", "he", "none", 0.0),
    ("relu", "glorot", "plain", 0.0),
    ("sigmoid", "glorot_uniform", "none", 0.3),
    ("gelu", "orthogonal", "none", 0.1),
    ("elu", "lecun_uniform", "plain", 0.0),
]


@pytest.mark.parametrize(("activation", "init", "residual", "bias_std"), NETWORKS)
def test_prediction_is_what_random_networks_measure(activation, init, residual, bias_std):
    """Width 256, depth 6, 24 networks, to 10 % in rms.

    One network's mean squares vary by up to 30 %, which leaves a standard error of 3 % in rms; the fluctuations of
    the lengths shift the last layers by up to 6 %, falling as 1/width.
    """
    scale = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(99)
    inputs = torch.randn(4, 96, generator=generator, dtype=torch.float64) * scale
    settings = {"depth": 6, "width": 256, "outputs": 200, "gain": 1.2, "bias_std": bias_std}
    runs = [random_network(activation, init, residual, inputs, seed=seed, **settings) for seed in range(24)]
    z, h, delta = (np.sqrt(np.mean([run[part] for run in runs], axis=0)) for part in range(3))
    squares = inputs.square().mean(dim=1).numpy()
    expected = predict(activation, init, features=96, input_mean_squares=squares, residual=residual, **settings)
    np.testing.assert_allclose(z, expected.preactivation_rms, rtol=0.1)
    np.testing.assert_allclose(h, expected.activation_rms, rtol=0.1)
    np.testing.assert_allclose(delta / delta[-1], expected.delta_rms, rtol=0.1)


GOOD = {
    "activation": "tanh", "init": "he", "depth": 2, "width": 8, "features": 8, "outputs": 2, "gain": 1.0,
    "bias_std": None, "input_mean_squares": [1.0],
}  # fmt: skip
BAD = [
    (
        "activation",
        "tanhh",
        "activation: unknown 'tanhh'; did you mean 'tanh'? choose from identity, sigmoid, tanh, relu",
    ),
    ("init", "hee", "init: unknown 'hee'; did you mean 'he'? choose from " + ", ".join(INITS)),
    ("residual", "plane", "residual: unknown 'plane'; did you mean 'plain'? choose from none, plain"),
    ("depth", 0, "depth: 0 is not at least 1"),
    ("gain", -1.0, "gain: -1.0 is not a finite number of at least 0"),
    ("bias_std", -0.5, "bias_std: -0.5 is not a finite number of at least 0"),
    ("bias_std", math.nan, "bias_std: nan is not a finite number of at least 0"),
    ("input_mean_squares", [], "input_mean_squares: shape (0,) is not one number a sample, (B,)"),
    ("input_mean_squares", [1.0, math.nan], "input_mean_squares: not all are finite numbers of at least 0"),
    ("activation", lambda x: 1 / (x * 0), "activation '<lambda>': not finite at x = "),
    ("activation", lambda x: x.sum(), "activation '<lambda>': must map each number to one, but "),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_values_are_named(key, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        predict(**{**GOOD, key: value})


def test_negative_variances_are_named():
    with pytest.raises(ValueError, match=r"^sigma_w2: -1.0 is not a finite number of at least 0$"):
        length_map("tanh", 1.0, -1.0, 0.0)
    with pytest.raises(ValueError, match=r"^sigma_b2: -0.1 is not a finite number of at least 0$"):
        fixed_point("tanh", 1.0, -0.1)
    with pytest.raises(ValueError, match=r"^sigma_w2: inf is not a finite number of at least 0$"):
        chi_1("tanh", 1.0, math.inf)
    with pytest.raises(ValueError, match=r"^q: -2.0 is not a mean square of at least 0$"):
        slope_second_moment("tanh", [1.0, -2.0])
