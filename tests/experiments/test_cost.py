"""The benchmark of steps: both sides do the same, and its statistics and tables are right. Nothing here is timed."""

import gc
import math
from dataclasses import replace

import polars
import pytest
import scipy.stats
import torch
from torch import nn

from bpexp.ensemble import Ensemble
from bpexp.memory import estimate
from bpexp.plan import PASSES
from bpexp.rules.regularization import kept
from experiments import (
    cost,
    cost_launching,
    cost_passes,
    cost_peak,
    cost_sides,
    cost_steps,
    cost_sweeps,
    cost_tables,
    cost_text,
    cost_timing,
)
from experiments.cost_sides import (
    Measured,
    Ours,
    Size,
    Torch,
    buffer_bytes,
    choices,
    compiled,
    ensemble_of,
    saved_bytes,
)
from experiments.cost_sweeps import PLAIN, Grid, Schedule
from experiments.cost_timing import FEWEST, Seconds, median_interval, one_thread, ratios, take_turns
from experiments.cost_torch import Skip, dense, ordered

STEPS = 3
SMALL = Size(2, 3, 12, 16, dtype="float64")
NORMED = [replace(SMALL, norm=norm, residual="plain", dropout=0.3) for norm in ("batch", "layer")]
SIZES = [SMALL, replace(SMALL, activation="tanh"), *NORMED]
TINY = cost_steps.Effort(("relu", "tanh"), rounds=6, seconds=0.0, choosing=1, measured=(2, ()))


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


class Masked(nn.Module):
    """Dropout that multiplies with what a network's mask holds at the time."""

    def __init__(self, mask, network):
        super().__init__()
        self.mask, self.network = mask, network

    def forward(self, x):
        return x * kept(*self.mask)[self.network]


def give_masks(side, ensemble):
    """Let torch's networks drop what ours drop, for their own masks come from other streams. Return what p they had."""
    found = []
    for network, model in enumerate(side.models):
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
        for name, mask in zip(names, ensemble.masks.layers, strict=True):
            found.append(model.get_submodule(name).p)
            model.set_submodule(name, Masked(mask, network))
    return found


def of_torch(side):
    """Torch's parameters in our order, of each network one after another."""
    return [torch.stack(parameter) for parameter in zip(*map(ordered, side.models), strict=True)]


