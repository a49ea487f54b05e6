"""The help of an experiment, made from its configuration."""

from __future__ import annotations

import inspect
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bpexp import spec
from bpexp.sweep import grid

WIDTH = 26


def usage(hydra: Hydra, experiment: str, doc: str | None) -> str:
    """Return the docstring, how to run it, the declared grid and the keys with defaults, ranges and choices."""
    config = hydra.compose_config("config", [f"experiment={experiment}"], RunMode.MULTIRUN)
    lines = [inspect.cleandoc(doc or experiment), "", f"python -m experiments.{experiment} [key=value ...]"]
    declared = OmegaConf.select(config, "hydra.sweeper.params")
    if declared:
        axes = " ".join(f"'{axis}'" if "(" in axis else axis for axis in grid.axes(declared))
        lines += [
            f"python -m experiments.{experiment} -m [key=value,value ...]",
            "",
            "-m runs the declared grid; a key on the command line replaces its axis:",
            f"  {axes}",
        ]
    schema = spec.SCHEMAS.get(experiment, spec.Config)
    lines += ["", "Keys:", *(_key_line(key, config) for key in spec.keys(schema).values())]
    lines += ["", "hydra.run.dir=FOLDER chooses where results go."]
    return "\n".join(lines)


def _key_line(key: spec.Key, config: DictConfig) -> str:
    value = OmegaConf.select(config, key.name)
    takes = "|".join(key.choices) or (str(key.range) if key.range else "")
    shown = f"{key.name.removesuffix('.name')}={_shown(value)}"
    return f"  {shown:<{WIDTH}} {key.meaning}{f' ({takes})' if takes else ''}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
