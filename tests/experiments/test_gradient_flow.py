"""gradient_flow: tables with known numbers from a sweep that never ran, its words, small real runs."""

import dataclasses
import math
import re

import polars
import pytest
from synthetic_sweep import make_sweep

from bpexp import entry, summary
from bpexp.spec import UserError
from bpexp.statistics import Interval, decide, geometric_interval, mean_interval
from experiments import gradient_flow
from experiments.gradient_flow_text import (
    aligned,
    answer,
    cell_table,
    log10_text,
    sweep_lines,
)
from experiments.page import Section

NONE = float("nan")


def tables_of(results, records):
    numbered = summary.number_cells(results)
    predictions = summary.predict_cells(numbered)
    cells = summary.summarize_cells(numbered, predictions)
    return {
        "cells": cells,
        "profiles": summary.summarize_profiles(records, numbered, predictions),
        "training": summary.summarize_training(records, numbered, gradient_flow.choose_cells(cells)),
        "settings": summary.summarize_settings(numbered),
    }


def write_sweep(folder, results, records):
    """Leave a sweep on disk as its command would."""
    folder.mkdir()
    for (job,), own in records.group_by("job", maintain_order=True):
        (folder / job).mkdir(parents=True)
        own.drop("job").write_parquet(folder / job / "records.parquet")
    results.write_parquet(folder / "results.parquet")
    return folder


# Intervals and what they decide.

INTERVALS = [
    # By hand: mean 2, s = 1, t(0.975; 2) = 4.30265
    (mean_interval, [1.0, 2.0, 3.0], Interval(2.0, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3), 3)),
    (mean_interval, [1.0, None, NONE, 3.0, math.inf], Interval(2.0, 2 - 12.706205, 2 + 12.706205, 2)),
    (mean_interval, [5.0], Interval(5.0, NONE, NONE, 1)),
    (mean_interval, [], Interval(NONE, NONE, NONE, 0)),
    (mean_interval, [0.25, 0.25], Interval(0.25, 0.25, 0.25, 2)),
    (geometric_interval, [0.5, 2.0], Interval(1.0, math.exp(-12.706205 * math.log(2)), 2**12.706205, 2)),
    (geometric_interval, [0.0, 0.5, None, math.inf], Interval(0.5, NONE, NONE, 1)),
]


@pytest.mark.parametrize(("function", "values", "expected"), INTERVALS)
def test_intervals_are_those_of_student(function, values, expected):
    found = function(values)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected), rel=1e-6, nan_ok=True)


DECISIONS = [
    ((0.99, 1.01), "confirmed"),
    ((0.98, 1.02), "confirmed"),
    ((0.97, 1.0), "inconclusive"),
    ((1.0, 1.03), "inconclusive"),
    ((0.5, 2.0), "inconclusive"),
    ((0.9, 0.97), "refuted"),
    ((1.03, 1.5), "refuted"),
    ((NONE, NONE), "inconclusive"),
]


@pytest.mark.parametrize(("ends", "verdict"), DECISIONS)
def test_an_interval_decides_against_a_range(ends, verdict):
    assert decide(Interval(1.0, *ends, 5), 0.98, 1.02) == verdict


# Cells and what is said of them.


def gains(depth, activation, init, seed):
    return {"glorot": (0.5, 0.6, 0.7)[seed], "he": None if seed == 2 else 1.0}[init]


@pytest.fixture(scope="module")
def swept():
    return make_sweep(depths=(3, 12), activations=("relu",), gain=gains)


@pytest.fixture(scope="module")
def tables(swept):
    return tables_of(*swept)


