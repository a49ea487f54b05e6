"""The training step of R networks against the Functions, torch autograd and torch.optim, alone and in a group."""

import itertools

import numpy as np
import pytest
import torch
from conftest import configure
from torch_network import TorchNetwork

from bpexp.ensemble import Ensemble, resolve_device
from bpexp.models import LOSSES
from bpexp.plan import Plan
from bpexp.spec import ACTIVATIONS
from bpexp.train import Divergence, Loop, train

NETWORKS, STATES = 16, 5
TOLERANCE = 1e-12

SMALL = {"model.depth": 3, "model.width": 12, "train.batch_size": 16, "train.steps": 100, "dtype": "float64"}
MSE = {"data.name": "regression", "loss": "mse"}
MOMENTUM = {"optimizer.name": "momentum", "optimizer.momentum": 0.9}
NESTEROV = {"optimizer.name": "nesterov", "optimizer.momentum": 0.8}
ADAM = {"optimizer.name": "adam", "optimizer.lr": 0.002, "optimizer.beta1": 0.9, "optimizer.beta2": 0.99}
ADAMW = ADAM | {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1}
BATCH, LAYER = {"model.norm": "batch"}, {"model.norm": "layer"}
REZERO = {"model.residual": "rezero", "init.gate": 0.5}
SMOOTHING = {"label_smoothing": 0.1}
CONFIGURATIONS = {
    **{activation: {"model.activation": activation} for activation in ACTIVATIONS},
    "deep": {"model.depth": 12, "init.name": "orthogonal"},
    "one-layer": {"model.depth": 1},
    "residual": {"model.residual": "plain"},
    "dropout": {"model.dropout": 0.3, "model.activation": "relu"},
    "residual-dropout": {"model.residual": "plain", "model.dropout": 0.5},
    "mse": MSE,
    "mse-on-classes": {"loss": "mse"},
    "pytorch": {"init.name": "pytorch", "init.bias_std": None},
    "momentum": MOMENTUM,
    "nesterov": NESTEROV | MSE | {"optimizer.lr": 0.01},
    "l2": {"optimizer.l2": 0.01, "optimizer.weight_decay": 0.02} | MOMENTUM,
    "clip-norm": {"clip.name": "norm", "clip.threshold": 0.3, "optimizer.l2": 0.05},
    "clip-value": {"clip.name": "value", "clip.threshold": 0.02} | MOMENTUM,
    "clip-adaptive": {"clip.name": "adaptive", "clip.threshold": 0.02} | LAYER | REZERO,
    "batch": BATCH | {"model.activation": "relu"},
    "layer": LAYER,
    "scaled": {"model.residual": "scaled", "model.activation": "gelu"},
    "rezero": REZERO,
    "rezero-from-zero": {"model.residual": "rezero", "model.activation": "relu", "optimizer.l2": 0.01},
    "batch-rezero-dropout": BATCH | REZERO | {"model.dropout": 0.2, "model.input_dropout": 0.1},
    "layer-scaled-prelu": LAYER | {"model.residual": "scaled", "model.activation": "prelu"} | MOMENTUM,
    # Adam's step has the slope lr / eps in a gradient near 0, and batch norm lets terms of 1e-2 cancel to such ones.
    "batch-adam": BATCH | ADAM | {"model.residual": "scaled", "optimizer.lr": 2e-4},
    "input-dropout": {"model.input_dropout": 0.2},
    "smoothing": SMOOTHING,
    "adam": ADAM | SMOOTHING,
    "adamw": ADAMW | LAYER | {"model.residual": "plain", "optimizer.l2": 0.01},
    "max-norm": {"optimizer.max_norm": 0.9, "model.dropout": 0.3},
    "warmup": {"optimizer.warmup": 4},
    "cosine": {"optimizer.schedule": "cosine", "optimizer.weight_decay": 0.01, "train.steps": STATES} | NESTEROV,
    "warmup-cosine": {"optimizer.warmup": 2, "optimizer.schedule": "cosine", "train.steps": STATES} | ADAMW,
}


