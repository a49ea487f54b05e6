"""What gradient_flow shows of the parts of a layer, and of the plane of weight and bias variance.

The attribution splits the measured decay of each cell; of networks with norms and skip connections, which the grid has
not, PARTS are measured at initialization. The phase diagrams are theory alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars

    from bpexp import spec
    from experiments.page import Picture

KINDS = tuple(itertools.product(("none", "batch", "layer"), ("none", "plain", "scaled")))
"""Norms and residuals."""


@dataclass(frozen=True)
class Parts:
    """Networks that are split: activations under He's weights x norms and residuals."""

    depth: int
    seeds: int
    activations: tuple[str, ...] = ("tanh", "relu")
    kinds: tuple[tuple[str, str], ...] = KINDS


PARTS = {
    "smoke": Parts(6, 2, ("relu",), (("none", "none"), ("batch", "plain"))),
    "default": Parts(16, 3),
    "full": Parts(30, 5),
}

POINTS = 200
LARGEST_W2, LARGEST_B2 = 4.0, 1.0
"""Of the phase diagrams."""


def compute_parts(scale: str) -> polars.DataFrame:
    """Return what changes the gradient in networks with norms and skip connections: a row of `bars` for each kind."""
    import numpy as np
    import polars

    from bpexp.attribution import attribute_configs, attribution_table

    parts = PARTS[scale]
    kinds = list(itertools.product(parts.activations, parts.kinds))
    named = {
        f"{number} {seed}": config_of(activation, *kind, parts.depth, seed)
        for number, (activation, kind) in enumerate(kinds)
        for seed in range(parts.seeds)
    }
    terms = attribute_configs(named)
    by_kind = {n: np.stack([terms[f"{n} {seed}"] for seed in range(parts.seeds)]) for n in range(len(kinds))}
    rows = [
        {"cell": number, "panel": f"{activation}, L = {parts.depth}", "label": f"norm {norm}, skip {residual}"}
        for number, (activation, (norm, residual)) in enumerate(kinds)
    ]
    return mean_terms(polars.DataFrame(rows), attribution_table(by_kind))


def config_of(activation: str, norm: str, residual: str, depth: int, seed: int) -> spec.Config:
    from dataclasses import replace

    from bpexp.spec import Config

    one = Config()
    model = replace(one.model, activation=activation, norm=norm, residual=residual, depth=depth)
    return replace(one, seed=seed, model=model, init=replace(one.init, name="he"))


def cell_bars(cells: polars.DataFrame, attribution: polars.DataFrame) -> polars.DataFrame:
    """Return the bars of the deepest cells."""
    import polars

    deepest = cells.filter(polars.col("model.depth") == cells["model.depth"].max())
    names = deepest.select(
        "cell",
        panel=polars.format("{}, L = {}", "model.activation", "model.depth"),
        label=polars.col("series"),
    )
    return mean_terms(names, attribution)


def mean_terms(names: polars.DataFrame, attribution: polars.DataFrame) -> polars.DataFrame:
    """Return panel, label, and the terms and their sum in the mean over the layers that have them; else nothing."""
    import polars

    from bpexp.attribution import TERMS

    means = attribution.drop_nulls().group_by("cell").agg(polars.col(*TERMS, "decay").mean(), polars.col("seeds").max())
    return names.join(means, on="cell", how="inner", maintain_order="left").drop("cell")


def parts_pictures(tables: Mapping[str, Any]) -> list[Picture]:
    """Draw what changes the gradient in the cells, and in the networks of `compute_parts` where there are some."""
    from bpexp import figures
    from bpexp.attribution import TERMS
    from experiments.page import Picture

    pictures = []
    attribution, parts = tables.get("attribution"), tables.get("parts")
    for name, bars, which in (
        ("attribution", None if attribution is None else cell_bars(tables["cells"], attribution), "the deepest cells"),
        ("attribution_parts", parts, "networks with He's weights, norms and skip connections"),
    ):
        if bars is not None and not bars.is_empty():
            seeds = int(bars["seeds"].to_numpy().max())
            pictures.append(
                Picture(
                    name,
                    figures.svg(figures.attribution_bars(bars, TERMS)),
                    f"What changes the gradient from one layer to the next in {which}, at initialization: the log of "
                    "the factor of delta_rms a layer, split into what the weights, the skip connection (with the "
                    "factor of its branch), the activation's slope and the norm do to it, in this order. Means over "
                    f"the layers and over at most {seeds} networks.",
                    "To the right of 0 a part makes the gradient grow towards the input, to the left it makes it "
                    "shrink. The parts of a bar add up to its diamond, the log of the measured backward gain: it is "
                    "at 0 where they make up for each other.",
                    "A diamond that is not where its parts add up to.",
                )
            )
    return pictures


@functools.cache
def phase_picture() -> Picture:
    """Draw the phase diagram of every activation but the identity."""
    import numpy as np

    from bpexp import figures, theory
    from bpexp.activations import ACTIVATIONS
    from experiments.page import Picture

    sigma_w2, sigma_b2 = (np.linspace(0, largest, POINTS + 1)[1:] for largest in (LARGEST_W2, LARGEST_B2))
    diagrams = {name: theory.phase_diagram(name, sigma_w2, sigma_b2) for name in ACTIVATIONS if name != "identity"}
    return Picture(
        "phase_diagrams",
        figures.svg(figures.phase_diagrams(diagrams)),
        "Theory alone: what a layer does to mean square gradients (log10 chi_1, colours end at a factor of 3) where "
        "lengths have come to rest from q = 1, over weight variance (sigma_w^2 = fan_in Var W) and bias variance. "
        f"Black: chi_1 = 1; {POINTS} x {POINTS} points each, by tabulated moments.",
        "Purple: gradients vanish and inputs come together. Orange: they explode and inputs part. Deep networks train "
        "along the line. Where it borders the hatching lengths grow for ever as soon as it is crossed: there no finite "
        "length is critical. Sigmoid's line lies far to the right, at sigma_w^2 = 103.",
        "A line that is not between the two colours.",
    )
