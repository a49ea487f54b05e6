"""Summaries of a sweep: what its jobs have in common but for the seed is a cell, and a cell is a row.

Three tables, small enough to keep: cells (a row each), profiles (norm against layer at step 0) and training (first,
middle and last layer over the steps). They are all that the figures need.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from bpexp import spec
from bpexp.statistics import geometric_interval, mean_interval
from bpexp.threads import one_thread
from bpexp.verdict import judge

if TYPE_CHECKING:
    from bpexp.theory import Prediction, Simulation

CELL_KEYS = ("model.depth", "model.activation", "init")
"""What always names a cell; any other key that was swept does so as well."""

VERDICTS = ("vanishing", "healthy", "exploding")
PROFILE_MEASURES = ("delta_rms", "grad_norm", "activation_rms")
TRAINING_MEASURES = ("delta_rms", "train_loss", "train_accuracy")
FINAL_MEASURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")

LENGTHS = 64
"""Input lengths that the prediction averages over, each the mean of an equal share of the sorted samples."""


def config_keys(results: polars.DataFrame) -> list[str]:
    """Return the columns that are keys of the configuration."""
    declared = spec.keys()
    names = [name.removesuffix(".name") for name in declared]
    return [name for name in names if name in results.columns and not name.startswith(spec.NOT_IDENTITY)]


def cell_keys(results: polars.DataFrame) -> list[str]:
    """Return the keys that name a cell: depth, activation, initialization and what else was swept but the seed.

    Edge:    a key that has one value an option of its group, such as init.bias_std under init=pytorch, is no axis
    """
    found = list(CELL_KEYS)
    for name in config_keys(results):
        if name in (*CELL_KEYS, "seed") or results[name].n_unique() == 1:
            continue
        group = name.partition(".")[0]
        per_option = (
            results.group_by(group).agg(polars.col(name).n_unique())[name]
            if group != name and group in results.columns
            else None
        )
        if per_option is None or per_option.max() != 1:
            found.append(name)
    return found


def number_cells(results: polars.DataFrame) -> polars.DataFrame:
    """Return the results with the column `cell`, numbered in the order of first appearance, and `series`.

    A series is what a colour stands for: the initialization, with the values of further swept keys; those alone where
    all have one initialization.
    """
    keys = cell_keys(results)
    extra = [name for name in keys if name not in CELL_KEYS]
    parts: list[polars.Expr] = [] if extra and results["init"].n_unique() == 1 else [polars.col("init")]
    parts += [
        polars.format(f"{name.rpartition('.')[2]}={{}}", polars.col(name).cast(polars.String).fill_null("null"))
        for name in extra
    ]
    order = results.select(keys).unique(maintain_order=True).with_row_index("cell")
    return results.join(order, on=keys, how="left", nulls_equal=True, maintain_order="left").with_columns(
        polars.concat_str(parts, separator=", ").alias("series"), polars.col("cell").cast(polars.Int64)
    )


def summarize_cells(
    numbered: polars.DataFrame,
    predictions: Mapping[int, Prediction | None],
    simulations: Mapping[int, Simulation | None] | None = None,
) -> polars.DataFrame:
    """Return a row for each cell: its gain over the seeds, what was predicted, its verdicts, what trained.

    gain, gain_low, gain_high: geometric mean of the seeds' backward gains with its 95 % interval, from `gain_seeds`
    of them; NaN where none has one. `trained` is the fraction of the seeds, a failed one among them.
    predicted_gain: that of infinite width. finite_gain, band_low, band_high: of simulated networks of this width, and
    where the mean of the seeds should lie with 99 % probability; p_value: how likely it is as far off as it is.
    """
    simulations = simulations or {}
    rows = []
    for (cell,), jobs in numbered.group_by("cell", maintain_order=True):
        first = jobs.row(0, named=True)
        gain = geometric_interval(jobs["backward_gain"])
        prediction = predictions.get(int(cell))
        status, verdict = jobs["status"].to_list(), jobs["verdict"].to_list()
        row: dict[str, Any] = {"cell": cell, **{name: first[name] for name in cell_keys(numbered)}}
        row |= {"series": first["series"], "seeds": len(jobs)}
        row |= {name: status.count(name) for name in ("diverged", "failed")}
        row |= {name: verdict.count(name) for name in VERDICTS}
        row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "gain_seeds": gain.count}
        row["predicted_gain"] = math.nan if prediction is None else prediction.backward_gain
        row["predicted_verdict"] = predicted_verdict(prediction)
        row |= band_columns(simulations.get(int(cell)), jobs["backward_gain"])
        row["trained"] = sum(jobs["trained"].fill_null(value=False)) / len(jobs)
        row |= {name: mean_interval(jobs[name]).mean for name in FINAL_MEASURES}
        rows.append(row)
    return polars.DataFrame(rows, infer_schema_length=None, schema_overrides={"predicted_verdict": polars.String})


def band_columns(simulation: Simulation | None, gains: polars.Series) -> dict[str, float]:
    """Return what a simulation says of the mean of these gains, NaN where it says nothing."""
    finite = gains.filter(gains.is_finite() & (gains > 0)).to_list() if gains.dtype.is_float() else []
    if simulation is None:
        return dict.fromkeys(("finite_gain", "band_low", "band_high", "p_value"), math.nan)
    band = simulation.band(finite)
    return {"finite_gain": band.mean, "band_low": band.low, "band_high": band.high, "p_value": band.p_value}


def predicted_verdict(prediction: Prediction | None) -> str | None:
    """Return the verdict on a predicted gradient, None where there is none."""
    if prediction is None or not np.isfinite(prediction.delta_rms).all():
        return None
    return judge(prediction.delta_rms).word


@one_thread()
def predict_cells(numbered: polars.DataFrame) -> dict[int, Prediction | None]:
    """Return the mean-field prediction of every cell, from its own sizes, gain, biases and training data.

    Edge:    None where theory has no answer, where the data that the cell learnt is no longer in its folder, and where
             all networks failed; failed ones are left out, since their values may be impossible; a key that older
             results have not is at its default
    """
    found: dict[int, Prediction | None] = dict.fromkeys(numbered["cell"].unique(maintain_order=True))
    ran = numbered.filter(numbered["status"] != "failed")
    for (cell,), jobs in ran.group_by("cell", maintain_order=True):
        found[int(cell)] = predict_cell(spec.defaults() | jobs.row(0, named=True), tuple(sorted(set(jobs["seed"]))))
    return found


def predict_cell(one: Mapping[str, Any], seeds: tuple[int, ...]) -> Prediction | None:
    """Return the prediction of one cell, given the values of its keys; None as `predict_cells` says."""
    from bpexp.data import describe
    from bpexp.theory import NoPredictionError, predict

    try:
        data = describe(one["data"], one["data.root"])
        lengths = input_lengths(data.name, one["data.root"], one["data.train_size"], seeds)
    except ValueError:
        return None
    try:
        return predict(
            one["model.activation"],
            one["init"],
            one["model.depth"],
            one["model.width"],
            data.features,
            data.outputs,
            one["init.gain"],
            one["init.bias_std"],
            lengths,
            one["model.residual"],
            norm=one["model.norm"],
            gate=one["init.gate"],
            dropout=one["model.dropout"],
            input_dropout=one["model.input_dropout"],
        )
    except NoPredictionError:
        return None


@functools.cache
def input_lengths(data: str, root: str | None, train_size: int | None, seeds: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return LENGTHS mean squares of training inputs that stand for those of all the seeds' training samples."""
    import torch

    from bpexp.data import load

    parts = [
        load(data, seed, root=root, train_size=train_size, dtype=torch.float64).x_train.square().mean(1)
        for seed in seeds
    ]
    lengths = np.sort(torch.cat(parts).numpy())
    return np.array([part.mean() for part in np.array_split(lengths, min(LENGTHS, len(lengths)))])


