"""What a training step costs: by the suite's own backward pass, against torch with everything that makes torch fast.

A step is forward, backward and update of dense networks on a batch of digits, float32, one thread. Torch's side is
nn.Sequential of its own layers, its autograd and torch.optim.SGD, with whichever of fused or foreach, set_to_none and
inplace is fastest for the row. Both sides take turns, and a ratio is taken turn by turn.

Also: many small networks side by side, what dropout and measuring add, and what memory a step takes. Tables are left
in the folder as steps, networks, dropout, measuring and memory.parquet, figures as figures/*.svg.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import entry
from experiments.cost_sides import Choice, Ours, Size, Torch, buffer_bytes, can_compile, choices, compiled, saved_bytes
from experiments.cost_timing import Side, median_interval, one_thread, processor, ratios, take_turns, wall

if TYPE_CHECKING:
    import polars
    from omegaconf import DictConfig

    from bpexp.ensemble import Ensemble
    from bpexp.statistics import Interval
    from experiments.page import Section


@dataclass(frozen=True)
class Effort:
    """How long a scale measures: N rounds, seconds of a turn, and rounds to find torch's fastest side.

    Without such rounds torch's side is the first of its choices. torch.compile needs up to a minute a row.
    """

    activations: tuple[str, ...]
    rounds: int
    seconds: float
    choosing: int
    compile: bool = False


SCALES = {
    "smoke": "The rows with relu, 7 rounds: the intervals are wide, and torch's side is not chosen for each row.",
    "default": "The rows with relu and tanh, 21 rounds.",
    "full": "The rows with relu and tanh, against torch.compile too where there is a C++ compiler, 201 rounds.",
}
EFFORTS = {
    "smoke": Effort(("relu",), rounds=7, seconds=0.002, choosing=0),
    "default": Effort(("relu", "tanh"), rounds=21, seconds=0.01, choosing=5),
    "full": Effort(("relu", "tanh"), rounds=201, seconds=0.03, choosing=25, compile=True),
}

PLAIN_TARGETS = {
    Size(1, 30, 64, 128): 0.8,
    Size(1, 10, 64, 64): 0.7,
    Size(1, 10, 256, 256): 1.0,
    Size(16, 10, 32, 128): 1 / 4.5,
}
NORM_TARGETS = {
    replace(size, norm=norm, residual="plain", dropout=0.1): target
    for size, target in {Size(1, 10, 64, 128): 1.0, Size(16, 10, 32, 128): 1 / 4}.items()
    for norm in ("batch", "layer")
}
TARGETS = PLAIN_TARGETS | NORM_TARGETS
"""What was asked: the time of a step over torch's is at most this.

Rows with relu were asked. Those with tanh show the same of plain networks.
"""
ASKED = "relu"

SIDE_BY_SIDE = Size(1, 10, 32, 128)
COUNTS = (1, 2, 4, 8, 16, 32)
"""How many networks of that size train side by side in the table `networks`."""

DROPOUT = replace(SIDE_BY_SIDE, networks=32, dropout=0.1)
DROPOUT_TARGET = 1.4
"""What was asked: dropout adds at most 40 % to the step without it."""

Report = Callable[[str], None]


def program(config: DictConfig, folder: Path) -> None:
    """Measure, leave tables and figures in the folder, and print what they say."""
    from bpexp.sweep.files import replacing, write_text
    from experiments.cost_text import lines, pictures

    tables = measure(config.scale, EFFORTS[config.scale], print)
    for name, table in tables.items():
        with replacing(folder / f"{name}.parquet") as temporary:
            table.write_parquet(temporary)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(tables):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join(["", *lines(tables), "", f"tables and figures in {folder}"]))


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Measure at a scale, and return the summary tables; nothing is left in the folder."""
    return measure(scale, EFFORTS[scale], lambda line: None)


