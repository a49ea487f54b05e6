"""Checkpoints: a group goes on from one bit for bit, however and wherever it was killed, or starts over and says so."""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import pickle
import random
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from conftest import configure

from bpexp import checkpoint, runner, spec
from bpexp.checkpoint import HEADER, MAGIC, VERSION, Checkpoint, pack, unpack
from bpexp.ensemble import Ensemble
from bpexp.entry import call
from bpexp.records import Recorder, read_records
from bpexp.sweep.checkpoints import checkpoint_folder, remove_checkpoint
from bpexp.sweep.executors import run_inline
from bpexp.sweep.files import read_json, write_json
from bpexp.sweep.groups import alone, together, write_groups
from bpexp.sweep.job import Job
from bpexp.sweep.launch import Networks
from bpexp.sweep.processes import Worker
from bpexp.sweep.progress import Progress
from bpexp.sweep.results import find_damage, is_finished
from bpexp.train import Loop

SMALL = {"model.depth": 2, "model.width": 6, "train.batch_size": 100, "train.steps": 16, "train.measure_every": 4}
MOMENTUM = {"optimizer.name": "momentum", "optimizer.momentum": 0.9}
ADAM = {"optimizer.name": "adam", "optimizer.lr": 0.01, "optimizer.beta1": 0.9, "optimizer.beta2": 0.99}
ALL = MOMENTUM | {"model.dropout": 0.2, "model.norm": "batch"}
ALWAYS, NEVER = 1e-9, 1e9


def configs_of(values, networks=3):
    """Networks of which each has its own seed and learning rate."""
    configs = [configure(SMALL | values) for _ in range(networks)]
    for number, config in enumerate(configs):
        config.seed = number
        config.optimizer.lr *= 1 + number
    return configs


def jobs_of(folder, configs):
    folder.mkdir(exist_ok=True)
    return [Job(c, [], spec.identity(c), folder / f"{n}-{spec.identity(c)}") for n, c in enumerate(configs)]


CONFIGURATIONS = {
    "plain": {"data.train_size": 100},  # 8 steps to a draw of batches: it is cut after the second one, too
    "all": ALL,
    "adam": ADAM | {"model.input_dropout": 0.1, "optimizer.warmup": 3, "optimizer.schedule": "cosine"},
    "clip": {"clip.name": "norm", "clip.threshold": 0.1, "model.norm": "layer", "optimizer.max_norm": 1.0},
    "seldom-measured": ALL | {"train.measure_every": 11, "train.steps": 30},
    "until": {"train.until": "train_loss<2.2", "train.measure_every": 2, "optimizer.lr": 0.2},
    "diverging": {"optimizer.lr": 1e12, "model.activation": "relu", "train.measure_every": 9},
}


def assert_same(one, other):
    """Snapshots are equal in every bit."""
    assert dataclasses.asdict(one).keys() == dataclasses.asdict(other).keys()
    assert (one.step, one.diverged) == (other.step, other.diverged)
    assert [(name, of) for name, (of, _) in one.layers.items()] == [
        (name, of) for name, (of, _) in other.layers.items()
    ]
    assert list(one.networks) == list(other.networks)
    for arrays in zip(numbers_of(one), numbers_of(other), strict=True):
        np.testing.assert_array_equal(*arrays)


def numbers_of(snapshot):
    of_layers = (values for _, values in snapshot.layers.values())
    return [snapshot.finished, snapshot.train_loss, *of_layers, *snapshot.networks.values()]


