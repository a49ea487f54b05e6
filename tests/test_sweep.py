import json
from pathlib import Path

import polars
import pytest
import yaml
from omegaconf import OmegaConf

from bpexp import spec
from bpexp.entry import FailedJobsError, call
from bpexp.spec import UserError
from bpexp.sweep.compose import parse
from bpexp.sweep.files import read_json, replacing, write_text
from bpexp.sweep.grid import cells, expand
from bpexp.sweep.groups import alone, together
from bpexp.sweep.job import LONGEST_NAME, Job, job_name
from bpexp.sweep.launch import Networks

SMALL = ["-m", "model.depth=2,3", "model.activation=tanh", "init=glorot,pytorch", "seed=0,1", "train.steps=3"]
TINY = ["-m", "model.depth=2", "model.activation=tanh", "init=he", "seed=0,1"]
STOCK = ["hydra/launcher=basic", "hydra/sweeper=basic"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep(*arguments):
    folder = call("gradient_flow", arguments)
    return folder, polars.read_parquet(folder / "results.parquet")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["a=1,2", "b=3"], [["a=1", "b=3"], ["a=2", "b=3"]]),
        (["a=range(3)"], [["a=0"], ["a=1"], ["a=2"]]),
        (["a=choice(x,y)"], [["a=x"], ["a=y"]]),
        (["a=1,2", "b=u,v"], [["a=1", "b=u"], ["a=1", "b=v"], ["a=2", "b=u"], ["a=2", "b=v"]]),
        (["a=1,2", "b=0", "a=7"], [["a=7", "b=0"]]),
        (["a='x<1','y>=2'"], [["a='x<1'"], ["a='y>=2'"]]),
    ],
)
def test_expand(arguments, jobs):
    assert expand(parse(arguments)) == jobs


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["b=0,1"], [["a=1", "b=0"], ["a=1", "b=1"], ["a=2", "c=3", "b=0"], ["a=2", "c=3", "b=1"]]),
        (["c=7", "b=0"], [["c=7", "b=0"]]),
    ],
)
def test_expand_cells_unless_one_of_their_keys_is_given(arguments, jobs):
    given = parse(arguments)
    assert expand(given, [parse(cell) for cell in cells({"cells": ["a=1", "a=2 c=3"]}, given)]) == jobs


def test_expand_refuses_an_empty_axis():
    with pytest.raises(UserError, match=r"^b: range\(0\) has no values$"):
        expand(parse(["a=1,2", "b=range(0)"]))


def test_job_name():
    overrides = ["model.depth=4", "init=he", "train.steps=3", "experiment=gradient_flow"]
    assert job_name(overrides, ["train.steps", "experiment"], "0123") == "depth=4,init=he-0123"
    assert job_name(["experiment=gradient_flow"], ["experiment"], "0123") == "0123"
    assert job_name(["train.until='train_loss<1 / 2'"], [], "0123") == "until=_train_loss_1_2_-0123"
    assert len(job_name([f"a={'x' * 500}"], [], "0123")) == LONGEST_NAME + len("-0123")


