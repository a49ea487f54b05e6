"""The same sweep in this process, in worker processes, on a cluster and under Hydra's own launcher."""

import concurrent.futures
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import polars
import pytest
from conftest import configure
from submitit.core import utils
from submitit.local.local import LocalJob

from bpexp.entry import call, main
from bpexp.records import read_records
from bpexp.sweep import cluster, executors, processes
from bpexp.sweep.files import read_json
from bpexp.sweep.group import Group, train
from bpexp.sweep.job import Job
from bpexp.sweep.lock import LockedError, hold
from bpexp.sweep.processes import Server, Worker, run_in_processes
from bpexp.sweep.progress import Progress

GRID = [
    *("-m", "model.depth=2", "model.width=4", "model.activation=tanh", "init=he", "dtype=float64", "seed=0,1"),
    *("train.batch_size=8,16", "train.steps=4", "train.measure_every=2", "optimizer=momentum", "model.dropout=0.1"),
]
"""Two groups: networks of one batch size train together."""

WAYS = {
    "inline": ["sweep.executor=inline"],
    "processes": ["sweep.workers=2"],
    "submitit": ["sweep.executor=submitit", "sweep.cluster=local", "sweep.workers=2"],
    "stock": ["hydra/launcher=basic", "hydra/sweeper=basic"],
}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    for way, folder in folders.items():
        call("gradient_flow", [*GRID, *WAYS[way], f"hydra.sweep.dir={folder}"])
    return folders


def results(folder):
    return polars.read_parquet(folder / "results.parquet").drop("sweep.executor", "sweep.workers", "sweep.cluster")


def files(folder):
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.parent if path.name.startswith("events.") else path) for path in paths)


@pytest.mark.parametrize("way", ["processes", "submitit"])
def test_all_executors_give_the_same_bits(sweeps, way):
    assert results(sweeps[way]).equals(results(sweeps["inline"]))
    assert files(sweeps[way]) == files(sweeps["inline"])
    names = results(sweeps[way])["job"]
    assert len(names) == 4
    for name in names:
        records = read_records(sweeps[way] / name)
        assert records["step"].max() == 4
        assert records.equals(read_records(sweeps["inline"] / name))


def test_stock_launchers_give_the_same_numbers_before_training(sweeps):
    stock, ensemble = results(sweeps["stock"]), results(sweeps["inline"])
    assert stock.columns == ensemble.columns
    assert stock["job"].to_list() == ensemble["job"].to_list()
    assert files(sweeps["stock"]) == files(sweeps["inline"])
    for name in stock["job"]:
        first, second = (
            read_records(sweeps[way] / name).filter(polars.col("step") == 0) for way in ("stock", "inline")
        )
        assert first.drop("value").equals(second.drop("value"))
        assert first["value"].to_list() == pytest.approx(second["value"].to_list(), rel=1e-12, abs=1e-12)


def groups_of(folder, steps):
    configs = [configure({"model.depth": 2, "model.width": 4, "seed": seed, "train.steps": steps}) for seed in range(3)]
    return [Group([Job(one, [], str(one.seed), folder / f"{one.seed}", f"{one.seed}")]) for one in configs]


def test_a_worker_that_is_killed_fails_its_group_alone(tmp_path, monkeypatch):
    killed = []

    def give_and_kill(worker, group, give=Worker.give):
        give(worker, group)
        if not killed:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(Worker, "give", give_and_kill)
    groups = groups_of(tmp_path, 2)
    ended = {group.name: statuses for group, statuses in run_in_processes(iter(groups), Progress(groups), workers=1)}
    assert ended == {"0": {"0": "failed"}, "1": {"1": "ok"}, "2": {"2": "ok"}}
    error = read_json(tmp_path / "0/run.json")["error"]
    assert error == f"worker process {killed[0]} was killed by signal 9 (SIGKILL, as when memory runs out)"


def test_a_worker_ends_in_the_midst_of_its_group_when_its_command_is_gone(tmp_path):
    [group, *_] = groups_of(tmp_path, 10**7)
    worker = Worker()
    progress = Progress([group])
    while not worker.idle:
        worker.receive(progress)
    worker.give(group)
    worker.receive(progress)  # it trains
    worker.connection.close()
    worker.log.close()
    assert worker.server.exit_code(worker.pid) in (0, 1)  # not before it found out
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    workers = []

    def receive(worker, progress, receive=Worker.receive):
        workers.append(worker)
        ended = receive(worker, progress)
        if ended:
            raise KeyboardInterrupt
        return ended

    monkeypatch.setattr(Worker, "receive", receive)
    folder = f"hydra.sweep.dir={tmp_path}"
    assert main("gradient_flow", "", arguments=[*GRID, *WAYS["processes"], folder]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    done = len(list(tmp_path.glob("*/run.json")))
    assert said == f"interrupted: {done} of 4 jobs are finished and kept; the same command goes on"
    assert done >= 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)
    monkeypatch.undo()
    assert main("gradient_flow", "", arguments=[*GRID, *WAYS["processes"], folder]) == 0


