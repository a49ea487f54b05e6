"""Bands of a sweep's networks against networks that are measured, and what is said of all activations at one size."""

import math
import re
from dataclasses import replace

import numpy as np
import polars
import pytest
from synthetic_sweep import make_sweep

from bpexp import bands, spec, summary
from experiments import gradient_flow
from experiments.finite_width_claims import CLAIMS, compute
from experiments.gradient_flow_target import (
    Size,
    config_of,
    least_half_widths,
    measure_cells,
    measured_gains,
    target_answer,
    target_cells,
    target_command,
    target_table,
)
from experiments.ledger import judge_claim

SEEDS = 12
SMALL = Size(depth=3, width=16, seeds=SEEDS)


def changed(activation="tanh", init="lecun", **keys):
    """A small configuration with these values, as group__key."""
    config = config_of(activation, init, SMALL, 0)
    config = replace(config, train=replace(config.train, batch_size=16))
    for key, value in keys.items():
        group, _, name = key.partition("__")
        config = replace(config, **{group: replace(getattr(config, group), **{name: value}) if name else value})
    return config


def simulated(config):
    one = {name.removesuffix(".name"): value for name, value in spec.flatten(config).items()}
    return bands.simulate_case(tuple((name, one[name]) for name in bands.KEYS))


KINDS = {
    "batch norm": changed(model__norm="batch"),
    "layer norm, scaled": changed("relu", "he", model__norm="layer", model__residual="scaled"),
    "gates, dropout": changed(model__residual="rezero", init__gate=0.5, model__dropout=0.3, model__input_dropout=0.2),
    "orthogonal": changed("identity", "orthogonal"),
    "lsuv, mse": changed(init="lsuv", loss="mse"),
    "regression": changed("relu", "pytorch", data__name="regression", loss="mse"),
}
P_VALUE = 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_measured_networks_are_those_that_were_simulated(kind):
    (gains,) = measured_gains([KINDS[kind]], SEEDS)
    assert simulated(KINDS[kind]).band(gains).p_value > P_VALUE
    # Of weights that are a third larger, or of an orthogonal network that is not linear, it would be found out.
    other = KINDS["lsuv, mse"] if kind == "orthogonal" else replace(KINDS[kind], init=replace(KINDS[kind].init, gain=2))
    if KINDS[kind].model.norm == "none" and KINDS[kind].init.name != "lsuv":
        assert simulated(other).band(gains).p_value < P_VALUE


NOT_SIMULATED = {
    "identity": {"init": "identity"},
    "fixup": {"init": "fixup", "model__residual": "plain"},
    "no folder": {"data__name": "idx", "data__root": "no such folder"},
}


@pytest.mark.parametrize("case", NOT_SIMULATED)
def test_where_theory_has_no_answer_there_is_no_band(case):
    assert simulated(changed(**NOT_SIMULATED[case])) is None


def test_networks_without_a_gradient_have_no_band():
    assert math.isnan(simulated(changed(init="zeros")).band([1.0]).low)


def test_a_simulation_has_its_own_stream_and_is_the_same_each_time():
    one = simulated(changed())
    bands.simulate_case.cache_clear()
    np.testing.assert_array_equal(simulated(changed()).gain, one.gain)
    assert not set(simulated(changed(label_smoothing=0.1)).gain) & set(one.gain)


def test_every_activation_has_the_initializations_that_it_can(monkeypatch):
    monkeypatch.setattr(spec, "ACTIVATIONS", ("tanh", "gelu"))
    inits = ("glorot", "he", "lecun", "orthogonal", "pytorch")
    assert target_cells() == [("tanh", init) for init in (*inits, "critical")] + [("gelu", init) for init in inits]


def test_cells_have_seeds_and_predictions_of_their_own():
    cells = measure_cells([("tanh", "he"), ("relu", "orthogonal")], replace(SMALL, seeds=3))
    assert cells["first_seed"].to_list() == [0, 3]
    assert cells["gain"].to_list() == pytest.approx(cells["finite_gain"].to_list(), rel=0.3)
    assert cells["predicted_gain"].to_list() == pytest.approx(cells["finite_gain"].to_list(), rel=0.3)
    assert (cells["band_low"] < cells["gain"]).all()
    assert target_command(cells[1:]) == (
        "python -m experiments.gradient_flow -m model.depth=3 model.width=16 model.activation=relu init=orthogonal "
        "'seed=range(3,6)' train.steps=0"
    )


