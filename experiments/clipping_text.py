"""What clipping says in words: of one network, of a sweep, and as tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.clipping_cells import CLIPS, HARMS, HELPS, LAST, LEARNS, NONE, NOT
from experiments.gradient_flow_text import aligned, outcome_text
from experiments.page import Table

if TYPE_CHECKING:
    import polars

EDGES = {-1: "< ", 0: "", 1: "> "}

WALL_WORDS = (
    "The loss of one recurrent unit over its two parameters, with the paths of plain descent and of descent with the "
    "norm clipped, from one start at one learning rate; their losses; and the share of random starts beside the wall "
    "that end outside of the valley, with 95 % intervals.",
    "Both follow the valley along the wall. Where plain descent touches the wall its one long step throws it far away, "
    "onto a plateau where the loss is 0.09 and the gradient is gone; clipped descent comes down beside the wall.",
    "A clipped path that leaves the valley, or shares that are the same with and without clipping.",
)
LAWS_WORDS = (
    "Left: updates until the gradient is small against the largest gradient on the way, with the best fixed step and "
    "with clipping (claim 18). Right: how much of a gradient arrives over the steps of random recurrent systems, "
    "smallest to largest, against the largest singular value (claim 15).",
    "A fixed step pays for the steepest place in proportion, clipping by its logarithm. No system is above the bound, "
    "and none explodes left of 1.",
    "Points off their lines on the left; a point above the bound on the right.",
)
OUTCOMES_WORDS = (
    "The share of networks that diverge, and their final loss, against the learning rate: a column for each kind of "
    "clipping, a line for each threshold, the dashed line is the unclipped twin. Bars: 95 % intervals over the seeds.",
    "Right of where the dashed line rises, plain descent is lost; a line that stays low there is what clipping buys. A "
    "line at a guess's loss on the left is a threshold too small for its learning rate.",
    "A clipped network that diverges where its twin does not, or a line off its twin's where no step is clipped.",
)
LEDGER_WORDS = (
    "What clipping does to the steps, mean over the seeds: how many are clipped, the gradient's norm before (dotted) "
    "and after, the learning rate with which plain descent would go as far, and by how much the step is turned.",
    "Where all steps are clipped by norm the threshold times the learning rate is the length of every step. By norm "
    "the direction stays; by value and adaptive clipping turn it, the more the smaller their threshold.",
    "An angle above 0 under clip=norm, a norm after above the one before, or above the threshold under clip=norm.",
)


def report_lines(folder: Path, tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Return the summary that is printed: of one network its outcome, of a sweep its thresholds and cells."""
    from bpexp.dashboard import hint
    from bpexp.records import read_results

    results, cells = read_results(folder), tables["cells"]
    if results.height == 1:
        lines = [outcome_text(results.row(0, named=True)), ledger_line(cells.row(0, named=True)), ""]
    else:
        lines = textwrap.wrap(answer(tables), 100)
        for table in (thresholds_table(tables["thresholds"]), cells_table(cells)):
            lines += ["", *aligned(table.columns, table.rows)]
        lines += ["", f"figures: {folder / 'figures'}"] if (cells["clip"] != NONE).any() else []
        lines += [""]
    return ["", *lines, *hint(folder).splitlines()]


def ledger_line(cell: Mapping[str, Any]) -> str:
    """Say what clipping did to the steps of one network."""
    if cell["clip"] == NONE:
        return "unclipped"
    return (
        f"{name_of(cell)}: {percent(cell['fraction'])} of the steps clipped, norm {number(cell['before'])} -> "
        f"{number(cell['after'])}, effective learning rate {number(cell['lr_after'])}, "
        f"turned by {degrees(cell['angle'])}"
    )


def answer(tables: Mapping[str, polars.DataFrame]) -> str:
    """Say in a few sentences what was found, from the tables alone."""
    cells, thresholds = tables["cells"], tables["thresholds"]
    clipped, plain = cells.filter(cells["clip"] != NONE), cells.filter(clip=NONE)
    text = ""
    if clipped.is_empty():
        text = "No network is clipped here, so nothing is compared. "
    elif plain.is_empty():
        text = f"The {clipped.height} clipped cells have no unclipped twin here, so nothing is compared. "
    else:
        text = f"{best_text(thresholds)} {counts_text(clipped)} {diverged_text(clipped, plain)} {angles_text(clipped)} "
    return (text + systems_text(tables)).strip()


