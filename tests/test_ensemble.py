"""An ensemble that gets other networks in the place of its own: all is as in one that is made of them."""

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import configure

from bpexp import runner
from bpexp.ensemble import Ensemble
from bpexp.train import Loop

SMALL = {"model.depth": 3, "model.width": 8, "train.batch_size": 16, "train.steps": 6, "train.measure_every": 2}
ADAM = {"optimizer.name": "adam", "optimizer.lr": 0.002, "optimizer.beta1": 0.9, "optimizer.beta2": 0.99}
CASES = {
    "plain": {},
    "batch-dropout": {"model.norm": "batch", "model.dropout": 0.3, "model.input_dropout": 0.1, "label_smoothing": 0.1},
    "adam-clip": ADAM | {"clip.name": "norm", "clip.threshold": 0.2, "optimizer.warmup": 3},
    "adaptive": {"clip.name": "adaptive", "clip.threshold": 0.02, "model.norm": "layer", "model.residual": "rezero"},
    "momentum": {"optimizer.name": "momentum", "optimizer.momentum": 0.9, "optimizer.schedule": "cosine"},
    "lsuv": {"init.name": "lsuv", "model.activation": "prelu"},
    "mse-on-classes": {"loss": "mse", "optimizer.l2": 0.1, "optimizer.max_norm": 1.0},
    "regression": {"loss": "mse", "data.name": "regression", "optimizer.lr": 0.01},
}


def shown(ensemble):
    """All that a loop tells, as arrays."""
    found = []
    for snapshot in Loop(ensemble).run():
        found += [snapshot.train_loss, *snapshot.networks.values(), *(values for _, values in snapshot.layers.values())]
    return found


def networks(case, seeds, **numbers):
    return [configure({**SMALL, **CASES[case], **numbers, "seed": seed}) for seed in seeds]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_renewed_ensemble_shows_what_a_fresh_one_shows(case):
    ensemble = Ensemble(networks(case, (3, 1, 3), **{"optimizer.l2": 0.01}))
    shown(ensemble)
    others = networks(case, (7, 2, 7), **{"optimizer.weight_decay": 0.1})
    assert ensemble.fits(others, "cpu")
    ensemble.renew(others)
    assert_same(shown(ensemble), shown(Ensemble(others)))


def test_a_renewed_ensemble_forgets_that_one_went_to_infinity():
    ensemble = Ensemble(networks("plain", (0, 1), **{"optimizer.lr": 1e30}))
    shown(ensemble)
    others = networks("plain", (2, 3))
    ensemble.renew(others)
    assert_same(shown(ensemble), shown(Ensemble(others)))


def test_networks_of_different_depths_are_renewed():
    def ragged(seed):
        return [configure({**SMALL, "model.depth": depth, "model.dropout": 0.2, "seed": seed}) for depth in (4, 2)]

    ensemble = Ensemble(ragged(0))
    shown(ensemble)
    assert ensemble.fits(ragged(1), "cpu")
    ensemble.renew(ragged(1))
    assert_same(shown(ensemble), shown(Ensemble(ragged(1))))


@pytest.mark.parametrize(
    "change",
    [
        {"model.width": 9},
        {"model.depth": 4},
        {"model.activation": "relu"},
        {"model.dropout": 0.1},
        {"train.steps": 7},
        {"data.train_size": 200},
        {"clip.name": "value", "clip.threshold": 1.0},
    ],
)
def test_what_is_recorded_otherwise_does_not_fit(change):
    ensemble = Ensemble(networks("plain", (0, 1)))
    assert not ensemble.fits(networks("plain", (2, 3), **change), "cpu")


def test_which_networks_share_a_seed_is_part_of_the_structure():
    ensemble = Ensemble(networks("plain", (0, 0)))
    assert ensemble.fits(networks("plain", (5, 5)), "cpu")
    assert not ensemble.fits(networks("plain", (5, 6)), "cpu")


def test_the_runner_makes_another_where_networks_do_not_fit():
    first = runner._take_ensemble(networks("plain", (0,)), torch.device("cpu"))
    runner._LAST.append(first)
    assert runner._take_ensemble(networks("plain", (1,)), torch.device("cpu")) is first
    runner._LAST.append(first)
    assert runner._take_ensemble(networks("momentum", (1,)), torch.device("cpu")) is not first
    assert not runner._LAST


def test_an_ensemble_that_is_closed_leaves_no_memory_behind():
    gc.collect()
    gc.disable()
    try:
        ensemble = Ensemble(networks("plain", (0, 1), **{"optimizer.lr": 1e30, "model.activation": "relu"}))
        shown(ensemble)  # all of its plans
        assert {"keeping", "measuring", "evaluation"} <= set(vars(ensemble))
        gone = [weakref.ref(ensemble), weakref.ref(ensemble.training.plan), weakref.ref(ensemble.keeping.plan)]
        ensemble.close()
        del ensemble
        assert [one() for one in gone] == [None, None, None]
    finally:
        gc.enable()
