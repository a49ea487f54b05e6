"""What TensorBoard shows of a large sweep: a run for each cell, the mean over its networks with an interval.

A cell is what networks of a sweep have in common but for the seed. Norms are averaged as log10, as they are shown.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars

from bpexp import spec
from bpexp.dashboard import event_file, layout, tags
from bpexp.dashboard.events import LARGEST, Events, text
from bpexp.statistics import LEVEL
from bpexp.sweep.job import LONGEST_NAME
from bpexp.sweep.results import RECORDS_FILE
from bpexp.sweep.shown import spread

MOST_CELLS = 64
"""Cells that have a run: TensorBoard is slow with more."""

MOST_ROWS = 500
"""Cells that the table names."""

_OF_NETWORK = ("grad_norm", *(f"{part}_{quantity}" for part in tags.PARTS for quantity in ("loss", "accuracy")))
_KEY = ("measure", "layer", "step")


class Cell(NamedTuple):
    """Networks that differ in the seed alone: a name from what was swept, and their rows of the results."""

    name: str
    values: tuple[Hashable, ...]
    rows: polars.DataFrame


def write_cells(folder: Path, results: polars.DataFrame, most: int = MOST_CELLS) -> int:
    """Write a run for each of at most `most` cells of a sweep, in place of those of an earlier command.

    Returns: how many there are; none for a sweep whose cells have one network each, which shows itself
    """
    cells = split_cells(results)
    chosen = spread([cell.values for cell in cells], most) if any(len(cell.rows) > 1 for cell in cells) else []
    written: dict[str, set[str]] = {}
    for place in chosen:
        files = [folder / job / RECORDS_FILE for job in cells[place].rows["job"]]
        if files := [file for file in files if file.exists()]:
            events = Events()
            written[cells[place].name] = add_means(events, average(files))
            _write(folder / tags.CELLS / cells[place].name, events)
    _remove_others(folder / tags.CELLS, set(written))
    if written:
        events, charts = Events(), Events()
        events.add(0, text("cells", table(cells, set(written))))
        charts.add(0, layout.of_cells(set.union(*written.values())))
        _write(folder / tags.CELLS, events)
        _write(folder / tags.CHARTS, charts)
    else:
        _remove(folder / tags.CHARTS)
    return len(written)


def _write(folder: Path, events: Events) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    event_file.write(folder, events.records(time.time()))


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove the runs of an earlier command; what else is in the folder stays."""
    for run in [path for path in folder.glob("*/") if path.name not in names] + ([] if names else [folder]):
        _remove(run)


def _remove(run: Path) -> None:
    for file in run.glob(event_file.PATTERN):
        file.unlink()
    with contextlib.suppress(OSError):
        run.rmdir()


def split_cells(results: polars.DataFrame) -> list[Cell]:
    """Return the cells of a sweep in the order of its jobs, named by the values of the keys that were swept.

    A name ends in how many networks there are, as that of a job ends in its identity.
    """
    declared, own = spec.keys(), (*spec.NOT_IDENTITY, "seed")
    keys = [name.removesuffix(".name") for name in declared if not name.startswith(own)]
    swept = [key for key in keys if results[key].n_unique() > 1 and not _follows(results, key)]
    parts = results.partition_by(swept, maintain_order=True) if swept else [results]
    cells, names = [], set[str]()
    for rows in parts:
        values = rows.select(swept).row(0) if swept else ()
        pairs = (f"{key.rpartition('.')[2]}={_shown(value)}" for key, value in zip(swept, values, strict=True))
        readable = re.sub(r"[^\w.,=+-]+", "_", ",".join(pairs))[:LONGEST_NAME]
        count = f"{len(rows)}_networks"
        name = f"{readable}-{count}" if readable else count
        while name in names:  # a long one was cut
            name += "_"
        names.add(name)
        cells.append(Cell(name, values, rows))
    return cells


def _follows(results: polars.DataFrame, key: str) -> bool:
    """Return whether the option of its group decides a key, as init=pytorch does init.bias_std."""
    group = key.partition(".")[0]
    if group == key or group not in results.columns:
        return False
    return results.select(group, key).n_unique() == results[group].n_unique()


