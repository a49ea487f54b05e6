"""Clipping: the wall with both paths, laws of small systems, and what it does to networks and to their steps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from bpexp.figures.series import add_legend, wrap
from bpexp.figures.style import COLOURS, GREY, MARKERS, new_figure, styled

LEVELS = (0.0, 0.003, 0.01, 0.03, 0.06, 0.1, 0.3, 0.5)
"""Of the loss: the valley below 0.01, the plateau at 0.09, the other side of the wall above 0.3."""
CLIP_LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": COLOURS[1], "marker": "x"},
    "norm": {"color": COLOURS[0], "marker": "o"},
}
CLIP_NAMES = {"none": "unclipped", "norm": "norm clipped"}
TWIN: dict[str, Any] = {"color": "black", "linestyle": "--", "marker": "x", "linewidth": 1.2}
APART = 0.06
"""Relative distance of the thresholds at one learning rate, so that bars stand side by side."""

FEW_RATES = 6
"""So many learning rates have room for all their names."""


@styled
def clipping_wall(surface: polars.DataFrame, paths: polars.DataFrame, shares: polars.DataFrame) -> Figure:
    """Draw both paths on the loss surface of the recurrent unit, their losses, and which share of starts jumps.

    surface: w, b, loss over a grid, row by row; paths: clip, step, w, b, loss; shares: lr, clip, left, low, high
    """
    figure = new_figure(10.0, 3.7)
    plane, losses, left = figure.subplots(1, 3, width_ratios=[1.5, 1, 0.8])
    w, b = surface["w"].unique().sort().to_numpy(), surface["b"].unique().sort().to_numpy()
    grid = surface.sort("b", "w")["loss"].to_numpy().reshape(len(b), len(w))
    filled = plane.contourf(w, b, grid, LEVELS, cmap="viridis", norm=BoundaryNorm(LEVELS, 256))
    filled.set_rasterized(True)  # the edge of the wall is long
    bar = figure.colorbar(filled, ax=plane, aspect=25, ticks=LEVELS)
    bar.set_label("loss E")
    for (name,), own in paths.group_by("clip", maintain_order=True):
        look = CLIP_LOOKS[str(name)]
        x, y = own["w"].to_numpy(), own["b"].to_numpy()
        plane.plot(x, y, color=look["color"], linewidth=1.0)
        inside = (x >= w[0]) & (x <= w[-1]) & (y >= b[0]) & (y <= b[-1])
        if inside[-1]:
            plane.plot(x[-1], y[-1], marker="s", markersize=6, color=look["color"], markeredgecolor="white")
        losses.plot(own["step"].to_numpy(), own["loss"].to_numpy(), color=look["color"], linewidth=0.9)
    plane.plot(x[0], y[0], marker="*", markersize=11, color="white", markeredgecolor="black")
    plane.set(xlabel="w", ylabel="b", xlim=(w[0], w[-1]), ylim=(b[0], b[-1]))
    plane.grid(visible=False)
    losses.set(yscale="log", xlabel="update", ylabel="loss E")
    losses.yaxis.set_minor_locator(NullLocator())
    for (name,), own in shares.group_by("clip", maintain_order=True):
        error_bars(left, own, "left", "low", "high", on="lr", **CLIP_LOOKS[str(name)])
    rate_axis(left, shares["lr"].unique().sort().to_list())
    left.set(ylim=(-0.03, 1.03), ylabel="share of starts\nthat leave the valley")
    handles = [Line2D([], [], label=CLIP_NAMES[name], **look) for name, look in CLIP_LOOKS.items()]
    style: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black"}
    handles += [
        Line2D([], [], marker="*", markersize=9, color="white", label="start", **style),
        Line2D([], [], marker="s", color=GREY, label="end, where it is on the map", **style),
    ]
    add_legend(figure, handles, ncols=4)
    return figure


@styled
def clipping_laws(counts: polars.DataFrame, reach: polars.DataFrame) -> Figure:
    """Draw the updates to the end against the largest gradient, with the laws, and how far gradients reach.

    counts: function, method, log_m, updates, low, high, law; reach: activation, matrix, level, smallest, largest, steps
    """
    figure = new_figure(8.6, 3.8)
    left, right = figure.subplots(1, 2)
    looks = {"fixed": CLIP_LOOKS["none"], "clipped": CLIP_LOOKS["norm"]}
    names = {"fixed": "best fixed step", "clipped": "norm clipped to 1"}
    handles: list[Line2D | Patch] = []
    for (function, method), own in counts.group_by("function", "method", maintain_order=True):
        exponential = function == "exponential"
        look = looks[str(method)] | ({} if exponential else {"markerfacecolor": "none", "markersize": 8})
        x = np.exp(own["log_m"].to_numpy())
        line = error_bars(
            left, own.with_columns(m=polars.Series(x)), "updates", "low", "high", on="m", join=False, **look
        )
        words = f"{names[str(method)]}, {'(L0, L1)-smooth' if exponential else 'parabola alone'}"
        handles.append(Line2D([], [], linestyle="none", label=words, **line))
        if exponential:
            left.plot(x, own["law"].to_numpy(), color=look["color"], linewidth=1)
    handles.append(Line2D([], [], color=GREY, linewidth=1, label="lines: what is derived"))
    left.set(xscale="log", yscale="log", xlabel="largest gradient M on the way", ylabel="updates to the end")
    decades(left)
    for place, ((activation, matrix), own) in enumerate(reach.group_by("activation", "matrix", maintain_order=True)):
        x = own["level"].to_numpy() * (1 + 0.02 * (place - 1.5))
        colour, marker = COLOURS[2 + place % 4], MARKERS[place]
        right.vlines(x, own["smallest"].to_numpy(), own["largest"].to_numpy(), color=colour, linewidth=2)
        right.plot(x, own["largest"].to_numpy(), color=colour, marker=marker, linestyle="none")
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"{activation}, {matrix}"))
    levels, steps = np.array(sorted(reach["level"].unique())), int(reach["steps"][0])
    right.plot(levels, levels**steps, color="black", linewidth=1)
    handles.append(Line2D([], [], color="black", linewidth=1, label="the bound"))
    right.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.set(xscale="log", yscale="log", xlabel="gamma lambda_1", ylabel=f"||dx_t/dx_k|| over {steps} steps")
    right.set_xticks(levels, [f"{level:g}" for level in levels])
    right.tick_params(axis="x", labelrotation=45)
    decades(right, "y")
    right.xaxis.set_minor_locator(NullLocator())
    add_legend(figure, handles, ncols=3)
    return figure


@styled
def clipping_outcomes(cells: polars.DataFrame, title: str = "") -> Figure:
    """Draw the share that diverged and the final loss against the learning rate, a column for each clip.

    A line is a threshold, the dashed one the unclipped twin; bars are 95 % intervals over the seeds.
    """
    guess = float(cells["guess"][0])
    rows = (
        ("share that diverged", lambda axes, own, **look: error_bars(axes, own, "diverged", *ends("diverged"), **look)),
        ("final loss", lambda axes, own, **look: error_bars(axes, own, "loss", *ends("loss"), **look)),
    )
    figure, grid = panels(cells, rows, title, twin=True)
    for axes in grid[0]:
        axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    for axes in grid[1]:
        axes.axhline(guess, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 1.12 * guess)
    extra = [Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="loss of a guess")]
    add_legend(figure, [*threshold_key(cells), *extra], ncols=6)
    return figure


@styled
def clip_ledger(cells: polars.DataFrame, title: str = "") -> Figure:
    """Draw what clipping does to the steps: how often, norms before and after, effective learning rate, angle.

    A column for each clip, a line for each threshold.
    """

    def norms(axes: Axes, own: polars.DataFrame, **look: Any) -> None:
        line(axes, own, "before", **look | {"marker": None, "linestyle": ":"})
        line(axes, own, "after", **look)

    rows = (
        ("share of steps\nthat are clipped", lambda axes, own, **look: line(axes, own, "fraction", **look)),
        ("norm of the gradient\nbefore, after", norms),
        ("effective\nlearning rate", lambda axes, own, **look: line(axes, own, "lr_after", **look)),
        (
            "angle to the\nunclipped step",
            lambda axes, own, **look: error_bars(axes, own, "angle", *ends("angle"), **look),
        ),
    )
    figure, grid = panels(cells, rows, title, twin=False)
    rates = np.array(sorted(cells["lr"].unique()))
    for axes in grid[0]:
        axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    for row in grid[1:3]:
        for axes in row:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=4))
            axes.yaxis.set_minor_locator(NullLocator())
    for axes in grid[2]:
        axes.plot(rates, rates, color=GREY, linewidth=0.8)
    for axes in grid[3]:
        axes.set_ylim(-2, 92)
        axes.set_yticks([0, 30, 60, 90], ["0°", "30°", "60°", "90°"])
    handles = threshold_key(cells, twin=False)
    handles.append(Line2D([], [], color=GREY, linestyle=":", label="norm before"))
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="learning rate as it is"))
    add_legend(figure, handles, ncols=6)
    return figure


Row = tuple[str, Callable[..., Any]]


def panels(cells: polars.DataFrame, rows: Sequence[Row], title: str, *, twin: bool) -> tuple[Figure, Any]:
    """Return a figure with a column of panels for each clip and a row for each way to draw, and the panels."""
    clipped, plain = cells.filter(cells["clip"] != "none"), cells.filter(clip="none").sort("lr").with_columns(at="lr")
    clips, rates = clipped["clip"].unique(maintain_order=True).to_list(), cells["lr"].unique().sort().to_list()
    figure = new_figure(2.5 * len(clips) + 1.6, 1.55 * len(rows) + 1.1)
    grid = figure.subplots(len(rows), len(clips), sharex=True, sharey="row", squeeze=False)
    looks, middle = threshold_looks(clipped), (clipped["threshold"].n_unique() - 1) / 2
    for column, clip in enumerate(clips):
        of_clip = clipped.filter(clip=clip)
        for threshold in of_clip["threshold"].unique().sort().to_list():
            place = list(looks).index(threshold)
            own = of_clip.filter(threshold=threshold).sort("lr")
            own = own.with_columns(at=polars.col("lr") * (1 + APART * (place - middle)))
            # A marker on some points: colours and places of markers tell lines apart, in a file of half the size.
            look = looks[threshold] | {"markevery": (place % len(rates), len(looks))}
            for axes, (_, draw) in zip(grid[:, column], rows, strict=True):
                draw(axes, own, **look)
        if twin and not plain.is_empty():
            for axes, (_, draw) in zip(grid[:, column], rows, strict=True):
                draw(axes, plain, **TWIN)
        grid[0, column].set_title(f"clip = {clip}")
        rate_axis(grid[-1, column], rates)
    name_rows(grid, [label for label, _ in rows])
    if title:
        figure.suptitle(wrap(title, 80))
    return figure, grid


def name_rows(grid: Any, labels: Sequence[str]) -> None:
    """Label the rows of panels, and leave ticks at the outer ones alone."""
    for place, (row, label) in enumerate(zip(grid, labels, strict=True)):
        row[0].set_ylabel(label)
        for axes in row:
            axes.grid(visible=False, axis="x")
            axes.tick_params(left=axes is row[0], bottom=place == len(labels) - 1)


def ends(name: str) -> tuple[str, str]:
    return f"{name}_low", f"{name}_high"


def line(axes: Axes, own: polars.DataFrame, name: str, **look: Any) -> None:
    axes.plot(own["at"].to_numpy(), own[name].to_numpy(), **look)


def error_bars(
    axes: Axes, own: polars.DataFrame, name: str, low: str, high: str, *, on: str = "at", join: bool = True, **look: Any
) -> dict[str, Any]:
    """Draw a column with its interval, where it has one, and return the look."""
    x = own[on].to_numpy()
    axes.plot(x, own[name].to_numpy(), **look | ({} if join else {"linestyle": "none"}))
    # All bars as one line with gaps: a file a tenth of the size of one with a mark for each.
    gaps = np.full(len(x), np.nan)
    bars = np.stack([own[low].to_numpy(), own[high].to_numpy(), gaps], axis=1)
    axes.plot(np.repeat(x, 3), bars.ravel(), color=look["color"], linewidth=0.8)
    return look


def rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    """Name the learning rates that were tried."""
    axes.set(xscale="log", xlabel="learning rate")
    named = rates if len(rates) <= FEW_RATES else rates[1::2]  # every second has room
    axes.set_xticks(rates, [f"{rate:g}" if rate in named else "" for rate in rates])
    axes.xaxis.set_minor_locator(NullLocator())


def decades(axes: Axes, which: str = "both") -> None:
    """Name some powers of ten, and no others."""
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axis.set_major_locator(LogLocator(numticks=6))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())


def threshold_looks(clipped: polars.DataFrame) -> dict[float, dict[str, Any]]:
    """Return a colour and a marker for each threshold, from the smallest."""
    thresholds = clipped["threshold"].unique().sort().to_list()
    return {value: {"color": COLOURS[k % 6], "marker": MARKERS[k % len(MARKERS)]} for k, value in enumerate(thresholds)}


def threshold_key(cells: polars.DataFrame, *, twin: bool = True) -> list[Line2D]:
    """Return the legend's entries for the thresholds, and the unclipped twin where there is one."""
    clipped = cells.filter(cells["clip"] != "none")
    handles = [Line2D([], [], label=f"threshold {value:g}", **look) for value, look in threshold_looks(clipped).items()]
    if twin and clipped.height < cells.height:
        handles.append(Line2D([], [], label="unclipped twin", **TWIN))
    return handles
