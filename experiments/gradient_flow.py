"""What becomes of the gradient for a depth, an activation and an initialization, and whether theory said so before.

Networks of every depth x activation x initialization, and of any other key that is given several values (norm,
residual branches, optimizer, regularizers, data), are measured at initialization and while they train: the size
of each layer's activations, deltas and gradients; how much a layer changes the gradient, towards the input (the
backward gain, with its interval over seeds); whether it vanishes, explodes or is healthy; and whether the network
trains. Mean-field theory predicts the gain from the initialization alone; networks of the same sizes, drawn anew, say
where the mean of the seeds should lie at this width, and how likely it is as far off as it is.

What changes the gradient in a layer is split into what its weights, skip connection, activation and norm do: their
logs add up to the measured decay.

Tables are left in the results' folder as cells, profiles, training and attribution.parquet, figures as figures/*.svg.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp import entry
from bpexp.spec import UserError

if TYPE_CHECKING:
    import polars

    from experiments.page import Picture, Section

SCALES = {
    "smoke": "2 depths x 2 activations x 2 initializations x 2 seeds, 10 steps.",
    "default": "L = 4 and 16 of the declared grid with 2 seeds, 100 steps.",
    "full": "The declared grid: 3 depths x 5 activations x 5 inits x 5 seeds, 200 steps; all activations x 6 inits at"
    " L = 30, n = 256 with 20 seeds.",
}
GRIDS = {
    "smoke": (
        "model.depth=4,8",
        "model.activation=tanh,relu",
        "init=pytorch,glorot",
        "seed=range(2)",
        "train.steps=10",
        "train.measure_every=5",
    ),
    "default": ("model.depth=4,16", "seed=range(2)", "train.steps=100"),
    "full": (),
}

MOST_SHOWN = 6
"""Cells whose training is drawn."""

PROFILE_PICTURES = {
    "delta_rms": (
        "The size of each layer's delta (batch size times d loss / dz) at initialization. The prediction is relative "
        "to layer L, and anchored on the measured median there.",
        "Level: the gradient reaches the first layer as large as it left the last. Falling to the left: it vanishes.",
        "Solid lines that leave their dashed ones: the theory does not describe these networks.",
    ),
    "grad_norm": (
        "The norm of each weight matrix's gradient at initialization; nothing is predicted for it.",
        "What an update with one learning rate for all layers is made of: layers decades apart do not learn together, "
        "and a level that is decades below 1 does not learn at all.",
        "A profile of another shape than delta_rms: then the activations, not the deltas, make the difference.",
    ),
    "activation_rms": (
        "The size of each layer's activations at initialization.",
        "Level: the signal arrives. Falling or rising by decades: deep layers see hardly anything, or too much.",
        "Solid lines that leave their dashed ones: lengths do not follow the length map.",
    ),
}


def finish(folder: Path) -> None:
    """Leave tables and figures in the folder of a command's results, and print what they say."""
    from bpexp.sweep.files import write_text
    from experiments.gradient_flow_text import report_lines

    try:
        tables = summarize(folder)
    except UserError as error:  # the failures themselves are told by the command
        print(error)
        return
    write_tables(folder, tables)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(tables):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join(report_lines(folder, tables)))


def summarize(folder: Path) -> dict[str, polars.DataFrame]:
    """Return the tables of a folder of results: cells, profiles, training, settings, attribution.

    Raises:  UserError: there are no results, or no network of them has finished
    """
    from bpexp import summary
    from bpexp.attribution import attribute_cells
    from bpexp.bands import simulate_cells
    from bpexp.records import read_results, read_sweep

    results = summary.number_cells(read_results(folder))
    if (results["status"] == "failed").all():
        raise UserError(f"{folder}: no network has finished, so there is nothing to summarize")
    records = read_sweep(folder, sorted({*summary.PROFILE_MEASURES, *summary.TRAINING_MEASURES}))
    predictions, simulations = summary.predict_cells(results), simulate_cells(results)
    cells = summary.summarize_cells(results, predictions, simulations)
    return {
        "cells": cells,
        "profiles": summary.summarize_profiles(records, results, predictions, simulations),
        "training": summary.summarize_training(records, results, choose_cells(cells)),
        "settings": summary.summarize_settings(results),
        "attribution": attribute_cells(results),
    }