def measure(scale: str, effort: Effort, report: Report) -> dict[str, polars.DataFrame]:
    """Return the tables of an effort; `report` is told of every size before it is measured."""
    import polars
    import torch

    sizes = [
        replace(size, activation=activation)
        for activation in effort.activations
        for size in (TARGETS if activation == ASKED else PLAIN_TARGETS)
    ]
    steps: list[dict[str, Any]] = []
    measuring, memory = [], []
    with one_thread():
        for size in sizes:
            report(f"timing {size.name} {size.activation}")
            ensemble = size.ensemble()
            steps += time_steps(size, ensemble, effort)
            measuring.append(time_measuring(size, ensemble, effort))
            memory.append(count_memory(size, ensemble))
        report(f"timing 1 to {COUNTS[-1]} networks of {SIDE_BY_SIDE.name}")
        networks = [time_networks(count, activation, effort) for activation in effort.activations for count in COUNTS]
        report(f"timing {DROPOUT.name}")
        dropout = [time_dropout(effort)]
    made = {"scale": scale, "torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()}
    tables = {"steps": steps, "networks": networks, "dropout": dropout, "measuring": measuring, "memory": memory}
    return {
        name: polars.DataFrame(rows, infer_schema_length=None) for name, rows in (tables | {"scale": [made]}).items()
    }


def time_steps(size: Size, ensemble: Ensemble, effort: Effort) -> list[dict[str, Any]]:
    """Return a row for each side of torch that the product is compared with."""
    choice = choose(replace(size, networks=1), effort)
    sides: dict[str, Side] = {"ours": Ours(ensemble), str(choice): Torch(ensemble, choice)}
    if effort.compile and size.networks == 1 and can_compile():
        other = compiled(choice)
        sides[str(other)] = Torch(ensemble, other)
    taken = take_turns(sides, effort.rounds, effort.seconds)
    rows = []
    for name in list(sides)[1:]:
        found = median_interval(ratios(processor(taken["ours"]), processor(taken[name])))
        asked = TARGETS[replace(size, activation=ASKED)] if name == str(choice) else None
        rows.append(
            {
                **described(size),
                "against": name,
                "ours_us": micro(processor(taken["ours"])),
                "torch_us": micro(processor(taken[name])),
                **interval("ratio", found),
                "wall_ratio": statistics.median(ratios(wall(taken["ours"]), wall(taken[name]))),
                "target": asked,
                "verdict": None if asked is None else judge(found, asked),
                "asked": asked is not None and size.activation == ASKED,
            }
        )
    return rows


@functools.cache
def choose(size: Size, effort: Effort) -> Choice:
    """Return the fastest choice of torch for one network."""
    if effort.choosing == 0:
        return choices(size.activation)[0]
    ensemble = size.ensemble()
    sides = {choice: Torch(ensemble, choice) for choice in choices(size.activation)}
    taken = take_turns({str(choice): side for choice, side in sides.items()}, effort.choosing, effort.seconds)
    return min(sides, key=lambda choice: statistics.median(processor(taken[str(choice)])))


@functools.cache
def alone(size: Size, effort: Effort) -> Torch:
    """Return one network in torch, for all the counts that it is compared with."""
    return Torch(size.ensemble(), choose(size, effort))


def time_networks(count: int, activation: str, effort: Effort) -> dict[str, Any]:
    """Return the row of so many networks side by side: the time of each, over that of one in torch."""
    size = replace(SIDE_BY_SIDE, networks=count, activation=activation)
    ensemble = size.ensemble()
    sides: dict[str, Side] = {"ours": Ours(ensemble), "torch": alone(replace(size, networks=1), effort)}
    taken = take_turns(sides, effort.rounds, effort.seconds)
    ours, torch = ([second / n for second in processor(taken[name])] for name, n in (("ours", count), ("torch", 1)))
    found = median_interval(ratios(torch, ours))
    return {**described(size), "ours_us": micro(ours), "torch_us": micro(torch), **interval("speedup", found)}


def time_dropout(effort: Effort) -> dict[str, Any]:
    """Return the row of a step with dropout, its masks drawn, over the step of the same networks without."""
    sides = {"with": Ours(DROPOUT.ensemble()), "without": Ours(replace(DROPOUT, dropout=0.0).ensemble())}
    taken = take_turns(sides, effort.rounds, effort.seconds)
    found = median_interval(ratios(processor(taken["with"]), processor(taken["without"])))
    return {
        **described(DROPOUT),
        "with_us": micro(processor(taken["with"])),
        "without_us": micro(processor(taken["without"])),
        **interval("ratio", found),
        "share": 1 - 1 / found.mean,
        "target": DROPOUT_TARGET,
        "verdict": judge(found, DROPOUT_TARGET),
    }


def time_measuring(size: Size, ensemble: Ensemble, effort: Effort) -> dict[str, Any]:
    """Return the row of a step that is measured, over a plain one; and what it adds at the default interval."""
    sides = {"plain": Ours(ensemble), "measured": Ours(ensemble, measure=True)}
    taken = take_turns(sides, max(7, effort.rounds // 3), effort.seconds)
    found = median_interval(ratios(processor(taken["measured"]), processor(taken["plain"])))
    every = size.configs()[0].train.measure_every
    return {**described(size), **interval("ratio", found), "every": every, "added": (found.mean - 1) / every}


def count_memory(size: Size, ensemble: Ensemble) -> dict[str, Any]:
    """Return the row of what a step needs beside parameters, gradients and the batch, in bytes."""
    return {
        **described(size),
        "parameters": ensemble.values.nbytes,
        "buffers": buffer_bytes(ensemble),
        "buffers_measured": buffer_bytes(ensemble, measure=True),
        "torch_saved": saved_bytes(ensemble),
    }


def described(size: Size) -> dict[str, Any]:
    return {
        "size": size.name,
        "networks": size.networks,
        "depth": size.depth,
        "width": size.width,
        "batch": size.batch,
        "activation": size.activation,
        "norm": size.norm,
        "residual": size.residual,
        "dropout": size.dropout,
    }


def interval(name: str, found: Interval) -> dict[str, Any]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, "rounds": found.count}


def micro(seconds: list[float]) -> float:
    return 1e6 * statistics.median(seconds)


def judge(found: Interval, target: float) -> str:
    """Return `confirmed` where the whole interval is at or below the target, `refuted` where all of it is above."""
    from bpexp.statistics import decide

    return decide(found, 0.0, target)


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section of the report that the summary tables make."""
    from experiments.cost_text import make_section

    return make_section(tables, SCALES)


if __name__ == "__main__":
    sys.exit(entry.main("cost", __doc__, program=program))