@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_group_goes_on_bit_for_bit_from_every_step(values, tmp_path):
    """What is written after each step, be it measured or not, leads to the same snapshots as going on at once."""
    configs, states = configs_of(values), []
    loop, snapshots = Loop(Ensemble(configs)), []
    checkpoint = Checkpoint(tmp_path / "group", {}, ALWAYS)

    def save():
        checkpoint.save(loop.state(), loop.step / 2)
        files = [(tmp_path / "group" / name).read_bytes() for name in ("state", "records")]
        states.append((loop.step, len(snapshots), files))

    for snapshot in loop.run(save):
        snapshots.append(snapshot)
        checkpoint.add(snapshot)
    assert states[-1][0] == snapshots[-1].step + 1
    resumed = Loop(Ensemble(configs))
    for step, seen, files in states[:: 3 if len(states) < 20 else 7] + states[-1:]:
        for name, content in zip(("state", "records"), files, strict=True):
            (tmp_path / "group" / name).write_bytes(content)
        found = Checkpoint(tmp_path / "group", {}, ALWAYS).load()
        assert (found.seconds, len(found.snapshots)) == (step / 2, seen)
        resumed.restore(found.loop)
        assert resumed.step == step
        for one, other in itertools.zip_longest(snapshots, [*found.snapshots, *resumed.run()]):
            assert_same(one, other)
        np.testing.assert_array_equal(resumed.ensemble.values, loop.ensemble.values)


def test_packed_snapshots_are_the_same():
    snapshots = list(Loop(Ensemble(configs_of(CONFIGURATIONS["diverging"]))).run())
    assert any(one.diverged for one in snapshots)
    for one, other in zip(snapshots, unpack(pack(snapshots)), strict=True):
        assert_same(one, other)


class Killed(BaseException):
    """A process that is killed handles nothing."""


CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