def test_a_cell_has_the_interval_of_its_seeds(tables):
    cells = tables["cells"]
    assert cells.select("model.depth", "series").rows() == [(3, "glorot"), (3, "he"), (12, "glorot"), (12, "he")]
    glorot, he = cells.filter(polars.col("model.depth") == 12).iter_rows(named=True)
    expected = geometric_interval([0.5, 0.6, 0.7])
    assert [glorot[name] for name in ("gain", "gain_low", "gain_high")] == [expected.mean, expected.low, expected.high]
    assert glorot["gain"] == pytest.approx((0.5 * 0.6 * 0.7) ** (1 / 3))
    assert (glorot["seeds"], glorot["gain_seeds"], glorot["diverged"]) == (3, 3, 0)
    # 0.7^11 is 0.02: above a hundredth, so that one seed is healthy, and trained.
    assert (glorot["vanishing"], glorot["healthy"], glorot["exploding"]) == (2, 1, 0)
    assert glorot["trained"] == pytest.approx(1 / 3)
    assert glorot["train_accuracy"] == pytest.approx((0.1 + 0.1 + 0.9) / 3)
    assert (he["seeds"], he["gain_seeds"], he["diverged"], he["gain"]) == (3, 2, 1, 1.0)


def test_a_cell_has_the_prediction_of_its_own_sizes(tables):
    assert tables["cells"]["predicted_gain"].to_list() == pytest.approx([0.5**0.5, 1, 0.5**0.5, 1], rel=1e-6)
    assert tables["cells"]["predicted_verdict"].to_list() == ["healthy"] * 4


def test_the_prediction_follows_gain_and_biases():
    changed = make_sweep(depths=(3,), activations=("relu",), inits=("lecun",), seeds=(0,), **{"init.gain": 2.0})
    assert tables_of(*changed)["cells"]["predicted_gain"][0] == pytest.approx(math.sqrt(2), rel=1e-6)
    biased = make_sweep(depths=(3,), activations=("tanh",), inits=("lecun",), seeds=(0,), **{"init.bias_std": 2.0})
    plain = make_sweep(depths=(3,), activations=("tanh",), inits=("lecun",), seeds=(0,))
    assert tables_of(*biased)["cells"]["predicted_gain"][0] < 0.7 * tables_of(*plain)["cells"]["predicted_gain"][0]


def test_batch_norm_has_no_prediction():
    tables = tables_of(*make_sweep(depths=(3,), activations=("tanh",), **{"model.norm": "batch"}))
    assert tables["cells"]["predicted_gain"].is_nan().all()
    assert tables["cells"]["predicted_verdict"].is_null().all()
    assert tables["profiles"]["predicted"].is_null().all()
    assert "Mean field" not in answer(tables["cells"])
    assert {row[4] for row in cell_table(tables["cells"]).rows} == {"no prediction"}
    simulated = tables["cells"].with_columns(finite_gain=polars.lit(0.5))
    assert {row[4:6] for row in cell_table(simulated).rows} == {("0.5 (simulated)", "+100.0 %")}
    assert "Measured and predicted gain are 100.0 % apart" in answer(simulated)


def test_another_swept_key_parts_cells_and_names_their_series():
    slow, fast = (make_sweep(depths=(2,), inits=("pytorch", "he"), **{"optimizer.lr": lr}) for lr in (0.01, 0.5))
    numbered = summary.number_cells(polars.concat([slow[0], fast[0]]))
    assert summary.cell_keys(numbered) == ["model.depth", "model.activation", "init", "optimizer.lr"]
    assert numbered["series"].unique(maintain_order=True).to_list() == [
        "pytorch, lr=0.01",
        "he, lr=0.01",
        "pytorch, lr=0.5",
        "he, lr=0.5",
    ]
    assert numbered["cell"].n_unique() == 8


def test_pytorch_s_own_biases_are_no_axis():
    results, _ = make_sweep(inits=("pytorch", "he"))
    assert results["init.bias_std"].n_unique() == 2
    assert summary.cell_keys(results) == list(summary.CELL_KEYS)
    fixed = dict(summary.summarize_settings(results).filter(role="fixed").select("name", "text").rows())
    assert fixed["init.bias_std"] == "init.bias_std = null (pytorch), 0 (he)"


def test_a_failed_job_counts_as_one_that_did_not_train(swept):
    results = swept[0].with_columns(
        status=polars.when(polars.col("seed") == 2).then(polars.lit("failed")).otherwise("status"),
        trained=polars.when(polars.col("seed") == 2).then(None).otherwise(polars.lit(value=True)),
    )
    cells = summary.summarize_cells(summary.number_cells(results), {})
    assert cells["failed"].to_list() == [1, 1, 1, 1]
    assert cells["trained"].to_list() == pytest.approx([2 / 3] * 4)
    assert cells["predicted_gain"].is_nan().all()


