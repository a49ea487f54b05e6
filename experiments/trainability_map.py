"""What became of the networks of a sweep: by sigma_w^2, depth and step budget, and against theory's depth scales.

Letters: sigma_w^2 = fan_in Var W and sigma_b^2 = Var b of the hidden layers, L = depth, xi_c = depth scale of
correlations, 1/|ln chi_1| = that of gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.trainability_multiples import Array, compare_scales, fit_multiple, one_number

if TYPE_CHECKING:
    import polars

    from bpexp.theory import DepthScales

LOSS_GREW = 2.0
"""A network diverges where its loss ends above this multiple of its first one."""
MULTIPLES_TESTED = 4.0
"""Of a sigma_w^2 whose depth scale is reached this many times by the deepest networks, the multiple is fitted."""
CURVE_POINTS = 121
SCALES = {"xi_c": "xi_c", "xi_gradient": "1/|ln chi_1|"}
AXES = ("seed", "model.depth", "init.gain")
"""Keys that are no series of their own: what is averaged over, and what the map's axes show."""


def read_networks(folder: Path) -> polars.DataFrame:
    """Return a row for each network of a sweep and step budget: its keys, `series`, `accuracy`, `outcome`.

    `train.steps` is the budget: where all networks have as many steps, the measured ones next to a quarter and a half
    of them as well. A failed network is left out.

    Raises:  UserError: no network has finished
    """
    import polars

    from bpexp.records import read_results, read_sweep
    from bpexp.spec import UserError

    results = read_results(folder)
    results = results.filter(results["status"] != "failed")
    if results.is_empty():
        raise UserError(f"{folder}: no network has finished, so there is nothing to summarize")
    records = read_sweep(folder, ["train_accuracy", "train_loss"])
    whole = records.filter(records["layer"].is_null())
    accuracy, loss = (
        whole.filter(measure=name).select("job", "step", "value") for name in ("train_accuracy", "train_loss")
    )
    first = loss.sort("step").group_by("job").agg(first_loss=polars.col("value").first())
    results = results.join(first, on="job", how="left", maintain_order="left")
    parts = []
    for budget in budgets(results, accuracy):
        steps = polars.col("train.steps") if budget is None else polars.lit(budget, polars.Int64)
        asked = results.with_columns(steps.alias("train.steps"))
        for name, table in (("accuracy", accuracy), ("last_loss", loss)):
            sized = table.join(asked.select("job", "train.steps"), on="job").filter(
                polars.col("step") <= polars.col("train.steps")
            )
            last = sized.sort("step").group_by("job").agg(polars.col("value").last().alias(name))
            asked = asked.join(last, on="job", how="left", maintain_order="left")
        parts.append(asked)
    found = polars.concat(parts)
    outcomes = [outcome(row) for row in found.iter_rows(named=True)]
    return found.with_columns(polars.Series("outcome", outcomes, polars.String), name_series(found))


def budgets(results: polars.DataFrame, accuracy: polars.DataFrame) -> list[int | None]:
    """Return the step budgets that a sweep shows; None is each network's own."""
    last = int(results["train.steps"][0])
    if results["train.steps"].n_unique() > 1:
        return [None]
    measured = [step for step in accuracy["step"].unique().sort().to_list() if 0 < step <= last] or [last]
    return sorted({min(measured, key=lambda step: abs(step - last / part)) for part in (4, 2, 1)})


def outcome(row: Mapping[str, Any]) -> str:
    """Return what became of a network within its budget: `trains`, `stalls` or `diverges`."""
    from bpexp.runner import TRAINED_ACCURACY, TRAINED_LOSS

    if row["diverged_step"] is not None and row["diverged_step"] <= row["train.steps"]:
        return "diverges"
    accuracy, loss = row["accuracy"], row["last_loss"]
    if loss is None or not math.isfinite(loss):
        return "diverges"
    if accuracy >= TRAINED_ACCURACY if accuracy is not None and math.isfinite(accuracy) else loss <= TRAINED_LOSS:
        return "trains"
    return "diverges" if loss > LOSS_GREW * row["first_loss"] else "stalls"


def name_series(networks: polars.DataFrame) -> polars.Series:
    """Return what names a map: the swept keys but for its axes, or the activation."""
    import polars

    from bpexp.summary import config_keys

    swept = [
        name for name in config_keys(networks) if name not in (*AXES, "train.steps") and networks[name].n_unique() > 1
    ] or ["model.activation"]
    texts = [
        ", ".join(
            f"{name.rpartition('.')[2]}={value}" if name != "model.activation" else str(value)
            for name, value in row.items()
        )
        for row in networks.select(swept).iter_rows(named=True)
    ]
    return polars.Series("series", texts, polars.String)