class Places:
    """Where a process may be killed: before a step, before each change of a file in `folder`, in the midst of writing.

    At the place number `last` all ends: nothing that comes after changes a file.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.seen, self.last, self.random = str(folder), 0, float("inf"), random.Random(1)
        self.before = 0  # bytes of the file that was opened last
        sys.addaudithook(self.note)  # there is no way to take it back
        compute, force = Ensemble.compute, checkpoint._force

        def counted(ensemble, **keywords):
            self.pass_()
            return compute(ensemble, **keywords)

        def half(file):
            file.flush()
            written = os.fstat(file.fileno()).st_size - self.before
            if self.seen >= self.last and written > 0:
                os.ftruncate(file.fileno(), self.before + self.random.randrange(written))
            self.pass_()
            force(file)

        monkeypatch.setattr(Ensemble, "compute", counted)
        monkeypatch.setattr(checkpoint, "_force", half)

    def note(self, event, arguments, changes=CHANGES):  # a module that is taken down has no globals
        opened = event == "open" and arguments[2] & os.O_CREAT
        if (opened or event in changes) and str(arguments[0]).startswith(self.folder):
            self.pass_()
            if opened:
                self.before = Path(arguments[0]).stat().st_size if Path(arguments[0]).exists() else 0

    def pass_(self):
        if self.seen >= self.last:
            raise Killed
        self.seen += 1

    def run(self, last, do):
        """Return whether something was killed before it ended."""
        self.seen, self.last = 0, last
        try:
            do()
        except Killed:
            return True
        finally:
            self.last = float("inf")
        return False


@pytest.fixture
def places(tmp_path, monkeypatch):
    places = Places(tmp_path / "sweep", monkeypatch)
    yield places
    places.folder = "/nowhere"


def train(jobs):
    """Do as the same command again does: train what has no result, in this process."""
    task = Networks(jobs)
    task.clear_checkpoints()
    task.start_over()
    # A process that is killed frees its locks, one that only seems to be does not.
    groups = [dataclasses.replace(group, lock=None) for group in task.groups()]
    if groups:
        task._train(groups, run_inline, Progress(groups))


def sweep_of(folder, every=ALWAYS):
    """Two groups of three networks, of which one goes to infinity."""
    configs = [*configs_of(ALL | {"sweep.checkpoint_every": every}), *configs_of(CONFIGURATIONS["diverging"])]
    for config in configs:
        config.sweep.checkpoint_every = every
    configs[-1].optimizer.lr = 0.01
    jobs = together(jobs_of(folder, configs))
    assert len({job.group for job in jobs}) == 2
    return jobs


def results_of(jobs):
    """What a sweep found, without what depends on time."""
    runs = [json.loads((job.folder / "run.json").read_text()) for job in jobs]
    frames = [read_records(job.folder) for job in jobs]
    return [{name: value for name, value in run.items() if name != "wall_time"} for run in runs], frames


def assert_equal(found, expected):
    assert found[0] == expected[0]
    assert all(one.equals(other) for one, other in zip(found[1], expected[1], strict=True))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def made_once(monkeypatch):
    """Give each group the same ensemble again, as it was made: to make one takes longer than all else here."""
    made = {}

    def ensemble(configs, device):
        key = tuple(map(spec.identity, configs))
        if key not in made:
            new = Ensemble(configs, device)
            made[key] = new, new.state()
        again, state = made[key]
        again.restore(state)
        return again

    monkeypatch.setattr(runner, "Ensemble", ensemble)
    monkeypatch.setattr(Ensemble, "close", lambda ensemble: None)


@pytest.mark.usefixtures("made_once")
def test_killed_anywhere_again_and_again_a_sweep_finds_the_same(tmp_path, places, capfd):
    expected = results_of(uninterrupted(sweep_of(tmp_path / "whole", NEVER)))
    assert {run["status"] for run in expected[0]} == {"ok", "diverged"}
    jobs = sweep_of(tmp_path / "sweep")
    kills, kept, moments = 0, {}, random.Random(0)
    for _ in range(10):
        for job in jobs:
            (job.folder / "run.json").unlink(missing_ok=True)
        kept.clear()
        while places.run(moments.randrange(1, 60), lambda: train(jobs)):
            kills += 1
            finished = {job.identity: stamp(job) for job in jobs if is_finished(job)}
            assert finished.items() >= kept.items()
            kept |= finished
        assert_equal(results_of(jobs), expected)
        train(jobs)
        assert {name.partition("tfevents")[0] for name in files(tmp_path / "sweep")} == {
            f"{job.folder.name}/{name}" for job in jobs for name in ("events.out.", "records.parquet", "run.json")
        }
    assert kills >= 100
    assert "starts over" not in capfd.readouterr().err


def uninterrupted(jobs):
    train(jobs)
    assert not (jobs[0].folder.parent / ".checkpoints").exists()
    return jobs


def stamp(job):
    return [(job.folder / name).stat().st_mtime_ns for name in ("run.json", "records.parquet")]


def test_workers_that_are_killed_lose_no_job_and_double_none(tmp_path):
    """kill -9 at moments of which nothing is known; each time another process goes on."""
    expected = results_of(uninterrupted(sweep_of(tmp_path / "whole", NEVER)))
    jobs = sweep_of(tmp_path / "sweep")
    moments, gone_on = random.Random(3), 0
    for written in (True, False):
        for group in Networks(jobs).groups():
            state = checkpoint_folder(group.jobs) / "state"
            gone_on += state.exists()
            worker = Worker()
            while not worker.idle:
                worker.receive(None)
            worker.give(group)
            wait([worker.connection])  # it has begun
            deadline = time.monotonic() + 10
            while written and not state.exists():
                assert time.monotonic() < deadline, "no checkpoint is written"
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(worker.pid, signal.SIGKILL)
            worker.close()
    assert gone_on
    train(jobs)
    assert_equal(results_of(jobs), expected)


def test_a_network_that_cannot_start_is_left_out_again(tmp_path, places):
    values = {"init.name": "lsuv", "sweep.checkpoint_every": ALWAYS}
    for folder, every in (("whole", NEVER), ("sweep", ALWAYS)):
        configs = configs_of(values | {"sweep.checkpoint_every": every})
        configs[1].init.bias_std = 100.0
        jobs = together(jobs_of(tmp_path / folder, configs))
        while places.run(60, lambda jobs=jobs: train(jobs)):
            assert every == ALWAYS
        if every == NEVER:
            expected = results_of([jobs[0], jobs[2]])
    assert_equal(results_of([jobs[0], jobs[2]]), expected)
    assert json.loads((jobs[1].folder / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "sweep/.checkpoints").exists()


@pytest.fixture
def written(tmp_path):
    """A checkpoint in the midst of training, and the loop that it is of."""
    loop = Loop(Ensemble(configs_of({"train.steps": 6, "train.measure_every": 2})))
    one = Checkpoint(tmp_path / "group", {"group": ["a", "b"], "device": "cpu"}, ALWAYS)
    for snapshot in itertools.islice(loop.run(lambda: one.save(loop.state(), 1.0)), 3):
        one.add(snapshot)
    return one


def again(one, **about):
    """Return what another process finds there."""
    return Checkpoint(one.folder, one.about | about, NEVER).load()


def test_a_checkpoint_that_is_not_whole_is_told_and_removed(written, capsys):
    """Every part of both files, cut short, changed in a byte, or gone."""
    contents = {path.name: path.read_bytes() for path in written.folder.iterdir()}
    assert set(contents) == {"state", "records"}
    assert len(again(written).snapshots) == 2
    for name, content in contents.items():
        size = len(content)
        places = [*range(40), *range(40, size, size // 25), size - 1]
        cut = [content[:place] for place in places]
        changed = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
        for damaged in [None, *cut, *changed]:
            written.folder.mkdir(exist_ok=True)
            for file, whole in contents.items():
                (written.folder / file).write_bytes(whole)
            (written.folder / name).write_bytes(damaged) if damaged is not None else (written.folder / name).unlink()
            found = again(written)
            said = capsys.readouterr().err
            if name == "state" and damaged is None:
                assert (found, said) == (None, "")
                continue
            assert found is None
            assert said.startswith(f"{written.folder}: the checkpoint is ")
            assert said.endswith("; the group starts over\n")
            assert said.count("\n") == 1
            assert not written.folder.exists()


@pytest.mark.parametrize(
    ("about", "change", "why"),
    [
        ({"group": ["b", "a"]}, None, "of another group"),
        ({"device": "cuda"}, None, "of another device"),
        ({}, lambda content: content.replace(MAGIC, b"bpexp checkpoint %d\n" % (VERSION + 1)), "of another version"),
        ({}, lambda content: b"x" + content, "damaged"),
    ],
    ids=["members", "device", "version", "something-else"],
)
def test_a_checkpoint_of_something_else_is_told_and_ignored(written, about, change, why, capsys):
    if change is not None:
        state = written.folder / "state"
        state.write_bytes(change(state.read_bytes()))
    assert again(written, **about) is None
    assert capsys.readouterr().err == f"{written.folder}: the checkpoint is {why}; the group starts over\n"


class Harmful:
    """Does harm where it is read by pickle."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_reading_executes_nothing(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"about": Harmful()}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(Harmful(), protocol=2)):
        part = HEADER.pack(len(payload), checkpoint.zlib.crc32(payload)) + payload
        written.folder.mkdir(exist_ok=True)
        (written.folder / "records").write_bytes(b"")
        (written.folder / "state").write_bytes(MAGIC + part)
        assert again(written) is None
        assert "the checkpoint is damaged" in capsys.readouterr().err
    assert not Path("harm").exists()


