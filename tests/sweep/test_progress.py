import time
from pathlib import Path

import pytest
from conftest import configure

from bpexp.sweep import progress as module
from bpexp.sweep.group import Group
from bpexp.sweep.job import Job
from bpexp.sweep.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time that a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def group(*seeds, name="one", steps=100, kept=(), **values):
    configs = [configure({"seed": seed, "train.steps": steps, **values}) for seed in seeds]
    jobs = [Job(config, [], str(config.seed), Path(str(config.seed)), name) for config in configs]
    return Group(jobs, frozenset(kept))


def test_cost_is_work():
    values = {"model.depth": 3, "model.width": 4, "train.batch_size": 5}
    assert group(0, 1, **values).cost == 2 * 3 * 16 * 5
    assert group(0, steps=9, **values).work == 10 * 3 * 16 * 5


def test_counts_speed_and_time_left(clock):
    first, second = group(0, 1, kept="1"), group(2, name="two", steps=300)
    with Progress([first, second]) as progress:
        assert progress.text() == "groups 0/2, jobs 0/2"
        progress.report(first, 0)
        clock[0] += 10
        progress.report(first, 100)
        # 200 of 504 network-steps in 10 s, the writing of the results counted as one each
        assert progress.text() == "groups 0/2, jobs 0/2, 20 network-steps/s, 0:15 left"
        progress.finish(first, {"0": "diverged"})
        progress.report(second, 0)
        clock[0] += 10
        progress.report(second, 100)
        assert progress.text() == "groups 1/2, jobs 1/2, 1 diverged, 15 network-steps/s, 0:13 left"
        progress.finish(second, {"2": "failed"})
        assert progress.text().startswith("groups 2/2, jobs 2/2, 1 failed, 1 diverged, ")
        assert progress.left == 0


def test_the_speed_is_that_of_late(clock):
    one = group(0, steps=10_000)
    progress = Progress([one])
    progress.report(one, 0)
    for step in (100, 200):
        clock[0] += 20
        progress.report(one, step)
    for step in (1200, 2200, 3200):
        clock[0] += 20
        progress.report(one, step)
    assert ", 50 network-steps/s, " in progress.text()


def test_steps_of_an_interrupted_run_are_done_but_no_speed(clock):
    one = group(0)
    progress = Progress([one])
    progress.report(one, 90)
    clock[0] += 1
    progress.report(one, 95)
    assert progress.text() == "groups 0/1, jobs 0/1, 5 network-steps/s, 0:01 left"


def test_a_plain_line_now_and_then(clock, capsys):
    one = group(0)
    with Progress([one]) as progress:
        progress.report(one, 0)
        clock[0] += 1
        progress.report(one, 10)  # too soon
        progress.say("a warning")
        clock[0] += module.SECONDS_BETWEEN_LINES
        progress.report(one, 60)
    assert capsys.readouterr().err == (
        "groups 0/1, jobs 0/1\na warning\ngroups 0/1, jobs 0/1, 10 network-steps/s, 0:04 left\n"
    )


def test_the_last_line_is_the_end(clock, capsys):
    first, second = group(0), group(1, name="two")
    with Progress([first, second]) as progress:
        progress.finish(first, {"0": "ok"})
        progress.finish(second, {"1": "ok"})
    assert capsys.readouterr().err == "groups 1/2, jobs 1/2\ngroups 2/2, jobs 2/2\n"


def test_the_last_line_of_an_interrupted_run(clock, capsys):
    first, second = group(0), group(1, name="two")
    progress = Progress([first, second])
    progress.report(first, 0)
    progress.finish(first, {"0": "ok"})
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "groups 0/2, jobs 0/2\ngroups 1/2, jobs 1/2\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    one = group(0)
    with Progress([one]) as progress:
        progress.report(one, 50)
        assert progress.bar.tasks[0].description == "groups 0/1, jobs 0/1"
        assert progress.bar.tasks[0].completed / progress.bar.tasks[0].total == pytest.approx(50 / 101)
        progress.say("[a warning]")
    assert "[a warning]" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3600 * 26 + 62, "26:01:02")])
def test_durations(seconds, shown):
    assert module._duration(seconds) == shown
