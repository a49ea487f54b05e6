"""Device hygiene without a device: trainings on a device that refuses what a CUDA device cannot do or waits for."""

import json
import os
import subprocess
import sys
from pathlib import Path

from models import BETAS, MODELS, SMALL, TOGETHER

from bpexp import spec

HERE = Path(__file__).parent

ANSWERS = {
    "number": "DeviceError: the host asks for a number of the device",
    "branch": "DeviceError: the host asks for a number of the device",
    "shape_that_depends_on_numbers": "DynamicOutputShapeException: aten.nonzero",
    "numbers_of_a_tensor": "DeviceError: the host asks for a number of the device",
    "copy_to_the_host": "DeviceError: copied to the device: 0, not 0; from it: 1, not 0",
    "copy_into_a_tensor_of_the_host": "DeviceError: copied to the device: 0, not 0; from it: 1, not 0",
    "copy_from_the_host": "DeviceError: copied to the device: 1, not 0; from it: 0, not 0",
    "list_as_an_index": "NotImplementedError: Could not run 'aten::empty_strided'",
    "index_on_the_host": "AssertionError: Please convert all Tensors to FakeTensors",
    "order_on_the_host": "AssertionError: Please convert all Tensors to FakeTensors",
    "two_devices": "AssertionError: Please convert all Tensors to FakeTensors",
    "buffer_on_the_host": "AssertionError: Please convert all Tensors to FakeTensors",
    "generator_of_the_host": "DeviceError: aten::random_.from draws on the device with a generator of the host",
    "gradient_on_the_host": "AssertionError: Please convert all Tensors to FakeTensors",
}
"""How the answer to each mistake begins."""


def run(program, *arguments):
    """Run a program in a process of its own: what makes the fake device is private to torch, and changes it."""
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
    command = [sys.executable, str(HERE / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})


def test_models_train_on_a_device_without_waiting_for_it():
    names = [*MODELS, "mixed"]
    done = run("run_models.py", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: ok" for name in names]


def test_every_mistake_is_refused():
    done = run("run_mistakes.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == ANSWERS.keys()
    assert {name: answer and answer.startswith(ANSWERS[name]) for name, answer in found.items()} == dict.fromkeys(
        ANSWERS, True
    )


def test_the_models_have_every_choice():
    def chosen(name):
        return {values.get(name, SMALL.get(name, spec.keys()[name].default)) for values in MODELS.values()}

    assert chosen("model.activation") | set(TOGETHER) == set(spec.ACTIVATIONS)
    for name in ("model.norm", "model.residual", "optimizer.name", "optimizer.schedule", "clip.name", "loss", "dtype"):
        assert chosen(name) == set(spec.keys()[name].choices), name
    for name in ("model.dropout", "model.input_dropout", "label_smoothing", "optimizer.l2", "optimizer.weight_decay"):
        assert any(chosen(name)), name
    for name in ("optimizer.max_norm", "optimizer.warmup"):
        assert any(chosen(name)), name
    assert set(BETAS) == set(spec.ADAPTIVE)
