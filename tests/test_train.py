"""The training step of R networks against the Functions, torch autograd and torch.optim, alone and in a group."""

import itertools

import numpy as np
import pytest
import torch
from conftest import configure
from torch import nn

from bpexp.activations import CONSTANTS
from bpexp.models import LOSSES
from bpexp.plan import Plan
from bpexp.rules import RULES
from bpexp.spec import ACTIVATIONS
from bpexp.train import Divergence, Ensemble, Loop, resolve_device, train

NETWORKS, STATES = 16, 100
TOLERANCE = 1e-12

SMALL = {"model.depth": 3, "model.width": 12, "train.batch_size": 16, "train.steps": STATES, "dtype": "float64"}
MSE = {"data.name": "regression", "loss": "mse"}
MOMENTUM = {"optimizer.name": "momentum", "optimizer.momentum": 0.9}
NESTEROV = {"optimizer.name": "nesterov", "optimizer.momentum": 0.8}
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
        configs.append(config)
    return configs


class Torch:
    """One network of a group, by torch's own functions, autograd and optimizer."""

    def __init__(self, ensemble, network):
        self.config, self.depth = ensemble.configs[network], ensemble.config.model.depth
        self.leaves = [nn.Parameter(p[network].clone()) for p in ensemble.parameters]
        optimizer = self.config.optimizer
        weights, biases = self.leaves[: self.depth + 1], self.leaves[self.depth + 1 :]
        # L2 in the loss comes before clipping, so it is added to the loss below, not by the optimizer.
        self.optimizer = torch.optim.SGD(
            [*weights, *biases],
            lr=optimizer.lr,
            momentum=optimizer.momentum or 0.0,
            nesterov=optimizer.name == "nesterov",
        )

    def loss(self, x, y, masks):
        weights, biases = self.leaves[: self.depth + 1], self.leaves[self.depth + 1 :]
        activation, name = self.config.model.activation, self.config.model.residual
        for layer in range(self.depth):
            z = nn.functional.linear(x, weights[layer], biases[layer])
            branch = z if activation == "identity" else RULES[activation].reference(z, *CONSTANTS.get(activation, ()))
            if masks:
                branch = branch * masks[layer]
            x = x + branch if name == "plain" and layer > 0 else branch
        output = nn.functional.linear(x, weights[-1], biases[-1])
        loss = nn.functional.mse_loss if self.config.loss == "mse" else nn.functional.cross_entropy
        return loss(output, y)

    def step(self, x, y, masks):
        self.optimizer.zero_grad()
        loss = self.loss(x, y, masks)
        penalty = sum(w.square().sum() for w in self.leaves[: self.depth + 1]) * self.config.optimizer.l2 / 2
        (loss + penalty).backward()
        clip = self.config.clip
        if clip.name == "norm":
            total = torch.cat([leaf.grad.flatten() for leaf in self.leaves]).norm()
            for leaf in self.leaves:
                leaf.grad.mul_(min(1.0, clip.threshold / float(total)))
        elif clip.name == "value":
            nn.utils.clip_grad_value_(self.leaves, clip.threshold)
        with torch.no_grad():
            for weight in self.leaves[: self.depth + 1]:
                weight.mul_(1 - self.config.optimizer.lr * self.config.optimizer.weight_decay)
        self.optimizer.step()
        return loss.detach()

    def take(self, ensemble, network):
        """Go to the state of a network of the group."""
        velocities = ensemble.layout.views(ensemble.optimizer.velocity)
        with torch.no_grad():
            for leaf, parameter, velocity in zip(self.leaves, ensemble.parameters, velocities, strict=True):
                leaf.copy_(parameter[network])
                if self.config.optimizer.momentum:
                    self.optimizer.state[leaf]["momentum_buffer"] = velocity[network].clone()


def gradient_by_functions(ensemble):
    """The same model and loss, driven by torch autograd of the rules' Functions."""
    leaves = [p.clone().requires_grad_() for p in ensemble.parameters]
    masks = ensemble.masks.layers if ensemble.masks else ()
    loss = LOSSES[ensemble.config.loss](ensemble.model(ensemble.batches.x, leaves, masks), ensemble.batches.y)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaves)


def alone(ensemble, network):
    single = Ensemble([ensemble.configs[network]])
    assert torch.equal(single.values, torch.cat([p[network].flatten() for p in ensemble.parameters]))
    return single