def write_tables(folder: Path, tables: Mapping[str, polars.DataFrame]) -> None:
    """Write each table whole, as NAME.parquet."""
    from bpexp.sweep.files import write_parquet

    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)


def choose_cells(cells: polars.DataFrame) -> list[int]:
    """Return the cells whose training is worth a look, MOST_SHOWN at most.

    Of every verdict that occurs a cell that trained and one that did not: the deepest, and there the one whose gain is
    the furthest from 1.
    """
    from experiments.gradient_flow_text import majority

    found: dict[tuple[str, bool], tuple[tuple[float, float], int]] = {}
    for row in cells.iter_rows(named=True):
        distance = abs(math.log(row["gain"])) if row["gain"] > 0 else math.inf
        kind, rank = (majority(row), row["trained"] >= 0.5), (row["model.depth"], distance)
        if kind not in found or rank > found[kind][0]:
            found[kind] = (rank, row["cell"])
    return sorted(cell for _, cell in found.values())[:MOST_SHOWN]


def pictures(tables: Mapping[str, polars.DataFrame]) -> list[Picture]:
    """Draw the figures of the tables."""
    from bpexp import figures
    from experiments.gradient_flow_parts import parts_pictures
    from experiments.gradient_flow_text import answer
    from experiments.page import Picture

    cells, profiles = tables["cells"], tables["profiles"]
    found = [
        Picture(
            "gain_map",
            figures.svg(figures.gain_map(cells)),
            "Backward gain a layer (number and colour, 1 is neutral) with the verdict at initialization (glyph; with "
            "counts where seeds disagree), and below it how many seeds trained.",
            answer(cells),
            "Colours that do not follow the glyphs: gain and verdict would contradict each other.",
        ),
        Picture(
            "gain_against_prediction",
            figures.svg(figures.gain_against_prediction(cells)),
            "Measured against predicted backward gain, with 95 % intervals over seeds; the line is equality. The lower "
            "panel is scaled to its points: intervals of few seeds may leave it.",
            "On the line: the initialization alone told the gain. The prediction is that of infinite width; the broad "
            "bars, of networks drawn at this width, are where the mean over the seeds should lie in 99 of 100 cells.",
            "Intervals that miss the line by more than a few per cent, or points outside of their broad bars.",
        ),
    ]
    for measure, (caption, reading, failing) in PROFILE_PICTURES.items():
        drawing = figures.profiles(cells, profiles, measure)
        found.append(Picture(f"profile_{measure}", figures.svg(drawing), caption, reading, failing))
    if tables["training"]["step"].n_unique() > 1:
        drawing = figures.training(cells, tables["training"])
        found.append(
            Picture(
                "training",
                figures.svg(drawing),
                "delta_rms of the first, middle and last hidden layer, and the loss on the batch, along training: of "
                "every verdict the deepest cell that trained and the deepest that did not.",
                "A vanished gradient stays vanished while the loss stands still; where lines come together, training "
                "has repaired what the initialization spoilt.",
                "A cell that trains although its first layer's delta stays decades below its last: the verdict at "
                "initialization would say nothing.",
            )
        )
    return [*found, *parts_pictures(tables)]


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Run what a scale states, below `folder`, and return the summary tables."""
    from experiments.gradient_flow_parts import compute_parts
    from experiments.gradient_flow_target import compute_target

    sweep = entry.call("gradient_flow", ["-m", *GRIDS[scale], f"hydra.sweep.dir={folder / 'grid'}"])
    target = compute_target(scale)
    found = {**summarize(sweep), "scale": scale_table(scale), "parts": compute_parts(scale)}
    return found if target.is_empty() else {**found, "target": target}


def scale_table(scale: str) -> polars.DataFrame:
    import shlex

    import polars

    command = shlex.join(["python", "-m", "experiments.gradient_flow", "-m", *GRIDS[scale]])
    return polars.DataFrame({"scale": [scale], "command": [command]})


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section that the tables make: those of `compute`, or of one sweep by `summarize`."""
    from experiments.gradient_flow_parts import phase_picture
    from experiments.gradient_flow_target import target_answer, target_command, target_picture, target_table
    from experiments.gradient_flow_text import answer, cell_table
    from experiments.page import Section

    cells, scale, target = tables["cells"], tables.get("scale"), tables.get("target")
    roles = tables["settings"].group_by("role", maintain_order=True).agg("text").rows()
    found, commands = answer(cells), []
    if scale is not None:
        commands += scale["command"].to_list()
    if target is not None:
        found += f" {target_answer(target)}"
        commands.append(target_command(target))
    return Section(
        name="gradient_flow",
        title="What becomes of the gradient",
        question="For a depth, an activation and an initialization: what happens to the gradient at initialization and "
        "along training, and did mean-field theory say so beforehand?",
        prediction="Towards the input a layer multiplies mean square gradients by chi_1 = fan_out Var W E phi'(z)^2; "
        "its root is the backward gain. Over L layers the gradient changes by gain^(L-1): beyond a factor of 100 it "
        "vanishes or explodes, and the network should not train. At finite width networks differ; how much, and where "
        "their mean should lie, is told by drawing others of the same sizes.",
        answer=found,
        method=(*((role, "; ".join(texts)) for role, texts in roles), *measured_and_intervals()),
        commands=tuple(commands),
        pictures=(
            *pictures(tables),
            *(() if target is None else (target_picture(target),)),
            *(() if scale is None else (phase_picture(),)),
        ),
        tables=(
            *(() if target is None else (target_table(target),)),
            cell_table(cells, "Every cell. Gain: geometric mean over the seeds with its 95 % interval."),
        ),
    )


