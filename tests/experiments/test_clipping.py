"""Clipping: twins, the ledger of steps, verdicts on thresholds, the small systems, and a small grid."""

import math

import numpy as np
import polars
import pytest

from bpexp import entry, figures
from bpexp.statistics import mean_interval
from experiments import clipping, clipping_bound, clipping_smoothness, clipping_wall
from experiments.clipping_cells import (
    ALONE,
    HARMS,
    HELPS,
    NOT,
    edge,
    effects_of,
    judge,
    summarize_cells,
    summarize_thresholds,
)
from experiments.clipping_claims import CLAIMS, SMOOTHNESS
from experiments.clipping_systems import compute_systems, thin
from experiments.clipping_text import answer, cells_table, ledger_line, thresholds_table
from experiments.ledger import judge_claim
from experiments.page import Section

GUESS = math.log(10)
NO_RECORDS = polars.DataFrame()


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([-0.5, -0.6, -0.55], HELPS), ([0.5, -0.4, 0.1], NOT), ([0.2, 0.21], HARMS), ([0.0, 0.0], NOT), ([], ALONE)],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(differences, verdict):
    assert judge(mean_interval(differences)) == verdict


def test_a_best_learning_rate_at_the_end_of_the_grid_is_marked():
    assert [edge(lr, [0.1, 0.3, 1.0]) for lr in (0.1, 0.3, 1.0)] == [-1, 0, 1]
    assert edge(0.1, [0.1]) == 0


def records(rows):
    schema = {"job": polars.String, "step": polars.Int64, "measure": polars.String, "value": polars.Float64}
    return polars.DataFrame(rows, schema=schema, orient="row")


def test_the_ledger_of_a_network_is_that_of_its_measured_steps():
    rows = [("a", step, "train_loss", loss) for step, loss in enumerate([9.0, 2.0, 4.0])]
    for step, before, after, cosine, fraction in ((0, 100.0, 1.0, 1.0, 1.0), (2, 4.0, 1.0, 0.5, 2 / 3)):
        rows += [("a", step, "grad_norm", before), ("a", step, "clipped_norm", after)]
        rows += [("a", step, "clip_cosine", cosine), ("a", step, "clip_fraction", fraction)]
    rows += [("b", 0, "train_loss", 1.0), ("b", 0, "grad_norm", math.nan)]
    found = effects_of(records(rows)).rows_by_key("job", named=True)
    assert found["a"][0] == pytest.approx(
        {"last_loss": 4.0, "fraction": 2 / 3, "before": 20.0, "after": 1.0, "shrink": 0.05, "angle": 30.0}
    )
    assert found["b"][0]["before"] is None


def jobs(clip, threshold, lr, losses, score):
    shared = {"setting": "", "clip": clip, "threshold": threshold, "lr": lr, "guess": GUESS}
    of_steps = {"fraction": 0.5, "before": 8.0, "after": 2.0, "shrink": 0.25, "angle": 30.0}
    of_steps = of_steps if clip != "none" else dict.fromkeys(of_steps, math.nan)
    return [
        shared
        | of_steps
        | {"job": f"{clip}{threshold}{lr}{seed}", "seed": seed, "loss": loss, "diverged": loss == GUESS}
        | {"score": score + seed / 100, "val": score}
        for seed, loss in enumerate(losses)
    ]


@pytest.fixture(scope="module")
def made_up():
    rows = [
        *jobs("none", None, 0.1, [1.0, 1.2, 1.4], 0.5),
        *jobs("none", None, 1.0, [GUESS] * 3, 0.1),
        *jobs("norm", 1.0, 0.1, [0.9, 1.3, 1.3], 0.4),
        *jobs("norm", 1.0, 1.0, [0.5, 0.5, 0.6], 0.8),
        *jobs("value", 2.0, 0.1, [2.0, 2.2, 2.3], 0.2),
    ]
    frame = polars.DataFrame(rows, infer_schema_length=None)
    cells = summarize_cells(frame)
    return {"cells": cells, "thresholds": summarize_thresholds(frame, cells)}


