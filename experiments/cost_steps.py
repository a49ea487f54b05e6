"""Training steps: by the product, and by torch with everything that makes torch fast.

Tables: `steps`, `networks`, `small_steps`, `dropout`, `measures`, `memory`. Both sides take turns, and a ratio is taken
turn by turn.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.cost_sides import (
    Choice,
    Measured,
    Ours,
    Size,
    Torch,
    buffer_bytes,
    can_compile,
    choices,
    compiled,
    plain_loop,
    saved_bytes,
)
from experiments.cost_timing import (
    Side,
    Turn,
    at_least,
    at_most,
    columns,
    median_interval,
    one_thread,
    processor,
    ratios,
    take_rounds,
    take_turns,
    wall,
)

if TYPE_CHECKING:
    from bpexp.ensemble import Ensemble


@dataclass(frozen=True)
class Effort:
    """How long a scale measures: N rounds, seconds of a turn, and rounds to find torch's fastest side.

    Without rounds to choose, torch's side is the first of its choices. torch.compile needs up to a minute a row.
    `measured` are the steps of a turn of the table `measures`, and its sizes.
    """

    activations: tuple[str, ...]
    rounds: int
    seconds: float
    choosing: int
    measured: tuple[int, tuple[Size, ...]]
    compile: bool = False


DEEP = Size(1, 100, 32, 64, "tanh")
PLAIN_TARGETS = {
    Size(1, 30, 64, 128): 0.62,
    Size(1, 10, 64, 64): 0.7,
    Size(1, 10, 256, 256): 0.95,
    Size(16, 10, 32, 128): 1 / 4.5,
}
NORM_TARGETS = {
    replace(size, norm=norm, residual="plain", dropout=0.1): target
    for size, target in {Size(1, 10, 64, 128): 1.0, Size(16, 10, 32, 128): 1 / 4}.items()
    for norm in ("batch", "layer")
}
TARGETS = PLAIN_TARGETS | {DEEP: 0.5} | NORM_TARGETS
"""What was asked: the time of a step over torch's is at most this.

Where a scale has tanh, the plain rows with relu are repeated with it, and held against the same targets.
"""

SIDE_BY_SIDE = Size(1, 10, 32, 128)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""How many networks of that size train side by side in the table `networks`."""

SMALL = Size(1, 10, 16, 32)
SMALL_COUNTS = (8, 16, 32, 64, 128)
SMALL_ASKED, SMALL_TARGET = 32, 20.0
"""What was asked of small steps, their batches drawn: so many of them side by side are so many times as fast."""

DROPOUT = replace(SIDE_BY_SIDE, networks=32, dropout=0.1)
DROPOUT_TARGET = 1.4
"""What was asked: dropout adds at most 40 % to the step without it."""

MEASURE_EVERY = 10
MEASURES_TARGET = 1.02
"""What was asked: all measures every tenth step add at most 2 % to a step."""

VANISHING = Size(8, 30, 32, 64, "sigmoid")
"""Networks whose gradients vanish: in their first layers float32 rounds the squares to zero."""

MEASURED = (Size(16, 10, 32, 128), Size(1, 10, 64, 64), VANISHING, Size(1, 30, 64, 128), Size(1, 10, 256, 256), DEEP)

EFFORTS = {
    "smoke": Effort(("relu",), rounds=7, seconds=0.002, choosing=0, measured=(10, MEASURED[:2])),
    "default": Effort(("relu", "tanh"), rounds=21, seconds=0.01, choosing=5, measured=(50, MEASURED[:3])),
    "full": Effort(("relu", "tanh"), rounds=31, seconds=0.02, choosing=9, measured=(50, MEASURED), compile=True),
}

Report = Callable[[str], None]


