"""What TensorBoard shows of a run: one event file, written whole from the records. The only importer of TensorBoard.

Norms are stored as log10, since they span decades: a value below the floor is drawn there. Zeros, and values that are
not finite, are counted in curves of their own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams import api_pb2 as hparams
from tensorboard.plugins.hparams import plugin_data_pb2 as sessions

from bpexp import spec
from bpexp.dashboard import advice, event_file, heatmap, layout, tags
from bpexp.dashboard.cells import write_cells
from bpexp.dashboard.events import LARGEST, Events, log10, text
from bpexp.dashboard.links import hint, link, swept_values

__all__ = ["Events", "hint", "link", "remove_run", "write_cells", "write_run"]

MOST_STEPS = 500
"""Measured steps that are shown; of more, as many as this, evenly spread."""

AXES = ("model.depth", "model.activation", "init", "seed")
"""The hyperparameters that stand first where nothing was swept."""


class Grid(NamedTuple):
    """A measure of a run: values (layers, steps); one row where it belongs to the whole network."""

    layers: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class Records:
    """The records of a run at its measured steps, as arrays; the training loss of the steps between is left out."""

    def __init__(self, records: polars.DataFrame) -> None:
        step = records["step"].to_numpy()
        measured = _distinct(step[(records["measure"] != "train_loss").to_numpy()])
        evaluated = _distinct(step[(records["measure"] == "test_loss").to_numpy()])
        self.last = int(step.max(initial=0))
        shown = np.zeros(self.last + 1, dtype=bool)
        for steps in (measured, evaluated):
            shown[steps[_spread(len(steps), MOST_STEPS)]] = True
        shown[self.last] = True
        chosen = shown[step]
        self._measure = records["measure"].filter(polars.Series(chosen))
        self._steps, self._column = np.flatnonzero(shown), (shown.cumsum() - 1)[step[chosen]]
        self._value = records["value"].to_numpy()[chosen]
        layer = records["layer"].cast(polars.Float64).to_numpy()[chosen]  # nan where there is none
        self._of_layer, self._layer = ~np.isnan(layer), np.nan_to_num(layer).astype(np.int64)

    def of_layers(self, measure: str) -> Grid | None:
        """Return a measure of every layer; None where there is none."""
        return self._grid((self._measure == measure).to_numpy() & self._of_layer)

    def of_network(self, measure: str) -> Grid | None:
        """Return a measure of the whole network; None where there is none."""
        return self._grid((self._measure == measure).to_numpy() & ~self._of_layer)

    def _grid(self, chosen: NDArray[np.bool_]) -> Grid | None:
        places = np.flatnonzero(chosen)
        if not len(places):
            return None
        row, column = self._layer[places], self._column[places]
        layers, columns = _distinct(row), _distinct(column)
        values = np.full((layers[-1] + 1, columns[-1] + 1), np.nan)
        values[row, column] = self._value[places]
        return Grid(layers, self._steps[columns], values.take(layers, 0).take(columns, 1))


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the distinct ones of small numbers from 0, in order: in a tenth of the time of numpy's unique."""
    return np.flatnonzero(np.bincount(numbers))


