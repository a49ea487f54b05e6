"""The benchmark: both sides do the same step, and its statistics and tables are right. Nothing here is timed."""

import gc
import math
from dataclasses import replace

import polars
import pytest
import scipy.stats
import torch

from experiments import cost, cost_sides, cost_text, cost_timing
from experiments.cost_sides import Ours, Size, Torch, buffer_bytes, choices, compiled, saved_bytes
from experiments.cost_timing import FEWEST, Seconds, median_interval, one_thread, ratios, take_turns

STEPS = 3
SMALL = Size(2, 3, 12, 16, dtype="float64")
SIZES = [replace(SMALL, activation=activation) for activation in ("relu", "tanh")]
TINY = cost.Effort(("relu", "tanh"), rounds=6, seconds=0.0, choosing=1)


class FakeTime:
    """A clock that only the sides move; the processor is busy half of the time."""

    def __init__(self):
        self.time, self.turns = 0.0, []

    def __call__(self):
        return Seconds(self.time / 2, self.time)

    def side(self, name, seconds):
        return FakeSide(self, name, seconds)


class FakeSide:
    """A side that takes the seconds of a function of the round."""

    def __init__(self, clock, name, seconds):
        self.clock, self.name, self.seconds, self.turns = clock, name, seconds, 0

    def reset(self):
        self.turns += 1

    def run(self, steps):
        self.clock.turns.append((self.name, steps))
        self.clock.time += steps * self.seconds(self.turns)


def test_sides_take_turns_and_a_slow_round_slows_all_of_them():
    clock = FakeTime()

    def slowed(seconds):
        return lambda turn: seconds * (10 if turn == 4 else 1)  # the second round, after two turns to warm up

    sides = {"a": clock.side("a", slowed(1.0)), "b": clock.side("b", slowed(4.0))}
    taken = take_turns(sides, 3, 20.0, clock)
    warm, turns = clock.turns[:4], clock.turns[4:]
    assert warm == [("a", FEWEST), ("a", FEWEST), ("b", FEWEST), ("b", FEWEST)]
    assert turns == [("a", 20), ("b", 5), ("b", 5), ("a", 20), ("a", 20), ("b", 5)]
    assert cost_timing.wall(taken["a"]) == [1.0, 10.0, 1.0]
    assert cost_timing.processor(taken["b"]) == [2.0, 20.0, 2.0]
    assert ratios(cost_timing.wall(taken["a"]), cost_timing.wall(taken["b"])) == [0.25] * 3


def test_a_turn_has_the_fewest_steps_at_least():
    clock = FakeTime()
    take_turns({"a": clock.side("a", lambda turn: 100.0), "b": clock.side("b", lambda turn: 0.0)}, 1, 0.0, clock)
    assert {steps for _, steps in clock.turns} == {FEWEST}


@pytest.mark.parametrize("count", [6, 7, 20, 21, 201])
def test_the_interval_of_a_median_covers_it_and_no_shorter_one_does(count):
    found = median_interval([float(value) for value in range(count, 0, -1)])
    below = round(found.low) - 1  # values under the lower end
    assert (found.mean, found.high) == ((count + 1) / 2, count - below)
    covered = [1 - 2 * scipy.stats.binom.cdf(left_out, count, 0.5) for left_out in (below, below + 1)]
    assert covered[0] >= 0.95 > covered[1]


def test_few_values_have_no_interval():
    found = median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
    assert found.mean == 3.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_one_thread_is_for_a_while():
    before = torch.get_num_threads(), gc.isenabled()
    with one_thread():
        assert (torch.get_num_threads(), gc.isenabled()) == (1, False)
    assert (torch.get_num_threads(), gc.isenabled()) == before


def of_torch(side):
    """Torch's parameters in our order: all weights, then all biases, of each network one after another."""
    models = [list(model.parameters()) for model in side.models]
    return [torch.stack([model[k] for model in models]) for part in (0, 1) for k in range(part, len(models[0]), 2)]


