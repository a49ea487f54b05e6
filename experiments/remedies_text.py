"""What remedies says in words: of one network, of a sweep, and as tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.gradient_flow_text import aligned, number_text, outcome_text, range_text
from experiments.page import Table
from experiments.remedies_cells import ALONE, CHOOSING, HARMS, HELPS, KINDS, NOT, SAME, TRAINS, treated_cells
from experiments.remedies_grid import DEEP_LAYERS, LEARNING_RATES

if TYPE_CHECKING:
    import polars

MAP_WORDS = (
    "Failing networks (rows) and remedies (columns, by what they act on): the difference of the test accuracy from the "
    "untreated network, in points, paired by seed, each at its own best learning rate, which other seeds chose.",
    "Find your network's row. A full circle: with this remedy at least half of the networks train. An open one: it "
    "helps, and most still do not train. A cross: its 95 % interval includes zero, so it is not known to help there.",
    "Full circles on white, or crosses on dark blue: glyph and colour would contradict each other. Rows that are all "
    "crosses: the networks would not be failing for the reason that is said.",
)
MOST_NAMED = 5
"""Remedies that a sentence names."""

KIND_WORDS = {"vanishing": "vanish", "exploding": "explode", "healthy": "do neither"}

LINE = 0.9
"""The test accuracy that the deepest networks are to reach."""


def report_lines(folder: Path, tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Return the summary that is printed: of one network its outcome, of a sweep its cells."""
    from bpexp.dashboard import hint
    from bpexp.records import read_results

    results, cells = read_results(folder), tables["cells"]
    if results.height == 1:
        row = cells.row(0, named=True)
        lines = [f"{row['failing']}, {row['remedy']}: {outcome_text(results.row(0, named=True))}", ""]
    else:
        table = cells_table(cells)
        lines = [
            *textwrap.wrap(answer(tables), 100),
            "",
            *aligned(table.columns[:-1], [row[:-1] for row in table.rows]),
        ]
        lines += [] if tables["remedies"].is_empty() else ["", f"figures: {folder / 'figures'}"]
        lines += [""]
    return ["", *lines, *hint(folder).splitlines()]


def answer(tables: Mapping[str, polars.DataFrame]) -> str:
    """Say in a few sentences what was found, from the tables alone."""
    cells, remedies = tables["cells"], tables["remedies"]
    if remedies.is_empty():
        return "No network is here both untreated and with a remedy, so nothing is compared."
    plain = cells.filter(cells["verdict"].is_null())
    failed = int((plain["trained"] < 0.5).sum())
    text = ""
    for gradient in KINDS:
        own = remedies.filter(gradient=gradient)
        if not own.is_empty():
            text += kind_text(gradient, own)
    treated = treated_cells(cells)
    counts = {word: treated["verdict"].to_list().count(word) for word in (TRAINS, HELPS, NOT, HARMS)}
    foretold = int((plain["found"] == plain["expected"]).sum())
    text += f"Of {plain.height} untreated networks {failed} fail, and the gradients of {foretold} vanish or explode as "
    text += f"expected. Of {treated.height} pairs of a network and a remedy "
    text += f"{counts[TRAINS]} train, {counts[HELPS]} more are better than untreated and do not train, "
    text += f"{counts[NOT]} are not known to help, and {counts[HARMS]} do harm."
    if "deep" in tables:
        text += f" {deep_text(tables['deep'])}"
    return text


