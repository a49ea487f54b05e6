"""What a cell of a sweep is predicted to measure."""

import math

import numpy as np
import polars
import pytest
from synthetic_sweep import make_sweep

from bpexp import summary
from bpexp.data import DATA
from bpexp.theory import NoPredictionError, predict

DROPPED = {"model.dropout": 0.25, "model.input_dropout": 0.1, "model.norm": "layer", "model.residual": "scaled"}
GATED = {"model.residual": "rezero", "init.gate": 0.3}


def cells_of(**changes):
    results, records = make_sweep(depths=(3,), seeds=(0, 1), **{"activations": ("tanh",), "inits": ("he",)} | changes)
    return summary.number_cells(results), records


def expected_of(activation="tanh", init="he", **keys):
    lengths = summary.input_lengths("digits", None, None, (0, 1))
    digits = DATA["digits"]
    return predict(activation, init, 3, 64, digits.features, digits.outputs, 1.0, 0.0, lengths, **keys)


PREDICTED = {
    "plain": ({}, {}),
    "dropout and norm": (DROPPED, {"dropout": 0.25, "input_dropout": 0.1, "norm": "layer", "residual": "scaled"}),
    "gates": (GATED, {"residual": "rezero", "gate": 0.3}),
    "critical": ({"inits": ("critical",)}, {"init": "critical"}),
    "lsuv": ({"inits": ("lsuv",)}, {"init": "lsuv"}),
}


@pytest.mark.parametrize("case", PREDICTED)
def test_a_cell_is_predicted_from_its_own_keys(case):
    changes, keys = PREDICTED[case]
    (found,) = summary.predict_cells(cells_of(**changes)[0]).values()
    expected = expected_of(**keys)
    np.testing.assert_array_equal(found.delta_rms, expected.delta_rms)
    np.testing.assert_array_equal(found.preactivation_rms, expected.preactivation_rms)
    if keys:
        assert not np.array_equal(found.activation_rms, expected_of().activation_rms)


UNPREDICTED = {
    "batch norm": {"model.norm": "batch"},
    "identity": {"inits": ("identity",)},
    "fixup": {"inits": ("fixup",), "model.residual": "plain"},
    "no folder": {"data": "idx", "data.root": "no such folder"},
}


@pytest.mark.parametrize("case", UNPREDICTED)
def test_a_cell_without_a_prediction_has_nulls(case):
    numbered, records = cells_of(**UNPREDICTED[case])
    predictions = summary.predict_cells(numbered)
    assert predictions == {0: None}
    (row,) = summary.summarize_cells(numbered, predictions).iter_rows(named=True)
    assert math.isnan(row["predicted_gain"])
    assert row["predicted_verdict"] is None
    assert summary.summarize_profiles(records, numbered, predictions)["predicted"].is_null().all()


def test_cells_with_and_without_a_prediction_stand_side_by_side():
    numbered, _ = cells_of(inits=("he", "identity"))
    he, identity = summary.predict_cells(numbered).values()
    np.testing.assert_array_equal(he.delta_rms, expected_of().delta_rms)
    assert identity is None


def test_failed_networks_with_impossible_values_are_not_asked_of_theory():
    numbered, _ = cells_of(inits=("he", "glorot"))
    impossible = {"model.depth": 0, "model.width": -1, "seed": -1, "status": "failed"}
    failed = (numbered["cell"] == 1) | (numbered["job"] == numbered["job"][0])
    numbered = numbered.with_columns(
        polars.when(failed).then(polars.lit(value)).otherwise(name).alias(name) for name, value in impossible.items()
    )
    he, glorot = summary.predict_cells(numbered).values()
    assert he.backward_gain > 0
    assert glorot is None


def test_closed_gates_have_sizes_but_no_gradient_to_compare_with():
    numbered, records = cells_of(**{"model.residual": "rezero"})
    predictions = summary.predict_cells(numbered)
    cells = summary.summarize_cells(numbered, predictions)
    assert cells["predicted_gain"].is_nan().all()
    assert cells["predicted_verdict"].is_null().all()
    profiles = summary.summarize_profiles(records, numbered, predictions)
    assert profiles.filter(measure="activation_rms")["predicted"].is_finite().all()
    assert profiles.filter(measure="delta_rms")["predicted"].is_nan().all()


def test_keys_that_older_results_have_not_are_at_their_defaults():
    numbered, _ = cells_of()
    older = numbered.drop("model.norm", "model.input_dropout", "init.gate", "data.root")
    found, expected = (summary.predict_cells(frame)[0] for frame in (older, numbered))
    np.testing.assert_array_equal(found.delta_rms, expected.delta_rms)


def test_a_mistake_is_not_taken_for_a_lack_of_theory():
    with pytest.raises(ValueError, match="has no critical point") as caught:
        summary.predict_cells(cells_of(activations=("gelu",), inits=("critical",))[0])
    assert not isinstance(caught.value, NoPredictionError)


SWEPT = {
    "optimizer": ("sgd", "adam"),
    "clip": ("none", "norm"),
    "data": ("digits", "mnist"),
    "loss": ("cross_entropy", "mse"),
    "label_smoothing": (0.0, 0.1),
    "dtype": ("float32", "float64"),
    "model.norm": ("none", "batch"),
    "optimizer.warmup": (0, 5),
}


@pytest.mark.parametrize("name", SWEPT)
def test_any_key_that_is_swept_parts_cells(name):
    results, _ = make_sweep(depths=(2,), activations=("tanh",), inits=("he",), seeds=(0, 1))
    both = polars.concat([results.with_columns(polars.lit(value).alias(name)) for value in SWEPT[name]])
    assert summary.cell_keys(both) == [*summary.CELL_KEYS, name]
    assert summary.number_cells(both)["cell"].to_list() == [0, 0, 1, 1]
