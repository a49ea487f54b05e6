"""What each pass over the recorded plan brings, and what networks of different structure gain from one group.

Tables: `passes`, `mixed`.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.cost_sides import Ours, Size, ensemble_of
from experiments.cost_timing import Seconds, Side, columns, median_interval, one_thread, processor, ratios, take_turns

if TYPE_CHECKING:
    from bpexp.spec import Config

SIXTEEN, DEEP = Size(16, 10, 32, 128), Size(1, 100, 32, 64, "tanh")
DEPTHS, ACTIVATIONS = (4, 8, 16), ("relu", "tanh", "gelu", "sigmoid")
"""The structures that are mixed, so many networks of each."""


@dataclass(frozen=True)
class Mix:
    """So many networks of each of several structures."""

    name: str
    each: int
    structures: tuple[Size, ...]

    def groups(self) -> list[list[Config]]:
        """Return the networks, those of a structure together, in the order that a group has."""
        from bpexp.spec import order

        found = [replace(structure, networks=self.each).configs() for structure in self.structures]
        return sorted(found, key=lambda configs: order(configs[0]))


def mixes(each: Sequence[int]) -> list[Mix]:
    """Return networks of several depths, and of several activations, so many of each."""
    depths = tuple(replace(SIXTEEN, depth=depth) for depth in DEPTHS)
    activations = tuple(replace(SIXTEEN, activation=activation) for activation in ACTIVATIONS)
    kinds = ((f"L = {', '.join(map(str, DEPTHS))}", depths), (", ".join(ACTIVATIONS), activations))
    return [Mix(f"{count} of each: {name}, D32 B128", count, sizes) for name, sizes in kinds for count in each]


@dataclass(frozen=True)
class Effort:
    """N rounds, seconds of a turn, the sizes at which passes are left out, networks of each structure that is mixed."""

    rounds: int
    seconds: float
    sizes: tuple[Size, ...]
    each: tuple[int, ...]


EFFORTS = {
    "smoke": Effort(7, 0.002, (), (1,)),
    "default": Effort(11, 0.005, (SIXTEEN, DEEP), (1, 3)),
    "full": Effort(21, 0.02, (SIXTEEN, DEEP), (1, 2, 3, 8)),
}


def measure(scale: str, report: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables; a scale without sizes has none of passes."""
    effort = EFFORTS[scale]
    rows: dict[str, list[dict[str, Any]]] = {}
    with one_thread():
        if effort.sizes:
            report("timing steps without a pass")
            rows["passes"] = time_passes(effort)
        report("timing networks of different structure")
        rows["mixed"] = [time_mixed(mix, effort) for mix in mixes(effort.each)]
    return rows


def time_passes(effort: Effort) -> list[dict[str, Any]]:
    """Return a row for each pass at each size; those that work elsewhere have their row there."""
    from bpexp.plan import PASSES

    elsewhere = {"join_parts", "look_early"}
    common = [name for name in PASSES if name not in elsewhere]
    rows = [
        row for size in effort.sizes for row in time_without(size.name, size.activation, common, size.configs(), effort)
    ]
    mix = mixes((1,))[-1]
    several = list(itertools.chain.from_iterable(mix.groups()))
    rows += time_without(mix.name, "several", ["join_parts"], several, effort)
    return rows + time_without(
        f"{SIXTEEN.name}, measured", "relu", ["look_early"], SIXTEEN.configs(), effort, observe=True
    )


def time_without(
    name: str,
    activation: str,
    passes: Sequence[str],
    configs: Sequence[Config],
    effort: Effort,
    *,
    observe: bool = False,
) -> list[dict[str, Any]]:
    """Return a row for each pass: a step without it over a step with all. `observe`: of a step that is measured."""
    from bpexp.plan import PASSES

    sides: dict[str, Side] = {
        without or "all": Ours(ensemble_of(configs, without), observe=observe) for without in (None, *passes)
    }
    taken = take_turns(sides, effort.rounds, effort.seconds)
    size = {"size": name, "activation": activation}
    return [
        {**size, "pass": one, "does": PASSES[one].what, **compared(taken, "without", one, "with", "all")}
        for one in passes
    ]


def time_mixed(mix: Mix, effort: Effort) -> dict[str, Any]:
    """Return the row of networks of several structures: one group of all against a group for each structure."""
    groups = mix.groups()
    joined = Ours(ensemble_of(list(itertools.chain.from_iterable(groups))))
    separate = Several([Ours(ensemble_of(group)) for group in groups])
    taken = take_turns({"joined": joined, "separate": separate}, effort.rounds, effort.seconds)
    return {"networks": mix.name, "each": mix.each, **compared(taken, "joined", "joined", "separate", "separate")}


def compared(taken: Mapping[str, Sequence[Seconds]], one: str, side: str, other: str, against: str) -> dict[str, Any]:
    """Return the times of two sides, in microseconds, under the names of their columns, and their ratio."""
    mine, theirs = processor(taken[side]), processor(taken[against])
    times = {f"{one}_us": 1e6 * statistics.median(mine), f"{other}_us": 1e6 * statistics.median(theirs)}
    return {**times, **columns("ratio", median_interval(ratios(mine, theirs)))}


class Several:
    """Several sides that each do every step."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides

    def reset(self) -> None:
        for side in self.sides:
            side.reset()

    def run(self, steps: int) -> None:
        """Take the steps of one side, then those of the next."""
        for side in self.sides:
            side.run(steps)
