"""How deep networks train: accuracy over sigma_w^2 and depth with theory's scales, and how an oracle kept its word."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from bpexp.figures.series import add_legend, wrap
from bpexp.figures.style import COLOURS, GREY, new_figure, styled

MOST_PANELS, PANELS_ACROSS = 6, 3
COLOURS_OF_ACCURACY = "viridis"
WORDS = 6.0
"""The multiple of xi_c in the paper's words: Schoenholz et al. 2017, arXiv:1611.01232."""
ORDERED, CHAOTIC, PAPER = COLOURS[6], COLOURS[1], COLOURS[3]
BAND = 0.08


@styled
def trainability_map(cells: polars.DataFrame, multiples: polars.DataFrame, curves: polars.DataFrame) -> Figure:
    """Draw accuracy over sigma_w^2 and depth, a panel for each series and step budget, MOST_PANELS at most.

    Lines are the fitted multiples of the depth scales, where there are some, and 6 xi_c; the dotted line is the
    critical sigma_w^2. Of many series the first are drawn.
    """
    known = cells.filter(cells["sigma_w2"].is_finite())
    order = known["series"].unique(maintain_order=True).to_list()
    panels = sorted(set(known.select("series", "train.steps").rows()), key=lambda p: (order.index(p[0]), p[1]))[
        :MOST_PANELS
    ]
    if not panels:
        return empty("no sigma_w^2: theory has no depth scale for these networks")
    several = known["series"].n_unique() > 1
    across = min(len(panels), PANELS_ACROSS)
    down = -(-len(panels) // across)
    figure = new_figure(3.0 * across + 1.0, 3.1 * down + 0.8)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    many = grid.flatten().tolist()
    for axes in many[len(panels) :]:
        axes.set_visible(False)
    for axes, (series, steps) in zip(many, panels, strict=False):
        own = known.filter(series=series).filter(polars.col("train.steps") == steps)
        image = draw_accuracy(axes, own)
        fitted = multiples.filter(series=series).filter(polars.col("train.steps") == steps)
        draw_curves(axes, curves.filter(series=series), fitted)
        title = f"{steps} steps" if not several else f"{wrap(series)}\n{steps} steps"
        axes.set(title=title, xlabel="sigma_w^2")
    for axes in grid[:, 0]:
        axes.set_ylabel("depth L")
    label = "share of the seeds that trained" if accuracy_is_unknown(known) else "training accuracy, mean over seeds"
    figure.colorbar(image, ax=many, label=label, aspect=25)
    add_legend(figure, key(multiples, curves), ncols=3)
    return figure


def draw_accuracy(axes: Axes, cells: polars.DataFrame) -> Any:
    """Draw the cells as coloured rectangles that meet half-way, and in those whose seeds disagree how many trained."""
    variances, depths = (sorted(cells[name].unique().to_list()) for name in ("sigma_w2", "model.depth"))
    values, shown = (
        np.full((len(depths), len(variances)), np.nan),
        "trained" if accuracy_is_unknown(cells) else "accuracy",
    )
    for row in cells.iter_rows(named=True):
        values[depths.index(row["model.depth"]), variances.index(row["sigma_w2"])] = row[shown]
    across, along = edges(np.array(variances, dtype=float)), np.exp(edges(np.log(depths)))
    image = axes.pcolormesh(across, along, values, cmap=COLOURS_OF_ACCURACY, norm=Normalize(0, 1))
    axes.set(yscale="log", xlim=(across[0], across[-1]), ylim=(along[0], along[-1]))
    axes.grid(visible=False)
    axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.yaxis.set_minor_locator(NullLocator())
    for row in cells.iter_rows(named=True):
        if 0 < row["trained"] < 1:
            text = f"{row['trains']}/{row['seeds']}"
            colour = "white" if row[shown] < 0.6 else "black"
            axes.text(row["sigma_w2"], row["model.depth"], text, ha="center", va="center", fontsize=6, color=colour)
    return image


def accuracy_is_unknown(cells: polars.DataFrame) -> bool:
    """Return whether the networks learnt numbers, not classes: then the share that trained is drawn."""
    return not bool(cells["accuracy"].is_finite().any())


def edges(centres: Any) -> Any:
    """Return the edges of cells around rising centres: half-way between them, and as far beyond the ends."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def draw_curves(axes: Axes, curves: polars.DataFrame, multiples: polars.DataFrame) -> None:
    """Draw 6 xi_c, the fitted multiples on their sides, and the critical line."""
    if curves.is_empty():
        return
    x, critical = curves["sigma_w2"].to_numpy(), curves["critical"][0]
    axes.plot(x, WORDS * curves["xi_c"].to_numpy(), color=PAPER, linestyle="--", linewidth=1.2)
    for row in multiples.filter(multiples["inside"]).iter_rows(named=True):
        own = x < critical if row["side"] == "ordered" else x > critical
        look = look_of(row["side"], row["scale"])
        axes.plot(x[own], row["multiple"] * curves[row["scale"]].to_numpy()[own], **look)
    if math.isfinite(critical):
        axes.axvline(critical, color="white", linewidth=1.8)
        axes.axvline(critical, color=GREY, linewidth=1.0, linestyle=":")


def look_of(side: str, scale: str) -> dict[str, Any]:
    colour = CHAOTIC if side == "chaotic" else ORDERED
    return {"color": colour, "linestyle": "-" if scale == "xi_c" else "-.", "linewidth": 1.8}


def key(multiples: polars.DataFrame, curves: polars.DataFrame) -> list[Line2D]:
    """Return legend entries for what is drawn."""
    names = {"xi_c": "xi_c", "xi_gradient": "1/|ln chi_1|"}
    handles = []
    for side in ("ordered", "chaotic"):
        for scale, name in names.items():
            if multiples.filter(multiples["inside"]).filter(side=side, scale=scale).height:
                handles.append(Line2D([], [], label=f"fitted multiple of {name}, {side} side", **look_of(side, scale)))
    if not curves.is_empty():
        handles.append(Line2D([], [], color=PAPER, linestyle="--", label="6 xi_c, the paper's words"))
        if curves["critical"].is_finite().any():
            handles.append(Line2D([], [], color=GREY, linestyle=":", label="critical sigma_w^2"))
    return handles


@styled
def fitted_multiples(multiples: polars.DataFrame) -> Figure:
    """Draw the fitted multiples against the step budget with their 95 % intervals, a colour a side, a line a scale."""
    shown = multiples.filter(multiples["inside"] & multiples["low"].is_finite())
    if shown.is_empty():
        return empty("no multiple lies inside the depths that were trained")
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    names = {"xi_c": "xi_c", "xi_gradient": "1/|ln chi_1|"}
    series = shown["series"].unique(maintain_order=True).to_list()
    for place, ((name, side, scale), own) in enumerate(
        shown.sort("train.steps").group_by("series", "side", "scale", maintain_order=True)
    ):
        label = f"{names[str(scale)]}, {side}" + (f", {name}" if len(series) > 1 else "")
        x, y = own["train.steps"].to_numpy() * (1 + 0.02 * place), own["multiple"].to_numpy()
        spread = [y - own["low"].to_numpy(), own["high"].to_numpy() - y]
        axes.errorbar(
            x, y, yerr=np.maximum(spread, 0), marker="osD^"[place % 4], label=label, **look_of(str(side), str(scale))
        )
    for value, name in ((WORDS, "6: the paper"), (4.5, "4.5: a reproduction")):
        axes.axhline(value, color=GREY, linewidth=0.8, linestyle="--" if value == WORDS else ":", label=name)
    axes.set(xscale="log", xlabel="step budget", ylabel="multiple of the scale", ylim=(0, None))
    budgets = sorted(shown["train.steps"].unique().to_list())
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    handles, _ = axes.get_legend_handles_labels()
    add_legend(figure, handles, ncols=2)
    return figure


@styled
def oracle_reliability(bins: Mapping[str, polars.DataFrame]) -> Figure:
    """Draw how often networks trained against what was said of them, with 95 % intervals, and how many there were.

    bins: by who said it, a row each: said, trained, low, high, count
    """
    figure = new_figure(4.6, 4.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    width = BAND / len(bins)
    for place, (name, table) in enumerate(bins.items()):
        colour = COLOURS[place]
        x, y = table["said"].to_numpy(), table["trained"].to_numpy()
        spread = np.maximum([y - table["low"].to_numpy(), table["high"].to_numpy() - y], 0)
        above.errorbar(
            x, y, yerr=spread, color=colour, marker="os"[place % 2], elinewidth=1, linestyle="none", label=name
        )
        below.bar(x + (place - (len(bins) - 1) / 2) * width, table["count"].to_numpy(), width, color=colour)
    above.set(ylabel="share that trained", ylim=(-0.03, 1.03), xlim=(-0.05, 1.05))
    below.set(xlabel="probability that was said beforehand", ylabel="networks")
    handles, _ = above.get_legend_handles_labels()
    add_legend(figure, handles, ncols=2)
    return figure


def empty(words: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure = new_figure(5.0, 1.2)
    figure.text(0.5, 0.5, wrap(words, 60), ha="center", va="center")
    return figure
