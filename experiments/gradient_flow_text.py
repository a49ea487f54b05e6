"""What gradient_flow says in words: of one network, of a sweep, and of its claims."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp.statistics import coverage_p_value
from bpexp.summary import VERDICTS
from experiments.page import Table

if TYPE_CHECKING:
    import polars

MOST_ROWS = 30
"""Cells that are printed one by one; of more, the counts and the ends."""


NO_VERDICT = "unknown"


def majority(row: Mapping[str, Any]) -> str:
    """Return the verdict of most seeds, the first of the three where they are even; NO_VERDICT where none has one."""
    return max(VERDICTS, key=lambda verdict: row[verdict]) if any(row[verdict] for verdict in VERDICTS) else NO_VERDICT


def report_lines(folder: Path, tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Return the summary that is printed: of one network its layers, of a sweep its cells."""
    from bpexp.dashboard import hint
    from bpexp.records import read_results

    cells = tables["cells"]
    lines = [""]
    if cells.height == 1 and cells["seeds"][0] == 1:
        lines += network_lines(read_results(folder).row(0, named=True), tables)
    else:
        lines += sweep_lines(cells)
    lines += ["", f"figures: {folder / 'figures'}"]
    return [*lines, *hint(folder).splitlines()]


def network_lines(result: Mapping[str, Any], tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Say of one network what its layers show at step 0, its verdict, its gain, and whether it trained."""
    from bpexp.figures import named_layers

    (cell,) = tables["cells"].iter_rows(named=True)
    depth, profiles = cell["model.depth"], tables["profiles"]
    at = {(row["measure"], row["layer"]): row for row in profiles.iter_rows(named=True)}
    rows = []
    for place, layer in named_layers(depth).items():
        delta, grad, size = (at[name, layer] for name in ("delta_rms", "grad_norm", "activation_rms"))
        numbers = (delta["median"], delta["predicted"], grad["median"], size["median"], size["predicted"])
        rows.append((place, str(layer), *(log10_text(number) for number in numbers)))
    columns = ("", "layer", "delta_rms", "predicted", "grad_norm", "activation_rms", "predicted")
    low, high, gain = (result[f"backward_gain{end}"] for end in ("_low", "_high", ""))
    spread = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}] (95 %, its layers as a sample)"
    return [
        "log10 at step 0:",
        *aligned(columns, rows),
        "",
        f"gradient at initialization: {result['verdict']}",
        f"backward gain a layer: {number_text(gain)}{spread}; {prediction_text(cell)}{band_text(cell)}",
        outcome_text(result),
    ]


def outcome_text(result: Mapping[str, Any]) -> str:
    """Say how a network's training ended."""
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_step']}, layer {result['diverged_layer']}"
    text = f"{'trained' if result['trained'] else 'not trained'}: train_loss {number_text(result['train_loss'])}"
    if result["train_accuracy"] is not None:
        text += f", train_accuracy {result['train_accuracy']:.2f}, test_accuracy {result['test_accuracy']:.2f}"
    return f"{text} after step {result['step']}"


def sweep_lines(cells: polars.DataFrame) -> list[str]:
    """Say of a sweep what its cells show: each of them, or the counts and the ends."""
    import polars

    lines = [*textwrap.wrap(answer(cells), 100), ""]
    if cells.height <= MOST_ROWS:
        return lines + cell_lines(cells)
    ordered = cells.filter(cells["gain"].is_finite()).sort("gain", maintain_order=True)
    if not ordered.is_empty():
        lines += ["smallest gains:", *cell_lines(ordered.head(5)), "", "largest gains:", *cell_lines(ordered.tail(5))]
        ordered = ordered.with_columns(expected=polars.Series(map(expected_gain, ordered.iter_rows(named=True))))
        far = ordered.filter(ordered["expected"].is_finite())
        far = far.sort((far["gain"] / far["expected"]).log().abs(), descending=True, maintain_order=True)
        lines += ["", "furthest from the prediction:", *cell_lines(far.head(5))]
    return lines


def cell_lines(cells: polars.DataFrame) -> list[str]:
    table = cell_table(cells)
    return aligned(table.columns, table.rows)


def cell_table(cells: polars.DataFrame, caption: str = "") -> Table:
    """Return a row of text a cell: gain, prediction, verdicts, what trained."""
    rows = []
    for row in cells.iter_rows(named=True):
        expected = expected_gain(row)
        off = 100 * (row["gain"] / expected - 1) if expected else math.nan
        low, high, p_value = (row.get(name, math.nan) for name in ("band_low", "band_high", "p_value"))
        verdicts = ", ".join(f"{row[name]} {name}" for name in VERDICTS if row[name])
        accuracies = math.isfinite(row["train_accuracy"])
        of_parts = [row[f"{part}_{'accuracy' if accuracies else 'loss'}"] for part in ("train", "val", "test")]
        rows.append(
            (
                str(row["model.depth"]),
                row["model.activation"],
                row["series"],
                interval_text(row),
                prediction_text(row).removeprefix("predicted "),
                "-" if math.isnan(off) else f"{round(off, 1) + 0:+.1f} %",
                "-" if math.isnan(low) else range_text(low, high),
                "-" if math.isnan(p_value) else f"{p_value:.2g}",
                verdicts or "-",
                f"{round(row['trained'] * row['seeds'])}/{row['seeds']}",
                *("-" if math.isnan(value) else f"{value:.2f}" if accuracies else f"{value:.3g}" for value in of_parts),
                str(row["diverged"]),
            )
        )
    columns = (
        "L",
        "activation",
        "init",
        "gain [95 %]",
        "predicted",
        "off",
        "band [99 %]",
        "p",
        "verdict",
        "trained",
        "train",
        "val",
        "test",
        "diverged",
    )
    return Table("cells", columns, tuple(rows), caption)


def interval_text(row: Mapping[str, Any]) -> str:
    """Write a gain with its interval over the seeds that have one."""
    if row["gain_seeds"] == 0:
        return "none"
    if row["gain_seeds"] == 1:
        return f"{row['gain']:.3g} (1 seed, no interval)"
    part = "" if row["gain_seeds"] == row["seeds"] else f" ({row['gain_seeds']} of {row['seeds']} seeds)"
    return f"{row['gain']:.3g} [{row['gain_low']:.3g}, {row['gain_high']:.3g}]{part}"


def number_text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def expected_gain(row: Mapping[str, Any]) -> float:
    """Return the gain that mean field predicts, or that of simulated networks where it has none; NaN without either."""
    predicted: float = row["predicted_gain"]
    return row.get("finite_gain", math.nan) if math.isnan(predicted) else predicted


def prediction_text(row: Mapping[str, Any]) -> str:
    expected = expected_gain(row)
    if math.isnan(expected):
        return "no prediction"
    return f"predicted {number_text(expected)}{' (simulated)' if math.isnan(row['predicted_gain']) else ''}"


def band_text(cell: Mapping[str, Any]) -> str:
    """Say where a network's gain should lie at its width, and how likely it is as far off."""
    if not math.isfinite(cell["band_low"]):
        return ""
    return f", at this width in {range_text(cell['band_low'], cell['band_high'])} (99 %; p = {cell['p_value']:.2g})"


def range_text(low: float, high: float) -> str:
    return f"[{number_text(low)}, {number_text(high)}]"


def log10_text(value: float | None) -> str:
    """Write log10 of a measure; what has none is named."""
    if value is None or not math.isfinite(value):
        return "-"
    return "zero" if value == 0 else f"{math.log10(value):.2f}"


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of text."""
    widths = [max(len(line[k]) for line in (columns, *rows)) for k in range(len(columns))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (columns, *rows)
    ]


def answer(cells: polars.DataFrame) -> str:
    """Say in a few sentences what was found, from the cells alone.

    A cell trained where half of its seeds did; one whose networks all failed counts for and against nothing.
    """
    rows = [row for row in cells.iter_rows(named=True) if row["failed"] < row["seeds"]]
    sentences = []
    for verdict in (*VERDICTS, NO_VERDICT):
        own = [row for row in rows if majority(row) == verdict]
        trained = sum(row["trained"] >= 0.5 for row in own)
        if own:
            sentences.append(f"{verdict} in {len(own)}, of which {trained} trained")
    text = f"Of {len(rows)} {'cell' if len(rows) == 1 else 'cells'}"
    text += f" the gradient at initialization is {'; '.join(sentences)}."
    predicted = [row for row in rows if row["predicted_verdict"] is not None]
    if predicted:
        right = sum(majority(row) == row["predicted_verdict"] for row in predicted)
        text += f" Mean field said so beforehand for {right} of {len(predicted)}."
    both = [row for row in rows if row["gain"] > 0 and expected_gain(row) > 0]
    off = [100 * abs(row["gain"] / expected_gain(row) - 1) for row in both]
    if off:
        worst = both[off.index(max(off))]
        text += f" Measured and predicted gain are {statistics.median(off):.1f} % apart in the median cell, "
        text += f"{max(off):.1f} % in the worst (L = {worst['model.depth']}, {worst['model.activation']}, "
        text += f"{worst['series']})."
    text += coverage_text([row["p_value"] for row in rows if math.isfinite(row.get("p_value", math.nan))])
    if failed := cells.height - len(rows):
        text += f" The networks of {failed} more {'cell' if failed == 1 else 'cells'} all failed."
    if diverged := int(cells["diverged"].sum()):
        text += f" {diverged} of {int(cells['seeds'].sum())} networks diverged while they trained."
    return text


def coverage_text(p_values: Sequence[float]) -> str:
    """Say how many means lie in their bands, and how likely so few are."""
    from bpexp.theory.fluctuations import LEVEL

    if not p_values:
        return ""
    inside = sum(p_value >= 1 - LEVEL for p_value in p_values)
    chance = coverage_p_value(inside, len(p_values), LEVEL)
    text = f" Of {len(p_values)} means over the seeds {inside} lie in the {100 * LEVEL:g} % band of networks of their"
    return f"{text} width (binomial p = {chance:.2g}, if cells were independent)."
