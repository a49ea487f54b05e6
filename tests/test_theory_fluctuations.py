"""Networks of finite width: what is drawn and passed through, its bands, and the law of one sample's squared length."""

import itertools
import math

import numpy as np
import pytest
import torch

from bpexp.models import MLP, Trace
from bpexp.theory import NoPredictionError, describe_network, draw_law
from bpexp.theory.drawn import backward, draw, forward, pass_through
from bpexp.theory.fluctuations import RESOLUTION, Simulation, is_wide, log_gain
from bpexp.verdict import judge

R, B, SIZES = 3, 5, (4, 6, 6, 6, 2)
NONE = float("nan")


def network_of(activation="tanh", init="lecun", sizes=SIZES, bias_std=0.0, **keys):
    return describe_network(activation, init, sizes, 1.0, bias_std, keys.pop("residual", "none"), **keys)


def drawn(network, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(R, B, SIZES[0], generator=stream, dtype=torch.float64)
    return x, *draw(network, R, torch.float64, stream), stream


KINDS = [
    {"norm": norm, "residual": residual, "dropout": dropout, "gate": 0.3, "activation": activation}
    for (norm, residual), dropout, activation in zip(
        itertools.product(("none", "batch", "layer"), ("none", "plain", "scaled", "rezero")),
        (0.0, 0.3) * 6,
        ("tanh", "gelu", "softplus") * 4,
        strict=True,
    )
]


def name_of(keys):
    return "-".join(str(keys[name]) for name in ("norm", "residual", "activation", "dropout"))


@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_deltas_are_those_of_autograd(keys):
    network = network_of(**keys)
    x, weights, _, stream = drawn(network)
    # What is added to z has the gradient of z.
    added = [torch.zeros(R, B, size, dtype=torch.float64, requires_grad=True) for size in SIZES[1:]]
    hidden, _, outputs = forward(network, x, weights, added, stream)
    grads = torch.autograd.grad(outputs.square().sum() / 2, added)
    expected = torch.stack([grad.square().mean((1, 2)).sqrt().log() for grad in grads[:-1]], 1)
    with torch.no_grad():
        found = backward(network, outputs, hidden, weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keys", [one for one in KINDS if not one["dropout"]], ids=name_of)
def test_activations_are_those_of_the_models(keys):
    network = network_of(**keys)
    x, weights, _, stream = drawn(network)
    model = MLP(SIZES[0], SIZES[-1], 3, SIZES[1], keys["activation"], keys["residual"], keys["norm"])
    constants = {"norm_weight": 1.0, "norm_bias": 0.0, "bias": 0.0, "gate": 0.3}
    parameters = [
        weights[slot.layer - 1]
        if slot.kind == "weight"
        else torch.full((R, *slot.shape), constants[slot.kind], dtype=torch.float64)
        for slot in model.slots()
    ]
    trace = Trace()
    expected = model(x, parameters, trace=trace)
    _, sizes, outputs = forward(network, x, weights, [None] * 4, stream)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(sizes, torch.stack([a.square().mean((1, 2)).sqrt().log() for a in trace.a], 1))


def test_weights_are_those_of_the_initialization():
    sizes = (40, 60, 60, 60, 10)
    _, weights, biases, _ = drawn(network_of(init="pytorch", sizes=sizes, bias_std=None))
    for weight, bias, size in zip(weights, biases, sizes, strict=False):
        assert weight.abs().max() == pytest.approx(1 / math.sqrt(size), rel=0.02)
        assert float(weight.var()) == pytest.approx(1 / (3 * size), rel=0.2)
        assert 0.8 / math.sqrt(size) < float(bias.abs().max()) <= 1 / math.sqrt(size)
    _, weights, biases, _ = drawn(network_of(init="orthogonal", sizes=sizes))
    for weight in weights:
        gram = weight @ weight.mT if weight.shape[1] <= weight.shape[2] else weight.mT @ weight
        torch.testing.assert_close(gram, torch.eye(gram.shape[1], dtype=torch.float64).expand_as(gram))
    assert biases == [None] * 4
    # The inner matrices are the same ones in orders of their own, under signs of their own.
    inner = [[weights[layer][r].abs().sum(dtype=torch.float64).item() for layer in (1, 2)] for r in range(R)]
    assert all(sorted(one) == pytest.approx(sorted(inner[0])) for one in inner)


def test_lsuv_scales_every_layer_on_its_batch():
    network = network_of(init="lsuv")
    x, weights, biases, _ = drawn(network)
    forward(network, x, weights, biases, None, scaled=True)
    hidden, _, outputs = forward(network, x, weights, biases, None)
    for z in (*(one.n for one in hidden), outputs):
        assert ((z.var((1, 2), correction=0) - 1).abs() < 0.1).all()


def test_gradients_too_small_for_a_float_have_their_logs():
    network = network_of("sigmoid", sizes=(4, *[6] * 200, 2))
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(R, B, 4, generator=stream)
    deltas, _ = pass_through(network, x, x, lambda outputs, _: outputs, stream)
    assert torch.isfinite(deltas).all()
    assert deltas.min() < math.log(torch.finfo(torch.float32).tiny)


GAINS = {
    "all layers": [1.0, 2.0, 8.0],
    "above the last zero": [3.0, 0.0, 2.0, 8.0],
    "nothing above": [1.0, 0.0],
    "one layer": [2.0],
    "infinite": [math.inf, 1.0],
    "not a number": [NONE, 1.0],
}


@pytest.mark.parametrize("case", GAINS)
def test_a_gain_is_what_the_verdict_says(case):
    deltas = np.array(GAINS[case])
    with np.errstate(divide="ignore"):
        found = log_gain(np.log(deltas))
    assert math.exp(found) == pytest.approx(judge(deltas).backward_gain, nan_ok=True)


def test_a_band_is_that_of_the_mean_of_new_networks():
    logs = np.array([-0.1, 0.0, 0.1, NONE])
    simulation = Simulation(np.zeros((4, 2)), np.zeros((4, 2)), logs)
    band = simulation.band([math.exp(0.2), math.exp(0.4)])
    # By hand: m = 0, s = 0.1, t(0.995; 2) = 9.924843, sqrt(1/2 + 1/3)
    half = 9.924843 * math.hypot(0.1 * math.sqrt(5 / 6), RESOLUTION)
    assert (band.mean, band.low, band.high) == pytest.approx((1, math.exp(-half), math.exp(half)))
    # Of Student's t with two degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t^2).
    t = 0.3 / (0.1 * math.sqrt(5 / 6))
    assert band.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert simulation.band([math.exp(half)] * 2).p_value == pytest.approx(0.01)
    assert math.isnan(simulation.band([]).p_value)
    assert math.isnan(Simulation(logs[:, None], logs[:, None], np.array([0.1, NONE])).band([1.0]).low)


WIDE = [
    # t(0.995; 15) = 2.9467, t(0.995; 63) = 2.6561, 2.5758 of as many as may be; times s sqrt(1/20 + 1/R) against 0.0198
    (0.019, (False, False, False)),
    (0.021, (True, False, False)),
    (0.031, (True, True, False)),
    (0.035, (True, True, True)),
]


@pytest.mark.parametrize(("std", "wide"), WIDE)
def test_a_band_is_wide_where_that_of_twenty_networks_would_be(std, wide):
    logs = np.array([-std, 0, std])
    simulation = Simulation(logs[:, None], logs[:, None], logs)
    assert tuple(is_wide(simulation, networks) for networks in (16, 64, math.inf)) == wide
    assert not is_wide(Simulation(logs[:, None], logs[:, None], np.full(3, NONE)))


def test_ends_of_one_network_are_those_of_a_new_one():
    logs = np.array([[0.0, 1.0], [0.2, -math.inf]])
    low, high = Simulation(logs, logs, np.zeros(2)).spread("delta_rms")
    # By hand: m = 0.1, s = 0.2 / sqrt(2), t(0.995; 1) = 63.656741, sqrt(1 + 1/2)
    half = 63.656741 * 0.2 / math.sqrt(2) * math.sqrt(1.5)
    assert (low[0], high[0]) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)))
    assert math.isnan(low[1])
    assert math.isnan(high[1])


