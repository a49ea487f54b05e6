"""The benchmark of sweeps: both sides train the same networks, and what was asked is judged. Nothing is timed."""

from dataclasses import replace

import polars
import pytest
import torch

from bpexp.data import load
from bpexp.ensemble import Ensemble
from bpexp.records import read_results
from bpexp.spec import identity
from experiments import cost_launching, cost_sweeps
from experiments.cost_plain import Loop, initialize
from experiments.cost_sides import Ours, Size
from experiments.cost_sweeps import (
    ALONE,
    COMMAND,
    GROUP,
    OURS,
    PLAIN,
    PRODUCT,
    STEPS,
    TOGETHER,
    Alone,
    Grid,
    Jobs,
    Schedule,
    groups,
    part_rows,
    product_flops,
    step_flops,
    sweep,
    sweep_rows,
)
from experiments.cost_timing import Seconds, Turn, take_rounds

EXACT = Size(1, 3, 12, 16, dtype="float64")
TINY = Grid(8, 3, Size(1, 2, 5, 8))


class Clock:
    """A time that only the sides move."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return Seconds(self.time, 2 * self.time)


class Slowing:
    """A side whose steps take a second, and in each turn of any side a second more."""

    def __init__(self, clock, turns):
        self.clock, self.turns = clock, turns

    def reset(self):
        self.turns.append(self)

    def run(self, steps):
        self.clock.time += steps * len(self.turns)


def test_turns_before_and_after_see_the_same_mean_speed_of_a_machine():
    clock, turns = Clock(), []
    outside, inside = Slowing(clock, turns), Slowing(clock, turns)
    half = Turn("outside", outside, 2)
    taken = take_rounds([half, Turn("inside", inside, 5), half], 2, clock)
    assert [one.processor for one in taken["inside"]] == [2.0, 5.0]
    assert taken["outside"] == taken["inside"]
    assert [one.wall for one in taken["inside"]] == [4.0, 10.0]
    assert turns == [outside, inside, outside] * 2


@pytest.mark.parametrize("optimizer", ["fused", "foreach"])
def test_the_plain_loop_trains_as_the_product_does(optimizer):
    ensemble = Ensemble(EXACT.configs())
    ours, data = Ours(ensemble, draws=True), load("digits", 0, dtype=torch.float64)
    start = [parameter[0] for parameter in ensemble.parameters]
    order = ensemble.batches.streams[0].clone_state()
    loop = Loop(
        EXACT.configs()[0],
        data.x_train,
        data.y_train,
        outputs=data.outputs,
        optimizer=optimizer,
        order=order,
        start=start,
    )
    batches = len(data.x_train) // EXACT.batch
    before = ensemble.values.clone()
    for _ in range(2):  # the second turn goes into the second epoch
        ours.run(batches // 2 + 1)
        loop.run(batches // 2 + 1)
        theirs = torch.cat([p.detach().flatten() for p in loop.ordered()])
        mine = torch.cat([p.flatten() for p in ensemble.parameters])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert not torch.allclose(ensemble.values, before, rtol=0, atol=1e-3)


def test_without_a_start_the_weights_of_a_loop_are_he_s():
    data = load("digits", 0, dtype=torch.float32)
    loop = Loop(Size(1, 2, 64, 8).configs()[0], data.x_train, data.y_train, outputs=10)
    torch.manual_seed(0)
    initialize(loop.model)
    for layer in (module for module in loop.model if isinstance(module, torch.nn.Linear)):
        assert layer.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
        assert not layer.bias.any()


def test_a_sweep_is_the_grid_that_the_loops_train(tmp_path):
    results = read_results(sweep(tmp_path, TINY))
    configs = TINY.configs(TINY.jobs)
    assert len(results) == TINY.jobs == len({identity(config) for config in configs})
    assert set(results["job"].str.slice(-10)) == {identity(config) for config in configs}
    assert results["status"].to_list() == ["ok"] * TINY.jobs
    assert results.select("train.measure_every", "train.steps", "init").unique().rows() == [(10, 3, "he")]
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert list(tmp_path.rglob("records.parquet"))


def test_a_group_trains_in_every_turn_as_the_first_time():
    group = cost_sweeps.Group(TINY.configs(4))
    group.run(1)
    before = group.ensemble.values.clone()
    group.run(2)
    assert torch.equal(group.ensemble.values, before)


def test_groups_are_those_of_the_product():
    found = groups(replace(TINY, jobs=200))
    assert sum(map(len, found)) == 200
    assert 8 <= len(found[0]) <= 64


def test_jobs_take_their_learning_rates_in_turn(monkeypatch):
    made = []

    class Noted:
        def __init__(self, config, x, y, **others):
            made.append((config.optimizer.lr, config.model.depth, len(x), others))

        def run(self, steps):
            made.append(steps)

    monkeypatch.setattr("experiments.cost_plain.Loop", Noted)
    Jobs(TINY, "foreach").run(2)
    others = {"outputs": 10, "optimizer": "foreach"}
    samples = len(load("digits", 0, dtype=torch.float32).x_train)
    assert made == [(0.0025, 2, samples, others), 3, (0.005, 2, samples, others), 3]


def test_a_job_alone_is_a_process_that_trains_it(tmp_path, monkeypatch):
    from experiments import cost_plain

    started, trained = [], []
    monkeypatch.setattr(cost_sweeps, "start", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(Loop, "run", lambda loop, steps: trained.append((loop.batch, steps)))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    Alone(tmp_path / "job.pt", Jobs(TINY, "fused")).run(2)
    assert started == [("experiments.cost_plain", str(tmp_path / "job.pt"))] * 2
    cost_plain.main(tmp_path / "job.pt")
    assert trained == [(8, 3)]


def test_a_module_that_fails_says_why():
    why = r"^experiments\.cost_command: exit code 1: .*UserError: nothing: unknown key; "
    with pytest.raises(RuntimeError, match=why):
        cost_sweeps.start("experiments.cost_command", "nothing=1")


def test_operations_are_counted_by_torch_as_well():
    from torch.utils.flop_counter import FlopCounterMode

    size = Size(1, 4, 12, 16)
    data = load("digits", 0, dtype=torch.float32)
    loop = Loop(size.configs()[0], data.x_train, data.y_train, outputs=10)
    with FlopCounterMode(display=False) as counter:
        loop.run(1)
    assert counter.get_total_flops() == step_flops(size, *cost_sweeps.shape())
    with FlopCounterMode(display=False) as counter:
        torch.bmm(torch.ones(3, 16, 12), torch.ones(3, 12, 12))
    assert counter.get_total_flops() == product_flops(replace(size, networks=3))


def seconds(*values):
    return [Seconds(value, 2 * value) for value in values]


def test_ratios_are_taken_round_by_round_of_a_job():
    taken = {PLAIN: seconds(0.4, 0.8), OURS: seconds(0.1, 0.2), COMMAND: seconds(0.2, 0.4), ALONE: seconds(4.0, 8.0)}
    asked = {PLAIN: 3.9, ALONE: 25}
    rows = sweep_rows(Schedule(TINY, 2, 1, fresh=1, asked=asked, limit=3.5), taken)
    found = [(row["against"], row["ratio"], row["target"], row["verdict"]) for row in rows]
    # Of 8 jobs, a process that trains them all has a start of 3.6 s, and 0.4 s for each.
    assert found == [
        (PLAIN, pytest.approx(4), 3.9, "confirmed"),
        (ALONE, pytest.approx(20), 25, "refuted"),
        (TOGETHER, pytest.approx((3.6 / 8 + 0.4) / 0.2), None, None),
    ]
    first = rows[0]
    assert (first["ours_ms"], first["theirs_ms"], first["wall_ratio"]) == pytest.approx((150, 600, 4))
    assert first["seconds"] == pytest.approx(8 * 2 * (0.1 * 0.2) ** 0.5)  # by the clock on the wall, which says more
    assert (first["limit"], first["limit_verdict"], rows[1]["limit"]) == (3.5, "inconclusive", None)


def test_the_parts_of_a_job_are_shares_of_the_peak():
    size = replace(TINY.size, networks=TINY.jobs)
    peak = 1e9
    flops = TINY.steps * step_flops(TINY.size, 64, 10)
    taken = {
        PRODUCT: seconds(*[product_flops(size) / peak] * 2),
        STEPS: seconds(*[TINY.jobs * 2 * flops / TINY.steps / peak] * 2),
        GROUP: seconds(*[TINY.jobs * 4 * flops / peak] * 2),
        OURS: seconds(*[8 * flops / peak] * 2),
    }
    rows = part_rows(TINY, taken, asked=True)
    assert [row["share"] for row in rows] == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    assert [row["ms"] for row in rows] == pytest.approx([1e3 * flops / peak * factor for factor in (1, 2, 4, 8)])
    assert [(row["target"], row["verdict"]) for row in rows] == [
        (None, None),
        (0.7, "refuted"),
        (None, None),
        (0.7, "refuted"),
    ]
    assert all(row["target"] is None for row in part_rows(TINY, taken, asked=False))


def test_sweeps_are_judged_at_the_sizes_that_were_asked():
    judged = {
        (schedule.grid.name, against): target
        for schedules in cost_sweeps.SCHEDULES.values()
        for schedule in schedules
        for against, target in ({} if schedule.asked is None else schedule.asked).items()
    }
    dropout = "L10 D32 B128 with dropout 0.1"
    assert judged == {
        ("256 jobs x 300 steps, L10 D32 B128", PLAIN): 4.5,
        ("256 jobs x 300 steps, L10 D32 B128", ALONE): 25,
        (f"256 jobs x 300 steps, {dropout}", PLAIN): 3.6,
        ("1,000 jobs x 300 steps, L10 D32 B128", PLAIN): 5,
    }
    assert {schedule.limit for schedule in cost_sweeps.SCHEDULES["full"] if schedule.grid.jobs == 1000} == {120}
    assert [
        schedule
        for scale in ("smoke", "default")
        for schedule in cost_sweeps.SCHEDULES[scale]
        if schedule.asked or schedule.limit
    ] == []
    assert [effort.asked for effort in cost_launching.EFFORTS.values()] == [False, False, True]


def test_launching_is_the_command_for_jobs_of_no_step(monkeypatch):
    given = []

    def timed(turns, rounds):
        given.extend(turns)
        return {"command": seconds(0.008, 0.009, 0.0085)}

    monkeypatch.setattr(cost_launching, "take_rounds", timed)
    monkeypatch.setattr(cost_launching, "sweep", lambda folder, grid: None)
    row = cost_launching.time_launching(cost_launching.Effort(8, 3, None, 0, asked=True))
    assert [(turn.steps, turn.side.grid.steps) for turn in given] == [(8, 0)]
    assert (row["ms"], row["target"], row["verdict"]) == (pytest.approx(8.5), 10, "confirmed")


def test_a_hundred_scalars_are_the_same_in_both_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for name, write in (("ours", cost_launching.write_scalars), ("writer", cost_launching.add)):
        side = cost_launching.Scalars(tmp_path / name, write)
        side.reset()
        side.run(2)
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        tags = events.Tags()["scalars"]
        found.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert found[0] == found[1]
    assert len(found[0]) == 100
    assert all([step for step, _ in curve] == [0, 1] for curve in found[0].values())


def test_two_processes_are_held_against_one():
    taken = {"1": [Seconds(2.0, 4.0)] * 2, "2": [Seconds(2.2, 2.5)] * 2}
    row = cost_launching.process_row(TINY, taken, 1.8)
    assert (row["ratio"], row["target"], row["verdict"]) == (pytest.approx(1.6), 1.8, "refuted")
    assert row["processor_ratio"] == pytest.approx(1.1)
    assert (row["one_s"], row["two_s"], row["rounds"]) == (32, 20, 2)  # of 8 jobs, by the clock on the wall


def test_the_tables_of_a_sweep_have_the_types_that_parquet_keeps():
    taken = {PLAIN: seconds(0.4, 0.8), OURS: seconds(0.1, 0.2)}
    frame = polars.DataFrame(sweep_rows(Schedule(TINY, 2, 1), taken), infer_schema_length=None)
    assert frame.schema["target"] == polars.Null
    assert frame.select("rounds", "jobs", "steps").row(0) == (2, 8, 3)


def test_every_turn_of_every_side_has_a_folder_of_its_own(tmp_path):
    sides = [cost_sweeps.Command(tmp_path, cost_sweeps.Grid(4, 1)) for _ in range(2)]
    folders = []
    for side in (*sides, *sides):
        side.reset()
        folders.append(side.folder)
    assert len(set(folders)) == 4
    assert not any(list(folder.iterdir()) for folder in folders)
