"""Trains a group of jobs together, and leaves each job's folder with its records, its events and its summary."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from bpexp.checkpoint import Checkpoint
from bpexp.dashboard import remove_run, write_run
from bpexp.data import DATA
from bpexp.ensemble import DTYPES, Ensemble, resolve_device
from bpexp.models import DeadNetworkError
from bpexp.plan.products import is_mkl_slow
from bpexp.records import Recorder, write_records
from bpexp.spec import RECORD_VERSION, Config
from bpexp.sweep.checkpoints import checkpoint_folder, remove_checkpoint
from bpexp.sweep.files import clear_unfinished, write_json
from bpexp.sweep.job import Job
from bpexp.sweep.results import MEASURE_COLUMNS, RECORDS_FILE, RUN_FILE, current_commit
from bpexp.threads import one_thread
from bpexp.train import Divergence, Loop
from bpexp.verdict import judge

PACKAGES = ("torch", "numpy", "polars", "hydra-core", "tensorboard", "scikit-learn")

TRAINED_ACCURACY, TRAINED_LOSS = 0.8, 0.5
"""The line: training accuracy on classes; on a regression the loss, in variances of the targets."""


_LAST: list[Ensemble] = []
"""The ensemble of the last group of this process, if that trained to its end: the next may be of the same structure."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: str
    error: str | None


def run_group(jobs: Sequence[Job], *, report: Callable[[int], None], kept: Collection[str] = ()) -> list[Outcome]:
    """Train the networks of jobs of one structure side by side, and write what they showed.

    A job's run.json is written last: it says that the job is finished. On the CPU one thread works: sums are then in
    the same order whatever the machine, and a core that others use as well does not stop the rest.

    A network that cannot be initialized as asked fails; the others train without it. A group that was killed goes on
    from its checkpoint, bit for bit; the checkpoint is there until every job has its result.

    report:  called with the step at which the group starts, if it goes on, and with that of each snapshot
    kept:    identities of finished jobs, which train along only so that the group is the same; they stay as they are
    Raises:  ValueError: jobs of different structure
    """
    folder = checkpoint_folder(jobs)
    jobs, failed = list(jobs), list[Outcome]()
    for job in jobs:
        if job.identity not in kept:
            clear_unfinished(job.folder)
    with one_thread():
        while any(job.identity not in kept for job in jobs):
            try:
                return failed + _run_group(jobs, folder, report, kept)
            except DeadNetworkError as error:
                job = jobs.pop(error.network)
                failed += [Outcome(job, "failed", str(error))] if job.identity not in kept else []
    remove_checkpoint(folder)
    return failed


def _run_group(
    jobs: Sequence[Job], folder: Path, report: Callable[[int], None], kept: Collection[str]
) -> list[Outcome]:
    configs = [job.config for job in jobs]
    device = resolve_device(configs[0].device)
    started = time.monotonic()
    ensemble = _take_ensemble(configs, device)
    loop = Loop(ensemble)
    recorder = Recorder([config.model.depth for config in configs])
    checkpoint = Checkpoint(folder, _describe(jobs, ensemble), configs[0].sweep.checkpoint_every)
    found = checkpoint.load()
    if found is not None:
        loop.restore(found.loop)
        started -= found.seconds
        for snapshot in found.snapshots:
            recorder.add(snapshot)
        print(f"group {jobs[0].group} goes on at step {loop.step}", file=sys.stderr)
        report(loop.step)

    def save() -> None:
        checkpoint.save(loop.state(), time.monotonic() - started)

    for snapshot in loop.run(between=lambda: save() if checkpoint.due else None):
        recorder.add(snapshot)
        checkpoint.add(snapshot)
        report(snapshot.step)
    if checkpoint.exists:
        save()
    _LAST.append(ensemble)
    # A network's share of the group's time; what is one number for each is written for each.
    seconds = (time.monotonic() - started) / len(jobs)
    divergences = [recorder.diverged.get(network) for network in range(len(jobs))]
    left = zip(jobs, recorder.records(), divergences, strict=True)
    outcomes = [_try_to_leave(job, *rest, device, seconds) for job, *rest in left if job.identity not in kept]
    if all(outcome.status != "failed" for outcome in outcomes):
        checkpoint.remove()
    return outcomes


