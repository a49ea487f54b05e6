"""Which jobs of a sweep train together: a pure function of the sweep, written down before work starts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from bpexp import spec
from bpexp.chunks import MOST, chunk_size
from bpexp.sweep.files import read_json, write_json
from bpexp.sweep.job import Job
from bpexp.sweep.results import read_run

GROUPS_FILE = "groups.json"

LARGEST_GROUP = MOST
"""Networks side by side, whatever their size; `chunk_size` says how many of one size."""

FEW_NUMBERS = {"model.depth": 2**14, "model.activation": 2**13}
"""In a layer's outputs, of all networks of one structure together: with fewer it is faster to train these networks with
others that differ from them in this key alone. Below it what a step costs is mostly the calls.
"""


def together(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the names of their groups: equal structure, in order, at most `chunk_size` each.

    Structures that have few networks are joined with others of which that is true and which differ in depth alone, and
    what is then left of them with those that differ in activation alone.

    A pure function of the sweep, finished jobs included, so that a resume continues the same groups.
    """
    names: dict[str, str] = {}
    for group in _groups(jobs):
        for chunk in _chunks(sorted(group, key=_order)):
            names |= dict.fromkeys([job.identity for job in chunk], name_of(chunk))
    return [dataclasses.replace(job, group=names[job.identity]) for job in jobs]


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield the jobs of one structure, or of several that are joined."""
    structures: dict[object, list[Job]] = {}
    for job in jobs:
        structures.setdefault(spec.group_key(job.config), []).append(job)
    left = list(structures.values())
    for key, few in FEW_NUMBERS.items():
        alike: dict[object, list[list[Job]]] = {}
        for number, group in enumerate(left):
            config = group[0].config
            small = len(group) * config.train.batch_size * config.model.width < few
            alike.setdefault(spec.group_key(config, (key,)) if small else number, []).append(group)
        yield from (list(itertools.chain(*groups)) for groups in alike.values() if len(groups) > 1)
        left = [groups[0] for groups in alike.values() if len(groups) == 1]
    yield from left


def _chunks(group: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Cut a group into as few parts as may be, of equal size but for the last."""
    largest = min(LARGEST_GROUP, chunk_size(group[0].config))
    size = -(-len(group) // -(-len(group) // largest))
    for start in range(0, len(group), size):
        yield group[start : start + size]


def _order(job: Job) -> tuple[int, int]:
    return spec.order(job.config)


def name_of(group: Sequence[Job]) -> str:
    """Return the name of a group, by its jobs in their order."""
    return hashlib.sha256(" ".join(job.identity for job in group).encode()).hexdigest()[:10]


def alone(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs as groups of one."""
    return [dataclasses.replace(job, group=name_of([job])) for job in jobs]


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
    names: dict[str, str] = {}
    for name, group in members(jobs).items():
        ran_in = {job.identity: read_run(job).get("group", "") for job in group if job.identity not in pending}
        if name in stored:
            changed = {job.folder.name for job in group} != set(stored[name])
        else:
            changed = any(other != name for other in ran_in.values())
        if changed:
            left = [job for job in group if job.identity in pending]
            names |= ran_in | dict.fromkeys([job.identity for job in left], name_of(left))
    return [dataclasses.replace(job, group=names.get(job.identity, job.group)) for job in jobs]


def members(jobs: Sequence[Job], stored: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[Job]]:
    """Return the jobs of each group in the order in which they train: that which is `stored`, or `spec.order`'s."""
    groups: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=_order):
        groups.setdefault(job.group, []).append(job)
    for name, folders in (stored or {}).items():
        if name in groups and {job.folder.name for job in groups[name]} == set(folders):
            groups[name].sort(key=lambda job: folders.index(job.folder.name))
    return groups


def write_groups(folder: Path, jobs: Sequence[Job]) -> None:
    """Write which jobs train together, before work starts, beside the groups of earlier commands."""
    groups = {name: [job.folder.name for job in group] for name, group in members(jobs).items()}
    write_json(folder / GROUPS_FILE, groups | read_groups(folder))


def read_groups(folder: Path) -> dict[str, list[str]]:
    """Return the names of folders by group; nothing where none are written, or what is there is damaged."""
    groups = read_json(folder / GROUPS_FILE)
    whole = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in groups.values())
    return groups if whole else {}
