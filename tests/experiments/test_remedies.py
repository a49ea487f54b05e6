"""Remedies: the cells of the tables, the choice of the learning rate, the verdicts, and a small grid."""

import math

import polars
import pytest

from bpexp import entry, figures, spec
from bpexp.spec import UserError
from bpexp.statistics import mean_interval
from bpexp.validation import validate
from experiments import remedies
from experiments.page import Section
from experiments.remedies_cells import (
    ALONE,
    HARMS,
    HELPS,
    NOT,
    SAME,
    TRAINS,
    choose_rate,
    judge,
    pairs,
    shown,
    summarize_remedies,
    values,
)
from experiments.remedies_cost import compute_costs, config_of
from experiments.remedies_grid import DEEP, FAILING, REMEDIES, UNTREATED, cells_argument, grid_argument, learning_rates
from experiments.remedies_text import answer, cells_table, deep_table, deep_text, remedies_table


def config(keys):
    """The configuration of these values, with what their options bring with them."""
    found = spec.Config()
    row = {name.removesuffix(".name"): value for name, value in spec.flatten(found).items()} | keys
    row |= {"clip.threshold": 1.0} if row["clip"] != "none" else {}
    row |= {"optimizer.momentum": 0.9} if row["optimizer"] == "momentum" else {}
    row |= {"optimizer.beta1": 0.9, "optimizer.beta2": 0.999} if row["optimizer"] == "adam" else {}
    return config_of(row)


def test_every_cell_can_run():
    for failing in FAILING:
        for remedy in REMEDIES:
            validate(config(values(failing, remedy)))
    for deep in DEEP:
        validate(config(dict(deep.overrides)))


def test_cells_that_are_the_same_network_are_declared_once():
    relu = next(remedy for remedy in REMEDIES if remedy.name == "ReLU")
    xavier = next(failing for failing in FAILING if failing.name == "ReLU, Xavier")
    assert learning_rates(xavier, relu) == learning_rates(xavier, UNTREATED)
    assert grid_argument([xavier], [UNTREATED, relu]) == grid_argument([xavier], [UNTREATED])


def test_only_a_sweep_gets_the_declared_cells():
    assert remedies.with_cells(["seed=1"]) == ["seed=1"]
    assert remedies.with_cells(["-m", "seed=1"]) == [grid_argument(), "-m", "seed=1"]


def test_a_cell_with_an_unknown_key_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^init\.gian: unknown key; did you mean init\.gain\?$"):
        entry.call("remedies", ["-m", cells_argument([["init.gian=2"]]), f"hydra.sweep.dir={tmp_path / 'x'}"])
    assert not (tmp_path / "x").exists()


JUDGED = [
    ([0.5, 0.6, 0.55], 1.0, TRAINS),
    ([0.5, 0.6, 0.55], 0.4, HELPS),
    ([0.5, -0.4, 0.1], 1.0, NOT),
    ([0.0, 0.0, 0.0], 0.0, NOT),
    ([-0.2, -0.21, -0.19], 0.0, HARMS),
    ([0.7], 1.0, NOT),
    ([], 1.0, ALONE),
]


@pytest.mark.parametrize(("differences", "trained", "expected"), JUDGED)
def test_what_a_remedy_does(differences, trained, expected):
    assert judge(mean_interval(differences), trained) == expected


def jobs(accuracy_of_rate):
    """Networks of the first seeds at each learning rate, with these validation accuracies; None diverged."""
    rows = [
        {"data": "digits", "data.root": None, "optimizer.lr": rate, "seed": seed, "val_accuracy": accuracy}
        for rate, accuracies in accuracy_of_rate.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    return polars.DataFrame(rows, schema_overrides={"val_accuracy": polars.Float64, "data.root": polars.String})


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ({0.01: (0.5, 0.5), 0.1: (0.9, 0.2)}, 0.1),
        ({0.01: (0.5, 0.5), 0.1: (0.9, None)}, 0.01),
        ({0.01: (0.1, 0.1), 0.1: (None, None)}, 0.01),
        ({0.01: (0.05, 0.1), 0.1: (None, None)}, 0.1),
    ],
)
def test_the_learning_rate_is_the_best_on_validation_and_one_that_diverges_guesses(accuracies, rate):
    assert choose_rate(jobs(accuracies)) == rate


@pytest.mark.parametrize(
    ("accuracies", "rate", "seeds"),
    [
        ({0.01: (0.5, 0.6, 0.9, 0.9), 0.1: (0.6, 0.7, 0.1, 0.1)}, 0.1, [2, 3]),
        ({0.01: (0.5, 0.6), 0.1: (0.6, 0.7)}, 0.1, [0, 1]),
        ({0.1: (0.5, 0.6, 0.7)}, 0.1, [0, 1, 2]),
    ],
)
def test_a_network_is_judged_on_other_seeds_than_those_that_chose_its_learning_rate(accuracies, rate, seeds):
    found = shown(jobs(accuracies))
    assert set(found["optimizer.lr"]) == {rate}
    assert found["seed"].to_list() == seeds


def results(*cells):
    return polars.DataFrame([values(failing, remedy) for failing, remedy in cells])


