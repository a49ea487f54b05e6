"""The jobs of a command: the experiment's declared grid, with the command line's keys in place of its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from bpexp.spec import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def axes(declared: Mapping[str, str] | None) -> list[str]:
    """Return a declared grid as overrides, to stand before those of the command line."""
    return [f"{name}={values}" for name, values in (declared or {}).items()]


def expand(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job: the Cartesian product, a later key replacing an earlier one.

    Raises:  UserError: an axis without values
    """
    jobs: list[list[str]] = BasicSweeper.split_arguments(list(overrides), None)[0]
    if not jobs:
        empty = [o for o in overrides if o.is_sweep_override() and not list(o.sweep_string_iterator())]
        raise UserError(f"{empty[-1].key_or_group}: {empty[-1].get_value_string()} has no values")
    return jobs


def swept(overrides: Sequence[Override], declared: Mapping[str, str] | None) -> set[str]:
    """Return the keys that name a job: the declared axes and all others with more than one value."""
    return {*(declared or {}), *(o.key_or_group for o in overrides if o.is_sweep_override())}
