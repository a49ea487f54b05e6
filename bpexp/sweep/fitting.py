"""Makes a sweep fit the memory: groups are cut, and no more of them train at once than there is room for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from bpexp import memory, spec
from bpexp.sweep.group import Group
from bpexp.sweep.groups import members, name_of
from bpexp.sweep.job import Job


def limit_of(config: spec.Config, *, ever: bool = False) -> int | None:
    """Return how many bytes there are for the groups that train at once; None where that is not known.

    ever:  were nothing else in the memory
    """
    sweep = config.sweep
    if sweep.executor == "submitit":
        return None if sweep.memory is None else int(sweep.memory * 1e9)
    return _usable(config.device, ever)


@functools.cache
def _usable(device: str, ever: bool) -> int | None:
    """Return what one command goes by, from its beginning to its end."""
    if device == "cpu":
        return memory.usable(ever=ever)
    from bpexp.sweep.executors import has_cuda

    return memory.usable("cuda" if has_cuda() else "cpu", ever=ever)


def why_too_large(config: spec.Config) -> str | None:
    """Return what to say of a network that does not fit by itself, or None."""
    limit = limit_of(config)
    if limit is None or memory.estimate([config]).total <= limit:
        return None
    return memory.too_large(config, limit)


def fit(jobs: Sequence[Job], stored: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs with the groups that do not fit cut into pieces; a group that was cut before stays as it was.

    A group that is stored goes on as it was, whatever is free now, unless all of this machine's memory is too small.

    stored: names of folders by group, as written before work started
    """
    names: dict[str, str] = {}
    for name, group in members(jobs, stored).items():
        limit = limit_of(group[0].config, ever=name in stored)
        if name in stored and (limit is None or memory.estimate([job.config for job in group]).total <= limit):
            continue
        for piece in _pieces(group, stored, limit):
            names |= dict.fromkeys([job.identity for job in piece], name_of(piece))
    return [dataclasses.replace(job, group=names.get(job.identity, job.group)) for job in jobs]


def _pieces(group: Sequence[Job], stored: Mapping[str, Sequence[str]], limit: int | None) -> list[Sequence[Job]]:
    by_folder = {job.folder.name: job for job in group}
    before = [folders for folders in stored.values() if by_folder.keys() > set(folders)]
    if sorted(folder for folders in before for folder in folders) == sorted(by_folder):
        return [[by_folder[folder] for folder in folders] for folders in before]
    sizes = [len(group)] if limit is None else memory.split([job.config for job in group], limit)
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [group[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def workers_that_fit(groups: Sequence[Group], wanted: int) -> tuple[int, str | None]:
    """Return how many groups can train at once, and a line that says what they take; None where that is not known."""
    limit = limit_of(groups[0].jobs[0].config)
    if limit is None:
        return wanted, None
    totals = [memory.estimate([job.config for job in group.jobs]).total for group in groups]
    workers = memory.workers_that_fit(totals, wanted, limit)
    who = f"{workers} workers, at most {memory.told(max(totals))} each" if workers > 1 else memory.told(max(totals))
    return workers, f"memory: {who if workers > 1 else f'at most {who}'} of {memory.told(limit)}"
