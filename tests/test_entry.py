import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from bpexp.entry import CONF, main
from bpexp.init import INITS
from bpexp.spec import UserError

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, experiment="gradient_flow", **settings):
    return main(experiment, "What it asks.", arguments=arguments, **settings)


INIT_NAMES = ", ".join(INITS)
MISTAKES = [
    ("model.dept=4", "model.dept: unknown key; did you mean model.depth?"),
    ("optimizer.learning_rate=1", "optimizer.learning_rate: unknown key; did you mean optimizer.lr?"),
    ("depth=4", "depth: unknown key; did you mean model.depth?"),
    ("model.name=mlp", "model.name: set by the option; write model=OPTION"),
    (
        "train=3",
        "train: a group of keys; set one of train.steps, train.batch_size, train.measure_every, train.evaluate_every, "
        "train.until",
    ),
    ("init=hee", f"init: unknown 'hee'; did you mean 'he'? choose from {INIT_NAMES}"),
    ("init=null", f"init: unknown 'None'; choose from {INIT_NAMES}"),
    ("model.depth=four", "model.depth: 'four' is not an integer"),
    ("model.depth=2.5", "model.depth: 2.5 is not an integer"),
    ("model.depth=[1]", "model.depth: [1] is not an integer"),
    ("seed=true", "seed: True is not an integer"),
    ("debug=maybe", "debug: 'maybe' is not true or false"),
    ("model.depth=0", "model.depth: 0 is out of range; must be at least 1"),
    ("optimizer.lr=nan", "optimizer.lr: nan is not a finite number"),
    ("hydra.sweep.dir=here", "hydra.sweep.dir: 'here' would be ignored without -m; set hydra.run.dir"),
    ("model.residual=plain model.depth=1", "model.residual: plain would be ignored by model.depth=1, whose input is "),
    ("optimizer.lr=1e39", "optimizer.lr: 1e+39 is out of range; float32 tells numbers from 1.2e-38 to 3.4e+38"),
    ("clip=norm clip.threshold=1e-60", "clip.threshold: 1e-60 is out of range; float32 tells numbers from 1.2e-38 "),
    ("model.dropout=1e-6", "model.dropout: 1e-06 is out of range; masks tell probabilities 1.5e-05 apart"),
    ("clip.threshold=1", "clip.threshold: 1.0 would be ignored by clip=none; choose clip=norm or clip=value"),
    ("seed=0,1", "seed: '0,1' is more than one value; add -m to sweep over it"),
    ("sweep.workers=2", "sweep.workers: '2' would be ignored without -m"),
    ("sweep.executor=processes", "sweep.executor: 'processes' would be ignored without -m"),
    ("-m sweep.workers=1,2", "sweep.workers: '1,2' is more than one value; a sweep takes one"),
    (
        "-m sweep.workers=2 hydra/launcher=basic",
        "sweep.workers: '2' would be ignored by Hydra's own launcher; choose hydra/launcher=ensemble",
    ),
    ("-m sweep.workers=2 sweep.executor=inline", "sweep.workers: 2 would be ignored by sweep.executor=inline; choose "),
    ("-m sweep.cluster=local", "sweep.cluster: local would be ignored by sweep.executor=processes; choose submitit"),
    ("-m sweep.minutes=9", "sweep.minutes: 9 would be ignored by sweep.executor=processes; choose submitit"),
    (
        "-m sweep.executor=submitit sweep.cluster=local sweep.memory=2",
        "sweep.memory: 2.0 would be ignored by sweep.cluster=local; choose slurm",
    ),
    ("seed=range(5)", "seed: 'range(5)' is more than one value; add -m to sweep over it"),
    ("-m seed=0,-1 init=he", "seed: -1 is out of range; must be at least 0 (job model.depth=4 "),
    ("-m init=he,hee", "init: unknown 'hee'; did you mean 'he'?"),
    ("-m init=he,zeros init.gain=2", "init.gain: 2.0 would be ignored by init=zeros; choose another init (job "),
    ("-m seed=range(0)", "seed: range(0) has no values"),
    ("-m seed=interval(0,1)", "seed: interval(0,1) cannot be enumerated; write values or a range()"),
    ("seed", "seed: not an argument; write key=value"),
    ("train.until=train_loss<1", "train.until: cannot read 'train_loss<1'; quote it for Hydra, "),
    ("+new=1", "+new=1: keys are neither added nor deleted; write key=value"),
    ("~seed", "~seed: keys are neither added nor deleted; write key=value"),
    ("--fast", "--fast: unknown flag; choose from -m, --help, or write key=value"),
    ("experiment=cost", "experiment: is chosen by the module; run python -m experiments.NAME"),
    ("hydra/launcher=none", "hydra/launcher: unknown 'none'; choose from basic, ensemble"),
    ("hydra.nothing=1", "hydra.nothing: unknown key of Hydra"),
    ("hydra.sweep.subdir=x", "hydra.sweep.subdir: a job's folder is named by its identity; set hydra.sweep.dir"),
    ("hydra.run.dir=/proc/nowhere", "hydra.run.dir: cannot write in '/proc/nowhere': "),
    ("-m hydra.sweep.dir=/dev/null/x", "hydra.sweep.dir: cannot write in '/dev/null/x': "),
    ("data.train_size=5000", "data.train_size: 5000 is larger than the training part of digits (1078); "),
    ("data=regression loss=cross_entropy", "loss: cross_entropy needs classes, which regression has not; choose mse"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, said, folder, capsys, runner):
    assert run(*arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(said)
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(folder.iterdir()) == []
    assert runner.groups == []


@pytest.mark.parametrize("mode", [[], ["-m"], ["-m", "hydra/launcher=basic", "hydra/sweeper=basic"]])
def test_a_wrong_value_leaves_nothing_in_any_mode(mode, folder, capsys, runner):
    assert run(*mode, "model.width=0") == 2
    assert capsys.readouterr().err.startswith("model.width: 0 is out of range; must be at least 1")
    assert list(folder.iterdir()) == []


def test_cuda_where_there_is_none(capsys, folder, monkeypatch, runner):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("device=cuda") == 2
    assert capsys.readouterr().err == "device: cuda was asked for, but there is none; choose auto or cpu\n"
    assert list(folder.iterdir()) == []


def test_nan_in_the_data(capsys, folder, monkeypatch, runner):
    import torch

    import bpexp.data

    nan = torch.full((1000, 8), torch.nan)
    row = bpexp.data.DATA["regression"]
    monkeypatch.setitem(bpexp.data.DATA, "regression", type(row)(**(vars(row) | {"read": lambda: (nan, nan)})))
    assert run("data=regression") == 2
    assert capsys.readouterr().err == "data: regression: feature 0 of sample 0 is nan\n"
    assert list(folder.iterdir()) == []


def test_debug_shows_the_traceback(capsys):
    assert run("debug=true", "model.depth=0") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("\nmodel.depth: 0 is out of range; must be at least 1\n")


def test_exit_codes(runner, capsys):
    assert run() == 0
    runner.status[1] = "diverged"
    assert run("seed=1") == 0
    runner.status[2] = "failed"
    assert run("seed=2") == 1
    assert capsys.readouterr().err.endswith(": it broke\n")
    runner.raises[3] = KeyboardInterrupt()
    assert run("seed=3") == 130
    assert capsys.readouterr().err.endswith(
        "interrupted: 0 of 1 jobs are finished and kept; the same command goes on\n"
    )
    runner.raises[4] = UserError("data: a mistake that only the data shows")
    assert run("seed=4") == 2


def test_an_error_that_came_of_an_interrupt_is_one(capsys):
    def program(config, folder):
        try:
            raise KeyboardInterrupt
        finally:
            None._invalidate_flags_cache()

    assert run(experiment="walkthrough", program=program) == 130
    assert capsys.readouterr().err == "interrupted; finished jobs are kept, and the same command goes on\n"


def test_what_goes_on_after_sweep_fresh(runner, capsys):
    arguments = ["-m", "model.depth=2", "model.activation=tanh", "init=he", "train.batch_size=8,16", "seed=0,1"]
    assert run(*arguments) == 0
    kinds = {KeyboardInterrupt(): "interrupted: 0 of 4 jobs are finished and kept; ", OSError(28, "full"): "full; "}
    for error, said in kinds.items():
        runner.raises[0] = error
        assert run(*arguments, "sweep.fresh=true") in (1, 130)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(said)
        assert last.endswith("the same command without sweep.fresh=true goes on")
    runner.raises.clear()
    runner.written.clear()
    assert run(*arguments) == 0
    assert len(runner.written) == 4


def test_help(capsys):
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert said.startswith("What it asks.\n")
    assert "model.depth=4,16,64 model.activation=sigmoid,tanh,relu,gelu,selu" in said
    assert "'seed=range(5)'" in said
    assert "  model.depth=16 " in said
    assert "none|norm|value" in said


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment, capsys):
    assert run("--help", experiment=experiment) == 0
    assert f"python -m experiments.{experiment}" in capsys.readouterr().out
    assert run("nothing=1", experiment=experiment) == 2
    assert capsys.readouterr().err.startswith("nothing: unknown key; ")


@pytest.mark.parametrize("experiment", ["walkthrough", "cost", "report"])
def test_a_program_gets_its_configuration_and_folder(experiment, folder):
    seen = []
    assert run(experiment=experiment, program=lambda *given: seen.append(given)) == 0
    assert run("hydra.run.dir=here", experiment=experiment, program=lambda *given: seen.append(given)) == 0
    assert [where for _, where in seen] == [folder / "outputs" / experiment, folder / "here"]
    assert seen[0][0].debug is False


def test_report_takes_from():
    seen = []
    assert run("from=outputs/x", "scale=smoke", experiment="report", program=lambda c, _: seen.append(c)) == 0
    assert (seen[0]["from"], seen[0].scale, seen[0].only) == ("outputs/x", "smoke", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m"], "-m: report has no grid; run it without -m"),
        (["scale=huge"], "scale: unknown 'huge'; choose from smoke, default, full"),
        (["model.depth=3"], "model.depth: unknown key; "),
    ],
)
def test_a_program_refuses(arguments, said, folder, capsys):
    assert run(*arguments, experiment="report", program=lambda *_: None) == 2
    assert capsys.readouterr().err.startswith(said)
    assert list(folder.iterdir()) == []


