"""The ledger of claims: measured intervals against the ranges that were expected, all on one scale."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bpexp.figures.series import add_legend
from bpexp.figures.style import COLOURS, GREY, new_figure, styled

VERDICTS = {"confirmed": (COLOURS[2], "o"), "inconclusive": (COLOURS[4], "D"), "refuted": (COLOURS[1], "s")}
FURTHEST = 100.0
"""Half ranges from the middle: what lies further out is drawn there."""


@styled
def claims(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each row's interval and control, from the top; `row` and `sweep` are its label."""
    figure = new_figure(6.4, 1.3 + 0.17 * len(rows))
    axes = figure.subplots()
    axes.axvspan(-1, 1, color="#e4efe8", zorder=0)
    for place, row in enumerate(rows):
        colour, marker = VERDICTS[row["verdict"]]
        low, middle, high = (
            position(row[name], row["low"], row["high"]) for name in ("measured_low", "measured", "measured_high")
        )
        axes.plot([low, high], [place, place], color=colour)
        axes.plot(middle, place, color=colour, marker=ends(middle, marker))
        control = position(row["control_measured"], row["low"], row["high"])
        axes.plot(control, place, color=GREY, marker=ends(control, "x"))
    axes.set_xscale("symlog", linthresh=2, linscale=1.5)
    axes.set_xticks([-100, -10, -1, 0, 1, 10, 100], ["<-100", "-10", "low", "", "high", "10", ">100"])
    axes.set(xlim=(-1.2 * FURTHEST, 1.2 * FURTHEST), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [f"{row['row']} {row['sweep']}" for row in rows], fontsize=6)
    axes.set_xlabel("measured, in half widths of the expected range from its middle")
    add_legend(figure, key(), ncols=4)
    return figure


def position(value: float | None, low: float, high: float) -> float:
    """Return where a value lies on the scale on which the range is -1 to 1, FURTHEST away at most.

    Of a range that is one number any other lies that far away.
    """
    if value is None or math.isnan(value):
        return math.nan
    away = 2 * value - low - high
    place = away / (high - low) if high > low else math.copysign(math.inf, away) if away else 0.0
    return max(-FURTHEST, min(FURTHEST, place))


def ends(place: float, marker: str) -> str:
    """Return an arrowhead for what lies at an end of the scale or beyond, else the marker."""
    return {FURTHEST: ">", -FURTHEST: "<"}.get(place, marker)


def key() -> list[Line2D]:
    made = [Line2D([], [], color=c, marker=marker, label=verdict) for verdict, (c, marker) in VERDICTS.items()]
    return [*made, Line2D([], [], color=GREY, marker="x", linestyle="none", label="negative control")]
