"""Which networks of a large sweep TensorBoard shows: it is slow, and nothing to read, with a thousand runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

from bpexp import spec
from bpexp.sweep.job import Job

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, modulo 1, spread evenly and have no period."""


def limit_shown(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, and of each whether it is shown: at most sweep.max_runs of them.

    A pure function of the sweep. A cell is what jobs have in common but for the seed; shown is one seed of every cell,
    then another of every cell, as long as there is room.
    """
    most = jobs[0].config.sweep.max_runs
    if len(jobs) <= most:
        return list(jobs)
    cells: dict[tuple[Hashable, ...], list[int]] = {}
    for place, job in enumerate(jobs):
        values = spec.flatten(job.config)
        cells.setdefault(tuple(value for name, value in values.items() if name != "seed"), []).append(place)
    shown: set[int] = set()
    for turn in range(max(map(len, cells.values()))):
        in_turn = {values: places[turn] for values, places in cells.items() if turn < len(places)}
        chosen = spread(list(in_turn), most - len(shown))
        places = list(in_turn.values())
        shown |= {places[one] for one in chosen}
    return [job if place in shown else dataclasses.replace(job, shown=False) for place, job in enumerate(jobs)]


def spread(points: Sequence[tuple[Hashable, ...]], most: int) -> list[int]:
    """Return the places of `most` points that are spread over all, in rising order.

    Each next one is of those whose values were taken least so far, axis by axis, so that no value of an axis is missed
    as every k-th point of a grid would miss it; among these, one far from the others.
    """
    import numpy as np

    count = len(points)
    if count <= most:
        return list(range(count))
    order = np.argsort(np.arange(count) * GOLDEN % 1)
    axes = [numbered(points[place][axis] for place in order.tolist()) for axis in range(len(points[0]))]
    codes = np.array([axis for axis in axes if max(axis) > 0], dtype=np.int64).reshape(-1, count)
    taken, load = [], np.zeros(count)
    for _ in range(most):
        one = int(np.argmin(load))
        load += (codes == codes[:, [one]]).sum(0)
        load[one] = np.inf
        taken.append(int(order[one]))
    return sorted(taken)


def numbered(values: Iterable[Hashable]) -> list[int]:
    """Return each value's number among those that differ, in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