def best_text(thresholds: polars.DataFrame) -> str:
    """Name the best threshold, and those that are better than unclipped, each at its own best learning rate."""
    tried, plain = thresholds.filter(thresholds["clip"] != NONE), thresholds.filter(clip=NONE)
    setting = tried["setting"][0]
    tried, plain = tried.filter(setting=setting), plain.filter(setting=setting)
    best = max(tried.iter_rows(named=True), key=lambda row: row["val"])
    known = [name_of(row) for row in tried.iter_rows(named=True) if row["verdict"] == HELPS]
    where = f" ({setting})" if setting else ""
    text = (
        f"Each at its own best learning rate, the best threshold on validation data is {name_of(best)}: its score is "
        f"{best['score']:.2f}, unclipped {plain['score'][0]:.2f}{where}: {interval(best, 'gain', '+.2f')}; "
    )
    text += f"{len(known)} of {tried.height} thresholds score higher than unclipped, with a 95 % interval above zero"
    return f"{text}: {'; '.join(known)}." if known else f"{text}."


def counts_text(clipped: polars.DataFrame) -> str:
    """Count the verdicts at the same learning rate."""
    counts = {word: clipped["verdict"].to_list().count(word) for word in (HELPS, NOT, HARMS)}
    return (
        f"At the same learning rate the final loss of {counts[HELPS]} of {clipped.height} cells is below that of their "
        f"unclipped twins, of {counts[HARMS]} above, and of {counts[NOT]} the interval includes zero."
    )


def diverged_text(clipped: polars.DataFrame, plain: polars.DataFrame) -> str:
    """Say how many networks diverged, clipped and not."""
    parts = []
    for name, own in (("unclipped", plain), *((f"by {clip}", clipped.filter(clip=clip)) for clip in CLIPS[1:])):
        if not own.is_empty():
            parts.append(f"{name} {percent(own['diverged'].to_numpy().mean())}")
    return f"Diverged: {', '.join(parts)}."


def angles_text(clipped: polars.DataFrame) -> str:
    """Say by how much each kind turns the step."""
    parts = []
    for clip in CLIPS[1:]:
        own = clipped.filter(clip=clip)["angle"].drop_nans().drop_nulls()
        if not own.is_empty():
            low, high = degrees(float(own.to_numpy().min())), degrees(float(own.to_numpy().max()))
            parts.append(f"by {clip} {low if low == high else f'{low} to {high}'}")
    return f"The step is turned {', '.join(parts)}."


def systems_text(tables: Mapping[str, polars.DataFrame]) -> str:
    """Say what the small systems showed, where they were computed."""
    if "shares" not in tables:
        return ""
    shares, counts, reach = tables["shares"], tables["counts"], tables["reach"]
    rates = [f"{row['lr']:g}: {percent(row['left'])}" for row in shares.filter(clip=NONE).iter_rows(named=True)]
    most = max(shares.filter(clip="norm")["left"].to_list())
    last = counts.filter(function="exponential").sort("log_m").tail(2)
    fixed, short = (last.filter(method=method)["updates"][0] for method in ("fixed", "clipped"))
    worst = max(reach["gamma"].to_list())
    return (
        f"From starts beside the wall plain descent leaves the valley at a learning rate of {', of '.join(rates)}; "
        f"clipped descent in {percent(most)} at most. Where the largest gradient is "
        f"{math.exp(last['log_m'][0]):,.0f} the best fixed step takes {fixed:,.0f} updates, clipped descent "
        f"{short:.0f}. "
        f"The largest gradient of a recurrent system is {worst:.4f} of the bound."
    )


def name_of(row: Mapping[str, Any]) -> str:
    """Return a clip and its threshold."""
    return "unclipped" if row["clip"] == NONE else f"{row['clip']} {row['threshold']:g}"


