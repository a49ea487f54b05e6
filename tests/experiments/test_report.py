import json
import re
import subprocess
import sys
import types
from pathlib import Path

import polars
import pytest

from bpexp import entry
from bpexp.spec import UserError
from bpexp.sweep import results
from experiments import published, report
from experiments.page import Section, Table

PAGE = Path("outputs/report/index.html")
SCALES = {"smoke": "One network.", "default": "Ten networks.", "full": "All networks."}


def tables_of(scale, number):
    numbers = polars.DataFrame({"scale": [scale], "number": [number]})
    return {"numbers": numbers, "gains": polars.DataFrame({"gain": [1.0]})}


class Fake:
    """Stands for the module of an experiment: its tables hold a number, and its section shows it."""

    def __init__(self, name):
        self.name, self.number, self.scales, self.calls, self.error = name, 1.5, dict(SCALES), [], None
        self.module = types.ModuleType(f"experiments.{name}")
        self.module.SCALES = self.scales
        self.module.compute, self.module.section = self.compute, self.section

    def compute(self, scale, folder):
        self.calls.append((scale, folder))
        if self.error is not None:
            raise self.error
        return tables_of(scale, self.number)

    def section(self, tables):
        assert list(tables) == ["gains", "numbers"]
        (row,) = tables["numbers"].rows()
        shown = Table("numbers", ("scale", "number"), (tuple(map(str, row)),), "The number")
        return Section(self.name, self.name.title(), "How many?", "One.", f"Measured {row[1]}.", (), (), (), (shown,))