def test_what_a_worker_raises_reaches_the_command(tmp_path):
    (tmp_path / "0").write_text("a file where the folder of a job should be")
    groups = groups_of(tmp_path, 0)[:1]
    with pytest.raises(OSError, match="/0"):
        list(run_in_processes(iter(groups), Progress(groups), workers=1))


def test_workers_that_do_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "COMMAND", "raise ImportError('no such thing: {}')")
    monkeypatch.setattr(processes, "_server", lambda servers=[]: servers)
    groups = groups_of(tmp_path, 0)
    with pytest.raises(ChildProcessError, match=r"^worker processes do not start: ImportError: no such thing: \d+$"):
        list(run_in_processes(iter(groups), Progress(groups), workers=2))


def test_a_script_without_a_main_guard_runs_once_and_leaves_torch_to_its_workers(tmp_path):
    script = tmp_path / "script.py"
    call_it = f"from bpexp.entry import call\ncall('gradient_flow', {[*GRID, *WAYS['processes']]})\n"
    script.write_text(f"print('once')\n{call_it}import sys\nprint('torch' in sys.modules)\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["once", "4 jobs: 4 ok; results in outputs/gradient_flow", "False"]
    assert len(done.stderr.splitlines()) >= 1
    assert len(list((tmp_path / "outputs/gradient_flow/summary").glob("*/events.*"))) == 2


def test_what_needs_torch_runs_in_a_worker_that_is_kept_and_here_without_one(tmp_path, capfd):
    def keep():
        worker = Worker()
        while not worker.idle:
            worker.receive(Progress([]))
        processes._spare().append(worker)
        return worker

    worker = keep()
    assert processes.run_where_torch_is(os.getpid) == worker.pid
    assert processes.run_where_torch_is(os.getpid) == os.getpid()
    keep()
    with pytest.raises(FileNotFoundError, match="none"):
        processes.run_where_torch_is(functools.partial(os.stat, tmp_path / "none"))
    os.kill(keep().pid, signal.SIGKILL)
    assert processes.run_where_torch_is(os.getpid) == os.getpid()
    capfd.readouterr()
    keep()
    processes.run_where_torch_is(functools.partial(print, "said"))
    assert capfd.readouterr().out == "said\n"


def test_a_worker_that_is_kept_ends_with_an_interrupt():
    worker = Worker()
    while not worker.idle:
        worker.receive(Progress([]))
    processes._spare().append(worker)
    with pytest.raises(KeyboardInterrupt), processes.ending_spare():
        raise KeyboardInterrupt
    assert processes._spare() == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


@pytest.mark.parametrize(
    ("values", "cores", "inline"),
    [
        ({}, 2, False),
        ({}, 1, True),
        ({"sweep.workers": 1}, 2, True),
        ({"sweep.workers": 2}, 1, False),
        ({"sweep.executor": "inline"}, 2, True),
        ({"device": "cuda"}, 2, True),
    ],
)
def test_what_runs_inline(values, cores, inline, monkeypatch):
    monkeypatch.setattr(executors, "count_cores", lambda: cores)
    monkeypatch.setattr(executors, "has_cuda", lambda: False)
    groups = [Group([Job(configure(values), [], name, Path(name), name)]) for name in "abc"]
    assert (executors.choose_executor(groups, Path()) is executors.run_inline) == inline
    assert executors.choose_executor(groups[:1], Path()) is executors.run_inline


def test_cuda_is_asked_of_torch_only_where_there_may_be_one(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(executors, "CUDA_DEVICES", (str(tmp_path / "none"),))
    executors.has_cuda.cache_clear()
    assert not executors.has_cuda()
    monkeypatch.setattr(executors, "CUDA_DEVICES", (str(tmp_path),))
    executors.has_cuda.cache_clear()
    assert executors.has_cuda()
    executors.has_cuda.cache_clear()


def test_submitit_where_it_is_not_installed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = tmp_path / "here"
    assert main("gradient_flow", "", arguments=["-m", "sweep.executor=submitit", f"hydra.sweep.dir={folder}"]) == 2
    said = "sweep.executor: submitit is not installed; pip install 'bpexp[slurm]', or choose processes\n"
    assert capsys.readouterr().err == said
    assert not folder.exists()


def test_jobs_of_the_cluster_that_break_fail_their_groups(tmp_path, monkeypatch):
    """One that raises, one that is killed, and one that is well."""
    groups = groups_of(tmp_path, 0)
    logs = tmp_path / "logs"
    logs.mkdir()
    jobs = [LocalJob(logs, group.name) for group in groups]
    utils.cloudpickle_dump(("error", "Traceback:\n  File\nOSError: no space\n"), jobs[0].paths.result_pickle)
    utils.cloudpickle_dump(("success", {"2": "ok"}), jobs[2].paths.result_pickle)
    executor = types.SimpleNamespace(map_array=lambda task, batch: [jobs[groups.index(group)] for group in batch])
    monkeypatch.setattr(LocalJob, "_results_timeout_s", 0)
    monkeypatch.setattr(cluster, "_executor", lambda *arguments, **settings: executor)
    sweep = configure({"sweep.cluster": "local"}).sweep
    ends = cluster.run_on_cluster(iter(groups), Progress(groups), sweep=sweep, workers=2, folder=logs)
    assert [(group.name, statuses) for group, statuses in ends] == [
        ("0", {"0": "failed"}),
        ("1", {"1": "failed"}),
        ("2", {"2": "ok"}),
    ]
    assert read_json(tmp_path / "0/run.json")["error"] == "OSError: no space"
    assert read_json(tmp_path / "1/run.json")["error"].startswith("job 1 of the cluster left no result (state ")
    assert logs.exists()


@pytest.fixture
def locked(tmp_path):
    [group, *_] = groups_of(tmp_path, 0)
    return dataclasses.replace(group, lock=tmp_path / ".0.lock")


def test_a_group_that_another_process_trains_does_not_fail(locked, tmp_path):
    said = rf"^group 0 is still in use by process {os.getpid()} on .*; wait for it, and give the same command again$"
    with hold(locked.lock), pytest.raises(LockedError, match=said):
        train(locked, lambda step: None, patience=0)
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_the_cluster_waits_for_another_and_finds_what_it_left(locked):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with hold(locked.lock):
            waiting = pool.submit(cluster.Task(), locked)
            assert train(dataclasses.replace(locked, lock=None), lambda step: None) == {"0": "ok"}
            left = (locked.jobs[0].folder / "run.json").stat().st_mtime_ns
            assert not waiting.done()
        assert waiting.result(60) == {"0": "ok"}
    assert (locked.jobs[0].folder / "run.json").stat().st_mtime_ns == left


def test_a_job_of_the_cluster_that_finds_its_group_locked_does_not_fail_it(locked, tmp_path, monkeypatch):
    job = LocalJob(tmp_path, "0")
    utils.cloudpickle_dump(("success", LockedError("group 0 is still in use")), job.paths.result_pickle)
    executor = types.SimpleNamespace(map_array=lambda task, batch: [job])
    monkeypatch.setattr(cluster, "_executor", lambda *arguments, **settings: executor)
    sweep = configure({"sweep.cluster": "local"}).sweep
    with pytest.raises(LockedError, match=r"^group 0 is still in use$"):
        list(cluster.run_on_cluster(iter([locked]), Progress([locked]), sweep=sweep, workers=1, folder=tmp_path))
    assert not locked.jobs[0].folder.exists()


def test_of_a_worker_whose_server_is_dead_nothing_is_known():
    server = Server()
    server.process.kill()
    server.process.wait()
    assert server.exit_code(1) is None
    server.control.close()
    server.control, theirs = socket.socketpair()
    with theirs, server.control:
        theirs.shutdown(socket.SHUT_WR)
        assert server.exit_code(1) is None


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    keys = {"executor": "submitit", "partition": "short", "minutes": 5, "memory": 1.5, "workers": 7}
    sweep = configure({f"sweep.{name}": value for name, value in keys.items()}).sweep
    assert cluster.choose_cluster(sweep) == "slurm"
    asked = cluster._executor("slurm", sweep, tmp_path, cuda=True)._executor.parameters
    assert asked == {
        "job_name": "bpexp",
        "cpus_per_task": 1,
        "gpus_per_node": 1,
        "time": 5,
        "mem": "1536MB",
        "partition": "short",
        "array_parallelism": 7,
    }
