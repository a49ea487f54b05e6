"""Trainability: the fitted multiple, what became of networks, the oracle's scores, the claims, and a small grid."""

import itertools
import math

import numpy as np
import polars
import pytest

from bpexp import entry, figures
from bpexp.theory.oracle import features, fit, fit_features
from experiments import trainability
from experiments.ledger import judge_claim
from experiments.page import Section
from experiments.trainability_claims import CLAIMS, MULTIPLES, POINTS_1
from experiments.trainability_map import (
    SCALES,
    outcome,
    read_networks,
    scales_of,
    summarize_comparisons,
    summarize_variances,
)
from experiments.trainability_multiples import compare_scales, fit_logistic, fit_multiple, one_number
from experiments.trainability_oracle import (
    HELD_ACTIVATIONS,
    HELD_DEPTHS,
    SWEEPS,
    arguments,
    crossings,
    fit_baseline,
    foresee,
    foresee_alone,
    is_held_out,
    near_boundary,
    reliability,
    skill,
    summarize_scores,
)
from experiments.trainability_text import compared_text, different_text, variances_table

# The fitted multiple.

RATIOS = np.geomspace(1, 20, 12)


def networks_of(multiple, *, seeds=10, slope=6.0):
    """Ratios, what trained and seeds of networks that train with the chance of the curve."""
    ratios, own = np.tile(RATIOS, seeds), np.repeat(np.arange(seeds), len(RATIOS))
    chance = 1 / (1 + (ratios / multiple) ** slope)
    return ratios, (np.random.default_rng(3).random(len(ratios)) < chance).astype(float), own


def test_a_multiple_is_found_with_its_interval():
    found = fit_multiple(*networks_of(5.0))
    assert found.inside
    assert found.low < 5.0 < found.high
    assert found.low < found.multiple < found.high
    assert found.multiple == pytest.approx(5.0, rel=0.15)
    assert found.slope == pytest.approx(6.0, rel=0.4)


def test_a_multiple_is_not_known_finer_than_depths_lie():
    ratios, _, seeds = networks_of(5.0)
    found = fit_multiple(ratios, (ratios < 5.0).astype(float), seeds)
    assert (found.low, found.high) == (RATIOS[RATIOS < 5.0][-1], RATIOS[RATIOS > 5.0][0])


@pytest.mark.parametrize(("trained", "edge"), [(1.0, 20.0), (0.0, 1.0)])
def test_a_multiple_beyond_the_depths_is_known_to_lie_there(trained, edge):
    ratios, _, seeds = networks_of(5.0)
    found = fit_multiple(ratios, np.full_like(ratios, trained), seeds)
    assert not found.inside
    assert (found.multiple, found.low, found.high) == pytest.approx((edge, edge, edge))


def test_no_multiple_is_found_where_deeper_networks_train_more():
    ratios, _, seeds = networks_of(5.0)
    found = fit_multiple(ratios, (ratios > 5.0).astype(float), seeds)
    assert math.isnan(found.multiple)
    assert not found.inside


def test_the_logistic_fit_is_at_the_largest_likelihood():
    ratios, trained, _ = networks_of(4.0)
    x = np.log(ratios)
    a, b = (value[0] for value in fit_logistic(x, trained, np.ones((1, len(x)))))
    p = 1 / (1 + np.exp(b * x - a))
    assert (trained - p).sum() == pytest.approx(0.0, abs=1e-6)
    assert ((trained - p) * x).sum() == pytest.approx(-0.02 * b, abs=1e-6)


def test_multiples_that_differ_by_more_than_their_intervals_are_not_one_number():
    fits = [fit_multiple(*networks_of(multiple, seeds=40)) for multiple in (4.0, 4.0, 7.0)]
    assert one_number(fits[:2]) > 0.5
    assert one_number(fits) < 0.01
    assert math.isnan(one_number(fits[:1]))


