"""What a sweep found: each job's run.json, and results.parquet with a row for each job of the last command."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import spec
from bpexp.sweep.files import read_json, write_parquet
from bpexp.sweep.job import Job

if TYPE_CHECKING:
    import polars

RUN_FILE = "run.json"
"""A job's own summary: `identity`, `status`, `error`, `commit` and `row` are read here; the runner adds the rest."""

RECORDS_FILE = "records.parquet"
PARQUET = b"PAR1"
"""How a parquet file begins and ends."""

FINISHED = ("ok", "diverged")
VERDICT_COLUMNS = ("verdict", "backward_gain", "backward_gain_low", "backward_gain_high", "trained")
MEASURE_COLUMNS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "grad_norm",
    "clip_fraction",
)
"""The final whole-network measures: columns of every table, null where they are not defined."""

STEP_COLUMNS = ("step", "diverged_step", "diverged_layer")
"""The last step that was recorded, and where a network first went non-finite."""


def read_run(job: Job) -> dict[str, Any]:
    """Return a job's run.json; nothing where there is none, or one of another configuration."""
    run = read_json(job.folder / RUN_FILE)
    return run if run.get("identity") == job.identity else {}


def is_finished(job: Job) -> bool:
    """Return whether a job has a result, be it that it diverged, with its records."""
    return _is_finished(job.folder, read_run(job))


def is_folder_finished(folder: Path) -> bool:
    """Return whether the folder of a job, be it one of another grid, has a result with its records."""
    return _is_finished(folder, read_json(folder / RUN_FILE))


def _is_finished(folder: Path, run: Mapping[str, Any]) -> bool:
    return run.get("status") in FINISHED and is_whole(folder / RECORDS_FILE, run)


def is_whole(path: Path, run: Mapping[str, Any]) -> bool:
    """Return whether a job's records are as long as its run.json says, and begin and end as a parquet file does.

    What an earlier version of the program left says nothing, and is taken as it is.
    """
    size = run.get("records")
    if size is None:
        return True
    try:
        with path.open("rb") as file:
            ends = file.read(len(PARQUET)), os.pread(file.fileno(), len(PARQUET), size - len(PARQUET))
            return os.fstat(file.fileno()).st_size == size and ends == (PARQUET, PARQUET)
    except OSError:
        return False


def find_damage(job: Job) -> Path | None:
    """Return a job's file that cannot be as it was left, if there is one."""
    path = job.folder / RUN_FILE
    run = read_json(path)
    if not run:
        return path if path.exists() else None
    records = job.folder / RECORDS_FILE
    return records if run.get("status") in FINISHED and not is_whole(records, run) else None


@functools.cache
def current_commit() -> str | None:
    """Return the commit of the program's checkout, "-dirty" where the program differs from it; None outside of one."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return None  # another program's checkout that this one is installed in
        changed = git("status", "--porcelain", "--", "bpexp", "experiments", "conf")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def count_older(jobs: Sequence[Job]) -> int:
    """Return how many finished jobs were made by another commit than the current one."""
    return sum(read_run(job).get("commit") != current_commit() for job in jobs)


def row(job: Job) -> dict[str, Any]:
    """Return a job's row: its folder's name, its configuration, its outcome."""
    run = read_run(job)
    values = {name.removesuffix(".name"): value for name, value in spec.flatten(job.config).items()}
    outcome = {"status": run.get("status", "failed"), "error": run.get("error", None if run else "did not run")}
    return {"job": job.folder.name, **values, **outcome, **(run.get("row") or {})}


def table(jobs: Sequence[Job]) -> polars.DataFrame:
    """Return the results of jobs, a row each; a measure that a job has not is null."""
    import polars

    rows = [row(job) for job in jobs]
    types: dict[str, Any] = dict.fromkeys(VERDICT_COLUMNS + MEASURE_COLUMNS, polars.Float64)
    types |= {name: polars.Float64 for one in rows for name in one if name not in types}
    types |= {"job": polars.String, "status": polars.String, "error": polars.String, "verdict": polars.String}
    types |= dict.fromkeys(STEP_COLUMNS, polars.Int64) | {"trained": polars.Boolean}
    columns = {int: polars.Int64, float: polars.Float64, bool: polars.Boolean, str: polars.String}
    keys = {name.removesuffix(".name"): columns[key.type] for name, key in spec.keys(type(jobs[0].config)).items()}
    first = ("job", *keys, "status", "error", *VERDICT_COLUMNS, *MEASURE_COLUMNS, *STEP_COLUMNS)
    order = dict.fromkeys([*first, *types])
    return polars.DataFrame(rows, schema={name: (types | keys)[name] for name in order})


def write_results(folder: Path, jobs: Sequence[Job]) -> polars.DataFrame:
    """Write and return `results.parquet`."""
    frame = table(jobs)
    write_parquet(folder / "results.parquet", frame)
    return frame


def conclude(folder: Path, jobs: Sequence[Job], *, cells: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Write what sums up jobs that have ended: `results.parquet` and, where asked, TensorBoard's runs of cells.

    Returns: how many jobs ended in each status; the names of those that failed, with their errors
    """
    frame = write_results(folder, jobs)
    if cells:
        from bpexp.dashboard import write_cells

        write_cells(folder, frame)
    return count_status(frame), frame.filter(frame["status"] == "failed").select("job", "error").rows()


def count_status(frame: polars.DataFrame) -> dict[str, int]:
    """Return how many jobs ended in each status."""
    statuses = frame["status"].to_list()
    return {status: statuses.count(status) for status in (*FINISHED, "failed") if status in statuses}
