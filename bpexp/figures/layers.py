"""Figures with a line a series: norm against layer, and what a few layers do along training."""

from collections.abc import Sequence
from typing import Any

import polars
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from bpexp.figures.series import add_legend, choose_series, name_series, round_of, wrap
from bpexp.figures.style import COLOURS, GREY, looks, new_figure, styled

MEASURE_LABELS = {
    "delta_rms": "delta_rms (loss)",
    "grad_norm": "grad_norm (loss per weight)",
    "activation_rms": "activation_rms (1)",
    "train_loss": "train_loss",
}
PANEL_WIDTH, PANEL_HEIGHT = 1.55, 1.6
LARGEST_RISE = 30.0
LEGEND_WIDTH = 1.6
TITLE_LETTERS = 24
LINES = ("-", "-.")
BAND: dict[str, Any] = {"linestyle": ":", "linewidth": 0.9}
MARGIN = 2.0  # factor between the data and the edge of a logarithmic axis
PLACES: dict[str, dict[str, Any]] = {
    "first": {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
    "middle": {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    "last": {"color": COLOURS[2], "linestyle": ":", "marker": "^"},
}


@styled
def profiles(cells: polars.DataFrame, table: polars.DataFrame, measure: str) -> Figure:
    """Draw a measure against the layer at step 0: a row of panels a depth, a column an activation, a colour a series.

    Medians over the seeds with a band from the smallest to the largest; the prediction is dashed in the same colour,
    and between dots networks of this width should lie. Zeros stand on the lower edge as hollow triangles, values that
    are not finite on the upper one as crosses. Of many series some are shown, as `choose_series` says.
    """
    rows = table.filter(measure=measure).join(cells, on="cell", how="left", maintain_order="left")
    depths = cells["model.depth"].unique().sort().to_list()
    activations = cells["model.activation"].unique(maintain_order=True).to_list()
    names, note = choose_series(cells)
    title, labels = name_series(cells)
    series = looks(names)
    lines = {name: LINES[round_of(place)] for place, name in enumerate(series)}
    width = max(4.6, PANEL_WIDTH * len(activations) + 1.9)
    figure = new_figure(width, PANEL_HEIGHT * len(depths) + 0.9)
    panels = figure.subplots(len(depths), len(activations), squeeze=False, sharey="row", sharex="row")
    for depth, line in zip(depths, panels, strict=True):
        at_depth = rows.filter(polars.col("model.depth") == depth)
        low, high = log_limits([at_depth["low"], at_depth["high"]])
        for activation, axes in zip(activations, line, strict=True):
            log_axis(axes, low, high)
            for name, look in series.items():
                one = at_depth.filter((polars.col("model.activation") == activation) & (polars.col("series") == name))
                draw_profile(axes, one, look, lines[name])
            if depth == depths[0]:
                axes.set_title(activation)
            if depth == depths[-1]:
                axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        line[0].set_ylabel(f"L = {depth}")
    figure.supylabel(MEASURE_LABELS.get(measure, measure), fontsize=9)
    handles = [
        Line2D(
            [],
            [],
            label=labels[name],
            markerfacecolor=look["color"],
            **look | {"color": faint(look["color"]), "linestyle": lines[name]},
            linewidth=2.6,
        )
        for name, look in series.items()
    ]
    if note:
        handles.append(Line2D([], [], linestyle="none", label=note))
    add_legend(figure, [*handles, *profile_key(rows)], beside=LEGEND_WIDTH, title=title)
    return figure


def draw_profile(axes: Axes, one: polars.DataFrame, look: dict[str, Any], linestyle: str) -> None:
    """Draw the line, the bands, the prediction and the marks of one cell."""
    low, high = axes.get_ylim()
    color = look["color"]
    seen = one.filter(one["median"] > 0)
    if not seen.is_empty():
        layers = seen["layer"].to_list()
        every = max(1, -(-len(layers) // 6))
        axes.plot(layers, seen["median"].to_list(), color=faint(color), linewidth=2.6, linestyle=linestyle)
        axes.plot(layers, seen["median"].to_list(), **look, linestyle="none", markevery=every)
        bottoms = seen["low"].clip(lower_bound=low).to_list()
        axes.fill_between(layers, bottoms, seen["high"].to_list(), color=color, alpha=0.2, linewidth=0)
    # On top of the measured line, which it covers where theory is right.
    predicted = one.filter(one["predicted"].is_finite() & (one["predicted"] > 0))
    axes.plot(
        predicted["layer"].to_list(), predicted["predicted"].to_list(), color=color, linestyle="--", linewidth=1.2
    )
    for end in ("band_low", "band_high") if "band_low" in one.columns else ():
        finite = one.filter(one[end].is_finite() & (one[end] > 0))
        axes.plot(finite["layer"].to_list(), finite[end].to_list(), color=color, **BAND)
    marks(axes, one.filter(one["zeros"] > 0)["layer"].to_list(), low, "v", color)
    marks(axes, one.filter(one["nonfinite"] > 0)["layer"].to_list(), high, "x", color)


def marks(axes: Axes, layers: Sequence[int], at: float, marker: str, color: str) -> None:
    """Mark layers on an edge of the panel, the first among them, some six where there are many."""
    if not layers:
        return
    layers = layers[:: -(-len(layers) // 6)]
    style: dict[str, Any] = {
        "markerfacecolor": "none",
        "markeredgecolor": color,
        "linestyle": "none",
        "clip_on": False,
        "zorder": 5,
    }
    axes.plot(layers, [at] * len(layers), marker=marker, **style)


def profile_key(rows: polars.DataFrame) -> list[Line2D | Patch]:
    """Return legend entries for what the lines, bands and marks of these rows mean."""
    seeds = seeds_text(rows)
    found: list[Line2D | Patch] = [Line2D([], [], color=faint(GREY), linewidth=2.6, label=f"median, {seeds}")]
    if rows["seeds"].max() != 1:
        found.append(Patch(color=GREY, alpha=0.3, label="smallest to largest"))
    if rows["predicted"].is_finite().any():
        found.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.2, label="mean field"))
    if "band_low" in rows.columns and rows["band_low"].is_finite().any():
        found.append(Line2D([], [], color=GREY, label="99 % of networks\nof this width", **BAND))
    return [*found, *mark_key(rows, "not finite in a seed")]


def mark_key(rows: polars.DataFrame, not_finite: str) -> list[Line2D]:
    """Return legend entries for the marks that occur."""
    style: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none", "markeredgecolor": GREY}
    texts = (("zeros", "v", "exactly 0 in a seed"), ("nonfinite", "x", not_finite))
    return [
        Line2D([], [], marker=marker, label=text, **style) for name, marker, text in texts if (rows[name] > 0).any()
    ]


def seeds_text(rows: polars.DataFrame) -> str:
    """Say how many seeds stand behind a row."""
    counts = sorted(set(rows["seeds"].to_list()))
    if not counts:
        return "no seeds"
    if counts == [1]:
        return "1 seed, no interval"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def faint(color: str) -> tuple[float, float, float]:
    """Return a colour halfway to white."""
    red, green, blue = to_rgb(color)
    return ((1 + red) / 2, (1 + green) / 2, (1 + blue) / 2)


def log_limits(columns: Sequence[polars.Series]) -> tuple[float, float]:
    """Return limits of a logarithmic axis that hold all positive finite values."""
    values = [v for column in columns for v in column.drop_nulls().to_list() if 0 < v < float("inf")]
    if not values:
        return 0.1, 10.0
    low, high = min(values) / MARGIN, max(values) * MARGIN
    # Less than two decades would show noise as if it were a trend.
    middle = (low * high) ** 0.5
    return min(low, middle / 10), max(high, middle * 10)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make y logarithmic, with labels at powers of ten alone."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def training(cells: polars.DataFrame, table: polars.DataFrame) -> Figure:
    """Draw delta_rms of the first, middle and last hidden layer, and the loss below, over the steps: a column a cell.

    Medians over the seeds with a band from the smallest to the largest; a cross marks where a seed diverged first. The
    loss axis ends at LARGEST_RISE times the loss at the start, and every cell has a delta axis of its own.
    """
    chosen = cells.filter(cells["cell"].is_in(table["cell"].unique().to_list()))
    titles = [cell_title(cell) for cell in chosen.iter_rows(named=True)]
    lines = max((title.count("\n") for title in titles), default=1) - 1
    figure = new_figure(max(5.6, 1.9 * chosen.height + 1.5), 4.4 + 0.15 * lines)
    panels = figure.subplots(2, max(1, chosen.height), squeeze=False, sharex=True)
    losses = table.filter(measure="train_loss")
    start = losses.filter(step=0)["high"].drop_nulls().max()
    low, high = log_limits([losses["low"], losses["high"]])
    if isinstance(start, float):
        high = min(high, LARGEST_RISE * start)
    for axes, measure in zip(panels[:, 0], ("delta_rms", "train_loss"), strict=True):
        axes.set_ylabel(MEASURE_LABELS[measure])
    for cell, title, (above, below) in zip(chosen.iter_rows(named=True), titles, panels.T, strict=True):
        above.set_title(title, fontsize=8)
        below.set_xlabel("step")
        below.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        own = table.filter(cell=cell["cell"])
        deltas = own.filter(measure="delta_rms")
        log_axis(above, *log_limits([deltas["low"], deltas["high"]]))
        log_axis(below, low, high)
        for place, layer in named_layers(cell["model.depth"]).items():
            draw_steps(above, own.filter(measure="delta_rms", layer=layer), PLACES[place])
        draw_steps(below, own.filter(measure="train_loss"), {"color": COLOURS[6], "linestyle": "-"})
    handles = [Line2D([], [], label=f"{place} hidden layer", **look) for place, look in PLACES.items()]
    handles.append(Line2D([], [], color=COLOURS[6], label="train_loss"))
    handles.append(Line2D([], [], color=GREY, label=f"median, {seeds_text(table.filter(step=0))}"))
    handles += mark_key(table, "a seed diverged")
    add_legend(figure, handles, ncols=3)
    return figure


def named_layers(depth: int) -> dict[str, int]:
    """Return the first, middle and last hidden layer, each once."""
    found: dict[str, int] = {}
    for place, layer in {"first": 1, "middle": (depth + 1) // 2, "last": depth}.items():
        if layer not in found.values():
            found[place] = layer
    return found


def cell_title(cell: dict[str, Any]) -> str:
    """Name a cell over its panel."""
    name = wrap(f"{cell['model.activation']}, {cell['series']}", TITLE_LETTERS)
    return f"{name}\nL = {cell['model.depth']}, {round(cell['trained'] * cell['seeds'])}/{cell['seeds']} trained"


def draw_steps(axes: Axes, one: polars.DataFrame, look: dict[str, Any]) -> None:
    """Draw one line over the steps with its band, and a cross where a seed first left the finite numbers."""
    seen = one.filter(one["median"] > 0)
    if not seen.is_empty():
        steps = seen["step"].to_list()
        every = max(1, -(-len(steps) // 5))
        axes.plot(steps, seen["median"].to_list(), markevery=every, **look)
        bottoms = seen["low"].clip(lower_bound=axes.get_ylim()[0]).to_list()
        axes.fill_between(steps, bottoms, seen["high"].to_list(), color=look["color"], alpha=0.2, linewidth=0)
    broken = one.filter(one["nonfinite"] > 0)["step"].to_list()
    marks(axes, broken[:1], axes.get_ylim()[1], "x", look["color"])
    zero = one.filter(one["median"] == 0)["step"].to_list()
    marks(axes, zero, axes.get_ylim()[0], "v", look["color"])
