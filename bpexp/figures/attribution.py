"""What changes the gradient in a layer: a bar for each cell, stacked from the parts that add up to what is measured."""

import math

import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bpexp.figures.style import GREY, looks, new_figure, styled

COLUMNS = 3
PANEL_WIDTH, BAR_HEIGHT = 2.9, 0.2  # inches


@styled
def attribution_bars(bars: polars.DataFrame, terms: tuple[str, ...]) -> Figure:
    """Draw factors a layer: a panel for each `panel`, a bar for each `label`, the terms in natural logs beside them.

    What makes the gradient grow towards the input goes to the right, what makes it shrink to the left; a diamond is the
    measured decay, `decay`.
    """
    panels = bars["panel"].unique(maintain_order=True).to_list()
    most = int(bars.group_by("panel").len()["len"].to_numpy().max())
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(PANEL_WIDTH * columns + 0.9, lines * (BAR_HEIGHT * most + 0.7) + 0.6)
    every = figure.subplots(lines, columns, sharex=True, squeeze=False).flat
    for number, (axes, panel) in enumerate(zip(every, panels, strict=False)):
        draw_panel(axes, bars.filter(polars.col("panel") == panel), terms)
        axes.set_title(panel)
        axes.tick_params(labelbottom=number + columns >= len(panels))
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("log10 of the factor a layer, towards the input", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(terms) + 1)
    return figure


def draw_panel(axes: Axes, bars: polars.DataFrame, terms: tuple[str, ...]) -> None:
    """Stack the terms of each row: the positive ones to the right of 0, the negative ones to the left."""
    places = np.arange(bars.height)
    above, below = np.zeros(bars.height), np.zeros(bars.height)
    for term, look in looks(terms).items():
        values = bars[term].to_numpy() / math.log(10)
        starts = np.where(values >= 0, above, below)
        axes.barh(places, values, left=starts, height=0.7, color=look["color"], label=term)
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    decay = bars["decay"].to_numpy() / math.log(10)
    axes.plot(decay, places, linestyle="none", marker="D", color="black", markeredgecolor="white", label="measured")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, bars["label"].to_list())
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
