"""Makes each mistake in a step on the fake device, and prints as JSON what it is answered with, or null."""

import json

import torch
from fake_device import FakeDevice, leave
from models import networks_of
from run_models import by_functions

from bpexp.ensemble import Ensemble
from bpexp.rules.table import RULES


def number(ensemble):
    return ensemble.compute()[0].item()


def branch(ensemble):
    if ensemble.grads.max() > 1:
        ensemble.grads.zero_()


def shape_that_depends_on_numbers(ensemble):
    return ensemble.grads[ensemble.grads > 0]


def numbers_of_a_tensor(ensemble):
    return ensemble.compute().tolist()


def copy_to_the_host(ensemble):
    return ensemble.compute().cpu()


def copy_into_a_tensor_of_the_host(ensemble):
    torch.empty(3, dtype=torch.float64).copy_(ensemble.compute())


def copy_from_the_host(ensemble):
    ensemble.grads.mul_(torch.tensor([0.5]).to("fakegpu"))


def list_as_an_index(ensemble):
    return ensemble.batches.x[[2, 0]]


def index_on_the_host(ensemble):
    return ensemble.batches.x.index_select(0, torch.tensor([2, 0]))


def order_on_the_host(ensemble):
    ensemble.batches.order, ensemble.batches.next = torch.zeros(5, 24, dtype=torch.int64), 0
    ensemble.compute()


def two_devices(ensemble):
    return ensemble.grads + torch.ones(len(ensemble.grads))


def buffer_on_the_host(ensemble):
    ensemble.optimizer.direction = torch.zeros(len(ensemble.values), dtype=torch.float64)
    ensemble.compute()
    torch.add(ensemble.values, ensemble.grads, out=ensemble.optimizer.direction)


def generator_of_the_host(ensemble):
    ensemble.masks.streams[0] = torch.Generator("cpu")
    ensemble.compute()


def gradient_on_the_host(ensemble):
    """Let the Function of a rule return a gradient of the host."""
    function = RULES["network_dropout"].function
    kept = function.backward
    function.backward = staticmethod(lambda ctx, grad: (torch.zeros(grad.shape, dtype=grad.dtype), None, None, None))
    try:
        by_functions(ensemble)
    finally:
        function.backward = kept


MISTAKES = (
    number,
    branch,
    shape_that_depends_on_numbers,
    numbers_of_a_tensor,
    copy_to_the_host,
    copy_into_a_tensor_of_the_host,
    copy_from_the_host,
    list_as_an_index,
    index_on_the_host,
    order_on_the_host,
    two_devices,
    buffer_on_the_host,
    generator_of_the_host,
    gradient_on_the_host,
)

if __name__ == "__main__":
    found = {}
    with FakeDevice() as device:
        ensemble = Ensemble(networks_of("relu-dropout"), "fakegpu")
        ensemble.compute()
        start = ensemble.state()
        for mistake in MISTAKES:
            found[mistake.__name__] = None
            try:
                with device.steps():
                    mistake(ensemble)
            except Exception as error:
                found[mistake.__name__] = f"{type(error).__name__}: {error}"
            ensemble.batches.order = start["batches"]["order"]
    print(json.dumps(found))
    leave(0)
