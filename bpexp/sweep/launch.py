"""Runs the jobs of a command: those of one structure together, or one at a time under Hydra's own launchers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from bpexp import spec
from bpexp.spec import UserError
from bpexp.sweep.checkpoints import IN_SWEEP, checkpoint_folder, remove_checkpoint
from bpexp.sweep.executors import Executor, choose_executor, run_inline
from bpexp.sweep.fitting import fit
from bpexp.sweep.group import Group, record_failure
from bpexp.sweep.groups import members, read_groups, regroup
from bpexp.sweep.hydra_files import HydraFiles
from bpexp.sweep.job import Job, typed
from bpexp.sweep.progress import Progress
from bpexp.sweep.results import RUN_FILE, is_finished, is_folder_finished


class InterruptedSweep(KeyboardInterrupt):
    """Ctrl-C; the message says what is finished."""


def unfinished(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return the jobs without a result, or all of them under `sweep.fresh`, by identity."""
    return {job.identity: job for job in jobs if job.config.sweep.fresh or not is_finished(job)}


class Networks:
    """The task that Hydra calls: with one job's configuration, or `together` with all of them.

    `pending` are those `unfinished`, but for those that are `wrong`: why, by identity.
    """

    def __init__(self, jobs: Sequence[Job], wrong: Mapping[str, str] | None = None) -> None:
        self.wrong = wrong or {}
        right = [job for job in jobs if job.identity not in self.wrong]
        self.pending = unfinished(right)
        self.stored = read_groups(jobs[0].folder.parent)
        grouped = {job.identity: job for job in regroup(right, self.pending, self.stored)}
        self.jobs = [grouped.get(job.identity, job) for job in jobs]
        self.reused = [job for job in grouped.values() if job.identity not in self.pending]
        self.stopped = False

    def fit(self) -> None:
        """Cut the groups that the memory has no room for."""
        fitted = {
            job.identity: job for job in fit([job for job in self.jobs if job.identity not in self.wrong], self.stored)
        }
        self.jobs = [fitted.get(job.identity, job) for job in self.jobs]

    def groups(self) -> list[Group]:
        """Return the groups with jobs that are pending, the most work first: the last to end are then small."""
        right = [job for job in self.jobs if job.identity not in self.wrong]
        folder = self.jobs[0].folder.parent
        groups = [
            Group(jobs, frozenset(job.identity for job in jobs) - self.pending.keys(), folder / f".{name}.lock")
            for name, jobs in members(right, self.stored).items()
        ]
        return sorted((group for group in groups if group.running), key=lambda group: -group.work)

    def clear_checkpoints(self) -> None:
        """Remove the checkpoints that nothing goes on from: the command was killed before it did, or the grid changed.

        Those are of groups, be they of an earlier grid, whose members are all finished or have no folder any more.
        """
        groups = members(self.jobs, self.stored)
        for jobs in groups.values():
            if len(jobs) == 1 and jobs[0].identity not in self.pending:
                remove_checkpoint(checkpoint_folder(jobs))
        folder = self.jobs[0].folder.parent
        for path in sorted((folder / IN_SWEEP).glob("*")):
            jobs = groups.get(path.name, [])
            names = {*self.stored.get(path.name, ()), *(job.folder.name for job in jobs)}
            goes_on = any(job.identity in self.pending for job in jobs) or any(
                (folder / name).is_dir() and not is_folder_finished(folder / name) for name in names
            )
            if names and not goes_on:
                remove_checkpoint(path)

    def start_over(self) -> None:
        """Remove what `sweep.fresh` makes again, all of it at once: a command without it then goes on."""
        for group in self.groups() if self.jobs[0].config.sweep.fresh else ():
            for job in group.running:
                (job.folder / RUN_FILE).unlink(missing_ok=True)
            remove_checkpoint(checkpoint_folder(group.jobs))

    def __call__(self, config: DictConfig) -> None:
        """Run one job, as Hydra's own launchers do."""
        identity = spec.identity(typed(config))
        if all(job.identity != identity for job in self.jobs):
            raise UserError("hydra/sweeper: this sweeper makes jobs of its own; choose ensemble or basic")
        progress = self._progress  # of all that are pending, before one is no more
        job = self.pending.pop(identity, None)
        for wrong in self.jobs:
            if wrong.identity == identity and identity in self.wrong and not self.stopped:
                record_failure(wrong, self.wrong[identity])
        if job is not None and not self.stopped:
            self._train([Group([job])], run_inline, progress)

    @functools.cached_property
    def _progress(self) -> Progress:
        return Progress([Group([job]) for job in self.pending.values()])

    def together(self, master: DictConfig, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Run all jobs, group by group, and record those that are wrong."""
        numbers = {job.identity: number for number, job in enumerate(self.jobs)}

        files = HydraFiles(master)

        def write_hydra(jobs: Sequence[Job]) -> None:
            for job in jobs:
                files.write(numbers[job.identity], job)

        wrong = [job for job in self.jobs if job.identity in self.wrong]
        if wrong and not self.stopped:
            write_hydra(wrong)
            for job in wrong:
                record_failure(job, self.wrong[job.identity])
        groups = self.groups()
        if groups and not self.stopped:
            execute = choose_executor(groups, groups[0].jobs[0].folder.parent)
            self._train(groups, execute, Progress(groups), write_hydra)
        self.pending.clear()  # a sweeper that launches in batches comes again
        return [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in batch]

    def _train(
        self,
        groups: Sequence[Group],
        execute: Executor,
        progress: Progress,
        write_hydra: Callable[[Sequence[Job]], None] | None = None,
    ) -> None:
        with progress, contextlib.closing(execute(_prepare(groups, write_hydra), progress)) as ends:
            try:
                for group, statuses in ends:
                    progress.finish(group, statuses)
                    if "failed" in statuses.values() and groups[0].jobs[0].config.sweep.keep_going is False:
                        self.stopped = True
                        progress.conclude()
                        return
            except KeyboardInterrupt:
                done = sum(is_finished(job) for job in self.jobs)
                raise InterruptedSweep(f"interrupted: {done} of {len(self.jobs)} jobs are finished and kept") from None


def _prepare(groups: Sequence[Group], write_hydra: Callable[[Sequence[Job]], None] | None) -> Iterator[Group]:
    for group in groups:
        for job in group.running:
            # An interrupted run must not leave the old result beside new records. A worker whose command was killed may
            # have finished it since.
            if not is_finished(job):
                (job.folder / RUN_FILE).unlink(missing_ok=True)
        if write_hydra is not None:
            write_hydra(group.running)
        yield group
