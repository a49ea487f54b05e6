"""Networks of different depth and activation in one group: the numbers and the records that each has alone."""

import itertools

import numpy as np
import pytest
import torch
from conftest import configure

from bpexp import spec
from bpexp.ensemble import Ensemble
from bpexp.models import MLP
from bpexp.records import Recorder
from bpexp.spec import ACTIVATIONS, UNMIXED
from bpexp.train import Divergence, Loop

TOLERANCE = 1e-12
SMALL = {"model.width": 6, "train.batch_size": 8, "train.steps": 4, "train.measure_every": 3, "dtype": "float64"}
DEPTHS, TWO = (5, 4, 4, 2), (4, 2)
MIXED = ("relu", "identity", "softplus", "elu", "hardtanh")

BATCH, LAYER = {"model.norm": "batch"}, {"model.norm": "layer"}
REZERO = {"model.residual": "rezero", "init.gate": 0.5}
SCALED = {"model.residual": "scaled"}
DROPOUT = {"model.dropout": 0.3, "model.input_dropout": 0.1}
ADAM = {"optimizer.name": "adam", "optimizer.lr": 2e-4, "optimizer.beta1": 0.9, "optimizer.beta2": 0.99}
MOMENTUM = {"optimizer.name": "momentum", "optimizer.momentum": 0.9}
DECAY = {"optimizer.l2": 0.05, "optimizer.weight_decay": 0.02}
CLIPS = {
    "norm": {"clip.name": "norm", "clip.threshold": 0.2},
    "value": {"clip.name": "value", "clip.threshold": 0.02},
    "adaptive": {"clip.name": "adaptive", "clip.threshold": 0.02},
}
CASES = {
    "plain": {},
    "dropout": DROPOUT | MOMENTUM,
    "relu-dropout": DROPOUT | {"model.activation": "relu"},
    "batch-scaled-adam": BATCH | SCALED | ADAM,
    "batch-dropout": BATCH | DROPOUT | {"optimizer.schedule": "cosine"},
    "layer-rezero-clip-adaptive": LAYER | REZERO | CLIPS["adaptive"] | DECAY,
    "scaled-clip-norm": SCALED | CLIPS["norm"] | DECAY | {"optimizer.name": "nesterov", "optimizer.momentum": 0.8},
    "rezero-prelu-clip-value": REZERO | CLIPS["value"] | {"model.activation": "prelu"},
    "plain-branches-max-norm": {"model.residual": "plain", "optimizer.max_norm": 0.9, "optimizer.warmup": 3},
    "layer-adamw": LAYER | ADAM | {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "optimizer.warmup": 3},
    "lsuv": {"init.name": "lsuv", "model.activation": "relu"},
    "fixup": {"init.name": "fixup", "init.gate": 1.0, "model.residual": "rezero"},
    "mse": {"data.name": "regression", "loss": "mse", "optimizer.lr": 0.01},
}


def ragged(values, kinds):
    """Networks of each (depth, activation) that differ in every number that is a network's own; two share a seed."""
    configs = []
    for number, (depth, activation) in enumerate(kinds):
        config = configure(SMALL | values | {"model.depth": depth, "model.activation": activation})
        config.seed = number // 2
        config.optimizer.lr *= 1 + number % 3
        config.init.gain = config.init.gain if config.init.name in ("lsuv", "fixup") else 1 + 0.1 * number
        if config.clip.threshold is not None:
            config.clip.threshold *= 1 + number
        if config.model.dropout > 0:
            config.model.dropout += 0.1 * number
        if config.optimizer.beta1 is not None:
            config.optimizer.beta1 -= 0.1 * (number % 2)
        if config.optimizer.max_norm is not None:
            config.optimizer.max_norm += 0.1 * number
        if config.optimizer.warmup:
            config.optimizer.warmup += number % 2
        configs.append(config)
    return configs


def of_depths(values):
    return ragged(values, [(depth, values.get("model.activation", "tanh")) for depth in DEPTHS])


def of_activations(values):
    return ragged(values, [(4, name) for name in MIXED for _ in range(2)])


def of_both(values):
    return ragged(values, sorted(itertools.product(TWO, MIXED), key=lambda kind: -kind[0]))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def share(ensemble, flat, network):
    """The parameters of a network in a flat vector, in its own order."""
    depth, views = ensemble.configs[network].model.depth, ensemble.layout.views(flat)
    of = {
        (slot.kind, min(slot.layer, depth + 1)): view[network]
        for slot, view in zip(ensemble.model.slots(), views, strict=True)
        if slot.layer <= depth or slot.layer == ensemble.model.depth + 1
    }
    return [of[slot.kind, slot.layer] for slot in ensemble.model.alone(network).slots()]


