"""What the ledger of claims says: its rows as text, and as a section of the report."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from experiments.gradient_flow_text import aligned, number_text, range_text
from experiments.page import Picture, Section, Table

if TYPE_CHECKING:
    import polars


CAPTION = (
    "The range was written down before the run; confirmed where the interval lies inside it, refuted where they have "
    "no point in common. The control is the same check where the claim is false."
)
METHOD = (
    (
        "verdict",
        "confirmed where the 95 % interval lies inside the range, refuted where they have no point in common, else "
        "inconclusive",
    ),
    (
        "control",
        "the same check on networks, or against a law, of which the claim is false; where it is not refuted the row "
        "shows nothing",
    ),
    (
        "tested",
        "quick rows are tested again at the default scale, with fewer seeds, in under 90 seconds in all; the others at "
        "scale=full alone",
    ),
    (
        "where papers disagree: 4",
        "Schoenholz et al. train up to about 6 xi_c, a reproduction with 200 steps up to 4.5. In the tangent kernel "
        "what tells two classes apart falls as e^(-L/xi_c), and T steps of size lr learn it once lr T e^(-L/xi_c) is "
        "of order 1: the multiple is log T and a constant, and from 100 to 400 steps it should rise by log 4 = 1.39, "
        "so that both can be right. The rows of claim 4 test both numbers, this rise, and that there is none; the "
        "trainability chapter has the multiple by budget, and says whether it is the same at every sigma_w^2",
    ),
    (
        "where papers disagree: 11",
        "towards the input a relu layer keeps of the product of two inputs' gradients the share of units that are on "
        "at both, 1 - arccos(rho)/pi of those on at one, and of a gradient's square all of them. That is 1/2, and "
        "2^-L in all, where rho stays 0: where pre-activations are centred over the batch. It does not in a network "
        "as it is trained, whose relu outputs have a mean in common: rho rises to 1, and the product over the layers "
        "is 0.0337 at L = 10, not 0.00098. Residual layers with batch norm fall as L^-1/2 if a branch adds E relu^2 "
        "to the variance; it adds Var relu, and so they fall as L^-0.73 in the end. "
        "Mean and standard deviation of a batch count as constants in this. The rows of claim 11 measure all of these",
    ),
    (
        "elsewhere",
        "what plain tanh and ReZero networks of 1,000 layers reach on all of digits, and in what time: the chapter on "
        "remedies",
    ),
    ("intervals", "95 % by Student's t over the seeds, of a worst case or a rate as the row's code states"),
)
PUBLISHED = "published"
"""The source of a row that was not tested now."""


def lines(table: polars.DataFrame) -> list[str]:
    """Return table and answer for a terminal."""
    found = claims_table(table)
    return [*aligned(found.columns, found.rows), "", *textwrap.wrap(answer(table), 100)]


def answer(table: polars.DataFrame) -> str:
    """Count the verdicts, name the rows that are not confirmed, and say which were tested now."""
    text = claims_answer(table)
    for verdict in ("refuted", "inconclusive"):
        if names := [row["row"] for row in numbered(table) if row["verdict"] == verdict]:
            text += f" {verdict.capitalize()}: {', '.join(names)}."
    now = table.filter(table["source"] != PUBLISHED)
    if other := table.height - now.height:
        scale = ", ".join(now["scale"].unique())
        text += f" {now.height} checks were made now, at scale {scale}; {other} stand from the published"
        text += " records: the table says which are which."
    return text


def claims_answer(claims: polars.DataFrame) -> str:
    """Count the verdicts on the rows of the ledger, and name the controls that did not come out as they have to."""
    numbers = [str(number) for number in claims["claim"].unique().sort()]
    several = f"Claims {', '.join(numbers[:-1])} and {numbers[-1]}"
    verdicts = claims["verdict"].to_list()
    text = f"{several if len(numbers) > 1 else f'Claim {numbers[0]}'}: {verdicts.count('confirmed')} of "
    text += f"{len(verdicts)} checks are confirmed, {verdicts.count('inconclusive')} inconclusive, "
    text += f"{verdicts.count('refuted')} refuted."
    if failed := claims.filter(claims["control_verdict"] != "refuted").height:
        text += f" The negative controls of {failed} of them are not refuted, so that these show nothing."
    return text


def numbered(table: polars.DataFrame) -> list[dict[str, Any]]:
    """Return the rows, each with its name `row`: the number of its claim, and its own among those of that claim.

    A table that has names keeps them.
    """
    counts: dict[int, int] = {}
    rows = []
    for row in table.iter_rows(named=True):
        counts[row["claim"]] = counts.get(row["claim"], 0) + 1
        rows.append({"row": f"{row['claim']}.{counts[row['claim']]}", **row})
    return rows


def claims_table(table: polars.DataFrame) -> Table:
    """Return the rows of the ledger as text.

    `tested` says whether a row is quick, so that the default scale tests it too, and, where some rows are published
    ones, which were tested now.
    """
    mixed = "source" in table.columns and (table["source"] == PUBLISHED).any()
    rows = []
    for row in numbered(table):
        tested = "quick" if row.get("quick") else "at full scale"
        if mixed:
            tested = f"published, {tested}" if row["source"] == PUBLISHED else f"now, {tested}"
        rows.append(
            (
                row["row"],
                row["title"],
                number_text(row["expected"]),
                range_text(row["low"], row["high"]),
                f"{number_text(row['measured'])} {range_text(row['measured_low'], row['measured_high'])}",
                row["verdict"],
                f"{row['control']}: {number_text(row['control_measured'])}, {row['control_verdict']}",
                str(row["seeds"]),
                *((tested,) if "quick" in row else ()),
            )
        )
    columns = ("claim", "what", "expected", "range", "measured [95 %]", "verdict", "negative control", "seeds")
    return Table("claims", (*columns, *(("tested",) if "quick" in table.columns else ())), tuple(rows), CAPTION)


def pictures(table: polars.DataFrame) -> tuple[Picture, ...]:
    """Draw the figure of the rows."""
    from bpexp import figures

    return (
        Picture(
            "claims",
            figures.svg(figures.claims(numbered(table))),
            "What was measured, with its 95 % interval, on a scale on which every row's range is the band from -1 to "
            "1; beyond it the scale is logarithmic. A cross is the negative control of the row, and an arrowhead what "
            "lies further out.",
            "Intervals inside the band are confirmed, intervals off it refuted; one that touches an edge decides "
            "nothing.",
            "A cross inside the band: the check would pass where the claim is false, and shows nothing.",
        ),
    )


def make_section(table: polars.DataFrame) -> Section:
    """Return the section of the report."""
    return Section(
        name="claims",
        title="The ledger of published claims",
        question="What papers state about gradients in deep networks: does it hold here, as stated and at the size "
        "stated on the row?",
        prediction="Each row's expected value and range are the paper's, or derived beside the code from what it "
        "states, and were written down before the run.",
        answer=answer(table),
        method=METHOD,
        commands=tuple(dict.fromkeys(table["command"])),
        pictures=pictures(table),
        tables=(claims_table(table),),
    )
