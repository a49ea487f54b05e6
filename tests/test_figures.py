"""Figures from tables: what is drawn, that it is the same file each time, and the cases at the edges."""

import functools
import hashlib
import itertools
import re

import matplotlib
import numpy as np
import polars
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from synthetic_sweep import make_sweep

from bpexp import figures, summary
from bpexp.figures.cells import gain_text, gain_ticks, luminance, verdict_text
from bpexp.figures.compact import shorten_path, shorten_transform, thin
from bpexp.figures.layers import log_limits, named_layers
from bpexp.figures.style import NO_METADATA, prefer_own_fonts


def tables_of(swept=({},), **cells):
    """The three tables of a sweep that never ran, over the values of further keys that are given."""
    results, records = map(polars.concat, zip(*(make_sweep(**cells, **keys) for keys in swept), strict=True))
    numbered = summary.number_cells(results)
    predictions = summary.predict_cells(numbered)
    table = summary.summarize_cells(numbered, predictions)
    profiles = summary.summarize_profiles(records, numbered, predictions)
    return table, profiles, summary.summarize_training(records, numbered, table["cell"].to_list()[-2:])


def mixed(depth, activation, init, seed):
    """A gain of every kind: vanishing to an exact zero, healthy, exploding, diverged in some seeds or in all."""
    if init == "he":
        return None if activation == "relu" or seed == 0 else 1.3
    return {"tanh": 0.9, "relu": 1e-30, "sigmoid": 0.2}.get(activation, 1.0) + 1e-3 * seed


CASES = {
    "one cell, one seed": {"depths": (3,), "activations": ("tanh",), "inits": ("glorot",), "seeds": (0,)},
    "one hidden layer": {"depths": (1, 2), "activations": ("tanh",), "inits": ("he",), "gain": lambda *cell: 1.0},
    "grid": {"depths": (2, 12), "activations": ("tanh", "relu"), "gain": mixed},
    "all diverged": {"depths": (2,), "activations": ("tanh",), "gain": lambda *cell: None},
    "no gradient": {"depths": (3,), "activations": ("tanh",), "inits": ("zeros",), "gain": lambda *cell: 1e-200},
    "many series": {"depths": (2,), "activations": ("tanh",), "inits": tuple(summary.spec.INITS)},
    "further keys": {
        "depths": (2,),
        "activations": ("tanh",),
        "inits": ("he",),
        "seeds": (0,),
        "swept": [
            {"model.norm": norm, "model.residual": residual, "optimizer.max_norm": clip}
            for norm, residual, clip in itertools.product(
                ("none", "layer"), ("none", "plain", "scaled"), (0.1, 0.5, 1.0)
            )
        ],
    },
}


DRAWN_TWICE = ("grid", "one hidden layer")
"""What has every kind of mark; the same figure is drawn in the same way in all cases."""


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "_"))
def case(request):
    return request.param


@functools.cache
def tables_in(case):
    return tables_of(**CASES[case])


@functools.cache
def drawn_in(case):
    return draw_all(tables_in(case))


@functools.cache
def texts_in(case):
    return {name: figures.svg(figure) for name, figure in drawn_in(case).items()}


def draw_all(tables, measures=tuple(summary.PROFILE_MEASURES)):
    cells, profiles, training = tables
    found = {f"profile_{name}": figures.profiles(cells, profiles, name) for name in measures}
    found |= {"map": figures.gain_map(cells), "gains": figures.gain_against_prediction(cells)}
    return found | {"training": figures.training(cells, training)}


def test_every_figure_is_a_file_and_the_same_each_time(case):
    if case in DRAWN_TWICE:
        again = draw_all(tables_in(case), ["delta_rms"])  # all profiles are drawn in the same way
        assert len(again) == 4
        assert {name: figures.svg(figure) for name, figure in again.items()}.items() <= texts_in(case).items()
    for text in texts_in(case).values():
        assert text.startswith("<svg ")
        assert text.endswith("</svg>\n")
        assert "nan" not in re.findall(r' d="[^"]*"', text)


def test_no_text_leaves_a_figure_and_no_legend_covers_a_panel(case):
    assert texts_in(case).keys() == drawn_in(case).keys()
    for figure in drawn_in(case).values():
        figure.set_layout_engine("none")  # they stay where they are in their files
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert figure.bbox.x0 - 1 <= box.x0
            assert box.x1 <= figure.bbox.x1 + 1
            assert all(not box.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)
        drawn, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01


def test_ids_of_two_figures_never_meet():
    texts = [text for case in ("one cell, one seed", "no gradient") for text in texts_in(case).values()]
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in texts]
    assert all(len(set(own)) == len(own) for own in ids)
    assert len({one for own in ids for one in own}) == sum(map(len, ids))
    for text, own in zip(texts, ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(i, "") for i in own} | {
            ("", i) for i in own
        }