def summarize_map(networks: polars.DataFrame) -> polars.DataFrame:
    """Return a row for each cell, what networks have in common but for their seed, at each budget.

    trained: the fraction of the seeds; accuracy: their mean, 0 for one that diverged, NaN in a regression; sigma_w2,
    sigma_b2 and the scales are NaN where theory has none
    """
    import polars

    classes = networks["accuracy"].is_not_null().any()
    keys = ["series", "train.steps", "model.activation", "init", "init.gain", "model.depth"]
    rows = []
    for values, own in networks.group_by(keys, maintain_order=True):
        row = own.row(0, named=True)
        found = scales_of(row)
        rows.append(
            {
                **dict(zip(keys, values, strict=True)),
                "seeds": len(own),
                **{name: own["outcome"].to_list().count(name) for name in ("trains", "stalls", "diverges")},
                "trained": own["outcome"].to_list().count("trains") / len(own),
                "accuracy": float(np.nan_to_num(own["accuracy"].to_numpy()).mean()) if classes else math.nan,
                **found,
            }
        )
    return polars.DataFrame(rows, infer_schema_length=None)


NO_SCALES = dict.fromkeys(("sigma_w2", "sigma_b2", "chi_1", "c_star", "xi_q", "xi_c", "xi_gradient"), math.nan)


def scales_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the variances of a network's hidden layers and its depth scales; NaN where theory has none.

    Mean field's scales are those of plain layers: with a norm, a skip connection or dropout there are others.
    """
    from bpexp.theory import NoPredictionError, describe_network

    if (
        row["model.norm"] != "none"
        or row["model.residual"] != "none"
        or row["model.dropout"] > 0
        or row["init"] == "lsuv"
    ):
        return dict(NO_SCALES)
    width = row["model.width"]
    try:
        network = describe_network(
            row["model.activation"], row["init"], (width, width, width, width), row["init.gain"], row["init.bias_std"]
        )
    except NoPredictionError:
        return dict(NO_SCALES)
    linear = network.linears[1]
    variance = linear.fan_in * linear.variance
    found = depth_scales(row["model.activation"], variance, linear.bias_variance)
    scales = NO_SCALES | {"sigma_w2": variance, "sigma_b2": linear.bias_variance}
    if found is None:
        return scales
    names = ("chi_1", "c_star", "xi_q", "xi_c", "xi_gradient")
    return scales | {name: float(getattr(found, name)) for name in names}


@functools.lru_cache(maxsize=4096)
def depth_scales(activation: str, sigma_w2: float, sigma_b2: float) -> DepthScales | None:
    """Return theory's depth scales, None where lengths have no fixed point."""
    from bpexp import theory

    try:
        return theory.depth_scales(activation, sigma_w2, sigma_b2)
    except ValueError:
        return None


def side(chi_1: float) -> str:
    """Return on which side of the critical line a network is."""
    return "ordered" if chi_1 < 1 else "chaotic" if chi_1 > 1 else ""


def tested_networks(networks: polars.DataFrame) -> Iterator[tuple[dict[str, Any], polars.DataFrame]]:
    """Yield series, side of the critical line and budget with the networks that multiples are fitted to.

    Networks count whose sigma_w^2 has scales that the deepest of them reaches MULTIPLES_TESTED times, the same networks
    for either scale. On the ordered side the two are one.
    """
    import polars

    scales = [scales_of(row) for row in networks.iter_rows(named=True)]
    table = networks.select("series", "train.steps", "model.depth", "seed", "outcome").with_columns(
        polars.Series("side", [side(row["chi_1"]) for row in scales], polars.String),
        *(polars.Series(name, [row[name] for row in scales], polars.Float64) for name in ("sigma_w2", *SCALES)),
    )
    for (series, where, steps), own in table.group_by("series", "side", "train.steps", maintain_order=True):
        longest = polars.max_horizontal(*SCALES)
        tested = own.filter(longest * MULTIPLES_TESTED <= own["model.depth"].max(), polars.min_horizontal(*SCALES) > 0)
        if where and not tested.is_empty():
            yield {"series": series, "side": where, "train.steps": steps}, tested


def scales_of_side(where: str) -> tuple[str, ...]:
    """Return the depth scales of a side of the critical line that differ."""
    return tuple(SCALES) if where == "chaotic" else ("xi_c",)


def fit_arguments(tested: polars.DataFrame, scale: str) -> tuple[Array, Array, Any]:
    """Return L / xi of some networks, whether they trained, and their seeds."""
    ratios = (tested["model.depth"] / tested[scale]).to_numpy()
    return ratios, (tested["outcome"] == "trains").to_numpy().astype(np.float64), tested["seed"].to_numpy()


def summarize_multiples(networks: polars.DataFrame) -> polars.DataFrame:
    """Return the fitted multiples, a row for each series, side of the critical line, budget and depth scale."""
    rows = []
    for names, tested in tested_networks(networks):
        counts = {"networks": tested.height, "seeds": tested["seed"].n_unique()}
        for scale in scales_of_side(names["side"]):
            found = fit_multiple(*fit_arguments(tested, scale))
            rows.append(names | counts | {"scale": scale, **vars(found), "sigma_w2s": tested[scale].n_unique()})
    return multiples_table(rows)


