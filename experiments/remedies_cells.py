"""What became of failing networks under each remedy: the learning rate it chose, what trained, how fast, how well.

Every network with every remedy, and untreated, has the learning rate of the greatest mean validation accuracy among the
same few, over the first seeds; what is shown is the test accuracy of other seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from bpexp import spec
from bpexp.statistics import Interval, mean_interval, share_interval
from experiments.remedies_grid import (
    FAILING,
    REMEDIES,
    UNTREATED,
    Failing,
    Remedy,
    cell_overrides,
    command,
    neutral,
    values,
)

if TYPE_CHECKING:
    import polars

CHOOSING = 2
"""Seeds that choose the learning rate, and are not shown where there are others."""

HALF = 0.5
TRAINS, HELPS, NOT, HARMS = "trains", "helps", "does not help", "harms"
"""What a remedy does to a network."""

SAME, ALONE = "no change", "not compared"
"""Of a remedy that changes no key of a network, and of one without untreated networks; the untreated have null."""

KINDS = ("vanishing", "exploding", "healthy")
"""What a gradient does at initialization, in the order of the page."""

OWN_KEYS = ("seed", "optimizer.lr")


def summarize_cells(folder: Path) -> polars.DataFrame:
    """Return a row for each failing network and remedy whose networks are among the results of a folder.

    trained, trained_low, trained_high: the share of the seeds that reached the line, with its exact interval. steps:
    the median number of steps until they had, of those that did. accuracy, difference: on the test part, with 95 %
    intervals over the seeds; a network that diverged answers as one that guesses.

    Raises:  UserError: no network has finished, or none is of the tables
    """
    import polars

    from bpexp.records import read_results
    from bpexp.spec import UserError

    results = read_results(folder)
    results = results.filter(results["status"] != "failed")
    if results.is_empty():
        raise UserError(f"{folder}: no network has finished, so there is nothing to summarize")
    rows, fixed = [], given_overrides(folder)
    for others, of_setting in settings_of(results):
        for failing, remedies in pairs(of_setting):
            cells = {remedy.name: select(of_setting, failing, remedy) for remedy in remedies}
            plain = shown(cells[UNTREATED.name]) if UNTREATED.name in cells else None
            rows += [
                describe(folder, failing, remedy, shown(cells[remedy.name]), plain, others, fixed)
                for remedy in remedies
            ]
    if not rows:
        raise UserError(f"{folder}: its networks are none of the tables of experiments/remedies_grid.py")
    return polars.DataFrame(rows, infer_schema_length=None, schema_overrides={"verdict": polars.String})


def given_overrides(folder: Path) -> list[str]:
    """Return what the command of a sweep gave to all of its networks, but for where and how they trained."""
    file = folder / "multirun.yaml"
    given = OmegaConf.select(OmegaConf.load(file), "hydra.overrides.task") if file.is_file() else ()
    left_out = ("experiment", *OWN_KEYS, *neutral())
    named = [(override, override.partition("=")[0]) for override in given]
    return [text for text, name in named if name not in left_out and not name.startswith(spec.NOT_IDENTITY)]


def pairs(results: polars.DataFrame) -> Iterable[tuple[Failing, list[Remedy]]]:
    """Yield the failing networks of which some are there, with the remedies that they have.

    A remedy can make of one network another, untreated one: so where some are there untreated, only those count, and
    where none is, each network counts once.
    """
    found = [(row, [cure for cure in REMEDIES if not select(results, row, cure).is_empty()]) for row in FAILING]
    if any(UNTREATED in remedies for _, remedies in found):
        yield from ((failing, remedies) for failing, remedies in found if UNTREATED in remedies)
        return
    seen: list[dict[str, object]] = []
    for failing, remedies in found:
        new = [remedy for remedy in remedies if values(failing, remedy) not in seen]
        seen += [values(failing, remedy) for remedy in new]
        if new:
            yield failing, new


def settings_of(results: polars.DataFrame) -> Iterable[tuple[dict[str, Any], polars.DataFrame]]:
    """Yield the results by the values of the other keys that were swept, such as the depth, with those values."""
    from bpexp.summary import cell_keys

    tables = (*neutral(), *OWN_KEYS)
    swept = [name for name in cell_keys(results) if name not in tables and results[name].n_unique() > 1]
    if not swept:
        yield {}, results
        return
    for found, own in results.group_by(swept, maintain_order=True):
        yield dict(zip(swept, found, strict=True)), own


def select(results: polars.DataFrame, failing: Failing, remedy: Remedy) -> polars.DataFrame:
    """Return the networks that are a failing one with a remedy."""
    for name, value in values(failing, remedy).items():
        results = results.filter(results[name] == value)
    return results


def guess(results: polars.DataFrame) -> float:
    """Return the accuracy of one that guesses."""
    from bpexp.data import describe

    return 1 / describe(results["data"][0], results["data.root"][0]).outputs


def accuracies(jobs: polars.DataFrame, part: str) -> dict[int, float]:
    """Return the final accuracy of each seed on a part; that of a guess where the network diverged."""
    chance = guess(jobs)
    found = zip(jobs["seed"].to_list(), jobs[f"{part}_accuracy"].to_list(), strict=True)
    return {seed: chance if value is None else value for seed, value in found}


def choose_rate(jobs: polars.DataFrame) -> float:
    """Return the learning rate with the greatest mean validation accuracy; the smallest where even."""
    rates: list[float] = jobs["optimizer.lr"].unique().sort().to_list()
    own = {rate: accuracies(jobs.filter(jobs["optimizer.lr"] == rate), "val") for rate in rates}
    return max(rates, key=lambda rate: statistics.fmean(own[rate].values()))


def shown(jobs: polars.DataFrame) -> polars.DataFrame:
    """Return a cell's networks of its learning rate: of several, the best one on the first CHOOSING seeds.

    Edge:    where there was a choice, and other seeds are there, those that chose are left out
    """
    if jobs["optimizer.lr"].n_unique() == 1:
        return jobs.sort("seed")
    seeds = jobs["seed"].unique().sort().to_list()
    rate = choose_rate(jobs.filter(jobs["seed"].is_in(seeds[:CHOOSING])))
    own = jobs.filter((jobs["optimizer.lr"] == rate) & jobs["seed"].is_in(seeds[CHOOSING:] or seeds))
    return own.sort("seed")


def chosen_cells(folder: Path, failing: Sequence[Failing], remedies: Sequence[Remedy]) -> list[list[str]]:
    """Return the cells of networks and remedies, each at the learning rate that it chooses among a folder's results."""
    from bpexp.records import read_results

    results = read_results(folder)
    return [cell_overrides(one, cure, choose_rate(select(results, one, cure))) for one in failing for cure in remedies]


