"""Memory: what a group takes and is estimated to take, what there is, and what is done where it does not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import configure

from bpexp import memory
from bpexp.data import describe
from bpexp.ensemble import Ensemble
from bpexp.plan.program import tensors_in
from bpexp.spec import ACTIVATIONS

PEAK = """
import gc, json, sys
from conftest import configure
from bpexp.ensemble import Ensemble
from bpexp.train import Loop

def bytes_of(row):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(row))

def run(values, networks):
    for _ in Loop(Ensemble([configure(values | {"seed": seed}) for seed in range(networks)])).run():
        pass

peaks = []
for values, networks in json.loads(sys.argv[1]):
    run(values | {"model.width": 4, "train.batch_size": 4}, 2)  # what comes with the first networks of a process
    gc.collect()
    before = bytes_of("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    run(values, networks)
    peaks.append(bytes_of("VmHWM") - before)
print(json.dumps(peaks))
"""

DIVERGING = {"optimizer.lr": 1e30, "train.steps": 4, "train.measure_every": 2}
GROUPS = {
    "weights": (DIVERGING | {"model.depth": 3, "model.width": 512, "train.batch_size": 16}, 16),
    "clipped": (
        DIVERGING
        | {"model.depth": 3, "model.width": 512, "train.batch_size": 16, "clip.name": "value", "clip.threshold": 0.1},
        8,
    ),
    "activations": (DIVERGING | {"model.depth": 6, "model.width": 64, "train.batch_size": 1024}, 8),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_the_peak_of_a_group_with_a_network_that_diverges_is_near_its_estimate():
    ours = [str(path) for path in (Path(__file__).parent, Path(__file__).parents[1])]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {ours}\n{PEAK}", json.dumps(list(GROUPS.values()))]
    # Each tensor is returned when it is freed: what is measured is what is held, not the holes between.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for peak, (values, networks) in zip(json.loads(done.stdout), GROUPS.values(), strict=True):
        estimate = memory.estimate([configure(values | {"seed": seed}) for seed in range(networks)])
        assert 0.95 * peak < estimate.vectors + estimate.activations + estimate.data < 1.4 * peak, values


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.norm": "batch", "model.residual": "rezero"},
        {"model.norm": "layer", "model.activation": "prelu", "data.name": "regression", "loss": "mse"},
    ],
    ids=["plain", "batch-rezero", "layer-prelu"],
)
def test_parameters_are_counted_as_they_lie(values):
    config = configure({"model.depth": 3, "model.width": 5, "train.batch_size": 7} | values)
    data = describe(config.data.name)
    assert memory.count_parameters(config, data.features, data.outputs) == Ensemble([config]).values.numel()


def test_every_activation_is_known():
    assert set(memory.RECORDED) == set(ACTIVATIONS)


def test_estimates_grow_with_what_takes_memory():
    def total(**changes):
        return memory.estimate([configure({name.replace("__", "."): value for name, value in changes.items()})]).total

    for name, values in {
        "model__width": (64, 128),
        "model__depth": (4, 5),
        "train__batch_size": (128, 129),
        "dtype": ("float32", "float64"),
        "data__train_size": (100, 101),
        "model__norm": ("none", "batch"),
        "model__residual": ("none", "plain"),
        "model__dropout": (0.0, 0.1),
        "model__activation": ("tanh", "gelu"),
        "optimizer__l2": (0.0, 0.1),
        "optimizer__name": ("sgd", "adam"),
    }.items():
        assert total(**{name: values[0]}) < total(**{name: values[1]}), name
    alone = memory.estimate([configure({})]).total
    assert alone < memory.estimate([configure({}), configure({"seed": 1})]).total < 2 * alone, "a process is shared"


def test_a_group_is_cut_into_as_few_equal_pieces_as_fit():
    configs = [configure({"seed": seed, "model.width": 256}) for seed in range(10)]
    for limit in (memory.estimate(configs[:size]).total for size in range(1, 11)):
        sizes = memory.split(configs, limit)
        assert sum(sizes) == 10
        assert max(sizes) - min(sizes) <= 1
        assert all(memory.estimate(configs[:size]).total <= limit for size in sizes)
        fewer = -(-10 // max(len(sizes) - 1, 1))
        assert len(sizes) == 1 or memory.estimate(configs[:fewer]).total > limit
    assert memory.split(configs, 0) == [1] * 10


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model.width": 100_000}, "model.width"),
        ({"model.depth": 1_000_000}, "model.depth"),
        ({"train.batch_size": 10_000_000}, "train.batch_size"),
    ],
    ids=["width", "depth", "batch"],
)
def test_a_network_that_does_not_fit_is_told_with_the_key_and_the_most_that_does(values, name):
    config, limit = configure(values), 4 * 2**30
    said = memory.too_large(config, limit)
    assert said.startswith(f"{name}: a network with {values[name]} takes up to ")
    assert "and 4.0 GiB can be used; choose at most " in said
    most = int(said.split()[-1])
    assert (
        memory.estimate([configure({name: most})]).total <= limit < memory.estimate([configure({name: most + 1})]).total
    )


def test_workers_are_as_many_as_fit_whichever_groups_meet():
    assert memory.workers_that_fit([3, 5, 4], 3, 12) == 3
    assert memory.workers_that_fit([3, 5, 4], 3, 11) == 2
    assert memory.workers_that_fit([3, 5, 4], 2, 100) == 2
    assert memory.workers_that_fit([3, 5, 4], 3, 4) == 1


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


MEMINFO = "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\n"
MACHINES = {
    "no-limit": ({"proc/self/cgroup": "0::/\n"}, 50 * 1024),
    "version-2": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "900\n",
            "sys/fs/cgroup/a/memory.max": "1000\n",
            "sys/fs/cgroup/a/memory.current": "900\n",
            "sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 200\n",
        },
        300,
    ),
    "version-2-in-a-container": (
        {
            "proc/self/cgroup": "0::/kubepods/pod\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "900\n",
        },
        100,
    ),
    "version-1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/1\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "900\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
        },
        120,
    ),
    "more-used-than-allowed": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "1100\n",
        },
        0,
    ),
}


@pytest.mark.parametrize(("files", "free"), MACHINES.values(), ids=MACHINES)
def test_what_is_free_is_that_of_the_narrowest_limit(tmp_path, files, free):
    put(tmp_path, {"proc/meminfo": MEMINFO} | files)
    assert memory.available(tmp_path) == free
    limited = any(text == "1000\n" for text in files.values())
    assert memory.available(tmp_path, ever=True) == (1000 if limited else 99 * 1024)


def test_this_machine_has_memory():
    free = memory.available()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (310 * 2**20, "310 MiB"), (14 * 2**30, "14 GiB"), (2**53, "8,192 TiB")],
)
def test_bytes_are_told_in_two_digits_or_more(size, text):
    assert memory.told(size) == text


def test_a_plan_holds_no_more_than_what_its_steps_use():
    """Recorded are more than ten tensors a layer; a step needs its output, its delta, and what stacks them."""
    config = configure({"model.depth": 8, "model.width": 64, "train.batch_size": 64})
    plan = Ensemble([config]).training.plan
    storages = [storage for storage, _ in plan.buffers.places.values()]
    storages += [tensor.untyped_storage() for tensor in tensors_in(plan.tape.alive)]
    held = {storage._cdata: storage.nbytes() for storage in storages}
    given = {tensor.untyped_storage()._cdata for tensor in (*plan.parameters, plan.flat_grad)}
    numbers = sum(size for key, size in held.items() if key not in given) / 4
    assert numbers < 5 * 8 * 64 * 64
