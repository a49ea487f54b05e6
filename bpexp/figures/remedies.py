"""What helps networks that fail: a heatmap of failing networks and remedies."""

import math
from typing import Any

import polars
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bpexp.figures.cells import draw_map, write
from bpexp.figures.series import add_legend, wrap
from bpexp.figures.style import new_figure, styled

VERDICT_GLYPHS = {"trains": "●", "helps": "○", "does not help": "✕", "harms": "▼", "no change": "="}
GRADIENT_GLYPHS = {"vanishing": "▽", "exploding": "△", "healthy": "◇"}
DIFFERENCE_COLOURS = "RdBu"
SPAN = 0.9
"""Differences of accuracy at the ends of the colours: that of a trained network from a guess among ten classes."""
LABEL_LETTERS = 26


@styled
def remedy_map(cells: polars.DataFrame) -> Figure:
    """Draw what each remedy does to each failing network.

    The colour and the number, in points of a hundred, are the difference of the test accuracy from the untreated; the
    glyph is the verdict. A network without that remedy is empty.
    """
    failing = cells.select("failing", "gradient").unique(maintain_order=True).rows()
    remedies = cells.filter(cells["verdict"].is_not_null()).select("remedy", "acts_on").unique(maintain_order=True)
    columns = sorted(remedies.rows(), key=lambda row: remedies["acts_on"].to_list().index(row[1]))
    at = {(row["failing"], row["remedy"]): row for row in cells.iter_rows(named=True)}
    grid = [[at.get((name, remedy)) for remedy, _ in columns] for name, _ in failing]
    values = [[math.nan if row is None else row["difference"] for row in line] for line in grid]
    figure = new_figure(3.4 + 0.46 * len(columns), 1.9 + 0.46 * len(failing))
    axes = figure.subplots()
    image = draw_map(axes, values, grid, DIFFERENCE_COLOURS, TwoSlopeNorm(0, -SPAN, SPAN))
    write(axes, grid, cell_text, image)
    names = [wrap(f"{GRADIENT_GLYPHS[gradient]} {name}", LABEL_LETTERS) for name, gradient in failing]
    axes.set_yticks(range(len(failing)), names)
    axes.set_xticks(range(len(columns)), [remedy for remedy, _ in columns], rotation=90)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    groups = [acts_on for _, acts_on in columns]
    for place in range(1, len(groups)):
        if groups[place] != groups[place - 1]:
            axes.axvline(place - 0.5, color="black", linewidth=0.8)
    bar = figure.colorbar(image, ax=axes, aspect=15, pad=0.01)
    bar.set_label("difference of test accuracy")
    found = [word for word in VERDICT_GLYPHS if word in cells["verdict"].to_list()]
    handles = [glyph(VERDICT_GLYPHS[word], word) for word in found]
    kinds = dict.fromkeys(gradient for _, gradient in failing)
    handles += [glyph(GRADIENT_GLYPHS[kind], f"beside a name: {kind} gradient") for kind in kinds]
    add_legend(figure, handles, ncols=4)
    return figure


def glyph(letter: str, label: str) -> Line2D:
    """Return the legend's entry for a glyph."""
    return Line2D([], [], linestyle="none", marker=f"${letter}$", markersize=7, color="black", label=label)


def cell_text(row: dict[str, Any]) -> str:
    """Return a cell's difference in points, and its glyph."""
    mark = VERDICT_GLYPHS.get(row["verdict"], "")
    if row["verdict"] == "no change" or not math.isfinite(row["difference"]):
        return mark
    return f"{round(100 * row['difference']) + 0:+d}\n{mark}"