def test_each_network_is_compared_with_its_own_twin(made_up):
    cells = made_up["cells"]
    assert cells["verdict"].to_list() == [None, None, NOT, HELPS, HARMS]
    assert cells["difference"].to_list()[2:] == pytest.approx([-1 / 30, 1.6 / 3 - GUESS, 6.5 / 3 - 1.2])
    assert cells["diverged"].to_list() == [0, 1, 0, 0, 0]
    assert cells["lr_after"].to_list()[3] == pytest.approx(0.25)
    assert ledger_line(cells.row(3, named=True)) == (
        "norm 1: 50 % of the steps clipped, norm 8 -> 2, effective learning rate 0.25, turned by 30°"
    )


def test_thresholds_are_compared_at_their_own_best_learning_rates(made_up):
    thresholds = made_up["thresholds"]
    assert thresholds["lr"].to_list() == [0.1, 1.0, 0.1]
    assert thresholds["edge"].to_list() == [-1, 1, 0]
    assert thresholds["gain"].to_list()[1:] == pytest.approx([0.3, -0.3])
    assert thresholds["verdict"].to_list() == [None, HELPS, HARMS]
    assert thresholds["learns_from"].to_list() == [0.1, 1.0, None]
    rows = thresholds_table(thresholds).rows
    assert [row[:3] for row in rows] == [("none", "-", "< 0.1"), ("norm", "1", "> 1"), ("value", "2", "0.1")]
    assert rows[1][7] == "1 / 1 / 0"


def test_the_answer_names_what_helps_and_what_it_costs(made_up):
    said = answer(made_up)
    assert said.startswith("Each at its own best learning rate, the best threshold on validation data is norm 1: its ")
    assert "score is 0.81, unclipped 0.51: +0.30" in said
    assert "1 of 2 thresholds score higher than unclipped, with a 95 % interval above zero: norm 1." in said
    assert "of 1 of 3 cells is below" in said
    assert "Diverged: unclipped 50 %, by norm 0 %, by value 0 %." in said
    alone = {"cells": made_up["cells"].filter(clip="norm"), "thresholds": made_up["thresholds"]}
    assert answer(alone) == "The 2 clipped cells have no unclipped twin here, so nothing is compared."


SMALL = ("model.depth=3", "model.width=8", "train.batch_size=16", "train.steps=6", "train.measure_every=2")
GRID = ("clip=none,norm,value", "optimizer.lr=0.1,1", "seed=0,1")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clipping") / "grid"
    arguments = ["-m", *SMALL, *GRID, "sweep.executor=inline", f"hydra.sweep.dir={folder}"]
    return clipping.summarize(entry.call("clipping", arguments))


def test_a_small_grid_has_its_twins_and_its_ledger(tables):
    cells = tables["cells"].sort("clip", "lr")
    assert cells["clip"].to_list() == ["none", "none", "norm", "norm", "value", "value"]
    assert cells["difference"].is_finite().to_list() == [False, False, True, True, True, True]
    norm = cells.filter(clip="norm")
    assert (norm["after"] <= 1 + 1e-6).all()
    assert norm["angle"].to_list() == pytest.approx([0, 0], abs=1e-2)
    assert norm["lr_after"].to_numpy() == pytest.approx((norm["lr"] * norm["shrink"]).to_numpy())
    assert (cells.filter(clip="value")["angle"] > 1).all()


def test_the_section_has_figures_of_networks_and_of_small_systems(tables, monkeypatch):
    monkeypatch.setattr(clipping_wall, "UPDATES", 30)
    monkeypatch.setattr(clipping_wall, "SURFACE_W", (3.0, 8.0, 7))
    monkeypatch.setattr(clipping_smoothness, "SIZES", (4.0, 5.0))
    monkeypatch.setattr(figures, "svg", lambda figure: f"{len(figure.axes)} axes")
    found = {**tables, **compute_systems((2, 1, 2))}
    made = clipping.section(found)
    assert isinstance(made, Section)
    names = ["clipping_outcomes", "clip_ledger", "clipping_wall", "clipping_laws"]
    assert [picture.name for picture in made.pictures] == names
    assert [picture.svg for picture in made.pictures] == ["4 axes", "8 axes", "4 axes", "2 axes"]
    assert "clipped descent in" in made.answer
    assert [len(table.rows) for table in made.tables] == [3, 6]
    assert len(cells_table(found["cells"]).columns) == len(made.tables[1].rows[0])