def test_a_program_that_raises(capsys):
    def mistaken(config, folder):
        raise UserError("only: no experiment of this name")

    def broken(config, folder):
        raise ZeroDivisionError

    assert run(experiment="cost", program=mistaken) == 2
    assert capsys.readouterr().err == "only: no experiment of this name\n"
    with pytest.raises(ZeroDivisionError):
        run(experiment="cost", program=broken)


@pytest.mark.parametrize("arguments", [["--help"], ["model.dept=4"], ["init=hee"], ["model.depth=four"]])
def test_early_answers_do_not_import_torch(arguments, folder):
    code = (
        "import sys; from bpexp.entry import main; main('gradient_flow', '', arguments=sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    )
    root = str(Path(importlib.import_module("bpexp").__file__).parents[1])
    command = [sys.executable, "-c", code, *arguments]
    assert subprocess.run(command, check=False, capture_output=True, env={"PYTHONPATH": root}).returncode == 0


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    def program(config, folder):
        raise OSError(28, "No space left on device", "records.parquet")

    monkeypatch.chdir(tmp_path)
    assert main("walkthrough", "", arguments=["hydra.run.dir=here"], program=program) == 1
    said = "records.parquet: No space left on device; what is finished is kept, and the same command goes on"
    assert capsys.readouterr().err.strip() == said
