import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import configure

from bpexp import spec
from bpexp.data import DATA
from bpexp.init import INITS

CONF = Path(__file__).parents[1] / "conf"


# Each value differs from the default and is typed as its key; what validates together does not matter here.
CHANGED = {
    "seed": 1,
    "device": "cpu",
    "dtype": "float64",
    "loss": "mse",
    "label_smoothing": 0.1,
    "data.name": "regression",
    "data.root": "somewhere",
    "data.train_size": 500,
    "model.name": "other",
    "model.depth": 5,
    "model.width": 8,
    "model.activation": "relu",
    "model.norm": "batch",
    "model.residual": "plain",
    "model.dropout": 0.5,
    "model.input_dropout": 0.5,
    "init.name": "he",
    "init.gain": 2.0,
    "init.bias_std": 0.1,
    "init.gate": 0.5,
    "optimizer.name": "momentum",
    "optimizer.lr": 0.1,
    "optimizer.momentum": 0.5,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.9,
    "optimizer.l2": 0.1,
    "optimizer.weight_decay": 0.1,
    "optimizer.max_norm": 1.0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 5,
    "clip.name": "norm",
    "clip.threshold": 1.0,
    "train.steps": 10,
    "train.batch_size": 64,
    "train.measure_every": 5,
    "train.until": "train_loss<1",
    "train.evaluate_every": 7,
    "sweep.executor": "other",
    "sweep.checkpoint_every": 1.0,
    "sweep.memory": 1.0,
    "sweep.minutes": 5,
    "sweep.partition": "short",
    "sweep.cluster": "local",
    "sweep.workers": 2,
    "sweep.max_runs": 3,
    "sweep.fresh": True,
    "sweep.keep_going": False,
    "debug": True,
}
SWEEP = {name for name in CHANGED if name.startswith("sweep.")}
# The identity has a folder's contents, not its path; digits has no folder.
NOT_IDENTITY = {"data.root", "device", "debug", *SWEEP}
PER_NETWORK = {
    *("seed", "init.name", "init.gain", "init.bias_std", "init.gate"),
    *("optimizer.lr", "optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "optimizer.l2"),
    *("optimizer.weight_decay", "clip.threshold", "debug", *SWEEP),
}


@pytest.mark.parametrize("name", spec.keys())
def test_identity_and_group_of_every_key(name):
    default, changed = spec.Config(), configure({name: CHANGED[name]})
    assert (spec.identity(default) == spec.identity(changed)) == (name in NOT_IDENTITY)
    assert (spec.group_key(default) == spec.group_key(changed)) == (name in PER_NETWORK)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label_smoothing", (0.1, 0.2)),
        ("model.dropout", (0.1, 0.5)),
        ("model.input_dropout", (0.1, 0.5)),
        ("optimizer.max_norm", (1.0, 2.0)),
        ("optimizer.warmup", (5, 10)),
    ],
)
def test_what_costs_a_network_something_groups_by_whether_it_is_used(name, values):
    some, more = (configure({name: value}) for value in values)
    assert spec.group_key(some) == spec.group_key(more) != spec.group_key(spec.Config())
    assert spec.identity(some) != spec.identity(more)


@pytest.mark.parametrize(("one", "same"), [(1, 1.0), (0.0, -0.0), (0.1, 0.1)])
def test_equal_numbers_hash_alike(one, same):
    assert spec.identity(configure({"init.gain": one})) == spec.identity(configure({"init.gain": same}))


def test_identity_has_the_record_version(monkeypatch):
    before = spec.identity(spec.Config())
    monkeypatch.setattr(spec, "RECORD_VERSION", spec.RECORD_VERSION + 1)
    assert spec.identity(spec.Config()) != before


def test_identity_is_stable():
    assert spec.identity(spec.Config()) == "5748d0bb76"


@pytest.mark.parametrize("group", spec.GROUPS)
def test_conf_has_a_file_for_every_option(group):
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")}
    assert set(files) == set(spec.keys()[f"{group}.name"].choices)
    for stem, content in files.items():
        assert content.get(group, content)["name"] == stem


def test_tables_give_the_choices():
    assert spec.keys()["init.name"].choices == tuple(INITS)
    assert spec.keys()["data.name"].choices == tuple(DATA)


def test_flatten_has_every_key():
    config = spec.Config()
    assert list(spec.flatten(config)) == list(spec.keys())
    assert spec.flatten(config)["model.depth"] == config.model.depth
    assert all(dataclasses.is_dataclass(getattr(config, group)) for group in spec.GROUPS)


def test_spec_does_not_import_torch():
    code = "import sys, bpexp.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
