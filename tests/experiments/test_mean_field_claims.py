"""What claims 4 and 5 are tested on: networks without matrices, and maps that are followed."""

import math

import numpy as np
import pytest
import torch

from bpexp import theory
from bpexp.streams import generator
from experiments import depth_scale_claims, mean_field_claims
from experiments.ledger import select


@pytest.fixture
def small(monkeypatch):
    for name, value in {"LINE_WIDTH": 4000, "LAYERS": 200, "LENGTH_LAYERS": 50, "WIDTH": 20_000, "DEPTH": 10}.items():
        monkeypatch.setattr(mean_field_claims, name, value)
    mean_field_claims.predicted.cache_clear()
    yield
    mean_field_claims.predicted.cache_clear()


def test_a_network_without_matrices_has_the_moments_of_one_with_them():
    """chi_l and q_l of one layer: over matrices and over what stands for them, in the mean of many."""
    n, networks, sigma_w2 = 64, 400, 1.7
    random = np.random.default_rng(0)
    biases = 0.3 * random.standard_normal((networks, n))
    h = torch.tanh(torch.from_numpy(random.standard_normal(n)))
    weights = torch.from_numpy(random.standard_normal((networks, n, n))) / math.sqrt(n)
    z = math.sqrt(sigma_w2) * weights @ h + torch.from_numpy(biases)
    jacobians = (1 - z.tanh() ** 2)[..., None] * math.sqrt(sigma_w2) * weights
    expected = [float(jacobians.square().sum((1, 2)).mean()) / n, float(z.square().mean())]

    along, across = random.standard_normal((networks, n)), random.chisquare(n - 1, (networks, n))
    pad = mean_field_claims.SETTLING
    size = float(h.square().mean().sqrt())
    found = []
    for u, rest, bias in zip(along, across, biases, strict=True):
        first = np.arctanh(size) * np.ones(n)  # the layers before hand on what is as long as h
        layers = (np.stack([fill] * pad + [last]) for fill, last in ((0 * u, u), (0 * u, rest), (first, bias)))
        found.append(mean_field_claims.settled(*layers, sigma_w2))
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0.02)


def test_the_critical_line_of_networks_is_that_of_theory(small):
    rows = mean_field_claims.compute_line(2)
    for sigma_b2, (sigma_w2, q) in mean_field_claims.CRITICAL.items():
        found = select(rows, {"sigma_b2": sigma_b2})
        assert found["sigma_w2"].mean() == pytest.approx(sigma_w2, rel=0.03)
        assert found["q"].mean() == pytest.approx(q, rel=0.1)


def test_maps_are_followed_from_starts_that_differ(small):
    rows = mean_field_claims.compute_edge(3)
    c = np.array([np.random.default_rng([seed, 5]).uniform(0, 0.5) for seed in range(3)])
    for _ in range(200):
        c = (np.sqrt(1 - c**2) + (math.pi - np.arccos(c)) * c) / math.pi
    np.testing.assert_allclose(select(rows, {"case": "relu"})["gap"], 1 - c, rtol=1e-8)
    lengths = select(rows, {"case": "sigma_w2=1"})["length"]
    assert len(set(lengths)) == 3
    np.testing.assert_allclose(2 * 50 * lengths.to_numpy(), 1, atol=0.1)
    assert select(rows, {"case": "tanh"})["gap"].mean() * 200 == pytest.approx(6.171, rel=0.1)


def test_networks_follow_the_maps(small):
    rows = mean_field_claims.compute_networks(2)
    for case in mean_field_claims.CASES:
        assert select(rows, {"case": case, "law": case})["ratio"].mean() == pytest.approx(1, abs=0.1)


def test_a_pair_of_inputs_starts_where_its_case_says(monkeypatch):
    monkeypatch.setattr(mean_field_claims, "DEPTH", 1)
    monkeypatch.setattr(mean_field_claims, "WIDTH", 200_000)
    gap, length = mean_field_claims.pair_network("relu", generator(0, "test"))
    assert gap == pytest.approx(1 - 1 / math.pi, abs=0.01)
    assert length == pytest.approx(1.0, abs=0.02)
    assert theory.fixed_point("tanh", mean_field_claims.critical_w2("tanh"), 0.05) == pytest.approx(0.570, abs=1e-3)


@pytest.mark.parametrize("phase", depth_scale_claims.PHASES)
def test_depth_scales_of_networks_are_those_of_theory(phase):
    sigma_w2, expected = depth_scale_claims.PHASES[phase]
    theirs = theory.depth_scales("tanh", sigma_w2, depth_scale_claims.SIGMA_B2)
    assert theirs.xi_c / theirs.xi_gradient == pytest.approx(expected, rel=1e-4)
    found = depth_scale_claims.scales(sigma_w2, np.random.default_rng(0))
    assert found == pytest.approx((theirs.xi_c, theirs.xi_gradient), rel=0.1)


def test_a_layer_of_a_pair_has_the_moments_of_its_units():
    units = np.array([[1.0, -1.0], [2.0, 0.5]])
    c, length, factor = depth_scale_claims.layer(units, 0.6, 4.0, 3.0)
    first, second = 2 * units[0], 2 * (0.6 * units[0] + 0.8 * units[1])
    h, other = np.tanh(first), np.tanh(second)
    both = 3 * np.stack([h, other]) @ np.stack([h, other]).T / 2 + depth_scale_claims.SIGMA_B2
    assert (c, length) == pytest.approx((both[0, 1] / math.sqrt(both[0, 0] * both[1, 1]), both[0, 0]))
    assert factor == pytest.approx(3 * ((1 - h**2) ** 2).mean())
