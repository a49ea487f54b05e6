"""Where to look: the command that starts TensorBoard, and the address that opens it on what matters."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bpexp.dashboard import event_file, tags
from bpexp.records import RESULTS_FILE, read_results

EXPERIMENT_ID = "defaultExperimentId"
"""What TensorBoard calls the experiment of a log directory in its addresses."""


COLOURS = 7
"""How many TensorBoard has before it takes them again."""


def swept_values(job: str) -> dict[str, str]:
    """Return the swept values by the last words of their keys, as a job's folder is named by them."""
    pairs = (pair.partition("=") for pair in job.rpartition("-")[0].split(","))
    return {word: value for word, equals, value in pairs if equals}


def link(logdir: Path, folder: Path, port: int = 6006) -> str:
    """Return the address at which a TensorBoard on `logdir` shows the runs of `folder`: what matters, unsmoothed.

    The profiles and the loss are pinned for all runs, coloured by what was swept; for a single run its heatmaps and
    the gradients of its first, middle and last layer as well. Of a sweep that has them, the runs are the cells'.
    """
    runs = _runs(logdir, folder)
    cells = [run for run in runs if _is_cell(run)]
    runs = cells or runs
    pins: list[dict[str, Any]] = [
        {"plugin": "scalars", "tag": tag} for tag in (tags.PINS_OF_CELLS if cells else tags.PINS)
    ]
    if len(runs) == 1 and not cells:
        pins += [{"plugin": "scalars", "tag": tag} for tag in tags.PINS_OF_ONE_RUN]
        run = f"{EXPERIMENT_ID}/{runs[0]}"
        pins += [{"plugin": "images", "tag": f"heatmap/{name}", "runId": run, "sample": 0} for name in tags.HEATMAPS]
    query = {"pinnedCards": json.dumps(pins, separators=(",", ":")), "smoothing": "0"}
    if colours := _colours([run.rpartition("/")[2] for run in runs]):
        query["runColorGroup"] = f"regex:{colours}"
    if len(runs) == 1 and not cells:
        query["runFilter"] = f"{re.escape(runs[0].rpartition('-')[2])}$"
    elif cells or folder != logdir:
        inside = "" if folder == logdir else f"{re.escape(folder.relative_to(logdir).as_posix())}/"
        query["runFilter"] = f"^{inside}" + (f".*{tags.CELLS}/" if cells else "")
    parts = "&".join(f"{name}={quote(value, safe=':,/')}" for name, value in query.items())
    return f"http://localhost:{port}/?{parts}#timeseries"


def _is_cell(run: str) -> bool:
    return f"/{tags.CELLS}/" in f"/{run}"


def _runs(logdir: Path, folder: Path) -> list[str]:
    return sorted({file.parent.relative_to(logdir).as_posix() for file in folder.rglob(event_file.PATTERN)})


def _colours(jobs: Sequence[str]) -> str:
    """Return the expression whose groups tell the colours apart: what every name has but seed, and depth unless alone.

    Of more groups than there are colours those of the first words are told apart. A run that the expression does not
    match would be grey.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        for word, value in swept_values(job).items():
            values[word].add(value)
    everywhere = set.intersection(*[set(swept_values(job)) for job in jobs]) if jobs else set()
    words = [word for word, found in values.items() if len(found) > 1 and word in everywhere - {"seed"}]
    words = [word for word in words if word != "depth"] or words
    while len(words) > 1 and len({tuple(swept_values(job)[word] for word in words) for job in jobs}) > COLOURS:
        words.pop()
    # A value may hold a hyphen of its own; the last one ends at the identity.
    last = {word for job in jobs for word in list(swept_values(job))[-1:]}
    return ".*".join(f"{word}=(.+?)" + (r"(?:,|-\w+$)" if word in last else ",") for word in words)


def hint(folder: Path) -> str:
    """Return the lines that tell how to see the runs of `folder`: the command, and the link to open then.

    Of a sweep with runs of cells a third says how to see their means with intervals: Custom Scalars takes no filter
    from a link, and of more than 40 runs it shows none. Without any event file the text is empty.
    """
    if next(folder.rglob(event_file.PATTERN), None) is None:
        return ""
    logdir = _logdir(folder.absolute())
    here = Path.cwd()
    shown = logdir.relative_to(here) if logdir.is_relative_to(here) else logdir
    return (
        f"tensorboard --logdir {shlex.quote(str(shown))}  # {_count_shown(folder)}more under Custom Scalars, Images, "
        f"Text, HParams\n{link(logdir, folder.absolute())}{_hint_of_cells(folder)}"
    )


def _hint_of_cells(folder: Path) -> str:
    if not (names := [path.name for path in _cells(folder)]):
        return ""
    first = re.sub(r"([.+])", r"\\\1", names[0].rpartition("-")[0])
    pattern = f"{tags.CELLS}/{first}-" if first else f"{tags.CELLS}/"
    return f"\nCustom Scalars (mean and 95 % interval over the seeds): filter runs by {pattern}"


def _cells(folder: Path) -> list[Path]:
    """Return the folders of the runs of cells."""
    return sorted(path for path in (folder / tags.CELLS).glob("*/") if any(path.glob(event_file.PATTERN)))


def _count_shown(folder: Path) -> str:
    """Return how many of the networks of a sweep's last command are shown, where that is not all."""
    if not (folder / RESULTS_FILE).exists():
        return ""
    jobs = read_results(folder)["job"].to_list()
    shown = sum(any((folder / job).glob(event_file.PATTERN)) for job in jobs)
    cells = len(_cells(folder))
    means = f" and the means of {cells} cells" if cells else ""
    return f"{shown} of {len(jobs)} networks{means}; " if cells or shown < len(jobs) > 1 else ""


def _logdir(folder: Path) -> Path:
    """Return `outputs`, where `folder` is inside it; else the folder, or the one above where it is a run itself."""
    for parent in folder.parents:
        if parent.name == "outputs":
            return parent
    return folder.parent if any(folder.glob(event_file.PATTERN)) else folder
