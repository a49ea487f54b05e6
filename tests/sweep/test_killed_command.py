"""kill -9 of the command itself, with two workers: the same command again finds what an uninterrupted one finds."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import polars

from bpexp.entry import call

KILLS, LONGEST_WAIT = 2, 60
ROOT = Path(__file__).parents[2]


GRID = [
    *("-m", "model.depth=3,6", "model.activation=tanh,relu", "init=he", "seed=0,1,2", "model.width=8"),
    *("train.batch_size=16", "train.steps=600", "train.measure_every=50", "model.dropout=0.1"),
    *("sweep.workers=2", "sweep.checkpoint_every=0.1"),
]


def start(folder):
    command = [sys.executable, "-m", "experiments.gradient_flow", *GRID, f"hydra.run.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def records(folder):
    return {path.parent.name: polars.read_parquet(path) for path in folder.glob("*/records.parquet")}


def test_a_command_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    rng, killed = random.Random(0), 0
    for _ in range(KILLS):
        process = start(tmp_path / "cut")
        deadline = time.monotonic() + LONGEST_WAIT
        while not list((tmp_path / "cut").glob("*=*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        killed += process.poll() is None
        process.kill()
        process.communicate()
    assert killed > 0
    process = start(tmp_path / "cut")
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert "tensorboard --logdir" in said
    call("gradient_flow", [*GRID, f"hydra.run.dir={tmp_path / 'whole'}"])
    whole, cut = records(tmp_path / "whole"), records(tmp_path / "cut")
    assert len(whole) == 12
    assert cut.keys() == whole.keys()
    assert all(cut[job].equals(whole[job]) for job in whole)
    results = [polars.read_parquet(tmp_path / name / "results.parquet") for name in ("whole", "cut")]
    assert results[1].equals(results[0])
