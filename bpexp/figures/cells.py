"""Figures with a mark a cell: the gains and what trained as a heatmap, and the gains against their prediction."""

import math
from typing import Any

import matplotlib
import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bpexp.figures.series import add_legend, choose_series, name_series, round_of
from bpexp.figures.style import GREY, MARKERS, looks, new_figure, styled

GLYPHS = {"vanishing": "▼", "healthy": "●", "exploding": "▲", "diverged": "✗", "failed": "?"}
GAIN_COLOURS = "PuOr_r"
SMALLEST_SPAN = 0.3  # decades a layer at the ends of the colours, at least
LARGEST_SPAN = 1.0
EMPTY_COLOUR = "#d9d9d9"
COLUMN_WIDTH, LINE_HEIGHT, LETTER_WIDTH = 0.34, 0.14, 0.08  # inches
SMALLEST_MAP = 1.26  # inches: room for the colours' label
LABEL_HEIGHT = 0.8  # inches: labels of the columns that a map has room for
LEGEND_WIDTH = 2.0
SIZES = (3.0, 5.0, 7.5, 10.0)
BAND: dict[str, Any] = {"color": GREY, "linewidth": 5, "alpha": 0.3, "solid_capstyle": "butt", "zorder": 1}
"""Of the lower panel, where points stand side by side."""


@styled
def gain_map(cells: polars.DataFrame) -> Figure:
    """Draw the backward gain of every cell, depth x (activation, series), and below it the fraction that trained.

    Colours are centred on a gain of 1. A number is the gain, a glyph the verdict of most seeds; a cell without a
    gain is grey, a combination that was not run is empty.
    """
    depths = cells["model.depth"].unique().sort().to_list()
    activations = cells["model.activation"].unique(maintain_order=True).to_list()
    columns = sorted(
        dict.fromkeys(cells.select("model.activation", "series").iter_rows()), key=lambda c: activations.index(c[0])
    )
    title, labels = name_series(cells)
    column = max(COLUMN_WIDTH, LINE_HEIGHT * (1 + max(label.count("\n") for label in labels.values())))
    for activation in activations:
        of_activation = sum(name == activation for name, _ in columns)
        column = max(column, LETTER_WIDTH * (len(activation) + 1) / of_activation)
    wide = max(column * len(columns), 2.4)
    figure = new_figure(wide + 1.9, 2 * max(0.42 * len(depths), SMALLEST_MAP) + 2.6)
    gain_axes, trained_axes = figure.subplots(2, 1, sharex=True)
    at = {(row["model.depth"], row["model.activation"], row["series"]): row for row in cells.iter_rows(named=True)}
    grid = [[at.get((depth, *column)) for column in columns] for depth in depths]

    logs = np.array([[math.nan if row is None else log_gain(row) for row in line] for line in grid])
    span = float(np.clip(np.nanmax(np.abs(logs), initial=0), SMALLEST_SPAN, LARGEST_SPAN))
    norm = TwoSlopeNorm(0, -span, span)
    gains = draw_map(gain_axes, logs, grid, GAIN_COLOURS, norm)
    write(gain_axes, grid, lambda row: f"{gain_text(row)}\n{verdict_text(row)}", gains)
    bar = figure.colorbar(gains, ax=gain_axes, extend="both", aspect=12)
    bar.set_label("backward gain a layer")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.2g}"))

    fractions = np.array([[math.nan if row is None else row["trained"] for row in line] for line in grid])
    trained = draw_map(trained_axes, fractions, grid, "Greys", matplotlib.colors.Normalize(0, 1.3))
    write(trained_axes, grid, lambda row: f"{round(row['trained'] * row['seeds'])}/{row['seeds']}", trained)
    bar = figure.colorbar(trained, ax=trained_axes, aspect=12, boundaries=np.linspace(0, 1, 101), ticks=[0, 0.5, 1])
    bar.set_label("seeds that trained")

    for axes in (gain_axes, trained_axes):
        axes.set_yticks(range(len(depths)), [f"L = {depth}" for depth in depths])
        axes.set_xticks(range(len(columns)), [labels[series] for _, series in columns], rotation=90)
        axes.grid(visible=False, which="major")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, which="both")
        axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(depths) - 1) + 0.5, minor=True)
        axes.grid(visible=True, which="minor", color=EMPTY_COLOUR, linewidth=0.6)
    name_activations(gain_axes, [activation for activation, _ in columns], len(depths))
    name_activations(trained_axes, [activation for activation, _ in columns], len(depths), named=False)
    if title != "initialization":
        trained_axes.set_xlabel(title)
    tall = max(text.get_window_extent().height for text in trained_axes.get_xticklabels()) / figure.dpi
    figure.set_size_inches(wide + 1.9, figure.get_figheight() + max(0, tall - LABEL_HEIGHT))
    add_legend(figure, glyph_key(cells), ncols=3)
    return figure