def test_what_another_commit_trained_is_told(written, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "current_commit", lambda: "another")
    assert again(written) is not None
    said = "warning: goes on from what another commit trained"
    assert capsys.readouterr().err == f"{written.folder}: {said}\n"


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, capsys):
    """It is told once, and what was written before stays good."""
    values = ALL | {"train.steps": 9, "train.measure_every": 2}
    expected = list(Loop(Ensemble(configs_of(values))).run())
    loop, force, snapshots, calls = Loop(Ensemble(configs_of(values))), checkpoint._force, [], []
    one = Checkpoint(tmp_path / "group", {}, ALWAYS)

    def full(file):
        calls.append(file)
        if 6 < len(calls) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        force(file)

    monkeypatch.setattr(checkpoint, "_force", full)

    def save():
        one.save(loop.state(), 0.0)
        found = Checkpoint(tmp_path / "group", {}, ALWAYS).load()
        steps.append(found.loop["step"])
        for pair in zip(found.snapshots, expected, strict=False):
            assert_same(*pair)
        resumed = Loop(Ensemble(configs_of(values)))
        resumed.restore(found.loop)
        for pair in zip([*found.snapshots, *resumed.run()], expected, strict=True):
            assert_same(*pair)

    steps = []
    for snapshot in loop.run(save):
        one.add(snapshot)
        snapshots.append(snapshot)
    assert [s.step for s in snapshots] == [s.step for s in expected]
    assert steps[:4] == [1, 2, 3, 3]
    assert steps[-1] == 10
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'group'}: the checkpoint cannot be written: No space left on device; training goes on without"
    ]


