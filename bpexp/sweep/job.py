"""A job of a sweep: its configuration, and the folder that is named by it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bpexp import spec

LONGEST_NAME = 120
"""Characters of a folder's name before the identity; file systems take 255 bytes in all."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train.

    `group` names the networks it trains together with: a hash of their identities. `shown` is whether TensorBoard
    gets its curves.
    """

    config: spec.Config
    overrides: list[str]
    identity: str
    folder: Path
    group: str = ""
    shown: bool = True


def register() -> None:
    """Make the schemas, and the resolver that names a job's folder, known to Hydra."""
    from hydra.core.config_store import ConfigStore

    for name, schema in spec.SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema, package="_global_")
    OmegaConf.register_new_resolver("bpexp_job", _job_name, replace=True)


def _job_name(_root_: DictConfig) -> str:
    """Name the folder of the job whose whole configuration this is, for Hydra's own launchers."""
    hydra = _root_.hydra
    name = job_name(hydra.overrides.task, hydra.job.config.override_dirname.exclude_keys, spec.identity(typed(_root_)))
    return existing_names(Path(hydra.sweep.dir)).get(name.rpartition("-")[2], name)


def typed(composed: DictConfig) -> Any:
    """Return the dataclass that a composed configuration describes, without Hydra's own part."""
    config = copy.deepcopy(composed)
    with open_dict(config):
        config.pop("hydra", None)
    return OmegaConf.to_object(config)


def job_name(overrides: Iterable[str], fixed: Sequence[str], identity: str) -> str:
    """Return `<swept values>-<identity>`; the identity alone where nothing is swept.

    A value stands with the last word of its key: `depth=4,activation=tanh,init=he,seed=0`.
    """
    pairs = (override.partition("=") for override in overrides)
    swept = ",".join(f"{name.rpartition('.')[2]}={value}" for name, _, value in pairs if name not in fixed)
    readable = re.sub(r"[^\w.,=+-]+", "_", swept)[:LONGEST_NAME]
    return f"{readable}-{identity}" if readable else identity


def existing_names(folder: Path) -> dict[str, str]:
    """Return the names of the job folders in `folder` by the identity they end in."""
    if not folder.is_dir():
        return {}
    return {path.name.rpartition("-")[2]: path.name for path in sorted(folder.iterdir())}
