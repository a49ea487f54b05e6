"""Phase diagrams, a small one for each activation."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bpexp.figures.style import GREY, new_figure, styled
from bpexp.theory import PhaseDiagram

COLUMNS = 5
PANEL = 1.7  # inches
SPAN = 0.5  # decades a layer at the ends of the colours
COLOURS = "PuOr_r"


@styled
def phase_diagrams(diagrams: Mapping[str, PhaseDiagram]) -> Figure:
    """Draw log10 chi_1 over weight and bias variance for each name, where it is 1, and where lengths have no bound."""
    columns = min(COLUMNS, len(diagrams))
    lines = math.ceil(len(diagrams) / columns)
    figure = new_figure(PANEL * columns + 1.2, PANEL * lines + 0.9)
    every = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    norm = TwoSlopeNorm(0, -SPAN, SPAN)
    for axes, (name, diagram) in zip(every, diagrams.items(), strict=False):
        w2, b2 = diagram.sigma_w2, diagram.sigma_b2
        with np.errstate(divide="ignore"):
            logs = np.log10(diagram.chi_1)
        extent = (float(w2[0]), float(w2[-1]), float(b2[0]), float(b2[-1]))
        shown = np.clip(logs, -SPAN, SPAN)
        image = axes.imshow(shown, cmap=COLOURS, norm=norm, origin="lower", extent=extent, aspect="auto")
        if (logs > 0).any() and (logs < 0).any():
            axes.contour(w2, b2, logs, levels=[0.0], colors="black", linewidths=1.2)
        unbounded = np.isinf(diagram.q_star)
        if unbounded.any():
            axes.contourf(w2, b2, unbounded, levels=[0.5, 1.5], colors="none", hatches=["////"])
        axes.set_title(name)
        axes.grid(visible=False)
    for axes in every[len(diagrams) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=figure.axes, extend="both", aspect=30)
    bar.set_label("log10 chi_1")
    figure.supxlabel("sigma_w^2", fontsize=9)
    figure.supylabel("sigma_b^2", fontsize=9)
    line = Line2D([], [], color="black", linewidth=1.2, label="chi_1 = 1")
    hatched = Patch(facecolor="none", edgecolor=GREY, hatch="////", label="lengths grow without bound")
    figure.legend(handles=[line, hatched], loc="outside upper center", ncols=2)
    return figure
