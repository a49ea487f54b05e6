"""What clipping did to networks: each beside its unclipped twin, how its steps changed, and which threshold to take.

A twin has the same configuration and seed, and no clipping. Losses and accuracies are those of a guess where a network
diverged, or guesses worse.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp.spec import UserError
from bpexp.statistics import Interval, geometric_interval, mean_interval, share_interval

if TYPE_CHECKING:
    import polars

HELPS, NOT, HARMS, ALONE = "helps", "not known", "harms", "no twin"
"""What clipping does: its interval of the difference to the twin lies on one side of zero, or includes it."""

NONE = "none"
LAST = 0.1
"""Share of the steps, at the end, whose mean loss is the final one."""
CLIPS = (NONE, "norm", "value", "adaptive")
LEARNS = 0.75
"""A learning rate is one to learn with where the interval of the final loss ends below this part of a guess's."""

OWN_KEYS = ("clip", "clip.threshold", "optimizer.lr", "seed")
MEASURES = ("train_loss", "grad_norm", "clipped_norm", "clip_cosine", "clip_fraction")


def summarize_jobs(folder: Path) -> polars.DataFrame:
    """Return a row for each network of a folder that ran, and of its unclipped twin what it is compared in.

    setting: further keys that were swept, with their values. loss: mean over the last steps, a share LAST of all.
    score, val: accuracy on the test and the validation part, of a regression the share of the variance it explains.
    fraction: of the steps that were clipped. before, after: norms of the gradient, geometric mean over measured steps;
    shrink: of the two, after over before. angle: between clipped and unclipped gradient, mean, degrees.

    Raises:  UserError: no network has finished
    """
    import polars

    from bpexp.records import read_results, read_sweep

    results = read_results(folder)
    results = results.filter(results["status"] != "failed")
    if results.is_empty():
        raise UserError(f"{folder}: no network has finished, so there is nothing to summarize")
    records = read_sweep(folder, MEASURES)
    effects = effects_of(records.filter(records["layer"].is_null()))
    jobs = with_setting(results).join(effects, on="job", how="left", maintain_order="left")
    guess, regression = guess_of(results)
    diverged = polars.col("status") == "diverged"

    def share(part: str) -> polars.Expr:
        if regression:
            return (1 - polars.col(f"{part}_loss")).clip(lower_bound=0).fill_null(0.0)
        return polars.col(f"{part}_accuracy").fill_null(1 / math.exp(guess))

    loss = polars.when(diverged).then(guess).otherwise(polars.col("last_loss"))
    return jobs.select(
        "job",
        "setting",
        "clip",
        polars.col("clip.threshold").cast(polars.Float64).alias("threshold"),
        polars.col("optimizer.lr").alias("lr"),
        "seed",
        diverged.alias("diverged"),
        loss.fill_nan(guess).fill_null(guess).clip(upper_bound=guess).alias("loss"),
        share("test").alias("score"),
        share("val").alias("val"),
        *(name for name in effects.columns if name not in ("job", "last_loss")),
        polars.lit(guess).alias("guess"),
    )


def guess_of(results: polars.DataFrame) -> tuple[float, bool]:
    """Return the loss of one that guesses, and whether a regression is learnt, whose losses are in variances."""
    from bpexp.data import describe

    data = describe(results["data"][0], results["data.root"][0])
    regression = data.task == "regression"
    return 1.0 if regression else math.log(data.outputs), regression


def with_setting(results: polars.DataFrame) -> polars.DataFrame:
    """Return the results with the column `setting`: the values of what else was swept, a text."""
    import polars

    from bpexp.summary import cell_keys

    swept = [name for name in cell_keys(results) if name not in OWN_KEYS and results[name].n_unique() > 1]
    parts = [polars.format(f"{name}={{}}", polars.col(name).cast(polars.String).fill_null("null")) for name in swept]
    text = polars.concat_str(parts, separator=", ") if parts else polars.lit("")
    return results.with_columns(text.alias("setting"))