def test_the_scale_that_networks_follow_is_the_likelier_one():
    ratios, trained, seeds = networks_of(5.0)
    other = ratios * np.where(np.arange(len(ratios)) % 2, 3.0, 1.0)
    found, back = compare_scales(other, ratios, trained, seeds), compare_scales(ratios, other, trained, seeds)
    assert 0 < found.low < found.mean < found.high
    assert back.mean == pytest.approx(-found.mean)
    assert compare_scales(ratios, ratios, trained, seeds).high == 0
    assert math.isnan(compare_scales(other, ratios, trained, np.zeros_like(seeds)).low)


# What became of a network.

RUN = {"diverged_step": None, "train.steps": 100, "accuracy": 0.9, "last_loss": 0.4, "first_loss": 2.4}
OUTCOMES = [
    ({}, "trains"),
    ({"accuracy": 0.79}, "stalls"),
    ({"accuracy": 0.1, "last_loss": 4.7}, "stalls"),
    ({"accuracy": 0.1, "last_loss": 4.9}, "diverges"),
    ({"accuracy": 0.1, "last_loss": 4.9, "first_loss": 3.0}, "stalls"),
    ({"accuracy": 0.1, "last_loss": math.nan}, "diverges"),
    ({"accuracy": None, "last_loss": None}, "diverges"),
    ({"diverged_step": 100}, "diverges"),
    ({"diverged_step": 101}, "trains"),
    ({"accuracy": None, "last_loss": 0.49}, "trains"),
    ({"accuracy": None, "last_loss": 0.51}, "stalls"),
]


@pytest.mark.parametrize(("changed", "expected"), OUTCOMES)
def test_what_became_of_a_network(changed, expected):
    assert outcome(RUN | changed) == expected


# The oracle: its sweeps, its scores.

PLAIN = {
    "data": "digits",
    "data.root": None,
    "data.train_size": None,
    "model.norm": "none",
    "model.residual": "none",
    "model.dropout": 0.0,
    "model.input_dropout": 0.0,
    "model.width": 64,
    "init": "lecun",
    "init.bias_std": 0.2,
    "init.gate": 0.0,
    "train.batch_size": 32,
    "optimizer": "sgd",
    "optimizer.momentum": None,
    "optimizer.lr": 0.05,
    "train.steps": 200,
}


def table_of(depths, activations, seeds=2):
    """Networks of which those train that come far enough by theory: their progress is above 0."""
    keys = ("model.depth", "model.activation", "init.gain", "seed")
    values = itertools.product(depths, activations, (0.9, 1.1, 1.4), range(seeds))
    rows = [PLAIN | dict(zip(keys, row, strict=True)) for row in values]
    outcomes = ["trains" if features(row)[0] > 0 else "stalls" for row in rows]
    return polars.DataFrame(rows, infer_schema_length=None).with_columns(polars.Series("outcome", outcomes))


@pytest.fixture(scope="module")
def foreseen():
    """What an oracle says of held-out networks, of which progress alone decides."""
    fitted = table_of((2, 4, 8, 16, 32), ("tanh",))
    found = foresee(fit(fitted), table_of(HELD_DEPTHS, HELD_ACTIVATIONS[:1]))
    return found.with_columns(*foresee_alone(found, fit_baseline(fitted)), near_boundary(found))


def test_no_network_of_the_fit_is_held_out():
    assert set(HELD_ACTIVATIONS).isdisjoint({"tanh", "relu", "sigmoid", "gelu", "selu"})
    for scale, sweeps in SWEEPS.items():
        for name, overrides in sweeps.items():
            values = dict(one.split("=") for one in arguments(overrides)[1:])
            depths = {int(depth) for depth in values["model.depth"].split(",")}
            names = set(values["model.activation"].split(","))
            rows = [{"model.depth": depth, "model.activation": one} for depth in depths for one in names]
            held = is_held_out(polars.DataFrame(rows))
            assert (scale == "smoke") == (held.any() and not held.all())
            assert scale == "smoke" or held.all() == name.startswith("held")
            assert not held.all() or (depths <= set(HELD_DEPTHS) and names <= set(HELD_ACTIVATIONS))