@pytest.fixture(autouse=True)
def fakes(tmp_path, monkeypatch):
    """Stand for all experiments of the report, which are three, in an empty folder, with nothing published."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "EXPERIMENTS", ("walkthrough", "gradient_flow", "cost"))
    monkeypatch.setattr(published, "FOLDER", tmp_path / "outputs" / "published")
    monkeypatch.setattr(published, "packages", lambda: {"torch": "2.13"})
    set_commit(monkeypatch, "abc123")
    made = {name: Fake(name) for name in report.EXPERIMENTS}
    for fake in made.values():
        monkeypatch.setitem(sys.modules, f"experiments.{fake.name}", fake.module)
    return made


def set_commit(monkeypatch, commit):
    for module in (published, report, results):
        monkeypatch.setattr(module, "current_commit", lambda: commit)


def run(*arguments):
    return entry.main("report", report.__doc__, program=report.program, check=report.check, arguments=arguments)


def publish(*arguments):
    return run("scale=full", "publish=true", *arguments)


def parts(page):
    """Return what follows each part's heading, by the part's anchor."""
    found = re.split(r"<h3 id='([\w-]+)'>", page.read_text())
    return dict(zip(found[1::2], found[2::2], strict=True))


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_computes_each_experiment_and_writes_a_page(fakes, capsys):
    assert run("scale=smoke") == 0
    made = parts(PAGE)
    assert list(made) == [f"{name}-now" for name in report.EXPERIMENTS]
    for name, words in made.items():
        assert "Computed now" in words
        assert "One network." in words
        assert "Measured 1.5." in words
        assert f"<code>python -m experiments.report scale=smoke only={name.removesuffix('-now')}</code>" in words
        assert "abc123" in words
        assert "torch 2.13" in words
    for fake in fakes.values():
        assert fake.calls == [("smoke", Path.cwd() / "outputs/report/smoke" / fake.name)]
        assert fake.calls[0][1].is_dir()
    assert PAGE.read_text().count("There are no published records of it yet") == len(fakes)
    shown = capsys.readouterr()
    assert shown.out == f"The page: {PAGE}\n"
    assert "1/3 walkthrough; then gradient_flow, cost\n  One network.\n" in shown.err
    assert "3/3 cost\n" in shown.err


def test_run_json_has_the_times_and_the_page_none(fakes):
    assert run() == 0
    first = PAGE.read_bytes()
    made = json.loads((PAGE.parent / "run.json").read_text())
    assert made["commit"] == "abc123"
    assert list(made["seconds"]) == list(report.EXPERIMENTS)
    assert made["failures"] == []
    assert made["wall_time"] > 0
    assert all_files(PAGE.parent) == ["index.html", "run.json"]
    assert run() == 0
    assert PAGE.read_bytes() == first


def test_only_one(fakes):
    assert run("only=cost", "hydra.run.dir=here") == 0
    assert list(parts(Path("here/index.html"))) == ["cost-now"]
    assert [len(fake.calls) for fake in fakes.values()] == [0, 0, 1]


def test_published_records_stand_beside_what_is_computed(fakes, monkeypatch):
    assert publish() == 0
    set_commit(monkeypatch, "def456")
    for fake in fakes.values():
        fake.number = 2.5
    assert run() == 0
    made = parts(PAGE)
    assert list(made) == [f"{name}-{part}" for name in report.EXPERIMENTS for part in ("now", "published")]
    assert "Measured 2.5." in made["cost-now"]
    assert "def456" in made["cost-now"]
    assert "From the published records" in made["cost-published"]
    assert "All networks." in made["cost-published"]
    assert "Measured 1.5." in made["cost-published"]
    assert "abc123" in made["cost-published"]
    assert "python -m experiments.report scale=full publish=true only=cost" in made["cost-published"]
    assert "no published records" not in PAGE.read_text()


def test_where_a_scale_computes_all_the_published_records_are_not_needed(fakes):
    assert publish() == 0
    fakes["cost"].scales["default"] = SCALES["full"]
    assert run() == 0
    assert "cost-now" in parts(PAGE)
    assert "cost-published" not in parts(PAGE)
    assert "gradient_flow-published" in parts(PAGE)
    assert run("scale=full") == 0
    assert list(parts(PAGE)) == [f"{name}-now" for name in report.EXPERIMENTS]


def test_publish_leaves_the_records_and_a_page_of_all(fakes, capsys):
    assert publish("only=gradient_flow") == 0
    assert capsys.readouterr().out.endswith("The published page: outputs/published/index.html\n")
    records = ["gradient_flow/numbers.parquet", "gradient_flow/published.json"]
    assert all_files(published.FOLDER) == ["gradient_flow/gains.parquet", *records, "index.html"]
    frame = polars.read_parquet(published.FOLDER / records[0])
    assert frame.rows() == [("full", 1.5)]
    origin = json.loads((published.FOLDER / records[1]).read_text())
    assert origin == {
        "experiment": "gradient_flow",
        "scale": "full",
        "extent": "All networks.",
        "command": "python -m experiments.report scale=full publish=true only=gradient_flow",
        "commit": "abc123",
        "packages": {"torch": "2.13"},
    }
    assert fakes["gradient_flow"].calls == [("full", Path.cwd() / "outputs/report/full/gradient_flow")]
    assert publish("only=walkthrough") == 0
    assert list(parts(published.FOLDER / "index.html")) == ["walkthrough-published", "gradient_flow-published"]


def test_the_published_page_is_a_function_of_its_records(fakes, monkeypatch):
    assert publish() == 0
    first = (published.FOLDER / "index.html").read_bytes()
    set_commit(monkeypatch, "def456")
    assert publish("only=cost") == 0
    second = (published.FOLDER / "index.html").read_text()
    assert second.count("def456") == 1
    assert second.replace("def456", "abc123").encode() == first


def test_publish_leaves_out_tables_that_are_gone(fakes):
    assert publish("only=cost") == 0
    stale = published.FOLDER / "cost" / "old.parquet"
    stale.write_bytes((published.FOLDER / "cost" / "numbers.parquet").read_bytes())
    assert publish("only=cost") == 0
    assert not stale.exists()


def test_records_without_an_origin_are_not_published(fakes):
    assert publish("only=cost") == 0
    (published.FOLDER / "cost" / "published.json").unlink()
    assert published.read("cost") is None
    assert run("only=cost") == 0
    assert list(parts(PAGE)) == ["cost-now"]


def test_too_much_to_publish_is_refused(fakes, monkeypatch, capsys):
    assert publish("only=walkthrough") == publish("only=cost") == 0
    before = {path: (published.FOLDER / path).read_bytes() for path in all_files(published.FOLDER)}
    size = sum(map(len, before.values())) - len(before["cost/published.json"])
    monkeypatch.setattr(published, "LARGEST", size)
    assert publish("only=cost") == 0
    monkeypatch.setattr(published, "LARGEST", size - 1)
    assert publish("only=cost") == 1
    assert re.search(
        r"\nfailed: cost: publish: published would hold 0\.\d\d MB with cost, and [\d.]+ MB is the most; make its"
        r" tables or its figures smaller\n$",
        capsys.readouterr().err,
    )
    assert {path: (published.FOLDER / path).read_bytes() for path in all_files(published.FOLDER)} == before
    assert list(parts(PAGE)) == ["cost-now"]


def test_half_written_records_are_not_published(fakes, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    assert publish("only=cost") == 0
    with monkeypatch.context() as context:
        context.setattr(published, "replacing", full)
        assert publish("only=cost") == 1
    assert published.read("cost") is None
    assert publish("only=cost") == 0
    assert published.read("cost") is not None


def test_an_experiment_that_fails_does_not_lose_the_others(fakes, capsys):
    fakes["gradient_flow"].error = entry.FailedJobsError(
        "failed: depth=4-0123: it broke\nfailed: depth=8-4567: so did it"
    )
    fakes["walkthrough"].error = ZeroDivisionError("float division by zero")
    assert run() == 1
    assert capsys.readouterr().err.endswith(
        "\nfailed: walkthrough: ZeroDivisionError: float division by zero\n"
        "failed: gradient_flow: depth=4-0123: it broke\n"
        "failed: gradient_flow: depth=8-4567: so did it\n"
    )
    made = parts(PAGE)
    assert "ZeroDivisionError: float division by zero" in made["walkthrough-now"]
    assert "Ten networks." in made["walkthrough-now"]
    assert "Measured 1.5." in made["cost-now"]
    assert len(json.loads((PAGE.parent / "run.json").read_text())["failures"]) == 3


def test_a_module_that_does_not_import(fakes, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "experiments.cost", None)
    assert run() == 1
    assert "failed: cost: ModuleNotFoundError: " in capsys.readouterr().err
    assert "Measured 1.5." in parts(PAGE)["gradient_flow-now"]


def test_published_records_that_cannot_be_shown(fakes, capsys):
    assert publish() == 0
    polars.DataFrame({"other": [1]}).write_parquet(published.FOLDER / "cost" / "numbers.parquet")
    assert run() == 1
    assert re.search(r"failed: cost: \w+Error: ", capsys.readouterr().err)
    assert "Measured 1.5." in parts(PAGE)["cost-now"]
    assert "could not be made" in parts(PAGE)["cost-published"]


def test_interrupted(fakes, capsys):
    assert run() == 0
    before = PAGE.read_bytes()
    fakes["cost"].error, fakes["walkthrough"].number = KeyboardInterrupt(), 3.5
    assert run() == 130
    assert capsys.readouterr().err.endswith("interrupted; finished jobs are kept, and the same command goes on\n")
    assert PAGE.read_bytes() == before


def test_it_tells_how_to_see_the_runs(fakes, monkeypatch, capsys):
    events = Path("outputs/report/default/cost/depth=4-0123/events.out.tfevents.1.bpexp")
    events.parent.mkdir(parents=True)
    events.touch()
    dashboard = types.ModuleType("bpexp.dashboard")
    dashboard.hint = lambda folder: f"tensorboard --logdir {folder.name}"
    monkeypatch.setitem(sys.modules, "bpexp.dashboard", dashboard)
    assert run() == 0
    assert capsys.readouterr().out == (
        f"The page: {PAGE}\nTo see the runs, start TensorBoard and open the link:\ntensorboard --logdir report\n"
    )


def test_debug_shows_the_traceback_of_a_failure(fakes, capsys):
    fakes["cost"].error = ZeroDivisionError("float division by zero")
    assert run("only=cost") == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run("only=cost", "debug=true") == 1
    assert "Traceback" in capsys.readouterr().err


MISTAKES = [
    (
        "only=gradient",
        "only: unknown 'gradient'; did you mean 'gradient_flow'? choose from walkthrough, gradient_flow, cost",
    ),
    ("publish=true", "publish: true needs scale=full, not scale=default"),
    ("publish=true scale=smoke", "publish: true needs scale=full, not scale=smoke"),
    ("from=here scale=default", "scale: default would be ignored with from=here; leave out one of them"),
    ("from=here only=cost", "only: cost would be ignored with from=here; leave out one of them"),
    ("from=here scale=full publish=true", "scale: full would be ignored with from=here; leave out one of them"),
    ("from=here publish=false", "publish: False would be ignored with from=here; leave out one of them"),
    ("from=here", "from: 'here' is not the folder of a finished sweep: it has no results.parquet"),
    ("scale=huge", "scale: unknown 'huge'; choose from smoke, default, full"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, said, capsys, tmp_path):
    assert run(*arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.err == f"{said}\n"
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


SMALL = ["model.depth=2", "model.activation=tanh", "init=glorot"]


def make_sweep(*arguments):
    return entry.call("gradient_flow", [*arguments, *SMALL])


@pytest.mark.parametrize("arguments", [["-m", "seed=3,4", "hydra.sweep.dir=mine"], ["seed=3", "hydra.run.dir=mine"]])
def test_the_figures_of_one_sweep(arguments, fakes, runner, capsys):
    def summarize(folder):
        return tables_of("none", polars.read_parquet(folder / "results.parquet")["train_loss"].sum())

    fakes["gradient_flow"].module.summarize = summarize
    folder = make_sweep(*arguments)
    capsys.readouterr()
    assert run(f"from={folder}") == 0
    ((place, words),) = parts(PAGE).items()
    assert place == "gradient_flow-sweep"
    assert "The networks in mine." in words
    assert f"Measured {0.3 + 0.4 if '-m' in arguments else 0.3}." in words
    assert "python -m experiments.report from=mine" in words
    assert [fake.calls for fake in fakes.values()] == [[], [], []]
    said = "gradient_flow: reading the networks in mine, and predicting them\n  drawing the figures\n"
    assert capsys.readouterr() == (f"The page: {PAGE}\n", said)


def test_a_sweep_that_cannot_be_summarized(fakes, runner, capsys):
    fakes["cost"].module.summarize = lambda folder: {}
    folder = make_sweep("-m", "hydra.sweep.dir=mine", "seed=0")
    capsys.readouterr()
    assert run(f"from={folder}") == 2
    assert capsys.readouterr().err == "from: 'mine' is a sweep of gradient_flow; choose one of cost\n"
    (folder / "multirun.yaml").unlink()
    assert run(f"from={folder}") == 2
    assert capsys.readouterr().err == ("from: 'mine' does not say which experiment made it: it has no multirun.yaml\n")


def test_a_sweep_that_a_summary_refuses(fakes, runner, capsys):
    def summarize(folder):
        raise UserError(f"from: {str(folder)!r} has no network that started")

    fakes["gradient_flow"].module.summarize = summarize
    folder = make_sweep("-m", "seed=0")
    capsys.readouterr()
    assert run(f"from={folder}") == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["from: 'outputs/gradient_flow' has no network that started"]
    assert not PAGE.exists()


def test_a_summary_that_fails(fakes, runner, capsys):
    def summarize(folder):
        raise KeyError("gain")

    fakes["gradient_flow"].module.summarize = summarize
    assert run(f"from={make_sweep('-m', 'seed=0')}") == 1
    assert capsys.readouterr().err.endswith("failed: gradient_flow: KeyError: 'gain'\n")
    assert "KeyError" in parts(PAGE)["gradient_flow-sweep"]


def test_networks_and_their_seeds_come_from_the_sweeps_of_the_folder(runner, monkeypatch):
    assert published.networks(Path()) == {}
    runner.status[2] = "diverged"
    make_sweep("-m", "seed=0,1,2", "hydra.sweep.dir=here/one")
    make_sweep("seed=7", "hydra.run.dir=here/two")
    set_commit(monkeypatch, "0")
    kept = {"trained": 4, "status": {"ok": 3, "diverged": 1}, "seeds": [0, 1, 2, 7], "other_commits": 0}
    assert published.networks(Path("here")) == kept
    set_commit(monkeypatch, "abc123")
    assert published.networks(Path("here")) == kept | {"other_commits": 4}


def test_an_origin_in_words():
    origin = {"command": "python -m x", "commit": "abc", "packages": {"torch": "2.13", "numpy": "2"}}
    assert published.describe(origin) == (
        ("Command", "`python -m x`"),
        ("Commit", "abc"),
        ("Packages", "torch 2.13, numpy 2"),
    )
    trained = {"trained": 4, "status": {"ok": 3, "diverged": 1}, "seeds": [0, 1], "other_commits": 2}
    assert published.describe(origin | {"commit": None, "networks": trained})[1:4] == (
        ("Commit", "none: not made in a checkout (2 of 4 networks are kept from another commit)"),
        ("Networks", "4: 3 ok, 1 diverged"),
        ("Seeds", "0, 1"),
    )


def test_help_and_mistakes_do_not_import_torch():
    code = (
        "import sys; from experiments import report; from bpexp.entry import main; "
        "main('report', report.__doc__, program=report.program, check=report.check, arguments=sys.argv[1:]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'polars', 'matplotlib')))"
    )
    for arguments in (["--help"], ["only=none"], ["from=nowhere"]):
        command = [sys.executable, "-c", code, *arguments]
        environment = {"PYTHONPATH": str(entry.CONF.parent)}
        assert subprocess.run(command, check=False, capture_output=True, env=environment).returncode == 0
