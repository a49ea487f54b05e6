"""A job's configuration is the one that Hydra composes, value by value and type by type."""

import dataclasses

import pytest
from hydra.types import RunMode

from bpexp import spec
from bpexp.entry import _session
from bpexp.spec import UserError
from bpexp.sweep.compose import Composer
from bpexp.sweep.job import typed

LINES = {
    "numbers": ["seed=7", "model.depth=12", "optimizer.lr=3", "init.gain=-0.0", "optimizer.l2=1e-3", "train.steps=0"],
    "texts": ["train.until='train_loss<1'", "data.root=123", 'data.root="a b"', "model.activation=relu"],
    "groups": ["init=pytorch", "optimizer=momentum", "optimizer.momentum=0.5", "clip=norm", "clip.threshold=2"],
    "null and words": ["data.train_size=null", "sweep.fresh=yes", "debug=1", "init.bias_std=null"],
    "twice": ["seed=1", "model.depth=3", "seed=2", "init=he", "init=lecun"],
    "dependent": ["model.depth=5", "model.width=${model.depth}", "train.steps=${train.batch_size}"],
    "large": ["seed=123456789012345678", "seed=0", "model.width=1_000"],
}


@pytest.fixture(scope="module")
def hydra():
    with _session("gradient_flow") as hydra:
        yield hydra


@pytest.fixture(scope="module")
def composer(hydra):
    return Composer(hydra.config_loader, [], spec.Config)


@pytest.mark.parametrize("name", LINES)
def test_compose_is_hydras(hydra, composer, name):
    lines = [*LINES[name], "experiment=gradient_flow"]
    expected = typed(hydra.compose_config("config", lines, RunMode.RUN))
    for _ in range(2):  # once to read the values, once to take them
        found = composer.compose(lines)
        assert repr(dataclasses.asdict(found)) == repr(dataclasses.asdict(expected))  # 1, 1.0 and True differ here


def test_jobs_share_nothing(composer):
    first, second = (composer.compose(["model.depth=3", "experiment=gradient_flow"]) for _ in range(2))
    first.model.depth, first.seed = 99, 99
    assert (second.model.depth, second.seed) == (3, 0)
    assert composer.compose(["experiment=gradient_flow"]).model.depth == 16


@pytest.mark.parametrize("line", ["model.depth=four", "model.depth=1.5", "seed=null", "optimizer.lr=[1]"])
def test_a_wrong_type_is_named_each_time(composer, line):
    for _ in range(2):
        with pytest.raises(UserError, match=f"^{line.partition('=')[0]}: .* is not "):
            composer.compose([line, "experiment=gradient_flow"])
