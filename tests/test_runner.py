"""The main job end to end, through the command: folders, files, results, divergence, and Hydra's own launchers."""

import json
import math
from pathlib import Path

import numpy as np
import polars
import pytest

from bpexp import runner, spec
from bpexp.entry import FailedJobsError, call
from bpexp.measures import MEASURES
from bpexp.records import SCHEMA, read_records, read_results, read_sweep
from bpexp.runner import passed
from bpexp.sweep.results import MEASURE_COLUMNS, STEP_COLUMNS, VERDICT_COLUMNS

TINY = ["model.depth=3", "model.width=6", "train.steps=4", "train.measure_every=2", "train.batch_size=16"]
AXES = ["model.activation=tanh", "init=he", "seed=0"]
STOCK = ["hydra/launcher=basic", "hydra/sweeper=basic"]
WHOLE = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "grad_norm"}
EVALUATED = {"val_loss", "val_accuracy", "test_loss", "test_accuracy"}
ACCURACIES = {"train_accuracy", "val_accuracy", "test_accuracy"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def one(*arguments):
    """Run one network; return its run.json, its row of the results, its records."""
    folder = call("gradient_flow", [*TINY, *arguments])
    (row,) = read_results(folder).to_dicts()
    return strict(folder / "run.json"), row, read_records(folder)


def sweep(*arguments):
    folder = call("gradient_flow", ["-m", *TINY, *AXES, *arguments])
    return folder, read_results(folder)


def sweep_of_two(*arguments):
    """Run two networks of which the second fails; return the folder and the results."""
    folder = Path("outputs/gradient_flow")
    with pytest.raises(FailedJobsError):
        call("gradient_flow", ["-m", *TINY, *AXES, *arguments])
    return folder, read_results(folder)


def strict(path):
    """Read JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path}: {constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


CASES = {
    "digits": [],
    "regression": ["data=regression"],
    "mse-on-digits": ["loss=mse"],
    "dropout": ["model.dropout=0.5"],
    "clip-norm": ["clip=norm", "clip.threshold=0.01"],
    "clip-value": ["clip=value", "clip.threshold=1e6"],
    "momentum": ["optimizer=momentum"],
    "nesterov": ["optimizer=nesterov", "optimizer.l2=0.01", "optimizer.weight_decay=0.01"],
    "residual": ["model.residual=plain", "init=pytorch"],
    "rezero": ["model.residual=rezero", "model.norm=layer", "optimizer=adam", "clip=adaptive"],
    "batch-norm": ["model.norm=batch", "model.input_dropout=0.1", "label_smoothing=0.1", "optimizer.max_norm=1"],
    "critical": ["init=critical", "optimizer.schedule=cosine", "optimizer.warmup=2"],
    "lsuv": ["init=lsuv", "model.activation=prelu", "model.residual=scaled"],
    "initial-state": ["train.steps=0"],
    "whole-batch": ["train.batch_size=100", "data.train_size=100"],
    "float64": ["dtype=float64", "model.activation=selu"],
    "zeros": ["init=zeros"],
    "one-layer": ["model.depth=1", "model.width=1"],
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_one_network(arguments, request):
    case = request.node.callspec.id
    run, row, records = one(*arguments)
    steps = 0 if case == "initial-state" else 4
    depth = 1 if case == "one-layer" else 3
    measured = [step for step in (0, 2, 4) if step <= steps]
    whole = WHOLE - ACCURACIES if case == "regression" else WHOLE
    clipping = {"clip_fraction", "clipped_norm", "clip_cosine"}
    whole = whole | clipping if "clip" in case or case == "rezero" else whole

    assert dict(records.schema) == SCHEMA
    of_network = records.filter(polars.col("layer").is_null())
    assert of_network.filter(polars.col("measure") == "train_loss")["step"].to_list() == list(range(steps + 1))
    for step in measured:
        expected = whole if step in (0, steps) else whole - EVALUATED
        assert set(of_network.filter(polars.col("step") == step)["measure"]) == expected
    every = range(1, depth + 2)
    places = {
        (step, layer, name)
        for step in measured
        for name, measure in MEASURES.items()
        for layer in {"all": every, "hidden": every[:-1], "gated": every[1:-1] if case == "rezero" else []}[measure.of]
    }
    of_layers = records.filter(polars.col("layer").is_not_null())
    assert set(of_layers.select("step", "layer", "measure").rows()) == places
    assert len(of_layers) == len(places)
    names = of_layers.filter(polars.col("layer") == depth + 1)["layer_name"]
    assert set(names) == {"output"}
    assert of_layers.filter(polars.col("layer") == 1)["layer_name"].unique().to_list() == ["hidden_1"]

    assert (row["status"], row["error"], row["step"]) == ("ok", None, steps)
    assert (row["diverged_step"], row["diverged_layer"]) == (None, None)
    assert row["verdict"] == ("vanishing" if case == "zeros" else "healthy")
    assert (row["backward_gain"] is None) == (case in ("zeros", "one-layer", "rezero"))
    last = dict(of_network.filter(polars.col("step") == steps).select("measure", "value").rows())
    for name in MEASURE_COLUMNS:
        assert row[name] == last.get(name), name
    assert row["trained"] is False
    if case.startswith("clip"):
        assert row["clip_fraction"] == (1.0 if case == "clip-norm" else 0.0)
    assert run["row"] == {name: row[name] for name in run["row"]}


def test_run_json():
    run, _, _ = one("seed=7")
    assert (run["seed"], run["status"], run["error"], run["device"]) == (7, "ok", None, "cpu")
    assert run["threads"] >= 1
    assert 0 < run["wall_time"] < 60
    assert len(run["identity"]) == len(run["group"]) == 10
    assert set(run["packages"]) == {"python", *runner.PACKAGES}
    assert run["packages"]["polars"] == polars.__version__
    assert run["commit"] is None or len(run["commit"].removesuffix("-dirty")) == 40


def test_a_run_leaves_its_files_and_nothing_half_written():
    folder = call("gradient_flow", TINY)
    left = files(folder)
    events = {name for name in left if "tfevents" in name}
    assert len(events) == 1
    assert left - events == {"records.parquet", "results.parquet", "run.json", *hydra_files()}


def hydra_files():
    return {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}


def test_only_some_networks_of_a_large_sweep_have_events():
    def shown(folder):
        return {name.split("/")[0] for name in files(folder) if "tfevents" in name}

    folder, results = sweep("seed=0,1", "model.depth=2,3", "train.steps=0", "sweep.max_runs=2")
    first = results.filter(polars.col("seed") == 0)["job"]
    assert shown(folder) == {*first, "summary", ".charts"}
    for job in results["job"]:
        assert not read_records(folder / job).is_empty()
    sweep("seed=0,1", "model.depth=2,3", "train.steps=0", "sweep.max_runs=0")
    assert shown(folder) == {*first, "summary", ".charts"}  # finished jobs stay as they are
    sweep("seed=0,1", "model.depth=2,3", "train.steps=0", "sweep.max_runs=0", "sweep.fresh=true")
    assert shown(folder) == {"summary", ".charts"}  # the means stay, but no old curves beside new records


def test_a_sweep_leaves_a_folder_for_each_job_and_a_table():
    folder, results = sweep("seed=0,1", "model.depth=2,3", "clip=none,norm")
    assert len(results) == 8
    for job, seed in results.select("job", "seed").rows():
        left = files(folder / job)
        assert left - {name for name in left if "tfevents" in name} == {"records.parquet", "run.json", *hydra_files()}
        assert strict(folder / job / "run.json")["seed"] == seed
    assert {path.name for path in folder.iterdir()} - set(results["job"]) == {
        "results.parquet",
        "groups.json",
        ".charts",
        "multirun.yaml",
        "summary",
    }
    keys = [name.removesuffix(".name") for name in spec.keys(spec.Config)]
    assert results.columns == ["job", *keys, "status", "error", *VERDICT_COLUMNS, *MEASURE_COLUMNS, *STEP_COLUMNS]
    kinds = {"job": polars.String, "seed": polars.Int64, "init": polars.String, "init.gain": polars.Float64}
    kinds |= {
        "trained": polars.Boolean,
        "verdict": polars.String,
        "step": polars.Int64,
        "clip.threshold": polars.Float64,
    }
    kinds |= dict.fromkeys((*MEASURE_COLUMNS, "backward_gain"), polars.Float64)
    assert {name: results.schema[name] for name in kinds} == kinds
    clipped = results["clip"] == "norm"
    assert (results["clip_fraction"].is_not_null() == clipped).all()
    assert set(read_sweep(folder, ["delta_rms"], "last")["job"]) == set(results["job"])


def test_the_verdict_and_the_gain_are_those_of_the_first_step():
    _, row, records = one("model.depth=6", "model.activation=sigmoid", "init=glorot", "optimizer.lr=0.3")
    delta = records.filter((polars.col("measure") == "delta_rms") & (polars.col("step") == 0))["value"].to_numpy()[:6]
    assert row["verdict"] == "vanishing"
    assert delta[0] / delta[-1] < 1e-2
    assert row["backward_gain"] == pytest.approx((delta[0] / delta[-1]) ** 0.2, rel=1e-12)
    assert row["backward_gain_low"] < row["backward_gain"] < row["backward_gain_high"]
    _, row, _ = one("model.depth=6", "model.activation=relu", "init=he", "init.gain=4")
    assert row["verdict"] == "exploding"


def test_training_until_a_criterion():
    until = ["train.steps=400", "train.measure_every=10", 'train.until="train_accuracy>=0.8"']
    _, row, records = one(*until, "model.width=32", "init=lecun", "optimizer.lr=0.2")
    accuracies = records.filter(polars.col("measure") == "train_accuracy")
    assert row["step"] == records["step"].max() == accuracies["step"].max() < 400
    assert row["step"] % 10 == 0
    assert (accuracies["value"] >= 0.8).to_list() == [False] * (len(accuracies) - 1) + [True]
    assert row["train_accuracy"] == accuracies["value"][-1]
    assert row["trained"] is True


@pytest.mark.parametrize(
    ("final", "task", "trained"),
    [
        ({"train_accuracy": 0.8, "train_loss": 9.0}, "classification", True),
        ({"train_accuracy": math.nextafter(0.8, 0), "train_loss": 0.0}, "classification", False),
        ({"train_loss": 0.5}, "regression", True),
        ({"train_loss": math.nextafter(0.5, 1)}, "regression", False),
        ({"train_loss": math.nan}, "regression", False),
    ],
)
def test_the_line(final, task, trained):
    assert passed(final, task) is trained


WILD = ["seed=0,1,2", "model.activation=relu", "train.steps=12", "train.measure_every=5", "model.depth=4"]
RATES = "optimizer.lr=1e6,0.05"


def test_a_diverging_network_is_a_result_and_its_neighbours_do_not_notice():
    wild, results = sweep(*WILD, RATES, "hydra.sweep.dir=wild")
    tame, tamed = sweep(*WILD, "optimizer.lr=0.04,0.05", "hydra.sweep.dir=tame")
    assert len({strict(path)["group"] for path in wild.glob("*/run.json")}) == 1
    assert tamed["status"].to_list() == ["ok"] * 6
    for row in results.to_dicts():
        run, records = strict(wild / row["job"] / "run.json"), read_records(wild / row["job"])
        assert run["status"] == row["status"]
        if row["optimizer.lr"] == 0.05:
            assert row["status"] == "ok"
            assert records.equals(read_records(tame / row["job"]))
            assert row == tamed.row(by_predicate=polars.col("job") == row["job"], named=True)
            continue
        assert row["status"] == "diverged"
        assert 1 <= row["diverged_step"] <= 12
        assert 1 <= row["diverged_layer"] <= 5
        assert records["step"].max() == row["step"] == row["diverged_step"]
        assert [row[name] for name in MEASURE_COLUMNS] == [None] * len(MEASURE_COLUMNS)
        assert row["trained"] is False
        assert row["verdict"] == "healthy"
        losses = records.filter((polars.col("measure") == "train_loss") & (polars.col("step") < row["diverged_step"]))
        assert losses["value"].is_finite().all()
        assert any("tfevents" in path.name for path in (wild / row["job"]).iterdir())


def test_a_network_that_overflows_before_it_trains_is_a_result():
    run, row, records = one("init=normal", "init.gain=1e30", "model.activation=relu", "model.depth=4")
    assert (run["status"], row["status"], row["error"]) == ("diverged", "diverged", None)
    assert (row["diverged_step"], row["step"], row["verdict"]) == (0, 0, "exploding")
    assert row["backward_gain"] is None
    assert records["step"].max() == 0
    first = records.filter((polars.col("measure") == "preactivation_rms") & ~polars.col("value").is_finite())
    assert row["diverged_layer"] == first["layer"].min()


def test_hydras_own_launcher_leaves_the_same():
    arguments = ["seed=0,3", "init=he,glorot", "dtype=float64", "model.dropout=0.2", "optimizer=momentum"]
    ours, results = sweep(*arguments, "hydra.sweep.dir=ours")
    theirs, stock = sweep(*arguments, *STOCK, "hydra.sweep.dir=theirs")
    assert results.schema == stock.schema
    assert results["job"].to_list() == stock["job"].to_list()

    def without_the_time(folder):
        return {name.partition("tfevents")[0] for name in files(folder)} - {"multirun.yaml"}

    assert without_the_time(ours) == without_the_time(theirs)
    one, other = (read_sweep(folder, steps="first") for folder in (ours, theirs))
    assert one.drop("value").equals(other.drop("value"))
    np.testing.assert_allclose(one["value"].to_numpy(), other["value"].to_numpy(), rtol=1e-12, atol=1e-12)
    for job in results["job"]:
        runs = [strict(folder / job / "run.json") for folder in (ours, theirs)]
        assert [set(run) for run in runs] == [set(runs[0])] * 2
        assert runs[0]["identity"] == runs[1]["identity"]


def test_a_second_command_runs_nothing_again_and_fresh_runs_all(capfd):
    arguments = ["seed=0,1", "hydra.sweep.dir=again"]
    folder, first = sweep(*arguments)

    def times():
        files = [path for path in folder.glob("*=*/*") if path.name != ".hydra" and path.parent.parent == folder]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert len(before) == 6
    _, second = sweep(*arguments)
    assert times() == before
    assert second.equals(first)
    assert "2 of 2 jobs are finished and kept" in capfd.readouterr().err
    sweep(*arguments[1:], "seed=1,2")
    assert {path: time for path, time in times().items() if path in before} == before
    _, fresh = sweep(*arguments, "sweep.fresh=true")
    assert fresh.drop("sweep.fresh").equals(first.drop("sweep.fresh"))
    after = times()
    assert all(after[path] > before[path] for path in before if "tfevents" not in path.name)
    for job in {path.parent for path in after}:
        assert len([path for path in after if path.parent == job and "tfevents" in path.name]) == 1


def test_an_unfinished_job_is_run_again_in_its_group_bit_for_bit():
    folder, first = sweep("seed=0,1")
    (folder / first["job"][0] / "run.json").unlink()
    kept = (folder / first["job"][1] / "run.json").stat().st_mtime_ns
    _, second = sweep("seed=0,1")
    assert second.equals(first)
    assert (folder / first["job"][0] / "run.json").exists()
    assert (folder / first["job"][1] / "run.json").stat().st_mtime_ns == kept


def test_what_fails_for_one_job_does_not_lose_the_networks_beside_it(monkeypatch, capfd):
    write = runner.write_records

    def break_for_seed_1(folder, records):
        if "seed=1" in folder.name:
            raise OSError("no space left")
        write(folder, records)

    monkeypatch.setattr(runner, "write_records", break_for_seed_1)
    arguments = ["seed=0,1,2", "hydra.sweep.dir=broken"]
    with pytest.raises(FailedJobsError, match=r"^failed: .*seed=1-\w{10}: OSError: no space left$"):
        sweep(*arguments)
    results = polars.read_parquet("broken/results.parquet")
    assert results["status"].to_list() == ["ok", "failed", "ok"]
    assert results["error"].to_list() == [None, "OSError: no space left", None]
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(runner, "write_records", write)
    _, again = sweep(*arguments)
    assert again["status"].to_list() == ["ok", "ok", "ok"]


def test_lines_say_how_far_a_group_is(capfd):
    sweep("seed=0,1,2")
    err = capfd.readouterr().err
    assert "groups 0/1, jobs 0/3" in err


def test_an_interval_longer_than_the_training():
    _, row, records = one("train.measure_every=9000000000000000000", "train.steps=3")
    assert row["step"] == 3
    assert records.filter(polars.col("measure") == "delta_rms")["step"].unique().sort().to_list() == [0, 3]


def test_a_network_that_cannot_be_initialized_fails_and_the_others_train():
    folder, results = sweep_of_two("init=lsuv", "init.bias_std=0,100")
    assert results["status"].to_list() == ["ok", "failed"]
    assert results["error"][1].startswith("init: lsuv: the outputs of layer 1 have the variance")
    assert len(read_records(folder / results["job"][0])) > 0