def _take_ensemble(configs: Sequence[Config], device: torch.device) -> Ensemble:
    """Return an ensemble of these networks: the last group's, renewed, where it fits."""
    last = _LAST.pop() if _LAST else None
    if last is not None and last.fits(configs, device):
        last.renew(configs)
        return last
    if last is not None:
        last.close()
    del last  # before another takes as much memory
    return Ensemble(configs, device)


def forget_ensemble() -> None:
    """Free the memory of the last group's ensemble; whoever trains groups calls it when there are no more."""
    while _LAST:
        _LAST.pop().close()


def _describe(jobs: Sequence[Job], ensemble: Ensemble) -> dict[str, Any]:
    """Return what a checkpoint must have in common with a group to be its own."""
    return {
        "record format": RECORD_VERSION,
        "group": [job.identity for job in jobs],
        "device": ensemble.device.type,
        "library of products": "numpy" if is_mkl_slow() else "torch",
        "structure": [list(shape) for shape in ensemble.layout.shapes],
    }


def _try_to_leave(job: Job, *left: Any) -> Outcome:
    """Do as `_leave`; what fails for one job is not a failure of the networks beside it."""
    try:
        return _leave(job, *left)
    except Exception as error:
        if job.config.debug:
            traceback.print_exc()
        return Outcome(job, "failed", f"{type(error).__name__}: {error}")


def _leave(
    job: Job, records: polars.DataFrame, divergence: Divergence | None, device: torch.device, seconds: float
) -> Outcome:
    started = time.monotonic()
    status = "ok" if divergence is None else "diverged"
    row = summary(records, job.config, divergence)
    write_records(job.folder, records)
    if job.shown:
        write_run(job.folder, records, job.config, {"status": status, **row})
    else:
        remove_run(job.folder)
    run = {
        "identity": job.identity,
        "group": job.group,
        "commit": current_commit(),
        "packages": packages(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seed": job.config.seed,
        "status": status,
        "error": None,
        "records": (job.folder / RECORDS_FILE).stat().st_size,
        "wall_time": seconds + time.monotonic() - started,
        "row": row,
    }
    write_json(job.folder / RUN_FILE, run)
    return Outcome(job, status, None)


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def summary(records: polars.DataFrame, config: Config, divergence: Divergence | None) -> dict[str, Any]:
    """Return a job's columns of the results: the verdict at step 0, and the last whole-network measures.

    What a network showed before it diverged is not its final state, so then there are none.
    """
    # Arrays and lists: a query costs more than what it finds here.
    start = records.head(int(np.searchsorted(records["step"].to_numpy(), 0, side="right")))
    first = list(zip(*(start[name].to_list() for name in ("measure", "layer", "value")), strict=True))
    # What passes a closed gate is zero whatever the gradient: such a branch has no say in the verdict.
    closed = {layer for measure, layer, value in first if measure == "gate" and value == 0}
    hidden = set(range(1, config.model.depth + 1)) - closed
    deltas = [value for measure, layer, value in first if measure == "delta_rms" and layer in hidden]
    # A delta is B times a gradient, whose digits are lost below the smallest normal number.
    smallest = config.train.batch_size * torch.finfo(DTYPES[config.dtype]).tiny
    verdict = judge(deltas, smallest)
    whole = polars.Series(np.isnan(records["layer"].cast(polars.Float64).to_numpy()))
    last = dict(zip(*(records[name].filter(whole).to_list() for name in ("measure", "value")), strict=True))
    final = {name: last[name] for name in MEASURE_COLUMNS if name in last}
    trained = divergence is None and passed(final, DATA[config.data.name].task)
    return {
        "verdict": verdict.word,
        "backward_gain": known(verdict.backward_gain),
        "backward_gain_low": known(verdict.low),
        "backward_gain_high": known(verdict.high),
        "trained": trained,
        "step": records["step"].max(),
        "diverged_step": divergence.step if divergence else None,
        "diverged_layer": divergence.layer if divergence else None,
        **({name: known(value) for name, value in final.items()} if divergence is None else {}),
    }


def passed(final: dict[str, float], task: str) -> bool:
    """Return whether a network trained: its last training accuracy, or loss of a regression, passed the line."""
    if task == "regression":
        return final["train_loss"] <= TRAINED_LOSS
    return final["train_accuracy"] >= TRAINED_ACCURACY


def known(value: float) -> float | None:
    """Return a finite number, or nothing where there is none."""
    return value if math.isfinite(value) else None