def test_a_treated_network_is_not_taken_for_another_untreated_one():
    sigmoid, xavier, relu = FAILING[0], FAILING[2], REMEDIES[2]
    assert values(sigmoid, relu) == values(xavier, UNTREATED)
    found = {failing.name: [cure.name for cure in cures] for failing, cures in pairs(results((xavier, UNTREATED)))}
    assert found == {xavier.name: ["untreated", "ReLU"]}
    normed = results((sigmoid, next(cure for cure in REMEDIES if cure.name == "batch norm")))
    assert [(failing.name, [cure.name for cure in cures]) for failing, cures in pairs(normed)] == [
        ("sigmoid, Xavier", ["batch norm"])
    ]


SMALL = ("model.depth=3", "model.width=8", "train.batch_size=16", "train.steps=4", "train.measure_every=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remedies")
    cells = grid_argument(FAILING[5:6], [REMEDIES[0], REMEDIES[2], REMEDIES[4], REMEDIES[17]])
    return entry.call(
        "remedies", ["-m", cells, *SMALL, "seed=0,1", "sweep.executor=inline", f"hydra.sweep.dir={folder / 'grid'}"]
    )


@pytest.fixture(scope="module")
def tables(folder):
    return remedies.summarize(folder)


def test_a_small_grid_is_summarized(tables):
    cells = tables["cells"]
    assert cells["remedy"].to_list() == ["untreated", "ReLU", "He", "Adam"]
    assert cells["verdict"].to_list()[:2] == [None, SAME]
    assert cells["seeds"].to_list() == [2] * 4
    for row in cells.iter_rows(named=True):
        assert row["difference"] == pytest.approx(row["accuracy"] - cells["accuracy"][0])
        assert row["lr"] in learning_rates(FAILING[5], next(r for r in REMEDIES if r.name == row["remedy"]))
    assert tables["remedies"].height == 2


def test_the_command_of_a_cell_has_its_values_and_what_was_given_to_all(tables):
    command = tables["cells"]["command"][2].split()
    assert command[:4] == ["python", "-m", "experiments.remedies", "-m"]
    lr = tables["cells"]["lr"][2]
    assert set(command[4:]) == {"init=he", "model.activation=relu", f"optimizer.lr={lr}", *SMALL, "'seed=range(2)'"}


def test_costs_are_those_of_the_structure(folder):
    costs = dict(compute_costs(folder).select("remedy", "cost").rows())
    assert costs["untreated"] == costs["ReLU"] == costs["He"] == 1.0
    assert costs["Adam"] > 0
    assert costs["Adam"] != 1.0


def test_the_section_and_its_figure_come_from_the_tables(tables):
    made = remedies.section(tables)
    assert isinstance(made, Section)
    assert made.answer == answer(tables)
    assert [table.name for table in made.tables] == ["what_to_do", "cells"]
    assert made.pictures[0].svg == figures.svg(figures.remedy_map(tables["cells"]))
    assert made.commands == ()


ROW = {"failing": "a", "gradient": "vanishing", "expected": "vanishing", "found": "vanishing", "acts_on": "x"}
ROW |= {
    "seeds": 4,
    "lr": 0.1,
    "diverged": 0,
    "steps": math.nan,
    "command": "c",
    "trained_low": 0.0,
    "trained_high": 1.0,
}
ROW |= {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 1.0, "difference_low": 0.1, "difference_high": 0.2}


def made_up():
    found = [
        ("untreated", None, 0.0, 0.0),
        ("good", TRAINS, 0.8, 1.0),
        ("idle", NOT, 0.0, 0.0),
        ("weak", HELPS, 0.2, 0.0),
    ]
    keys = ("remedy", "verdict", "difference", "trained")
    return polars.DataFrame([ROW | dict(zip(keys, row, strict=True)) for row in found])


def test_what_helps_most_is_named_first_and_what_does_not_is_flagged():
    cells = made_up()
    ranked = summarize_remedies(cells)
    assert ranked["remedy"].to_list() == ["good", "weak", "idle"]
    said = answer({"cells": cells, "remedies": ranked})
    assert said.startswith("Where gradients vanish, 1 of 1 networks train with good; of no known help to any: idle. ")
    assert remedies_table(ranked).rows[2][3:7] == ("0/1", "0/1", "1/1", "0/1")
    assert [row[2] for row in cells_table(cells).rows] == ["untreated", "good", "weak", "idle"]


def test_the_deepest_networks_are_told_with_their_time():
    row = {"network": "deep", "status": "ok", "steps": 9, "train_accuracy": 1.0, "val_accuracy": 0.9, "command": "c"}
    rows = [row | {"seed": k, "test_accuracy": value, "seconds": 7.0} for k, value in enumerate((0.95, 0.91))]
    deep = polars.DataFrame(rows)
    assert "deep: above 0.9 on the test part in each of 2 seeds (lowest 0.910) after 9 steps, 14 s" in deep_text(deep)
    failed = polars.DataFrame([rows[0], rows[1] | {"test_accuracy": None}])
    assert "deep: not above 0.9" in deep_text(failed)
    assert deep_table(deep).rows[0][-2] == "7 s"