def test_a_folder_that_cannot_be_made_does_not_stop_training(tmp_path, capsys):
    (tmp_path / ".checkpoints").write_text("a file")
    one = Checkpoint(tmp_path / ".checkpoints/group", {}, ALWAYS)
    one.save({}, 0.0)
    one.save({}, 0.0)
    assert capsys.readouterr().err.count("the checkpoint cannot be written: ") == 1


def note_writings(monkeypatch):
    written, write = [], Checkpoint._write

    def noted(self, loop, seconds):
        write(self, loop, seconds)
        written.append((loop["step"], self.folder))

    monkeypatch.setattr(Checkpoint, "_write", noted)
    return written


def test_a_group_that_is_done_before_the_interval_writes_none(tmp_path, monkeypatch):
    written = note_writings(monkeypatch)
    train(sweep_of(tmp_path / "sweep", NEVER))
    assert written == []


def test_a_job_alone_has_its_checkpoint_in_its_folder(tmp_path, monkeypatch):
    written = note_writings(monkeypatch)
    (job,) = alone(jobs_of(tmp_path / "run", configs_of({"sweep.checkpoint_every": ALWAYS}, 1)))
    runner.run_group([job], report=lambda step: None)
    assert written[0] == (1, job.folder / ".checkpoint")
    assert written[-2][0] == written[-1][0] == 17  # the last one at the end, before the results are left
    assert {name.partition("tfevents")[0] for name in files(job.folder)} == {
        "events.out.",
        "records.parquet",
        "run.json",
    }


def interrupt(jobs, monkeypatch, step=9):
    """Train, and be killed at a step."""

    def report(at):
        if at >= step:
            raise Killed

    for group in Networks(jobs).groups():
        with contextlib.suppress(Killed):
            runner.run_group(group.jobs, report=report, kept=group.kept)