def _spread(value: str = "value") -> list[polars.Expr]:
    """Median, smallest and largest of the finite values, and how many are not."""
    column = polars.col(value)
    finite = column.filter(column.is_finite())
    return [
        finite.median().alias("median"),
        finite.min().alias("low"),
        finite.max().alias("high"),
        polars.len().cast(polars.Int64).alias("seeds"),
        (column == 0).sum().cast(polars.Int64).alias("zeros"),
        (~column.is_finite()).sum().cast(polars.Int64).alias("nonfinite"),
    ]


def summarize_profiles(
    records: polars.DataFrame,
    numbered: polars.DataFrame,
    predictions: Mapping[int, Prediction | None],
    simulations: Mapping[int, Simulation | None] | None = None,
) -> polars.DataFrame:
    """Return norm against layer at step 0: cell, measure, layer; median, low, high over `seeds`; predicted.

    `predicted` is null where nothing is predicted; that of delta_rms, which is relative to layer depth, is anchored
    there on the measured median. Between `band_low` and `band_high` one network of this width should lie with 99 %
    probability; null where nothing was simulated.
    """
    first = records.filter((records["step"] == 0) & records["layer"].is_not_null())
    first = first.filter(first["measure"].is_in(PROFILE_MEASURES)).join(numbered.select("job", "cell"), on="job")
    table = first.group_by("cell", "measure", "layer").agg(_spread()).sort("cell", "measure", "layer")
    depths = dict(numbered.select("cell", "model.depth").iter_rows())
    rows = [
        (cell, measure, layer + 1, float(value))
        for cell, prediction in predictions.items()
        if prediction is not None
        for measure, values in (
            ("activation_rms", prediction.activation_rms),
            ("delta_rms", prediction.delta_rms * _anchor(table, cell, depths[cell])),
        )
        for layer, value in enumerate(values)
    ]
    schema = {"cell": polars.Int64, "measure": polars.String, "layer": polars.Int64, "predicted": polars.Float64}
    predicted = polars.DataFrame(rows, schema=schema, orient="row")
    keys = ["cell", "measure", "layer"]
    return table.join(predicted, on=keys, how="left", maintain_order="left").join(
        band_table(simulations or {}), on=keys, how="left", maintain_order="left"
    )