def effects_of(records: polars.DataFrame) -> polars.DataFrame:
    """Return a row for each network with what its records of the whole network say of loss and clipping."""
    import polars

    value, measure = polars.col("value"), polars.col("measure")
    last = polars.col("step") >= (1 - LAST) * polars.col("step").max()
    lines = records.filter(measure == "train_loss").group_by("job", maintain_order=True)
    losses = lines.agg(value.filter(last).mean().alias("last_loss"))
    wide = records.filter(measure.is_in(MEASURES[1:])).pivot(on="measure", index=["job", "step"], values="value")
    missing = [polars.lit(None, polars.Float64).alias(name) for name in MEASURES[1:] if name not in wide.columns]
    wide = wide.with_columns(missing)
    before, after, cosine = (polars.col(name) for name in ("grad_norm", "clipped_norm", "clip_cosine"))
    moved = wide.filter(before.is_finite() & (before > 0))
    # In the logs: norms of gradients that explode do not fit into a sum.
    effects = moved.group_by("job", maintain_order=True).agg(
        polars.col("clip_fraction").last().alias("fraction"),
        before.log().mean().exp().alias("before"),
        after.log().mean().exp().alias("after"),
        (after.log() - before.log()).mean().exp().alias("shrink"),
        cosine.filter(cosine.is_finite()).clip(-1, 1).arccos().degrees().mean().alias("angle"),
    )
    return losses.join(effects, on="job", how="left", maintain_order="left")


def summarize_cells(jobs: polars.DataFrame) -> polars.DataFrame:
    """Return a row for each setting, clip, threshold and learning rate: means over the seeds with 95 % intervals.

    difference: of the final loss to the twin, paired by seed; below zero clipping is better. lr_after: the learning
    rate times `shrink`, with which plain descent would have gone as far.
    """
    import polars

    keys = ["setting", "clip", "threshold", "lr"]
    plain = jobs.filter(clip=NONE)
    twins = {(row["setting"], row["lr"], row["seed"]): row["loss"] for row in plain.iter_rows(named=True)}
    rows = []
    for found, own in jobs.group_by(keys, maintain_order=True):
        setting, clip, _, lr = found
        pairs = [(row["loss"], twins.get((setting, lr, row["seed"]))) for row in own.iter_rows(named=True)]
        difference = mean_interval([mine - other for mine, other in pairs if other is not None])
        row: dict[str, Any] = {**dict(zip(keys, found, strict=True)), "seeds": own.height, "guess": own["guess"][0]}
        row |= spread("diverged", share_interval(int(own["diverged"].sum()), own.height))
        row |= spread("loss", mean_interval(own["loss"]))
        row |= spread("score", mean_interval(own["score"]))
        row["val"] = statistics.fmean(own["val"])
        row |= spread("difference", difference) if clip != NONE else spread("difference", mean_interval([]))
        row["verdict"] = judge(difference) if clip != NONE else None
        row["fraction"] = mean_interval(own["fraction"]).mean
        row |= {name: geometric_interval(own[name]).mean for name in ("before", "after", "shrink")}
        row |= spread("angle", mean_interval(own["angle"]))
        row["lr_after"] = lr * row["shrink"]
        rows.append(row)
    settings = jobs["setting"].unique(maintain_order=True).to_list()
    rows.sort(key=lambda r: (settings.index(r["setting"]), CLIPS.index(r["clip"]), r["threshold"] or 0.0, r["lr"]))
    types = {"threshold": polars.Float64, "verdict": polars.String}
    return polars.DataFrame(rows, infer_schema_length=None, schema_overrides=types)


def spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def judge(difference: Interval) -> str:
    """Return what clipping does by the interval of a difference of losses."""
    if difference.count == 0:
        return ALONE
    if difference.high < 0:
        return HELPS
    return HARMS if difference.low > 0 else NOT


