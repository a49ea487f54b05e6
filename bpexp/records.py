"""Tidy records on disk: what a network showed, a row for each step, layer and measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars
from numpy.typing import NDArray

from bpexp.spec import UserError
from bpexp.sweep.files import write_parquet
from bpexp.sweep.results import RECORDS_FILE

if TYPE_CHECKING:
    from bpexp.train import Divergence, Snapshot

RESULTS_FILE = "results.parquet"

SCHEMA = {
    "step": polars.Int64(),
    "layer": polars.Int64(),
    "layer_name": polars.String(),
    "measure": polars.String(),
    "value": polars.Float64(),
}
"""`layer` and `layer_name` are null for a measure of the whole network."""


def layer_name(layer: int, depth: int) -> str:
    """Return how a layer of an MLP is called: hidden_1 to hidden_L, and output."""
    return f"hidden_{layer}" if layer <= depth else "output"


class Recorder:
    """Turns the snapshots of R networks into the records of each, up to the step at which it finished or diverged.

    A network that is less deep than others gets the records of the layers that it has, and its output layer the number
    behind them.
    """

    def __init__(self, depths: Sequence[int]) -> None:
        """Take the hidden layers of each network."""
        networks = len(depths)
        self.depths, self.depth = depths, max(depths)
        self.ended = np.zeros(networks, dtype=bool)
        self.last_step = np.zeros(networks, dtype=int)
        self.diverged: dict[int, Divergence] = {}
        # All columns but the values, which alone differ between networks.
        self.steps: list[int] = []
        self.layers: list[int | None] = []
        self.measures: list[str] = []
        self.values: list[NDArray[np.float64]] = []  # (rows, R)

    def add(self, snapshot: Snapshot) -> None:
        """Take the next snapshot."""
        last, count = snapshot.step, len(snapshot.train_loss)
        self._add_rows(range(last + 1 - count, last + 1), [None] * count, ["train_loss"] * count)
        self.values.append(snapshot.train_loss)
        layers: list[int | None] = [None] * len(snapshot.networks)
        measures, values = list(snapshot.networks), [np.stack(list(snapshot.networks.values()))]
        for name, (numbers, of_layers) in snapshot.layers.items():
            layers += numbers
            measures += [name] * len(numbers)
            values.append(of_layers.T)
        self._add_rows([last] * len(layers), layers, measures)
        self.values += values
        self.diverged |= snapshot.diverged
        self.last_step[~self.ended] = last
        for network, divergence in snapshot.diverged.items():
            self.last_step[network] = divergence.step
        self.ended[[*snapshot.diverged]] = True
        self.ended |= snapshot.finished

    def _add_rows(self, steps: Sequence[int], layers: Sequence[int | None], measures: Sequence[str]) -> None:
        self.steps += steps
        self.layers += layers
        self.measures += measures

    def records(self) -> Iterator[polars.DataFrame]:
        """Yield the records of each network, by step, the whole network's first."""
        names = {layer: layer and layer_name(layer, self.depth) for layer in set(self.layers)}
        columns = {"step": self.steps, "layer": self.layers, "layer_name": [names[layer] for layer in self.layers]}
        schema = {name: kind for name, kind in SCHEMA.items() if name != "value"}
        places = polars.DataFrame(columns | {"measure": self.measures}, schema=schema)
        values = np.concatenate(self.values)
        order = places.select(polars.arg_sort_by("step", polars.col("layer").fill_null(0), maintain_order=True))
        rows = order.to_series().to_numpy()
        places, values = places[rows].rechunk(), np.ascontiguousarray(values.T[:, rows])
        counts = np.searchsorted(places["step"].to_numpy(), self.last_step, side="right")
        for network, count in enumerate(counts.tolist()):
            frame = places.head(count).hstack([polars.Series("value", values[network, :count])])
            yield self._own_layers(frame, self.depths[network])

    def _own_layers(self, frame: polars.DataFrame, depth: int) -> polars.DataFrame:
        """Leave the layers of a network of this depth, numbered as its own."""
        if depth == self.depth:
            return frame
        layer, output = polars.col("layer"), self.depth + 1
        own = frame.filter(layer.is_null() | (layer <= depth) | (layer == output))
        return own.with_columns(polars.when(layer == output).then(depth + 1).otherwise(layer).alias("layer"))


def write_records(folder: Path, records: polars.DataFrame) -> None:
    """Write a job's records, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    # Statistics serve to skip row groups, and there is one; lz4 takes half of the default's time.
    write_parquet(folder / RECORDS_FILE, records, compression="lz4", statistics=False)


def read_records(folder: Path) -> polars.DataFrame:
    """Return the records of a job.

    Raises:  UserError: there are none
    """
    return _read(folder / RECORDS_FILE, SCHEMA)


def read_results(folder: Path) -> polars.DataFrame:
    """Return the results of a sweep, a row for each job of its last command.

    Raises:  UserError: there are none
    """
    return _read(folder / RESULTS_FILE, ("job", "status"))


def _read(path: Path, columns: Iterable[str]) -> polars.DataFrame:
    try:
        frame = polars.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name} here; name the folder of a finished command") from None
    except (polars.exceptions.ComputeError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    for column in columns:
        if column not in frame.columns:
            raise UserError(f"{path}: has no column {column!r}; name the folder of a finished command")
    return frame


def read_sweep(
    folder: Path, measures: Sequence[str] | None = None, steps: Literal["all", "first", "last"] = "all"
) -> polars.DataFrame:
    """Return the records of all jobs of a sweep that have some, with the column `job` in front.

    measures: those to read, or all; steps: every step, step 0, or each job's last one with measures of layers
    """
    jobs = read_results(folder)["job"].to_list()
    frames = []
    for job in jobs:
        path = job_folder(folder, job) / RECORDS_FILE
        if not path.exists():
            continue
        frame = _read(path, SCHEMA)
        if steps == "first":
            frame = frame.filter(polars.col("step") == 0)
        elif steps == "last":
            frame = frame.filter(polars.col("step") == frame.filter(polars.col("layer").is_not_null())["step"].max())
        if measures is not None:
            frame = frame.filter(polars.col("measure").is_in(list(measures)))
        frames.append(frame.select(polars.lit(job).alias("job"), *SCHEMA))
    return polars.concat(frames) if frames else polars.DataFrame(schema={"job": polars.String(), **SCHEMA})


def job_folder(folder: Path, job: str) -> Path:
    """Return a job's folder: below the sweep's, or the folder itself after a single run."""
    return folder / job if (folder / job).is_dir() else folder