def describe(
    folder: Path,
    failing: Failing,
    remedy: Remedy,
    jobs: polars.DataFrame,
    untreated: polars.DataFrame | None,
    others: Mapping[str, Any],
    fixed: Sequence[str],
) -> dict[str, Any]:
    """Return the row of a cell: `others` are the values of further swept keys, `fixed` what its command gave to all."""
    tested = accuracies(jobs, "test")
    trained = share_interval(int(jobs["trained"].sum()), jobs.height)
    accuracy, rate = mean_interval(tested.values()), jobs["optimizer.lr"][0]
    plain = {} if untreated is None else accuracies(untreated, "test")
    difference = mean_interval([tested[seed] - plain[seed] for seed in tested if seed in plain])
    changed = values(failing, remedy) != values(failing, UNTREATED)
    reached = [step for job in jobs["job"] if (step := steps_to_line(folder, job)) is not None]
    extra = [f"{name}={value}" for name, value in others.items()]
    given = [override for override in fixed if override.partition("=")[0] not in others]
    return {
        "failing": ", ".join([failing.name, *extra]),
        "gradient": failing.gradient if untreated is None else majority(untreated),
        "expected": failing.gradient,
        "found": majority(jobs),
        "remedy": remedy.name,
        "acts_on": remedy.acts_on,
        "seeds": jobs.height,
        "lr": rate,
        "trained": trained.mean,
        "trained_low": trained.low,
        "trained_high": trained.high,
        "diverged": jobs["status"].to_list().count("diverged"),
        "steps": float(statistics.median(reached)) if reached else math.nan,
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "verdict": None if remedy is UNTREATED else judge(difference, trained.mean) if changed else SAME,
        "command": command([*cell_overrides(failing, remedy, rate), *extra, *given], jobs["seed"].to_list()),
    }