def _shown(value: object) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def average(files: Sequence[Path]) -> polars.DataFrame:
    """Return the means over networks, with the ends of their 95 % interval, for each measure, layer and step.

    `layer` is null for the whole network. `step` is null for a network's last one with measures of layers, wherever
    that is. `count` says how many networks are in a mean: those that are that far, and finite there. Of the layers
    between step 0 and the last are the first, the middle and the output's gradient.
    """
    layer, step, size, measure = (
        polars.col("layer"),
        polars.col("step"),
        polars.col("value").abs(),
        polars.col("measure"),
    )
    of_layers = layer.is_not_null()
    shown = (of_layers & measure.is_in(tags.PROFILES)) | (~of_layers & measure.is_in(_OF_NETWORK))
    logged = of_layers | (measure == "grad_norm")
    value = polars.when(size <= LARGEST).then(
        polars.when(logged).then(size.log10().clip(tags.FLOOR)).otherwise(polars.col("value"))
    )
    # To read all first is faster than to filter while reading.
    everything = polars.read_parquet(list(files), include_file_paths="network")
    records = everything.filter(shown).select("network", *_KEY, value=value)
    layered = records.filter(of_layers)
    ends = layered.filter(step == step.max().over("network")).with_columns(step=polars.lit(None, polars.Int64))
    output = layer.max()
    places = (layer == 1) | (layer == output // 2 + 1) | (layer == output)
    curves = layered.filter((step == 0) | ((measure == "grad_norm") & places))
    measured = records.filter(layer.is_null()).filter(step.is_in(layered["step"].unique().implode()))
    found = (
        polars.concat([curves, ends, measured])
        .group_by(_KEY)
        .agg(mean=polars.col("value").mean(), std=polars.col("value").std(), count=polars.col("value").count())
    )
    return _with_interval(found.filter(polars.col("count") > 0)).sort(_KEY)


def _with_interval(found: polars.DataFrame) -> polars.DataFrame:
    """Add `low` and `high`, null for a single network."""
    from scipy.special import stdtrit

    count, std = found["count"].to_numpy().astype(float), found["std"].cast(polars.Float64).to_numpy()
    with np.errstate(all="ignore"):
        half = stdtrit(count - 1, (1 + LEVEL) / 2) * std / np.sqrt(count)
    width = polars.Series("half", half).fill_nan(None)
    return found.with_columns(low=found["mean"] - width, high=found["mean"] + width)


def add_means(events: Events, means: polars.DataFrame) -> set[str]:
    """Add the curves of a cell; return their tags."""
    found: set[str] = set()

    def add(tag: str, axis: str, rows: polars.DataFrame) -> None:
        if rows.is_empty():
            return
        found.add(f"mean_{tag}")
        events.scalars(f"mean_{tag}", rows[axis].to_list(), rows["mean"].to_list())
        rows = rows.drop_nulls("low")
        for end in ("low", "high"):
            events.scalars(tags.interval(tag, end), rows[axis].to_list(), rows[end].to_list())

    layer, step, measure = polars.col("layer"), polars.col("step"), polars.col("measure")
    trained = (means["step"].max() or 0) != 0
    for name in tags.PROFILES:
        of_layers = means.filter((measure == name) & layer.is_not_null())
        add(f"by_layer/log10_{name}_first_step", "layer", of_layers.filter(step == 0))
        if trained:
            add(f"by_layer/log10_{name}_last_step", "layer", of_layers.filter(step.is_null()))
    gradients = means.filter((measure == "grad_norm") & step.is_not_null())
    output = gradients["layer"].max()
    if isinstance(output, int):
        for place, number in (("first", 1), ("middle", output // 2 + 1), ("last", output)):
            add(f"gradients/log10_{place}_layer", "step", gradients.filter(layer == number))
    add("gradients/log10_whole_network", "step", gradients.filter(layer.is_null()))
    for part, word in tags.PARTS.items():
        for quantity in ("loss", "accuracy"):
            add(f"{quantity}/{word}", "step", means.filter(measure == f"{part}_{quantity}"))
    losses = means.filter(measure == "train_loss")
    events.scalars("cell/networks", losses["step"].to_list(), losses["count"].to_list())
    return found


def table(cells: Sequence[Cell], shown: set[str]) -> str:
    """Return what became of every cell, and which have a run, as Markdown."""
    listed = f", of which the first {MOST_ROWS} are listed" if len(cells) > MOST_ROWS else ""
    lines = [
        f"{len(shown)} of {len(cells)} cells have a run{listed}. Losses and accuracies are means of the final ones.",
        "",
        "| cell | has a run | networks | failed, diverged | trained | train loss | test loss | test accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    listed_cells = (
        (cell.name, "yes" if cell.name in shown else "", *_outcome(cell.rows)) for cell in cells[:MOST_ROWS]
    )
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in listed_cells)])


def _outcome(rows: polars.DataFrame) -> list[str]:
    counts: Mapping[str, int] = dict(rows["status"].value_counts().rows())
    means: list[Any] = [rows[name].mean() for name in ("train_loss", "test_loss", "test_accuracy")]
    return [
        str(len(rows)),
        f"{counts.get('failed', 0)}, {counts.get('diverged', 0)}",
        str(int(rows["trained"].sum())),
        *("" if mean is None else f"{mean:.4g}" for mean in means),
    ]