def all_choices(activation):
    found = choices(activation)
    return [*found, *([compiled(found[0])] if activation == "tanh" else [])]


@pytest.mark.parametrize(
    ("size", "choice"), [(size, choice) for size in SIZES for choice in all_choices(size.activation)], ids=str
)
def test_both_sides_do_the_same_steps(size, choice, monkeypatch):
    if choice.compiled:
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda loss: compile_(loss, backend="aot_eager"))
    ensemble = size.ensemble()
    ours, theirs = Ours(ensemble), Torch(ensemble, choice)
    before = ensemble.values.clone()
    for side in (ours, theirs):
        side.run(STEPS)
    assert not torch.allclose(ensemble.values, before, rtol=0, atol=1e-6)
    for mine, other in zip(ensemble.parameters, of_torch(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    for side in (ours, theirs):
        side.reset()
    assert torch.equal(ensemble.values, before)
    for mine, other in zip(ensemble.parameters, of_torch(theirs), strict=True):
        assert torch.equal(mine, other)


def test_a_measured_step_is_the_plain_one():
    plain, measured = SMALL.ensemble(), SMALL.ensemble()
    Ours(plain).run(STEPS)
    Ours(measured, measure=True).run(STEPS)
    assert torch.equal(plain.values, measured.values)


def test_every_choice_of_torch_is_tried_and_the_fastest_is_taken(monkeypatch):
    tried = []

    def timed(sides, rounds, seconds):
        tried.extend(sides)
        return {name: [Seconds(1.0 if "foreach" in name and "=False" in name else 2.0, 9.0)] for name in sides}

    monkeypatch.setattr(cost, "take_turns", timed)
    size = Size(1, 2, 5, 8, "tanh")
    assert str(cost.choose(size, TINY)) == "SGD(foreach=True), set_to_none=False"
    assert len(tried) == len(set(tried)) == 4
    assert len(choices("relu")) == 8


def test_memory_is_that_of_the_values_between_the_passes():
    ensemble = Size(2, 3, 12, 16).ensemble()
    hidden, outputs, classes = 2 * 16 * 12 * 4, 2 * 16 * 10 * 4, 2 * 4
    # Autograd saves what each activation returned, the log of the softmax, and the weight of each batch.
    assert saved_bytes(ensemble) == 3 * hidden + outputs + classes
    assert buffer_bytes(ensemble) >= 3 * hidden + outputs
    assert buffer_bytes(ensemble, measure=True) >= 2 * buffer_bytes(ensemble)


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "TARGETS", {Size(1, 2, 5, 8): 1e-9, Size(2, 2, 5, 8): 1e9})
        patch.setattr(cost, "SIDE_BY_SIDE", Size(1, 2, 5, 8))
        patch.setattr(cost, "COUNTS", (1, 2))
        patch.setattr(cost, "EFFORTS", {"smoke": TINY})
        return cost.compute("smoke", None)


def test_the_tables_have_a_row_for_each_size_and_activation(tables):
    steps = tables["steps"]
    assert steps.select("size", "activation", "asked", "verdict").rows() == [
        ("L2 D5 B8", "relu", True, "refuted"),
        ("2 networks of L2 D5 B8", "relu", True, "confirmed"),
        ("L2 D5 B8", "tanh", False, "refuted"),
        ("2 networks of L2 D5 B8", "tanh", False, "confirmed"),
    ]
    for table, name in (("steps", "ratio"), ("networks", "speedup"), ("measuring", "ratio")):
        rows = tables[table]
        assert len(rows) == 4
        assert ((rows[f"{name}_low"] <= rows[name]) & (rows[name] <= rows[f"{name}_high"])).all()
        assert rows.select("depth", "width", "batch").unique().rows() == [(2, 5, 8)]
    assert tables["networks"]["networks"].to_list() == [1, 2, 1, 2]
    assert (tables["measuring"]["added"] * 20 + 1).to_list() == pytest.approx(tables["measuring"]["ratio"].to_list())
    assert (tables["memory"]["buffers_measured"] > tables["memory"]["buffers"]).all()


def test_networks_side_by_side_are_compared_network_by_network(monkeypatch):
    taken = {"ours": [Seconds(6.0, 6.0)] * 6, "torch": [Seconds(4.0, 4.0)] * 6}
    monkeypatch.setattr(cost, "take_turns", lambda *args: taken)
    monkeypatch.setattr(cost, "SIDE_BY_SIDE", Size(1, 2, 5, 8))
    row = cost.time_networks(3, "relu", replace(TINY, choosing=0))
    assert (row["ours_us"], row["torch_us"], row["speedup"]) == (2e6, 4e6, 2.0)


def test_against_torch_compile_nothing_is_asked(monkeypatch):
    taken = dict.fromkeys(("ours", "SGD(fused=True), set_to_none=True"), [Seconds(1.0, 1.0)] * 6)
    other = "SGD(fused=True), set_to_none=True, torch.compile"
    monkeypatch.setattr(cost, "take_turns", lambda *args: taken | {other: [Seconds(0.5, 0.5)] * 6})
    monkeypatch.setattr(cost, "TARGETS", {Size(1, 2, 5, 8): 1.0})
    monkeypatch.setattr(cost, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    rows = cost.time_steps(Size(1, 2, 5, 8), replace(TINY, choosing=0, compile=True))
    assert [(row["against"], row["ratio"], row["target"], row["verdict"], row["asked"]) for row in rows] == [
        ("SGD(fused=True), set_to_none=True", 1.0, 1.0, "confirmed", True),
        (other, 2.0, None, None, False),
    ]


def test_the_same_tables_are_the_same_section(tables):
    section = cost.section(tables)
    assert section == cost.section({name: table.clone() for name, table in tables.items()})
    assert section.answer.startswith("1 of 2 asked targets are reached, with relu: our step takes ")
    assert "L2 D5 B8 with relu: refuted" in section.answer
    assert [picture.name for picture in section.pictures] == ["step_ratios", "side_by_side"]
    assert [len(table.rows) for table in section.tables] == [4, 4, 4, 4]
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)


def test_the_lines_for_a_terminal_have_every_row(tables):
    lines = cost_text.lines(tables)
    assert sum(line.startswith(("L2 D5 B8", "2 networks of")) for line in lines) == 12


def test_the_targets_are_those_that_were_asked():
    asked = {size.name: target for size, target in cost.TARGETS.items() if size.activation == cost.ASKED}
    assert asked == {
        "L30 D64 B128": 0.8,
        "L10 D64 B64": 0.7,
        "L10 D256 B256": 1.0,
        "16 networks of L10 D32 B128": 1 / 4.5,
    }
    assert cost.SCALES.keys() == cost.EFFORTS.keys()
    for effort in cost.EFFORTS.values():
        assert cost.ASKED in effort.activations
        assert math.isfinite(median_interval([1.0] * effort.rounds).low)


def test_the_command_leaves_tables_and_figures(tables, tmp_path, monkeypatch, capsys):
    from bpexp import entry

    monkeypatch.setattr(cost, "measure", lambda scale, effort, report: dict(tables))
    arguments = ["scale=smoke", f"hydra.run.dir={tmp_path}"]
    assert entry.main("cost", cost.__doc__, program=cost.program, arguments=arguments) == 0
    assert "1 of 2 asked targets" in capsys.readouterr().out
    for name, table in tables.items():
        assert polars.read_parquet(tmp_path / f"{name}.parquet").equals(table)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"step_ratios.svg", "side_by_side.svg"}


def test_the_sides_name_their_activations():
    assert cost_sides.INITS.keys() == {
        activation for effort in cost.EFFORTS.values() for activation in effort.activations
    }
