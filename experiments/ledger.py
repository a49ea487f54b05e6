"""The ledger: published claims, what is expected of each before a run, and what the records of a run say of it.

A claim is a row: the networks that it is tested on, what is measured, and the bounds, all written down beforehand. An
experiment has a table of them, CLAIMS; a row there is all that a claim takes.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import bpexp
from bpexp import entry
from bpexp.statistics import Interval, decide

if TYPE_CHECKING:
    import polars

Where = dict[str, object]
Measure = Callable[["polars.DataFrame", "polars.DataFrame"], Interval]
"""Results and records of the networks -> what they show."""


@dataclass(frozen=True)
class Sweep:
    """The networks that claims are tested on: overrides of an experiment, and the number of seeds at each scale.

    A scale that `seeds` does not name leaves these networks out, and the claims on them.
    """

    name: str
    overrides: tuple[str, ...]
    seeds: Mapping[str, int]
    experiment: str = "gradient_flow"

    def arguments(self, seeds: int) -> list[str]:
        return ["-m", *self.overrides, f"seed=range({seeds})"]

    def command(self, seeds: int) -> str:
        return shlex.join(["python", "-m", f"experiments.{self.experiment}", *self.arguments(seeds)])


@dataclass(frozen=True)
class Study:
    """Numbers that claims are tested on which no sweep of an experiment leaves, and the number of seeds at each scale.

    compute: seeds -> a row for each seed and case: the column `seed`, those that `where` chooses by, and what is found
    """

    name: str
    compute: Callable[[int], polars.DataFrame]
    seeds: Mapping[str, int]

    def command(self, seeds: int) -> str:
        scale = next(scale for scale, count in self.seeds.items() if count == seeds)
        return shlex.join(["python", "-m", "experiments.claims", f"scale={scale}", f"only={self.name}"])


@dataclass(frozen=True)
class Claim:
    """A row of the ledger, before it is measured: on which networks, what, and between which bounds.

    It is confirmed where the measured interval lies between the bounds, refuted where it has no point in common with
    them. The control is the same check on networks of which the claim is false, or, where `wrong` says so, by a law
    that is false: it has to come out refuted.

    wrong: what the law is, and what measures by it
    """

    claim: int
    title: str
    expected: float
    low: float
    high: float
    sweep: Sweep | Study
    where: Where
    control: Where
    measure: Measure
    wrong: tuple[str, Measure] | None = None

    @property
    def control_text(self) -> str:
        """What the control has that the claim has not."""
        if self.wrong is not None:
            return self.wrong[0]
        return ", ".join(f"{name}={value}" for name, value in self.control.items())


def around(
    claim: int,
    title: str,
    expected: float,
    tolerance: float,
    sweep: Sweep | Study,
    where: Where,
    control: Where,
    measure: Measure,
) -> Claim:
    """Return a claim that a number is `expected` within a relative tolerance."""
    low, high = (expected * (1 + sign * tolerance) for sign in (-1, 1))
    return Claim(claim, title, expected, low, high, sweep, where, control, measure)


def select(results: polars.DataFrame, where: Where) -> polars.DataFrame:
    """Return the jobs that have the values of `where`."""
    for name, value in where.items():
        results = results.filter(results[name] == value)
    return results


def judge_claim(claim: Claim, results: polars.DataFrame, records: polars.DataFrame) -> dict[str, object]:
    """Return the row of the ledger, and what its control measured, from the results and records of its sweep.

    Of a study the records are empty.
    """
    of_control = claim.measure if claim.wrong is None else claim.wrong[1]
    measured, control = (
        measure(rows, records.join(rows, on="job", how="semi") if "job" in records else records)
        for rows, measure in (
            (select(results, claim.where), claim.measure),
            (select(results, claim.control), of_control),
        )
    )
    seeds = results["seed"].n_unique()
    return {
        "claim": claim.claim,
        "title": claim.title,
        "expected": claim.expected,
        "low": claim.low,
        "high": claim.high,
        "measured": measured.mean,
        "measured_low": measured.low,
        "measured_high": measured.high,
        "verdict": decide(measured, claim.low, claim.high),
        "control": claim.control_text,
        "control_measured": control.mean,
        "control_verdict": decide(control, claim.low, claim.high),
        "seeds": seeds,
        "command": claim.sweep.command(seeds),
    }


def compute_claims(claims: Sequence[Claim], measures: Sequence[str], scale: str, folder: Path) -> polars.DataFrame:
    """Run what a scale gives seeds, each in a folder of its own; return the rows of the claims, by number.

    What was finished there before is not run again. measures: those of the records that the claims look at
    """
    import polars

    from bpexp.records import read_results, read_sweep

    rows = []
    for sweep in {claim.sweep.name: claim.sweep for claim in claims}.values():
        if scale in sweep.seeds:
            place = folder / sweep.name
            seeds = sweep.seeds[scale]
            if isinstance(sweep, Study):
                results, records = study_rows(sweep, seeds, place), polars.DataFrame()
            else:
                run(sweep, seeds, place)
                results, records = read_results(place), read_sweep(place, measures)
            rows += [(claim.claim, judge_claim(claim, results, records)) for claim in claims if claim.sweep is sweep]
    return claim_table([row for _, row in sorted(rows, key=lambda numbered: numbered[0])])


def study_rows(study: Study, seeds: int, folder: Path) -> polars.DataFrame:
    """Return the rows of a study, from the folder where the same code has left them with as many seeds.

    The code is that of the study's own module and of the library.
    """
    import polars

    from bpexp.sweep.files import write_parquet

    own = sys.modules[study.compute.__module__].__file__
    files = sorted([Path(own or ""), *Path(bpexp.__file__).parent.rglob("*.py")])
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:10]
    path = folder / f"rows-{seeds}-{code}.parquet"
    if not path.exists():
        rows = study.compute(seeds)
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(path, rows)
    return polars.read_parquet(path)


def run(sweep: Sweep, seeds: int, folder: Path) -> None:
    """Train the networks of a sweep.

    Raises:  FailedJobsError: a network failed, for another reason than that it cannot be initialized as asked: that is
             a result, and what it means for a claim is for its measure to say
    """
    from bpexp.records import read_results

    try:
        entry.call(sweep.experiment, [*sweep.arguments(seeds), f"hydra.sweep.dir={folder}"])
    except entry.FailedJobsError:
        results = read_results(folder)
        if not results.filter(results["status"] == "failed")["error"].str.starts_with("init: ").all():
            raise


def claim_table(rows: Sequence[dict[str, object]]) -> polars.DataFrame:
    """Return rows as a frame, with the same columns when there are none."""
    import polars

    numbers = ("expected", "low", "high", "measured", "measured_low", "measured_high", "control_measured")
    texts = ("title", "verdict", "control", "control_verdict", "command")
    types: dict[str, polars.DataType] = dict.fromkeys(numbers, polars.Float64())
    types |= dict.fromkeys(texts, polars.String())
    types |= dict.fromkeys(("claim", "seeds"), polars.Int64())
    order = ("claim", "title", *numbers[:-1], "verdict", "control", numbers[-1], "control_verdict", "seeds", "command")
    return polars.DataFrame(list(rows), schema={name: types[name] for name in order})