def _spread(count: int, most: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def write_run(folder: Path, records: polars.DataFrame, config: spec.Config, row: Mapping[str, Any]) -> None:
    """Write the event file of a job's folder from its records, in place of an older one.

    `row` is the job's outcome: `status`, `verdict`, `backward_gain`, `trained`, the final measures, and
    `diverged_step` and `diverged_layer` of a network that diverged.
    """
    now, events, run = time.time(), Events(), Records(records)
    grids = {name: grid for name in tags.PROFILES if (grid := run.of_layers(name)) is not None}
    for name, grid in grids.items():
        _add_profiles(events, name, grid)
        _add_counts(events, name, grid)
    for name in tags.HEATMAPS:
        if name in grids:
            _, steps, values = grids[name]
            png = heatmap.draw(f"{name} of each layer and step", values, steps.tolist())
            events.image(f"heatmap/{name}", int(steps[-1]), png)
    if "grad_norm" in grids:
        _add_gradients(events, grids["grad_norm"], run.of_network("grad_norm"))
    _add_gates(events, run.of_layers("gate"))
    _add_network(events, run)
    _add_outcome(events, row, run.last)
    changes = _changes(grids.get("delta_rms"), config.model.depth)
    events.add(0, text("verdict", advice.card(row, config, changes)))
    classes = run.of_network("train_accuracy") is not None
    metrics = tags.METRICS if classes else tuple(tag for tag in tags.METRICS if not tag.startswith("accuracy"))
    for value in (*_hyperparameters(config, folder.name, row["status"], metrics, now), layout.of_run(classes)):
        events.add(0, value)
    event_file.write(folder, events.records(now))


def remove_run(folder: Path) -> None:
    """Remove the event file of a job that has new records, and is not shown."""
    for path in folder.glob(event_file.PATTERN):
        path.unlink()


def _add_profiles(events: Events, name: str, grid: Grid) -> None:
    """Add the norm against the layer at the first and at the last measured step: the curve's step is the layer."""
    layers = grid.layers.tolist()
    ends = {"first_step": 0} | ({"last_step": -1} if len(grid.steps) > 1 else {})
    for end, column in ends.items():
        events.scalars(f"by_layer/log10_{name}_{end}", layers, log10(grid.values[:, column]).tolist())


def _add_counts(events: Events, name: str, grid: Grid) -> None:
    for group, found in (("zeros", grid.values == 0), ("not_finite", ~np.isfinite(grid.values))):
        if found.any():
            events.scalars(f"{group}/{name}", grid.steps.tolist(), found.sum(0).tolist())


def _add_gradients(events: Events, grid: Grid, whole: Grid | None) -> None:
    steps, curves = grid.steps.tolist(), log10(grid.values)
    count = len(grid.layers)
    for place, layer in (("first", 0), ("middle", count // 2), ("last", count - 1)):
        events.scalars(f"gradients/log10_{place}_layer", steps, curves[layer].tolist())
    finite = np.isfinite(curves).any(0)
    band = np.where(np.isfinite(curves), curves, np.nan)[:, finite]
    if finite.any():
        for word, curve in _summarize(band).items():
            events.scalars(f"gradients/log10_{word}_of_layers", grid.steps[finite].tolist(), curve.tolist())
    if whole is not None:
        events.scalars("gradients/log10_whole_network", whole.steps.tolist(), log10(whole.values[0]).tolist())
        _add_counts(events, "grad_norm_of_network", whole)


def _summarize(band: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return what stands for the layers at each step, of values (layers, steps) with at least one number a step.

    numpy's nanquantile takes a step at a time, and a fifth of the time of the whole file.
    """
    ordered = np.sort(band, 0)  # NaN comes last
    last, steps = (~np.isnan(band)).sum(0) - 1, np.arange(band.shape[1])
    median = (ordered[last // 2, steps] + ordered[(last + 1) // 2, steps]) / 2
    return {"median": median, "smallest": ordered[0], "largest": ordered[last, steps]}


def _add_gates(events: Events, grid: Grid | None) -> None:
    if grid is None:
        return
    finite = np.isfinite(grid.values).any(0)
    if finite.any():
        band = np.where(np.isfinite(grid.values), grid.values, np.nan)[:, finite]
        for word, curve in _summarize(band).items():
            events.scalars(f"gates/{word}_of_layers", grid.steps[finite].tolist(), curve.tolist())


def _add_network(events: Events, run: Records) -> None:
    for part, word in tags.PARTS.items():
        for quantity in ("loss", "accuracy"):
            grid = run.of_network(f"{part}_{quantity}")
            if grid is None:
                continue
            events.scalars(f"{quantity}/{word}", grid.steps.tolist(), grid.values[0].tolist())
            missing = ~(np.abs(grid.values[0]) <= LARGEST)
            if missing.any():
                events.scalars(f"not_finite/{part}_{quantity}", grid.steps.tolist(), missing.astype(float).tolist())
    clipped = run.of_network("clip_fraction")
    if clipped is not None:
        events.scalars("clipping/clip_fraction", clipped.steps.tolist(), clipped.values[0].tolist())


def _add_outcome(events: Events, row: Mapping[str, Any], last: int) -> None:
    outcome = {
        "verdict": tags.VERDICTS.get(str(row.get("verdict"))),
        "backward_gain": row.get("backward_gain"),
        "trained": row.get("trained"),
        "diverged_step": row.get("diverged_step"),
        "diverged_layer": row.get("diverged_layer"),
    }
    for name, value in outcome.items():
        if value is not None:
            events.scalars(f"outcome/{name}", [last], [float(value)])


def _changes(deltas: Grid | None, depth: int) -> list[advice.Change]:
    if deltas is None:
        return []
    columns = [0, -1] if len(deltas.steps) > 1 else [0]
    with np.errstate(all="ignore"):
        factors = deltas.values[0] / deltas.values[deltas.layers.tolist().index(depth)]
    return [advice.Change(int(deltas.steps[column]), float(factors[column])) for column in columns]


def _hyperparameters(
    config: spec.Config, job: str, status: str, metrics: tuple[str, ...], now: float
) -> list[Summary.Value]:
    """Return the three summaries of the HParams table: what there is, this run's values, how it ended."""
    values = {
        name.removesuffix(".name"): value
        for name, value in spec.flatten(config).items()
        if value is not None and not name.startswith(spec.NOT_IDENTITY)
    }
    start = sessions.SessionStartInfo(start_time_secs=now)
    for name, value in values.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    ended = hparams.STATUS_FAILURE if status == "diverged" else hparams.STATUS_SUCCESS
    end = sessions.SessionEndInfo(status=ended, end_time_secs=now)
    experiment = _experiment(frozenset(swept_values(job)), metrics)
    parts = {
        "experiment": sessions.HParamsPluginData(experiment=experiment),
        "session_start_info": sessions.HParamsPluginData(session_start_info=start),
        "session_end_info": sessions.HParamsPluginData(session_end_info=end),
    }
    return [_hparams_value(name, content) for name, content in parts.items()]


def _hparams_value(name: str, content: sessions.HParamsPluginData) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    empty = TensorProto(dtype="DT_FLOAT", tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    return Summary.Value(tag=f"_hparams_/{name}", tensor=empty, metadata=metadata)


@functools.lru_cache
def _experiment(words: frozenset[str], metrics: tuple[str, ...]) -> hparams.Experiment:
    """Return the columns of the HParams table: what was swept first, and the outcomes."""
    infos = []
    for name, key in spec.keys().items():
        if name.startswith(spec.NOT_IDENTITY):
            continue
        short = name.removesuffix(".name")
        kind = {bool: hparams.DATA_TYPE_BOOL, str: hparams.DATA_TYPE_STRING}.get(key.type, hparams.DATA_TYPE_FLOAT64)
        swept = short.rpartition(".")[2] in words if words else short in AXES
        infos.append(hparams.HParamInfo(name=short, description=key.meaning, type=kind, differs=swept))
    columns = [
        hparams.MetricInfo(name=hparams.MetricName(tag=tag), display_name=tag, description=tags.describe(tag))
        for tag in metrics
    ]
    return hparams.Experiment(hparam_infos=infos, metric_infos=columns)