def group(values, networks=NETWORKS):
    """Networks that differ in every number that is a network's own."""
    configs = []
    for number in range(networks):
        config = configure(SMALL | values)
        config.seed = number % 11
        config.optimizer.lr *= 1 + number % 4
        config.init.gain = 1 + 0.1 * (number % 3)
        config.init.name = "he" if number % 5 == 4 else config.init.name
        if config.clip.threshold is not None:
            config.clip.threshold *= 1 + number % 3
        if config.model.dropout > 0:
            config.model.dropout = 0.1 + 0.05 * (number % 6)
        if config.model.input_dropout > 0:
            config.model.input_dropout = 0.05 * (1 + number % 4)
        if config.label_smoothing > 0:
            config.label_smoothing = 0.1 * (1 + number % 3)
        if config.init.gate != 0:
            config.init.gate = 0.2 * (number % 5) - 0.3
        if config.optimizer.max_norm is not None:
            config.optimizer.max_norm *= 1 + 0.2 * (number % 3)
        if config.optimizer.warmup > 0:
            config.optimizer.warmup += number % 3
        if config.optimizer.beta1 is not None:
            config.optimizer.beta1 -= 0.1 * (number % 2)
            config.optimizer.beta2 -= 0.05 * (number % 3)
        configs.append(config)
    return configs


def gradient_by_functions(ensemble):
    """The same model and loss, driven by torch autograd of the rules' Functions."""
    leaves = [p.clone().requires_grad_() for p in ensemble.parameters]
    masks = ensemble.masks.layers if ensemble.masks else ()
    input_mask = ensemble.input_masks.layers[0] if ensemble.input_masks else None
    outputs = ensemble.model(ensemble.batches.x, leaves, masks, input_mask=input_mask)
    loss = LOSSES[ensemble.config.loss](outputs, ensemble.batches.y, ensemble.smoothing)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaves)


def network_of(flat, ensemble, network):
    """A network's share of a flat vector."""
    return torch.cat([p[network].flatten() for p in ensemble.layout.views(flat)])


def alone(ensemble, network):
    single = Ensemble([ensemble.configs[network]])
    assert torch.equal(single.values, network_of(ensemble.values, ensemble, network))
    return single


def take(single, ensemble, network):
    """Give a network alone the parameters, the batch and the masks that it has in the group."""
    single.values.copy_(network_of(ensemble.values, ensemble, network))
    single.batches.x.copy_(ensemble.batches.x[network : network + 1])
    single.batches.y.copy_(ensemble.batches.y[network : network + 1])
    for ours, theirs in ((single.masks, ensemble.masks), (single.input_masks, ensemble.input_masks)):
        if ours:
            for part in ("noise", "threshold", "scale"):
                getattr(ours, part).copy_(getattr(theirs, part)[network : network + 1])


def take_by_torch(by_torch, ensemble):
    with torch.no_grad():
        for leaf, parameter in zip(by_torch.leaves, ensemble.parameters, strict=True):
            leaf.copy_(parameter[by_torch.network])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def draw(ensemble):
    ensemble.batches.fill()
    for masks in (ensemble.masks, ensemble.input_masks):
        if masks:
            masks.fill()


