"""The walkthrough's figures: the loss until it converges, and what a learning rate does to a quadratic."""

import polars
from matplotlib.figure import Figure

from bpexp.figures.style import GREY, looks, new_figure, styled


@styled
def loss_curves(curves: polars.DataFrame, bound: float) -> Figure:
    """Draw each loss against the epoch, `title`, `epoch` and `value`, to the bound that is the criterion."""
    figure = new_figure(5.2, 2.8)
    axes = figure.subplots()
    for title, look in looks(curves["title"]).items():
        one = curves.filter(title=title)
        epochs = one["epoch"].to_list()
        axes.plot(epochs, one["value"].to_list(), **look, markevery=[0, len(epochs) - 1], label=title)
    axes.axhline(bound, color=GREY, linestyle="--", linewidth=1, label=f"criterion: loss < {bound:g}")
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.legend()
    return figure


@styled
def learning_rates(rates: polars.DataFrame, steps: int) -> Figure:
    """Draw the loss after some steps over the loss at the start against eta / (2/lambda_max), with its prediction."""
    figure = new_figure(5.2, 2.8)
    axes = figure.subplots()
    predicted = (rates["early_predicted"] / rates["loss_0"]).to_list()
    axes.plot(rates["multiple"].to_list(), predicted, color=GREY, linewidth=1, label="predicted")
    marked = rates.with_columns(ratio=rates["loss_early"] / rates["loss_0"])
    for verdict, look in looks(rates["measured"]).items():
        one = marked.filter(measured=verdict)
        axes.plot(one["multiple"].to_list(), one["ratio"].to_list(), **look, linestyle="none", label=verdict)
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        "2/lambda_max",
        (1, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREY,
    )
    axes.set_yscale("log")
    axes.set_xlabel("learning rate, in units of 2/lambda_max")
    axes.set_ylabel(f"loss after {steps} updates / at the start")
    axes.legend(loc="lower right")
    return figure