def test_a_profile_is_the_median_with_its_ends_and_an_anchored_prediction(tables):
    cell = tables["cells"].filter(polars.col("model.depth") == 3)["cell"][0]
    rows = tables["profiles"].filter(cell=cell, measure="delta_rms")
    assert rows["layer"].to_list() == [1, 2, 3, 4]
    assert rows["median"].to_list() == pytest.approx([0.36, 0.6, 1, 1])
    assert rows["low"].to_list() == pytest.approx([0.25, 0.5, 1, 1])
    assert rows["high"].to_list() == pytest.approx([0.49, 0.7, 1, 1])
    assert rows["seeds"].to_list() == [3, 3, 3, 3]
    assert rows["predicted"].to_list()[:3] == pytest.approx([0.5, 0.5**0.5, 1], rel=1e-6)
    assert rows["predicted"][3] is None
    assert tables["profiles"].filter(cell=cell, measure="activation_rms")["predicted"].is_finite().all()
    assert tables["profiles"].filter(measure="grad_norm")["predicted"].is_null().all()


def test_the_prediction_is_anchored_on_what_is_measured(swept):
    results, records = swept
    doubled = records.with_columns(
        value=polars.when(polars.col("measure") == "delta_rms").then(2 * polars.col("value")).otherwise("value")
    )
    first, second = (
        tables_of(results, one)["profiles"].filter(measure="delta_rms")["predicted"] for one in (records, doubled)
    )
    assert (second.drop_nulls() / first.drop_nulls()).to_list() == pytest.approx([2] * first.drop_nulls().len())


def test_zeros_and_non_finite_values_are_counted():
    results, records = make_sweep(depths=(3,), activations=("tanh",), inits=("he",), seeds=(0, 1, 2, 3))
    spoilt = dict(zip(results["job"], (0.0, math.inf, 4.0, 1.0), strict=True))
    first = (polars.col("layer") == 1) & (polars.col("measure") == "delta_rms") & (polars.col("step") == 0)
    values = polars.col("job").replace_strict(spoilt, return_dtype=polars.Float64)
    records = records.with_columns(value=polars.when(first).then(values).otherwise("value"))
    row = tables_of(results, records)["profiles"].filter(layer=1, measure="delta_rms").row(0, named=True)
    assert (row["seeds"], row["zeros"], row["nonfinite"]) == (4, 1, 1)
    assert (row["low"], row["median"], row["high"]) == (0.0, 1.0, 4.0)


def test_training_holds_the_first_middle_and_last_layer(tables):
    training = tables["training"].filter(measure="delta_rms")
    shown = training.join(tables["cells"], on="cell").group_by("model.depth").agg(polars.col("layer").unique().sort())
    assert dict(shown.rows()) == {12: [1, 6, 12]}
    losses = tables["training"].filter(measure="train_loss")
    assert losses["layer"].is_null().all()
    assert losses["step"].unique().sort().to_list() == [0, 20, 40]
    # One of the three seeds of he diverged at step 20, and has no later records.
    he = tables["cells"].filter(polars.col("series") == "he", polars.col("model.depth") == 12)["cell"][0]
    own = losses.filter(cell=he)
    assert own.select("step", "seeds", "nonfinite").rows() == [(0, 3, 0), (20, 3, 1), (40, 2, 0)]


def test_cells_of_every_outcome_are_chosen_for_a_look(tables):
    cells = tables["cells"]
    chosen = cells.filter(cells["cell"].is_in(gradient_flow.choose_cells(cells)))
    assert chosen.select("model.depth", "series").rows() == [(12, "glorot"), (12, "he")]
    many = polars.concat([cells.with_columns(cell=polars.col("cell") + 4 * k) for k in range(20)])
    assert len(gradient_flow.choose_cells(many)) <= gradient_flow.MOST_SHOWN


