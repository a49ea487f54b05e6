"""What a step costs with each remedy against the untreated network: their steps in turns, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import spec
from experiments.remedies_cells import pairs, select
from experiments.remedies_grid import UNTREATED

if TYPE_CHECKING:
    import polars

NETWORKS = 8
"""Networks side by side in each step that is timed, at most: those of the first seeds."""

ROUNDS, SECONDS = 5, 0.02

Structure = tuple[object, ...]
"""What networks that train together have in common."""


def compute_costs(folder: Path) -> polars.DataFrame:
    """Return a row for each failing network and remedy of a sweep: the time of a step against that of the untreated.

    It is the median over ROUNDS turns of the processor's time, with the batch and the gradients' update, and without
    measures. What trains together with the untreated, since it differs in numbers or the initialization, costs 1.
    """
    import polars

    from bpexp.records import read_results
    from experiments.cost_timing import one_thread

    results = read_results(folder)
    known: dict[Structure, dict[Structure, float]] = {}
    rows = []
    for failing, remedies in pairs(results):
        configs = {remedy.name: configs_of(select(results, failing, remedy)) for remedy in remedies}
        if UNTREATED.name not in configs:
            continue
        structures = {name: spec.group_key(own[0]) for name, own in configs.items()}
        own = known.setdefault(structures[UNTREATED.name], {structures[UNTREATED.name]: 1.0})
        new = {key: configs[name] for name, key in structures.items() if key not in own}
        if new:
            with one_thread():
                own |= time_structures(configs[UNTREATED.name], new)
        rows += [
            {"failing": failing.name, "remedy": name, "cost": own[structure]} for name, structure in structures.items()
        ]
    return polars.DataFrame(rows, schema={"failing": polars.String, "remedy": polars.String, "cost": polars.Float64})


def time_structures(
    untreated: list[spec.Config], others: Mapping[Structure, list[spec.Config]]
) -> dict[Structure, float]:
    """Return what a step of each of the others takes against one of the untreated, by its key."""
    from experiments.cost_sides import Ours, ensemble_of
    from experiments.cost_timing import processor, ratios, take_turns

    keys = {str(number): key for number, key in enumerate(others)}
    sides = {UNTREATED.name: Ours(ensemble_of(untreated), draws=True)}
    sides |= {name: Ours(ensemble_of(others[key]), draws=True) for name, key in keys.items()}
    taken = {name: processor(turns) for name, turns in take_turns(sides, ROUNDS, SECONDS).items()}
    return {key: statistics.median(ratios(taken[name], taken[UNTREATED.name])) for name, key in keys.items()}


def configs_of(jobs: polars.DataFrame) -> list[spec.Config]:
    """Return the configurations of a cell's first seeds at its smallest learning rate, as they are in the results."""
    first = jobs.filter(jobs["optimizer.lr"] == jobs["optimizer.lr"].min()).sort("seed").head(NETWORKS)
    return [config_of(row) for row in first.iter_rows(named=True)]


def config_of(row: Mapping[str, Any]) -> spec.Config:
    """Return the configuration of a network from its row of the results."""
    config = spec.Config()
    for name in spec.flatten(config):
        group, _, last = name.rpartition(".")
        setattr(getattr(config, group) if group else config, last, row[name.removesuffix(".name")])
    return config
