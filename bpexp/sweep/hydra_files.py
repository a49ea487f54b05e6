"""A job's .hydra folder, as Hydra's own launchers leave it, for a fraction of the price.

What all jobs of a sweep share is dumped once; only what differs is dumped for each.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bpexp import spec
from bpexp.sweep.files import write_text
from bpexp.sweep.job import Job

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_VARYING = ("overrides", "job", "runtime")


def write_hydra_files(master: DictConfig, numbered: Sequence[tuple[int, Job]]) -> None:
    """Write config.yaml, hydra.yaml and overrides.yaml of each job; its number is its place in the sweep."""
    hydra = OmegaConf.to_container(OmegaConf.masked_copy(master, "hydra"), resolve=False, enum_to_str=True)
    assert isinstance(hydra, dict)
    settings = hydra["hydra"]
    varying = {name: settings.pop(name) for name in _VARYING}
    common = dump({"hydra": settings}).partition("\n")[2]
    for number, job in numbered:
        folder = job.folder / ".hydra"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", dump(dataclasses.asdict(job.config)))
        write_text(folder / "hydra.yaml", dump({"hydra": _of_job(varying, number, job)}) + common)
        write_text(folder / "overrides.yaml", dump(job.overrides))


def dump(content: Any) -> str:
    """Return content as YAML in Hydra's style."""
    text: str = yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def _of_job(varying: Mapping[str, Any], number: int, job: Job) -> dict[str, Any]:
    chosen = copy.deepcopy(dict(varying))
    chosen["overrides"]["task"] = job.overrides
    chosen["job"] |= {"id": str(number), "num": number, "override_dirname": ",".join(sorted(job.overrides))}
    chosen["runtime"]["output_dir"] = str(job.folder.absolute())
    chosen["runtime"]["choices"] |= {group: getattr(job.config, group).name for group in spec.GROUPS}
    return chosen
