"""A job's .hydra folder, as Hydra's own launchers leave it, for a fraction of the price.

What all jobs of a sweep share is dumped once, and of what differs each distinct line.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bpexp import spec
from bpexp.sweep.files import write_text
from bpexp.sweep.job import Job

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_VARYING = ("overrides", "job", "runtime")

_MARK = "a-value-of-the-job"
_MARKED = re.compile(rf"^ +(-|\w+:) {_MARK}\n", re.MULTILINE)

_PLAIN = re.compile(r"[A-Za-z/][\w.,/+-]*[=/][\w.,=/+-]*", re.ASCII)
"""A text that YAML writes as it is: it looks like no number and no word of YAML, and has no place to be folded."""


class HydraFiles:
    """The .hydra folders of the jobs of a sweep, whose configuration is `master`."""

    def __init__(self, master: DictConfig) -> None:
        hydra = OmegaConf.to_container(OmegaConf.masked_copy(master, "hydra"), resolve=False, enum_to_str=True)
        assert isinstance(hydra, dict)
        settings = hydra["hydra"]
        self._varying = {name: settings.pop(name) for name in _VARYING}
        self._common = dump({"hydra": settings}).partition("\n")[2]
        self._template = functools.cache(self._make_template)
        self._lines: dict[tuple[int, str, str], str] = {}

    def write(self, number: int, job: Job) -> None:
        """Write config.yaml, hydra.yaml and overrides.yaml of a job; its number is its place in the sweep."""
        folder = job.folder / ".hydra"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", self.config(job))
        write_text(folder / "hydra.yaml", self.hydra(number, job))
        write_text(folder / "overrides.yaml", "".join(self._line(0, "-", override) for override in job.overrides))

    def config(self, job: Job) -> str:
        """Return the content of config.yaml."""
        lines = []
        for name, value in vars(job.config).items():
            if dataclasses.is_dataclass(value):
                lines.append(f"{name}:\n")
                lines += [self._line(1, inner, inner_value) for inner, inner_value in vars(value).items()]
            else:
                lines.append(self._line(0, name, value))
        return "".join(lines)

    def hydra(self, number: int, job: Job) -> str:
        """Return the content of hydra.yaml."""
        template = self._template(tuple(getattr(job.config, group).name for group in spec.GROUPS))
        filled = {
            "-": "".join(self._line(2, "-", override) for override in job.overrides),
            "override_dirname:": _line(2, "override_dirname", ",".join(sorted(job.overrides))),
            "id:": f"    id: '{number}'\n",
            "num:": f"    num: {number}\n",
            "output_dir:": _line(2, "output_dir", str(job.folder.absolute())),
        }
        return _MARKED.sub(lambda found: filled[found[1]], template) + self._common

    def _make_template(self, choices: tuple[str, ...]) -> str:
        marked = copy.deepcopy(self._varying)
        marked["overrides"]["task"] = [_MARK]
        marked["job"] |= dict.fromkeys(("id", "num", "override_dirname"), _MARK)
        marked["runtime"]["output_dir"] = _MARK
        marked["runtime"]["choices"] |= dict(zip(spec.GROUPS, choices, strict=True))
        return dump({"hydra": marked})

    def _line(self, depth: int, key: str, value: Any) -> str:
        known = (depth, key, repr(value))  # not the value itself: 1 is True, and 0.0 is -0.0
        if known not in self._lines:
            self._lines[known] = _line(depth, key, value)
        return self._lines[known]


def _line(depth: int, key: str, value: Any) -> str:
    """Return what a value is in YAML, `depth` mappings deep; the key of a list's item is "-"."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return f"{'  ' * depth}{key if key == '-' else f'{key}:'} {value}\n"
    content: Any = {"list": [value]} if key == "-" else {key: value}  # an item stands as deep as its list's own key
    for _ in range(depth):
        content = {"mapping": content}
    above = depth + (key == "-")
    return dump(content).split("\n", above)[above]


def dump(content: Any) -> str:
    """Return content as YAML in Hydra's style."""
    text: str = yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text
