"""The parts of what a layer does to the gradient: they add up, and each is what it is said to be."""

import dataclasses
import itertools
import math

import numpy as np
import polars
import pytest
import torch

from bpexp import attribution, figures, spec
from bpexp.activations import ACTIVATIONS
from bpexp.attribution import TERMS, attribute, attribute_cells, attribution_table, config_of, structures
from bpexp.ensemble import Ensemble
from bpexp.measures import MEASURES

DEPTH = 4


def network(seed=0, *, activation="tanh", init="he", gate=0.3, train=16, **model):
    one = spec.Config(seed=seed, dtype="float64")
    model = {"depth": DEPTH, "width": 8} | model
    return dataclasses.replace(
        one,
        model=dataclasses.replace(one.model, activation=activation, **model),
        init=dataclasses.replace(one.init, name=init, gate=gate),
        train=dataclasses.replace(one.train, batch_size=train, steps=0),
    )


@pytest.mark.parametrize("norm", spec.NORMS)
@pytest.mark.parametrize("residual", spec.RESIDUALS)
def test_the_parts_add_up_to_the_measured_decay(norm, residual):
    deep, flat = (network(seed, depth=depth, norm=norm, residual=residual) for seed, depth in ((0, DEPTH), (1, 2)))
    ensemble = Ensemble([deep, flat])
    found = attribute(ensemble)
    view = ensemble.view(ensemble.values, ensemble.grads, ensemble.grads)
    measured = np.log(MEASURES["delta_rms"].function(view).numpy())
    for terms, decay, depth in zip(found, measured[:, :DEPTH], (DEPTH, 2), strict=True):
        assert terms.shape == (depth - 1, len(TERMS))
        np.testing.assert_allclose(terms.sum(1), decay[: depth - 1] - decay[1:depth], rtol=0, atol=1e-10)
        by_name = dict(zip(TERMS, terms.T, strict=True))
        assert (np.abs(by_name["skip"]) < 1e-12).all() == (residual == "none")
        assert (np.abs(by_name["normalization"]) < 1e-12).all() == (norm == "none")


@pytest.mark.parametrize("residual", ["none", "plain", "scaled", "rezero"])
def test_each_part_is_that_of_autograd(residual):
    """A network of torch's own with the same weights, of which every gradient is kept."""
    ensemble = Ensemble([network(residual=residual)])
    (found,) = attribute(ensemble)
    weights = [w[0].clone() for w in ensemble.model.sort(ensemble.parameters).weights]
    factor = {"scaled": DEPTH**-0.5, "rezero": 0.3}.get(residual, 1.0)
    h, kept = ensemble.batches.x[0].clone(), []
    for layer, weight in enumerate(weights[:-1], 1):
        z = (h @ weight.T).requires_grad_()
        branch = torch.tanh(z) * (factor if layer > 1 else 1.0)
        h = branch if layer == 1 or residual == "none" else h + branch
        h.retain_grad()
        z.retain_grad()
        kept.append((z, h))
    torch.nn.functional.cross_entropy(h @ weights[-1].T, ensemble.batches.y[0]).backward()

    def log_rms(values):
        return float(values.square().mean().sqrt().log())

    for layer in range(2, DEPTH + 1):
        (z, _), (below_z, below_h) = kept[layer - 1], kept[layer - 2]
        through, g = z.grad @ weights[layer - 1], below_h.grad
        c = factor if layer - 1 > 1 else 1.0
        slope = ACTIVATIONS["tanh"].slope(below_z.detach())
        expected = (
            log_rms(through) - log_rms(z.grad),
            log_rms(g) - log_rms(through) + math.log(c),
            log_rms(slope * g) - log_rms(g),
            0.0,
        )
        np.testing.assert_allclose(found[layer - 2], expected, rtol=0, atol=1e-10)


def test_a_closed_gate_has_no_parts():
    (found,) = attribute(Ensemble([network(residual="rezero", gate=0.0)]))
    assert attribution_table({0: found[None]}).select(*TERMS, "decay").null_count().row(0) == (DEPTH - 1,) * 5


def test_networks_are_taken_together_where_they_can_be():
    kinds = itertools.product((2, 4), ("tanh", "relu"), ("none", "batch"))
    configs = {str(k): network(depth=d, activation=a, norm=n) for k, (d, a, n) in enumerate(kinds)}
    groups = list(structures(configs))
    assert sorted(map(sorted, groups)) == [list("0246"), list("1357")]
    assert all([configs[name].model.depth for name in names] == [4, 4, 2, 2] for names in groups)


def test_cells_have_the_gains_of_their_networks(monkeypatch):
    configs = [network(seed, activation=name) for name in ("tanh", "relu") for seed in range(2)]
    rows = [
        {name.removesuffix(".name"): value for name, value in spec.flatten(config).items()}
        | {"job": str(k), "cell": k // 2, "status": "ok"}
        for k, config in enumerate(configs)
    ]
    assert config_of(rows[2]) == configs[2]
    rows.append(rows[0] | {"job": "failed", "status": "failed", "init.gain": -1.0})
    table = attribute_cells(polars.DataFrame(rows, infer_schema_length=None))
    assert table["cell"].to_list() == [0] * (DEPTH - 1) + [1] * (DEPTH - 1)
    assert table["layer"].to_list() == [2, 3, 4] * 2
    for cell in range(2):
        terms = [attribute(Ensemble([configs[2 * cell + seed]]))[0] for seed in range(2)]
        np.testing.assert_allclose(table.filter(cell=cell).select(TERMS), np.mean(terms, axis=0), rtol=1e-8, atol=1e-12)
    for most, cells, seeds in ((2, [0, 1], 1), (1, [0], 1)):
        monkeypatch.setattr(attribution, "NETWORKS", most)
        fewer = attribute_cells(polars.DataFrame(rows, infer_schema_length=None))
        assert fewer["cell"].unique().to_list() == cells
        assert set(fewer["seeds"]) == {seeds}


def test_bars_are_stacked_to_both_sides_of_zero():
    terms = dict(zip(TERMS, (0.4, 0.1, -0.9, 0.0), strict=True))
    bars = polars.DataFrame([{"panel": "a", "label": label, **terms, "decay": -0.4} for label in ("x", "y")])
    axes = figures.attribution_bars(bars, TERMS).axes[0]
    ends = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches[::2])
    expected = [(0.0, -0.9), (0.0, 0.4), (0.4, 0.5), (0.5, 0.5)]
    np.testing.assert_allclose(ends, np.array(expected) / math.log(10), atol=1e-12)
    assert axes.lines[0].get_xdata() == pytest.approx(np.array([-0.4] * 2) / math.log(10))