def test_the_answer_counts(tables):
    text = answer(tables["cells"])
    # glorot at L = 12: two of three seeds vanish. What it predicts there, 2^-5.5, is healthy.
    assert text.startswith(
        "Of 4 cells the gradient at initialization is vanishing in 1, of which 0 trained; "
        "healthy in 3, of which 3 trained. Mean field said so beforehand for 3 of 4."
    )
    assert "15.9 % in the worst (L = 3, relu, glorot)." in text
    assert text.endswith("2 of 12 networks diverged while they trained.")


def test_cells_whose_networks_all_failed_are_out_of_the_counts(swept):
    results, records = swept
    lost = results.filter(polars.col("model.depth") == 12).with_columns(
        polars.lit("failed").alias("status"),
        polars.lit(0, polars.Int64).alias("model.depth"),
        *(polars.lit(None, results.schema[name]).alias(name) for name in ("verdict", "backward_gain", "trained")),
    )
    text = answer(tables_of(polars.concat([results.filter(polars.col("model.depth") == 3), lost]), records)["cells"])
    assert text.startswith("Of 2 cells the gradient at initialization is healthy in 2, of which 2 trained. ")
    assert "for 2 of 2." in text
    assert " The networks of 2 more cells all failed." in text


def test_few_cells_are_printed_one_by_one_and_many_by_their_ends(tables):
    lines = sweep_lines(tables["cells"])
    assert sum(line.startswith(("3 ", "12 ")) for line in lines) == 4
    expected = (
        r"12 +relu +glorot +0\.594 \[0\.391, 0\.903\] +0\.707 +-15\.9 % +- +- +2 vanishing, 1 healthy +1/3 +0\.37 .* 0"
    )
    assert any(re.fullmatch(expected, line) for line in lines), lines
    assert any("1 [1, 1] (2 of 3 seeds)" in line for line in lines)
    many = polars.concat([tables["cells"]] * 10)
    shown = sweep_lines(many)
    assert {"smallest gains:", "largest gains:", "furthest from the prediction:"} <= set(shown)
    assert sum(line.startswith(("3 ", "12 ")) for line in shown) == 15


def test_one_seed_has_no_interval():
    cells = tables_of(*make_sweep(depths=(3,), activations=("tanh",), seeds=(0,)))["cells"]
    assert {row[3] for row in cell_table(cells).rows} == {"1 (1 seed, no interval)"}


def test_a_cell_without_a_gain_says_so():
    cells = tables_of(*make_sweep(depths=(3,), activations=("tanh",), gain=lambda *cell: None))["cells"]
    assert {(row[3], row[5]) for row in cell_table(cells).rows} == {("none", "-")}
    assert answer(cells).endswith(" 6 of 6 networks diverged while they trained.")


def test_columns_line_up():
    assert aligned(("a", "long"), [("xyz", "1")]) == ["a    long", "xyz  1"]


@pytest.mark.parametrize(("value", "text"), [(0.01, "-2.00"), (0.0, "zero"), (math.inf, "-"), (None, "-"), (NONE, "-")])
def test_logs_of_what_has_none_are_named(value, text):
    assert log10_text(value) == text


def test_settings_are_the_caveats(tables):
    settings = {name: (role, text) for role, name, text in tables["settings"].rows()}
    assert settings["model.depth"] == ("varied", "model.depth = 3, 12")
    assert settings["seed"][0] == "averaged over"
    assert settings["seed"][1].startswith("seed = 0 to 2:")
    assert settings["model.width"] == ("fixed", "model.width = 64")
    assert not {name for name in settings if name.startswith(("sweep.", "device", "debug"))}


# The section and the command.


