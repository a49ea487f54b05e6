"""EXECUTORS: where the groups of a sweep train. Each gives the same files, and the same bits."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bpexp import spec
from bpexp.sweep.cluster import run_on_cluster
from bpexp.sweep.fitting import workers_that_fit
from bpexp.sweep.group import Ends, Group, train
from bpexp.sweep.processes import run_in_processes, start_server
from bpexp.sweep.progress import Progress

Executor = Callable[[Iterator[Group], Progress], Ends]
"""Trains groups, each prepared when it is asked for, and yields each with what became of its jobs as it ends."""

LOGS = ".submitit"
"""What a cluster's jobs say, in the sweep's folder while they run."""

CUDA_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""The files of which each machine has one where torch can have CUDA: only there torch is imported to ask it."""


def run_inline(groups: Iterator[Group], progress: Progress) -> Ends:
    """Train groups in this process, one after another."""
    try:
        for group in groups:
            yield group, train(group, functools.partial(progress.report, group))
    finally:
        runner = sys.modules.get("bpexp.runner")
        if runner is not None:
            runner.forget_ensemble()


def start_early(config: spec.Config) -> None:
    """Start the server of worker processes for a sweep that will have several groups, while it is being composed."""
    sweep, cores = config.sweep, config.sweep.workers or count_cores()
    on_cpu = config.device == "cpu" or (config.device == "auto" and not has_cuda())
    if sweep.executor == "processes" and cores > 1 and can_fork() and on_cpu:
        start_server()


def choose_executor(groups: Sequence[Group], folder: Path) -> Executor:
    """Return the executor that a sweep asks for; a single group, and a CUDA device, need no process but this one."""
    sweep = groups[0].jobs[0].config.sweep
    workers = min(sweep.workers or count_cores(), len(groups))
    if sweep.executor == "submitit":
        return functools.partial(run_on_cluster, sweep=sweep, workers=workers, folder=folder / LOGS)
    if sweep.executor == "inline" or not can_fork() or any(uses_cuda(group) for group in groups):
        workers = 1
    workers, needed = workers_that_fit(groups, workers)
    if needed is not None:
        print(needed, file=sys.stderr)
    return run_inline if workers == 1 else functools.partial(run_in_processes, workers=workers)


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Return whether this process may have workers: not on Windows, and not a worker itself."""
    return hasattr(os, "fork") and not multiprocessing.current_process().daemon


def uses_cuda(group: Group) -> bool:
    """Return whether a group trains on a CUDA device."""
    device = group.jobs[0].config.device
    return device == "cuda" or (device == "auto" and has_cuda())


@functools.cache
def has_cuda() -> bool:
    """Return whether torch has a CUDA device here; imports it only where it could."""
    if not any(Path(device).exists() for device in CUDA_DEVICES):
        return False
    import torch

    return bool(torch.cuda.is_available())
