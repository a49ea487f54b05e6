"""A command of an experiment: its arguments are checked, its jobs made, before Hydra runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bpexp import spec
from bpexp.data import check_contents
from bpexp.spec import UserError
from bpexp.sweep import grid, results
from bpexp.sweep.compose import Composer, parse
from bpexp.sweep.files import check_writable
from bpexp.sweep.job import Job, existing_names, job_name
from bpexp.sweep.launch import Networks, alone, together, write_groups
from bpexp.validation import validate

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

Program = Callable[["DictConfig", Path], object]
"""What an experiment without networks does: its configuration and its folder."""

Check = Callable[["DictConfig", Sequence[str]], object]
"""Refuses values that do not go together: the configuration, and the overrides of the command line."""

Finish = Callable[[Path], object]
"""What an experiment does with the folder that holds a sweep's results.parquet."""

ENSEMBLE = "hydra_plugins.bpexp_plugins.ensemble.EnsembleLauncher"


class Command:
    """The arguments of an experiment, checked: every key and every option exists.

    Raises:  UserError: one that does not
    """

    def __init__(self, hydra: Hydra, experiment: str, arguments: Sequence[str], *, multirun: bool) -> None:
        self.hydra, self.experiment = hydra, experiment
        self.multirun = multirun or "hydra.mode=MULTIRUN" in arguments
        arguments = [self._folder(argument) for argument in arguments]
        self.arguments = [*arguments, f"experiment={experiment}"]
        schema = spec.SCHEMAS.get(experiment, spec.Config)
        self.given = parse(arguments, hydra.config_loader)
        hydra_overrides = [o.input_line or "" for o in self.given if o.is_hydra_override()]
        self.composer = Composer(hydra.config_loader, hydra_overrides, schema)
        for override in self.given:
            self._check(override)

    def _folder(self, argument: str) -> str:
        """Return an argument with the word of Hydra that takes effect: hydra.run.dir is the sweep's folder with -m."""
        name, equals, value = argument.partition("=")
        if name == "hydra.run.dir" and self.multirun:
            return f"hydra.sweep.dir{equals}{value}"
        if name == "hydra.sweep.dir" and not self.multirun:
            raise UserError(f"{name}: {value!r} would be ignored without -m; set hydra.run.dir")
        return argument

    def _check(self, override: Override) -> None:
        name = override.key_or_group
        if name == "experiment":
            raise UserError("experiment: is chosen by the module; run python -m experiments.NAME")
        if name == "hydra.sweep.subdir":
            raise UserError("hydra.sweep.subdir: a job's folder is named by its identity; set hydra.sweep.dir")
        self.composer.check(override)
        if override.is_sweep_override() and not self.multirun:
            raise UserError(f"{name}: {override.get_value_string()!r} is more than one value; add -m to sweep over it")

    def run_program(self, program: Program, check: Check | None = None) -> Path:
        """Run an experiment that is a program of its own; return its folder.

        Raises:  UserError: a value that it does not take, before anything is written
        """
        if self.multirun:
            raise UserError(f"-m: {self.experiment} has no grid; run it without -m")
        validate(self.composer.compose(self.arguments))
        composed = self.hydra.compose_config("config", list(self.arguments), RunMode.RUN)
        if check is not None:
            check(composed, self.arguments)
        folder = Path(composed.hydra.run.dir)
        check_writable(folder, "hydra.run.dir")
        errors: list[Exception] = []

        def task(config: DictConfig) -> None:
            # Hydra would print an error's overrides before it raises it.
            try:
                program(config, Path(HydraConfig.get().runtime.output_dir))
            except Exception as error:
                errors.append(error)

        self.hydra.run("config", task, list(self.arguments))
        if errors:
            raise errors[0]
        return folder

    def run_networks(self) -> tuple[Path, list[str]]:
        """Train the networks of one configuration or of a sweep.

        Returns: the folder of their results, and a line for each job that failed
        Raises:  UserError: a job that cannot run, before anything is written
        """
        folder, jobs, naming = self._sweep() if self.multirun else self._single()
        task = Networks(jobs)
        check_machine([job.config for job in task.pending.values()])
        check_writable(folder, "hydra.sweep.dir" if self.multirun else "hydra.run.dir")
        _tell_reused(task)
        if self.multirun:
            write_groups(folder, task.jobs)
        start = self.hydra.multirun if self.multirun else self.hydra.run
        start("config", task, [*self.arguments, naming])
        return folder, _conclude(folder, jobs)

    def _single(self) -> tuple[Path, list[Job], str]:
        config = self.composer.compose(self.arguments)
        validate(config)
        naming = self._naming(set())
        composed = self.hydra.compose_config("config", [*self.arguments, naming], RunMode.RUN)
        folder = Path(composed.hydra.run.dir)
        return folder, alone([Job(config, self.arguments, spec.identity(config), folder)]), naming

    def _sweep(self) -> tuple[Path, list[Job], str]:
        # The values are checked job by job, with errors that name the key, so they are left out here.
        settings = [*self.composer.hydra_overrides, f"experiment={self.experiment}"]
        hydra = self.hydra.compose_config("config", settings, RunMode.MULTIRUN).hydra
        axes, last = parse(grid.axes(hydra.sweeper.params)), parse([f"experiment={self.experiment}"])
        values = [override for override in self.given if not override.is_hydra_override()]
        naming = self._naming(grid.swept(values, hydra.sweeper.params))
        folder = Path(hydra.sweep.dir)
        names = existing_names(folder)
        jobs: dict[str, Job] = {}
        for overrides in grid.expand([*axes, *values, *last]):
            config = self._compose(overrides)
            identity = spec.identity(config)
            name = names.get(identity) or job_name(overrides, self.fixed, identity)
            jobs.setdefault(identity, Job(config, overrides, identity, folder / name))
        group = together if hydra.launcher.get("_target_") == ENSEMBLE else alone
        return folder, group(list(jobs.values())), naming

    def _compose(self, overrides: Sequence[str]) -> spec.Config:
        try:
            config: spec.Config = self.composer.compose(overrides)
            validate(config)
        except UserError as error:
            raise UserError(f"{error} (job {' '.join(overrides[:-1])})") from None
        return config

    def _naming(self, swept: set[str]) -> str:
        """Return the override that tells Hydra's own launchers which keys do not name a job."""
        given = dict.fromkeys(o.key_or_group for o in self.given if not o.is_hydra_override())
        self.fixed = [name for name in (*given, "experiment") if name not in swept]
        return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(self.fixed)}]"


