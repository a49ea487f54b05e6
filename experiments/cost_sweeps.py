"""Whole sweeps by the product's own command, against a plain loop in torch for every job.

Ours is all that a user gets: composing, job folders, measuring every tenth step, records, TensorBoard, results. The
loop measures nothing and writes nothing. Both are held on one thread, and time is that of the processor, with all
threads and processes that a side starts.

Tables: `sweeps`, and `parts`: what the time of a job of ours is made of, over the peak of the matrix product.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any

from bpexp import entry
from bpexp.entry import CONF
from experiments.cost_sides import INITS, LR, Ours, Size
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

if TYPE_CHECKING:
    from bpexp.spec import Config

ASKED_SIZE = Size(1, 10, 32, 128)
ASKED_STEPS = 300
MEASURE_EVERY = 10
RATES = (LR / 4, LR / 2, LR, 2 * LR)
"""The learning rates of a sweep; its jobs are these times as many seeds as it takes."""


@dataclass(frozen=True)
class Grid:
    """A sweep of jobs of one structure: seeds times learning rates."""

    jobs: int
    steps: int
    size: Size = ASKED_SIZE

    @property
    def name(self) -> str:
        return f"{self.jobs:,} jobs x {self.steps} steps, {self.size.name}"

    def overrides(self) -> list[str]:
        """Return what the command of the sweep sets."""
        size, seeds = self.size, self.jobs // len(RATES)
        return [
            f"model.depth={size.depth}",
            f"model.width={size.width}",
            f"model.activation={size.activation}",
            f"model.dropout={size.dropout:g}",
            f"init={INITS[size.activation]}",
            f"train.batch_size={size.batch}",
            f"train.steps={self.steps}",
            f"train.measure_every={MEASURE_EVERY}",
            f"optimizer.lr={','.join(f'{rate:g}' for rate in RATES)}",
            f"seed=range({seeds})",
        ]

    def configs(self, count: int) -> list[Config]:
        """Return the configurations of the first jobs."""
        from bpexp.spec import Optimizer, Train

        train = Train(steps=self.steps, batch_size=self.size.batch, measure_every=MEASURE_EVERY)
        networks = replace(self.size, networks=-(-count // len(RATES))).configs()
        jobs = itertools.product(networks, RATES)
        return [replace(config, optimizer=Optimizer(lr=rate), train=train) for config, rate in jobs][:count]


@dataclass(frozen=True)
class Schedule:
    """What is run of a grid: rounds, jobs of the plain loop in each, and what else has a turn.

    fresh: jobs that have a process of their own, and then the whole command in one as well
    parts: the steps alone, the training of a group, and the matrix product
    asked: by what a ratio is asked to be at least: plain loops in this process, and a process a job
    limit: seconds that the sweep may take on one core
    """

    grid: Grid
    rounds: int
    plain: int
    fresh: int = 0
    parts: bool = False
    asked: Mapping[str, float] | None = None
    limit: float | None = None


INLINE = "sweep.executor=inline"
PLAIN, ALONE, TOGETHER = "plain loops, this process", "a process a job", "plain loops, fresh process"
OURS, COMMAND = "ours", "command"
STEPS, GROUP, PRODUCT = "steps", "group", "product"

SHARE = 0.7
"""What was aimed at: the share of the peak of the matrix product."""

_DROPOUT = replace(ASKED_SIZE, dropout=0.1)
SCHEDULES = {
    "smoke": (Schedule(Grid(16, 20), rounds=2, plain=2, parts=True),),
    "default": (
        Schedule(Grid(64, 100), rounds=2, plain=4, fresh=1, parts=True),
        Schedule(Grid(64, 100, _DROPOUT), rounds=2, plain=4),
    ),
    "full": (
        Schedule(Grid(256, ASKED_STEPS), rounds=3, plain=10, fresh=1, parts=True, asked={PLAIN: 4.5, ALONE: 25}),
        Schedule(Grid(256, ASKED_STEPS, _DROPOUT), rounds=2, plain=8, asked={PLAIN: 3.6}),
        Schedule(Grid(1000, ASKED_STEPS), rounds=1, plain=16, asked={PLAIN: 5}, limit=120),
    ),
}


def measure(scale: str, optimizer: Callable[[Size], str], report: Callable[[str], None]) -> dict[str, list[Any]]:
    """Return the rows of the tables; `optimizer` says which form of SGD is torch's fastest at a size."""
    rows: dict[str, list[Any]] = {"sweeps": [], "parts": []}
    for schedule in SCHEDULES[scale]:
        report(f"timing {schedule.grid.name}")
        taken = take(schedule, optimizer(schedule.grid.size))
        rows["sweeps"] += sweep_rows(schedule, taken)
        if schedule.parts:
            rows["parts"] += part_rows(schedule.grid, taken, asked=scale == "full")
    return rows


