"""Jobs of a grid that cannot run, and jobs that fail while they do."""

import polars
import pytest
import yaml

from bpexp.entry import main

GRID = ["-m", "model.depth=2", "model.activation=tanh", "init=he", "hydra.sweep.dir=here"]
STOCK = ["hydra/launcher=basic", "hydra/sweeper=basic"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "here"


def run(*arguments):
    return main("gradient_flow", "", arguments=[*GRID, *arguments])


def results(folder):
    return polars.read_parquet(folder / "results.parquet")


@pytest.mark.parametrize("launcher", [[], STOCK])
def test_a_wrong_job_is_named_before_anything_runs(launcher, folder, runner, capsys):
    assert run("seed=0", "data.train_size=100,5000", "train.batch_size=32", *launcher) == 2
    said = capsys.readouterr().err
    assert said.startswith("data.train_size: 5000 is larger than the training part of digits (1078); ")
    assert " (job model.depth=2 model.activation=tanh init=he seed=0 data.train_size=5000 train.batch_size=32" in said
    assert said.endswith("); 1 of 2 jobs cannot run; sweep.keep_going=true runs the others\n")
    assert said.count("\n") == 1
    assert runner.groups == []
    assert not folder.exists()


def test_wrong_jobs_are_counted_and_the_first_of_each_kind_is_named(folder, runner, capsys):
    assert run("optimizer=momentum", "optimizer.momentum=0.9,1.5,2.5,3.5,4.5", "seed=0,1,2") == 2
    said = capsys.readouterr().err.rstrip("\n").split("; ")
    where = "(job model.depth=2 model.activation=tanh init=he seed=0 optimizer=momentum optimizer.momentum"
    assert said == [
        "optimizer.momentum: 1.5 is out of range",
        f"must be at least 0 and below 1 {where}=1.5 and 2 more)",
        "optimizer.momentum: 2.5 is out of range",
        f"must be at least 0 and below 1 {where}=2.5 and 2 more)",
        "optimizer.momentum: 3.5 is out of range",
        f"must be at least 0 and below 1 {where}=3.5 and 2 more)",
        "1 more mistake",
        "12 of 15 jobs cannot run",
        "sweep.keep_going=true runs the others",
    ]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sweep.workers=0", "sweep.workers: 0 is out of range; must be at least 1\n"),
        ("sweep.workers=two", "sweep.workers: 'two' is not an integer\n"),
        ("sweep.minutes=3", "sweep.minutes: 3 would be ignored by sweep.executor=processes; choose submitit\n"),
    ],
)
def test_a_wrong_setting_is_the_sweep_s(setting, said, folder, runner, capsys):
    assert run("seed=0,1", "sweep.keep_going=true", setting) == 2
    assert capsys.readouterr().err == said
    assert not folder.exists()


def test_an_unknown_executor_names_the_choices(folder, runner, capsys):
    assert run("seed=0,1", "sweep.executor=foo") == 2
    said = capsys.readouterr().err
    assert said.startswith("sweep.executor: ")
    assert "inline" in said
    assert "job" not in said


def test_stock_launchers_count_over_all_jobs(folder, runner, capsys):
    assert run("seed=0,1,2", *STOCK) == 0
    lines = [line.split(", ")[:2] for line in capsys.readouterr().err.splitlines() if line.startswith("groups ")]
    assert all(groups.endswith("/3") for groups, _ in lines)
    assert lines[-1] == ["groups 3/3", "jobs 3/3"]


@pytest.mark.parametrize("launcher", [[], STOCK])
def test_keep_going_runs_the_others(launcher, folder, runner, capsys):
    assert run("init.gain=1,-1", "seed=0,1", "sweep.keep_going=true", *launcher) == 1
    frame = results(folder)
    why = "init.gain: -1.0 is out of range; must be at least 0"
    assert frame["init.gain"].to_list() == [1, -1] * 2
    assert frame["status"].to_list() == ["ok", "failed"] * 2
    assert frame["error"].to_list() == [None, why] * 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-2:] == [f"failed: {name}: {why}" for name in frame["job"][1::2]]
    assert "4 jobs: 2 ok, 2 failed; results in here" in shown.out
    for name in frame["job"]:
        assert yaml.safe_load((folder / name / ".hydra/config.yaml").read_text())["init"]["name"] == "he"
    grouped = yaml.safe_load((folder / "groups.json").read_text())
    assert sorted(name for names in grouped.values() for name in names) == sorted(frame["job"][::2])
    assert run("init.gain=1,-1", "seed=0,1", *launcher) == 2
    assert len(runner.trained) == 2


def test_keep_going_where_all_jobs_are_wrong(folder, runner):
    assert run("init.gain=-1,-2", "seed=0", "sweep.keep_going=true") == 1
    assert results(folder)["status"].to_list() == ["failed"] * 2
    assert runner.groups == []


def test_data_that_is_not_there_has_no_identity_and_is_always_refused(folder, runner, capsys):
    assert run("data=idx", "data.root=nowhere", "seed=0", "sweep.keep_going=true") == 2
    assert capsys.readouterr().err.startswith("data.root: 'nowhere' does not exist; ")
    assert not folder.exists()


def test_a_value_of_the_wrong_type_has_no_row_and_is_always_refused(folder, runner, capsys):
    assert run("seed=0", "model.width=4,four", "sweep.keep_going=true") == 2
    assert capsys.readouterr().err.startswith("model.width: 'four' is not an integer (job model.depth=2 ")
    assert not folder.exists()


def test_a_sweep_stops_at_the_first_job_that_fails(folder, runner):
    runner.status[1] = "failed"
    assert run("seed=0,1", "train.steps=9,8,7", "sweep.keep_going=false") == 1
    assert len(runner.groups) == 1
    assert results(folder)["error"].to_list() == [None, "did not run", "did not run", "it broke", *["did not run"] * 2]


def test_the_largest_groups_run_first(folder, runner):
    assert run("seed=0", "train.steps=7,9,8") == 0
    steps = {job.rpartition("-")[2]: steps for job, steps in results(folder).select("job", "train.steps").rows()}
    assert [steps[identity] for [identity] in runner.groups] == [9, 8, 7]
