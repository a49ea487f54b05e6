"""My gradients vanish, or explode, and the network does not train: what to do.

Networks that fail are trained with one remedy each: another activation, initialization, normalization, skip
connections, clipping or optimizer. Each has the best of a few learning rates, chosen on the validation data of the
first two seeds, and is judged by the others. It says with which they train, how fast, how well against the untreated
network and at what cost, and which are not known to help.

-m runs the cells of the tables FAILING and REMEDIES in experiments/remedies_grid.py; a key of theirs on the command
line replaces all of them, and another one is set in all of them.

Tables are left in the results' folder as cells and remedies.parquet, the figure as figures/remedy_map.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import entry
from bpexp.spec import UserError
from experiments.remedies_grid import (
    DEEP,
    DEEP_OVERRIDES,
    DEEP_SEEDS,
    FAILING,
    REMEDIES,
    UNTREATED,
    assignments,
    cells_argument,
    command,
    grid_argument,
    seed_argument,
)

if TYPE_CHECKING:
    import polars

    from experiments.page import Picture, Section

SCALES = {
    "smoke": "2 failing networks x 3 remedies x 2 seeds, 40 steps, after 2 seeds at each of 4 learning rates.",
    "default": "3 failing networks x all remedies x 4 seeds, after 2 seeds at each of 4 learning rates.",
    "full": "All failing networks x all remedies x 8 seeds, after 2 seeds at each of 4 learning rates; two networks of "
    "1,000 layers x 2 seeds.",
}
SHOWN = {
    "smoke": ((FAILING[2], FAILING[6]), (UNTREATED, REMEDIES[6], REMEDIES[12])),
    "default": ((FAILING[0], FAILING[2], FAILING[6]), REMEDIES),
    "full": (FAILING, REMEDIES),
}
"""The rows of the tables at each scale."""

OVERRIDES: dict[str, tuple[str, ...]] = {
    "smoke": ("train.steps=40", "train.measure_every=10"),
    "default": (),
    "full": (),
}
SEEDS = {"smoke": 2, "default": 4, "full": 8}
"""Seeds that are shown; CHOOSING others before them choose the learning rates."""


def finish(folder: Path) -> None:
    """Leave tables and figures in the folder of a command's results, and print what they say."""
    from bpexp.sweep.files import write_parquet, write_text
    from experiments.remedies_text import report_lines

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
    """Return the tables of a folder of results: cells, remedies, settings.

    Raises:  UserError: there are no results, or no network of the tables among them
    """
    from bpexp.records import read_results
    from bpexp.summary import summarize_settings
    from experiments.remedies_cells import summarize_cells, summarize_remedies

    cells = summarize_cells(folder)
    settings = summarize_settings(read_results(folder))
    return {"cells": cells, "remedies": summarize_remedies(cells), "settings": settings}


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Run what a scale states, below `folder`, and return the summary tables.

    One sweep chooses the learning rates, and another, of other seeds, shows what becomes of them.
    """
    import polars

    from experiments.remedies_cells import CHOOSING, chosen_cells, summarize_remedies
    from experiments.remedies_cost import compute_costs

    choosing, judged = range(CHOOSING), range(CHOOSING, CHOOSING + SEEDS[scale])

    def sweep(cells: str, seeds: range, name: str) -> Path:
        where = ("sweep.max_runs=0", f"hydra.sweep.dir={folder / name}")
        return entry.call("remedies", ["-m", cells, *OVERRIDES[scale], seed_argument(seeds), *where])

    rates = sweep(grid_argument(*SHOWN[scale]), choosing, "rates")
    grid = sweep(cells_argument(chosen_cells(rates, *SHOWN[scale])), judged, "grid")
    tables = summarize(grid)
    cells = tables["cells"].join(compute_costs(grid), on=["failing", "remedy"], how="left", maintain_order="left")
    tables |= {"cells": cells, "remedies": summarize_remedies(cells)}
    tables["scale"] = polars.DataFrame({"scale": [scale], "command": [command(OVERRIDES[scale], choosing)]})
    if scale == "full":
        tables["deep"] = compute_deep(folder / "deep")
    return tables


def compute_deep(folder: Path) -> polars.DataFrame:
    """Train the networks of very many layers, one row of them on a core; return a row for each seed."""
    import polars

    from bpexp.records import job_folder, read_results
    from bpexp.sweep.files import read_json
    from bpexp.sweep.results import RUN_FILE

    cells = [assignments(row.overrides) for row in DEEP]
    shared = [*DEEP_OVERRIDES, seed_argument(DEEP_SEEDS), "sweep.max_runs=0"]
    entry.call("remedies", ["-m", cells_argument(cells), *shared, f"hydra.sweep.dir={folder}"])
    results = read_results(folder)
    rows: list[dict[str, Any]] = []
    for deep, cell in zip(DEEP, cells, strict=True):
        jobs = results
        for name, value in deep.overrides.items():
            jobs = jobs.filter(jobs[name] == value)
        rows += [
            {"network": deep.name, "seed": job["seed"], "status": job["status"], "steps": job["step"]}
            | {f"{part}_accuracy": job[f"{part}_accuracy"] for part in ("train", "val", "test")}
            | {"seconds": read_json(job_folder(folder, job["job"]) / RUN_FILE)["wall_time"]}
            | {"command": command([*cell, *DEEP_OVERRIDES], DEEP_SEEDS)}
            for job in jobs.iter_rows(named=True)
        ]
    return polars.DataFrame(rows, infer_schema_length=None)


def pictures(tables: Mapping[str, polars.DataFrame]) -> list[Picture]:
    """Draw the figures of the tables; none where no network was treated."""
    from bpexp import figures
    from experiments.page import Picture
    from experiments.remedies_text import MAP_WORDS

    if tables["remedies"].is_empty():
        return []
    return [Picture("remedy_map", figures.svg(figures.remedy_map(tables["cells"])), *MAP_WORDS)]


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section that the tables make: those of `compute`, or of one sweep by `summarize`."""
    from experiments.page import Section
    from experiments.remedies_text import answer, cells_table, deep_table, measured, remedies_table

    roles = tables["settings"].group_by("role", maintain_order=True).agg("text").rows()
    commands = list(tables["scale"]["command"]) if "scale" in tables else []
    deep = [tables["deep"]] if "deep" in tables else []
    for table in deep:
        commands += table["command"].unique(maintain_order=True).to_list()
    return Section(
        name="remedies",
        title="My gradients vanish or explode: what do I do",
        question="A deep network does not train because its gradients vanish or explode: which remedy makes it train, "
        "how well, and at what cost?",
        prediction="What sets the backward gain a layer to 1 should cure both: an initialization for the activation, a "
        "norm, or skip connections whose branches are scaled. Clipping bounds the size of a step: it should help where "
        "gradients explode and not where they vanish. An optimizer that divides by the size of the gradient, as Adam "
        "does, should help where they vanish in size alone. Of 1,000 layers, a plain tanh network should train at the "
        "critical orthogonal initialization, and one with ReZero.",
        answer=answer(tables),
        method=(*((role, "; ".join(texts)) for role, texts in roles), *measured(tables)),
        commands=tuple(commands),
        pictures=tuple(pictures(tables)),
        tables=(
            *((remedies_table(tables["remedies"]),) if not tables["remedies"].is_empty() else ()),
            *map(deep_table, deep),
            cells_table(tables["cells"]),
        ),
    )


def with_cells(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command, with the cells of the declared grid where it asks for one."""
    asks = any(argument in (*entry.MULTIRUN_FLAGS, "hydra.mode=MULTIRUN") for argument in arguments)
    return [grid_argument(), *arguments] if asks else list(arguments)


if __name__ == "__main__":
    sys.exit(entry.main("remedies", __doc__, finish=finish, arguments=with_cells(sys.argv[1:])))
