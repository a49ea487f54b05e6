"""Every experiment that conf/experiment has runs from its command, from end to end, at its smallest."""

import subprocess
import sys
from pathlib import Path

import pytest

from bpexp.entry import CONF

SMALLEST = {
    "exercise": ([], None),
    "report": (["scale=smoke", "only=walkthrough"], "index.html"),
}
"""The arguments of each, and a file that it leaves."""

RUN_ELSEWHERE = {"claims", "clipping", "cost", "gradient_flow", "remedies", "trainability", "walkthrough"}
"""What takes long even at its smallest: test_cost makes its tables, test_claims runs the ledger on small studies,
test_trainability, test_remedies and test_clipping a grid in their own process, sweep/test_killed_command runs
gradient_flow, and the report here the walkthrough."""

EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))

UNSOLVED = 1
"""The exit code of the exercise as it is shipped."""


def test_every_experiment_runs_here_or_elsewhere():
    assert {path.stem for path in EXPERIMENTS} == SMALLEST.keys() | RUN_ELSEWHERE


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.stem in SMALLEST], ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    arguments, left = SMALLEST[path.stem]
    command = [sys.executable, "-m", f"experiments.{path.stem}", *arguments, f"hydra.run.dir={tmp_path / 'here'}"]
    done = subprocess.run(command, cwd=Path(CONF).parent, capture_output=True, text=True, check=False)
    assert done.returncode == (UNSOLVED if path.stem == "exercise" else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout
    if left is not None:
        assert (tmp_path / "here" / left).stat().st_size > 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_mistake_ends_its_command_with_code_2(path, tmp_path):
    command = [sys.executable, "-m", f"experiments.{path.stem}", "nothing=1", f"hydra.run.dir={tmp_path / 'here'}"]
    done = subprocess.run(command, cwd=Path(CONF).parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nothing: unknown key; ")
    assert not (tmp_path / "here").exists()
