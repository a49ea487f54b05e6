"""The texts of a .hydra folder are those that one dump of the whole would give."""

import copy
import dataclasses
from pathlib import Path

import pytest
from conftest import configure
from hydra.types import RunMode

from bpexp import spec
from bpexp.entry import _session
from bpexp.sweep.hydra_files import HydraFiles, dump
from bpexp.sweep.job import Job

LONG = "train.until='train_loss<1  " + "and so on " * 20 + "'"
OVERRIDES = {
    "plain": ["model.depth=4", "init=he", "seed=0", "experiment=gradient_flow"],
    "quoted": [r"train.until=\'train_loss < 1\'", "data.root='a: b #c'", "data.root=ü", "x=\t", "- a", "y= "],
    "long": [LONG, f"data.root={'x' * 300}", f"model.name={'x y' * 60}"],
}
VALUES = {
    "default": {},
    "numbers": {"optimizer.lr": 1e-05, "init.gain": -0.0, "seed": 2**62, "model.dropout": 0.0, "train.steps": 1},
    "texts": {"train.until": LONG, "data.root": "1", "model.activation": "null", "loss": "- a: [b"},
    "empty": {"data.root": "", "train.until": "two\nlines", "model.name": "yes"},
}


@pytest.fixture(scope="module")
def master():
    with _session("gradient_flow") as hydra:
        given = ["experiment=gradient_flow", "hydra.sweep.dir=some/where else"]
        return hydra.compose_config("config", given, RunMode.MULTIRUN)


def whole(files, number, job):
    """hydra.yaml by one dump."""
    chosen = copy.deepcopy(files._varying)
    chosen["overrides"]["task"] = job.overrides
    chosen["job"] |= {"id": str(number), "num": number, "override_dirname": ",".join(sorted(job.overrides))}
    chosen["runtime"]["output_dir"] = str(job.folder.absolute())
    chosen["runtime"]["choices"] |= {group: getattr(job.config, group).name for group in spec.GROUPS}
    return dump({"hydra": chosen}) + files._common


@pytest.mark.parametrize("folder", ["a,b=1-0123", "/ö/a folder: with #signs/and 'quotes' " + "that is long " * 9])
@pytest.mark.parametrize("given", OVERRIDES)
def test_hydra_and_overrides(master, tmp_path, given, folder):
    files = HydraFiles(master)
    for number, init in ((0, "he"), (12, "pytorch"), (10**6, "he")):
        job = Job(configure({"init.name": init}), OVERRIDES[given], "0123", Path(folder))
        assert files.hydra(number, job) == whole(files, number, job)
    job = dataclasses.replace(job, folder=tmp_path)
    files.write(3, job)
    assert (tmp_path / ".hydra/hydra.yaml").read_text() == whole(files, 3, job)
    assert (tmp_path / ".hydra/overrides.yaml").read_text() == dump(OVERRIDES[given])


def test_config(master):
    files = HydraFiles(master)
    # One writer for all: equal values of another type, or zeros of another sign, are not taken for each other.
    for values in (*VALUES.values(), {"init.gain": 0.0}, {"init.gain": -0.0}):
        config = configure(values)
        assert files.config(Job(config, [], "0123", Path())) == dump(dataclasses.asdict(config))
