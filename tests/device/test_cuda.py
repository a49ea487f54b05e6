"""CUDA: the models of the fake device train there as on the CPU, wait for nothing, and come back from a state."""

import pytest
import torch
from models import MODELS, mixed, networks_of

from bpexp import memory
from bpexp.ensemble import Ensemble
from bpexp.streams import generator
from bpexp.train import Loop

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NAMES = [*MODELS, "mixed"]
TOLERANCES = {"float64": 1e-11, "float32": 1e-5}
"""Sums are in another order: some rounding errors of sums of up to a hundred terms, in numbers near 1."""


def configs_of(name):
    return mixed() if name == "mixed" else networks_of(name)


def copy_draws(source, target):
    """Give an ensemble the batch and the masks of another: the devices draw other masks from one seed."""
    for name in ("x", "y"):
        getattr(target.batches, name).copy_(getattr(source.batches, name))
    for ours, theirs in ((target.masks, source.masks), (target.input_masks, source.input_masks)):
        if ours is not None:
            for part in ("noise", "threshold", "scale"):
                getattr(ours, part).copy_(getattr(theirs, part))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_cpu(name):
    configs = configs_of(name)
    on_cpu, on_device = Ensemble(configs), Ensemble(configs, DEVICE)
    tolerance = {"rtol": 0, "atol": TOLERANCES[configs[0].dtype]}
    for _ in range(3):
        on_device.values.copy_(on_cpu.values)
        for moment, of_cpu in on_cpu.optimizer.moments.items():
            on_device.optimizer.moments[moment].copy_(of_cpu)
        on_cpu.compute()
        copy_draws(on_cpu, on_device)
        torch.testing.assert_close(on_device.differentiate().cpu(), on_cpu.training.plan.loss, **tolerance)
        torch.testing.assert_close(on_device.grads.cpu(), on_cpu.grads, **tolerance)
        for ensemble in (on_cpu, on_device):
            ensemble.update()
        # Adam's step has the slope lr / eps in a gradient near 0.
        loose = (
            {"rtol": 0, "atol": 1e4 * tolerance["atol"]} if on_cpu.config.optimizer.name in ("adam", "adamw") else {}
        )
        torch.testing.assert_close(on_device.values.cpu(), on_cpu.values, **(tolerance | loose))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(name):
    ensemble = Ensemble(configs_of(name), DEVICE)
    ensemble.compute()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for observe in (False, True):
            ensemble.compute(observe=observe)
            ensemble.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["tanh", "relu-dropout", "leaky-batch-rezero-adam"])
def test_a_state_holds_all_that_the_next_steps_depend_on(name):
    """What is restored is the same bit for bit; sums of a step may be in another order, so the steps are compared."""
    ensemble = Ensemble(configs_of(name), DEVICE)
    for _ in range(3):
        ensemble.compute()
        ensemble.update()
    state = ensemble.state()
    again = Ensemble(configs_of(name), DEVICE)
    again.restore(state)
    assert torch.equal(again.values, state["values"])
    for one in (ensemble, again):
        one.compute()
    assert torch.equal(again.batches.x, ensemble.batches.x)
    if ensemble.masks is not None:
        assert torch.equal(again.masks.noise, ensemble.masks.noise)
    torch.testing.assert_close(again.grads, ensemble.grads, rtol=0, atol=TOLERANCES[ensemble.config.dtype])


def test_masks_are_those_of_the_seed_and_not_the_cpus():
    def drawn(device):
        stream = generator(3, "dropout", device)
        return torch.empty(64, dtype=torch.int64, device=device).random_(generator=stream).cpu()

    assert torch.equal(drawn(DEVICE), drawn(DEVICE))
    assert not torch.equal(drawn(DEVICE), drawn("cpu"))


def test_a_training_stays_below_its_estimate():
    configs = networks_of("gelu-plain-nesterov", 8)
    for config in configs:
        config.model.width, config.train.batch_size = 512, 40
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in Loop(Ensemble(configs, DEVICE)).run():
        pass
    assert torch.cuda.max_memory_allocated() - before < memory.estimate(configs).total
    assert 0 < memory.usable(DEVICE) < torch.cuda.get_device_properties(0).total_memory
