"""The bars of attribution and the phase diagrams that gradient_flow shows."""

import numpy as np
import polars
import pytest

from bpexp import figures, theory
from bpexp.attribution import TERMS, attribution_table
from experiments import gradient_flow_parts
from experiments.gradient_flow_parts import cell_bars, compute_parts, parts_pictures


def test_networks_with_norms_and_skip_connections_are_split():
    bars = compute_parts("smoke")
    assert bars["label"].to_list() == ["norm none, skip none", "norm batch, skip plain"]
    np.testing.assert_allclose(bars.select(TERMS).sum_horizontal(), bars["decay"], atol=1e-12)
    bare, dressed = bars.iter_rows(named=True)
    assert (bare["skip"], bare["normalization"]) == pytest.approx((0, 0), abs=1e-6)
    assert dressed["skip"] > 0.1
    (picture,) = parts_pictures({"parts": bars})
    assert picture.name == "attribution_parts"
    assert "over at most 2 networks" in picture.caption


def test_the_deepest_cells_have_bars_but_for_layers_without_parts():
    names = {"model.depth": [2, 3, 3], "model.activation": ["tanh"] * 3, "series": ["he", "he", "lecun"]}
    cells = polars.DataFrame({"cell": [0, 1, 2], **names})
    terms = np.arange(8.0).reshape(1, 2, 4)
    hidden = np.where([[[False], [True]]], np.nan, terms)
    bars = cell_bars(cells, attribution_table({0: terms[:, :1], 1: terms, 2: hidden}))
    assert bars["panel"].unique().to_list() == ["tanh, L = 3"]
    assert bars["label"].to_list() == ["he", "lecun"]
    np.testing.assert_array_equal(bars.select(*TERMS, "decay"), [[2, 3, 4, 5, 14], [0, 1, 2, 3, 6]])
    nothing = cell_bars(cells, attribution_table({1: np.full((1, 2, 4), np.nan)}))
    assert parts_pictures({"cells": cells, "attribution": attribution_table({1: np.full((1, 2, 4), np.inf)})}) == []
    assert nothing.is_empty()


def test_a_phase_diagram_shows_the_colours_of_chi_1_and_its_line():
    variances = np.linspace(0.5, 4.0, 8)
    diagrams = {name: theory.phase_diagram(name, variances, variances / 4) for name in ("tanh", "relu")}
    tanh, relu = figures.phase_diagrams(diagrams).axes[:2]
    np.testing.assert_allclose(
        tanh.images[0].get_array(), np.clip(np.log10(diagrams["tanh"].chi_1), -0.5, 0.5), rtol=1e-12
    )
    (line,) = (c for c in tanh.collections if c.get_hatch() is None)
    for w2, b2 in np.concatenate([path.vertices for path in line.get_paths()]):
        assert theory.critical_line("tanh", b2) == pytest.approx(w2, rel=0.05)
    assert [c.get_hatch() for c in tanh.collections] == [None]
    assert len(relu.collections) == 2


def test_every_activation_has_a_phase_diagram(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "phase_diagrams", lambda diagrams: drawn.update(diagrams) or figures.new_figure(1, 1))
    picture = gradient_flow_parts.phase_picture.__wrapped__()
    assert picture.name == "phase_diagrams"
    assert len(drawn) == 15
    assert {diagram.chi_1.shape for diagram in drawn.values()} == {(200, 200)}
    assert (drawn["sigmoid"].phase == -1).all()
