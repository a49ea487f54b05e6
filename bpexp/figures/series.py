"""What stands for a series: its label, which series are shown where there are many, and a legend that has room."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import polars
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from bpexp.figures.style import COLOURS

MOST_SERIES = 16
"""Series that a figure with a colour a series shows, at most."""

LONGEST_LINE = 36
"""Letters on a line of a label, some."""


def name_series(cells: polars.DataFrame) -> tuple[str, dict[str, str]]:
    """Return the title of the series, which is the keys that part them, and the label of each.

    A label is the values alone, in the title's order, where two at most are given and no more than one is a number.
    """
    columns = cells.columns
    keys = columns[columns.index("init") : columns.index("series")]
    keys = [name for name in keys if cells[name].n_unique() > 1] or ["init"]
    numbers = [name for name in keys if cells[name].dtype != polars.String]
    title = "initialization" if keys == ["init"] else wrap(", ".join(name.rpartition(".")[2] for name in keys))
    if len(keys) > 2 or len(numbers) > 1:
        return title, {name: wrap(name) for name in cells["series"].unique(maintain_order=True)}
    values = [polars.col(name).cast(polars.String).fill_null("null") for name in keys]
    labels = cells.select("series", polars.concat_str(values, separator=", ").alias("label"))
    return title, {name: wrap(label) for name, label in labels.iter_rows()}


def wrap(text: str, width: int = LONGEST_LINE) -> str:
    """Break a label between its values, where it is long."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def choose_series(cells: polars.DataFrame) -> tuple[list[str], str]:
    """Return the series to show, MOST_SERIES at most, in order, and a note that says how many of how many.

    Of more, those at equal steps along their median gain, the smallest and the largest among them; last are those
    that have no gain.
    """
    names = cells["series"].unique(maintain_order=True).to_list()
    if len(names) <= MOST_SERIES:
        return names, ""
    finite = polars.col("gain").filter(polars.col("gain").is_finite())
    medians = dict(cells.group_by("series").agg(finite.median()).iter_rows())
    ordered = sorted(names, key=lambda name: math.inf if medians[name] is None else medians[name])
    steps = (len(names) - 1) / (MOST_SERIES - 1)
    chosen = {ordered[round(k * steps)] for k in range(MOST_SERIES)}
    return [name for name in names if name in chosen], f"{MOST_SERIES} of {len(names)} series,\nfrom least to most gain"


def round_of(place: int) -> int:
    """Return how often all colours were used before this series: what else parts it from one of its colour."""
    return place // len(COLOURS)


def add_legend(figure: Figure, handles: Sequence[Artist], *, beside: float | None = None, **settings: Any) -> None:
    """Put a legend right of the panels, or below them, and make the figure larger where it has no room.

    `beside` is the width in inches that the figure has for a legend on its right; below, a legend may be as wide as
    the figure.
    """
    settings["loc"] = "outside lower center" if beside is None else "outside right upper"
    legend = figure.legend(handles=handles, **settings)
    box = legend.get_window_extent()
    wide, tall = box.width / figure.dpi, box.height / figure.dpi
    width, height = figure.get_size_inches()
    if beside is None:
        figure.set_size_inches(max(width, wide + 0.1), height)
    else:
        figure.set_size_inches(width + max(0, wide - beside), max(height, tall + 0.1))
