import functools
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import torch
import torch.nn.functional as F

from bpexp.rules import RULES
from bpexp.rules.table import Gradient
from experiments import walkthrough, walkthrough_numbers
from experiments.walkthrough_numbers import BOUND, CURVATURES, ETA, LOSSES, MULTIPLES, PARAMETERS, Quadratic
from experiments.walkthrough_text import matrices, text

walk = functools.cache(walkthrough_numbers.walk)

SEEDS = (0, 1, 2)
HEADINGS = (
    "STEP 1. FORWARD",
    "STEP 2. LOSS",
    "STEP 3. BACKWARD",
    "STEP 4. UPDATE",
    "STEP 5. ITERATION",
    "HOW LARGE MAY ETA BE?",
    "WHY IS DEPTH HARD?",
)


@pytest.fixture(scope="module")
def tables():
    return walk(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "walkthrough"


def modules(found):
    """Return torch.nn's own network with the walkthrough's parameters."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    names = dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), PARAMETERS, strict=True))
    network.load_state_dict(
        {torchs: found[ours].reshape(network.state_dict()[torchs].shape) for torchs, ours in names.items()}
    )
    return network, names


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_numbers_are_those_of_torch(loss, seed):
    numbers = walk(seed)["numbers"].filter(loss=loss)
    assert (numbers["by_hand"] - numbers["torch"]).abs().max() < 1e-12
    ours = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in matrices(walk(seed), loss).items()}
    network, names = modules(ours)
    z2 = network(ours["X"])
    target = ours["T"] if loss == "mse" else ours["T"].argmax(1)
    value = F.mse_loss(z2, target) if loss == "mse" else F.cross_entropy(z2, target)
    value.backward()
    assert abs(value.item() - ours["L"].item()) < 1e-12
    assert (z2 - ours["Z2"]).abs().max() < 1e-12
    for theirs, name in names.items():
        parameter = network.get_parameter(theirs)
        assert (parameter.grad - ours[f"dL/d{name}"].reshape(parameter.shape)).abs().max() < 1e-12
        assert (parameter - ETA * parameter.grad - ours[f"{name} new"].reshape(parameter.shape)).abs().max() < 1e-12


BROKEN = {
    ("tanh", "x"): {"delta1", "dL/dW1", "dL/db1"},
    ("linear", "x"): {"dL/dH", "delta1", "dL/dW1", "dL/db1"},
    ("linear", "weight"): {"dL/dW1", "dL/dW2"},
    ("linear", "bias"): {"dL/db1", "dL/db2"},
    ("mse_loss", "x"): {"delta2", "dL/dH", "delta1", "dL/dW1", "dL/dW2", "dL/db1", "dL/db2"},
}


@pytest.mark.parametrize(("rule", "argument"), BROKEN)
def test_the_gradients_are_the_rules(rule, argument, monkeypatch):
    def broken(one):
        if argument not in one.arguments:
            return one
        return Gradient(one.arguments, lambda *known: 1.001 * one.formula(*known), one.needs)

    parameters = walkthrough_numbers.start(0)
    before = walkthrough_numbers.both_passes(parameters, "mse")
    monkeypatch.setattr(RULES[rule], "backward", tuple(map(broken, RULES[rule].backward)))
    after = walkthrough_numbers.both_passes(parameters, "mse")
    assert {name for name in before if not torch.equal(before[name], after[name])} == BROKEN[rule, argument]


@pytest.mark.parametrize("seed", SEEDS)
def test_iteration_ends_when_the_stated_criterion_is_met(seed):
    for row in walk(seed)["summary"].iter_rows(named=True):
        curve = walk(seed)["curves"].filter(loss=row["loss"])["value"].to_list()
        assert curve[-1] < BOUND <= min(curve[:-1])
        assert (row["criterion"], row["met"], row["epochs"]) == (f"loss < {BOUND:g}", True, len(curve) - 1)
        assert row["right"] == 4


def test_the_text_states_the_criterion_and_when_it_was_met(tables):
    said = text(tables)
    assert f"Criterion of convergence, stated beforehand: loss < {BOUND:g}" in said
    for loss, row in LOSSES.items():
        epochs = tables["curves"].filter(loss=loss)["epoch"].max()
        assert f"  {row.title:<18}  loss < {BOUND:g} met after {epochs} epochs" in said


def test_a_criterion_that_is_not_met_is_said_to_be(monkeypatch):
    monkeypatch.setattr(walkthrough_numbers, "MOST_EPOCHS", 5)
    found = walkthrough_numbers.walk(0)
    assert text(found).count("NOT met after 5 epochs") == 2
    assert walkthrough.section(found).answer.count("had NOT met it after 5 epochs") == 2


def test_the_nudge_tells_the_same_slope(tables):
    for loss in LOSSES:
        [row] = tables["summary"].filter(loss=loss).iter_rows(named=True)
        assert abs(row["nudged_slope"] - matrices(tables, loss)["dL/dW1"][0][0]) < 1e-7
        assert 0 < row["before"] - row["after"] < row["expected_fall"] * 1.5


def test_the_hessian_is_torchs():
    run = Quadratic([0.0])

    def loss(w):
        return F.mse_loss(F.linear(run.x[0], w[None]), run.target[0])

    hessian = torch.autograd.functional.hessian(loss, torch.ones(2, dtype=torch.float64))
    assert torch.equal(run.hessian(), hessian)
    assert torch.equal(hessian.diagonal(), torch.tensor(CURVATURES, dtype=torch.float64))


def test_divergence_starts_exactly_at_two_over_the_largest_eigenvalue(tables):
    [limits] = tables["threshold"].iter_rows(named=True)
    assert limits["limit"] == 2 / max(CURVATURES)
    assert limits["largest_kept"] == limits["limit"]
    assert 0 < limits["smallest_diverging"] - limits["limit"] < 2e-16
    verdicts = {}
    for row in tables["rates"].iter_rows(named=True):
        factor = max(abs(1 - row["eta"] * curvature) for curvature in CURVATURES)
        assert abs(row["growth"] - factor) < 1e-12
        expected = "converges" if factor < 1 else "oscillates" if factor == 1 else "diverges"
        assert row["predicted"] == row["measured"] == expected
        assert row["loss_early"] == pytest.approx(row["early_predicted"], rel=1e-9)
        verdicts[row["multiple"]] = (row["measured"], row["loss_late"])
    assert list(verdicts) == MULTIPLES
    assert (verdicts[0.999][0], verdicts[1][0], verdicts[1.001][0]) == ("converges", "oscillates", "diverges")
    assert verdicts[0.999][1] < verdicts[1][1] == 2 < verdicts[1.001][1]


def test_chains_are_products_and_torch_agrees(tables):
    for (activation, _), rows in tables["chains"].partition_by("activation", "weight", as_dict=True).items():
        product = 1.0
        for row in rows.iter_rows(named=True):
            product *= 1.0 if row["factor"] is None else row["factor"]
            assert row["product"] == pytest.approx(product, rel=1e-12)
            assert row["torch"] == pytest.approx(product, rel=1e-12)
        if activation == "sigmoid":
            assert product <= 0.25 ** (len(rows) - 1)
    assert tables["chains"].filter(weight=2.0, layer=1)["product"].item() == 2.0**9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_text_is_plain_and_has_every_step(seed):
    said = text(walk(seed))
    places = [said.index(f"\n{heading}") for heading in HEADINGS]
    assert places == sorted(places)
    assert said.isascii()
    assert max(map(len, said.splitlines())) <= 100
    assert "-0.00000" not in said


def test_every_number_is_printed(tables):
    said = text(tables)
    for name, value in tables["numbers"].select("name", "by_hand").iter_rows():
        shown = f"{round(value, 5) + 0.0:.{1 if name in ('X', 'T', *PARAMETERS) else 5}f}"
        assert shown in said, name


def test_what_is_printed_comes_from_the_tables(tables):
    numbers = tables["numbers"]
    here = (numbers["loss"] == "mse") & (numbers["name"] == "dL/dW1") & (numbers["row"] == 3) & (numbers["column"] == 2)
    changed = numbers.with_columns(by_hand=polars.when(here).then(7.65432).otherwise("by_hand"))
    before, after = text(tables), text({**tables, "numbers": changed})
    assert "7.65432" not in before
    assert after.count("7.65432") == 2  # backward, update
    assert "8e+00" in after  # its difference to torch


def test_the_section_is_the_same_for_the_same_tables(tables, tmp_path):
    again = walkthrough.compute("smoke", tmp_path)
    for name, table in tables.items():
        assert table.equals(again[name]), name
    section = walkthrough.section(tables)
    assert section == walkthrough.section(again)
    assert all(picture.svg.startswith("<svg") for picture in section.pictures)
    assert len({picture.svg for picture in section.pictures}) == len(section.pictures) == 2
    assert "are all as predicted" in section.answer
    assert {table.name for table in section.tables} == {
        "derivatives_mse",
        "derivatives_cross_entropy",
        "rates",
        "chains",
    }
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    assert set(walkthrough.SCALES) == {"smoke", "default", "full"}


def test_a_wrong_verdict_is_not_hidden(tables):
    wrong = tables["rates"].with_columns(measured=polars.lit("converges"))
    assert "are NOT all as predicted" in walkthrough.section({**tables, "rates": wrong}).answer


def run(*arguments):
    return walkthrough.entry.main("walkthrough", walkthrough.__doc__, program=walkthrough.program, arguments=arguments)


def test_the_command_prints_the_text_and_leaves_it_with_its_tables(folder, capsys, tables):
    assert run() == 0
    printed = capsys.readouterr().out
    said = (folder / "walkthrough.txt").read_text()
    assert said == text(tables)
    assert printed == f"{said}\nThis text and its numbers: {folder}\n"
    for name, table in tables.items():
        assert polars.read_parquet(folder / f"{name}.parquet").equals(table)


def test_another_seed_is_another_network(folder, capsys, tables):
    assert run("seed=1", "hydra.run.dir=here") == 0
    assert capsys.readouterr().out.startswith(text(walk(1)))
    assert text(walk(1)) != text(tables)


MISTAKES = [
    ("sed=1", "sed: unknown key; did you mean seed?"),
    ("seed=-1", "seed: -1 is out of range; must be at least 0"),
    ("seed=two", "seed: 'two' is not an integer"),
    ("-m", "-m: walkthrough has no grid; run it without -m"),
]


@pytest.mark.parametrize(("argument", "said"), MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_a_mistake_is_one_line(argument, said, folder, capsys):
    assert run(argument) == 2
    assert capsys.readouterr() == ("", f"{said}\n")
    assert not folder.exists()


@pytest.mark.parametrize("experiment", ["walkthrough", "exercise"])
def test_help_needs_no_torch(experiment):
    code = (
        f"import runpy, sys; sys.argv = ['{experiment}', '--help']\n"
        f"try: runpy.run_module('experiments.{experiment}', run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        "sys.exit(code or bool({'torch', 'polars', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(walkthrough.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m experiments.{experiment} [key=value ...]" in done.stdout
