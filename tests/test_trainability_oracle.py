"""The trainability oracle: what it looks at, its fit, and what it refuses to foresee."""

import math

import numpy as np
import polars
import pytest
import torch
from scipy.optimize import check_grad

from bpexp.data import load
from bpexp.spec import Config, flatten
from bpexp.theory import NoPredictionError
from bpexp.theory.oracle import (
    FEATURES,
    GATES,
    OUTCOMES,
    Oracle,
    _loss,
    class_covariances,
    features,
    fit,
    fit_features,
    kernel_of,
    of_table,
    try_features,
)

NETWORK = {name.removesuffix(".name"): value for name, value in flatten(Config()).items()}
PROGRESS, STEP, FLUCTUATION, OUTPUTS, NOISE = range(len(FEATURES))


def known_oracle():
    """An oracle with gates of one feature each."""
    weights = np.zeros((len(GATES), len(FEATURES) + 1))
    weights[0, PROGRESS], weights[1, STEP], weights[2, OUTPUTS], weights[1, -1] = 3.0, -4.0, 2.0, 1.0
    return Oracle(np.zeros(len(FEATURES)), np.ones(len(FEATURES)), weights)


def drawn(oracle, count):
    generator = np.random.default_rng(5)
    x = generator.normal(size=(count, len(FEATURES)))
    ends = oracle.probabilities(x).cumsum(1)
    return x, [OUTCOMES[k] for k in (generator.random((count, 1)) > ends[:, :-1]).sum(1)]


def test_probabilities_are_those_of_the_gates():
    oracle = known_oracle()
    (found,) = oracle.probabilities(np.array([[1.0, 0.5, 9.0, -1.0, 9.0]]))
    fast, stable, lost = (1 / (1 + math.exp(-u)) for u in (3.0, -1.0, -2.0))
    assert found == pytest.approx([fast * stable, 1 - fast * stable - (1 - stable) * lost, (1 - stable) * lost])


def test_a_fit_finds_the_oracle_that_made_the_outcomes():
    oracle = known_oracle()
    x, outcomes = drawn(oracle, 60_000)
    found = fit_features(x, outcomes)
    new = np.random.default_rng(6).normal(size=(500, len(FEATURES)))
    assert np.abs(found.probabilities(new) - oracle.probabilities(new)).max() < 0.05
    again = of_table(found.table())
    assert np.array_equal(again.probabilities(new), found.probabilities(new))


def test_the_gradient_of_the_fit_is_right():
    x, outcomes = drawn(known_oracle(), 60)
    z = np.concatenate([x, np.ones((60, 1))], 1)
    happened = np.stack([np.array(outcomes) == name for name in OUTCOMES], 1)
    flat = np.random.default_rng(7).normal(size=len(GATES) * z.shape[1])
    error = check_grad(lambda w: _loss(w, z, happened)[0], lambda w: _loss(w, z, happened)[1], flat)
    assert error < 1e-4 * np.linalg.norm(_loss(flat, z, happened)[1])


def test_wrong_tables_and_outcomes_are_named():
    with pytest.raises(ValueError, match="unknown outcome 'wins'; choose from trains, stalls, diverges"):
        fit_features(np.zeros((1, 5)), ["wins"])
    with pytest.raises(ValueError, match="its features are luck, not progress, step"):
        of_table(polars.DataFrame({"feature": ["luck"]}))
    with pytest.raises(ValueError, match="no network to fit"):
        fit(polars.DataFrame([NETWORK | {"optimizer": "adam", "outcome": "trains"}], infer_schema_length=None))


def test_features_are_those_of_the_kernel_and_the_step():
    found = features(NETWORK)
    kernel, classes = kernel_of(
        "digits", None, None, "tanh", "glorot", 4, 64, 1.0, 0.0, "none", "none", 0.0, 0.0, 0.0, 128
    )
    assert classes == 10
    expected = [math.log(0.05 * 200 * kernel.progress / 10), math.log(0.05 * kernel.step / 20)]
    expected += [math.sqrt(kernel.fluctuation), math.log(kernel.output_length), 0.0]
    assert found == pytest.approx(expected)
    half = features(NETWORK | {"optimizer": "momentum", "optimizer.momentum": 0.5})
    assert half - found == pytest.approx([math.log(2), math.log(2), 0.0, 0.0, 0.0])
    dropped = features(NETWORK | {"model.dropout": 0.5, "model.input_dropout": 0.2})
    assert (found[NOISE], dropped[NOISE]) == pytest.approx((0.0, math.sqrt(4 + 0.25)))
    assert features(NETWORK | {"optimizer.lr": 0.0})[:2].tolist() == [-12.0, -12.0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.batch_size", 0),
        ("model.dropout", 1.0),
        ("model.depth", 0),
        ("optimizer.lr", -0.1),
        ("optimizer.lr", math.nan),
        ("optimizer.momentum", 1.0),
    ],
)
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: {value} is out of range$"):
        features(NETWORK | {key: value})


def test_class_covariances_are_means_over_pairs():
    parts = load("digits", 0, train_size=40, dtype=torch.float64)
    x, y = parts.x_train.numpy(), parts.y_train.numpy()
    products, itself = x @ x.T / x.shape[1], np.eye(len(x), dtype=bool)
    alike = y[:, None] == y
    expected = [products[pairs].mean() for pairs in (itself, alike & ~itself, ~alike)]
    assert class_covariances("digits", None, 40) == pytest.approx(expected)


REFUSED = [
    ({"optimizer": "adam"}, "no prediction for optimizer=adam: the oracle knows sgd, momentum, nesterov"),
    ({"clip": "norm"}, "no prediction for clip=norm: the oracle knows clip=none alone"),
    ({"loss": "mse"}, "no prediction for loss=mse: the oracle knows loss=cross_entropy alone"),
    ({"optimizer.warmup": 5}, "no prediction for optimizer.warmup=5: the oracle knows optimizer.warmup=0 alone"),
    ({"data": "diabetes"}, "no prediction for data=diabetes: the oracle knows classes alone"),
    ({"data.train_size": 10}, "no prediction for data.train_size=10: a class has no second sample"),
    ({"init": "identity"}, "no prediction for init=identity"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[next(iter(changed)) for changed, _ in REFUSED])
def test_what_theory_does_not_know_is_not_foreseen(changed, message):
    with pytest.raises(NoPredictionError) as caught:
        known_oracle().predict(NETWORK | changed)
    assert str(caught.value).startswith(message)
    assert try_features(NETWORK | changed) is None


def test_a_network_gets_a_probability_for_each_outcome():
    chances = known_oracle().predict(NETWORK)
    assert list(chances) == list(OUTCOMES)
    assert sum(chances.values()) == pytest.approx(1.0)
