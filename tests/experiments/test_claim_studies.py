"""The studies of single claims, at small sizes: what they measure follows the law, and their parts are right."""

import math

import numpy as np
import polars
import pytest
import torch

from bpexp.theory import centred_correlation, gradient_correlation, largest_eigenvalue, spectrum_variance
from experiments import (
    layer_jacobian_claims,
    linear_claims,
    noise_scale_claims,
    residual_form_claims,
    sharpness_claims,
    shattered_claims,
    spectra_claims,
)
from experiments.ledger import judge_claim

NO_RECORDS = polars.DataFrame()
STUDIES = (linear_claims, noise_scale_claims, shattered_claims, sharpness_claims, spectra_claims)


def judged(module, rows, study=None):
    return [judge_claim(claim, rows, NO_RECORDS) for claim in module.CLAIMS if study in (None, claim.sweep)]


def test_bounds_are_those_of_the_theory():
    by_title = {claim.title: claim.expected for module in STUDIES for claim in module.CLAIMS}

    def expected(words):
        (found,) = [value for title, value in by_title.items() if words in title]
        return found

    depth = spectra_claims.DEPTH
    assert expected("largest eigenvalue") == pytest.approx(largest_eigenvalue(depth))
    for weights, orthogonal in (("Gaussian", False), ("orthogonal", True)):
        for activation, words in (("identity", "linear"), ("relu", "relu")):
            variance = spectrum_variance(activation, 1.0, depth, orthogonal=orthogonal)
            found = expected(f"{weights} weights, {words}, n = 400, L = 16: variance")
            assert found == pytest.approx(variance, rel=1e-9, abs=1e-12)
    assert expected("prod (1 - arccos") == pytest.approx(gradient_correlation(10, 0.0), rel=1e-4)
    assert expected("He, centred: 2^-L") == centred_correlation(8, "plain")
    assert expected("residual: (3/4)^L") == centred_correlation(12, "residual")
    assert expected("sd_l^2") == pytest.approx(centred_correlation(64, "normalized"), rel=1e-4)


def test_spectra_are_those_of_the_network_s_jacobian():
    weights = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def network(h):
        for weight in weights:
            h = torch.relu(weight @ h)
        return h

    jacobian = torch.autograd.functional.jacobian(network, x)
    expected = torch.linalg.eigvalsh(jacobian @ jacobian.T).flip(0)
    found = spectra_claims.eigenvalues(weights, x, "relu")
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_spectra_at_a_smaller_size_keep_to_their_controls(monkeypatch):
    monkeypatch.setattr(spectra_claims, "WIDTH", 60)
    rows = judged(spectra_claims, spectra_claims.compute(10))
    assert [row["control_verdict"] for row in rows] == ["refuted"] * 5
    assert rows[2]["verdict"] == "confirmed"
    measured = [row["measured"] for row in rows]
    assert measured[0] < measured[1]
    assert measured[0] == pytest.approx(rows[0]["expected"], rel=0.3)


def test_layers_have_the_mean_singular_value_of_the_quarter_circle(monkeypatch):
    monkeypatch.setattr(layer_jacobian_claims, "WIDTH", 200)
    stream = torch.Generator().manual_seed(0)
    linear = layer_jacobian_claims.mean_singular_values(torch.full((200,), 1e-3), 1.0, stream)
    assert linear == pytest.approx([8 / (3 * math.pi)] * 4, rel=0.02)
    bent = layer_jacobian_claims.mean_singular_values(torch.full((200,), 3.0), 1.0, stream)
    assert bent[0] < bent[1] < bent[2] < 0.8
    monkeypatch.setattr(layer_jacobian_claims, "WIDTH", 100)
    rows = layer_jacobian_claims.compute(10)
    assert [row["control_verdict"] for row in judged(layer_jacobian_claims, rows)] == ["refuted"] * 2


def test_residual_nets_of_the_stated_form_grow_by_one_and_a_squared(monkeypatch):
    monkeypatch.setattr(residual_form_claims, "NETWORKS", 8)
    rows = judged(residual_form_claims, residual_form_claims.compute(5))
    assert [row["control_verdict"] for row in rows] == ["refuted"] * 4
    for row in rows:
        assert row["measured"] == pytest.approx(row["expected"], rel=0.5 if row["expected"] > 9 else 0.15)


