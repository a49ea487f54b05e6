"""One page with what every experiment asked, expected and found: outputs/report/index.html.

scale=smoke|default|full says how much is computed now; the rest is shown from the published records, and marked so.
only=EXPERIMENT makes one experiment alone. Finished networks are kept, so an interrupted report goes on where it was.
scale=full publish=true rewrites the published copy, outputs/published: a page and the summary records it is made from.
from=FOLDER makes the figures of one sweep instead, of any grid: the folder that holds its results.parquet.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from omegaconf import OmegaConf

from bpexp import entry
from bpexp.entry import FailedJobsError
from bpexp.init import unknown_choice
from bpexp.spec import UserError
from bpexp.sweep.files import write_json, write_text
from bpexp.sweep.results import RUN_FILE, current_commit
from experiments import published
from experiments.page import Chapter, Part, Section, render
from experiments.published import Records

if TYPE_CHECKING:
    import polars
    from omegaconf import DictConfig

    Tables = Mapping[str, polars.DataFrame]

EXPERIMENTS = ("walkthrough", "gradient_flow", "trainability", "remedies", "clipping", "cost", "claims")
"""The report's experiments in their order: each a module `experiments.NAME` as `Experiment` says."""

NOW, FROM_RECORDS = "computed now", "from the published records"
NOTES = {
    "smoke": "Scale smoke: the least that shows that everything works. Its answers come from a few small networks, so"
    " read those from the published records, where there are some.",
    "default": "Scale default: of each experiment a stated part was computed now. The whole stands beside it, from"
    " the published records, where there are some.",
    "full": "Scale full: everything was computed now.",
}
PUBLISHED_NOTE = (
    "Everything here was computed at full scale, and stands beside the summary records that it is made from. Each part"
    " names its commit and the command that makes it again."
)


class Experiment(Protocol):
    """What a module of the report has. One with a `summarize(folder)` as well can be read by `from=FOLDER`."""

    SCALES: Mapping[str, str]

    def compute(self, scale: str, folder: Path) -> Tables:
        """Run what the scale needs under a folder, and return the summary tables."""

    def section(self, tables: Tables) -> Section:
        """Return what the tables say; the same tables say the same, byte for byte."""