def test_checkpoints_that_nothing_goes_on_from_are_removed(tmp_path):
    jobs = sweep_of(tmp_path, NEVER)
    names = sorted({job.group for job in jobs})
    write_groups(tmp_path, jobs)
    earlier = {"finished": ["a", "gone"], "goes-on": ["a", "b"], "all-gone": ["c"]}
    write_json(tmp_path / "groups.json", read_json(tmp_path / "groups.json") | earlier)
    for name in (*names, *earlier, "of-unknown-members"):
        Checkpoint(tmp_path / ".checkpoints" / name, {}, ALWAYS).save({}, 0.0)
    for name, status in (("a", "ok"), ("b", "failed")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {"status": status})
    Networks(jobs).clear_checkpoints()
    left = sorted([*names, "goes-on", "of-unknown-members"])
    assert sorted(path.name for path in (tmp_path / ".checkpoints").iterdir()) == left
    for job in [job for job in jobs if job.group == names[0]]:
        job.folder.mkdir()
        write_json(job.folder / "run.json", {"status": "ok", "identity": job.identity, "group": job.group})
    Networks(jobs).clear_checkpoints()
    assert not (tmp_path / ".checkpoints" / names[0]).exists()
    assert (tmp_path / ".checkpoints" / names[1]).exists()


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_comes_while_a_checkpoint_is_removed(tmp_path, monkeypatch, number):
    Checkpoint(tmp_path / "group", {}, ALWAYS).save({}, 0.0)
    rmdir, late = Path.rmdir, [f".state.{one}" for one in range(number)]

    def rmdir_after_a_write(path):
        if late:
            (path / late.pop()).touch()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", rmdir_after_a_write)
    remove_checkpoint(tmp_path / "group")
    assert (tmp_path / "group").exists() == (number == 2)
    remove_checkpoint(tmp_path / "group")
    assert not (tmp_path / "group").exists()


def test_fresh_starts_over_in_the_same_groups(tmp_path, monkeypatch):
    jobs = sweep_of(tmp_path / "sweep")
    interrupt(jobs, monkeypatch)
    assert len(list((tmp_path / "sweep/.checkpoints").iterdir())) == 2
    fresh = [dataclasses.replace(job, config=configure_fresh(job.config)) for job in jobs]
    written = note_writings(monkeypatch)
    train(fresh)
    assert [step for step, _ in written if step == 1] == [1, 1]
    assert_equal(results_of(fresh), results_of(uninterrupted(sweep_of(tmp_path / "whole", NEVER))))
    runs = [json.loads((job.folder / "run.json").read_text()) for job in fresh]
    assert [run["group"] for run in runs] == [job.group for job in jobs]


def configure_fresh(config):
    return dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, fresh=True))


def test_the_wall_time_has_the_interrupted_parts(tmp_path, monkeypatch):
    (job,) = alone(jobs_of(tmp_path / "run", configs_of({"sweep.checkpoint_every": ALWAYS}, 1)))
    interrupt([job], monkeypatch)
    found = Checkpoint(checkpoint_folder([job]), {}, NEVER).load()
    assert 0 < found.seconds < 60
    one = Checkpoint(checkpoint_folder([job]), runner._describe([job], Ensemble([job.config])), NEVER)
    one.load()
    one.save(found.loop, 1000.0)
    train([job])
    assert json.loads((job.folder / "run.json").read_text())["wall_time"] > 1000


def test_progress_begins_where_the_group_goes_on(tmp_path, monkeypatch, capsys):
    jobs = together(jobs_of(tmp_path / "sweep", configs_of({"sweep.checkpoint_every": ALWAYS})))
    interrupt(jobs, monkeypatch)
    steps = []
    runner.run_group(jobs, report=steps.append)
    assert steps == [12, 12, 16]
    assert capsys.readouterr().err == f"group {jobs[0].group} goes on at step 12\n"