def band_table(simulations: Mapping[int, Simulation | None]) -> polars.DataFrame:
    """Return the ends of what one network should measure: cell, measure, layer, band_low, band_high."""
    rows = [
        (cell, measure, layer, float(low), float(high))
        for cell, simulation in simulations.items()
        if simulation is not None
        for measure in ("activation_rms", "delta_rms")
        for layer, (low, high) in enumerate(zip(*simulation.spread(measure), strict=True), 1)
    ]
    schema = {"cell": polars.Int64, "measure": polars.String, "layer": polars.Int64}
    schema |= dict.fromkeys(("band_low", "band_high"), polars.Float64)
    return polars.DataFrame(rows, schema=schema, orient="row")


def _anchor(table: polars.DataFrame, cell: int, depth: int) -> float:
    measured = table.filter(cell=cell, measure="delta_rms", layer=depth)["median"]
    return math.nan if measured.is_empty() or measured[0] is None else float(measured[0])


def summarize_training(records: polars.DataFrame, numbered: polars.DataFrame, cells: Sequence[int]) -> polars.DataFrame:
    """Return what chosen cells do over the steps: cell, measure, layer (null for the network), step; as profiles.

    Layers are the first, the middle and the last hidden one.
    """
    jobs = numbered.filter(numbered["cell"].is_in(list(cells))).select("job", "cell", "model.depth")
    depth, layer = polars.col("model.depth"), polars.col("layer")
    shown = layer.is_null() | (layer == 1) | (layer == (depth + 1) // 2) | (layer == depth)
    table = records.filter(records["measure"].is_in(TRAINING_MEASURES)).join(jobs, on="job").filter(shown)
    return table.group_by("cell", "measure", "layer", "step").agg(_spread()).sort("cell", "measure", "layer", "step")


def summarize_settings(results: polars.DataFrame) -> polars.DataFrame:
    """Return what a sweep varied, averaged over and kept fixed: role, name, text. Fixed values are its caveats."""
    cells = cell_keys(results)
    rows = [("varied", name, f"{name} = {_values(results[name])}") for name in cells]
    rows.append(("averaged over", "seed", f"seed = {_values(results['seed'])}: split, weights, batches and dropout"))
    for name in config_keys(results):
        if name in (*cells, "seed"):
            continue
        by_init = results.group_by("init", maintain_order=True).agg(polars.col(name).first())
        values = _values(results[name])
        if results[name].n_unique() > 1:
            values = ", ".join(f"{_value(value)} ({init})" for init, value in by_init.rows())
        rows.append(("fixed", name, f"{name} = {values}"))
    return polars.DataFrame(rows, schema=dict.fromkeys(("role", "name", "text"), polars.String()), orient="row")


def _values(column: polars.Series) -> str:
    values = column.unique(maintain_order=True).to_list()
    whole = all(isinstance(value, int) for value in values) and len(values) > 2
    if whole and values == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(_value, values))


def _value(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