@dataclass
class Report:
    """The chapters made so far, a line for each failure, and the seconds that each experiment took."""

    folder: Path
    scale: str
    publish: bool = False
    debug: bool = False
    chapters: list[Chapter] = field(default_factory=list)
    failures: dict[str, None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Add the chapter of an experiment: what is computed now, and the published records where they have more."""
        start = time.monotonic()
        parts, note = [self._compute(name)], ""
        if not self._computes_all(name):
            found = published.read(name)
            if found is None:
                note = f"There are no published records of it yet; `{_command(name, 'full', publish=True)}` makes them."
            else:
                parts.append(self._show(name, found))
        self.chapters.append(Chapter(name, tuple(parts), note))
        self.seconds[name] = round(time.monotonic() - start, 1)

    def add_sweep(self, sweep: Path) -> None:
        """Add the chapter of one sweep, of any grid of an experiment that can summarize it.

        Raises:  UserError: there is no such sweep in the folder, or none that has figures
        """
        name = experiment_of(sweep)
        origin = {
            "experiment": name,
            "extent": f"The networks in {sweep}.",
            "command": f"python -m experiments.report from={sweep}",
        }
        try:
            _say(f"{name}: reading the networks in {sweep}, and predicting them")
            tables = _summarize(name)(sweep)
            _say("  drawing the figures")
            part = _part("sweep", "of one sweep", name, published.records_of(tables, sweep, origin))
        except UserError:
            raise
        except Exception as error:
            part = Part("sweep", "of one sweep", origin["extent"], (), None, self.fail(name, error))
        self.chapters.append(Chapter(name, (part,)))

    def fail(self, name: str, error: Exception) -> str:
        """Note why an experiment failed, and return it: the others go on."""
        if self.debug:
            traceback.print_exc()
        known = isinstance(error, UserError | FailedJobsError)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
        self.failures |= {f"failed: {name}: {line.removeprefix('failed: ')}": None for line in problem.splitlines()}
        return problem

    def published_page(self, records: Mapping[str, Records]) -> str:
        """Return the page of the published copy."""
        return render(PUBLISHED_NOTE, [Chapter(name, (self._show(name, found),)) for name, found in records.items()])

    def _computes_all(self, name: str) -> bool:
        try:
            scales = _module(name).SCALES
        except Exception:
            return False  # it was noted when it was to be computed
        return scales[self.scale] == scales["full"]

    def _compute(self, name: str) -> Part:
        extent = ""
        try:
            module = _module(name)
            extent = module.SCALES[self.scale]
            _say(f"  {extent}")
            folder = self.folder / self.scale / name
            folder.mkdir(parents=True, exist_ok=True)
            command = _command(name, self.scale, publish=self.publish)
            origin = {"experiment": name, "scale": self.scale, "extent": extent, "command": command}
            records = published.records_of(module.compute(self.scale, folder), folder, origin)
            part = _part("now", NOW, name, records)
        except Exception as error:
            return Part("now", NOW, extent, (), None, self.fail(name, error))
        if self.publish:
            try:
                pictures = part.section.pictures if part.section else ()
                first = pictures[0].svg if pictures else ""
                published.write(name, records, self.published_page, EXPERIMENTS, first)
            except Exception as error:
                self.fail(name, error)
        return part

    def _show(self, name: str, records: Records) -> Part:
        try:
            return _part("published", FROM_RECORDS, name, records)
        except Exception as error:
            return Part("published", FROM_RECORDS, records.origin["extent"], (), None, self.fail(name, error))


def _part(kind: str, mark: str, name: str, records: Records) -> Part:
    section = _module(name).section(records.tables)
    return Part(kind, mark, records.origin["extent"], published.describe(records.origin), section)


def _module(name: str) -> Experiment:
    return cast("Experiment", importlib.import_module(f"experiments.{name}"))


def _summarize(name: str) -> Callable[[Path], Tables]:
    return cast("Callable[[Path], Tables]", _module(name).summarize)  # type: ignore[attr-defined]


def _command(name: str, scale: str, *, publish: bool) -> str:
    return f"python -m experiments.report scale={scale}{' publish=true' if publish else ''} only={name}"


def experiment_of(sweep: Path) -> str:
    """Return the experiment that made a sweep's folder.

    Raises:  UserError: it is not the folder of a finished sweep, or of one without figures
    """
    if not (sweep / "results.parquet").is_file():
        raise UserError(f"from: {str(sweep)!r} is not the folder of a finished sweep: it has no results.parquet")
    for file in (sweep / "multirun.yaml", sweep / ".hydra" / "hydra.yaml"):
        if file.is_file():
            name = OmegaConf.select(OmegaConf.load(file), "hydra.runtime.choices.experiment")
            break
    else:
        raise UserError(f"from: {str(sweep)!r} does not say which experiment made it: it has no multirun.yaml")
    if name not in EXPERIMENTS or not hasattr(_module(name), "summarize"):
        readable = [one for one in EXPERIMENTS if hasattr(_module(one), "summarize")]
        raise UserError(f"from: {str(sweep)!r} is a sweep of {name}; choose one of {', '.join(readable)}")
    return cast("str", name)


def check(config: DictConfig, given: Sequence[str]) -> None:
    """Refuse keys that do not go together, of which `given` were set on the command line, and a folder without sweep.

    Raises:  UserError: naming them
    """
    if config.only is not None and config.only not in EXPERIMENTS:
        raise UserError(str(unknown_choice("only", config.only, EXPERIMENTS)))
    if config["from"] is None:
        if config.publish and config.scale != "full":
            raise UserError(f"publish: true needs scale=full, not scale={config.scale}")
        return
    for name in ("scale", "only", "publish"):
        if name in (override.partition("=")[0] for override in given):
            raise UserError(
                f"{name}: {config[name]} would be ignored with from={config['from']}; leave out one of them"
            )
    experiment_of(Path(config["from"]))


def program(config: DictConfig, folder: Path) -> None:
    """Make the page that a configuration asks for, in a folder.

    Raises:  FailedJobsError: an experiment failed, after all others were made
    """
    start = time.monotonic()
    report = Report(folder, config.scale, config.publish, config.debug)
    if config["from"] is not None:
        note = "The figures of one sweep."
        report.add_sweep(Path(config["from"]))
    else:
        names = EXPERIMENTS if config.only is None else (config.only,)
        for number, name in enumerate(names):
            left = f"; then {', '.join(names[number + 1 :])}" if names[number + 1 :] else ""
            _say(f"{number + 1}/{len(names)} {name}{left}")
            report.add(name)
            _say(f"  {report.seconds[name]} s")
        note = NOTES[config.scale]
    page = folder / "index.html"
    write_text(page, render(note, report.chapters))
    failures = list(report.failures)
    outcome = {"commit": current_commit(), "packages": published.packages(), "failures": failures}
    write_json(folder / RUN_FILE, outcome | {"seconds": report.seconds, "wall_time": time.monotonic() - start})
    _tell(page, Path(config["from"] or folder), publish=config.publish)
    if failures:
        raise FailedJobsError("\n".join(failures))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell(page: Path, runs: Path, *, publish: bool) -> None:
    """Print where the page is, and how to look at the networks that were trained for it."""
    print(f"The page: {_shown(page)}")
    if publish:
        print(f"The published page: {_shown(published.FOLDER / 'index.html')}")
    if next(runs.rglob("events.out.tfevents*"), None) is not None:
        from bpexp.dashboard import hint

        print(f"To see the runs, start TensorBoard and open the link:\n{hint(runs)}")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(entry.main("report", __doc__, program=program, check=check))