@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_one_step_is_the_same_by_plan_functions_and_torch_alone_and_in_a_group(values):
    """From each of STATES states of the parameters; what an optimizer remembers, each has from its own steps."""
    ensemble = Ensemble(group(values))
    singles = {network: alone(ensemble, network) for network in (NETWORKS // 3, NETWORKS - 1)}
    # Of every remainder by which `group` gives networks their numbers there is one.
    torches = [TorchNetwork(ensemble, network) for network in (0, 4, 5, 10, 15)]
    for _ in range(STATES):
        draw(ensemble)
        losses = ensemble.differentiate().clone()
        if not ensemble.config.optimizer.l2:
            loss, grads = gradient_by_functions(ensemble)
            close(losses, loss)
            close(ensemble.layout.views(ensemble.grads), grads)
        for network, single in singles.items():
            take(single, ensemble, network)
            close(single.differentiate(), losses[network : network + 1])
            single.update()
        for by_torch in torches:
            take_by_torch(by_torch, ensemble)
            close(by_torch.step_of(ensemble), losses[by_torch.network])
        ensemble.update()
        for network, single in singles.items():
            close([p[0] for p in single.parameters], [p[network] for p in ensemble.parameters])
            close(single.statistics.values[:, :, 0], ensemble.statistics.values[:, :, network])
        for by_torch in torches:
            close([leaf.detach() for leaf in by_torch.leaves], [p[by_torch.network] for p in ensemble.parameters])
            for ours, theirs in zip(ensemble.statistics.pairs(), by_torch.running, strict=False):
                close([statistic[by_torch.network] for statistic in ours], theirs)
    if ensemble.clipper is not None:
        assert [ensemble.clipped[by_torch.network] for by_torch in torches] == [
            by_torch.clipped for by_torch in torches
        ]
        assert sum(by_torch.clipped for by_torch in torches) > 0


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_trajectories_of_a_hundred_steps_are_the_same(loss):
    values = {"model.depth": 4, "optimizer.lr": 0.05, "loss": loss, "model.width": 32, "train.batch_size": 32}
    configs = [configure(SMALL | values | {"seed": seed}) for seed in range(4)]
    ensemble, singles = Ensemble(configs), [Ensemble([config]) for config in configs]
    torches = [TorchNetwork(ensemble, network) for network in range(4)]
    for _ in range(100):
        for one in (ensemble, *singles):
            one.compute()
            one.update()
        for by_torch in torches:
            by_torch.step_of(ensemble)
    for network, (single, by_torch) in enumerate(zip(singles, torches, strict=True)):
        expected = [p[network] for p in ensemble.parameters]
        torch.testing.assert_close([p[0] for p in single.parameters], expected, rtol=0, atol=1e-9)
        torch.testing.assert_close([leaf.detach() for leaf in by_torch.leaves], expected, rtol=0, atol=1e-9)


def run(configs):
    loop = Loop(Ensemble(configs))
    return loop, list(loop.run())


LOOKED_AT = {name: v for name, v in CONFIGURATIONS.items() if name not in ACTIVATIONS or name in ("relu", "prelu")}


@pytest.mark.parametrize("values", LOOKED_AT.values(), ids=LOOKED_AT)
def test_measuring_changes_no_bit_of_training(values):
    finals = []
    for every in (1, 5):
        configs = group(values | {"train.steps": 12, "train.measure_every": every, "dtype": "float32"}, 3)
        loop, snapshots = run(configs)
        finals.append((loop.ensemble.values, np.concatenate([s.train_loss for s in snapshots])))
    (values_after, losses), (expected, expected_losses) = finals
    assert torch.equal(values_after, expected)
    np.testing.assert_array_equal(losses, expected_losses)


def test_snapshots_cover_every_step_once():
    _, snapshots = run(group({"train.steps": 23, "train.measure_every": 10}, 2))
    assert [s.step for s in snapshots] == [0, 10, 20, 23]
    assert [len(s.train_loss) for s in snapshots] == [1, 10, 10, 3]
    _, snapshots = run(group({"train.steps": 0}, 2))
    assert [(s.step, len(s.train_loss)) for s in snapshots] == [(0, 1)]


def evaluated(values):
    _, snapshots = run(group({"train.steps": 23, "train.measure_every": 4} | values, 2))
    found = [s.step for s in snapshots if "val_loss" in s.networks]
    assert found == [s.step for s in snapshots if "test_accuracy" in s.networks]
    return found


def test_validation_and_test_are_evaluated_at_the_first_measured_step_from_each_multiple():
    assert evaluated({"train.evaluate_every": 4}) == [0, 4, 8, 12, 16, 20, 23]
    assert evaluated({"train.evaluate_every": 6}) == [0, 8, 12, 20, 23]
    assert evaluated({"train.evaluate_every": 100}) == [0, 23]
    assert evaluated({"train.evaluate_every": 100, "train.until": "train_loss<0"}) == [0, 4, 8, 12, 16, 20, 23]


@pytest.mark.parametrize("values", [{}, BATCH, MSE, {"seed": 1}], ids=["plain", "batch", "mse", "one-seed"])
def test_an_evaluation_in_pieces_is_that_of_the_whole_part(values, monkeypatch):
    monkeypatch.setattr("bpexp.evaluation.PIECE", 3 * 64 * 50)
    configs = [configure(SMALL | values | {"seed": values.get("seed", n), "init.gain": 1 + n / 10}) for n in range(3)]
    ensemble = Ensemble(configs)
    ensemble.compute()
    for _ in range(2):
        ensemble.update()
        for name, part in (("val", ensemble.val), ("test", ensemble.test)):
            x, y = part.some(slice(0, part.samples))
            with torch.no_grad():
                outputs = ensemble.model(x, ensemble.parameters, statistics=ensemble.statistics.pairs() or None)
            loss, accuracy = ensemble.evaluation.evaluate(name)
            close(loss, LOSSES[ensemble.config.loss](outputs, y))
            if accuracy is not None:
                close(accuracy, (outputs.argmax(2) == y).double().mean(1))


def test_the_update_after_the_last_step_is_measured_and_taken_back():
    loop, snapshots = run(group({"train.steps": 0}, 2))
    assert torch.equal(loop.ensemble.values, Ensemble(group({"train.steps": 0}, 2)).values)
    assert (snapshots[0].layers["update_ratio"][1] > 0).all()


def test_step_0_does_not_depend_on_the_number_of_steps():
    (_, short), (_, long) = (run(group({"train.steps": steps}, 2)) for steps in (0, 5))
    for name, (numbers, values) in short[0].layers.items():
        assert long[0].layers[name][0] == numbers
        np.testing.assert_array_equal(long[0].layers[name][1], values)


def test_the_same_seed_sees_the_same_data_alone_and_in_a_group():
    configs = group({"model.dropout": 0.2, "train.steps": 3}, 6)
    ensemble = Ensemble(configs)
    singles = [Ensemble([config]) for config in configs]
    for _ in range(80):  # more than one epoch
        ensemble.compute()
        for network, single in enumerate(singles):
            single.compute()
            assert torch.equal(single.batches.x[0], ensemble.batches.x[network])
            assert torch.equal(single.batches.y[0], ensemble.batches.y[network])
            assert torch.equal(single.masks.values[0], ensemble.masks.values[network])


RESTORED = {
    "plain": {},
    "dropout-momentum": {"model.dropout": 0.3} | MOMENTUM,
    "batch-adam": BATCH | ADAM | {"optimizer.warmup": 20, "model.input_dropout": 0.1},
}


@pytest.mark.parametrize("values", RESTORED.values(), ids=RESTORED)
def test_a_restored_state_goes_on_bit_for_bit(values):
    ensemble = Ensemble(group(values, 3))
    for _ in range(5):
        ensemble.compute()
        ensemble.update()
    state = ensemble.state()
    ends = []
    for keep in (False, True):
        ensemble.restore(state)
        for _ in range(90):
            ensemble.compute(keep=keep)
            ensemble.update()
        ends.append((ensemble.values.clone(), ensemble.statistics.values.clone()))
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


WILD = {"model.activation": "relu", "init.name": "he", "train.steps": 30, "dtype": "float32", "model.depth": 5}


def wild(every, rates):
    configs = group(WILD | {"train.measure_every": every}, 4)
    for config, rate in zip(configs, rates, strict=True):
        config.optimizer.lr = rate
        config.init.gain = 1.0
    return configs


def test_a_diverging_network_changes_no_bit_of_its_neighbours():
    wild_loop, wild_snapshots = run(wild(10, [0.05, 1e6, 0.05, 0.1]))
    tame_loop, tame_snapshots = run(wild(10, [0.05, 0.05, 0.05, 0.1]))
    assert [s.step for s in wild_snapshots] == [s.step for s in tame_snapshots] == [0, 10, 20, 30]
    assert set().union(*[s.diverged for s in wild_snapshots]) == {1}
    assert not wild_snapshots[-1].finished.any()
    others = [0, 2, 3]
    for one, other in zip(wild_snapshots, tame_snapshots, strict=True):
        np.testing.assert_array_equal(one.train_loss[:, others], other.train_loss[:, others])
        for name, values in one.networks.items():
            np.testing.assert_array_equal(values[others], other.networks[name][others])
        for name, (_, values) in one.layers.items():
            np.testing.assert_array_equal(values[others], other.layers[name][1][others])
    for one, other in zip(wild_loop.ensemble.parameters, tame_loop.ensemble.parameters, strict=True):
        assert torch.equal(one[others], other[others])


def first_non_finite(config):
    """Where one network first shows a value that is not finite, by torch alone."""
    ensemble = Ensemble([config])
    network = TorchNetwork(ensemble, 0)
    for step in range(config.train.steps + 1):
        ensemble.batches.fill()
        loss = network.step_of(ensemble)
        for layer, z in enumerate(network.z, 1):
            if not all(values.isfinite().all() for values in (z, *network.a[layer - 1 : layer])):
                return Divergence(step, layer)
        if not loss.isfinite():
            return Divergence(step, len(network.z))
        bad = [s.layer for s, p in zip(network.slots, network.leaves, strict=True) if not p.grad.isfinite().all()]
        if bad:
            return Divergence(step, max(bad))
    return None


def test_a_divergence_is_found_where_it_began_however_seldom_is_measured():
    rates = [0.05, 1e3, 30.0, 1e6]
    expected = {n: found for n, c in enumerate(wild(1, rates)) if (found := first_non_finite(c)) is not None}
    assert len(expected) == 3
    assert len({where.step for where in expected.values()}) > 1
    for every in (1, 4, 9, 1000):
        _, snapshots = run(wild(every, rates))
        found = dict(itertools.chain(*[s.diverged.items() for s in snapshots]))
        assert found == expected


def test_a_network_that_overflows_before_it_trains():
    values = {"init.name": "normal", "init.gain": 1e6, "model.depth": 8, "model.activation": "relu"}
    config = configure(SMALL | values | {"dtype": "float32"})
    expected = first_non_finite(config)
    assert expected.step == 0
    _, snapshots = run([config])
    assert snapshots[0].diverged == {0: expected}
    assert len(snapshots) == 1


def test_training_stops_when_every_network_met_its_criterion_or_diverged():
    values = {"train.until": "train_loss<1.5", "train.steps": 300, "train.measure_every": 5, "dtype": "float32"}
    configs = [configure(SMALL | values | {"seed": seed}) for seed in range(3)]
    configs[1].optimizer.lr = 0.4
    _, snapshots = run(configs)
    met = [next(s.step for s in snapshots if s.finished[network]) for network in range(3)]
    assert met[1] < max(met) == snapshots[-1].step < 300
    for network, step in enumerate(met):
        losses = {s.step: s.train_loss[-1, network] for s in snapshots}
        assert losses[step] < 1.5
        assert all(loss >= 1.5 for at, loss in losses.items() if at < step)
        _, single = run([configs[network]])
        assert single[-1].step == step


def test_networks_of_different_structure_are_refused():
    with pytest.raises(ValueError, match="different structure"):
        Ensemble([configure(SMALL), configure(SMALL | {"model.width": 13})])
    with pytest.raises(ValueError, match="different structure"):
        next(train([configure(SMALL), configure(SMALL | {"model.residual": "plain"})]))


ASKED = {
    "momentum": {"model.dropout": 0.2, "clip.name": "norm", "clip.threshold": 1.0} | MOMENTUM,
    "adamw": ADAMW | BATCH | REZERO | {"model.input_dropout": 0.2, "optimizer.max_norm": 1.0, "optimizer.warmup": 9},
    "adaptive": LAYER | SMOOTHING | {"clip.name": "adaptive", "clip.threshold": 0.1, "optimizer.schedule": "cosine"},
}


@pytest.mark.parametrize("values", ASKED.values(), ids=ASKED)
def test_a_step_asks_nothing_of_the_host(values, monkeypatch):
    """No .item(), no branch on a tensor, no copy to the host between snapshots."""
    ensemble = Ensemble(group(values, 2))
    ensemble.compute()

    def refuse(self, *args, **kwargs):
        raise AssertionError("a step reads a tensor on the host")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(100):
        ensemble.compute()
        ensemble.update()


def test_a_training_plan_takes_fewer_buffers():
    ensemble = Ensemble(group({"model.depth": 12}, 2))
    steps = [step.plan for step in (ensemble.training, ensemble.keeping)]
    sizes = [sum(s.nbytes() for s, _ in set(plan_places(p))) for p in steps]
    assert sizes[0] < sizes[1]


def plan_places(plan: Plan):
    return {storage.data_ptr(): (storage, offset) for storage, offset in plan.buffers.places.values()}.values()


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^device: cuda was asked for, but there is none; choose auto or cpu$"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_step_on_cuda_is_that_on_the_cpu(values):
    without = {"model.dropout": 0.0, "model.input_dropout": 0.0}  # the devices draw different masks from one seed
    configs = group(values | without, 4)
    on_cpu, on_cuda = Ensemble(configs), Ensemble(configs, "cuda")
    for _ in range(10):
        torch.testing.assert_close(on_cuda.compute().cpu(), on_cpu.compute(), rtol=0, atol=1e-10)
        for one in (on_cpu, on_cuda):
            one.update()
        torch.testing.assert_close(on_cuda.values.cpu(), on_cpu.values, rtol=0, atol=1e-9)