def assert_steps_agree(configs):
    """From the same state and the same streams every step of a network is the same alone and in the group."""
    group, singles = Ensemble(configs), [Ensemble([config]) for config in configs]
    for network, single in enumerate(singles):
        assert all(map(torch.equal, share(group, group.values, network), (p[0] for p in single.parameters)))
    for _ in range(3):
        losses = group.compute().clone()
        for network, single in enumerate(singles):
            close(single.compute()[0], losses[network])
            close([g[0] for g in single.layout.views(single.grads)], share(group, group.grads, network))
            single.update()
        group.update()
        for network, single in enumerate(singles):
            close([p[0] for p in single.parameters], share(group, group.values, network))
            close(single.clipped[0], group.clipped[network])
            depth = configs[network].model.depth
            close(single.statistics.values[:, :, 0], group.statistics.values[:, :depth, network])
            for parameter, value in zip(single.parameters, share(group, group.values, network), strict=True):
                parameter[0] = value
    return group


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_step_of_networks_of_different_depth_is_that_of_each_alone(values):
    group = assert_steps_agree(of_depths(values))
    assert [len(p) for p in group.model.sort(group.parameters).weights] == [4, 4, 3, 3, 1, 4]
    if "clip.name" in values:
        assert group.clipped.any()


ACTIVATION_CASES = {
    name: CASES[name] for name in ("dropout", "batch-scaled-adam", "layer-rezero-clip-adaptive", "lsuv")
}


@pytest.mark.parametrize("values", ACTIVATION_CASES.values(), ids=ACTIVATION_CASES)
@pytest.mark.parametrize("kinds", [of_activations, of_both])
def test_a_step_of_networks_of_different_activation_is_that_of_each_alone(kinds, values):
    assert_steps_agree(kinds(values))


def test_every_activation_but_the_one_that_learns_mixes_with_the_others():
    names = [name for name in ACTIVATIONS if name != UNMIXED]
    group = assert_steps_agree(ragged({"train.steps": 0}, [(2, name) for name in names]))
    assert group.model.parts(len(names)) == [(name, 1) for name in names]
    with pytest.raises(ValueError, match="different structure"):
        Ensemble(ragged({}, [(2, "relu"), (2, UNMIXED)]))
    with pytest.raises(ValueError, match="others of their kind alone"):
        MLP(4, 2, 3, 5, "relu", activations=("relu", UNMIXED))


def test_networks_that_do_not_lie_deepest_first_are_refused():
    with pytest.raises(ValueError, match=r"the depths \(2, 4\) do not lie deepest first"):
        Ensemble(ragged({}, [(2, "tanh"), (4, "tanh")]))
    configs = ragged({}, [(2, "tanh"), (4, "relu"), (2, "relu"), (4, "tanh")])
    ordered = [(config.model.depth, config.model.activation) for config in sorted(configs, key=spec.order)]
    assert ordered == [(4, "relu"), (4, "tanh"), (2, "relu"), (2, "tanh")]


def test_a_uniform_group_has_no_operator_more_than_before():
    """No slice, no join, no factor of each network: a group of one structure runs what one network does."""
    values = SCALED | DROPOUT | {"model.activation": "tanh", "model.depth": 3}
    rules = [
        [call.rule.name for call in Ensemble(ragged(values, [(3, "tanh")] * r)).training.plan.tape.calls]
        for r in (1, 3)
    ]
    assert rules[0] == rules[1]
    assert not {"slice", "cat", "network_scale", "network_activation"} & set(rules[0])


def records_of(configs):
    loop, recorder = Loop(Ensemble(configs)), Recorder([config.model.depth for config in configs])
    for snapshot in loop.run():
        recorder.add(snapshot)
    return list(recorder.records()), recorder.diverged


RECORDED = {
    "depths": of_depths(REZERO | LAYER | CLIPS["norm"]),
    "dropout": of_depths(DROPOUT | BATCH | {"model.activation": "relu"}),
    "activations": of_activations({}),
    "both": of_both(DROPOUT),
}


@pytest.mark.parametrize("configs", RECORDED.values(), ids=RECORDED)
def test_records_are_those_of_each_alone(configs):
    together, _ = records_of(configs)
    for config, records in zip(configs, together, strict=True):
        ((alone,), _) = records_of([config])
        assert records.drop("value").equals(alone.drop("value"))
        assert records.schema == alone.schema
        np.testing.assert_allclose(records["value"].to_numpy(), alone["value"].to_numpy(), rtol=1e-9, atol=1e-10)
        assert records["value"].is_finite().all()


def test_a_network_that_diverges_is_found_in_its_own_layers_and_disturbs_no_other():
    kinds = [(6, "relu"), (4, "relu"), (4, "relu"), (2, "relu")]
    wild, tame = (ragged({"dtype": "float32", "init.name": "he", "train.steps": 12}, kinds) for _ in range(2))
    wild[1].optimizer.lr = wild[3].optimizer.lr = 1e6
    together, diverged = records_of(wild)
    assert set(diverged) == {1, 3}
    for network in (1, 3):
        ((alone,), found) = records_of([wild[network]])
        assert diverged[network] == found[0]
        assert isinstance(found[0], Divergence)
        assert together[network].drop("value").equals(alone.drop("value"))
    calm, none = records_of(tame)
    assert none == {}
    for network in (0, 2):
        assert together[network].equals(calm[network])