def test_a_section_is_the_same_each_time(tables):
    whole = {**tables, "scale": gradient_flow.scale_table("smoke")}
    first, second = gradient_flow.section(whole), gradient_flow.section(whole)
    assert first == second
    assert isinstance(first, Section)
    (command,) = first.commands
    assert command.startswith("python -m experiments.gradient_flow -m model.depth=4,8 ")
    assert [picture.name for picture in first.pictures] == [
        "gain_map",
        "gain_against_prediction",
        "profile_delta_rms",
        "profile_grad_norm",
        "profile_activation_rms",
        "training",
        "phase_diagrams",
    ]
    assert [table.name for table in first.tables] == ["cells"]
    roles = [role for role, _ in first.method]
    assert roles == [
        "varied",
        "averaged over",
        "fixed",
        "measured on",
        "layers",
        "verdict",
        "trained",
        "train, val, test",
        "intervals",
        "band, p",
    ]
    assert [table.name for table in gradient_flow.section(tables).tables] == ["cells"]


def test_a_state_alone_has_no_curves(swept):
    results, records = swept
    still = gradient_flow.pictures(tables_of(results, records.filter(records["step"] == 0)))
    assert "training" not in [picture.name for picture in still]


def test_every_scale_has_a_grid_and_a_sentence():
    assert gradient_flow.SCALES.keys() == gradient_flow.GRIDS.keys()


def test_finish_leaves_tables_and_figures_that_do_not_change(swept, tmp_path, capsys):
    folder = write_sweep(tmp_path / "sweep", *swept)
    (folder / "events.out.tfevents.1").touch()
    gradient_flow.finish(folder)
    shown = capsys.readouterr().out
    assert "Of 4 cells" in shown
    assert f"figures: {folder / 'figures'}" in shown
    assert "tensorboard --logdir" in shown
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("figures/*.svg"))}
    assert len(files) == 7
    assert polars.read_parquet(folder / "cells.parquet").height == 4
    gradient_flow.finish(folder)
    assert {path.name: path.read_bytes() for path in sorted(folder.glob("figures/*.svg"))} == files


def test_nothing_finished_leaves_nothing(swept, tmp_path, capsys):
    results = swept[0].with_columns(status=polars.lit("failed"))
    folder = write_sweep(tmp_path / "sweep", results, swept[1].clear())
    with pytest.raises(UserError, match="no network has finished"):
        gradient_flow.summarize(folder)
    gradient_flow.finish(folder)
    assert "nothing to summarize" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["results.parquet"]


def test_one_network_from_the_command_line(tmp_path, capsys):
    arguments = ["model.depth=5", "init=pytorch", "train.steps=4", "train.measure_every=2"]
    run = [*arguments, f"hydra.run.dir={tmp_path / 'one'}"]
    assert entry.main("gradient_flow", "doc", finish=gradient_flow.finish, arguments=run) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^first +1 +-\d\.\d\d +-\d\.\d\d ", shown, re.MULTILINE), shown
    assert re.search(r"^middle +3 ", shown, re.MULTILINE)
    assert re.search(r"^last +5 ", shown, re.MULTILINE)
    assert re.search(r"^gradient at initialization: (healthy|vanishing)$", shown, re.MULTILINE)
    numbers = r"(\S+) \[(\S+), (\S+)\] .*; predicted (\S+), at this width in \[(\S+), (\S+)\] \(99 %; p = (\S+)\)"
    gain = re.search(f"gain a layer: {numbers}", shown)
    measured, low, high, predicted, band_low, band_high, p_value = map(float, gain.groups())
    assert low < measured < high
    assert measured == pytest.approx(predicted, rel=0.1)
    assert band_low < measured < band_high
    assert 0.01 < p_value <= 1
    assert "not trained: train_loss 2." in shown


def test_a_computed_scale_makes_tables(tmp_path, monkeypatch):
    small = ("model.depth=2", "model.activation=tanh", "init=he,glorot", "seed=range(2)", "train.steps=0")
    monkeypatch.setitem(gradient_flow.GRIDS, "smoke", small)
    tables = gradient_flow.compute("smoke", tmp_path)
    assert tables["cells"]["gain"].to_list() == pytest.approx(tables["cells"]["predicted_gain"].to_list(), rel=0.15)
    assert (tables["cells"]["p_value"] > 1e-4).all()
    assert "target" not in tables
    assert gradient_flow.section(tables).commands[0].endswith("'seed=range(2)' train.steps=0")
