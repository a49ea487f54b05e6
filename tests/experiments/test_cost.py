"""The benchmark: both sides do the same step, and its statistics and tables are right. Nothing here is timed."""

import gc
import math
from dataclasses import replace

import polars
import pytest
import scipy.stats
import torch
from torch import nn

from bpexp.rules.regularization import kept
from experiments import cost, cost_sides, cost_text, cost_timing
from experiments.cost_sides import Ours, Size, Torch, buffer_bytes, choices, compiled, saved_bytes
from experiments.cost_timing import FEWEST, Seconds, median_interval, one_thread, ratios, take_turns
from experiments.cost_torch import Skip, dense, ordered

STEPS = 3
SMALL = Size(2, 3, 12, 16, dtype="float64")
NORMED = [replace(SMALL, norm=norm, residual="plain", dropout=0.3) for norm in ("batch", "layer")]
SIZES = [SMALL, replace(SMALL, activation="tanh"), *NORMED]
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
def test_a_measured_step_is_the_plain_one(size):
    plain, measured = size.ensemble(), size.ensemble()
    Ours(plain).run(STEPS)
    Ours(measured, measure=True).run(STEPS)
    assert torch.equal(plain.values, measured.values)


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
    masks = Size(2, 3, 12, 16, dropout=0.1).ensemble()
    assert buffer_bytes(masks) >= buffer_bytes(ensemble) + 3 * hidden


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        plain, normed = {Size(1, 2, 5, 8): 1e-9, Size(2, 2, 5, 8): 1e9}, {replace(NORMED[0], width=5, batch=8): 1e9}
        patch.setattr(cost, "PLAIN_TARGETS", plain)
        patch.setattr(cost, "TARGETS", plain | normed)
        patch.setattr(cost, "DROPOUT", Size(2, 2, 5, 8, dropout=0.1))
        patch.setattr(cost, "DROPOUT_TARGET", 1e-9)
        patch.setattr(cost, "SIDE_BY_SIDE", Size(1, 2, 5, 8))
        patch.setattr(cost, "COUNTS", (1, 2))
        patch.setattr(cost, "EFFORTS", {"smoke": TINY})
        return cost.compute("smoke", None)


def test_the_tables_have_a_row_for_each_size_and_activation(tables):
    steps = tables["steps"]
    assert steps.select("size", "activation", "asked", "verdict").rows() == [
        ("L2 D5 B8", "relu", True, "refuted"),
        ("2 networks of L2 D5 B8", "relu", True, "confirmed"),
        ("2 networks of L3 D5 B8 with batch norm, skips, dropout 0.3", "relu", True, "confirmed"),
        ("L2 D5 B8", "tanh", False, "refuted"),
        ("2 networks of L2 D5 B8", "tanh", False, "confirmed"),
    ]
    for table, name, count in (("steps", "ratio", 5), ("networks", "speedup", 4), ("measuring", "ratio", 5)):
        rows = tables[table]
        assert len(rows) == count
        assert ((rows[f"{name}_low"] <= rows[name]) & (rows[name] <= rows[f"{name}_high"])).all()
        plain = rows.filter(norm="none", residual="none", dropout=0.0)
        assert plain.select("depth", "width", "batch").unique().rows() == [(2, 5, 8)]
        normed = rows.filter(norm="batch", residual="plain", dropout=0.3)
        assert len(plain) == 4
        assert normed["depth"].to_list() == [3] * (count - 4)
    assert tables["networks"]["networks"].to_list() == [1, 2, 1, 2]
    assert (tables["measuring"]["added"] * 20 + 1).to_list() == pytest.approx(tables["measuring"]["ratio"].to_list())
    assert (tables["memory"]["buffers_measured"] > tables["memory"]["buffers"]).all()


