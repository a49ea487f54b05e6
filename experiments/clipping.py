"""Exploding gradients: which clipping, at which threshold, and what it costs in the direction of the step.

Networks whose gradients explode are trained with each kind of clipping, threshold and learning rate, and each beside
its unclipped twin: the same configuration and seed, clip=none. It says which diverge, how the final loss differs from
the twin's, and keeps a ledger of the steps: how many are clipped, the gradient's norm before and after, the effective
learning rate, and the angle by which a step is turned.

-m runs the declared grid; a key of clip on the command line replaces all of its clips, so give clip=none as well where
twins are wanted. Tables are left in the results' folder as cells, thresholds and settings.parquet, figures as
figures/*.svg.
"""

from __future__ import annotations

import shlex
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
    "smoke": "clip = none and norm at threshold 1 x 2 learning rates x 2 seeds, 20 steps; the wall from 20 starts.",
    "default": "The declared grid with 3 seeds; the wall from 100 starts.",
    "full": "The declared grid: 3 kinds of clipping x 4 thresholds, and none, x 10 learning rates x 10 seeds; the wall "
    "from 400 starts.",
}
GRIDS = {
    "smoke": (
        "clip=none,norm",
        "optimizer.lr=0.01,0.1",
        "seed=range(2)",
        "train.steps=20",
        "train.measure_every=5",
    ),
    "default": ("seed=range(3)",),
    "full": (),
}
SYSTEMS = {"smoke": (20, 2, 3), "default": (100, 5, 10), "full": (400, 20, 40)}
"""Seeds of the wall, the bound and the counts of updates: those of their claims."""

MOST_SETTINGS = 3
"""Settings of further swept keys that get figures of their own."""


def finish(folder: Path) -> None:
    """Leave tables and figures in the folder of a command's results, and print what they say."""
    from bpexp.sweep.files import write_parquet, write_text
    from experiments.clipping_text import report_lines

    try:
        tables = summarize(folder)
    except UserError as error:  # the failures themselves are told by the command
        print(error)
        return
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(tables):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join(report_lines(folder, tables)))


def summarize(folder: Path) -> dict[str, polars.DataFrame]:
    """Return the tables of a folder of results: cells, thresholds, settings.

    Raises:  UserError: there are no results, or no network of them has finished
    """
    from bpexp.records import read_results
    from bpexp.summary import summarize_settings
    from experiments.clipping_cells import summarize_cells, summarize_jobs, summarize_thresholds

    jobs = summarize_jobs(folder)
    cells = summarize_cells(jobs)
    settings = summarize_settings(read_results(folder))
    return {"cells": cells, "thresholds": summarize_thresholds(jobs, cells), "settings": settings}


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Run what a scale states, below `folder`, and return the summary tables."""
    import polars

    from experiments.clipping_systems import compute_systems

    sweep = entry.call("clipping", ["-m", *GRIDS[scale], f"hydra.sweep.dir={folder / 'grid'}"])
    command = shlex.join(["python", "-m", "experiments.clipping", "-m", *GRIDS[scale]])
    shown = polars.DataFrame({"scale": [scale], "command": [command]})
    return {**summarize(sweep), **compute_systems(SYSTEMS[scale]), "scale": shown}


def pictures(tables: Mapping[str, polars.DataFrame]) -> list[Picture]:
    """Draw the figures of the tables: of the networks where some are clipped, of the small systems where they are."""
    from bpexp import figures
    from experiments.clipping_cells import settings_of
    from experiments.clipping_text import LAWS_WORDS, LEDGER_WORDS, OUTCOMES_WORDS, WALL_WORDS
    from experiments.page import Picture

    cells, found = tables["cells"], []
    for place, setting in enumerate(settings_of(cells, MOST_SETTINGS)):
        own, end = cells.filter(setting=setting), f"_{place + 1}" if place else ""
        outcomes, ledger = figures.clipping_outcomes(own, setting), figures.clip_ledger(own, setting)
        found.append(Picture(f"clipping_outcomes{end}", figures.svg(outcomes), *OUTCOMES_WORDS))
        found.append(Picture(f"clip_ledger{end}", figures.svg(ledger), *LEDGER_WORDS))
    if "surface" in tables:
        wall = figures.clipping_wall(tables["surface"], tables["paths"], tables["shares"])
        laws = figures.clipping_laws(tables["counts"], tables["reach"])
        found.append(Picture("clipping_wall", figures.svg(wall), *WALL_WORDS))
        found.append(Picture("clipping_laws", figures.svg(laws), *LAWS_WORDS))
    return found


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section that the tables make: those of `compute`, or of one sweep by `summarize`."""
    from experiments.clipping_text import answer, cells_table, thresholds_table
    from experiments.page import Section

    roles = tables["settings"].group_by("role", maintain_order=True).agg("text").rows()
    return Section(
        name="clipping",
        title="Which clipping, and at which threshold",
        question="Gradients explode: which clipping, at which threshold, and what does it cost in the direction of the "
        "step?",
        prediction="Clipping by norm bounds a plain step by learning rate times threshold, so learning rates at which "
        "plain descent diverges should train; where that product is too small nothing is learnt. It keeps the "
        "direction. Clipping each value, or each unit against its weights, bounds the step as well and turns it, the "
        "more the smaller the threshold. On the loss surface of a recurrent unit plain descent should be thrown off "
        "the wall, and clipped descent stay in the valley. A fixed step should take of order M / log M updates where "
        "the largest gradient is M, clipped descent of order log M.",
        answer=answer(tables),
        method=(*((role, "; ".join(texts)) for role, texts in roles), *measured()),
        commands=tuple(tables["scale"]["command"]) if "scale" in tables else (),
        pictures=tuple(pictures(tables)),
        tables=(thresholds_table(tables["thresholds"]), cells_table(tables["cells"])),
    )


def measured() -> tuple[tuple[str, str], ...]:
    """Return what was measured, and how."""
    from experiments.clipping_cells import LAST
    from experiments.clipping_wall import THRESHOLD, UPDATES

    return (
        ("twin", "the same configuration and seed without clipping: the same weights and batches"),
        (
            "final loss",
            f"mean training loss of the last {100 * LAST:g} % of the steps; a network that diverged, or does "
            "worse, counts as a guess",
        ),
        ("score", "test accuracy; of a regression the share of the variance that is explained"),
        (
            "clip ledger",
            "the share of clipped steps counts all steps; norms and angles are those of measured steps, of a network "
            "that diverged up to there. An effective learning rate says how long steps are, and is that of plain "
            "descent",
        ),
        (
            "intervals",
            "95 %: losses, scores and differences by Student's t over the seeds, shares exactly (Clopper-Pearson); one "
            "verdict in 40 may say helps by chance where there is nothing",
        ),
        (
            "small systems",
            f"the wall: {UPDATES} updates, norm clipped to {THRESHOLD:g}; what is expected of the three studies is "
            "written in the ledger of claims, 15 and 18",
        ),
    )


if __name__ == "__main__":
    sys.exit(entry.main("clipping", __doc__, finish=finish))
