"""sweep.executor=submitit: each group is a job of Slurm, all of them an array; or a local process, through submitit."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp.spec import Sweep, UserError
from bpexp.sweep.group import Ends, Group, Statuses, fail, train
from bpexp.sweep.lock import LockedError
from bpexp.sweep.progress import Progress

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.core.utils import DelayedSubmission

MINUTES = 60
UNLIMITED = 60 * 24 * 365
SECONDS_BETWEEN_LOOKS = {"local": 0.1, "slurm": 2.0}


class Task:
    """What runs on the cluster. Slurm submits it again when its time is up, and its group goes on where it was."""

    def __call__(self, group: Group) -> Statuses | LockedError:
        """Train a group, or find what it left: a job of a command that was killed trains it to the end."""
        try:
            return train(group, lambda step: None, patience=math.inf)
        except LockedError as error:
            return error  # submitit would pass on its text alone

    def checkpoint(self, group: Group) -> DelayedSubmission:
        """Return what is to be submitted, as submitit asks."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self, group)


def choose_cluster(sweep: Sweep) -> str:
    """Return slurm or local.

    Raises:  UserError: submitit is not installed; there is no Slurm here for what is set
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("sweep.executor: submitit is not installed; pip install 'bpexp[slurm]', or choose processes")
    there = shutil.which("srun") is not None
    if sweep.cluster == "slurm" and not there:
        raise UserError("sweep.cluster: slurm was asked for, but there is no srun here; choose local")
    cluster = sweep.cluster or ("slurm" if there else "local")
    for name in ("partition", "minutes", "memory"):
        value = getattr(sweep, name)
        if value is not None and cluster == "local":
            raise UserError(f"sweep.{name}: {value} would be ignored without Slurm, and there is no srun here")
    return cluster


def run_on_cluster(groups: Iterator[Group], progress: Progress, *, sweep: Sweep, workers: int, folder: Path) -> Ends:
    """Train groups as jobs of a cluster; yield each with what became of its jobs, as it ends.

    workers:  most groups at once where there is no Slurm
    folder:   for the pickled groups and the logs; it is left where a job of the cluster failed
    Raises:   LockedError: a group is being trained by a process of which nothing tells whether it lives
    """
    cluster = choose_cluster(sweep)
    waiting = list(groups)
    executor = _executor(cluster, sweep, folder, cuda=waiting[0].jobs[0].config.device == "cuda")
    most = workers if cluster == "local" else len(waiting)
    running: dict[Job[Statuses | LockedError], Group] = {}
    clean = True
    try:
        while waiting or running:
            batch, waiting = waiting[: most - len(running)], waiting[most - len(running) :]
            if batch:
                running |= zip(executor.map_array(Task(), batch), batch, strict=True)
            ended = [job for job in running if job.done()]
            for job in ended:
                group, error = running.pop(job), job.exception()
                clean = clean and error is None
                statuses = job.result() if error is None else fail(group, _describe(job, error))
                if isinstance(statuses, LockedError):
                    raise statuses
                yield group, statuses
            if not ended:
                time.sleep(SECONDS_BETWEEN_LOOKS[cluster])
    finally:
        for job in running:
            job.cancel(check=False)
    if clean:
        # A job of a command that was killed may still write there.
        shutil.rmtree(folder, ignore_errors=True)


def _executor(cluster: str, sweep: Sweep, folder: Path, *, cuda: bool) -> AutoExecutor:
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    settings: dict[str, Any] = {"name": "bpexp", "cpus_per_task": 1, "gpus_per_node": int(cuda)}
    if cluster == "local":
        settings["timeout_min"] = UNLIMITED
    else:
        settings |= {
            "timeout_min": sweep.minutes or MINUTES,
            "mem_gb": sweep.memory,
            "slurm_partition": sweep.partition,
            "slurm_array_parallelism": sweep.workers,
        }
    executor.update_parameters(**{name: value for name, value in settings.items() if value is not None})
    return executor


def _describe(job: Job[Statuses | LockedError], error: Exception) -> str:
    """Return the last line of the traceback of a job of the cluster, or its state where it was killed."""
    from submitit.core.utils import FailedJobError

    if not isinstance(error, FailedJobError):
        return f"job {job.job_id} of the cluster left no result (state {job.state})"
    return re.split(r"^-{20,}$", str(error), flags=re.MULTILINE)[1].strip().splitlines()[-1]
