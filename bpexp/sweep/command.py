"""A command of an experiment: its arguments are checked, its jobs made, before Hydra runs them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bpexp import spec
from bpexp.chunks import chunk_size
from bpexp.data import DATA, FolderData, check_contents
from bpexp.spec import UserError
from bpexp.sweep import grid, results
from bpexp.sweep.cluster import choose_cluster
from bpexp.sweep.compose import Composer, parse
from bpexp.sweep.executors import start_early
from bpexp.sweep.files import check_writable, clear_unfinished
from bpexp.sweep.fitting import why_too_large
from bpexp.sweep.groups import GROUPS_FILE, alone, read_groups, together, write_groups
from bpexp.sweep.job import Job, existing_names, job_name
from bpexp.sweep.launch import Networks, unfinished
from bpexp.sweep.lock import LockedError, check_free, hold
from bpexp.sweep.processes import ending_spare, run_where_torch_is
from bpexp.sweep.shown import limit_shown
from bpexp.validation import validate, validate_sweep

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

Program = Callable[["DictConfig", Path], object]
"""What an experiment without networks does: its configuration and its folder."""

Check = Callable[["DictConfig", Sequence[str]], object]
"""Refuses values that do not go together: the configuration, and the overrides of the command line."""

Finish = Callable[[Path], object]
"""What an experiment does with the folder that holds a sweep's results.parquet."""

LOCK_FILE = ".lock"

EXECUTORS_ALONE = tuple(
    f"sweep.{name}" for name in ("executor", "workers", "cluster", "partition", "minutes", "memory")
)
"""The keys that Hydra's own launchers do not know."""

SWEEPS_ALONE = (*EXECUTORS_ALONE, "sweep.keep_going", "sweep.max_runs")
"""The keys that a single run would ignore."""

SHOWN_MISTAKES = 3

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
        self.wrong: dict[str, str] = {}
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
        if override.is_sweep_override() and name.startswith("sweep."):
            raise UserError(f"{name}: {override.get_value_string()!r} is more than one value; a sweep takes one")
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
        self._check_machine(list(unfinished(job for job in jobs if job.identity not in self.wrong).values()))
        self._refuse_wrong(jobs)
        if self.multirun and jobs[0].config.sweep.executor == "submitit":
            choose_cluster(jobs[0].config.sweep)
        key = "hydra.sweep.dir" if self.multirun else "hydra.run.dir"
        check_writable(folder, key)
        with _only_writer(folder, key):
            # Looked at again: another command may have finished some until it gave the folder free.
            task = Networks(jobs, self.wrong)
            task.fit()
            clear_unfinished(folder)
            task.clear_checkpoints()
            _tell_reused(task)
            _tell_damaged(folder, task)
            if self.multirun:
                write_groups(folder, [job for job in task.jobs if job.identity not in self.wrong])
            start = self.hydra.multirun if self.multirun else self.hydra.run
            with _going_on(fresh=jobs[0].config.sweep.fresh), ending_spare():
                task.start_over()
                start("config", task, [*self.arguments, naming])
                return folder, _conclude(folder, jobs, multirun=self.multirun)

    def _single(self) -> tuple[Path, list[Job], str]:
        for override in self.given:
            if override.key_or_group in SWEEPS_ALONE:
                value = override.get_value_string()
                raise UserError(f"{override.key_or_group}: {value!r} would be ignored without -m")
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
        ensemble = hydra.launcher.get("_target_") == ENSEMBLE
        self._check_launcher(ensemble=ensemble)
        jobs: dict[str, Job] = {}
        unknown = 0
        cells = [parse(cell, self.hydra.config_loader) for cell in grid.cells(hydra.sweeper.params, values)]
        for override in {override.input_line: override for cell in cells for override in cell}.values():
            self.composer.check(override)
        for overrides in grid.expand([*axes, *values, *last], cells):
            config, identity = self._compose(overrides)
            if not jobs:
                validate_sweep(config)
            if identity in jobs:
                continue
            name = names.get(identity) or job_name(overrides, self.fixed, identity)
            jobs[identity] = Job(config, overrides, identity, folder / name)
            try:
                validate(config)
            except UserError as error:
                self.wrong[identity] = str(error)
                continue
            unknown += identity not in names
            if ensemble and unknown > chunk_size(config):
                start_early(config)
        right = [job for job in jobs.values() if job.identity not in self.wrong]
        grouped = {job.identity: job for job in (together if ensemble else alone)(right)}
        return folder, limit_shown([grouped.get(identity, job) for identity, job in jobs.items()]), naming

    def _compose(self, overrides: Sequence[str]) -> tuple[spec.Config, str]:
        """Return a job's configuration and identity.

        Raises:  UserError: it has none, because a value is of the wrong type, or its data is not there
        """
        try:
            config: spec.Config = self.composer.compose(overrides)
            return config, spec.identity(config)
        except ValueError as error:
            where = "" if str(error).startswith("sweep.") else f" (job {_shown(overrides)})"
            raise UserError(f"{error}{where}") from None

    def _check_launcher(self, *, ensemble: bool) -> None:
        for override in self.given:
            if not ensemble and override.key_or_group in EXECUTORS_ALONE:
                name, value = override.key_or_group, override.get_value_string()
                raise UserError(
                    f"{name}: {value!r} would be ignored by Hydra's own launcher; choose hydra/launcher=ensemble"
                )

    def _check_machine(self, jobs: Sequence[Job]) -> None:
        """Note the jobs that this machine cannot run."""
        whys = check_machine([job.config for job in jobs], packaged=not self.multirun)
        whys = [why or why_too_large(job.config) for job, why in zip(jobs, whys, strict=True)]
        self.wrong |= {job.identity: why for job, why in zip(jobs, whys, strict=True) if why is not None}

    def _refuse_wrong(self, jobs: Sequence[Job]) -> None:
        """Refuse jobs that cannot run, unless the others are to run in spite of them.

        Raises:  UserError: naming the first of each kind
        """
        if not self.wrong or (self.multirun and jobs[0].config.sweep.keep_going):
            return
        if not self.multirun:
            raise UserError(next(iter(self.wrong.values())))
        reasons: dict[str, list[str]] = {}
        for job in jobs:
            if job.identity in self.wrong:
                reasons.setdefault(self.wrong[job.identity], []).append(_shown(job.overrides))
        kinds = list(reasons.items())
        said = [
            f"{why} (job {first}{f' and {len(others)} more' if others else ''})"
            for why, (first, *others) in kinds[:SHOWN_MISTAKES]
        ]
        if more := len(kinds[SHOWN_MISTAKES:]):
            said.append(f"{more} more {'mistake' if more == 1 else 'mistakes'}")
        cannot = f"{len(self.wrong)} of {len(jobs)} jobs cannot run; sweep.keep_going=true runs the others"
        raise UserError("; ".join([*said, cannot]))

    def _naming(self, swept: set[str]) -> str:
        """Return the override that tells Hydra's own launchers which keys do not name a job."""
        given = dict.fromkeys(o.key_or_group for o in self.given if not o.is_hydra_override())
        self.fixed = [name for name in (*given, "experiment") if name not in swept]
        return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(self.fixed)}]"


