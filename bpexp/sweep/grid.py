"""The jobs of a command: the experiment's declared grid, with the command line's keys in place of its axes.

A grid is axes, KEY: VALUES, and a list of `cells`: each has overrides that belong together, and may be axes as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from bpexp.spec import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


CELLS = "cells"
"""The name in a declared grid that is no key, but a list of cells."""


def axes(declared: Mapping[str, Any] | None) -> list[str]:
    """Return the axes of a declared grid as overrides, to stand before those of the command line."""
    return [f"{name}={values}" for name, values in (declared or {}).items() if name != CELLS]


def cells(declared: Mapping[str, Any] | None, given: Iterable[Override]) -> list[list[str]]:
    """Return the overrides of each declared cell; of one without any where there are none.

    A key on the command line that some cell names replaces the whole list: what a cell is called by would be another.
    """
    found = [cell.split() for cell in (declared or {}).get(CELLS, ())]
    named = {override.partition("=")[0] for cell in found for override in cell}
    return [[]] if not found or any(override.key_or_group in named for override in given) else found


def expand(overrides: Sequence[Override], cells: Iterable[Sequence[Override]] = ((),)) -> list[list[str]]:
    """Return the overrides of each job: the Cartesian product, a later key replacing an earlier one; for each cell.

    Raises:  UserError: an axis without values
    """
    jobs: list[list[str]] = [
        job for cell in cells for job in BasicSweeper.split_arguments([*cell, *overrides], None)[0]
    ]
    if not jobs:
        empty = [o for o in overrides if o.is_sweep_override() and not list(o.sweep_string_iterator())]
        raise UserError(f"{empty[-1].key_or_group}: {empty[-1].get_value_string()} has no values")
    return jobs


def swept(overrides: Sequence[Override], declared: Mapping[str, Any] | None) -> set[str]:
    """Return the keys that name a job: the declared axes, those of cells and all others with more than one value."""
    named = {override.partition("=")[0] for cell in cells(declared, ()) for override in cell}
    return {*(declared or {}), *named, *(o.key_or_group for o in overrides if o.is_sweep_override())}
