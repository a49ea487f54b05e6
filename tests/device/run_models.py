"""Trains models on the fake device: `python run_models.py NAME...`; exits with 1 and says why where one cannot."""

import sys
import traceback

from fake_device import FakeDevice, is_on_device, leave
from models import mixed, networks_of

from bpexp.data import batches
from bpexp.ensemble import Ensemble
from bpexp.models import LOSSES
from bpexp.train import Loop

SNAPSHOTS = [0, 2, 3]


def run(device, name):
    batches.LARGEST_COPIES = 0 if "bytes" in name else 2**27
    configs = mixed() if name == "mixed" else networks_of(name)
    ensemble = Ensemble(configs, "fakegpu")
    loop = Loop(ensemble)
    # Each draw of epochs sends its order, each snapshot fetches its measures; there is nothing else to wait for.
    draws = -(-(configs[0].train.steps + 1) // (ensemble.batches.batches * ensemble.batches.epochs))
    with device.steps(sent=draws, fetched=len(SNAPSHOTS)):
        shown = list(loop.run())
    assert [snapshot.step for snapshot in shown] == SNAPSHOTS
    state = ensemble.state()
    with device.steps():
        ensemble.restore(state)
    with device.steps():
        by_functions(ensemble)


def by_functions(ensemble):
    """Go forward and backward through the rules' Functions."""
    leaves = [parameter.detach().requires_grad_() for parameter in ensemble.parameters]
    masks = ensemble.masks.layers if ensemble.masks else ()
    input_mask = ensemble.input_masks.layers[0] if ensemble.input_masks else None
    outputs = ensemble.model(ensemble.batches.x, leaves, masks, input_mask=input_mask)
    LOSSES[ensemble.config.loss](outputs, ensemble.batches.y, ensemble.smoothing).sum().backward()
    assert all(is_on_device(leaf.grad) for leaf in leaves)


if __name__ == "__main__":
    failures = 0
    with FakeDevice() as device:
        for name in sys.argv[1:]:
            try:
                run(device, name)
                print(f"{name}: ok")
            except Exception:
                failures += 1
                print(f"{name}: {traceback.format_exc()}")
    leave(failures > 0)
