"""The benchmark's figures: the ratio of each row with its target, and the gain from networks side by side."""

import polars
from matplotlib.figure import Figure

from bpexp.figures.style import COLOURS, GREY, looks, new_figure, styled


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
