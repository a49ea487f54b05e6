"""A group of networks that train together, and its training in whatever process: all executors call `train`."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpexp.spec import UserError
from bpexp.sweep.files import write_json
from bpexp.sweep.job import Job
from bpexp.sweep.lock import LockedError, hold
from bpexp.sweep.results import RUN_FILE, current_commit, is_finished, read_run

Report = Callable[[int], None]
"""Called with the step that the networks of a group have come to."""

Statuses = dict[str, str]
"""What became of jobs, by their identities: ok, diverged or failed."""

PATIENCE = 10.0
"""Seconds in which a worker whose command was killed has ended, whatever it was doing."""


@dataclass(frozen=True)
class Group:
    """Jobs that train together; those in `kept` are finished, and do so only for the group to be the same.

    lock:  the file that the process that trains them holds; a single run's folder is locked as a whole
    """

    jobs: Sequence[Job]
    kept: frozenset[str] = frozenset()
    lock: Path | None = None

    @property
    def name(self) -> str:
        """The name that its jobs have as their `group`."""
        return self.jobs[0].group

    @property
    def running(self) -> list[Job]:
        """The jobs that get a result."""
        return [job for job in self.jobs if job.identity not in self.kept]

    @property
    def steps(self) -> int:
        """The steps of the network that trains longest."""
        return max(job.config.train.steps for job in self.jobs)

    @functools.cached_property
    def cost(self) -> int:
        """Work of a step of all networks: about the multiplications of the hidden layers, forward."""
        return sum(
            job.config.model.depth * job.config.model.width**2 * job.config.train.batch_size for job in self.jobs
        )

    @property
    def work(self) -> int:
        """Work of all steps, and of leaving the results as if they were one more."""
        return (self.steps + 1) * self.cost


Ends = Generator[tuple[Group, Statuses], None, None]
"""Groups with what became of their jobs, as they end."""


def train(group: Group, report: Report, *, patience: float = PATIENCE) -> Statuses:
    """Train a group; return what became of the jobs that run.

    A job that fails is recorded, and is no failure of the others.

    patience: seconds to wait for another process that trains it
    Raises:   UserError: a mistake that only training shows; LockedError: another process trains it still;
              OSError: a result that cannot be written
    """
    try:
        with contextlib.nullcontext() if group.lock is None else hold(group.lock, patience=patience):
            return _train(group, report)
    except LockedError as error:
        again = "the same command without sweep.fresh=true" if group.jobs[0].config.sweep.fresh else "the same command"
        raise LockedError(f"group {group.name} is still {error}; wait for it, and give {again} again") from None
    except (UserError, OSError):
        raise
    except Exception as error:
        if group.jobs[0].config.debug:
            traceback.print_exc()
        return fail(group, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def import_alone() -> Iterator[None]:
    """Collect no garbage while torch is imported: it would take a fifth of the time, and there is none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _train(group: Group, report: Report) -> Statuses:
    # A worker whose command was killed may have finished some of them since.
    finished = {job.identity: str(read_run(job)["status"]) for job in group.running if is_finished(job)}
    if len(finished) == len(group.running):
        return finished
    kept = group.kept | finished.keys()
    with import_alone():
        runner = importlib.import_module("bpexp.runner")
    outcomes = runner.run_group(group.jobs, report=report, kept=kept)
    for outcome in outcomes:
        if outcome.status == "failed" and not (outcome.job.folder / RUN_FILE).exists():
            record_failure(outcome.job, outcome.error)
    return finished | {outcome.job.identity: outcome.status for outcome in outcomes}


def fail(group: Group, error: str) -> Statuses:
    """Record that the jobs of a group that have no result failed; return what became of all."""
    for job in group.running:
        if not is_finished(job):
            record_failure(job, error)
    return {job.identity: str(read_run(job)["status"]) for job in group.running}


def record_failure(job: Job, error: str | None) -> None:
    """Leave a job's run.json with what went wrong."""
    job.folder.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {"identity": job.identity, "group": job.group, "commit": current_commit()}
    write_json(job.folder / RUN_FILE, run | {"status": "failed", "error": error, "row": {}})