# The studies.


def test_the_gradient_at_the_wall_is_that_of_its_loss():
    w, b, h = np.array([4.0, 6.0]), np.array([-2.0, -2.6]), 1e-6
    wall = clipping_wall.Wall(w, b)
    assert wall.loss(w, b)[0] == pytest.approx((1 / (1 + math.exp(-settled(4.0, -2.0))) - 0.7) ** 2, abs=1e-12)
    found = wall.gradient
    for place, (dw, db) in enumerate(((h, 0), (0, h))):
        slope = (wall.loss(w + dw, b + db) - wall.loss(w - dw, b - db)) / (2 * h)
        assert found[place] == pytest.approx(slope, rel=1e-5, abs=1e-9)


def settled(w, b):
    x = clipping_wall.FIRST
    for _ in range(clipping_wall.RECURRENCES):
        x = w / (1 + math.exp(-x)) + b
    return x


def test_a_wall_is_where_the_loss_jumps(monkeypatch):
    b = np.array([-2.8, -2.2])
    w = clipping_wall.find_wall(b)
    wall = clipping_wall.Wall(w, b)
    assert (wall.loss(w - 1e-3, b) > clipping_wall.BELOW_WALL).all()
    assert (wall.loss(w + 1e-3, b) < clipping_wall.BELOW_WALL).all()
    monkeypatch.setattr(clipping_wall, "UPDATES", 60)
    ends = clipping_wall.descend(w - 1e-3, b, np.array([0.1, 0.1]), np.array([1.0, np.inf]))
    assert ends.longest[0] <= 0.1 + 1e-12
    assert ends.longest[1] > 0.1


def test_a_drawn_path_keeps_its_ends():
    path = polars.DataFrame({"clip": "norm", "step": range(45), "w": 0.001 * np.arange(45), "b": 0.0, "loss": 0.5})
    found = thin(path)
    assert found["step"].to_list() == [0, 20, 40, 44]
    assert found["jumped"].all()


def test_a_linear_recurrent_system_reaches_as_far_as_its_matrix_power():
    import torch

    weights = torch.tensor([[[0.5, 1.0], [0.0, 0.25]]], dtype=torch.float64)
    found = clipping_bound.norms(weights, torch.zeros(4, 1, 2, dtype=torch.float64), lambda x: x, torch.ones_like)
    expected = [torch.linalg.matrix_norm(torch.linalg.matrix_power(weights[0], k), 2) for k in (1, 2, 3)]
    torch.testing.assert_close(found[:, 0], torch.stack(expected))


def test_no_system_is_above_the_bound_and_wrong_laws_are_broken():
    rows = clipping_bound.compute(1)
    worst = dict(rows.group_by("law").agg(polars.col("violation").max()).iter_rows())
    assert worst["gamma"] <= 1 + 1e-9
    assert worst["half"] > 10
    assert worst["radius"] > 1.5


def test_updates_grow_as_derived(monkeypatch):
    start = np.array([3.0])
    # Four half steps down the arm to the parabola, whose slope is halved from 1 until it is below 1e-3.
    assert clipping_smoothness.count_clipped("exponential", start)[0] == 4 + 10
    monkeypatch.setattr(clipping_smoothness, "SIZES", (4.0, 5.5, 7.0))
    rows = clipping_smoothness.compute(SMOOTHNESS.seeds["smoke"])
    judged = [judge_claim(claim, rows, NO_RECORDS) for claim in CLAIMS if claim.sweep is SMOOTHNESS]
    assert [row["control_verdict"] for row in judged] == ["refuted"] * 3
    assert judged[1]["measured"] == pytest.approx(2, rel=0.05)
    assert judged[0]["measured"] == pytest.approx(judged[0]["expected"], abs=0.3)