def summarize_variances(networks: polars.DataFrame) -> polars.DataFrame:
    """Return the multiples that are fitted to the networks of each sigma_w^2 alone, and whether they are one number.

    p_value: how likely they are to differ so, over the sigma_w^2 of a side, budget and scale, if they are one
    """
    import polars

    rows: list[dict[str, Any]] = []
    for names, tested in tested_networks(networks):
        for scale in scales_of_side(names["side"]):
            parts = tested.partition_by("sigma_w2", maintain_order=True)
            found = [fit_multiple(*fit_arguments(part, scale)) for part in parts]
            shared = names | {"scale": scale, "p_value": one_number(found)}
            rows += [
                shared | {"sigma_w2": part["sigma_w2"][0], **vars(own), "networks": part.height}
                for part, own in zip(parts, found, strict=True)
            ]
    texts, numbers = ("series", "side", "scale"), ("sigma_w2", "multiple", "low", "high", "p_value")
    types: dict[str, Any] = dict.fromkeys(texts, polars.String) | dict.fromkeys(numbers, polars.Float64)
    types |= {"train.steps": polars.Int64, "inside": polars.Boolean, "networks": polars.Int64}
    order = ("series", "side", "train.steps", "scale", *numbers, "inside", "networks")
    return polars.DataFrame(rows, schema={name: types[name] for name in order})


def summarize_comparisons(networks: polars.DataFrame) -> polars.DataFrame:
    """Return by how much 1/|ln chi_1| raises the log likelihood over xi_c, where the two differ, with its interval."""
    import polars

    rows = []
    for names, tested in tested_networks(networks):
        if len(scales_of_side(names["side"])) > 1:
            first, second = (fit_arguments(tested, scale)[0] for scale in SCALES)
            found = compare_scales(first, second, *fit_arguments(tested, "xi_c")[1:])
            rows.append(names | {"gain": found.mean, "low": found.low, "high": found.high, "networks": tested.height})
    types: dict[str, Any] = dict.fromkeys(("series", "side"), polars.String)
    types |= {"train.steps": polars.Int64, **dict.fromkeys(("gain", "low", "high"), polars.Float64)}
    return polars.DataFrame(rows, schema=types | {"networks": polars.Int64})


def multiples_table(rows: Sequence[Mapping[str, Any]]) -> polars.DataFrame:
    """Return rows as a frame, with the same columns when there are none."""
    import polars

    texts, numbers = ("series", "side", "scale"), ("multiple", "low", "high", "slope", "log_loss")
    counts = ("train.steps", "networks", "seeds", "sigma_w2s")
    types: dict[str, Any] = dict.fromkeys(texts, polars.String) | dict.fromkeys(numbers, polars.Float64)
    types |= dict.fromkeys(counts, polars.Int64) | {"inside": polars.Boolean}
    order = ("series", "side", "train.steps", "scale", *numbers, "inside", "networks", "seeds", "sigma_w2s")
    return polars.DataFrame(list(rows), schema={name: types[name] for name in order})


def summarize_curves(networks: polars.DataFrame) -> polars.DataFrame:
    """Return the depth scales of each series between its smallest and its largest sigma_w^2, and the critical one.

    Between the networks' own sigma_w^2, and the critical one, 1 / scale is interpolated over log sigma_w^2. Series
    without scales, or of one sigma_w^2, have no curve.
    """
    import polars

    rows: list[dict[str, object]] = []
    for (series,), own in networks.group_by("series", maintain_order=True):
        found = [scales_of(row) for row in own.unique(["init", "init.gain"], maintain_order=True).iter_rows(named=True)]
        known = {row["sigma_w2"]: row for row in found if math.isfinite(row["xi_c"])}
        if len(known) < 2:
            continue
        critical = critical_variance(own["model.activation"][0], found[0]["sigma_b2"])
        places = np.geomspace(min(known), max(known), CURVE_POINTS)
        curves = {name: 1 / inverse_scales(places, known, name, critical) for name in SCALES}
        rows += [
            {"series": series, "sigma_w2": place, "critical": critical, **{name: curves[name][k] for name in SCALES}}
            for k, place in enumerate(places.tolist())
        ]
    numbers = dict.fromkeys(("sigma_w2", "critical", *SCALES), polars.Float64)
    return polars.DataFrame(rows, schema={"series": polars.String, **numbers})


def inverse_scales(places: Array, known: Mapping[float, Mapping[str, float]], name: str, critical: float) -> Array:
    """Return 1 / scale at some sigma_w^2, from those at which it is known; on the critical line it is 0."""
    anchors = {place: 1 / row[name] if row[name] > 0 else math.inf for place, row in known.items()}
    if min(known) < critical < max(known):
        anchors[critical] = 0.0
    x = sorted(anchors)
    values = np.interp(np.log(places), np.log(x), [anchors[place] for place in x])
    return np.maximum(values, 1e-9)


def critical_variance(activation: str, sigma_b2: float) -> float:
    """Return the sigma_w^2 of the critical line, NaN where there is none."""
    from bpexp import theory

    try:
        return theory.critical(activation, math.sqrt(sigma_b2)) ** 2
    except ValueError:
        return math.nan
