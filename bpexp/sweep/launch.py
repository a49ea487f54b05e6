"""Runs the jobs of a command: those of one structure together, or one at a time under Hydra's own launchers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from bpexp import spec
from bpexp.spec import UserError
from bpexp.sweep.files import read_json, write_json
from bpexp.sweep.hydra_files import write_hydra_files
from bpexp.sweep.job import Job, typed
from bpexp.sweep.progress import Progress
from bpexp.sweep.results import RUN_FILE, current_commit, is_finished, read_run

GROUPS_FILE = "groups.json"

LARGEST_GROUP = 32
"""Networks side by side; on a CPU more than some 8 to 32 gain nothing."""


def together(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the names of their groups: equal structure, in order, at most LARGEST_GROUP each.

    A pure function of the sweep, finished jobs included, so that a resume continues the same groups.
    """
    members: dict[tuple[object, ...], list[str]] = {}
    for job in jobs:
        members.setdefault(spec.group_key(job.config), []).append(job.identity)
    names: dict[str, str] = {}
    for identities in members.values():
        for start in range(0, len(identities), LARGEST_GROUP):
            chunk = identities[start : start + LARGEST_GROUP]
            names |= dict.fromkeys(chunk, _group_name(chunk))
    return [dataclasses.replace(job, group=names[job.identity]) for job in jobs]


def alone(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs as groups of one."""
    return [dataclasses.replace(job, group=_group_name([job.identity])) for job in jobs]


def _group_name(identities: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(identities).encode()).hexdigest()[:10]


def regroup(jobs: Sequence[Job], pending: Collection[str], stored: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs as they will train, where some are finished.

    A group that was interrupted goes on as it was, its finished members along, so that all has the same bits: one of
    this grid, or one that is `stored`, names of folders by group. Where finished members ran in another group, they
    keep it, and those that are left make one of their own.
    """
    by_name = {job.folder.name: job for job in jobs}
    again: dict[str, str] = {}
    for name, folders in stored.items():
        found = [by_name[folder] for folder in folders if folder in by_name]
        done = [job for job in found if job.identity not in pending]
        if len(found) == len(folders) and len(done) > 0 and all(read_run(job).get("group") == name for job in done):
            again |= dict.fromkeys([job.identity for job in found], name)
    jobs = [dataclasses.replace(job, group=again.get(job.identity, job.group)) for job in jobs]
    members: dict[str, list[Job]] = {}
    for job in jobs:
        members.setdefault(job.group, []).append(job)
    names: dict[str, str] = {}
    for name, group in members.items():
        ran_in = {job.identity: read_run(job).get("group", "") for job in group if job.identity not in pending}
        if name not in stored and any(other != name for other in ran_in.values()):
            left = [job.identity for job in group if job.identity in pending]
            names |= ran_in | dict.fromkeys(left, _group_name(left))
    return [dataclasses.replace(job, group=names.get(job.identity, job.group)) for job in jobs]


def write_groups(folder: Path, jobs: Sequence[Job]) -> None:
    """Write which jobs train together, before work starts, beside the groups of earlier commands."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job.folder.name)
    stored = read_json(folder / GROUPS_FILE)
    write_json(folder / GROUPS_FILE, groups | stored)


class Networks:
    """The task that Hydra calls: with one job's configuration, or `together` with all of them.

    `pending` are the jobs without a result, or all of them under `sweep.fresh`.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.pending = {job.identity: job for job in jobs if job.config.sweep.fresh or not is_finished(job)}
        stored = read_json(jobs[0].folder.parent / GROUPS_FILE)
        self.jobs = regroup(jobs, self.pending, stored)
        self.reused = [job for job in self.jobs if job.identity not in self.pending]
        self.stopped = False

    def __call__(self, config: DictConfig) -> None:
        """Run one job, as Hydra's own launchers do."""
        identity = spec.identity(typed(config))
        if all(job.identity != identity for job in self.jobs):
            raise UserError("hydra/sweeper: this sweeper makes jobs of its own; choose ensemble or basic")
        job = self.pending.pop(identity, None)
        if job is not None:
            with Progress(1) as progress:
                self._run([job], progress)

    def together(self, master: DictConfig, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Run all jobs, group by group."""
        pending = set(self.pending)
        numbered = [(number, job) for number, job in enumerate(self.jobs) if job.identity in pending]
        write_hydra_files(master, numbered)
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(job.group, []).append(job)
        with Progress(len(numbered)) as progress:
            for group in groups.values():
                kept = {job.identity for job in group} - pending
                if len(kept) < len(group):
                    self._run(group, progress, kept)
                    progress.advance(len(group) - len(kept))
        self.pending.clear()  # a sweeper that launches in batches comes again
        return [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in batch]

    def _run(self, group: Sequence[Job], progress: Progress, kept: Collection[str] = ()) -> None:
        if self.stopped:
            return
        running = [job for job in group if job.identity not in kept]
        for job in running:
            # An interrupted run must not leave the old result beside new records.
            (job.folder / RUN_FILE).unlink(missing_ok=True)
        failed = _run_group(group, running, progress.report)
        self.stopped = failed and not group[0].config.sweep.keep_going


def _run_group(group: Sequence[Job], running: Sequence[Job], report: Callable[[str], None]) -> bool:
    """Train a group; return whether a job of those running failed. It is recorded, and no failure of other groups."""
    kept = {job.identity for job in group} - {job.identity for job in running}
    try:
        outcomes = importlib.import_module("bpexp.runner").run_group(group, report=report, kept=kept)
    except UserError:
        raise
    except Exception as error:
        if group[0].config.debug:
            traceback.print_exc()
        for job in running:
            _record_failure(job, f"{type(error).__name__}: {error}")
        return True
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failures:
        if not (outcome.job.folder / RUN_FILE).exists():
            _record_failure(outcome.job, outcome.error)
    return bool(failures)


def _record_failure(job: Job, error: str | None) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {"identity": job.identity, "group": job.group, "commit": current_commit()}
    write_json(job.folder / RUN_FILE, run | {"status": "failed", "error": error, "row": {}})