def log_gain(row: dict[str, Any]) -> float:
    """Return log10 of a cell's gain, NaN where there is none."""
    return math.log10(row["gain"]) if row["gain"] > 0 else math.nan


def draw_map(axes: Axes, values: Any, grid: list[list[Any]], colours: str, norm: Any) -> Any:
    """Draw a matrix as coloured squares: grey where a cell has no number, white where there is no cell."""
    there = np.array([[row is not None for row in line] for line in grid])
    axes.imshow(np.where(there, 1.0, np.nan), cmap=matplotlib.colors.ListedColormap([EMPTY_COLOUR]), aspect="auto")
    clipped = np.clip(values, norm.vmin, norm.vmax)
    return axes.imshow(np.ma.masked_invalid(clipped), cmap=colours, norm=norm, aspect="auto")


def write(axes: Axes, grid: list[list[Any]], text: Any, image: Any) -> None:
    """Write on every cell, in white where its colour is dark."""
    shown = image.get_array()
    for y, line in enumerate(grid):
        for x, row in enumerate(line):
            if row is None:
                continue
            dark = not np.ma.is_masked(shown[y, x]) and luminance(image.cmap(image.norm(shown[y, x]))) < 0.18
            axes.text(x, y, text(row), ha="center", va="center", fontsize=7, color="white" if dark else "black")


def luminance(colour: tuple[float, float, float, float]) -> float:
    """Return the relative luminance of an sRGB colour: below 0.18 white has more contrast with it than black."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def gain_text(row: dict[str, Any]) -> str:
    gain = row["gain"]
    return f"{gain:.2f}" if 0.1 <= gain < 100 else f"{gain:.1g}" if math.isfinite(gain) else "-"


def verdict_text(row: dict[str, Any]) -> str:
    """Return the glyph of a cell's verdict, with the count of each where its seeds disagree; crosses diverged."""
    found = {name: row[name] for name in GLYPHS if row.get(name)}
    alone = len(found) == 1
    return "".join(GLYPHS[name] + ("" if alone else str(count)) for name, count in found.items())


def glyph_key(cells: polars.DataFrame) -> list[Line2D]:
    """Return legend entries for the glyphs that stand on the map."""
    seeds = sorted(set(cells["seeds"].to_list()))
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] != 1)}"
    found = [name for name in GLYPHS if cells[name].sum() > 0]
    handles = [
        Line2D([], [], linestyle="none", marker=f"${GLYPHS[n]}$", markersize=7, color="black", label=n) for n in found
    ]
    return [*handles, Line2D([], [], linestyle="none", label=f"{many} a cell")]


def name_activations(axes: Axes, activations: list[str], depths: int, *, named: bool = True) -> None:
    """Part the columns of each activation from the next by a line, and name them above."""
    start = 0
    for name in dict.fromkeys(activations):
        count = activations.count(name)
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=1)
        if named:
            axes.text(start + (count - 1) / 2, -0.62, name, ha="center", va="bottom", fontsize=9)
        start += count