LAWS = {"relu": ("he", 0.5), "identity": ("lecun", 1.0)}


@pytest.mark.parametrize("activation", LAWS)
def test_the_law_is_that_of_networks(activation):
    init, on = LAWS[activation]
    width, depth, networks = 12, 5, 4000
    network = network_of(activation, init, (width, *[width] * depth, 1))
    logs = draw_law(network, networks, np.random.default_rng(0))
    assert np.exp(logs).mean(axis=0) == pytest.approx(np.ones(depth), abs=0.05)
    moments = np.exp(2 * logs).mean(axis=0)
    assert moments == pytest.approx(np.full(depth, 1 + (3 / on - 1) / width), rel=0.1)
    # Kolmogorov's distance of samples of one law is above 1.95 with probability 0.001.
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(networks, 1, width, generator=stream)
    _, sizes = pass_through(network, x, x[..., :1], lambda outputs, _: outputs, stream)
    total = 2 * sizes[:, -1].numpy() - np.log((x.numpy() ** 2).mean(axis=(1, 2)))
    assert distance(total, logs.sum(axis=1)) < 1.95
    assert distance(total, 0.3 + logs.sum(axis=1)) > 1.95


def distance(one, other):
    both = np.concatenate([one, other])
    ranks = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (one, other)]
    return math.sqrt(len(one) / 2) * np.abs(ranks[0] - ranks[1]).max()


NO_LAW = [
    ("tanh", "lecun", {}),
    ("relu", "orthogonal", {}),
    ("relu", "he", {"norm": "layer"}),
    ("relu", "he", {"bias_std": 0.1}),
]


@pytest.mark.parametrize(("activation", "init", "keys"), NO_LAW)
def test_no_law_is_known_of_other_networks(activation, init, keys):
    with pytest.raises(NoPredictionError, match="no law"):
        draw_law(network_of(activation, init, **keys), 2, np.random.default_rng(0))
