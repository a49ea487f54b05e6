"""What a sweep costs beside the training of its networks, and what a second process brings.

Tables: `launching` (composing and launching a job, and scalars to TensorBoard), `processes`.
"""

from __future__ import annotations

import functools
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.cost_sweeps import Command, Grid, milli, start, sweep
from experiments.cost_timing import (
    Seconds,
    Turn,
    at_least,
    at_most,
    columns,
    one_thread,
    processor,
    ratios,
    take_rounds,
    wall,
)

LAUNCH_LIMIT, SCALARS_LIMIT, PROCESSES_TARGET = 10.0, 0.25, 1.8
"""What was asked: milliseconds a job to compose and launch it, milliseconds for 100 scalars, two processes over one."""

SCALARS, SCALAR_STEPS = 100, 200


@dataclass(frozen=True)
class Effort:
    """The jobs whose launching is timed, and the sweep that one and two processes do, in so many rounds each.

    Only at the sizes that were asked is anything judged.
    """

    launched: int
    launches: int
    shared: Grid | None
    rounds: int
    asked: bool = False


EFFORTS = {
    "smoke": Effort(16, 2, None, 0),
    "default": Effort(64, 3, None, 0),
    "full": Effort(256, 5, Grid(512, 300), 5, asked=True),
}


def measure(scale: str, report: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables."""
    effort = EFFORTS[scale]
    report("timing launches and scalars")
    rows = {"launching": [time_launching(effort), time_scalars(effort)]}
    if effort.shared is not None:
        report(f"timing one process and two, {effort.shared.name}")
        rows["processes"] = time_processes(effort, effort.shared)
    return rows


def time_launching(effort: Effort) -> dict[str, Any]:
    """Return what a job costs that does no step: composing, validating, its folder with all that it leaves, its result.

    The making of its network and its first measures are in it too, so composing and launching take less.
    """
    grid = Grid(effort.launched, 0)
    with TemporaryDirectory() as folder, one_thread(collects_garbage=True):
        root = Path(folder)
        sweep(root / "warm", replace(grid, jobs=4))
        taken = take_rounds([Turn("command", Command(root / "here", grid), grid.jobs)], effort.launches)
    found = [1e3 * seconds for seconds in processor(taken["command"])]
    limit = LAUNCH_LIMIT if effort.asked else None
    return limited(f"a job of {grid.jobs}: composing, launching, its folder and files, its result", found, limit)


def limited(
    what: str, found: Sequence[float], limit: float | None, against: str = "", theirs: Sequence[float] = ()
) -> dict[str, Any]:
    """Return a row: milliseconds with their interval, the most that was asked, and what is stated beside it."""
    from bpexp.statistics import mean_interval

    measured = mean_interval(found)
    return {
        "what": what,
        **columns("ms", measured),
        "against": against,
        "against_ms": milli(theirs) if theirs else None,
        "target": limit,
        "verdict": at_most(measured, limit),
    }


def time_scalars(effort: Effort) -> dict[str, Any]:
    """Return what a hundred scalars cost a step, in the product's event file and with torch's SummaryWriter."""
    with TemporaryDirectory() as folder, one_thread(collects_garbage=True):
        sides = {"ours": Scalars(Path(folder) / "ours", write_scalars), "writer": Scalars(Path(folder) / "writer", add)}
        for side in sides.values():
            side.reset()
            side.run(1)
        turns = [Turn(name, side, SCALAR_STEPS) for name, side in sides.items()]
        taken = take_rounds(turns, max(3, effort.launches))
    found = [1e3 * seconds for seconds in processor(taken["ours"])]
    what = f"{SCALARS} scalars of a step to TensorBoard"
    limit = SCALARS_LIMIT if effort.asked else None
    return limited(what, found, limit, "torch's SummaryWriter.add_scalar", processor(taken["writer"]))


class Scalars:
    """A hundred curves of so many steps in a folder's event file."""

    def __init__(self, folder: Path, write: Callable[[Path, int], None]) -> None:
        self.folder, self.write = folder, write

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def run(self, steps: int) -> None:
        self.write(self.folder, steps)


@functools.cache
def curves() -> dict[str, list[float]]:
    return {f"zeros/curve_{number}": [number / (step + 1) for step in range(SCALAR_STEPS)] for number in range(SCALARS)}


def write_scalars(folder: Path, steps: int) -> None:
    """Write the curves as the product does for a run."""
    from bpexp.dashboard import Events, event_file

    events = Events()
    for tag, values in curves().items():
        events.scalars(tag, range(steps), values[:steps])
    event_file.write(folder, events.records(0.0))


def add(folder: Path, steps: int) -> None:
    """Write the curves step by step with torch's own writer."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in range(steps):
            for tag, values in curves().items():
                writer.add_scalar(tag, values[step], step)


class Workers(Command):
    """The product's command in a process of its own, with so many workers: all but its figures."""

    def run(self, steps: int) -> None:
        assert steps == self.grid.jobs
        folder = f"hydra.sweep.dir={self.folder}"
        start("experiments.cost_command", *self.grid.overrides(), *self.others, folder)


def time_processes(effort: Effort, grid: Grid) -> list[dict[str, Any]]:
    """Return what a sweep takes with one worker and with two, the start of the command and of its workers counted."""
    with TemporaryDirectory() as folder:
        sides = {
            workers: Workers(Path(folder), grid, "sweep.executor=processes", f"sweep.workers={workers}")
            for workers in ("1", "2")
        }
        turns = [Turn(workers, side, grid.jobs) for workers, side in sides.items()]
        taken = take_rounds(turns, effort.rounds)
    return [process_row(grid, taken, PROCESSES_TARGET if effort.asked else None)]


def process_row(grid: Grid, taken: Mapping[str, Sequence[Seconds]], target: float | None) -> dict[str, Any]:
    """Return how many times as fast two processes are by the clock on the wall, and how much more they compute."""
    from bpexp.statistics import geometric_interval

    one, two = taken["1"], taken["2"]
    found = geometric_interval(ratios(wall(one), wall(two)))
    return {
        "sweep": grid.name,
        "one_s": grid.jobs * statistics.median(wall(one)),
        "two_s": grid.jobs * statistics.median(wall(two)),
        "processor_ratio": statistics.median(ratios(processor(two), processor(one))),
        **columns("ratio", found),
        "target": target,
        "verdict": at_least(found, target),
    }
