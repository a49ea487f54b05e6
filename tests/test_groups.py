"""Which jobs train together: structures first, then what is left over of them."""

import itertools
from pathlib import Path

import pytest
from conftest import configure

from bpexp import spec
from bpexp.sweep.files import read_json, write_json
from bpexp.sweep.groups import alone, members, read_groups, regroup, together, write_groups
from bpexp.sweep.job import Job


def jobs_of(folder=Path(), **axes):
    """The jobs of a grid, of keys whose dots are written as two underscores; a layer has 2^12 outputs of a network."""
    names = [name.replace("__", ".") for name in axes]
    made = []
    for values in itertools.product(*axes.values()):
        config = configure({"model.width": 32, "train.batch_size": 128} | dict(zip(names, values, strict=True)))
        identity = spec.identity(config)
        made.append(Job(config, [], identity, folder / identity))
    return made


def kinds(jobs):
    """The depth and activation of the networks of each group, in order."""
    grouped = members(together(jobs)).values()
    return [[(job.config.model.depth, job.config.model.activation) for job in group] for group in grouped]


def test_groups_are_a_pure_function_of_the_jobs():
    jobs = jobs_of(seed=range(3), model__depth=(2, 3))
    assert together(jobs) == together(jobs)
    assert len({job.group for job in together(jobs)}) == 1
    assert len({job.group for job in alone(jobs)}) == 6


def test_jobs_keep_the_order_of_the_sweep():
    jobs = jobs_of(model__depth=(2, 5, 3), seed=(0, 1))
    assert [job.identity for job in together(jobs)] == [job.identity for job in jobs]


def test_enough_networks_of_one_structure_are_a_group_of_their_own():
    assert kinds(jobs_of(model__depth=(2, 3), seed=range(4))) == [[(3, "tanh")] * 4, [(2, "tanh")] * 4]


def test_few_networks_of_several_depths_train_together_the_deepest_first():
    assert kinds(jobs_of(model__depth=(2, 5, 3), seed=(0, 1))) == [[(d, "tanh") for d in (5, 5, 3, 3, 2, 2)]]
    assert kinds(jobs_of(model__depth=(2, 5), model__width=(16, 32))) == [[(5, "tanh"), (2, "tanh")]] * 2


@pytest.mark.parametrize(("width", "batch_size", "groups"), [(31, 128, 1), (32, 128, 2), (16, 64, 1), (128, 32, 2)])
def test_what_few_networks_are_depends_on_their_size(width, batch_size, groups):
    assert (
        len(kinds(jobs_of(model__width=(width,), train__batch_size=(batch_size,), model__depth=(2, 3), seed=range(4))))
        == groups
    )


def test_networks_that_are_alone_train_with_others_of_their_depth():
    one_each = [[(4, name) for name in ("relu", "sigmoid", "tanh")]]
    assert kinds(jobs_of(model__activation=("tanh", "relu", "sigmoid"))) == one_each
    both = kinds(jobs_of(model__depth=(4, 2), model__activation=("tanh", "relu")))
    assert both == [[(4, "relu"), (2, "relu")], [(4, "tanh"), (2, "tanh")]]
    two_each = kinds(jobs_of(model__activation=("tanh", "relu"), seed=(0, 1)))
    assert two_each == [[(4, "relu")] * 2, [(4, "tanh")] * 2]


def test_a_learned_slope_is_not_mixed_with_other_activations():
    assert kinds(jobs_of(model__activation=("prelu", "relu", "tanh"))) == [[(4, "prelu")], [(4, "relu"), (4, "tanh")]]
    assert kinds(jobs_of(model__activation=("prelu",), model__depth=(2, 3))) == [[(3, "prelu"), (2, "prelu")]]


@pytest.mark.parametrize(("networks", "sizes"), [(8, [3, 3, 2]), (4, [2, 2]), (7, [3, 3, 1]), (3, [3])])
def test_large_groups_are_cut_evenly(monkeypatch, networks, sizes):
    monkeypatch.setattr("bpexp.sweep.groups.LARGEST_GROUP", 3)
    assert [len(group) for group in kinds(jobs_of(seed=range(networks)))] == sizes


def test_a_large_group_of_many_depths_is_cut_between_depths_that_are_near(monkeypatch):
    monkeypatch.setattr("bpexp.sweep.groups.LARGEST_GROUP", 3)
    depths = [[depth for depth, _ in group] for group in kinds(jobs_of(model__depth=(1, 6, 2, 5, 3, 4)))]
    assert depths == [[6, 5, 4], [3, 2, 1]]


def test_groups_are_written_and_read_in_the_order_in_which_they_train(tmp_path):
    jobs = together(jobs_of(tmp_path, model__depth=(2, 5, 3)))
    write_groups(tmp_path, jobs)
    stored = read_json(tmp_path / "groups.json")
    (trained,) = members(jobs).values()
    assert list(stored.values()) == [[job.folder.name for job in trained]]
    assert [job.config.model.depth for job in trained] == [5, 3, 2]


@pytest.mark.parametrize("text", ['{"a": 3}', '{"a": "b"}', '{"a": ["b", 3]}', '{"a": null}', "[]", '{"a": ["b'])
def test_groups_that_are_damaged_are_written_anew(tmp_path, text):
    jobs = together(jobs_of(tmp_path, model__depth=(2, 5, 3)))
    (tmp_path / "groups.json").write_text(text)
    assert read_groups(tmp_path) == {}
    write_groups(tmp_path, jobs)
    assert list(read_groups(tmp_path)) == list(members(jobs))


def test_a_stored_group_goes_on_in_its_own_order_when_the_grid_is_typed_in_another(tmp_path):
    first = together(jobs_of(tmp_path, model__depth=(2, 5), seed=(0, 1)))
    write_groups(tmp_path, first)
    stored = read_json(tmp_path / "groups.json")
    (done, *left) = first
    done.folder.mkdir()
    write_json(done.folder / "run.json", {"identity": done.identity, "group": done.group})
    again = together(jobs_of(tmp_path, seed=(1, 0), model__depth=(5, 2)))
    assert {job.group for job in again} != {job.group for job in first}
    again = regroup(again, {job.identity for job in left}, stored)
    assert {job.group for job in again} == {job.group for job in first}
    (before,), (after,) = members(first).values(), members(again, stored).values()
    assert [job.identity for job in after] == [job.identity for job in before]