def kind_text(gradient: str, own: polars.DataFrame) -> str:
    """Say what cures most of the networks of one kind, and what none."""
    most, networks = own[TRAINS].to_list(), own["networks"].to_list()
    best = [name for name, count in zip(own["remedy"].to_list(), most, strict=True) if count == max(most) > 0]
    never = own.filter(own[TRAINS] + own[HELPS] == 0)["remedy"].to_list()
    text = f"Where gradients {KIND_WORDS[gradient]}, "
    text += f"{max(most)} of {max(networks)} networks train with {listed(best)}" if best else "no remedy here cures any"
    return f"{text}; of no known help to any: {listed(never) if never else 'none'}. "


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words, cut where it is long."""
    shown = list(names[:MOST_NAMED])
    if more := len(names) - len(shown):
        shown.append(f"{more} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def deep_text(deep: polars.DataFrame) -> str:
    """Say how the deepest networks did, and how long they took."""
    parts = []
    for name in deep["network"].unique(maintain_order=True).to_list():
        own = deep.filter(network=name)
        lowest, seconds = min(own["test_accuracy"].fill_null(0.0).to_list()), own["seconds"].sum()
        reached = "above" if lowest > LINE else "not above"
        parts.append(
            f"{name}: {reached} {LINE} on the test part in each of {own.height} seeds (lowest {lowest:.3f}) after "
            f"{own['steps'][0]} steps, {seconds:.0f} s for all of them together on one core"
        )
    return f"With {DEEP_LAYERS} layers: {'; '.join(parts)}."


def cells_table(cells: polars.DataFrame) -> Table:
    """Return a row of text a cell: the networks in their order, of each what helps most first."""
    rows = []
    for (_,), own in cells.group_by("failing", maintain_order=True):
        untreated = own.filter(own["verdict"].is_null())
        treated = own.filter(own["verdict"].is_not_null()).sort("difference", descending=True, maintain_order=True)
        rows += [cell_row(row) for table in (untreated, treated) for row in table.iter_rows(named=True)]
    columns = (
        "network",
        "gradient",
        "remedy",
        "verdict",
        "difference [95 %]",
        "test accuracy [95 %]",
        "trained [95 %]",
        "steps",
        "cost",
        "lr",
        "diverged",
        "command",
    )
    return Table(
        "cells",
        columns,
        tuple(rows),
        "Every failing network and remedy, with what it shows at initialization. Difference: of the test accuracy from "
        "the untreated network, paired by seed. Steps: until a training batch is classified as by a trained network, "
        "median of the seeds that came there. Cost: the time of a step against the untreated.",
    )


def cell_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    differs = row["verdict"] not in (None, SAME, ALONE)
    return (
        row["failing"],
        row["found"],
        row["remedy"],
        row["verdict"] or "-",
        with_range(row, "difference", "+.2f") if differs else "-",
        with_range(row, "accuracy", ".2f"),
        f"{round(row['trained'] * row['seeds'])}/{row['seeds']} "
        f"{range_text(round(row['trained_low'], 2), round(row['trained_high'], 2))}",
        "-" if math.isnan(row["steps"]) else f"{row['steps']:g}",
        cost_text(row.get("cost", math.nan)),
        f"{row['lr']:g}",
        str(row["diverged"]),
        f"`{row['command']}`",
    )


def cost_text(cost: float | None) -> str:
    return "-" if cost is None or math.isnan(cost) else f"{cost:.2f}"


def with_range(row: Mapping[str, Any], name: str, form: str) -> str:
    if math.isnan(row[name]):
        return "-"
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    return f"{row[name]:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def remedies_table(remedies: polars.DataFrame) -> Table:
    """Return what to try first, by what the gradient does."""
    rows = tuple(
        (
            row["gradient"],
            row["remedy"],
            row["acts_on"],
            *(f"{row[word]}/{row['networks']}" for word in (TRAINS, HELPS, NOT, HARMS)),
            f"{row['difference']:+.2f}",
            f"{row['accuracy']:.2f}",
            "-" if math.isnan(row["steps"]) else f"{row['steps']:g}",
            cost_text(row["cost"]),
        )
        for row in remedies.iter_rows(named=True)
    )
    columns = (
        "gradient",
        "remedy",
        "acts on",
        TRAINS,
        HELPS,
        NOT,
        HARMS,
        "difference",
        "test accuracy",
        "steps",
        "cost",
    )
    return Table(
        "what_to_do",
        columns,
        rows,
        "What to try, the best first: on how many of the networks whose gradient vanishes or explodes at least half of "
        "the seeds train with it, or it only helps, or is not known to help (its interval includes zero), or harms; "
        "difference and accuracy are means over those networks, steps and cost medians.",
    )


def deep_table(deep: polars.DataFrame) -> Table:
    """Return the networks of very many layers as text."""
    rows = tuple(
        (
            row["network"],
            str(row["seed"]),
            str(row["steps"]),
            row["status"],
            number_text(row["train_accuracy"]),
            number_text(row["val_accuracy"]),
            number_text(row["test_accuracy"]),
            f"{row['seconds']:.0f} s",
            f"`{row['command']}`",
        )
        for row in deep.iter_rows(named=True)
    )
    columns = ("network", "seed", "steps", "status", "train", "val", "test", "time", "command")
    return Table(
        "deep",
        columns,
        rows,
        f"Networks of {DEEP_LAYERS} hidden layers. Time: a network's share of its group's, on one core; the networks "
        "of a row trained side by side.",
    )


def measured(tables: Mapping[str, polars.DataFrame]) -> tuple[tuple[str, str], ...]:
    """Return what was measured, and how."""
    from bpexp.runner import TRAINED_ACCURACY

    rates = "; ".join(f"{name} {', '.join(map(str, rates))}" for name, rates in LEARNING_RATES.items())
    choices = max(map(len, LEARNING_RATES.values()))
    treated = tables["remedies"]["networks"].sum()
    return (
        (
            "learning rate",
            f"each network with each remedy, and untreated, has the best of {choices}, by mean validation accuracy "
            f"over the first {CHOOSING} seeds: {rates}; what is shown are other seeds, which had no part in that "
            "choice, and their test accuracy. A sweep without other seeds shows those that chose",
        ),
        ("trained", f"the last training batch has an accuracy of at least {TRAINED_ACCURACY}"),
        (
            "verdict",
            f"{TRAINS}: the interval of the difference is above zero and at least half of the seeds trained; {HELPS}: "
            f"above zero; {NOT}: it includes zero; {HARMS}: below zero; {SAME}: the network has it already",
        ),
        ("diverged", "a network that diverged counts as one that guesses, here and among learning rates"),
        (
            "intervals",
            "95 %: accuracies and differences by Student's t over the seeds, the share that trained exactly "
            f"(Clopper-Pearson). Of {treated} verdicts one in 40 may say help by chance where there is none",
        ),
        (
            "cost",
            "the processor's time of a step against the untreated, without measures: 8 networks side by side at most, "
            "in turns, median; what differs in its initialization alone costs 1",
        ),
    )