def running(side):
    """The running statistics of torch's batch norms, (R, W) each: a pair a layer."""
    networks = [[m for m in model.modules() if isinstance(m, nn.BatchNorm1d)] for model in side.models]
    layers = zip(*networks, strict=True)
    return [
        tuple(torch.stack([getattr(norm, name) for norm in layer]) for name in ("running_mean", "running_var"))
        for layer in layers
    ]


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
    if size.dropout > 0:
        assert give_masks(theirs, ensemble) == [size.dropout] * size.networks * size.depth
    for _ in range(STEPS):
        ours.run(1)
        theirs.run(1)
    assert not torch.allclose(ensemble.values, before, rtol=0, atol=1e-6)
    for mine, other in zip(ensemble.parameters, of_torch(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    for ours_, theirs_ in zip(ensemble.statistics.pairs(), running(theirs), strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=1e-12)
    for side in (ours, theirs):
        side.reset()
    assert torch.equal(ensemble.values, before)
    for mine, other in zip(ensemble.parameters, of_torch(theirs), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("size", [SMALL, *NORMED], ids=str)
def test_training_that_is_measured_is_the_same_as_plain_steps(size):
    plain, measured = Ours(size.ensemble(), draws=True), Measured(size, every=2)
    plain.ensemble.batches.restore(Ensemble(size.configs()).batches.state())  # the first batch is drawn once more
    plain.run(1)  # step 0 is a snapshot of its own
    for side in (plain, measured):
        side.run(4)
    assert torch.equal(plain.ensemble.values, measured.ensemble.values)
    before = measured.start
    measured.reset()
    assert torch.equal(measured.ensemble.values, before)


def test_masks_are_drawn_in_every_step():
    ensemble = NORMED[0].ensemble()
    ours, before = Ours(ensemble), []
    for _ in range(STEPS):
        before.append(ensemble.masks.values.clone())
        ours.run(1)
        assert not any(torch.equal(ensemble.masks.values, masks) for masks in before)


def test_torch_s_network_is_the_one_that_a_model_describes():
    model = NORMED[0].configs()[0].model
    assert [type(module) for module in dense(model, 5, 4, torch.float64, inplace=True)] == [
        *(nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout),
        *(Skip, Skip, nn.Linear),
    ]
    with pytest.raises(ValueError, match="residual: 'scaled' has no modules of torch here; choose none or plain"):
        dense(replace(model, residual="scaled"), 5, 4, torch.float64, inplace=True)


def test_every_choice_of_torch_is_tried_and_the_fastest_is_first(monkeypatch):
    tried = []

    def timed(sides, rounds, seconds):
        tried.extend(sides)
        return {name: [Seconds(1.0 if "foreach" in name and "=False" in name else 2.0, 9.0)] for name in sides}

    monkeypatch.setattr(cost_steps, "take_turns", timed)
    size = Size(1, 2, 5, 8, "tanh")
    assert str(cost_steps.rank(size, TINY)[0]) == "SGD(foreach=True), set_to_none=False"
    assert len(tried) == len(set(tried)) == 4
    assert len(choices("relu")) == 8


def test_memory_is_that_of_the_values_between_the_passes():
    ensemble = Size(2, 3, 12, 16).ensemble()
    hidden, outputs, classes = 2 * 16 * 12 * 4, 2 * 16 * 10 * 4, 2 * 4
    # Autograd saves what each activation returned, the log of the softmax, and the weight of each batch.
    assert saved_bytes(ensemble) == 3 * hidden + outputs + classes
    assert buffer_bytes(ensemble) >= 3 * hidden + outputs
    assert buffer_bytes(ensemble, keep=True) >= 6 * hidden + outputs
    masks = Size(2, 3, 12, 16, dropout=0.1).ensemble()
    assert buffer_bytes(masks) >= buffer_bytes(ensemble) + 3 * hidden


@pytest.fixture(scope="module")
def tables():
    plain, normed = {Size(1, 2, 5, 8): 1e-9, Size(2, 2, 5, 8): 1e9}, {replace(NORMED[0], width=5, batch=8): 1e9}
    tiny = Size(1, 2, 5, 8)
    changed = {
        (cost_steps, "PLAIN_TARGETS"): plain,
        (cost_steps, "TARGETS"): plain | normed,
        (cost_steps, "DROPOUT"): Size(2, 2, 5, 8, dropout=0.1),
        (cost_steps, "DROPOUT_TARGET"): 1e-9,
        (cost_steps, "SIDE_BY_SIDE"): tiny,
        (cost_steps, "COUNTS"): (1, 2),
        (cost_steps, "SMALL"): tiny,
        (cost_steps, "SMALL_COUNTS"): (2, 32),
        (cost_steps, "SMALL_TARGET"): 1e9,
        (cost_steps, "EFFORTS"): {"smoke": replace(TINY, measured=(2, (tiny,)))},
        (cost_steps, "MEASURE_EVERY"): 2,
        (cost_steps, "MEASURES_TARGET"): 1e9,
        (cost_passes, "SIXTEEN"): tiny,
        (cost_passes, "EFFORTS"): {"smoke": cost_passes.Effort(6, 0.0, (tiny,), (1,))},
        (cost_sweeps, "SCHEDULES"): {
            "smoke": (Schedule(Grid(8, 2, tiny), 2, 1, parts=True, asked={PLAIN: 1e9}, limit=0.0),)
        },
        (cost_launching, "SCALAR_STEPS"): 20,
        (cost_launching, "LAUNCH_LIMIT"): 0.0,
        (cost_launching, "SCALARS_LIMIT"): 1e9,
        (cost_launching, "EFFORTS"): {"smoke": cost_launching.Effort(4, 2, None, 0, asked=True)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in changed.items():
            patch.setattr(module, name, value)
        return cost.compute("smoke", None)


def test_the_tables_of_steps_have_a_row_for_each_size_and_activation(tables):
    steps = tables["steps"].unique(["size", "activation"], keep="first", maintain_order=True)
    assert steps.select("size", "activation", "asked", "verdict").rows() == [
        ("L2 D5 B8", "relu", True, "refuted"),
        ("2 networks of L2 D5 B8", "relu", True, "confirmed"),
        ("2 networks of L3 D5 B8 with batch norm, skips, dropout 0.3", "relu", True, "confirmed"),
        ("L2 D5 B8", "tanh", False, "refuted"),
        ("2 networks of L2 D5 B8", "tanh", False, "confirmed"),
    ]
    for name, column in (
        ("steps", "ratio"),
        ("networks", "speedup"),
        ("small_steps", "speedup"),
        ("measures", "ratio"),
    ):
        rows = tables[name]
        assert ((rows[f"{column}_low"] <= rows[column]) & (rows[column] <= rows[f"{column}_high"])).all()
        assert rows.filter(norm="none").select("depth", "width", "batch").unique().rows() == [(2, 5, 8)]
    assert tables["networks"]["networks"].to_list() == [1, 2, 1, 2]
    assert tables["small_steps"].select("networks", "target").rows() == [(2, None), (32, 1e9)]
    assert tables["measures"].select("every", "verdict").rows() == [(2, "confirmed")]
    assert (tables["memory"]["buffers_measured"] > tables["memory"]["buffers"]).all()


def test_dropout_is_compared_with_the_step_without(tables, monkeypatch):
    made = tables["dropout"].row(0, named=True)
    assert (made["size"], made["verdict"]) == ("2 networks of L2 D5 B8 with dropout 0.1", "refuted")
    compared = {}

    def timed(sides, rounds, seconds):
        compared.update({name: side.ensemble for name, side in sides.items()})
        return {"with": [Seconds(5.0, 9.0)] * 6, "without": [Seconds(4.0, 9.0)] * 6}

    monkeypatch.setattr(cost_steps, "take_turns", timed)
    monkeypatch.setattr(cost_steps, "DROPOUT", Size(2, 2, 5, 8, dropout=0.1))
    row = cost_steps.time_dropout(TINY)
    names = "with_us", "without_us", "ratio", "share", "target", "verdict"
    assert [row[name] for name in names] == pytest.approx([5e6, 4e6, 1.25, 0.2, 1.4, "confirmed"])
    assert {name: ensemble.masks is not None for name, ensemble in compared.items()} == {"with": True, "without": False}
    assert torch.equal(compared["with"].values, compared["without"].values)


def test_networks_side_by_side_are_compared_network_by_network(monkeypatch):
    taken = {"ours": [Seconds(6.0, 6.0)] * 6, "torch": [Seconds(4.0, 4.0)] * 6}
    monkeypatch.setattr(cost_steps, "take_turns", lambda *args: taken)
    monkeypatch.setattr(cost_steps, "SIDE_BY_SIDE", Size(1, 2, 5, 8))
    row = cost_steps.time_networks(3, "relu", replace(TINY, choosing=0))
    assert (row["ours_us"], row["torch_us"], row["speedup"], row["verdict"]) == (2e6, 4e6, 2.0, None)


def test_small_steps_are_judged_where_they_were_asked(monkeypatch):
    taken = {"ours": [Seconds(32.0, 1.0)] * 6, "torch": [Seconds(21.0, 1.0)] * 6}
    monkeypatch.setattr(cost_steps, "take_turns", lambda sides, rounds, seconds: taken)
    monkeypatch.setattr(cost_steps, "SMALL", Size(1, 2, 5, 8))
    rows = [cost_steps.time_small(count, replace(TINY, choosing=0)) for count in (16, 32)]
    found = [(row["speedup"], row["target"], row["verdict"]) for row in rows]
    assert found == [(10.5, None, None), (21.0, 20.0, "confirmed")]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.01, "confirmed"), (1.03, "refuted")])
def test_measures_are_compared_with_plain_steps_round_by_round(ratio, verdict, monkeypatch):
    turns, values = [], {"plain": 1.0, "layers": 1.005, "measured": ratio}

    def timed(given, rounds):
        turns.extend((turn.name, turn.steps) for turn in given)
        return {name: [Seconds(value, 9.0)] * rounds for name, value in values.items()}

    monkeypatch.setattr(cost_steps, "take_rounds", timed)
    row = cost_steps.time_measures(Size(1, 2, 5, 8), replace(TINY, measured=(20, ())))
    assert (row["every"], row["target"], row["verdict"]) == (10, 1.02, verdict)
    assert row["without_evaluations"] == 1.005
    names = ["plain", "layers", "measured", "measured", "layers", "plain"]
    assert turns == [(name, 20) for name in names]


def test_torch_s_sides_are_its_fastest_then_fused_then_compiled(monkeypatch):
    fastest, fused = choices("tanh")[3], choices("tanh")[0]
    names = [str(fastest), str(fused), str(compiled(fastest))]
    seconds = dict(zip(("ours", *names), (1.0, 1.0, 2.0, 0.5), strict=True))
    monkeypatch.setattr(cost_steps, "rank", lambda size, effort: (fastest, fused))
    monkeypatch.setattr(
        cost_steps, "take_turns", lambda sides, *args: {name: [Seconds(seconds[name], 1.0)] * 6 for name in sides}
    )
    size = Size(1, 2, 5, 8, "tanh")
    monkeypatch.setattr(cost_steps, "TARGETS", {size: 0.9})
    monkeypatch.setattr(cost_steps, "PLAIN_TARGETS", {})
    monkeypatch.setattr(cost_steps, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    rows = cost_steps.time_steps(size, size.ensemble(), replace(TINY, compile=True))
    assert [(row["against"], row["ratio"], row["target"], row["verdict"], row["asked"]) for row in rows] == [
        (names[0], 1.0, 0.9, "refuted", True),
        (names[1], 0.5, 0.9, "confirmed", False),
        (names[2], 2.0, None, None, False),
    ]


def test_memory_that_was_told_beforehand_is_enough_or_not():
    told = estimate(SMALL.configs()).total
    rows = [cost_peak.peak_row(SMALL, peak) for peak in (told, told + 1)]
    assert [(row["told"], row["verdict"]) for row in rows] == [(told, "confirmed"), (told, "refuted")]


def test_the_peak_of_a_process_is_more_than_its_numbers(capsys):
    cost_peak.main(SMALL)
    assert 2**26 < int(capsys.readouterr().out) < 2**36


def test_a_pass_is_left_out_and_the_numbers_stay(tables):
    size = Size(1, 2, 5, 8)
    found = {name: Ours(ensemble_of(size.configs(), name)) for name in (None, *PASSES)}
    for side in found.values():
        side.run(STEPS)
    assert all(torch.equal(side.ensemble.values, found[None].ensemble.values) for side in found.values())
    assert found["stack"].ensemble.passes == [name for name in PASSES if name != "stack"]
    assert set(tables["passes"]["pass"]) == PASSES.keys()


def test_mixed_networks_are_one_group_or_several():
    mix = cost_passes.mixes((2,))[0]
    assert mix.name == "2 of each: L = 4, 8, 16, D32 B128"
    assert [[config.model.depth for config in group] for group in mix.groups()] == [[16, 16], [8, 8], [4, 4]]
    assert len({config.model.activation for group in cost_passes.mixes((1,))[1].groups() for config in group}) == 4


def test_the_same_tables_are_the_same_section(tables):
    section = cost.section(tables)
    assert section == cost.section({name: table.clone() for name, table in tables.items()})
    assert section.answer.startswith("4 of 10 targets that were asked are reached. Of torch's time our step takes ")
    for refuted in (
        "a step's time over torch's, L2 D5 B8, relu is ",
        "a step as many times as fast as torch's, 32 networks of L2 D5 B8 is ",
        "a step with dropout over one without, 2 networks of L2 D5 B8 with dropout 0.1 is ",
        "8 jobs x 2 steps, L2 D5 B8: times as fast as plain loops, this process is ",
        "8 jobs x 2 steps, L2 D5 B8: seconds on one core is ",
    ):
        assert refuted in section.answer.partition(" Refuted: ")[2]
    assert [picture.name for picture in section.pictures] == [
        "step_ratios",
        "side_by_side",
        "sweep_ratios",
        "job_parts",
    ]
    names = [table.name for table in section.tables]
    assert names == ["targets", *(name for name in cost_tables.LAYOUTS if name not in ("processes", "peaks"))]
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    assert [len(table.rows) for table in section.tables[1:]] == [len(tables[name]) for name in names[1:]]


def test_records_that_lack_tables_are_shown_without_them(tables):
    older = {name: tables[name] for name in ("scale", "steps", "networks", "dropout", "memory")}
    section = cost.section({**older, "measuring": tables["measures"]})
    assert [table.name for table in section.tables] == ["targets", "steps", "networks", "dropout", "memory"]
    assert [picture.name for picture in section.pictures] == ["step_ratios", "side_by_side"]
    assert section.answer.startswith("2 of 4 targets that were asked are reached.")


def test_the_lines_for_a_terminal_have_every_row(tables):
    lines = cost_text.lines(tables)
    assert len(lines) > sum(len(table) for name, table in tables.items() if name != "scale")
    assert sum(line.startswith(("L2 D5 B8", "2 networks of")) for line in lines) >= len(tables["steps"])


def test_the_targets_are_those_that_were_asked():
    assert {f"{size.name} {size.activation}": target for size, target in cost_steps.TARGETS.items()} == {
        "L30 D64 B128 relu": 0.62,
        "L10 D64 B64 relu": 0.7,
        "L10 D256 B256 relu": 0.95,
        "16 networks of L10 D32 B128 relu": 1 / 4.5,
        "L100 D32 B64 tanh": 0.5,
        "L10 D64 B128 with batch norm, skips, dropout 0.1 relu": 1.0,
        "L10 D64 B128 with layer norm, skips, dropout 0.1 relu": 1.0,
        "16 networks of L10 D32 B128 with batch norm, skips, dropout 0.1 relu": 1 / 4,
        "16 networks of L10 D32 B128 with layer norm, skips, dropout 0.1 relu": 1 / 4,
    }
    assert cost_steps.DROPOUT.name == "32 networks of L10 D32 B128 with dropout 0.1"
    assert (cost_steps.DROPOUT_TARGET, cost_steps.MEASURES_TARGET, cost_steps.MEASURE_EVERY) == (1.4, 1.02, 10)
    assert (cost_steps.SMALL.name, cost_steps.SMALL_ASKED, cost_steps.SMALL_TARGET) == ("L10 D16 B32", 32, 20)
    for module in (cost_steps, cost_passes, cost_launching):
        assert module.EFFORTS.keys() == cost.SCALES.keys()
    assert cost_sweeps.SCHEDULES.keys() == cost_peak.SIZES.keys() == cost.SCALES.keys()
    twins = {size for size in cost_steps.targets(cost_steps.EFFORTS["full"]) if size.activation == "tanh"}
    assert len(twins) == 5
    for effort in cost_steps.EFFORTS.values():
        assert math.isfinite(median_interval([1.0] * effort.rounds).low)
        assert effort.measured[0] % cost_steps.MEASURE_EVERY == 0


def test_the_command_leaves_tables_and_figures(tables, tmp_path, monkeypatch, capsys):
    from bpexp import entry

    monkeypatch.setattr(cost, "measure", lambda scale, report: dict(tables))
    arguments = ["scale=smoke", f"hydra.run.dir={tmp_path}"]
    assert entry.main("cost", cost.__doc__, program=cost.program, arguments=arguments) == 0
    assert "4 of 10 targets" in capsys.readouterr().out
    for name, table in tables.items():
        assert polars.read_parquet(tmp_path / f"{name}.parquet").equals(table)
    figures = {"step_ratios.svg", "side_by_side.svg", "sweep_ratios.svg", "job_parts.svg"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == figures


def test_the_sides_name_their_activations():
    used = {activation for effort in cost_steps.EFFORTS.values() for activation in effort.activations}
    assert cost_sides.INITS.keys() == used | set(cost_passes.ACTIVATIONS)