def check_machine(configs: Sequence[spec.Config]) -> None:
    """Refuse what this machine has not: a device, or finite data. Imports torch; the cheap checks come before.

    Raises:  UserError: naming it
    """
    if any(config.device == "cuda" for config in configs):
        import torch

        if not torch.cuda.is_available():
            raise UserError("device: cuda was asked for, but there is none; choose auto or cpu")
    for name, root in dict.fromkeys((config.data.name, config.data.root) for config in configs):
        try:
            check_contents(name, root)
        except ValueError as error:
            raise UserError(str(error)) from None


def _tell_reused(task: Networks) -> None:
    if not task.reused:
        return
    older = results.count_older(task.reused)
    warning = f"; warning: {older} of them were made by another commit" if older else ""
    again = "sweep.fresh=true runs them again"
    print(f"{len(task.reused)} of {len(task.jobs)} jobs are finished and kept{warning} ({again})", file=sys.stderr)


def _conclude(folder: Path, jobs: Sequence[Job]) -> list[str]:
    frame = results.write_results(folder, jobs)
    counts = ", ".join(f"{count} {status}" for status, count in results.count_status(frame).items())
    print(f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}: {counts}; results in {folder}")
    failed = frame.filter(frame["status"] == "failed").select("job", "error").rows()
    return [f"failed: {name}: {error}" for name, error in failed]
