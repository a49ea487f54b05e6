"""Every measure against its formula, with torch autograd for the gradients; extremes, and what counts as dead."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import configure
from scipy.optimize import minimize_scalar
from torch import nn
from torch_network import TorchNetwork

from bpexp.activations import ACTIVATIONS
from bpexp.data import load
from bpexp.ensemble import Ensemble
from bpexp.measures import MEASURES, SATURATED_BELOW, Measure, View, largest_slope, norms_of, runs, sum_of
from bpexp.plan import PASSES
from bpexp.plan.recording import Recording
from bpexp.train import train

NETWORKS, DEPTH, BATCH = 3, 3, 24
VALUES = {
    "model.depth": DEPTH,
    "model.width": 10,
    "train.batch_size": BATCH,
    "train.steps": 5,
    "dtype": "float64",
    "init.bias_std": 0.2,
    "init.gain": 1.7,
    "optimizer.lr": 0.3,
}
CASES = {
    "plain": {},
    "relu": {"model.activation": "relu"},
    "residual": {"model.residual": "plain", "model.activation": "sigmoid"},
    "dropout": {"model.dropout": 0.4, "model.activation": "hardtanh"},
    "residual-dropout": {"model.residual": "plain", "model.dropout": 0.3, "model.activation": "gelu"},
    "identity": {"model.activation": "identity"},
    "mse": {"data.name": "regression", "loss": "mse"},
    "mse-on-classes": {"loss": "mse"},
    "clip": {"clip.name": "norm", "clip.threshold": 0.05},
    "batch": {"model.norm": "batch", "model.activation": "relu"},
    "layer-scaled": {"model.norm": "layer", "model.residual": "scaled", "model.activation": "hardtanh"},
    "rezero": {"model.residual": "rezero", "init.gate": 0.3, "model.norm": "layer"},
    "smoothing": {"label_smoothing": 0.2, "model.input_dropout": 0.2},
    "prelu": {"model.activation": "prelu"},
}


LARGEST_SLOPES = {"sigmoid": 0.25, "gelu": 1.12890} | dict.fromkeys(
    ("tanh", "relu", "hardtanh", "identity", "prelu"), 1.0
)


def configs_of(case):
    return [configure(VALUES | CASES[case] | {"seed": seed}) for seed in range(NETWORKS)]


class ByTorch(TorchNetwork):
    """The first step of one network, by autograd."""

    def __init__(self, ensemble, network):
        super().__init__(ensemble, network)
        masks = ensemble.masks.values[network] if ensemble.masks else ()
        input_mask = ensemble.input_masks.values[network, 0] if ensemble.input_masks else None
        self.y = ensemble.batches.y[network]
        self.train_loss = self.loss(self.forward(ensemble.batches.x[network], masks, input_mask), self.y)
        self.shown = {"z": self.z, "n": self.n, "a": self.a}
        self.deltas = [BATCH * g for g in torch.autograd.grad(self.train_loss, self.z, retain_graph=True)]
        self.grads = torch.autograd.grad(self.train_loss, self.leaves)
        self.norm = math.sqrt(sum(float(g.square().sum()) for g in self.grads))
        scale = min(1.0, self.config.clip.threshold / self.norm) if self.config.clip.threshold else 1.0
        self.updates = [self.config.optimizer.lr * scale * g for g in self.grads[: DEPTH + 1]]

    def slopes(self):
        for layer, n in enumerate(self.shown["n"], 1):
            x = n.detach().requires_grad_()
            yield torch.autograd.grad(self.activate(layer, x).sum(), x)[0]

    def measures(self):
        """The definitions, once more."""
        line = 0.05 * LARGEST_SLOPES[self.config.model.activation]
        z, a, weights = self.shown["z"], self.shown["a"], self.all_of("weight")
        found = {
            "activation_rms": [x.square().mean().sqrt() for x in a],
            "activation_mean": [x.mean() for x in a],
            "preactivation_rms": [x.square().mean().sqrt() for x in z],
            "preactivation_mean": [x.mean() for x in z],
            "delta_rms": [d.square().mean().sqrt() for d in self.deltas],
            "grad_norm": [g.norm() for g in self.grads[: DEPTH + 1]],
            "weight_norm": [w.norm() for w in weights],
            "update_ratio": [u.norm() / w.norm() for u, w in zip(self.updates, weights, strict=True)],
            "dead_fraction": [(s == 0).all(0).double().mean() for s in self.slopes()],
            "saturated_fraction": [(s.abs() < line).double().mean() for s in self.slopes()],
        }
        return found | ({"gate": self.all_of("gate")} if self.all_of("gate") else {})


def first_step(case):
    configs = configs_of(case)
    ensemble = Ensemble(configs)
    ensemble.compute(keep=True)
    return configs, next(train(configs)), [ByTorch(ensemble, network) for network in range(NETWORKS)]


@pytest.mark.parametrize("case", CASES)
def test_a_layers_measures_are_their_definitions(case):
    _, snapshot, by_torch = first_step(case)
    for network, theirs in enumerate(by_torch):
        expected = theirs.measures()
        assert set(expected) | {"gate"} == set(MEASURES)
        assert set(expected) == set(snapshot.layers)
        for name, values in expected.items():
            shown = snapshot.layers[name][1][network]
            np.testing.assert_allclose(shown, [v.item() for v in values], rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_networks_measures_are_their_definitions(case):
    configs, snapshot, by_torch = first_step(case)
    for network, theirs in enumerate(by_torch):
        split = load(configs[0].data.name, configs[network].seed, dtype=torch.float64)
        expected = {"train_loss": theirs.train_loss.item(), "grad_norm": theirs.norm}
        parts = {"train": (theirs.shown["z"][-1], theirs.y)}
        for part in ("val", "test"):
            x, y = getattr(split, f"x_{part}"), getattr(split, f"y_{part}")
            if case == "mse-on-classes":
                y = nn.functional.one_hot(y, 10).double()
            outputs = theirs.forward(x, training=False)
            expected[f"{part}_loss"] = theirs.loss(outputs, y, training=False).item()
            parts[part] = (outputs, y)
        if split.task == "classification":
            for part, (outputs, y) in parts.items():
                labels = y.argmax(1) if y.dim() > 1 else y
                expected[f"{part}_accuracy"] = (outputs.argmax(1) == labels).double().mean().item()
        if case == "clip":
            assert theirs.norm > configs[0].clip.threshold
            expected |= {"clip_fraction": 1.0, "clipped_norm": configs[0].clip.threshold, "clip_cosine": 1.0}
        shown = {"train_loss": snapshot.train_loss[-1], **snapshot.networks}
        assert {name: pytest.approx(float(values[network]), rel=1e-12) for name, values in shown.items()} == expected


def test_the_l2_penalty_counts_as_part_of_the_gradient_and_not_of_the_delta():
    plain, penalized = (next(train([configure(VALUES | {"optimizer.l2": l2})])) for l2 in (0.0, 0.5))
    ensemble = Ensemble([configure(VALUES)])
    ensemble.compute()
    grads, weights = (ensemble.layout.views(flat)[: DEPTH + 1] for flat in (ensemble.grads, ensemble.values))
    expected = [float((g + 0.5 * w).norm()) for g, w in zip(grads, weights, strict=True)]
    np.testing.assert_allclose(penalized.layers["grad_norm"][1][0], expected, rtol=1e-12)
    np.testing.assert_array_equal(penalized.layers["delta_rms"][1], plain.layers["delta_rms"][1])
    np.testing.assert_array_equal(penalized.train_loss, plain.train_loss)


def test_a_measure_is_of_the_layers_that_have_it():
    layers = next(train(configs_of("rezero"))).layers
    assert list(layers) == list(MEASURES)
    for name, (numbers, values) in layers.items():
        of = {"all": [1, 2, 3, 4], "hidden": [1, 2, 3], "gated": [2, 3]}[MEASURES[name].of]
        assert list(numbers) == of, name
        assert values.shape == (NETWORKS, len(of)), name
        assert values.dtype == np.float64
    assert "gate" not in next(train(configs_of("plain"))).layers


def view(scale=1.0, activation="tanh", dtype=torch.float32, **replaced):
    """Two networks with two hidden layers, all of whose numbers are of one size."""
    stream = torch.Generator().manual_seed(0)

    def some(*shapes):
        return [(scale * torch.randn(2, *shape, generator=stream, dtype=torch.float64)).to(dtype) for shape in shapes]

    units, weights = ((5, 4), (5, 4), (5, 3)), ((4, 6), (4, 4), (3, 4))
    fields = {"z": some(*units), "a": some(*units[:2]), "delta": some(*units)}
    fields |= {"weights": some(*weights), "grads": some(*weights), "updates": some(*weights)}
    fields |= replaced
    slope = ACTIVATIONS[activation].slope
    activations = [(activation, 2)]
    return View(activations, lambda layer, n: slope(n), batch=5, n=fields["z"][:-1], **fields)


LISTS = ("z", "n", "a", "delta", "weights", "grads", "updates")
EXTREMES = {"tiny": 1e-30, "denormal": 1e-40, "large": 1e30, "near-the-end": 1e37}


@pytest.mark.parametrize("scale", EXTREMES.values(), ids=EXTREMES)
def test_no_norm_of_float32_underflows_or_overflows(scale):
    narrow = view(scale)
    tensors = {k: [t.double() for t in v] for k, v in vars(narrow).items() if k in LISTS}
    wide = View(narrow.activations, narrow.slope, batch=5, **tensors)
    for name in ("activation_rms", "activation_mean", "preactivation_rms", "delta_rms", "grad_norm", "weight_norm"):
        found, expected = MEASURES[name].function(narrow), MEASURES[name].function(wide)
        assert found.dtype == torch.float64
        assert (found != 0).all()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        by_hand = {
            "activation_rms": lambda: [(a[0].square().mean()).sqrt() for a in wide.a],
            "activation_mean": lambda: [a[0].mean() for a in wide.a],
            "preactivation_rms": lambda: [(z[0].square().mean()).sqrt() for z in wide.z],
            "delta_rms": lambda: [5 * d[0].square().mean().sqrt() for d in wide.delta],
            "grad_norm": lambda: [g[0].square().sum().sqrt() for g in wide.grads],
            "weight_norm": lambda: [w[0].square().sum().sqrt() for w in wide.weights],
        }[name]()
        torch.testing.assert_close(found[0], torch.stack(by_hand), rtol=1e-12, atol=0)


def test_the_ratio_of_what_is_tiny_and_of_what_is_large():
    tiny, large = view(1e-30), view(1e30)
    ratio = MEASURES["update_ratio"].function
    torch.testing.assert_close(ratio(tiny), ratio(large), rtol=1e-6, atol=0)
    ratios = ratio(view(1.0, updates=tiny.updates, weights=large.weights))
    assert ((ratios > 1e-62) & (ratios < 1e-58)).all()


NORMS = ("preactivation_rms", "activation_rms", "delta_rms", "grad_norm", "weight_norm")


def recorded(name, shown):
    """A measure as it is recorded with a step."""
    return Recording(lambda: [MEASURES[name].function(replace(shown, found={}))]).run()[0]


def test_what_is_recorded_of_float32_is_what_float64_says():
    names = (*NORMS, "preactivation_mean", "activation_mean", "dead_fraction", "saturated_fraction", "update_ratio")
    for activation, name in itertools.product(("tanh", "relu", "gelu"), names):
        shown = view(activation=activation)
        found, expected = recorded(name, shown), MEASURES[name].function(shown)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for scale, name in itertools.product((0.0, *EXTREMES.values()), NORMS):
        shown = view(scale)
        torch.testing.assert_close(recorded(name, shown), MEASURES[name].function(shown), rtol=1e-5, atol=0)


def test_a_networks_sums_do_not_depend_on_its_neighbours():
    stream = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 1e-25, 0.0, 1e25, math.nan, math.inf, 1e-42, 3e37, 1.0])
    x = torch.randn(len(scales), 8, 16, generator=stream).abs() * scales[:, None, None]
    for formula in (lambda x: norms_of(x[None])[0], sum_of):
        found = Recording(lambda f=formula: [f(x)]).run()[0].clone()
        alone = [Recording(lambda f=formula, r=row: [f(r[None])]).run()[0].clone() for row in x]
        assert torch.equal(found.nan_to_num(nan=-1), torch.cat(alone).nan_to_num(nan=-1))
        torch.testing.assert_close(found, formula(x), rtol=1e-5, atol=0, equal_nan=True)


def test_layers_that_lie_one_behind_another_are_looked_at_together():
    flat = torch.randn(2 * 3 * 4 + 2 * 6, generator=torch.Generator().manual_seed(0))
    layers = [flat[:12].view(2, 3, 2), flat[12:24].view(2, 3, 2), flat[24:].view(2, 3, 2)]
    alone = torch.stack([layer.flatten(1).norm(dim=1) for layer in layers], 1)
    assert [len(run) for run in runs(layers)] == [3]
    assert [len(run) for run in runs([layers[1], layers[0], flat[:6].view(1, 3, 2)])] == [1, 1, 1]
    torch.testing.assert_close(view().norms(layers), alone.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_training_stacks_is_looked_at_together(activation):
    values = {"model.depth": 6, "model.width": 16, "train.batch_size": 16, "model.activation": activation}
    shown, calls = [], []
    for passes in (set(PASSES), set(PASSES) - {"stack"}):
        ensemble = Ensemble([configure(values)], passes=passes)
        ensemble.compute(observe=True)
        ensemble.measuring.update()
        shown.append(ensemble.measuring.measure())
        calls.append(len(ensemble.training.plan.observing) - len(ensemble.training.plan.program))
    assert torch.equal(*shown)
    assert calls[0] <= calls[1] - 16


def test_zero_is_zero_and_nothing_is_hidden():
    zero = view(0.0)
    for name in ("preactivation_rms", "activation_rms", "activation_mean", "delta_rms", "grad_norm", "weight_norm"):
        assert (MEASURES[name].function(zero) == 0).all()
    assert MEASURES["update_ratio"].function(zero).isnan().all()
    bad = view()
    bad.delta[1][1, 0, 0] = math.nan
    bad.delta[2][1, 0, 0] = math.inf
    found = MEASURES["delta_rms"].function(bad)
    assert found[0].isfinite().all()
    assert [math.isnan(found[1, 1]), math.isinf(found[1, 2])] == [True, True]


def with_z(activation, *hidden, dtype=torch.float64):
    """Networks of the given preactivations, (R, B, W) a layer, and an output layer that must not count."""
    z = [torch.tensor(values, dtype=dtype) for values in hidden]
    counted = [(activation, len(z[0]))]
    shown = view(activation=activation, z=[*z, torch.full((len(z[0]), 2, 2), -100.0, dtype=dtype)])
    return replace(shown, activations=counted)


def test_a_unit_is_dead_if_no_sample_has_a_slope():
    one = [[-1.0, -1.0, 0.0, 2.0], [-2.0, 1.0, -3.0, 3.0]]  # units: dead, alive on one sample, dead, alive
    other = [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]
    found = MEASURES["dead_fraction"].function(with_z("relu", [one, other], [other, one]))
    assert found.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    table = {"leaky_relu": 0.0, "tanh": 0.0, "identity": 0.0, "hardtanh": 0.25}
    for activation, share in table.items():
        wide = [[[-0.5, -1.0, 9.0, 2.0], [0.5, 0.9, 3.0, 0.2]]]
        assert MEASURES["dead_fraction"].function(with_z(activation, wide)).tolist() == [[share]], activation


def test_a_slope_that_underflows_to_zero_is_dead_in_its_precision():
    z = [[[20.0, 1.0], [30.0, 30.0]]]
    shares = {torch.float32: 0.5, torch.float64: 0.0}
    for dtype, share in shares.items():
        assert MEASURES["dead_fraction"].function(with_z("sigmoid", z, dtype=dtype)).tolist() == [[share]]


def test_saturated_counts_samples_below_a_twentieth_of_the_largest_slope():
    edge = math.atanh(math.sqrt(1 - SATURATED_BELOW))  # tanh' = 1 - tanh^2
    tanh = [[[edge - 1e-6, -edge + 1e-6], [edge + 1e-6, 0.0]], [[edge + 1e-6, -edge - 1e-6], [9.0, 0.0]]]
    assert MEASURES["saturated_fraction"].function(with_z("tanh", tanh)).tolist() == [[0.25], [0.75]]
    # sigmoid' = tanh'(z / 2) / 4, and is held against its own largest slope
    sigmoid = (2 * torch.tensor(tanh)).tolist()
    assert MEASURES["saturated_fraction"].function(with_z("sigmoid", sigmoid)).tolist() == [[0.25], [0.75]]
    relu = [[[-1.0, 1.0], [0.0, 2.0]]]
    assert MEASURES["saturated_fraction"].function(with_z("relu", relu)).tolist() == [[0.5]]
    assert MEASURES["saturated_fraction"].function(with_z("leaky_relu", relu)).tolist() == [[0.5]]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_largest_slope(name):
    slope = ACTIVATIONS[name].slope
    supremum = {"softplus": 1.0}.get(name)  # never reached
    if supremum is None:
        grid = np.linspace(-12, 12, 4801)
        best = float(grid[np.abs(slope(torch.from_numpy(grid)).numpy()).argmax()])
        bounds = (best - 0.01, best + 0.01)
        found = minimize_scalar(lambda x: -abs(float(slope(torch.tensor(x).double()))), bounds=bounds, method="bounded")
        supremum = max(-found.fun, abs(float(slope(torch.tensor(best).double()))))
    assert largest_slope(name) == pytest.approx(supremum, rel=1e-6)
    assert largest_slope(name) <= supremum * (1 + 1e-12)


NARROW = VALUES | {"dtype": "float32", "model.activation": "relu", "train.measure_every": 1}


def test_what_float32_cannot_say_is_taken_again_for_that_network_alone():
    """One network's deltas are 1e-21; its neighbours' records are those beside a tame one, and its own are right."""
    configs = [configure(NARROW | {"seed": seed}) for seed in range(3)]
    tame = [(s.layers, s.networks) for s in train(configs)]
    configs[1].init.gain = 1e-8
    seen = list(train(configs))
    for step, (layers, networks) in zip(seen, tame, strict=True):
        for name, (_, values) in step.layers.items():
            np.testing.assert_array_equal(values[[0, 2]], layers[name][1][[0, 2]])
        for name, values in step.networks.items():
            np.testing.assert_array_equal(values[[0, 2]], networks[name][[0, 2]])
    alone = Ensemble([configs[1]])
    alone.compute(keep=True)
    whole = alone.view(alone.values, alone.grads, alone.grads)
    for name in ("delta_rms", "activation_rms", "grad_norm", "weight_norm"):
        expected = MEASURES[name].function(whole)[0]
        np.testing.assert_allclose(seen[0].layers[name][1][1], expected, rtol=1e-5, err_msg=name)
    assert (seen[0].layers["delta_rms"][1][1] < 1e-20).any()


def test_a_row_is_all_that_a_measure_takes(monkeypatch):
    function = {
        "pass": lambda view: view.rms(view.n),
        "both": lambda view: view.norms(view.grads) * view.rms(view.z),
    }
    for reads, one in function.items():
        monkeypatch.setitem(MEASURES, reads, Measure(reads, "1", "new", "all", one, None, reads))
    monkeypatch.setitem(MEASURES, "pass", replace(MEASURES["pass"], of="hidden"))
    layers = next(train(configs_of("clip"))).layers
    np.testing.assert_allclose(layers["pass"][1], layers["preactivation_rms"][1][:, :-1], rtol=1e-12)
    product = layers["grad_norm"][1] * layers["preactivation_rms"][1]
    np.testing.assert_allclose(layers["both"][1], product, rtol=1e-12)


@pytest.mark.parametrize("value", [0.7, 1 / 3, 0.3])
@pytest.mark.parametrize("shape", [(1, 2, 64, 128), (1, 1, 512, 512), (2, 1, 1024, 256), (1, 3, 101, 103)])
def test_float32_adds_up_equal_numbers_to_a_hundred_thousandth(value, shape):
    run = torch.full(shape, value)
    for formula in (norms_of, lambda run: sum_of(run[0])):
        found = Recording(lambda f=formula: [f(run)]).run()[0]
        torch.testing.assert_close(found, formula(run), rtol=1e-5, atol=0)


def test_a_gate_that_only_some_networks_have():
    values = {"model.residual": "rezero", "model.width": 4, "train.batch_size": 8, "train.steps": 1, "init.gate": 0.5}
    configs = [configure(values | {"model.depth": depth}) for depth in (2, 1, 1)]
    for snapshot in train(configs):
        numbers, gates = snapshot.layers["gate"]
        assert list(numbers) == [2]
        assert np.isfinite(gates[:, 0]).tolist() == [True, False, False]