def judge(difference: Interval, trained: float) -> str:
    """Return what a remedy does, by the interval of its difference from the untreated and the share that trained.

    Edge:    without an interval nothing is known to help
    """
    if difference.count == 0:
        return ALONE
    if difference.low > 0:
        return TRAINS if trained >= HALF else HELPS
    return HARMS if difference.high < 0 else NOT


def majority(jobs: polars.DataFrame) -> str:
    """Return what the gradient of most seeds does at initialization."""
    verdicts: list[str] = jobs["verdict"].to_list()
    return statistics.mode(verdicts)


def steps_to_line(folder: Path, job: str) -> int | None:
    """Return the first measured step at which the network passes as trained; None where there is none."""
    from bpexp.records import job_folder, read_records
    from bpexp.runner import TRAINED_ACCURACY

    records = read_records(job_folder(folder, job))
    steps = records.filter((records["measure"] == "train_accuracy") & (records["value"] >= TRAINED_ACCURACY))["step"]
    return None if steps.is_empty() else int(steps[0])


def finite_median(values: polars.Series) -> float:
    """Return the median of the finite values, NaN where there is none."""
    median = values.filter(values.is_finite()).median()
    return median if isinstance(median, float) else math.nan


def treated_cells(cells: polars.DataFrame) -> polars.DataFrame:
    """Return the cells that are compared with the untreated: those of which a remedy changes something."""
    return cells.filter(cells["verdict"].is_in([TRAINS, HELPS, NOT, HARMS]))


def summarize_remedies(cells: polars.DataFrame) -> polars.DataFrame:
    """Return a row for each remedy and kind of gradient: on how many networks it trains, helps, harms, and its gain.

    The first are those that cure most: by how many they train, how many they help, and the mean difference.
    """
    import polars

    treated = treated_cells(cells)
    rows = []
    for (gradient, remedy, acts_on), own in treated.group_by("gradient", "remedy", "acts_on", maintain_order=True):
        verdicts = own["verdict"].to_list()
        rows.append(
            {"gradient": gradient, "remedy": remedy, "acts_on": acts_on, "networks": own.height}
            | {word: verdicts.count(word) for word in (TRAINS, HELPS, NOT, HARMS)}
            | {"difference": own["difference"].mean(), "accuracy": own["accuracy"].mean()}
            | {"steps": finite_median(own["steps"]), "cost": own["cost"].median() if "cost" in own else math.nan}
        )
    numbers = dict.fromkeys(("networks", TRAINS, HELPS, NOT, HARMS), polars.Int64())
    schema: dict[str, Any] = dict.fromkeys(("gradient", "remedy", "acts_on"), polars.String())
    schema |= numbers | dict.fromkeys(("difference", "accuracy", "steps", "cost"), polars.Float64())
    table = polars.DataFrame(rows, schema=schema)
    kind = polars.col("gradient").replace_strict(KINDS, range(len(KINDS)), return_dtype=polars.Int64)
    order = (kind, *(-polars.col(name) for name in (TRAINS, HELPS, "difference")))
    return table.sort(*order, maintain_order=True)