@styled
def gain_against_prediction(cells: polars.DataFrame) -> Figure:
    """Draw measured against predicted gain with the line of equality, and below it by how much they differ.

    The prediction is that of infinite width, or of simulated networks where it has none.

    A colour is a series, a marker an activation, a size a depth; bars are 95 % intervals over the seeds, and broad ones
    below where their mean should lie at this width. Cells that have no gain, or no prediction, are counted in the
    legend. Once every colour is used, marks are filled. Of many series some are shown, as `choose_series` says.
    """
    names, note = choose_series(cells)
    title, labels = name_series(cells)
    cells = predicted_anyhow(cells.filter(cells["series"].is_in(names)))
    if cells.filter(is_positive("gain") & is_positive("predicted_gain")).is_empty():
        return nothing_to_compare(cells)
    figure = new_figure(6.6, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    usable = is_positive("gain") & is_positive("predicted_gain")
    shown = cells.filter(usable)
    series = looks(names)
    filled = {name: round_of(place) > 0 for place, name in enumerate(series)}
    markers = dict(zip(cells["model.activation"].unique(maintain_order=True), MARKERS * 2, strict=False))
    depths = cells["model.depth"].unique().sort().to_list()
    sizes = {depth: SIZES[min(k, len(SIZES) - 1)] for k, depth in enumerate(depths)}
    for row in shown.iter_rows(named=True):
        look: dict[str, Any] = {
            "color": series[row["series"]]["color"],
            "marker": markers[row["model.activation"]],
            "markersize": sizes[row["model.depth"]],
            "markerfacecolor": series[row["series"]]["color"] if filled[row["series"]] else "none",
            "elinewidth": 1,
        }
        x, y = row["predicted_gain"], row["gain"]
        low, high = (row[end] if math.isfinite(row[end]) else y for end in ("gain_low", "gain_high"))
        above.errorbar(x, y, yerr=[[y - low], [high - y]], **look)
        below.errorbar(x, 100 * (y / x - 1), yerr=[[100 * (y - low) / x], [100 * (high - y) / x]], **look)
        band = [100 * (row.get(end, math.nan) / x - 1) for end in ("band_low", "band_high")]
        below.plot([x, x], band, **BAND | {"color": look["color"]})
    gains = [*shown["gain"].to_list(), *shown["predicted_gain"].to_list()]
    limits = (min(gains) / 1.15, max(gains) * 1.15)
    above.plot(limits, limits, color=GREY, linewidth=1, zorder=1)
    for axes in (above, below):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(1, color=GREY, linewidth=0.6, linestyle=":")
    above.set(yscale="log", xlim=limits, ylim=limits, ylabel="measured backward gain a layer")
    above.yaxis.set_minor_locator(NullLocator())
    ticks = gain_ticks(*limits)
    for axis in (above.xaxis, above.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    below.axhline(0, color=GREY, linewidth=1, zorder=1)
    # By the points: an interval of two seeds would be all that one sees.
    far = max((abs(100 * (y / x - 1)) for x, y in shown.select("predicted_gain", "gain").iter_rows()))
    below.set_ylim(-1.3 * max(far, 5), 1.3 * max(far, 5))
    below.yaxis.set_major_locator(MaxNLocator(5))
    below.set(xlabel="predicted backward gain a layer", ylabel="measured less\npredicted (%)")
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=look["color"], label=labels[name], linewidth=3)
        if not any(filled.values())
        else Patch(edgecolor=look["color"], facecolor=look["color"] if filled[name] else "none", label=labels[name])
        for name, look in series.items()
    ]
    if note:
        handles.append(Line2D([], [], linestyle="none", label=note))
    style: dict[str, Any] = {"color": GREY, "linestyle": "none", "markerfacecolor": "none"}
    handles += [Line2D([], [], marker=marker, label=name, **style) for name, marker in markers.items()]
    handles += [
        Line2D([], [], marker="o", markersize=size, label=f"L = {depth}", **style) for depth, size in sizes.items()
    ]
    left_out = cells.height - shown.height
    handles.append(Line2D([], [], color=GREY, label=bars_text(cells)))
    if "band_low" in shown.columns and shown["band_low"].is_finite().any():
        handles.append(Line2D([], [], label="99 % band of their\nmean at this width", **BAND))
    if left_out:
        handles.append(
            Line2D(
                [], [], linestyle="none", label=f"{left_out} of {cells.height} cells\nhave no gain\nor no prediction"
            )
        )
    add_legend(figure, handles, beside=LEGEND_WIDTH, title=None if title == "initialization" else title)
    return figure


def predicted_anyhow(cells: polars.DataFrame) -> polars.DataFrame:
    """Return the cells with the gain of simulated networks as the predicted one where mean field has none."""
    if "finite_gain" not in cells.columns:
        return cells
    known = polars.when(is_positive("predicted_gain")).then("predicted_gain").otherwise("finite_gain")
    return cells.with_columns(known.alias("predicted_gain"))


def bars_text(cells: polars.DataFrame) -> str:
    """Say what a bar is an interval of."""
    counts = sorted(set(cells["seeds"].to_list()))
    return "1 seed, no interval" if counts == [1] else f"bars: 95 % of {counts[0]} seeds"


def nothing_to_compare(cells: polars.DataFrame) -> Figure:
    """Say in words that no cell has both a gain and a prediction."""
    figure = new_figure(4.6, 1.2)
    without = not cells.select(is_positive("predicted_gain").any()).item()
    text = "no prediction: theory has none for these networks" if without else "no gain to compare with its prediction"
    figure.text(0.5, 0.65, text, ha="center", va="center")
    add_legend(figure, [Line2D([], [], linestyle="none", label=bars_text(cells))])
    return figure


def gain_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two limits of a logarithmic axis, at least some three of them."""
    found = [10.0**power * step for power in range(-12, 13) for step in (1, 2, 5)]
    found = [tick for tick in found if low <= tick <= high]
    if len(found) > 8:
        found = [tick for tick in found if f"{tick:e}".startswith("1")]
    if len(found) < 3:
        found = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return found


def is_positive(name: str) -> polars.Expr:
    """Whether a column is a positive finite number."""
    return polars.col(name).is_finite() & (polars.col(name) > 0)