def take(schedule: Schedule, optimizer: str) -> dict[str, list[Seconds]]:
    """Return what a job of each side took, a step of the parts, in every round."""
    grid = schedule.grid
    with TemporaryDirectory() as folder, one_thread(collects_garbage=True):
        root = Path(folder)
        sweep(root / "warm", replace(grid, jobs=len(RATES), steps=1))
        plain = Jobs(grid, optimizer)
        plain.run(1)
        half = Turn(PLAIN, plain, schedule.plain)
        inside = [Turn(OURS, Command(root / "here", grid), grid.jobs)]
        if schedule.fresh:
            inside += [
                Turn(COMMAND, Fresh(root / "there", grid), grid.jobs),
                Turn(ALONE, Alone(root / "job.pt", plain), schedule.fresh),
            ]
        if schedule.parts:
            inside += parts(grid)
        return take_rounds([half, *inside, half], schedule.rounds)


def sweep(folder: Path, grid: Grid, *others: str) -> Path:
    """Run a sweep by the product's command, in this process unless `others` say so, and say nothing."""
    arguments = ["-m", *grid.overrides(), INLINE, *others, f"hydra.sweep.dir={folder}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return entry.call("gradient_flow", arguments)


class Command:
    """The product's command in this process; a step is a job, and a turn is the whole sweep, in a new folder.

    Old folders stay until the end: file systems make new files slowly after many were deleted.
    """

    def __init__(self, folder: Path, grid: Grid, *others: str) -> None:
        self.parent, self.grid, self.others = folder, grid, others
        self.folder = folder

    def reset(self) -> None:
        self.parent.mkdir(exist_ok=True)
        self.folder = Path(mkdtemp(dir=self.parent))

    def run(self, steps: int) -> None:
        assert steps == self.grid.jobs
        sweep(self.folder, self.grid, *self.others)


class Fresh(Command):
    """The product's command as a user types it: its start and its figures included."""

    def run(self, steps: int) -> None:
        assert steps == self.grid.jobs
        start("experiments.gradient_flow", "-m", *self.grid.overrides(), INLINE, f"hydra.sweep.dir={self.folder}")


def start(module: str, *arguments: str) -> str:
    """Run a module in a process of its own, one thread for each library in it, and return what it prints.

    Raises:  RuntimeError: it failed; with its last line
    """
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=CONF.parent, env=os.environ | one, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module}: exit code {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout


class Jobs:
    """Plain loops, one after another; a step is a job. Their data are there already, split as for ours."""

    def __init__(self, grid: Grid, optimizer: str) -> None:
        import torch

        from bpexp.data import load

        self.grid, self.optimizer = grid, optimizer
        self.configs = itertools.cycle(grid.configs(len(RATES)))
        self.data = load("digits", 0, dtype=torch.float32)

    def reset(self) -> None:
        """Leave the networks as they are: every job makes its own."""

    def run(self, steps: int) -> None:
        from experiments.cost_plain import Loop

        for config in itertools.islice(self.configs, steps):
            loop = Loop(
                config, self.data.x_train, self.data.y_train, outputs=self.data.outputs, optimizer=self.optimizer
            )
            loop.run(self.grid.steps)


class Alone:
    """Plain loops with a process for each; a step is a job."""

    def __init__(self, file: Path, jobs: Jobs) -> None:
        import torch

        self.file = file
        data = {"x": jobs.data.x_train, "y": jobs.data.y_train, "outputs": jobs.data.outputs}
        job = {"config": next(jobs.configs), "steps": jobs.grid.steps, "optimizer": jobs.optimizer}
        torch.save(data | job, file)

    def reset(self) -> None:
        """Leave the file: it is read, not written."""

    def run(self, steps: int) -> None:
        for _ in range(steps):
            start("experiments.cost_plain", str(self.file))


def parts(grid: Grid) -> list[Turn]:
    """Return the turns that a sweep is made of: steps of a group, the training of one, and a layer's matrix product."""
    group = groups(grid)[0]
    size = replace(grid.size, networks=len(group))
    return [
        Turn(STEPS, Ours(size.ensemble(), draws=True), 100),
        Turn(GROUP, Group(group), 1),
        Turn(PRODUCT, Product(size), 2000),
    ]


def groups(grid: Grid) -> list[list[Config]]:
    """Return the networks of a sweep that train side by side, as the product groups them."""
    from bpexp import spec
    from bpexp.sweep.groups import members, together
    from bpexp.sweep.job import Job

    named = [(spec.identity(config), config) for config in grid.configs(grid.jobs)]
    jobs = together([Job(config, [], identity, Path(identity)) for identity, config in named])
    return [[job.config for job in group] for group in members(jobs).values()]


class Group:
    """The training of a group as in a sweep, measured, by networks that an earlier group had; nothing is written."""

    def __init__(self, configs: Sequence[Config]) -> None:
        from bpexp.ensemble import Ensemble

        self.configs, self.ensemble = configs, Ensemble(configs)

    def reset(self) -> None:
        """Leave it: every turn renews the networks."""

    def run(self, steps: int) -> None:
        from bpexp.train import Loop

        for _ in range(steps):
            self.ensemble.renew(self.configs)
            for _snapshot in Loop(self.ensemble).run():
                pass


class Product:
    """The matrix product of a hidden layer, (R, B, D) x (R, D, D), as torch has it."""

    def __init__(self, size: Size) -> None:
        import torch

        self.x = torch.randn(size.networks, size.batch, size.width)
        self.weight = torch.randn(size.networks, size.width, size.width)
        self.y = torch.empty_like(self.x)

    def reset(self) -> None:
        """Leave it: nothing changes."""

    def run(self, steps: int) -> None:
        import torch

        for _ in range(steps):
            torch.bmm(self.x, self.weight, out=self.y)


def product_flops(size: Size) -> int:
    """Return the operations of a hidden layer's matrix product, of all networks."""
    return 2 * size.networks * size.batch * size.width**2


def step_flops(size: Size, features: int, outputs: int) -> int:
    """Return the operations of a network-step's matrix products: forward, dW, and dX but for that of the inputs."""
    hidden = (size.depth - 1) * size.width**2
    return 2 * size.batch * (2 * features * size.width + 3 * hidden + 3 * size.width * outputs)


def sweep_rows(schedule: Schedule, taken: Mapping[str, Sequence[Seconds]]) -> list[dict[str, Any]]:
    """Return a row for each side that a sweep is compared with."""
    from bpexp.statistics import geometric_interval

    grid, ours, plain = schedule.grid, taken[OURS], taken[PLAIN]
    compared = [(PLAIN, ours, plain)]
    if schedule.fresh:
        alone = taken[ALONE]
        together = [whole(one, loop, grid.jobs) for one, loop in zip(alone, plain, strict=True)]
        compared += [(ALONE, taken[COMMAND], alone), (TOGETHER, taken[COMMAND], together)]
    rows = []
    for against, mine, theirs in compared:
        found = geometric_interval(ratios(processor(theirs), processor(mine)))
        target = (schedule.asked or {}).get(against)
        limit = schedule.limit if against == PLAIN else None
        seconds = geometric_interval(grid.jobs * max(one.processor, one.wall) for one in mine)
        rows.append(
            {
                "sweep": grid.name,
                "jobs": grid.jobs,
                "steps": grid.steps,
                "dropout": grid.size.dropout,
                "against": against,
                "ours_ms": milli(processor(mine)),
                "theirs_ms": milli(processor(theirs)),
                "wall_ratio": statistics.median(ratios(wall(theirs), wall(mine))),
                **columns("seconds", seconds),
                **columns("ratio", found),
                "target": target,
                "verdict": at_least(found, target),
                "limit": limit,
                "limit_verdict": at_most(seconds, limit),
            }
        )
    return rows


def whole(alone: Seconds, loop: Seconds, jobs: int) -> Seconds:
    """Return what a job takes if one process trains them all: its share of the start, and its own loop."""
    return Seconds(
        (alone.processor - loop.processor) / jobs + loop.processor,
        (alone.wall - loop.wall) / jobs + loop.wall,
    )


def part_rows(grid: Grid, taken: Mapping[str, Sequence[Seconds]], *, asked: bool) -> list[dict[str, Any]]:
    """Return what the time of a job is made of, each row with the one before it in it, and its share of the peak.

    Math:    share = time of the matrix products at the measured peak / time of all that the row counts
    """
    from bpexp.statistics import geometric_interval

    size = replace(grid.size, networks=len(groups(grid)[0]))
    peak = [product_flops(size) / seconds for seconds in processor(taken[PRODUCT])]
    flops = grid.steps * step_flops(size, *shape())
    products = [flops / rate for rate in peak]
    times = {
        "matrix products at their peak": products,
        "training steps": [grid.steps * seconds / size.networks for seconds in processor(taken[STEPS])],
        "training, measured": [seconds / size.networks for seconds in processor(taken[GROUP])],
        "the whole sweep": processor(taken[OURS]),
    }
    rows = []
    for name, seconds in times.items():
        found = geometric_interval(ratios(products, seconds))
        target = SHARE if asked and name in ("training steps", "the whole sweep") else None
        rows.append(
            {
                "sweep": grid.name,
                "networks": size.networks,
                "part": name,
                "ms": milli(seconds),
                "gflops": statistics.median(flops / second / 1e9 for second in seconds),
                **columns("share", found),
                "target": target,
                "verdict": at_least(found, target),
            }
        )
    return rows


def shape() -> tuple[int, int]:
    """Return features and classes of the data."""
    from bpexp.data import describe

    data = describe("digits")
    return data.features, data.outputs


def milli(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds)