def test_a_user_s_own_matplotlib_settings_change_nothing(monkeypatch):
    before = texts_in("one cell, one seed")["profile_delta_rms"]
    for key, value in {"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none", "axes.grid": False}.items():
        monkeypatch.setitem(matplotlib.rcParams, key, value)
    assert figures.svg(figures.profiles(*tables_in("one cell, one seed")[:2], "delta_rms")) == before


def test_a_date_would_be_seen():
    assert NO_METADATA["Date"] is None
    for text in texts_in("one cell, one seed").values():
        assert "metadata" not in text
        assert "matplotlib.org" not in text


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_legend_names_what_was_swept_and_what_is_left_out():
    one = {"depths": (2,), "activations": ("tanh",), "inits": ("he",), "seeds": (0,)}
    norms = [{"model.norm": norm, "model.residual": "plain"} for norm in ("none", "layer")]
    cells, profiles, _ = tables_of([*norms, {"model.norm": "layer", "model.residual": "scaled"}], **one)
    figure = figures.profiles(cells, profiles, "delta_rms")
    assert figure.legends[0].get_title().get_text() == "norm, residual"
    assert legend_texts(figure)[:3] == ["none, plain", "layer, plain", "layer, scaled"]
    clips = [{"optimizer.max_norm": 0.1 * k} for k in range(1, 41)]
    cells, profiles, _ = tables_of(clips, **one)
    texts = legend_texts(figures.profiles(cells, profiles, "delta_rms"))
    assert texts[16] == "16 of 40 series,\nfrom least to most gain"
    assert texts[16] in legend_texts(figures.gain_against_prediction(cells))


def test_no_prediction_is_said_in_words():
    cells, _, _ = tables_in("one cell, one seed")
    for gone, words in (("predicted_gain", "no prediction"), ("gain", "no gain")):
        figure = figures.gain_against_prediction(cells.with_columns(polars.lit(float("nan")).alias(gone)))
        assert figure.texts[0].get_text().startswith(words)


SEEDS = ((0,), "1 seed, no interval"), ((0, 1, 2), "3 seeds")


@pytest.mark.parametrize(("seeds", "text"), SEEDS)
def test_every_figure_states_its_seeds(seeds, text):
    drawn = draw_all(tables_of(depths=(3,), activations=("tanh",), seeds=seeds))
    for name, figure in drawn.items():
        expected = {"map": "1 seed a cell" if len(seeds) == 1 else "3 seeds a cell"}.get(name, text)
        assert any(expected in found for found in legend_texts(figure)), name


def test_zeros_and_non_finite_values_are_marked_not_dropped():
    cells, profiles, _ = tables_of(depths=(12,), activations=("tanh",), inits=("glorot",))
    assert "exactly 0 in a seed" not in legend_texts(figures.profiles(cells, profiles, "delta_rms"))
    broken = profiles.with_columns(
        zeros=polars.when(polars.col("layer") == 1).then(1).otherwise(0).cast(polars.Int64),
        nonfinite=polars.when(polars.col("layer") == 2).then(1).otherwise(0).cast(polars.Int64),
    )
    figure = figures.profiles(cells, broken, "delta_rms")
    assert {"exactly 0 in a seed", "not finite in a seed"} <= set(legend_texts(figure))
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    marks = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() in ("v", "x")}
    assert marks == {"v": [[1.0, low]], "x": [[2.0, high]]}


def test_a_profile_draws_the_median_and_the_prediction():
    cells, profiles, _ = tables_of(
        depths=(4,), activations=("relu",), inits=("glorot",), gain=lambda d, a, i, seed: (0.4, 0.5, 0.9)[seed]
    )
    (axes,) = figures.profiles(cells, profiles, "delta_rms").axes
    lines: list[Line2D] = [line for line in axes.lines if len(line.get_xdata())]
    (solid,) = [line for line in lines if line.get_linestyle() == "-"]
    assert list(solid.get_ydata()) == pytest.approx([0.5**3, 0.5**2, 0.5, 1, 1])
    (dashed,) = [line for line in lines if line.get_linestyle() == "--"]
    assert list(dashed.get_ydata()) == pytest.approx([2**-1.5, 2**-1, 2**-0.5, 1], rel=1e-3)
    assert figures.profiles(cells, profiles, "grad_norm").axes[0].get_title() == "relu"


def test_the_map_shows_each_cell_and_leaves_what_was_not_run_empty():
    cells, _, _ = tables_of(depths=(2, 12), activations=("tanh", "relu"), gain=mixed)
    cells = cells.filter((polars.col("model.depth") != 2) | (polars.col("model.activation") != "relu"))
    gains, trained = figures.gain_map(cells).axes[:2]
    texts = {tuple(text.get_position()): text.get_text() for text in gains.texts}
    assert texts[0, 1] == "0.90\n●"
    assert texts[1, 1] == "1.30\n●2✗1"
    assert texts[3, 1] == "-\n✗"
    assert (2, 0) not in texts
    assert {text.get_text() for text in trained.texts} == {"3/3", "0/3", "2/3"}