def measure(effort: Effort, report: Report) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables; `report` is told of every size before it is measured."""
    rows: dict[str, list[dict[str, Any]]] = {"steps": [], "memory": []}
    with one_thread():
        for size in targets(effort):
            report(f"timing {size.name} {size.activation}")
            ensemble = size.ensemble()
            rows["steps"] += time_steps(size, ensemble, effort)
            rows["memory"].append(count_memory(size, ensemble))
        report(f"timing 1 to {COUNTS[-1]} networks of {SIDE_BY_SIDE.name}")
        rows["networks"] = [
            time_networks(count, activation, effort) for activation in effort.activations for count in COUNTS
        ]
        report(f"timing {SMALL_COUNTS[0]} to {SMALL_COUNTS[-1]} networks of {SMALL.name}")
        rows["small_steps"] = [time_small(count, effort) for count in SMALL_COUNTS]
        report(f"timing {DROPOUT.name}")
        rows["dropout"] = [time_dropout(effort)]
        report("timing measures")
        rows["measures"] = [time_measures(size, effort) for size in effort.measured[1]]
    return rows


def targets(effort: Effort) -> Mapping[Size, float]:
    """Return the sizes that an effort times, each with its target."""
    others = [activation for activation in effort.activations if activation != "relu"]
    return TARGETS | {
        replace(size, activation=other): target for other in others for size, target in PLAIN_TARGETS.items()
    }


def time_steps(size: Size, ensemble: Ensemble, effort: Effort) -> list[dict[str, Any]]:
    """Return a row for each side of torch that the product is compared with.

    The first is torch's fastest. One network is compared with fused SGD as well where that is not it.
    """
    ranked = rank(replace(size, networks=1), effort)
    sides: dict[str, Side] = {"ours": Ours(ensemble), str(ranked[0]): Torch(ensemble, ranked[0])}
    if size.networks == 1:
        fused = next(choice for choice in ranked if choice.optimizer == "fused")
        sides[str(fused)] = sides.get(str(fused)) or Torch(ensemble, fused)
        if effort.compile and can_compile():
            other = compiled(ranked[0])
            sides[str(other)] = Torch(ensemble, other)
    taken = take_turns(sides, effort.rounds, effort.seconds)
    rows = []
    for name in list(sides)[1:]:
        found = median_interval(ratios(processor(taken["ours"]), processor(taken[name])))
        target = None if "torch.compile" in name else targets(effort)[size]
        rows.append(
            {
                **described(size),
                "against": name,
                "ours_us": micro(processor(taken["ours"])),
                "torch_us": micro(processor(taken[name])),
                **columns("ratio", found),
                "wall_ratio": statistics.median(ratios(wall(taken["ours"]), wall(taken[name]))),
                "target": target,
                "verdict": at_most(found, target),
                "asked": size in TARGETS and name == str(ranked[0]),
            }
        )
    return rows


@functools.cache
def rank(size: Size, effort: Effort) -> tuple[Choice, ...]:
    """Return the choices of torch for one network, the fastest first."""
    if effort.choosing == 0:
        return tuple(choices(size.activation))
    ensemble = size.ensemble()
    sides = {choice: Torch(ensemble, choice) for choice in choices(size.activation)}
    taken = take_turns({str(choice): side for choice, side in sides.items()}, effort.choosing, effort.seconds)
    return tuple(sorted(sides, key=lambda choice: statistics.median(processor(taken[str(choice)]))))


@functools.cache
def alone(size: Size, effort: Effort) -> Torch:
    """Return one network in torch, for all the counts that it is compared with."""
    return Torch(size.ensemble(), rank(size, effort)[0])


def time_networks(count: int, activation: str, effort: Effort) -> dict[str, Any]:
    """Return the row of so many networks side by side: the time of each, over that of one in torch."""
    size = replace(SIDE_BY_SIDE, networks=count, activation=activation)
    sides: dict[str, Side] = {"ours": Ours(size.ensemble()), "torch": alone(replace(size, networks=1), effort)}
    return {**described(size), **speedup(sides, count, effort)}


def time_small(count: int, effort: Effort) -> dict[str, Any]:
    """Return the row of small networks side by side, the batches of both sides drawn in every step."""
    size = replace(SMALL, networks=count)
    loop = plain_loop(size, rank(SMALL, effort)[0].optimizer)
    target = SMALL_TARGET if count == SMALL_ASKED else None
    return {
        **described(size),
        **speedup({"ours": Ours(size.ensemble(), draws=True), "torch": loop}, count, effort, target),
    }


def speedup(sides: Mapping[str, Side], count: int, effort: Effort, target: float | None = None) -> dict[str, Any]:
    """Return how many times as fast as one of torch's a network of ours is among so many."""
    taken = take_turns(sides, effort.rounds, effort.seconds)
    ours, torch = ([second / n for second in processor(taken[name])] for name, n in (("ours", count), ("torch", 1)))
    found = median_interval(ratios(torch, ours))
    times = {"ours_us": micro(ours), "torch_us": micro(torch)}
    return {**times, **columns("speedup", found), "target": target, "verdict": at_least(found, target)}


def time_dropout(effort: Effort) -> dict[str, Any]:
    """Return the row of a step with dropout, its masks drawn, over the step of the same networks without."""
    sides = {"with": Ours(DROPOUT.ensemble()), "without": Ours(replace(DROPOUT, dropout=0.0).ensemble())}
    taken = take_turns(sides, effort.rounds, effort.seconds)
    found = median_interval(ratios(processor(taken["with"]), processor(taken["without"])))
    return {
        **described(DROPOUT),
        "with_us": micro(processor(taken["with"])),
        "without_us": micro(processor(taken["without"])),
        **columns("ratio", found),
        "share": 1 - 1 / found.mean,
        "target": DROPOUT_TARGET,
        "verdict": at_most(found, DROPOUT_TARGET),
    }


def time_measures(size: Size, effort: Effort) -> dict[str, Any]:
    """Return the row of training by the product's own loop that is measured, over steps with nothing beside."""
    sides: dict[str, Side] = {
        "plain": Ours(size.ensemble(), draws=True),
        "layers": Measured(size, MEASURE_EVERY, evaluates=False),
        "measured": Measured(size, MEASURE_EVERY),
    }
    turns = [Turn(name, side, effort.measured[0]) for name, side in sides.items()]
    taken = take_rounds([*turns, *reversed(turns)], max(7, effort.rounds // 7))
    plain, layers, measured = (processor(taken[turn.name]) for turn in turns)
    found = median_interval(ratios(measured, plain))
    return {
        **described(size),
        "plain_us": micro(plain),
        "measured_us": micro(measured),
        "every": MEASURE_EVERY,
        "without_evaluations": statistics.median(ratios(layers, plain)),
        **columns("ratio", found),
        "target": MEASURES_TARGET,
        "verdict": at_most(found, MEASURES_TARGET),
    }


def count_memory(size: Size, ensemble: Ensemble) -> dict[str, Any]:
    """Return the row of what a step needs beside parameters, gradients and the batch, in bytes."""
    return {
        **described(size),
        "parameters": ensemble.values.nbytes,
        "buffers": buffer_bytes(ensemble),
        "buffers_measured": buffer_bytes(ensemble, keep=True),
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


def micro(seconds: Sequence[float]) -> float:
    return 1e6 * statistics.median(seconds)