def test_sweep_leaves_rows_and_folders(runner):
    folder, frame = sweep(*SMALL)
    assert folder == Path("outputs/gradient_flow")
    assert len(frame) == len(set(runner.trained)) == 8
    assert frame["job"].to_list()[0].startswith("depth=2,activation=tanh,init=glorot,seed=0-")
    for name in frame["job"]:
        assert files(folder / name) == [".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "run.json"]
    keys = [name.removesuffix(".name") for name in spec.flatten(spec.Config())]
    assert frame.columns[: len(keys) + 1] == ["job", *keys]
    assert frame["model.depth"].to_list() == [2] * 4 + [3] * 4
    assert frame["init"].unique(maintain_order=True).to_list() == ["glorot", "pytorch"]
    assert frame["init.bias_std"].to_list()[:4] == [0.0, 0.0, None, None]
    assert frame["train_loss"].to_list()[:2] == [0.0, 0.1]
    assert frame["status"].unique().to_list() == ["ok"]
    assert frame["error"].null_count() == frame["test_accuracy"].null_count() == 8


def test_column_types_do_not_depend_on_the_values(runner):
    _, frame = sweep(*SMALL)
    kinds = {int: polars.Int64, float: polars.Float64, bool: polars.Boolean, str: polars.String}
    for name, key in spec.keys().items():
        assert frame.schema[name.removesuffix(".name")] == kinds[key.type]
    assert frame.schema["verdict"] == polars.String
    assert frame.schema["trained"] == polars.Boolean
    assert frame.schema["backward_gain_high"] == polars.Float64


def test_networks_of_one_structure_train_together(runner):
    folder, frame = sweep(*SMALL)
    assert [len(group) for group in runner.groups] == [4, 4]
    assert sorted(len(names) for names in read_json(folder / "groups.json").values()) == [4, 4]
    assert {name for names in read_json(folder / "groups.json").values() for name in names} == set(frame["job"])


def test_stock_launcher_leaves_the_same(runner):
    folder, frame = sweep(*TINY, "hydra.sweep.dir=ensemble")
    stock_folder, stock = sweep(*TINY, *STOCK, "hydra.sweep.dir=stock")
    assert [len(group) for group in runner.groups[1:]] == [1] * 2
    assert stock.equals(frame)
    assert files(stock_folder) == files(folder)
    for name in frame["job"]:
        for file in ("config.yaml", "overrides.yaml"):
            assert load(stock_folder / name / ".hydra" / file) == load(folder / name / ".hydra" / file)
        assert_same_hydra(load(stock_folder / name / ".hydra/hydra.yaml"), load(folder / name / ".hydra/hydra.yaml"))


def load(path):
    return yaml.safe_load(path.read_text())


def assert_same_hydra(stock, ensemble):
    stock, ensemble = stock["hydra"], ensemble["hydra"]
    assert list(stock) != []
    assert set(stock) == set(ensemble)
    assert stock["overrides"]["task"] == ensemble["overrides"]["task"]
    assert stock["job"]["num"] == ensemble["job"]["num"]
    assert stock["job"]["id"] == ensemble["job"]["id"]
    for name in spec.GROUPS:
        assert stock["runtime"]["choices"][name] == ensemble["runtime"]["choices"][name]
    assert Path(stock["runtime"]["output_dir"]).name == Path(ensemble["runtime"]["output_dir"]).name


def test_ensemble_launcher_under_the_stock_sweeper(runner):
    _, frame = sweep(*SMALL, "hydra/sweeper=basic")
    assert len(frame) == 8
    assert [len(group) for group in runner.groups] == [4, 4]


def test_config_is_what_hydra_composes(runner):
    folder, frame = sweep(*SMALL, "optimizer=momentum", "optimizer.lr=1e-2", "'train.until=\"train_loss<1\"'"[1:-1])
    for name in frame["job"]:
        config = OmegaConf.merge(spec.Config, load(folder / name / ".hydra/config.yaml"))
        assert spec.identity(OmegaConf.to_object(config)) == name.rpartition("-")[2]
    assert frame["optimizer.momentum"].unique().to_list() == [0.9]
    assert frame["train.until"].unique().to_list() == ["train_loss<1"]


def test_finished_jobs_are_kept(runner, capsys):
    sweep(*SMALL)
    runner.groups.clear()
    _, frame = sweep(*SMALL, "seed=0,1,2")
    assert [len(group) for group in runner.groups] == [2, 2]
    assert len(frame) == 12
    said = capsys.readouterr().err
    assert "8 of 12 jobs are finished and kept; warning: 8 of them were made by another commit" in said


def test_a_job_is_found_under_another_name(runner):
    _, frame = sweep(*SMALL)
    _, again = sweep(*SMALL, "model.width=64,64", "optimizer.lr=0.05,5e-2")
    assert again["job"].to_list() == frame["job"].to_list()
    assert len(runner.trained) == 8


def test_a_single_run_keeps_what_a_sweep_made(runner):
    _, frame = sweep(*SMALL)
    folder, single = sweep("model.depth=2", "init=glorot", "train.steps=3")
    assert folder.name == frame["job"][0] == single["job"][0]
    assert len(runner.trained) == 8


def test_fresh_runs_again(runner):
    sweep(*TINY)
    sweep(*TINY, "sweep.fresh=true")
    sweep(*TINY, *STOCK, "sweep.fresh=true")
    assert len(runner.trained) == 6


def test_an_interrupted_job_is_not_finished(runner):
    sweep(*SMALL)
    runner.raises[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(*SMALL, "sweep.fresh=true")
    runner.raises.clear()
    runner.groups.clear()
    sweep(*SMALL)  # no result from before is taken for a new one
    assert [len(group) for group in runner.groups] == [4, 4]


def test_device_and_order_of_axes_do_not_matter_to_a_finished_job(runner):
    sweep(*SMALL)
    sweep(*SMALL, "device=cpu")
    assert len(runner.trained) == 8


@pytest.mark.parametrize("launcher", [[], STOCK])
def test_a_failing_job_does_not_lose_the_others(runner, launcher, capsys):
    runner.status[1] = "failed"
    with pytest.raises(FailedJobsError, match=r"^failed: depth=2,activation=tanh,init=he,seed=1-\w{10}: it broke$"):
        sweep(*TINY, *launcher)
    frame = polars.read_parquet("outputs/gradient_flow/results.parquet")
    assert frame["status"].to_list() == ["ok", "failed"]
    assert frame["error"].to_list() == [None, "it broke"]
    assert "2 jobs: 1 ok, 1 failed" in capsys.readouterr().out
    runner.status.clear()
    runner.groups.clear()
    runner.written.clear()
    sweep(*TINY, *launcher)
    failed = frame["job"][1].rpartition("-")[2]
    assert runner.written == [failed]
    together_again = [job.rpartition("-")[2] for job in frame["job"]]
    assert runner.groups == [[failed] if launcher else together_again]


@pytest.mark.parametrize("launcher", [[], STOCK])
def test_a_group_that_raises_does_not_lose_the_others(runner, launcher):
    runner.raises[7] = RuntimeError("no memory")
    with pytest.raises(FailedJobsError, match=r"seed=7,steps=0-.*: RuntimeError: no memory"):
        sweep(*TINY, "seed=0,7", "train.steps=0,1", *launcher)
    frame = polars.read_parquet("outputs/gradient_flow/results.parquet")
    assert len(frame) == 4
    assert set(frame.filter(polars.col("seed") == 7)["error"]) == {"RuntimeError: no memory"}


def test_keep_going_false_stops(runner):
    runner.status[1] = "failed"
    with pytest.raises(FailedJobsError):
        sweep(*SMALL, "sweep.keep_going=false")
    assert len(runner.groups) == 1
    frame = polars.read_parquet("outputs/gradient_flow/results.parquet")
    assert frame["error"].to_list() == ["did not run"] * 4 + [None, "it broke"] * 2


def test_diverged_is_a_result(runner):
    runner.status[1] = "diverged"
    _, frame = sweep(*SMALL)
    assert frame["status"].to_list() == ["ok", "diverged"] * 4
    sweep(*SMALL)
    assert len(runner.trained) == 8


def test_declared_grid(runner):
    _, frame = sweep("-m")
    assert len(frame) == 3 * 5 * 5 * 5
    assert frame["job"].n_unique() == 375
    assert frame["model.depth"].unique().sort().to_list() == [4, 16, 64]


def test_single_run(runner, capsys):
    folder, frame = sweep("model.depth=3", "hydra.run.dir=here")
    assert folder == Path("here")
    assert len(frame) == 1
    assert files(folder) == [
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        *("results.parquet", "run.json"),
    ]
    assert "here" in capsys.readouterr().out
    folder, frame = sweep("model.depth=3")
    assert folder == Path("outputs/gradient_flow") / read_json(Path("here/run.json"))["identity"]


def test_another_configuration_in_the_same_folder_runs(runner):
    sweep("model.depth=3", "hydra.run.dir=here")
    sweep("model.depth=4", "hydra.run.dir=here")
    assert len(runner.trained) == 2


def test_jobs_of_another_sweeper_are_refused(runner):
    job = Job(spec.Config(seed=1), [], spec.identity(spec.Config(seed=1)), Path("job"))
    with pytest.raises(
        UserError, match=r"^hydra/sweeper: this sweeper makes jobs of its own; choose ensemble or basic$"
    ):
        Networks([job])(OmegaConf.structured(spec.Config))


def test_hydras_own_word_for_a_sweep(runner):
    _, frame = sweep(*TINY[1:], "hydra.mode=MULTIRUN")
    assert len(frame) == 2


def test_large_groups_are_split_and_a_resume_continues_them(runner, monkeypatch):
    monkeypatch.setattr("bpexp.sweep.groups.LARGEST_GROUP", 3)
    arguments = ("-m", "model.depth=2", "init=he", "model.activation=tanh", "seed=range(8)")
    runner.raises[7] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(*arguments)
    whole = list(runner.groups)
    assert [len(group) for group in whole] == [3, 3, 2]
    runner.raises.clear()
    runner.groups.clear()
    sweep(*arguments)
    assert runner.groups == whole[2:]


def test_a_group_of_an_earlier_grid_goes_on_as_it_was(runner):
    sweep(*SMALL, "model.depth=2", "init=glorot", "seed=0")
    folder, frame = sweep(*SMALL, "model.depth=2", "init=glorot", "seed=0,1,2")
    pair = runner.groups[-1]
    assert len(pair) == 2
    (folder / frame["job"][2] / "run.json").unlink()
    runner.written.clear()
    sweep(*SMALL, "model.depth=2", "init=glorot", "seed=0,1,2")
    assert runner.groups[-1] == pair
    assert runner.written == pair[1:]
    groups = read_json(folder / "groups.json")
    assert sorted(map(len, groups.values())) == [1, 2]
    for job in frame["job"]:
        assert job in groups[read_json(folder / job / "run.json")["group"]]


def test_a_sweeper_that_launches_in_batches_trains_once(runner):
    _, frame = sweep(*SMALL, "hydra/sweeper=basic", "hydra.sweeper.max_batch_size=3")
    assert len(frame) == len(runner.trained) == 8


def test_run_dir_is_the_folder_of_a_sweep_as_well(runner):
    folder, frame = sweep(*TINY, "hydra.run.dir=here")
    assert folder == Path("here")
    assert len(frame) == 2


def test_groups_are_a_pure_function_of_the_jobs():
    jobs = [Job(spec.Config(seed=seed), [], str(seed), Path(str(seed))) for seed in range(3)]
    assert together(jobs) == together(jobs)
    assert len({job.group for job in together(jobs)}) == 1
    assert len({job.group for job in alone(jobs)}) == 3


def test_finish_gets_the_folder(runner):
    seen = []
    call("gradient_flow", SMALL, finish=seen.append)
    assert seen == [Path("outputs/gradient_flow")]


def test_a_sweep_inside_a_program(runner):
    def program(config, folder):
        call("gradient_flow", [*SMALL, f"hydra.sweep.dir={folder}/inner"])

    folder = call("report", ["scale=smoke"], program=program)
    assert len(polars.read_parquet(folder / "inner/results.parquet")) == 8


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def break_off():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        break_off()
    assert path.read_text() == "old"
    assert files(tmp_path) == ["file"]


def test_a_broken_run_file_counts_as_none(tmp_path):
    path = tmp_path / "run.json"
    assert read_json(path) == {}
    path.write_text('{"identity": ')
    assert read_json(path) == {}
    path.write_text(json.dumps({"identity": "1"}))
    assert read_json(path) == {"identity": "1"}