def test_cells_without_a_gain_are_counted_where_they_cannot_be_drawn():
    cells, _, _ = tables_of(depths=(12,), gain=mixed)
    assert any("1 of 4 cells" in text for text in legend_texts(figures.gain_against_prediction(cells)))


ROWS = (
    ({"gain": 0.5}, "0.50"),
    ({"gain": 0.004}, "0.004"),
    ({"gain": 1234.0}, "1e+03"),
    ({"gain": float("nan")}, "-"),
)


@pytest.mark.parametrize(("row", "text"), ROWS)
def test_gains_are_short(row, text):
    assert gain_text(row) == text


def test_a_verdict_is_a_glyph_with_counts_where_seeds_disagree():
    agreed = {"vanishing": 3, "healthy": 0, "exploding": 0, "diverged": 0, "failed": 0}
    assert verdict_text(agreed) == "▼"
    assert verdict_text(agreed | {"healthy": 2, "diverged": 1}) == "▼3●2✗1"


def test_ticks_of_gains_are_few_and_never_none():
    for low, high in ((0.1, 10), (0.78, 0.99), (1e-6, 2), (0.4, 0.6)):
        ticks = gain_ticks(low, high)
        assert 2 <= len(ticks) <= 9
        assert all(low <= tick <= high for tick in ticks)


def test_limits_hold_what_can_be_drawn():
    assert log_limits([polars.Series([0.0, 1e-5, 3.0, float("inf"), None])]) == (5e-6, 6.0)
    low, high = log_limits([polars.Series([1.0, 1.1])])
    assert high / low == pytest.approx(100)
    assert log_limits([polars.Series([0.0])]) == (0.1, 10.0)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (1, {"first": 1}),
        (2, {"first": 1, "last": 2}),
        (3, {"first": 1, "middle": 2, "last": 3}),
        (64, {"first": 1, "middle": 32, "last": 64}),
    ],
)
def test_layers_are_named_once(depth, layers):
    assert named_layers(depth) == layers


def test_series_have_colours_and_markers_of_their_own():
    looks = figures.looks(["a", "b", "a", *"cdefghijk"])
    assert len(looks) == 11
    assert len({look["marker"] for look in looks.values()}) == 11
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 11


def test_luminance_is_that_of_srgb():
    assert luminance((1, 1, 1, 1)) == pytest.approx(1)
    assert luminance((0.5, 0.5, 0.5, 1)) == pytest.approx(0.2140, abs=1e-4)


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 1.23456 -0.001 L 10 200.00", "M1.23 0l8.77 200"),
        ("M 0 0 L 10 0 L 10 5 z", "M0 0h10v5z"),
        ("M 0 0 L 0.5 0.25 L -0.5 0.5", "M0 0l.5.25-1 .25"),
        ("M 1 1 Q 2 2 3 1 Q 4 0 5 1 M 6 1 L 7 2", "M1 1q1 1 2 0 1-1 2 0m1 0l1 1"),
        ("M 0 0 L 1 0.01 L 2 0 L 3 1", "M0 0h2l1 1"),
    ],
)
def test_a_path_in_fewer_letters(path, short):
    """Rounded to a hundredth, each step from the last point, and points on a line left out."""
    assert shorten_path(path, 5) == short


def test_a_line_keeps_what_lies_off_it():
    wave = [(x, round(300 * np.sin(x / 40))) for x in range(0, 1000, 2)]
    few = thin(wave, 5)
    assert len(few) < len(wave) / 4
    assert (few[0], few[-1]) == (wave[0], wave[-1])
    x, y = zip(*wave, strict=True)
    assert max(abs(np.interp(x, *zip(*few, strict=True)) - y)) <= 5 / np.cos(np.arctan(300 / 40))
    assert thin([(0, 0), (5, 90), (0, 0)], 5) == [(0, 0), (5, 90), (0, 0)]  # there and back


def test_a_transform_in_fewer_letters():
    assert shorten_transform("translate(10.1234 0.0) scale(0.0156250 -0.015625)") == (
        "translate(10.12)scale(.015625 -.015625)"
    )


def test_a_png_is_the_same_each_time():
    cells, profiles, _ = tables_in("one cell, one seed")
    first, second = (figures.png(figures.profiles(cells, profiles, "delta_rms")) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest()


def test_the_letters_are_those_of_matplotlibs_own_font(monkeypatch):
    fonts = font_manager.fontManager
    shipped = matplotlib.get_data_path()
    monkeypatch.setattr(fonts, "ttflist", [font for font in fonts.ttflist if not font.fname.startswith(shipped)])
    prefer_own_fonts()
    assert font_manager.findfont("DejaVu Sans").startswith(shipped)
    assert font_manager.findfont("DejaVu Sans:bold").startswith(shipped)
    fonts.addfont(fonts.ttflist[0].fname)  # what was looked up is forgotten
