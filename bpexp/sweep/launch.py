"""Runs the jobs of a command: those of one structure together, or one at a time under Hydra's own launchers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from bpexp import spec
from bpexp.spec import UserError
from bpexp.sweep.checkpoints import checkpoint_folder, remove_checkpoint
from bpexp.sweep.executors import Executor, choose_executor, run_inline
from bpexp.sweep.files import read_json
from bpexp.sweep.fitting import fit
from bpexp.sweep.group import Group, record_failure
from bpexp.sweep.groups import GROUPS_FILE, members, regroup
from bpexp.sweep.hydra_files import HydraFiles
from bpexp.sweep.job import Job, typed
from bpexp.sweep.progress import Progress
from bpexp.sweep.results import RUN_FILE, is_finished


class InterruptedSweep(KeyboardInterrupt):
    """Ctrl-C; the message says what is finished and how to go on."""


class Networks:
    """The task that Hydra calls: with one job's configuration, or `together` with all of them.

    `pending` are the jobs without a result, or all of them under `sweep.fresh`, but for those that are `wrong`: why, by
    identity.
    """

    def __init__(self, jobs: Sequence[Job], wrong: Mapping[str, str] | None = None) -> None:
        self.wrong = wrong or {}
        right = [job for job in jobs if job.identity not in self.wrong]
        self.pending = {job.identity: job for job in right if job.config.sweep.fresh or not is_finished(job)}
        self.stored = read_json(jobs[0].folder.parent / GROUPS_FILE)
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
        """Remove the checkpoints of groups that are finished: their command was killed before it did."""
        for name, jobs in members(self.jobs, self.stored).items():
            others = set(self.stored.get(name, ())) - {job.folder.name for job in jobs}
            if not others and not any(job.identity in self.pending for job in jobs):
                remove_checkpoint(checkpoint_folder(jobs))

    def __call__(self, config: DictConfig) -> None:
        """Run one job, as Hydra's own launchers do."""
        identity = spec.identity(typed(config))
        if all(job.identity != identity for job in self.jobs):
            raise UserError("hydra/sweeper: this sweeper makes jobs of its own; choose ensemble or basic")
        job = self.pending.pop(identity, None)
        for wrong in self.jobs:
            if wrong.identity == identity and identity in self.wrong and not self.stopped:
                record_failure(wrong, self.wrong[identity])
        if job is not None and not self.stopped:
            self._train([Group([job])], run_inline)

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
            self._train(groups, choose_executor(groups, groups[0].jobs[0].folder.parent), write_hydra)
        self.pending.clear()  # a sweeper that launches in batches comes again
        return [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in batch]

    def _train(
        self, groups: Sequence[Group], execute: Executor, write_hydra: Callable[[Sequence[Job]], None] | None = None
    ) -> None:
        with Progress(groups) as progress, contextlib.closing(execute(_prepare(groups, write_hydra), progress)) as ends:
            try:
                for group, statuses in ends:
                    progress.finish(group, statuses)
                    if "failed" in statuses.values() and groups[0].jobs[0].config.sweep.keep_going is False:
                        self.stopped = True
                        return
            except KeyboardInterrupt:
                done = sum(is_finished(job) for job in self.jobs)
                finished = f"{done} of {len(self.jobs)} jobs are finished and kept"
                raise InterruptedSweep(f"interrupted: {finished}; the same command goes on") from None


def _prepare(groups: Sequence[Group], write_hydra: Callable[[Sequence[Job]], None] | None) -> Iterator[Group]:
    for group in groups:
        for job in group.running:
            # An interrupted run must not leave the old result beside new records.
            (job.folder / RUN_FILE).unlink(missing_ok=True)
        if group.jobs[0].config.sweep.fresh:
            remove_checkpoint(checkpoint_folder(group.jobs))
        if write_hydra is not None:
            write_hydra(group.running)
        yield group