def test_the_oracle_foresees_what_theory_decides(foreseen):
    scores = summarize_scores(foreseen, 30).row(0, named=True)
    assert (scores["networks"], scores["fitted"]) == (24, 30)
    assert 0 < scores["trained"] < 1
    assert scores["skill"] > 0.8
    assert scores["skill_low"] <= scores["skill"] <= scores["skill_high"]
    assert foreseen.select("trains", "stalls", "diverges").sum_horizontal().to_list() == pytest.approx([1.0] * 24)


def test_a_boundary_lies_between_depths_and_cells_beside_it_are_near(foreseen):
    assert crossings([4, 8, 16, 32], [1.0, 0.5, 0.0, 0.5]) == pytest.approx([math.sqrt(128), math.sqrt(512)])
    depth = polars.col("model.depth")
    ends = {0.9: 8, 1.1: 30, 1.4: 100}
    for gain, end in ends.items():
        own = foreseen.filter(foreseen["init.gain"] == gain)
        made = own.with_columns(
            outcome=polars.when(depth < end).then(polars.lit("trains")).otherwise(polars.lit("stalls"))
        )
        near = made.filter(near_boundary(made))["model.depth"].unique().sort().to_list()
        assert near == {0.9: [6, 12], 1.1: [24, 48], 1.4: []}[gain]


def test_skill_is_1_for_the_truth_0_for_the_base_rate_and_below_for_its_opposite():
    trained = np.array([1.0, 1.0, 0.0, 1.0])
    assert [skill(p, trained) for p in (trained, np.full(4, 0.75), 1 - trained)] == pytest.approx(
        [1, 0, 1 - 1 / 0.1875]
    )
    assert math.isnan(skill(np.ones(2), np.ones(2)))


def test_reliability_counts_by_what_was_said():
    table = polars.DataFrame({"said": [0.05, 0.05, 0.95, 1.0], "outcome": ["stalls", "trains", "trains", "trains"]})
    found = reliability(table, "said")
    assert found.select("trained", "count").rows() == [(0.5, 2), (1.0, 2)]
    assert found["said"].to_list() == pytest.approx([0.05, 0.975])
    assert found["low"].to_list() == pytest.approx([0.0945, 0.3424], abs=1e-3)
    assert all(low <= share <= high + 1e-12 for low, share, high in found.select("low", "trained", "high").rows())


# The claims, on networks that follow a law.