def test_modes_follow_the_law_of_their_own_number_of_layers(monkeypatch):
    monkeypatch.setattr(linear_claims, "STEPS", 300)
    monkeypatch.setattr(linear_claims, "RATE", 4e-2)
    monkeypatch.setattr(linear_claims, "LARGEST_ERROR", 4e-2)
    errors = linear_claims.compute_modes(2).group_by("weights", "law").agg(polars.col("error").max())
    found = {(weights, law): error for weights, law, error in errors.rows()}
    for weights, law in found:
        assert (found[weights, law] < 1e-2) == (weights == law), (weights, law)


def test_steps_to_learn_are_those_of_the_best_rate(monkeypatch):
    monkeypatch.setattr(linear_claims, "RATES", (0.0, 0.5))
    monkeypatch.setattr(linear_claims, "MOST_STEPS", 60)
    fast, finer = linear_claims.steps_to_learn(4, "orthogonal", 0)
    assert 1 < fast < finer <= 60
    assert fast < 40
    monkeypatch.setattr(linear_claims, "RATES", (0.0, 0.25))
    assert 1.5 * fast < linear_claims.steps_to_learn(4, "orthogonal", 0)[0] < 3 * fast
    monkeypatch.setattr(linear_claims, "MOST_STEPS", 3)
    assert linear_claims.steps_to_learn(4, "lecun", 0) == [3]


def test_a_correlation_is_that_of_the_pairs():
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    products = (gradients @ gradients.T).numpy()
    pairs = products[~np.eye(5, dtype=bool)].mean()
    expected = pairs / np.diag(products).mean()
    assert shattered_claims.correlation([gradients, gradients]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "depth"), [("plain", 2), ("residual", 3), ("normalized", 3), ("uncentred", 4)])
def test_gradients_shatter_as_deep_as_the_law_says(kind, depth, monkeypatch):
    monkeypatch.setattr(shattered_claims, "WIDTH", 192)
    monkeypatch.setattr(shattered_claims, "BATCH", 96)
    monkeypatch.setitem(shattered_claims.NETWORKS, kind, 8)
    law = gradient_correlation(depth, 0.0) if kind == "uncentred" else centred_correlation(depth, kind)
    found = [shattered_claims.correlation(shattered_claims.gradients(kind, depth, seed)) for seed in range(2)]
    assert sum(found) / 2 == pytest.approx(law, rel=0.15)


def test_the_power_iteration_finds_the_largest_eigenvalue(monkeypatch):
    monkeypatch.setattr(sharpness_claims, "SIZES", (64, 3, 10))
    monkeypatch.setattr(sharpness_claims, "ITERATIONS", 300)
    weights = sharpness_claims.draw(1)
    values, _ = sharpness_claims.power_iteration(weights, [torch.ones_like(weight) for weight in weights])

    def loss(*one):
        return sharpness_claims.losses_of([weight[None] for weight in one])[0]

    own = tuple(weight[0].detach() for weight in weights)
    blocks = torch.autograd.functional.hessian(loss, own)
    sizes = [weight.numel() for weight in own]
    hessian = torch.cat(
        [
            torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], 1)
            for row, m in zip(blocks, sizes, strict=True)
        ]
    )
    assert float(values[0]) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def test_a_rate_that_is_too_large_raises_the_loss(monkeypatch):
    monkeypatch.setattr(sharpness_claims, "STEPS", 400)
    rows = sharpness_claims.compute(1)
    assert rows.height == 6
    of = {(phase, rate): (sharp, loss) for rate, phase, sharp, loss in rows.drop("seed").iter_rows()}
    assert of["start", 0.5][0] == pytest.approx(of["start", 0.3][0] * 5 / 3, rel=1e-4)
    assert 0.9 < of["edge", 0.5][0] < 1.15
    assert of["edge", 0.5][1] < 0.95
    assert of["jump", 0.5][1] > 1


def test_noise_is_that_of_independent_samples(monkeypatch):
    monkeypatch.setattr(noise_scale_claims, "TRIALS", 256)
    monkeypatch.setattr(noise_scale_claims, "BATCHES", (1, 64))
    rows = noise_scale_claims.compute(2).filter(law="noise")
    assert rows["ratio"].to_list() == pytest.approx([1] * 4, abs=0.15)
    monkeypatch.setattr(noise_scale_claims, "data", lambda: (torch.zeros(8, 64), torch.arange(8) % 2))
    weights = noise_scale_claims.draw(torch.Generator().manual_seed(0))
    both, first, last = noise_scale_claims.squares(weights, torch.tensor([[0, 1], [0, 0], [1, 1]])).tolist()
    # At the input 0 the first layer's weights have no gradient, and the two labels' gradients are those of the biases.
    assert 0 < both < (math.sqrt(first) + math.sqrt(last)) ** 2 / 4