def check_machine(configs: Sequence[spec.Config], *, packaged: bool = True) -> list[str | None]:
    """Return what keeps each configuration from running here: a device that there is not, data that is not finite.

    Imports torch where it must; the cheap checks come before.

    packaged:  look into data that comes with a package as well, which takes torch and as a rule finds nothing
    """
    found: dict[tuple[str, str, str | None], str | None] = {}
    for config in configs:
        asked = (config.device, config.data.name, config.data.root)
        if asked not in found:
            found[asked] = _look_for(*asked, packaged=packaged)
    return [found[config.device, config.data.name, config.data.root] for config in configs]


def _look_for(device: str, data: str, root: str | None, *, packaged: bool) -> str | None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "device: cuda was asked for, but there is none; choose auto or cpu"
    if packaged or isinstance(DATA[data], FolderData):
        try:
            check_contents(data, root)
        except ValueError as error:
            return str(error)
    return None


@contextlib.contextmanager
def _only_writer(folder: Path, key: str) -> Iterator[None]:
    """Let no other command write in a folder at the same time.

    Raises:  UserError: naming the one that does
    """
    with contextlib.ExitStack() as stack:
        try:
            # A job's folder may be that of a sweep that runs.
            check_free(folder.parent / LOCK_FILE)
            # Another command that looks whether it is free holds it for an instant.
            stack.enter_context(hold(folder / LOCK_FILE, patience=0.1))
        except LockedError as error:
            raise UserError(f"{key}: {str(folder)!r} is {error}; wait for it, or choose another folder") from None
        yield


@contextlib.contextmanager
def _going_on(*, fresh: bool) -> Iterator[None]:
    """Note on what interrupts a command under sweep.fresh which command goes on; without a note it is the same."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if fresh:
            error.add_note("the same command without sweep.fresh=true goes on")
        raise


def _shown(overrides: Sequence[str]) -> str:
    """Return a job's overrides without the experiment, which the module has chosen."""
    return " ".join(overrides[:-1])


def _tell_reused(task: Networks) -> None:
    if not task.reused:
        return
    older = results.count_older(task.reused)
    warning = f"; warning: {older} of them were made by another commit" if older else ""
    again = "sweep.fresh=true runs them again"
    print(f"{len(task.reused)} of {len(task.jobs)} jobs are finished and kept{warning} ({again})", file=sys.stderr)


def _tell_damaged(folder: Path, task: Networks) -> None:
    pending = task.pending.values()
    damaged = [path for job in pending if not job.config.sweep.fresh and (path := results.find_damage(job)) is not None]
    for path in damaged[:SHOWN_MISTAKES]:
        print(f"{path}: damaged or gone; the job runs again", file=sys.stderr)
    if len(damaged) > SHOWN_MISTAKES:
        print(f"{len(damaged) - SHOWN_MISTAKES} more jobs with damaged files run again", file=sys.stderr)
    groups = folder / GROUPS_FILE
    if groups.exists() and not read_groups(folder):
        print(f"{groups}: damaged; it is written anew", file=sys.stderr)


def _conclude(folder: Path, jobs: Sequence[Job], *, multirun: bool) -> list[str]:
    found, failed = run_where_torch_is(functools.partial(results.conclude, folder, jobs, cells=multirun))
    counts = ", ".join(f"{count} {status}" for status, count in found.items())
    print(f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}: {counts}; results in {folder}")
    return [f"failed: {name}: {error}" for name, error in failed]
