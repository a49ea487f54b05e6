"""Fitting: what does not fit the memory is cut before work starts, stays cut, or is refused by name."""

import json

import pytest
from conftest import configure

from bpexp import memory, spec
from bpexp.sweep import executors, fitting
from bpexp.sweep.files import write_json
from bpexp.sweep.group import Group
from bpexp.sweep.groups import GROUPS_FILE, members, read_groups, regroup, together, write_groups
from bpexp.sweep.job import Job
from bpexp.sweep.results import RUN_FILE


def sweep_of(folder, seeds=6, **values):
    configs = [configure({"seed": seed, "model.width": 256, "device": "cpu"} | values) for seed in range(seeds)]
    return together([Job(config, (), spec.identity(config), folder / str(config.seed)) for config in configs])


def set_limit(monkeypatch, limit, whole=None):
    monkeypatch.setattr(fitting, "_usable", lambda device, ever: whole if ever else limit)


def sizes(jobs):
    return [len(group) for group in members(jobs).values()]


def room_for(jobs, networks):
    return memory.estimate([job.config for job in jobs[:networks]]).total


def test_a_group_that_fits_keeps_its_name(monkeypatch, tmp_path):
    jobs = sweep_of(tmp_path)
    for limit in (room_for(jobs, 6), None):
        set_limit(monkeypatch, limit)
        assert fitting.fit(jobs, {}) == jobs


def test_a_group_that_does_not_fit_is_cut_and_stays_cut_whatever_is_free_later(monkeypatch, tmp_path):
    jobs = sweep_of(tmp_path)
    set_limit(monkeypatch, room_for(jobs, 3))
    cut = fitting.fit(jobs, {})
    assert sizes(cut) == [3, 3]
    assert {job.group for job in cut}.isdisjoint(job.group for job in jobs)
    write_groups(tmp_path, cut)
    stored = json.loads((tmp_path / GROUPS_FILE).read_text())
    for limit in (room_for(jobs, 1), room_for(jobs, 6), None):
        set_limit(monkeypatch, limit)
        assert fitting.fit(jobs, stored) == cut


def test_a_stored_group_is_trained_as_it_is(monkeypatch, tmp_path):
    jobs = sweep_of(tmp_path)
    write_groups(tmp_path, jobs)
    set_limit(monkeypatch, room_for(jobs, 2))
    assert fitting.fit(jobs, json.loads((tmp_path / GROUPS_FILE).read_text())) == jobs


def test_a_stored_group_is_cut_on_a_smaller_machine_and_its_pieces_go_on_by_their_names(monkeypatch, tmp_path):
    jobs = sweep_of(tmp_path)
    write_groups(tmp_path, jobs)
    set_limit(monkeypatch, room_for(jobs, 2), whole=room_for(jobs, 3))
    cut = fitting.fit(jobs, read_groups(tmp_path))
    assert sizes(cut) == [3, 3]
    write_groups(tmp_path, cut)
    for job in cut[:3]:
        job.folder.mkdir()
        write_json(job.folder / RUN_FILE, {"identity": job.identity, "group": job.group, "status": "ok"})
    stored, pending = read_groups(tmp_path), {job.identity for job in cut[3:]}
    assert len(stored) == 3
    set_limit(monkeypatch, room_for(jobs, 6))  # the larger machine again
    assert fitting.fit(regroup(jobs, pending, stored), stored) == cut


def test_a_network_too_large_by_itself_is_told(monkeypatch, tmp_path):
    config = configure({"model.width": 100_000, "device": "cpu"})
    set_limit(monkeypatch, 2**32)
    assert fitting.why_too_large(config).startswith("model.width: a network with 100000 takes up to ")
    assert fitting.why_too_large(configure({"device": "cpu"})) is None
    set_limit(monkeypatch, None)
    assert fitting.why_too_large(config) is None


def test_on_a_cluster_a_group_has_what_it_asked_for():
    config = configure({"sweep.executor": "submitit", "sweep.memory": 3.0})
    assert fitting.limit_of(config) == 3_000_000_000
    config.sweep.memory = None
    assert fitting.limit_of(config) is None


@pytest.mark.parametrize(("room", "workers"), [(2, 2), (1, 1)])
def test_fewer_workers_where_all_would_not_fit_and_it_is_said(monkeypatch, tmp_path, capsys, room, workers):
    jobs = sweep_of(tmp_path, 2)
    groups = [Group([job]) for job in jobs]
    each = room_for(jobs, 1)
    set_limit(monkeypatch, room * each)
    monkeypatch.setattr(executors, "count_cores", lambda: 2)
    chosen = executors.choose_executor(groups, tmp_path)
    assert (chosen is executors.run_inline) == (workers == 1)
    each, limit = memory.told(each), memory.told(room * each)
    said = f"2 workers, at most {each} each" if workers == 2 else f"at most {each}"
    assert capsys.readouterr().err == f"memory: {said} of {limit}\n"