def multiples_as(law):
    """Results and records of the claims' networks: one trains by a step where L < law(xi_c, steps)."""
    results, records = [], []
    for gain in (1.0, 1.0954):
        for depth in (8, 12, 16, 20, 24, 28, 32, 36, 40, 48):
            for seed in range(12):
                row = PLAIN | {"job": str(len(results)), "model.activation": "tanh", "model.depth": depth, "seed": seed}
                row |= {"init.gain": gain, "init.bias_std": 0.2236}
                results.append(row)
                limit = law(scales_of(row)["xi_c"]) * (1 + 0.02 * (seed - 5.5))
                for steps in (100, 200, 400):
                    reached = depth < limit[steps // 200]
                    records.append((row["job"], steps, "train_accuracy", 0.95 if reached else 0.1))
    schema = {"job": str, "step": polars.Int64, "measure": str, "value": polars.Float64}
    return polars.DataFrame(results, infer_schema_length=None), polars.DataFrame(records, schema=schema, orient="row")


def as_claimed(xi):
    """The multiple 5 at 200 steps, and log 4 more from 100 to 400."""
    return np.array([5 - math.log(2), 5, 5 + math.log(2)]) * xi


def judge_multiples(law):
    results, records = multiples_as(law)
    return [judge_claim(claim, results, records) for claim in CLAIMS if claim.sweep is MULTIPLES]


def test_networks_as_claimed_confirm_and_another_depth_scale_refutes():
    rows = judge_multiples(as_claimed)
    assert [row["control_verdict"] for row in rows] == ["refuted"] * 6
    assert [row["control"] for row in rows] == ["in units of xi_q, the depth scale of lengths"] * 6
    assert [row["verdict"] for row in rows[::3]] == ["confirmed", "confirmed"]
    assert [row["measured"] for row in rows[1::3]] == pytest.approx([math.log(4)] * 2, abs=0.7)
    assert "refuted" not in {row["verdict"] for row in rows[1::3]}
    assert [row["verdict"] for row in rows[2::3]] == ["refuted", "refuted"]


def test_another_multiple_is_refuted_and_one_that_does_not_rise_is_one_number():
    assert {row["verdict"] for row in judge_multiples(lambda xi: np.full(3, 2.5) * xi)[::3]} == {"refuted"}
    rows = judge_multiples(lambda xi: np.full(3, 5.0) * xi)
    assert [row["verdict"] for row in rows[1::3]] == ["refuted"] * 2
    assert [row["verdict"] for row in rows[2::3]] == ["confirmed"] * 2
    assert [row["control_verdict"] for row in rows[2::3]] == ["confirmed"] * 2


def test_a_multiple_beyond_the_depths_decides_nothing():
    rows = judge_multiples(lambda xi: np.full(3, 1e9))
    assert {row["verdict"] for row in rows} == {"inconclusive"}
    assert all(math.isnan(row["measured"]) for row in rows)


def test_points_train_and_fail_as_claimed():
    rows = [
        {"job": f"{depth}{seed}{lr}", "model.depth": depth, "init.gain": 1.0, "seed": seed, "optimizer.lr": lr}
        | {"train_accuracy": 0.1 if depth == 40 or lr == 0.005 else 0.95}
        for depth in (20, 40)
        for seed in range(5)
        for lr in (0.005, 0.02)
    ]
    found = [judge_claim(c, polars.DataFrame(rows), polars.DataFrame()) for c in CLAIMS if c.sweep is POINTS_1]
    assert [(row["verdict"], row["control_verdict"]) for row in found] == [("confirmed", "refuted")] * 2


# The multiples of a map.


def map_of(gains, law):
    """Networks of a map: one trains where L < law(its scales, gain)."""
    rows = []
    for gain, depth, seed in itertools.product(gains, (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48), range(6)):
        row = PLAIN | {"model.activation": "tanh", "model.depth": depth, "seed": seed, "series": "tanh"}
        row |= {"init.gain": gain, "init.bias_std": 0.2236, "train.steps": 400}
        trained = depth < law(scales_of(row), gain) * (1 + 0.04 * (seed - 2.5))
        rows.append(row | {"outcome": "trains" if trained else "stalls"})
    return polars.DataFrame(rows, infer_schema_length=None)


def test_a_multiple_that_is_another_at_each_variance_is_told():
    one = summarize_variances(map_of((1.0, 1.0954), lambda scales, gain: 5 * scales["xi_c"]))
    assert one["multiple"].to_list() == pytest.approx([5, 5], rel=0.1)
    assert one["p_value"][0] > 0.1
    assert different_text(one) == ""
    two = summarize_variances(map_of((1.0, 1.0954), lambda scales, gain: (9 if gain == 1.0 else 5) * scales["xi_c"]))
    assert two["p_value"][0] < 0.01
    assert different_text(two).startswith(
        " One multiple does not fit all sigma_w^2: ordered side, 400 steps, of xi_c: "
    )
    table = variances_table(two)
    assert [row[4] for row in table.rows] == ["1", "1.2"]


def test_the_depth_scale_that_networks_follow_is_told():
    gains = (1.7321, 3.0)
    assert summarize_comparisons(map_of((1.0, 1.0954), lambda scales, gain: 20)).is_empty()
    follow = {
        name: map_of(gains, lambda scales, gain, name=name: 5 * scales[name] / (1 + (name == "xi_c")))
        for name in SCALES
    }
    words = [compared_text(summarize_comparisons(networks)) for networks in follow.values()]
    assert words[0].startswith(" On the chaotic side xi_c describes them better")
    assert words[1].startswith(" On the chaotic side the gradient's 1/|ln chi_1| describes them better")
    assert compared_text(summarize_comparisons(follow["xi_c"]).clear()) == compared_text(None) == ""


# A small grid, and a single network.

TINY = ("train.steps=4", "train.batch_size=16", "train.measure_every=2", "model.width=8", "sweep.executor=inline")


def test_a_grid_leaves_tables_and_figures(tmp_path, monkeypatch, foreseen, capsys):
    oracle = fit_features(np.random.default_rng(0).normal(size=(9, 5)), ["trains", "stalls", "diverges"] * 3)
    monkeypatch.setattr("experiments.trainability_oracle.published_oracle", lambda: oracle)
    grid = ("model.depth=2,5", "init.gain=1.0,2.0", "seed=0,1", *TINY)
    folder = entry.call(
        "trainability", ["-m", *grid, f"hydra.sweep.dir={tmp_path / 'grid'}"], finish=trainability.finish
    )
    shown = capsys.readouterr().out
    assert "sigma_w^2" in shown
    assert "the oracle: it speaks of 16 networks" in shown
    figures_left = {path.name for path in (folder / "figures").iterdir()}
    assert figures_left == {"trainability_map.svg", "oracle_reliability.svg"}
    tables = trainability.summarize(folder)
    assert tables["map"].select("train.steps", "init.gain", "model.depth").n_unique() == tables["map"].height == 8
    assert tables["curves"]["critical"][0] == pytest.approx(1.761, abs=1e-3)
    networks = read_networks(folder)
    assert networks["train.steps"].unique().sort().to_list() == [2, 4]
    more = {"held_out": foreseen, "scores": summarize_scores(foreseen, 30), "oracle": oracle.table()}
    section = trainability.section(tables | more)
    assert isinstance(section, Section)
    assert [picture.name for picture in section.pictures] == ["trainability_map", "oracle_reliability"]
    assert [table.name for table in section.tables] == ["multiples", "variances", "oracle_scores", "oracle"]
    assert section == trainability.section(tables | more)


def test_a_single_network_is_shown_beside_what_the_oracle_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.published.FOLDER", tmp_path / "none")
    folder = entry.call(
        "trainability", ["model.depth=2", *TINY[:-1], f"hydra.run.dir={tmp_path / 'run'}"], finish=trainability.finish
    )
    shown = capsys.readouterr().out
    assert "chi_1 = 0.759; xi_c = 3.63, L = 0.55 of it" in shown
    assert "the oracle: there is none in the published records yet" in shown
    assert "it stalls: train_loss" in shown
    oracle = fit_features(np.random.default_rng(0).normal(size=(9, 5)), ["trains", "stalls", "diverges"] * 3)
    monkeypatch.setattr("experiments.trainability_oracle.published_oracle", lambda: oracle)
    trainability.finish(folder)
    assert "the oracle: trains " in capsys.readouterr().out


def test_multiples_are_drawn_against_budgets():
    rows = [
        {"series": "tanh", "side": side, "scale": "xi_c", "train.steps": steps, "inside": True}
        | {"multiple": steps / 50, "low": steps / 60, "high": steps / 40}
        for side in ("ordered", "chaotic")
        for steps in (100, 400)
    ]
    drawn = figures.fitted_multiples(polars.DataFrame(rows))
    (axes,) = drawn.axes
    assert len(axes.containers) == 2
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "400"]