def test_what_a_killed_writer_left_is_cleared(tmp_path, monkeypatch):
    jobs = together(jobs_of(tmp_path / "sweep", configs_of({"sweep.checkpoint_every": ALWAYS})))
    interrupt(jobs, monkeypatch)
    checkpoint_folder(jobs).joinpath("state").unlink()  # as where the disk was full before the first was whole
    left = [jobs[0].folder / ".records.parquet.123", checkpoint_folder(jobs) / ".state.123"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (tmp_path / "sweep/.hidden").write_text("somebody else's")
    train(jobs)
    assert not any(path.exists() for path in left)
    assert not (tmp_path / "sweep/.checkpoints").exists()
    assert (tmp_path / "sweep/.hidden").exists()


def test_removing_what_is_not_there_is_no_error(tmp_path):
    remove_checkpoint(tmp_path / "none")
    (tmp_path / ".checkpoints/a").mkdir(parents=True)
    (tmp_path / ".checkpoints/b").mkdir()
    remove_checkpoint(tmp_path / ".checkpoints/a")
    assert (tmp_path / ".checkpoints/b").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = {
    "records-gone": ("records.parquet", Path.unlink),
    "records-cut": ("records.parquet", cut),
    "records-zero": ("records.parquet", zero),
    "run-cut": ("run.json", cut),
    "run-empty": ("run.json", lambda path: path.write_bytes(b"")),
}


@pytest.mark.usefixtures("made_once")
def test_a_job_with_a_damaged_file_runs_again_and_the_others_stay(tmp_path):
    jobs = uninterrupted(sweep_of(tmp_path / "sweep", NEVER))
    expected, stamps = results_of(jobs), [stamp(job) for job in jobs]
    assert [find_damage(job) for job in jobs] == [None] * len(jobs)
    for name, damage in DAMAGE.values():
        damage(jobs[1].folder / name)
        assert [is_finished(job) for job in jobs] == [job is not jobs[1] for job in jobs]
        assert find_damage(jobs[1]) == jobs[1].folder / name
        train(jobs)
        assert_equal(results_of(jobs), expected)
        assert [stamp(job) for job in jobs if job is not jobs[1]] == [s for n, s in enumerate(stamps) if n != 1]


def test_damaged_files_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", *(f"{name}={value}" for name, value in SMALL.items()), "model.activation=tanh", "init=he"]
    folder = call("gradient_flow", [*arguments, "seed=0,1"])
    before = polars.read_parquet(folder / "results.parquet")
    jobs = before["job"].to_list()
    cut(folder / jobs[0] / "records.parquet")
    for name in ("groups.json", "results.parquet"):
        cut(folder / name)
    capsys.readouterr()
    call("gradient_flow", [*arguments, "seed=0,1"])
    said = capsys.readouterr().err.splitlines()
    assert f"{folder / jobs[0] / 'records.parquet'}: damaged or gone; the job runs again" in said
    assert f"{folder / 'groups.json'}: damaged; it is written anew" in said
    assert polars.read_parquet(folder / "results.parquet").equals(before)
    assert len(json.loads((folder / "groups.json").read_text())) == 1


INFINITE = {
    "sgd": {},
    "momentum-batch": MOMENTUM | {"model.norm": "batch", "model.dropout": 0.2},
    "nesterov-value": {"optimizer.name": "nesterov", "optimizer.momentum": 0.8, "clip.name": "value"},
    "adam-layer": ADAM | {"model.norm": "layer", "model.input_dropout": 0.1},
    "adamw-rezero": ADAM
    | {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "model.residual": "rezero", "init.gate": 0.5},
    "norm": {"clip.name": "norm", "optimizer.l2": 0.01, "optimizer.schedule": "cosine"},
    "adaptive-layer": {"clip.name": "adaptive", "model.norm": "layer", "model.residual": "scaled"},
    "max-norm": {"optimizer.max_norm": 1.0, "optimizer.warmup": 3, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("values", INFINITE.values(), ids=INFINITE)
def test_a_network_that_goes_to_infinity_changes_no_bit_of_its_neighbours_records(values):
    recorded = []
    for rate in (1e38, 0.03):
        configs = configs_of({"model.depth": 4, "model.activation": "relu"} | values, 4)
        configs[1].optimizer.lr = rate
        for number, config in enumerate(configs):
            config.clip.threshold = 0.1 * (1 + number) if config.clip.name != "none" else None
        recorder = Recorder([4] * 4)
        for snapshot in Loop(Ensemble(configs)).run():
            recorder.add(snapshot)
        recorded.append((recorder.diverged, list(recorder.records())))
    (wild, ours), (tame, others) = recorded
    assert (set(wild), tame) == ({1}, {})
    for network in (0, 2, 3):
        assert ours[network].equals(others[network])