def take(single, ensemble, network):
    """Give a network alone the state, the batch and the masks that it has in the group."""
    for flat, whole in ((single.values, ensemble.values), (single.optimizer.velocity, ensemble.optimizer.velocity)):
        flat.copy_(torch.cat([p[network].flatten() for p in ensemble.layout.views(whole)]))
    single.batches.x.copy_(ensemble.batches.x[network : network + 1])
    single.batches.y.copy_(ensemble.batches.y[network : network + 1])
    if single.masks:
        single.masks.values.copy_(ensemble.masks.values[network : network + 1])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_one_step_is_the_same_by_plan_functions_and_torch_alone_and_in_a_group(values):
    ensemble = Ensemble(group(values))
    singles = [alone(ensemble, network) for network in range(NETWORKS)]
    torches = [Torch(ensemble, network) for network in range(NETWORKS)]
    for state in range(STATES):
        network = state % NETWORKS
        single, by_torch = singles[network], torches[network]
        ensemble.batches.fill()
        if ensemble.masks:
            ensemble.masks.fill()
        take(single, ensemble, network)
        by_torch.take(ensemble, network)
        if not ensemble.config.optimizer.l2:
            loss, grads = gradient_by_functions(ensemble)
            close(ensemble.differentiate(), loss)
            close(ensemble.layout.views(ensemble.grads), grads)
        losses = ensemble.differentiate()
        close(single.differentiate(), losses[network : network + 1])
        masks = [mask[network] for mask in ensemble.masks.layers] if ensemble.masks else []
        close(losses[network], by_torch.step(ensemble.batches.x[network], ensemble.batches.y[network], masks))
        ensemble.update()
        single.update()
        after = [p[network] for p in ensemble.parameters]
        close([p[0] for p in single.parameters], after)
        close([leaf.detach() for leaf in by_torch.leaves], after)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_trajectories_of_a_hundred_steps_are_the_same(loss):
    values = {"model.depth": 4, "optimizer.lr": 0.05, "loss": loss, "model.width": 32, "train.batch_size": 32}
    configs = [configure(SMALL | values | {"seed": seed}) for seed in range(4)]
    ensemble, singles = Ensemble(configs), [Ensemble([config]) for config in configs]
    torches = [Torch(ensemble, network) for network in range(4)]
    for _ in range(100):
        for one in (ensemble, *singles):
            one.compute()
            one.update()
        for network, by_torch in enumerate(torches):
            by_torch.step(ensemble.batches.x[network], ensemble.batches.y[network], [])
    for network, (single, by_torch) in enumerate(zip(singles, torches, strict=True)):
        expected = [p[network] for p in ensemble.parameters]
        torch.testing.assert_close([p[0] for p in single.parameters], expected, rtol=0, atol=1e-9)
        torch.testing.assert_close([leaf.detach() for leaf in by_torch.leaves], expected, rtol=0, atol=1e-9)


def run(configs):
    loop = Loop(Ensemble(configs))
    return loop, list(loop.run())


@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_measuring_changes_no_bit_of_training(values):
    finals = []
    for every in (1, 7, 1000):
        configs = group(values | {"train.steps": 20, "train.measure_every": every, "dtype": "float32"}, 3)
        loop, snapshots = run(configs)
        finals.append((loop.ensemble.values, np.concatenate([s.train_loss for s in snapshots])))
    for values_after, losses in finals[1:]:
        assert torch.equal(values_after, finals[0][0])
        np.testing.assert_array_equal(losses, finals[0][1])


def test_snapshots_cover_every_step_once():
    _, snapshots = run(group({"train.steps": 23, "train.measure_every": 10}, 2))
    assert [s.step for s in snapshots] == [0, 10, 20, 23]
    assert [len(s.train_loss) for s in snapshots] == [1, 10, 10, 3]
    _, snapshots = run(group({"train.steps": 0}, 2))
    assert [(s.step, len(s.train_loss)) for s in snapshots] == [(0, 1)]


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


@pytest.mark.parametrize("values", [{}, {"model.dropout": 0.3} | MOMENTUM], ids=["plain", "dropout-momentum"])
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
        ends.append(ensemble.values.clone())
    assert torch.equal(*ends)


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
    network = Torch(ensemble, 0)
    for step in range(config.train.steps + 1):
        ensemble.batches.fill()
        x, y = ensemble.batches.x[0], ensemble.batches.y[0]
        h = x
        weights, biases = network.leaves[: network.depth + 1], network.leaves[network.depth + 1 :]
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
            z = nn.functional.linear(h, weight, bias)
            if not z.isfinite().all():
                return Divergence(step, layer)
            h = torch.relu(z)
        if not network.step(x, y, []).isfinite():
            return Divergence(step, len(weights))
        bad = [
            layer
            for layer, pair in enumerate(zip(weights, biases, strict=True), 1)
            if not all(leaf.grad.isfinite().all() for leaf in pair)
        ]
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
        next(train([configure(SMALL), configure(SMALL | {"model.depth": 2})]))


def test_a_step_asks_nothing_of_the_host(monkeypatch):
    """No .item(), no branch on a tensor, no copy to the host between snapshots."""
    ensemble = Ensemble(group({"model.dropout": 0.2, "clip.name": "norm", "clip.threshold": 1.0} | MOMENTUM, 2))
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
    sizes = [sum(s.nbytes() for s, _ in set(plan_places(p))) for p in (ensemble.training, ensemble.measuring)]
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
    configs = group(values | {"model.dropout": 0.0}, 4)  # the devices draw different masks from one seed
    on_cpu, on_cuda = Ensemble(configs), Ensemble(configs, "cuda")
    for _ in range(10):
        torch.testing.assert_close(on_cuda.compute().cpu(), on_cpu.compute(), rtol=0, atol=1e-10)
        for one in (on_cpu, on_cuda):
            one.update()
        torch.testing.assert_close(on_cuda.values.cpu(), on_cpu.values, rtol=0, atol=1e-9)
