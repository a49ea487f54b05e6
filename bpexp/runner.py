"""Trains a group of jobs together, and leaves each job's folder with its records, its events and its summary."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import platform
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import polars
import torch

from bpexp.dashboard import write_run
from bpexp.data import DATA
from bpexp.ensemble import DTYPES, resolve_device
from bpexp.models import DeadNetworkError
from bpexp.records import Recorder, write_records
from bpexp.spec import Config
from bpexp.sweep.files import write_json
from bpexp.sweep.job import Job
from bpexp.sweep.results import MEASURE_COLUMNS, RUN_FILE, current_commit
from bpexp.train import Divergence, train
from bpexp.verdict import judge

PACKAGES = ("torch", "numpy", "polars", "hydra-core", "tensorboard", "scikit-learn")

TRAINED_ACCURACY, TRAINED_LOSS = 0.8, 0.5
"""The line: training accuracy on classes; on a regression the loss, in variances of the targets."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: str
    error: str | None


def run_group(jobs: Sequence[Job], *, report: Callable[[str], None], kept: Collection[str] = ()) -> list[Outcome]:
    """Train the networks of jobs of one structure side by side, and write what they showed.

    A job's run.json is written last: it says that the job is finished. On the CPU one thread works: sums are then in
    the same order whatever the machine, and a core that others use as well does not stop the rest.

    A network that cannot be initialized as asked fails; the others train without it.

    kept:    identities of finished jobs, which train along only so that the group is the same; they stay as they are
    Raises:  ValueError: jobs of different structure
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs, failed = list(jobs), list[Outcome]()
    try:
        while jobs:
            try:
                return failed + _run_group(jobs, report, kept)
            except DeadNetworkError as error:
                job = jobs.pop(error.network)
                failed += [Outcome(job, "failed", str(error))] if job.identity not in kept else []
        return failed
    finally:
        torch.set_num_threads(threads)


def _run_group(jobs: Sequence[Job], report: Callable[[str], None], kept: Collection[str]) -> list[Outcome]:
    configs = [job.config for job in jobs]
    device = resolve_device(configs[0].device)
    started = time.monotonic()
    recorder = Recorder(len(jobs), configs[0].model.depth)
    model, steps = configs[0].model, configs[0].train.steps
    for snapshot in train(configs, device):
        recorder.add(snapshot)
        networks = "network" if len(jobs) == 1 else "networks"
        speed = snapshot.step * len(jobs) / (time.monotonic() - started)
        rate = f", {speed:,.0f} network-steps/s" if snapshot.step else ""
        report(f"depth {model.depth}, {model.activation}: {len(jobs)} {networks}, step {snapshot.step}/{steps}{rate}")
    # A network's share of the group's time; what is one number for each is written for each.
    seconds = (time.monotonic() - started) / len(jobs)
    divergences = [recorder.diverged.get(network) for network in range(len(jobs))]
    left = zip(jobs, recorder.records(), divergences, strict=True)
    return [_try_to_leave(job, *rest, device, seconds) for job, *rest in left if job.identity not in kept]


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
    write_run(job.folder, records, job.config, {"status": status, **row})
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
    layer = polars.col("layer")
    first = records.filter((polars.col("step") == 0) & (polars.col("measure") == "delta_rms"))
    # What passes a closed gate is zero whatever the gradient: such a branch has no say in the verdict.
    gates = records.filter((polars.col("step") == 0) & (polars.col("measure") == "gate"))
    first = first.filter(~layer.is_in(gates.filter(gates["value"] == 0)["layer"].implode()))
    # A delta is B times a gradient, whose digits are lost below the smallest normal number.
    smallest = config.train.batch_size * torch.finfo(DTYPES[config.dtype]).tiny
    verdict = judge(first.filter(layer <= config.model.depth)["value"], smallest)
    last = records.filter(layer.is_null()).group_by("measure").last()
    final = {name: value for name, value in last.select("measure", "value").rows() if name in MEASURE_COLUMNS}
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