def measured_and_intervals() -> tuple[tuple[str, str], ...]:
    from bpexp.runner import TRAINED_ACCURACY, TRAINED_LOSS
    from bpexp.theory.fluctuations import NETWORKS
    from bpexp.verdict import LIMIT

    return (
        ("measured on", "the step's training batch; step 0 is the state before the first update"),
        (
            "layers",
            "deltas and preactivations are those of z, the output of a layer's linear map, before any norm; "
            "activations are what the layer hands on, its skip connection included",
        ),
        (
            "verdict",
            f"delta_rms changes by more than a factor of {LIMIT:g} from layer L to layer 1, else healthy; one that is "
            "exactly 0 has vanished, but for layers behind a closed gate, which are left out",
        ),
        (
            "trained",
            f"final train_accuracy of at least {TRAINED_ACCURACY}; of a regression train_loss of at most "
            f"{TRAINED_LOSS} variances",
        ),
        (
            "train, val, test",
            "final accuracies, or losses of a regression: train of the last training batch, under dropout where there "
            "is some; val and test of the whole parts, without",
        ),
        ("intervals", "gains: 95 % by Student's t of their logs over the seeds; bands in figures: smallest to largest"),
        (
            "band, p",
            f"{NETWORKS[0]} networks of the cell's sizes, {NETWORKS[1]} or {NETWORKS[2]} where they differ much, with "
            "weights, batches and masks of their own, are passed through once by other code than trains them; the band "
            "is that of the mean of as many seeds as were measured, by Student's t of their logs, and p the "
            "probability that this mean is as far from theirs as it is",
        ),
    )


if __name__ == "__main__":
    sys.exit(entry.main("gradient_flow", __doc__, finish=finish))
