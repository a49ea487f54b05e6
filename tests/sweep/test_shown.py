"""Which networks of a large sweep are shown: at most so many, cells first, and no value of an axis missed."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from conftest import configure

from bpexp.entry import call
from bpexp.spec import UserError
from bpexp.sweep.job import Job
from bpexp.sweep.shown import limit_shown, spread

INITS = ("pytorch", "glorot", "he", "lecun", "orthogonal")


def make_jobs(most, seeds=(0, 1, 2), depths=(2, 3, 4), inits=INITS):
    grid = itertools.product(depths, inits, seeds)
    values = [{"model.depth": d, "init.name": i, "seed": s, "sweep.max_runs": most} for d, i, s in grid]
    return [Job(configure(one), [], str(number), Path(str(number))) for number, one in enumerate(values)]


def shown(jobs):
    return [(job.config.model.depth, job.config.init.name, job.config.seed) for job in limit_shown(jobs) if job.shown]


def test_a_sweep_that_fits_is_shown_whole():
    assert limit_shown(make_jobs(45)) == make_jobs(45)
    assert all(job.shown for job in limit_shown(make_jobs(45)))


def test_first_a_seed_of_every_cell_then_another():
    assert {seed for *_, seed in shown(make_jobs(15))} == {0}
    assert len({one[:2] for one in shown(make_jobs(15))}) == 15
    found = shown(make_jobs(20))
    assert Counter(seed for *_, seed in found) == {0: 15, 1: 5}
    assert {init for _, init, seed in found if seed == 1} == set(INITS)


@pytest.mark.parametrize("most", [0, 1, 5, 9, 44])
def test_no_more_than_asked_in_the_order_of_the_sweep(most):
    jobs = make_jobs(most)
    assert len(shown(jobs)) == most
    assert [job.identity for job in limit_shown(jobs)] == [job.identity for job in jobs]
    assert limit_shown(jobs) == limit_shown(jobs)


def test_more_cells_than_room_are_of_all_values():
    # Every fifth cell of this grid, which a plain stride takes, has the same initialization.
    found = shown(make_jobs(15, seeds=(0,), depths=range(2, 17)))
    assert Counter(init for _, init, _ in found) == dict.fromkeys(INITS, 3)
    assert len({depth for depth, _, _ in found}) == 15


def test_points_of_one_axis_are_spread_along_it():
    chosen = spread([(number,) for number in range(1000)], 50)
    assert len(chosen) == 50
    assert max(right - left for left, right in itertools.pairwise([0, *chosen, 999])) < 3 * 20


def test_equal_points_and_points_without_axes():
    assert len(spread([(1, 2)] * 9, 4)) == 4
    assert len(spread([()] * 9, 4)) == 4


def test_a_single_run_refuses_what_it_would_ignore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^sweep\.max_runs: '3' would be ignored without -m$"):
        call("gradient_flow", ["sweep.max_runs=3"])