def summarize_thresholds(jobs: polars.DataFrame, cells: polars.DataFrame) -> polars.DataFrame:
    """Return a row for each setting, clip and threshold, the unclipped too: what it does when learning rates are tried.

    lr: the one of the best mean validation score, the smallest where even; edge: whether it is the last that was tried,
    as `edge` says. gain: of its test score from the unclipped
    at their own best learning rate, paired by seed; verdict: by that. helps, harms, unknown: at how many learning rates
    the final loss is so. learns: the learning rates to learn with.
    """
    import polars

    rows = []
    for (setting,), of_setting in cells.group_by("setting", maintain_order=True):
        plain = of_setting.filter(clip=NONE)
        base = None if plain.is_empty() else scores(jobs, best(plain))
        for found, own in of_setting.group_by("clip", "threshold", maintain_order=True):
            chosen = best(own)
            mine = scores(jobs, chosen)
            paired = [mine[seed] - base[seed] for seed in mine if seed in base] if base else []
            gain = mean_interval([] if found[0] == NONE else paired)
            learns = [row["lr"] for row in own.sort("lr").iter_rows(named=True) if learnt(row)]
            verdicts = own["verdict"].to_list()
            row: dict[str, Any] = {"setting": setting, "clip": found[0], "threshold": found[1], "lr": chosen["lr"]}
            row |= {"seeds": chosen["seeds"], "rates": own.height}
            row["edge"] = edge(chosen["lr"], own["lr"].to_list())
            row |= {
                name: chosen[name]
                for name in ("val", "score", "score_low", "score_high", "fraction", "angle", "shrink")
            }
            row |= spread("gain", gain)
            opposite = Interval(-gain.mean, -gain.high, -gain.low, gain.count)
            row["verdict"] = None if found[0] == NONE else judge(opposite)
            row |= {HELPS: verdicts.count(HELPS), HARMS: verdicts.count(HARMS), "unknown": verdicts.count(NOT)}
            row["diverged"] = statistics.fmean(own["diverged"])
            row |= {
                "learns": len(learns),
                "learns_from": min(learns, default=None),
                "learns_to": max(learns, default=None),
            }
            rows.append(row)
    numbers = dict.fromkeys(("threshold", "learns_from", "learns_to"), polars.Float64)
    return polars.DataFrame(rows, infer_schema_length=None, schema_overrides={**numbers, "verdict": polars.String})


def edge(lr: float, rates: Sequence[float]) -> int:
    """Return 1 where a learning rate is the largest of several, -1 where it is the smallest, else 0."""
    if len(rates) == 1 or min(rates) < lr < max(rates):
        return 0
    return 1 if lr == max(rates) else -1


def learnt(cell: dict[str, Any]) -> bool:
    """Whether the interval of the final loss ends below LEARNS of a guess's; of one seed, its loss."""
    high, guess = (float(cell[name]) for name in ("loss_high", "guess"))
    return (high if math.isfinite(high) else float(cell["loss"])) < LEARNS * guess


def best(cells: polars.DataFrame) -> dict[str, Any]:
    """Return the cell of the best mean validation score."""
    return max(cells.sort("lr").iter_rows(named=True), key=lambda row: row["val"])


def scores(jobs: polars.DataFrame, cell: dict[str, Any]) -> dict[int, float]:
    """Return the test score of each seed of a cell."""
    own = jobs.filter(setting=cell["setting"], clip=cell["clip"], lr=cell["lr"])
    if cell["threshold"] is not None:
        own = own.filter(threshold=cell["threshold"])
    return dict(own.select("seed", "score").iter_rows())


def settings_of(cells: polars.DataFrame, most: int) -> Sequence[str]:
    """Return the settings in which something is clipped, so many at most."""
    found: Iterable[str] = cells.filter(cells["clip"] != NONE)["setting"].unique(maintain_order=True)
    return list(found)[:most]
