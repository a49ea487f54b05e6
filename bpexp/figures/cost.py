"""The benchmark's figures: the ratio of each row with its target, and what networks side by side and sweeps gain."""

import polars
from matplotlib.figure import Figure

from bpexp.figures.style import COLOURS, GREY, looks, new_figure, styled

PARTS = (
    "matrix products at their peak",
    "the rest of the steps",
    "measuring and evaluating",
    "composing, launching, writing",
)
"""What each row of the table `parts` adds to the one before it."""


@styled
def step_ratios(steps: polars.DataFrame) -> Figure:
    """Draw the time of our step over torch's, `ratio` with `ratio_low` and `ratio_high`, a line a row, and `target`."""
    rows = steps.with_row_index("place").with_columns(label=steps["size"] + ", " + steps["activation"])
    figure = new_figure(6.4, 1.1 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.axvline(1, color=GREY, linewidth=1)
    for against, look in looks(rows["kind"]).items():
        one = rows.filter(kind=against)
        middle = one["ratio"].to_list()
        errors = [(one["ratio"] - one["ratio_low"]).to_list(), (one["ratio_high"] - one["ratio"]).to_list()]
        label = f"against {against}"
        axes.errorbar(middle, one["place"].to_list(), xerr=errors, **look, linestyle="none", capsize=2, label=label)
    aimed = rows.filter(polars.col("target").is_not_null())
    axes.scatter(aimed["target"], aimed["place"], marker="|", s=160, color=COLOURS[6], label="target: at most")
    axes.set_yticks(rows["place"].to_list(), rows["label"].to_list())
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time of a step, ours / torch's (1 is equal)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def side_by_side(networks: polars.DataFrame) -> Figure:
    """Draw how much faster a network is among R than alone in torch, `speedup` with its interval, against R."""
    figure = new_figure(5.2, 2.8)
    axes = figure.subplots()
    for activation, look in looks(networks["activation"]).items():
        one = networks.filter(activation=activation).sort("networks")
        middle = one["speedup"].to_list()
        errors = [(one["speedup"] - one["speedup_low"]).to_list(), (one["speedup_high"] - one["speedup"]).to_list()]
        axes.errorbar(one["networks"].to_list(), middle, yerr=errors, **look, capsize=2, label=activation)
    counts = networks["networks"].unique().sort().to_list()
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("networks side by side, R")
    axes.set_ylabel("times as fast as torch")
    axes.legend()
    return figure


@styled
def sweep_ratios(sweeps: polars.DataFrame) -> Figure:
    """Draw how many times as fast a sweep is as each side, `ratio` with its interval, a line a row, and `target`."""
    rows = sweeps.with_row_index("place").with_columns(label=sweeps["sweep"] + "\nagainst " + sweeps["against"])
    figure = new_figure(6.4, 1.2 + 0.5 * len(rows))
    axes = figure.subplots()
    axes.axvline(1, color=GREY, linewidth=1)
    for against, look in looks(rows["against"]).items():
        one = rows.filter(against=against)
        errors = [(one["ratio"] - one["ratio_low"]).to_list(), (one["ratio_high"] - one["ratio"]).to_list()]
        places = one["place"].to_list()
        axes.errorbar(one["ratio"].to_list(), places, xerr=errors, **look, linestyle="none", capsize=2)
    aimed = rows.filter(polars.col("target").is_not_null())
    if len(aimed) > 0:
        axes.scatter(aimed["target"], aimed["place"], marker="|", s=160, color=COLOURS[6], label="target: at least")
        figure.legend(loc="outside upper center")
    axes.set_yticks(rows["place"].to_list(), rows["label"].to_list())
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_xlabel("times as fast, a job (1 is equal)")
    return figure


@styled
def job_parts(parts: polars.DataFrame) -> Figure:
    """Draw what the time of a job is made of, a bar a sweep: `ms` of each `part`, which holds the one before it."""
    sweeps = parts["sweep"].unique(maintain_order=True).to_list()
    figure = new_figure(6.4, 1.4 + 0.4 * len(sweeps))
    axes = figure.subplots()
    for place, sweep in enumerate(sweeps):
        start = 0.0
        for end, label, colour in zip(parts.filter(sweep=sweep)["ms"], PARTS, COLOURS[: len(PARTS)], strict=True):
            axes.barh(place, max(end - start, 0), 0.6, left=start, color=colour, label=label if place == 0 else None)
            start = end
    axes.set_yticks(range(len(sweeps)), sweeps)
    axes.invert_yaxis()
    axes.set_xlabel("processor time of a job [ms]")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
