"""The ledger: what published papers claim, what was expected of each claim before a run, and what came of it.

A claim is confirmed where its measured interval lies inside the bounds that were written down beforehand, refuted
where the two have no point in common, else inconclusive. A refuted claim is a result and stays on the page; a negative
control, the same check where the claim is false, has to be refuted, and the command fails where one is not.

scale=smoke|default|full says which claims are tested, and with how many seeds; the others are shown from the published
records, and marked so. only=NUMBER tests the claims with that number, only=NAME those of one sweep or study. What is
finished is kept, so that the same command goes on. The rows are left as claims.parquet, the figure as figures/*.svg.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp import entry
from bpexp.entry import FailedJobsError
from bpexp.init import unknown_choice
from bpexp.spec import UserError
from experiments import (
    clipping_claims,
    depth_scale_claims,
    finite_width_claims,
    gradient_flow_claims,
    gradient_flow_quantities,
    layer_jacobian_claims,
    linear_claims,
    mean_field_claims,
    noise_scale_claims,
    published,
    residual_form_claims,
    sharpness_claims,
    shattered_claims,
    spectra_claims,
    trainability_claims,
)
from experiments.ledger import Claim, compute_claims

if TYPE_CHECKING:
    import polars
    from omegaconf import DictConfig

    from experiments.page import Section

TABLES: tuple[tuple[tuple[Claim, ...], tuple[str, ...]], ...] = (
    (gradient_flow_claims.CLAIMS, gradient_flow_quantities.MEASURES),
    (layer_jacobian_claims.CLAIMS, ()),
    (residual_form_claims.CLAIMS, ()),
    (finite_width_claims.CLAIMS, ()),
    (mean_field_claims.CLAIMS, ()),
    (depth_scale_claims.CLAIMS, ()),
    (spectra_claims.CLAIMS, ()),
    (linear_claims.CLAIMS, ()),
    (shattered_claims.CLAIMS, ()),
    (sharpness_claims.CLAIMS, ()),
    (noise_scale_claims.CLAIMS, ()),
    (trainability_claims.CLAIMS, trainability_claims.MEASURES),
    (clipping_claims.CLAIMS, clipping_claims.MEASURES),
)
"""The tables of claims, and the measures of the records that each looks at: a claim is a row in one of them."""

NOW = "now"
"""The source of a row that was tested now; that of the others is claims_text.PUBLISHED."""

SCALES = {
    "smoke": "The claims whose networks take seconds, with 2 or 3 seeds.",
    "default": "The quick claims, with 2 to 20 seeds; the others stand from the published records.",
    "full": "All claims, with 5 to 100 seeds.",
}


def program(config: DictConfig, folder: Path) -> None:
    """Test the claims that a configuration asks for, leave table and figure in the folder, and print them.

    Raises:  FailedJobsError: a control that was run is not refuted
    """
    from bpexp.sweep.files import write_json, write_parquet, write_text
    from bpexp.sweep.results import RUN_FILE, current_commit
    from experiments.claims_text import lines, pictures

    seconds: dict[str, float] = {}
    table = judge_claims(config.scale, folder, config.only, seconds)
    write_parquet(folder / "claims.parquet", table)
    write_json(folder / RUN_FILE, {"commit": current_commit(), "packages": published.packages(), "seconds": seconds})
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(table):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join([*lines(table), "", f"table and figure in {folder}"]))
    own = table.filter(table["source"] == NOW, table["control_verdict"] != "refuted")
    if failed := [f"claim {row['claim']}: {row['title']}: {row['control_verdict']}" for row in own.to_dicts()]:
        raise FailedJobsError("\n".join(f"its control is not refuted: {line}" for line in failed))


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Test the claims of a scale, below `folder`, and return the summary table."""
    return {"claims": judge_claims(scale, folder)}


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section that the table makes."""
    from experiments.claims_text import make_section

    return make_section(tables["claims"])


def judge_claims(
    scale: str, folder: Path, only: str | None = None, seconds: dict[str, float] | None = None
) -> polars.DataFrame:
    """Return the rows of the claims, by number: those that the scale tests, and of the others the published ones.

    only: a claim's number, or the name of a sweep or study; published rows are left out then
    A published row stands where its claim is still made: as it is told, with the same bounds and the same control.
    seconds: gets the time that each sweep and study took
    """
    import polars

    from experiments.claims_text import PUBLISHED

    chosen, rows = choose(only), []
    names = list(dict.fromkeys(claim.sweep.name for claim, _ in chosen if scale in claim.sweep.seeds))
    for number, name in enumerate(names):
        print(f"  {number + 1}/{len(names)} {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        own = [(claim, measures) for claim, measures in chosen if claim.sweep.name == name]
        found = compute_claims([claim for claim, _ in own], own[0][1], scale, folder)
        quick = "default" in own[0][0].sweep.seeds
        rows.append(
            found.with_columns(
                sweep=polars.lit(name), quick=polars.lit(quick), scale=polars.lit(scale), source=polars.lit(NOW)
            )
        )
        if seconds is not None:
            seconds[name] = round(time.monotonic() - start, 1)
    table = polars.concat(rows)
    if only is None and (records := published.read("claims")) is not None:
        others = standing(records.tables["claims"], [claim for claim, _ in chosen if scale not in claim.sweep.seeds])
        table = polars.concat([table, others.with_columns(source=polars.lit(PUBLISHED)).select(table.columns)])
    return name_rows(table)


def name_rows(table: polars.DataFrame) -> polars.DataFrame:
    """Return rows in the order of the tables, with `row`: their claim's number, and their own among all of that claim.

    A row has the same name whatever else is tested.
    """
    import polars

    counts: dict[int, int] = {}
    names = {}
    for claim, _ in choose(None):
        counts[claim.claim] = counts.get(claim.claim, 0) + 1
        names[claim.title] = f"{claim.claim}.{counts[claim.claim]}"
    places = {title: place for place, title in enumerate(names)}
    titles = table["title"].to_list()
    table = table.with_columns(
        polars.Series("row", [names[title] for title in titles]),
        polars.Series("place", [places[title] for title in titles]),
    )
    return table.sort("place").drop("place")


def standing(published_rows: polars.DataFrame, claims: Sequence[Claim]) -> polars.DataFrame:
    """Return the published rows of some claims, and say how many claims have none that was tested as they are now."""
    import polars

    made = {(claim.claim, claim.title, claim.low, claim.high, claim.control_text) for claim in claims}
    found = published_rows.select("claim", "title", "low", "high", "control").rows()
    if missing := len(made - set(found)):
        print(
            f"  {missing} claims are tested at another scale alone, and not published yet", file=sys.stderr, flush=True
        )
    return published_rows.filter(polars.Series([row in made for row in found], dtype=polars.Boolean))


def choose(only: str | None) -> list[tuple[Claim, tuple[str, ...]]]:
    """Return the claims to test, by number, with the measures that they look at."""
    every = [(claim, measures) for claims, measures in TABLES for claim in claims]
    every = [pair for pair in every if only is None or only in (str(pair[0].claim), pair[0].sweep.name)]
    return sorted(every, key=lambda pair: pair[0].claim)


def check(config: DictConfig, given: Sequence[str]) -> None:
    """Refuse a claim, sweep or study that there is not, or that the scale leaves out.

    Raises:  UserError: with the choices
    """
    only = config.only if config.only is None else str(config.only)
    chosen = [claim for claim, _ in choose(only)]
    if not chosen:
        every = [claim for claim, _ in choose(None)]
        choices = [*(str(claim.claim) for claim in every), *(claim.sweep.name for claim in every)]
        raise UserError(str(unknown_choice("only", str(only), tuple(dict.fromkeys(choices)))))
    if not any(config.scale in claim.sweep.seeds for claim in chosen):
        scales = [scale for scale in SCALES if any(scale in claim.sweep.seeds for claim in chosen)]
        raise UserError(f"only: {only} has no seeds at scale={config.scale}; choose scale={' or '.join(scales)}")


if __name__ == "__main__":
    sys.exit(entry.main("claims", __doc__, program=program, check=check))
