"""Predictions of what an MLP measures at initialization, against closed forms, published values and random networks."""

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bpexp import models, spec, theory
from bpexp.init import INITS, initialize
from bpexp.rules.table import RULES
from bpexp.theory import NoPredictionError, predict

GAINS = [
    ("identity", "lecun", 1.0, 1.0),
    ("tanh", "pytorch", 1e-12, 1 / math.sqrt(3)),
    ("relu", "pytorch", 1.0, 1 / math.sqrt(6)),
    ("relu", "glorot", 1.0, 1 / math.sqrt(2)),
    ("relu", "he", 1.0, 1.0),
    ("relu", "he_uniform", 1.0, 1.0),
    ("relu", "orthogonal", 1.0, 1 / math.sqrt(2)),
    ("relu", "critical", 1.0, 1.0),
    ("prelu", "critical", 1.0, 1.0),
    ("relu", "lsuv", 1.0, 1.0),
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


NO_GRADIENT = {"zeros": {"init": "zeros"}, "closed gates": {"init": "he", "residual": "rezero", "gate": 0.0}}


@pytest.mark.parametrize("case", NO_GRADIENT)
def test_no_gradient_has_no_gain(case):
    prediction = predict(**GOOD | {"depth": 3} | NO_GRADIENT[case])
    assert math.isnan(prediction.backward_gain)
    assert np.isnan(prediction.delta_rms).all()
    assert np.isfinite(prediction.activation_rms).all()


def test_one_layer_has_no_gain():
    prediction = predict("tanh", "lecun", 1, 64, 64, 10, 1.0, 0.0, [1.0])
    assert math.isnan(prediction.backward_gain)
    assert prediction.preactivation_rms.shape == (2,)
    np.testing.assert_array_equal(prediction.delta_rms, [1.0])


def test_closed_gates_hand_on_the_first_layer():
    """Claim 9: with gates of 0 every layer but the first hands on what it gets."""
    prediction = predict("tanh", "he", 5, 64, 64, 10, 1.0, 0.0, [0.5, 2.0], "rezero", gate=0.0)
    np.testing.assert_array_equal(prediction.activation_rms, prediction.activation_rms[0])


def test_gates_of_one_are_plain_and_one_layer_has_no_branch():
    settings = GOOD | {"depth": 4}
    plain, gated = (predict(**settings, residual=name, gate=1.0) for name in ("plain", "rezero"))
    np.testing.assert_array_equal(plain.delta_rms, gated.delta_rms)
    np.testing.assert_array_equal(plain.preactivation_rms, gated.preactivation_rms)
    alone = [predict(**GOOD | {"depth": 1}, residual=name).activation_rms.item() for name in spec.RESIDUALS]
    assert len(set(alone)) == 1


BRANCHES = {"plain": lambda depth: 1.0, "scaled": lambda depth: 1 / math.sqrt(depth), "rezero": lambda depth: 0.3}


@pytest.mark.parametrize("depth", [2, 5, 30])
@pytest.mark.parametrize("residual", BRANCHES)
def test_residual_gradients_of_relu_grow_by_the_law(residual, depth):
    """Claim 8: mean squares grow by 1 + a^2 a residual layer. Layer 1 has no branch, so no factor a either."""
    prediction = predict("relu", "he", depth, 64, 64, 10, 1.0, 0.0, [1.0], residual, gate=0.3)
    a = BRANCHES[residual](depth)
    growth = [theory.residual_growth(depth - layer, a) for layer in range(2, depth + 1)]
    np.testing.assert_allclose(prediction.delta_rms[1:] ** 2, growth, rtol=1e-9)
    assert prediction.delta_rms[0] ** 2 == pytest.approx(theory.residual_growth(depth - 1, a) / a**2, rel=1e-9)


def test_scaled_branches_let_gradients_grow_by_e_at_most():
    grown = [theory.residual_growth(depth, 1 / math.sqrt(depth)) for depth in (1, 10, 100, 10_000)]
    assert grown == sorted(grown)
    assert grown[-1] == pytest.approx(math.e, rel=1e-4)
    assert theory.residual_growth(10) == 2**10


def test_layer_norm_forgets_the_gain():
    """Forward it is divided out; backward it is in the weights and, as 1/std, in the norm."""
    base, other = (predict(**GOOD | {"gain": gain}, norm="layer") for gain in (1.0, 10.0))
    np.testing.assert_allclose(other.delta_rms, base.delta_rms, rtol=1e-4)  # but for eps
    np.testing.assert_allclose(other.activation_rms, base.activation_rms, rtol=1e-4)
    np.testing.assert_allclose(other.preactivation_rms, 10 * base.preactivation_rms, rtol=1e-4)


def test_layer_norm_passes_large_inputs_less_gradient():
    """All is the same from the first norm on; below it the gradient is divided by the size of z."""
    base, other = (predict(**GOOD | {"input_mean_squares": [square]}, norm="layer") for square in (1.0, 100.0))
    np.testing.assert_allclose(other.activation_rms, base.activation_rms, rtol=1e-4)
    np.testing.assert_allclose(other.delta_rms / base.delta_rms, [0.1, 1], rtol=1e-4)


def test_layer_norm_of_a_linear_network_keeps_gradients():
    """What it divides by is what the weights multiply with."""
    prediction = predict("identity", "normal", 6, 64, 64, 10, 3.0, 0.0, [1.0], norm="layer")
    assert prediction.backward_gain == pytest.approx(1, rel=1e-6)


def test_eps_is_that_of_the_networks():
    assert theory.NORM_EPS == models.NORM_EPS
    tiny = predict("identity", "lecun", 1, 64, 64, 10, 1.0, 0.0, [theory.NORM_EPS], norm="layer")
    assert tiny.activation_rms[0] == pytest.approx(math.sqrt(0.5))


def test_nothing_comes_out_of_a_layer_norm_of_nothing():
    prediction = predict(**GOOD | {"input_mean_squares": [0.0]}, norm="layer")
    np.testing.assert_array_equal(prediction.activation_rms, 0)
    assert prediction.backward_gain == pytest.approx(math.sqrt(2 / theory.NORM_EPS))  # he's weights, tanh' = 1


def test_dropout_stretches_by_the_keep_probability():
    """Inverted dropout of a linear network multiplies mean squares by 1/(1-p), in both directions."""
    keep = {"activation": "identity", "init": "lecun", "depth": 4}
    whole, dropped = predict(**GOOD | keep), predict(**GOOD | keep, dropout=0.36, input_dropout=0.75)
    assert dropped.preactivation_rms[0] / whole.preactivation_rms[0] == pytest.approx(2)
    np.testing.assert_allclose(dropped.activation_rms, 2 / 0.8 ** np.arange(1, 5), rtol=1e-12)
    assert dropped.backward_gain == pytest.approx(1 / 0.8)


def test_lsuv_gives_every_layer_the_variance_of_its_gain():
    prediction = predict("tanh", "lsuv", 5, 64, 20, 10, 1.7, 0.5, [0.2, 3.0], "plain")
    np.testing.assert_allclose(prediction.preactivation_rms, 1.7, rtol=1e-12)


def test_critical_keeps_gradients_at_its_own_length():
    length = theory.fixed_point("tanh", theory.critical("tanh", 0.3) ** 2, 0.09)
    square = (length - 0.09) / theory.critical("tanh", 0.3) ** 2
    prediction = predict("tanh", "critical", 50, 64, 64, 10, 1.0, 0.3, [square])
    assert prediction.backward_gain == pytest.approx(1, abs=1e-7)
    doubled = predict("tanh", "critical", 50, 64, 64, 10, 2.0, 0.3, [square])
    assert doubled.backward_gain > 1.1


@dataclass(frozen=True)
class Case:
    activation: str
    init: str
    residual: str = "none"
    bias_std: float | None = 0.0
    norm: str = "none"
    gate: float = 0.0
    dropout: float = 0.0
    input_dropout: float = 0.0


CASES = [
    Case("tanh", "pytorch", bias_std=None),
    Case("tanh", "lecun", "plain", 0.2),
    Case("relu", "he"),
    Case("relu", "glorot", "plain"),
    Case("sigmoid", "glorot_uniform", bias_std=0.3),
    Case("gelu", "orthogonal", bias_std=0.1),
    Case("elu", "lecun_uniform", "plain"),
    Case("tanh", "lecun", "scaled", 0.1),
    Case("relu", "he", "scaled"),
    Case("gelu", "he", "rezero", gate=0.5),
    Case("tanh", "he", norm="layer", bias_std=0.3),
    Case("relu", "he", "plain", norm="layer"),
    Case("silu", "glorot", "scaled", norm="layer", dropout=0.2),
    Case("softplus", "orthogonal", "rezero", norm="layer", gate=-0.4),
    Case("relu", "he", dropout=0.5),
    Case("elu", "lecun", "plain", dropout=0.3, input_dropout=0.2),
    Case("tanh", "lecun", "rezero", gate=0.7, dropout=0.4),
    Case("tanh", "critical", bias_std=0.3),
    Case("leaky_relu", "critical", "scaled"),
    Case("tanh", "lsuv"),
    Case("relu", "lsuv", "plain", 0.3, dropout=0.3),
    Case("mish", "lsuv", "scaled", norm="layer"),
]
SIZES = {"depth": 5, "width": 400, "features": 400, "outputs": 300}
GAIN = 1.2


def random_network(case, inputs, seed):
    """Mean squares of z, h and delta of one network, by torch autograd of sum(c y) with random signs c."""
    generator, depth = torch.Generator().manual_seed(seed), SIZES["depth"]
    sizes = [SIZES["features"], *[SIZES["width"]] * depth, SIZES["outputs"]]
    given = {"gain": GAIN, "bias_std": case.bias_std, "generator": generator, "dtype": torch.float64}
    given |= {"activation": case.activation, "depth": depth}
    linears = [
        initialize(case.init, (sizes[layer], sizes[layer - 1]), layer=layer, **given) for layer in range(1, depth + 2)
    ]
    if case.init == "lsuv":
        propagate(case, linears, inputs, None, scale=True)
    z, h = propagate(case, linears, inputs, generator)
    signs = torch.randint(0, 2, z[-1].shape, generator=generator, dtype=torch.float64) * 2 - 1
    delta = torch.autograd.grad((z[-1] * signs).sum(), z[:-1])
    return [np.array([float(t.detach().square().mean()) for t in group]) for group in (z, h, delta)]


def propagate(case, linears, x, generator, *, scale=False):
    """The outputs of the linear maps and of the hidden layers; masks where there is a generator.

    scale: first let each weight give the outputs the variance GAIN^2
    """
    depth = len(linears) - 1
    factor = {"none": 1.0, "plain": 1.0, "scaled": 1 / math.sqrt(depth), "rezero": case.gate}[case.residual]

    def drop(h, p):
        if generator is None or p == 0:
            return h
        return h * (torch.rand(h.shape, generator=generator, dtype=h.dtype) >= p) / (1 - p)

    h, zs, hs = drop(x, case.input_dropout), [], []
    for layer, (weight, bias) in enumerate(linears, 1):
        if scale:
            there = float((h @ weight.T).detach().var(correction=0))
            weight.mul_(math.sqrt((GAIN**2 - float(bias.var(correction=0))) / there))
        zs.append((h @ weight.T + bias).requires_grad_())
        if layer > depth:
            break
        n = torch.nn.functional.layer_norm(zs[-1], zs[-1].shape[1:]) if case.norm == "layer" else zs[-1]
        branch = drop(RULES[case.activation].reference(n), case.dropout)
        h = branch if case.residual == "none" or layer == 1 else h + factor * branch
        hs.append(h)
    return zs, hs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prediction_is_what_random_networks_measure(case):
    """Mean squares of 12 networks of width n = 400, within four standard errors of their mean and 5 L/n of theory.

    Theory is that of infinite width: the logarithm of a mean square fluctuates with a variance of up to 5/n a layer
    (relu's, Hanin and Nica 2019, the largest), and a function of it is off by as much.
    """
    scale = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(99)
    inputs = torch.randn(4, SIZES["features"], generator=generator, dtype=torch.float64) * scale
    runs = [random_network(case, inputs, seed) for seed in range(12)]
    expected = predict(input_mean_squares=inputs.square().mean(dim=1).numpy(), gain=GAIN, **SIZES, **vars(case))
    z, h, delta = (np.array([run[part] for run in runs]) for part in range(3))
    relative = delta / delta.mean(axis=0)[-1]
    finite_width = 5 * SIZES["depth"] / SIZES["width"]
    for measured, rms in (
        (z, expected.preactivation_rms),
        (h, expected.activation_rms),
        (relative, expected.delta_rms),
    ):
        error = measured.std(axis=0, ddof=1) / math.sqrt(len(runs))
        off = np.abs(measured.mean(axis=0) - rms**2)
        assert (off <= 4 * error + finite_width * rms**2).all(), (measured.mean(axis=0) / rms**2, error / rms**2)


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
    ("residual", "plane", "residual: unknown 'plane'; did you mean 'plain'? choose from none, plain, scaled, rezero"),
    ("norm", "layers", "norm: unknown 'layers'; did you mean 'layer'? choose from none, batch, layer"),
    ("depth", 0, "depth: 0 is not at least 1"),
    ("gain", -1.0, "gain: -1.0 is not a finite number of at least 0"),
    ("bias_std", -0.5, "bias_std: -0.5 is not a finite number of at least 0"),
    ("bias_std", math.nan, "bias_std: nan is not a finite number of at least 0"),
    ("gate", math.inf, "gate: inf is not a finite number"),
    ("dropout", 1.0, "dropout: 1.0 is not a probability below 1"),
    ("input_dropout", -0.1, "input_dropout: -0.1 is not a probability below 1"),
    ("input_mean_squares", [], "input_mean_squares: shape (0,) is not one number a sample, (B,)"),
    ("input_mean_squares", [1.0, math.nan], "input_mean_squares: not all are finite numbers of at least 0"),
    ("activation", lambda x: 1 / (x * 0), "activation '<lambda>': not finite at x = "),
    ("activation", lambda x: x.sum(), "activation '<lambda>': must map each number to one, but "),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_values_are_named(key, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        predict(**{**GOOD, key: value})


UNPREDICTED = [
    ({"norm": "batch"}, "no prediction for batch norm: mean field follows one sample, and it ties a batch together"),
    ({"init": "identity"}, "no prediction for init=identity: its weights are not random"),
    ({"init": "fixup"}, "no prediction for init=fixup: its output layer starts at zero"),
    (
        {"init": "lsuv", "bias_std": 1.0},
        "no prediction for init=lsuv: it cannot reach the variance 1, as the biases alone are larger",
    ),
    (
        {"init": "lsuv", "input_mean_squares": [0.0]},
        "no prediction for init=lsuv: it cannot reach the variance 1, as what layer 1 gets is zero",
    ),
]


@pytest.mark.parametrize(("change", "message"), UNPREDICTED)
def test_what_theory_does_not_know_it_says(change, message):
    with pytest.raises(NoPredictionError, match=f"^{re.escape(message)}"):
        predict(**GOOD | change)


def test_an_activation_without_a_critical_point_is_a_mistake():
    with pytest.raises(ValueError, match=r"^init: critical: gelu has no critical point") as caught:
        predict(**GOOD | {"activation": "gelu", "init": "critical"})
    assert not isinstance(caught.value, NoPredictionError)


@pytest.mark.parametrize("residual", spec.RESIDUALS)
@pytest.mark.parametrize("norm", spec.NORMS)
def test_every_choice_of_a_configuration_is_predicted_or_has_no_prediction(residual, norm):
    keys = GOOD | {"residual": residual, "norm": norm, "gate": 0.5 if residual == "rezero" else 0.0}
    if norm == "batch":
        with pytest.raises(NoPredictionError):
            predict(**keys)
    else:
        assert np.isfinite(predict(**keys).delta_rms).all()