def test_dropout_is_compared_with_the_step_without(tables, monkeypatch):
    made = tables["dropout"].row(0, named=True)
    assert (made["size"], made["verdict"]) == ("2 networks of L2 D5 B8 with dropout 0.1", "refuted")
    compared = {}

    def timed(sides, rounds, seconds):
        compared.update({name: side.ensemble for name, side in sides.items()})
        return {"with": [Seconds(5.0, 9.0)] * 6, "without": [Seconds(4.0, 9.0)] * 6}

    monkeypatch.setattr(cost, "take_turns", timed)
    row = cost.time_dropout(TINY)
    names = "with_us", "without_us", "ratio", "share", "target", "verdict"
    assert [row[name] for name in names] == pytest.approx([5e6, 4e6, 1.25, 0.2, 1.4, "confirmed"])
    assert {name: ensemble.masks is not None for name, ensemble in compared.items()} == {"with": True, "without": False}
    assert torch.equal(compared["with"].values, compared["without"].values)


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
    size = Size(1, 2, 5, 8)
    rows = cost.time_steps(size, size.ensemble(), replace(TINY, choosing=0, compile=True))
    assert [(row["against"], row["ratio"], row["target"], row["verdict"], row["asked"]) for row in rows] == [
        ("SGD(fused=True), set_to_none=True", 1.0, 1.0, "confirmed", True),
        (other, 2.0, None, None, False),
    ]


def test_the_same_tables_are_the_same_section(tables):
    section = cost.section(tables)
    assert section == cost.section({name: table.clone() for name, table in tables.items()})
    assert section.answer.startswith("2 of 4 asked targets are reached, with relu. Of torch's time our step takes ")
    for refuted in ("L2 D5 B8, relu", "L2 D5 B8, tanh", "2 networks of L2 D5 B8 with dropout 0.1, relu"):
        assert f" {refuted}: refuted, " in section.answer
    assert section.answer.count("refuted") == 3
    assert [picture.name for picture in section.pictures] == ["step_ratios", "side_by_side"]
    assert [len(table.rows) for table in section.tables] == [5, 4, 1, 5, 5]
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)


def test_the_lines_for_a_terminal_have_every_row(tables):
    lines = cost_text.lines(tables)
    assert sum(line.startswith(("L2 D5 B8", "2 networks of")) for line in lines) == 16


def test_the_targets_are_those_that_were_asked():
    asked = {size.name: target for size, target in cost.TARGETS.items() if size.activation == cost.ASKED}
    assert asked == {
        "L30 D64 B128": 0.8,
        "L10 D64 B64": 0.7,
        "L10 D256 B256": 1.0,
        "16 networks of L10 D32 B128": 1 / 4.5,
        "L10 D64 B128 with batch norm, skips, dropout 0.1": 1.0,
        "L10 D64 B128 with layer norm, skips, dropout 0.1": 1.0,
        "16 networks of L10 D32 B128 with batch norm, skips, dropout 0.1": 1 / 4,
        "16 networks of L10 D32 B128 with layer norm, skips, dropout 0.1": 1 / 4,
    }
    assert {name for name in asked if "norm" not in name} == {size.name for size in cost.PLAIN_TARGETS}
    assert cost.DROPOUT.name == "32 networks of L10 D32 B128 with dropout 0.1"
    assert cost.DROPOUT_TARGET == 1.4
    assert cost.SCALES.keys() == cost.EFFORTS.keys()
    for effort in cost.EFFORTS.values():
        assert cost.ASKED in effort.activations
        assert math.isfinite(median_interval([1.0] * effort.rounds).low)


def test_the_command_leaves_tables_and_figures(tables, tmp_path, monkeypatch, capsys):
    from bpexp import entry

    monkeypatch.setattr(cost, "measure", lambda scale, effort, report: dict(tables))
    arguments = ["scale=smoke", f"hydra.run.dir={tmp_path}"]
    assert entry.main("cost", cost.__doc__, program=cost.program, arguments=arguments) == 0
    assert "2 of 4 asked targets" in capsys.readouterr().out
    for name, table in tables.items():
        assert polars.read_parquet(tmp_path / f"{name}.parquet").equals(table)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"step_ratios.svg", "side_by_side.svg"}


def test_the_sides_name_their_activations():
    assert cost_sides.INITS.keys() == {
        activation for effort in cost.EFFORTS.values() for activation in effort.activations
    }