def made_up(off, half, p_value):
    """Ten cells, of which two miss the prediction by `off` and have bands so wide."""
    gains = [1.0] * 8 + [1 + off] * 2
    halves = [0.001] * 8 + [half] * 2
    rows = [
        {
            "model.depth": 30,
            "model.width": 256,
            "model.activation": "tanh",
            "init": "he",
            "series": "he",
            "first_seed": 20 * k,
            "seeds": 20,
            "gain": gain,
            "gain_low": gain - 0.01,
            "gain_high": gain + 0.01,
            "predicted_gain": 1.0,
            "finite_gain": 1.0,
            "band_low": 1 - width,
            "band_high": 1 + width,
            "p_value": 0.5 if k < 8 else p_value,
        }
        for k, (gain, width) in enumerate(zip(gains, halves, strict=True))
    ]
    return polars.DataFrame(rows)


def test_a_target_is_reached_or_not():
    found = target_table(made_up(0.01, 0.01, 0.3))
    assert [row[-1] for row in found.rows] == ["yes"] * 4
    assert found.rows[-1][1].startswith("10 of 10 ")
    assert target_answer(made_up(0.01, 0.01, 0.3)).endswith("predictions of 10 cells reach 4 of 4 targets.")
    found = target_table(made_up(0.05, 0.03, 0.001))
    assert [row[-1] for row in found.rows] == ["no"] * 4
    assert found.rows[0][1] == "5.00 % (median 0.00 %, worst 5.00 %)"
    assert found.rows[2][1] == (
        "3.00 % (tanh under he); above the target in 2 of 10 cells, in 0 because the seeds themselves scatter so much"
    )
    scattered = made_up(0.05, 0.03, 0.001).with_columns(gain_low=polars.col("gain") * math.exp(-0.02))
    # By hand: 0.02 / t(0.975; 19) * z(0.995) = 0.02 / 2.0930 * 2.5758 = 0.0246
    assert "in 2 of 10 cells, in 2 because" in target_table(scattered).rows[2][1]
    assert least_half_widths(scattered, 0.99).tolist() == pytest.approx([math.expm1(0.024614)] * 10, rel=1e-4)
    # P(X <= 8), X ~ Binomial(10, 0.99): 1 - 0.99^10 - 10 * 0.01 * 0.99^9
    assert found.rows[3][1] == f"8 of 10 (p = {1 - 0.99**10 - 0.1 * 0.99**9:.2g} that so few do)"
    assert "0 of 4 targets, all but: " in target_answer(made_up(0.05, 0.03, 0.001))


def test_a_section_shows_the_target(monkeypatch):
    monkeypatch.setattr(gradient_flow, "pictures", lambda tables: ())
    results, records = make_sweep(depths=(3,), activations=("tanh",), inits=("he",), seeds=(0, 1))
    numbered = summary.number_cells(results)
    simulations = bands.simulate_cells(numbered)
    cells = summary.summarize_cells(numbered, {}, simulations)
    tables = {
        "cells": cells,
        "profiles": summary.summarize_profiles(records, numbered, {}, simulations),
        "training": summary.summarize_training(records, numbered, []),
        "settings": summary.summarize_settings(numbered),
    }
    section = gradient_flow.section(tables | {"target": made_up(0.01, 0.01, 0.3)})
    assert section.tables[0].name == "predicted"
    assert section.pictures[-1].name == "target"
    assert "reach 4 of 4 targets." in section.answer
    assert (
        "Of 1 means over the seeds 0 lie in the 99 % band of networks of their width (binomial p = 0.01"
        in section.answer
    )
    assert any("seed=range(0,20)" in command for command in section.commands)
    (row,) = section.tables[1].rows
    assert re.fullmatch(r"\[0\.[89]\d*, 0\.9\d*\]", row[6])
    delta = tables["profiles"].filter(measure="delta_rms").head(3)
    assert (delta["band_low"] < delta["band_high"]).all()
    assert tables["profiles"].filter(measure="grad_norm")["band_low"].is_null().all()


def test_claims_on_finite_width_are_decided_by_their_networks(monkeypatch):
    monkeypatch.setattr("experiments.finite_width_claims.NETWORKS", 500)
    monkeypatch.setattr("experiments.finite_width_claims.DRAWS", 20_000)
    rows = compute(3)
    judged = [judge_claim(claim, rows, polars.DataFrame()) for claim in CLAIMS]
    assert {row["claim"] for row in judged} == {3}
    assert {row["control_verdict"] for row in judged} == {"refuted"}
    for row in judged:
        assert row["measured_low"] < row["high"]
        assert row["measured_high"] > row["low"]