def thresholds_table(thresholds: polars.DataFrame) -> Table:
    """Return what to take: each threshold at its best learning rate, the best first, the unclipped on top."""
    rows = []
    for (_,), own in thresholds.group_by("setting", maintain_order=True):
        order = sorted(own.iter_rows(named=True), key=lambda row: (row["clip"] != NONE, -row["score"]))
        rows += [threshold_row(row) for row in order]
    columns = (
        *("clip", "threshold", "best lr", "score [95 %]", "gain [95 %]", "verdict", "lr to learn with"),
        *("at the same lr", "diverged", "clipped", "shrinks to", "turned"),
    )
    return Table(
        "what_to_take",
        *with_setting(thresholds, columns, rows),
        "Each clip and threshold at the learning rate of its best mean validation score. Score: on the test part. "
        "Gain: of the score from the unclipped at their best learning rate, paired by seed; its verdict is `not "
        "known` where the interval includes zero. A best lr marked < or > is the last of the grid, so there may be a "
        f"better one outside. Lr to learn with: where the final loss ends below {LEARNS} of a guess's. At the "
        "same lr: at how many learning rates the final loss is below its twin's / not known / above. Diverged: over "
        "all learning rates. Clipped, shrinks to, turned: share of steps, norm after over before, angle, at the best "
        "one.",
    )


def threshold_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    plain = row["clip"] == NONE
    learns = (
        f"{row['learns_from']:g} to {row['learns_to']:g}"
        if row["learns"] > 1
        else f"{row['learns_from']:g}"
        if row["learns"]
        else "none"
    )
    return (
        row["setting"],
        row["clip"],
        "-" if plain else f"{row['threshold']:g}",
        f"{EDGES[row['edge']]}{row['lr']:g}",
        interval(row, "score", ".2f"),
        "-" if plain else interval(row, "gain", "+.2f"),
        row["verdict"] or "-",
        learns,
        "-" if plain else f"{row[HELPS]} / {row['unknown']} / {row[HARMS]}",
        percent(row["diverged"]),
        percent(row["fraction"]),
        number(row["shrink"]),
        degrees(row["angle"]),
    )


def cells_table(cells: polars.DataFrame) -> Table:
    """Return the clip ledger: a row of text for each cell."""
    rows = [cell_row(row) for row in cells.iter_rows(named=True)]
    columns = (
        *("clip", "threshold", "lr", "seeds", "diverged", "final loss [95 %]", "difference [95 %]", "verdict"),
        *("clipped", "norm before", "norm after", "effective lr", "turned"),
    )
    return Table(
        "clip_ledger",
        *with_setting(cells, columns, rows),
        f"Every cell. Final loss: mean of the last {percent(LAST)} of the steps, of a guess where a network "
        "diverged. Difference: from the "
        "unclipped twin, paired by seed, below zero is better; the verdict is `not known` where its interval includes "
        "zero. Norms: geometric means over measured steps and seeds. Effective lr: the learning rate times norm after "
        "over norm before. Turned: angle between the clipped and the unclipped gradient, mean.",
    )


def cell_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    plain = row["clip"] == NONE
    return (
        row["setting"],
        row["clip"],
        "-" if plain else f"{row['threshold']:g}",
        f"{row['lr']:g}",
        str(row["seeds"]),
        f"{round(row['diverged'] * row['seeds'])}/{row['seeds']}",
        interval(row, "loss", ".2f"),
        "-" if plain else interval(row, "difference", "+.2f"),
        row["verdict"] or "-",
        percent(row["fraction"]),
        number(row["before"]),
        number(row["after"]),
        number(row["lr_after"]),
        degrees(row["angle"]),
    )


def with_setting(
    table: polars.DataFrame, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return columns and rows, whose first text is the setting: without it where there is only one."""
    if table["setting"].n_unique() > 1:
        return ("setting", *columns), tuple(rows)
    return columns, tuple(row[1:] for row in rows)


def interval(row: Mapping[str, Any], name: str, form: str) -> str:
    """Return a mean and its interval, where it has one."""
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if not known(mean):
        return "-"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]" if known(low) else f"{mean:{form}}"


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    return f"{100 * value:.0f} %" if value is not None and math.isfinite(value) else "-"


def number(value: float | None) -> str:
    return f"{value:.2g}" if value is not None and math.isfinite(value) else "-"


def degrees(value: float | None) -> str:
    return f"{value:.0f}°" if value is not None and math.isfinite(value) else "-"
