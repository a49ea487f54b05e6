"""Records: what stands in them up to where, and how they are read again."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import polars
import pytest

from bpexp.measures import MEASURES
from bpexp.records import (
    RECORDS_FILE,
    RESULTS_FILE,
    SCHEMA,
    Recorder,
    layer_name,
    read_records,
    read_results,
    read_sweep,
    write_records,
)
from bpexp.spec import UserError
from bpexp.train import Divergence, Snapshot

DEPTH, NETWORKS = 2, 4
OF = {"all": range(1, DEPTH + 2), "hidden": range(1, DEPTH + 1), "gated": range(2, DEPTH + 1)}
LAYERS = {name: OF[measure.of] for name, measure in MEASURES.items()}
OF_NETWORK = ("train_accuracy", "val_loss", "grad_norm")


def value_of(network, step, layer, measure):
    """A number that only this row has."""
    return network + 10 * step + 1000 * (layer or 0) + 1e5 * [*LAYERS, *OF_NETWORK, "train_loss"].index(measure)


def snapshot(step, since, finished=(), diverged=None):
    def values(layers, measure):
        rows = [[value_of(network, step, layer, measure) for layer in layers] for network in range(NETWORKS)]
        return np.array(rows, dtype=float)

    losses = [[value_of(n, s, None, "train_loss") for n in range(NETWORKS)] for s in range(since, step + 1)]
    return Snapshot(
        step=step,
        train_loss=np.array(losses, dtype=float),
        layers={name: (layers, values(layers, name)) for name, layers in LAYERS.items()},
        networks={name: values([None], name)[:, 0] for name in OF_NETWORK},
        finished=np.isin(range(NETWORKS), finished),
        diverged=diverged or {},
    )


def recorded(*snapshots):
    recorder = Recorder([DEPTH] * NETWORKS)
    for one in snapshots:
        recorder.add(one)
    return list(recorder.records())


def expected(network, steps, measured):
    """The rows in order: by step, first those of the whole network, then layer by layer."""
    rows = []
    for step in steps:
        names = ["train_loss", *(OF_NETWORK if step in measured else ())]
        rows += [(step, None, None, name, value_of(network, step, None, name)) for name in names]
        for layer in range(1, DEPTH + 2) if step in measured else ():
            called = {1: "hidden_1", 2: "hidden_2", 3: "output"}[layer]
            rows += [
                (step, layer, called, name, value_of(network, step, layer, name))
                for name, layers in LAYERS.items()
                if layer in layers
            ]
    return polars.DataFrame(rows, schema=SCHEMA, orient="row")


def test_every_step_and_every_measure_in_order():
    frames = recorded(snapshot(0, 0), snapshot(3, 1), snapshot(5, 4))
    assert len(frames) == NETWORKS
    for network, frame in enumerate(frames):
        assert dict(frame.schema) == SCHEMA
        assert frame.equals(expected(network, range(6), {0, 3, 5}))


def test_a_network_is_recorded_up_to_where_it_finished_or_diverged():
    frames = recorded(
        snapshot(0, 0),
        snapshot(4, 1, finished=[0], diverged={2: Divergence(2, 1)}),  # between measured steps
        snapshot(8, 5, finished=[0], diverged={1: Divergence(8, 3)}),  # at a measured step
        snapshot(9, 9, finished=[0, 3]),
    )
    ends = {0: (5, {0, 4}), 1: (9, {0, 4, 8}), 2: (3, {0}), 3: (10, {0, 4, 8, 9})}
    for network, (steps, measured) in ends.items():
        assert frames[network].equals(expected(network, range(steps), measured)), network


def test_a_network_that_diverged_at_the_first_step_has_its_rows():
    frames = recorded(snapshot(0, 0, diverged={1: Divergence(0, 2)}), snapshot(2, 1))
    assert frames[1].equals(expected(1, range(1), {0}))
    assert frames[0].equals(expected(0, range(3), {0, 2}))


def test_a_network_that_is_less_deep_has_the_layers_that_are_its_own():
    recorder = Recorder([2, 2, 1, 1])
    recorder.add(snapshot(0, 0))
    frames = list(recorder.records())
    whole = expected(2, range(1), {0})
    layer = polars.col("layer")
    own = whole.filter(layer.is_null() | (layer != 2))
    assert frames[0].equals(expected(0, range(1), {0}))
    assert frames[2].drop("layer").equals(own.drop("layer"))
    assert frames[2]["layer"].equals(own["layer"].replace({3: 2}))
    assert dict(frames[2].schema) == SCHEMA


def test_which_divergence_is_remembered():
    recorder = Recorder([DEPTH] * NETWORKS)
    recorder.add(snapshot(0, 0, diverged={1: Divergence(0, 2)}))
    recorder.add(snapshot(2, 1, diverged={3: Divergence(1, 3)}))
    assert recorder.diverged == {1: Divergence(0, 2), 3: Divergence(1, 3)}


def test_names_of_layers():
    assert [layer_name(layer, 3) for layer in range(1, 5)] == ["hidden_1", "hidden_2", "hidden_3", "output"]


def test_what_is_written_is_read_with_all_that_is_not_finite(tmp_path):
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-310, 1 / 3]
    rows = [(step, None, None, "train_loss", value) for step, value in enumerate(values)]
    frame = polars.DataFrame(rows, schema=SCHEMA, orient="row")
    folder = tmp_path / "new" / "job"
    write_records(folder, frame)
    write_records(folder, frame)
    found = read_records(folder)
    assert dict(found.schema) == SCHEMA
    np.testing.assert_array_equal(found["value"].to_numpy(), np.array(values))
    assert [path.name for path in folder.iterdir()] == [RECORDS_FILE]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    frame = recorded(snapshot(0, 0))[0]
    write_records(tmp_path, frame)

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:4])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        write_records(tmp_path, frame.head(1))
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_FILE]
    assert read_records(tmp_path).equals(frame)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    (tmp_path / f".{RECORDS_FILE}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_records(tmp_path, recorded(snapshot(0, 0))[0])
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def damage(content):
    return {
        "empty": b"",
        "garbage": b"x" * 999,
        "cut-short": content[:-7],
        "half": content[: len(content) // 2],
        "other-bits": content[:4] + bytes(byte ^ 255 for byte in content[4:-8]) + content[-8:],
        "text": b"step,layer,layer_name,measure,value\n0,,,train_loss,1\n",
    }


@pytest.mark.parametrize("how", damage(b""))
@pytest.mark.parametrize(("name", "read"), [(RECORDS_FILE, read_records), (RESULTS_FILE, read_results)])
def test_a_damaged_file_is_said_in_one_line(tmp_path, name, read, how):
    polars.DataFrame({"job": ["a"] * 99, "status": ["ok"] * 99, **dict.fromkeys(SCHEMA, range(99))}).write_parquet(
        tmp_path / name
    )
    read(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes())[how])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "read"), [(RECORDS_FILE, read_records), (RESULTS_FILE, read_results)])
def test_what_is_not_there_or_something_else_is_said_in_one_line(tmp_path, name, read):
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no {name} here; name the folder of a finished command"
    with pytest.raises(UserError, match=r"^/nowhere/at/all: no "):
        read(type(tmp_path)("/nowhere/at/all"))
    polars.DataFrame({"other": [1]}).write_parquet(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    column = "step" if read is read_records else "job"
    said = f"{tmp_path / name}: has no column {column!r}; name the folder of a finished command"
    assert str(caught.value) == said
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"cannot be read: [^\n]*$"):
        read(tmp_path)


@pytest.fixture
def sweep(tmp_path):
    """Three jobs: one to the end, one that diverged between measured steps, one that left nothing."""
    frames = recorded(snapshot(0, 0), snapshot(4, 1, diverged={1: Divergence(2, 1)}), snapshot(6, 5))
    jobs = {"b": frames[0], "a": frames[1]}
    for job, frame in jobs.items():
        write_records(tmp_path / job, frame)
    polars.DataFrame({"job": ["b", "a", "none"], "status": ["ok", "diverged", "failed"]}).write_parquet(
        tmp_path / RESULTS_FILE
    )
    return tmp_path, jobs


def with_job(job, frame):
    return frame.select(polars.lit(job).alias("job"), *SCHEMA)


def test_read_sweep_has_all_records_in_the_order_of_the_results(sweep):
    folder, jobs = sweep
    found = read_sweep(folder)
    assert found.equals(polars.concat([with_job(job, frame) for job, frame in jobs.items()]))
    assert dict(found.schema) == {"job": polars.String(), **SCHEMA}


def test_read_sweep_takes_measures_and_steps(sweep):
    folder, jobs = sweep
    step, measure = polars.col("step"), polars.col("measure")
    ends = {"first": {"b": 0, "a": 0}, "last": {"b": 6, "a": 0}}  # `a` was measured at 0, and went on to 2
    for steps, of_job in ends.items():
        whole = read_sweep(folder, steps=steps)
        parts = [with_job(job, frame.filter(step == of_job[job])) for job, frame in jobs.items()]
        assert whole.equals(polars.concat(parts)), steps
        for measures in (["delta_rms"], ("grad_norm", "train_loss"), []):
            assert read_sweep(folder, measures, steps).equals(whole.filter(measure.is_in(measures)))
    assert read_sweep(folder, ["val_loss"])["step"].to_list() == [0, 4, 6, 0]


def test_read_sweep_of_a_single_run_reads_the_folder_itself(tmp_path):
    frame = recorded(snapshot(0, 0))[0]
    write_records(tmp_path, frame)
    polars.DataFrame({"job": [tmp_path.name], "status": ["ok"]}).write_parquet(tmp_path / RESULTS_FILE)
    assert read_sweep(tmp_path).equals(with_job(tmp_path.name, frame))


def test_read_sweep_without_records_is_empty(tmp_path):
    polars.DataFrame({"job": ["none"], "status": ["failed"]}).write_parquet(tmp_path / RESULTS_FILE)
    found = read_sweep(tmp_path)
    assert found.is_empty()
    assert dict(found.schema) == {"job": polars.String(), **SCHEMA}
    with pytest.raises(UserError, match=r"no results\.parquet here"):
        read_sweep(tmp_path / "nowhere")
