"""What trainability says in words: of one network, of a sweep, of the oracle."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import trainability_oracle
from experiments.gradient_flow_text import aligned, number_text, outcome_text, range_text
from experiments.page import Table
from experiments.trainability_map import LOSS_GREW, MULTIPLES_TESTED, SCALES

if TYPE_CHECKING:
    import polars

MAP_WORDS = (
    "Training accuracy (mean over seeds) over sigma_w^2 and depth, a panel for each step budget; where the seeds of a "
    "cell disagree it says how many trained. Lines: the fitted multiples of the depth scales, and 6 xi_c; dotted: the "
    "critical sigma_w^2.",
    "Bright below a line and dark above it: theory's scale, times one number, says how deep one can go. With more "
    "steps the bright region grows. Close to the critical line the scales are infinite, and what ends it there is the "
    "width, the size of the steps and their number.",
    "A boundary that does not follow the lines, or a peak far from the critical sigma_w^2.",
)
MULTIPLE_WORDS = (
    "The multiple of a depth scale at which half of the networks train, against the step budget, with 95 % intervals "
    "over resampled seeds.",
    "Rising lines: the multiple belongs to a step budget, so that 6 and 4.5 need not contradict each other. Theory has "
    "it rise by log 4 = 1.4 for four times as many steps.",
    "A level line: the multiple would be a constant of nature, as a citation without its budget has it.",
)
ORACLE_WORDS = (
    "How often networks trained against the probability that was said beforehand, with 95 % intervals, and below how "
    "many networks there were. The oracle, and a multiple of xi_c where it is shown, were fitted to other networks.",
    "On the diagonal a probability means what it says; many networks at both ends: it says much.",
    "Points far from the diagonal, or all networks in the middle: then it knows no more than the share that trains.",
)


NO_ORACLE = (
    "the oracle: there is none in the published records yet; "
    "`python -m experiments.report scale=full publish=true only=trainability` fits one"
)
DIFFERENT = 0.05
"""Below this p-value multiples are not one number."""


def report_lines(folder: Path, tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Return the summary that is printed: of one network what became of it, of a sweep its map."""
    from bpexp.dashboard import hint
    from bpexp.records import read_results

    results, cells = read_results(folder), tables["map"]
    lines = [""]
    if results.height == 1:
        lines += network_lines(results.row(0, named=True), cells.row(-1, named=True))
    else:
        lines += [*textwrap.wrap(answer(tables), 100), "", *map_lines(cells), "", oracle_text(tables.get("foreseen"))]
    lines += ["", f"figures: {folder / 'figures'}"] if results.height > 1 else [""]
    return [*lines, *hint(folder).splitlines()]


def network_lines(result: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    """Say of one network theory's scales, what the oracle said, and what became of it."""
    scales = "no depth scale: theory has none for such layers"
    if math.isfinite(cell["chi_1"]):
        depth = cell["model.depth"]
        scales = f"chi_1 = {cell['chi_1']:.3g}; "
        scales += "; ".join(
            f"{name} = {cell[key]:.3g}, L = {depth / cell[key]:.2g} of it"
            for key, name in SCALES.items()
            if cell[key] > 0
        )
    ended = outcome_text(result)
    for word in ("not trained: ", "trained: ", "diverged "):
        ended = ended.removeprefix(word)
    return [scales, foreseen_text(result), f"it {outcome_word(cell)}: {ended}"]


def outcome_word(cell: Mapping[str, Any]) -> str:
    return next(name for name in ("trains", "stalls", "diverges") if cell[name])


def foreseen_text(result: Mapping[str, Any]) -> str:
    """Return what the published oracle says of a network."""
    from bpexp.theory import NoPredictionError

    oracle = trainability_oracle.published_oracle()
    if oracle is None:
        return NO_ORACLE
    try:
        chances = oracle.predict(result)
    except NoPredictionError as error:
        return f"the oracle: {error}"
    return f"the oracle: {', '.join(f'{name} {chance:.0%}' for name, chance in chances.items())}"


def oracle_text(foreseen: polars.DataFrame | None) -> str:
    """Return how well the published oracle foresaw networks."""
    if foreseen is None:
        return NO_ORACLE
    trained = (foreseen["outcome"] == "trains").to_numpy().astype(float)
    text = f"the oracle: it speaks of {foreseen.height} networks at a step budget"
    if 0 < trained.sum() < foreseen.height:
        found = trainability_oracle.skill(foreseen["trains"].to_numpy(), trained)
        text += f", of which {trained.mean():.0%} train, with a Brier skill of {found:.3g}"
    return text


def map_lines(cells: polars.DataFrame) -> list[str]:
    """Return the mean accuracy of each cell after the last budget, a line for each series and sigma_w^2.

    Of a regression it is the share that trained.
    """
    last = cells.filter(cells["train.steps"] == cells["train.steps"].max())
    depths = last["model.depth"].unique().sort().to_list()
    shown = "accuracy" if last["accuracy"].is_finite().any() else "trained"
    rows = []
    for (series, gain), own in last.group_by("series", "init.gain", maintain_order=True):
        at = {row["model.depth"]: f"{row[shown]:.2f}" for row in own.iter_rows(named=True)}
        first = own.row(0, named=True)
        scales = [number_text(first[name]) for name in ("sigma_w2", *SCALES)]
        rows.append((str(series), number_text(gain), *scales, *(at.get(depth, "-") for depth in depths)))
    columns = (shown, "gain", "sigma_w^2", *SCALES.values(), *(f"L = {depth}" for depth in depths))
    return aligned(columns, rows)


def answer(tables: Mapping[str, polars.DataFrame]) -> str:
    """Say in a few sentences what was found, from the tables alone."""
    cells, multiples = tables["map"], tables["multiples"]
    trained = int((cells["trained"] >= 0.5).sum())
    text = f"Of {cells.height} cells, each networks of one kind at a step budget, {trained} train."
    sides = [
        f"{series}, {side} side: {', '.join(map(multiple_text, own.iter_rows(named=True)))}"
        for (series, side), own in multiples.filter(multiples["scale"] == "xi_c").group_by(
            "series", "side", maintain_order=True
        )
    ]
    if sides:
        depends = "Half of the networks train at a multiple of xi_c that depends on the step budget"
        text = f"{depends}: {'; '.join(sides)}. {text}"
    text += different_text(tables.get("variances")) + compared_text(tables.get("comparisons"))
    if "scores" in tables:
        parts = {row["part"]: row for row in tables["scores"].iter_rows(named=True)}
        first, *others = parts.values()
        text += (
            f" On {first['networks']} held-out networks, of which {first['trained']:.0%} train, the oracle has a Brier "
        )
        text += f"skill of {number_text(first['skill'])} {range_text(first['skill_low'], first['skill_high'])}"
        text += "".join(f"; {row['part']} {number_text(row['skill'])}" for row in others[:1])
        text += "".join(
            f"; {row['part']} {number_text(row['skill'])}, where a fitted multiple of xi_c has "
            f"{number_text(row['skill_of_xi_c'])} and the published one {number_text(row['skill_of_published'])}"
            for row in others
            if math.isfinite(row["skill_of_xi_c"])
        )
        text += "."
    return text


def different_text(variances: polars.DataFrame | None) -> str:
    """Say where the multiples of the several sigma_w^2 of a side are not one number."""
    text = ""
    if variances is None:
        return text
    keys = ["series", "side", "train.steps", "scale"]
    for (_, side, steps, scale), own in variances.group_by(keys, maintain_order=True):
        if own["p_value"][0] < DIFFERENT:
            each = ", ".join(
                f"{row['multiple']:.2f} at sigma_w^2 = {number_text(row['sigma_w2'])}"
                for row in own.filter(own["inside"]).iter_rows(named=True)
            )
            text += f"; {side} side, {steps} steps, of {SCALES[str(scale)]}: {each} (p = {own['p_value'][0]:.1g})"
    return f" One multiple does not fit all sigma_w^2: {text[2:]}." if text else ""


def compared_text(comparisons: polars.DataFrame | None) -> str:
    """Say which depth scale describes the networks better after the last budget, where the two differ."""
    text = ""
    if comparisons is None or comparisons.is_empty():
        return text
    for row in comparisons.filter(comparisons["train.steps"] == comparisons["train.steps"].max()).iter_rows(named=True):
        which = "the gradient's 1/|ln chi_1|" if row["gain"] > 0 else "xi_c"
        decided = row["low"] > 0 or row["high"] < 0
        text += f" On the {row['side']} side "
        text += f"{which} describes them better" if decided else "neither xi_c nor 1/|ln chi_1| describes them better"
        text += f": after the last budget 1/|ln chi_1| raises the log likelihood by {row['gain']:.1f} "
        text += f"{range_text(row['low'], row['high'])}."
    return text


def multiple_text(row: Mapping[str, Any]) -> str:
    """Say up to which multiple of its scale networks train."""
    when = f"after {row['train.steps']} steps"
    if math.isnan(row["multiple"]):
        return f"{when} at none, as deeper ones train more"
    if not row["inside"]:
        return f"{when} outside the multiples there are, which end at {row['multiple']:.2g}"
    return f"{when} {row['multiple']:.2f} {range_text(row['low'], row['high'])}"


def multiples_table(multiples: polars.DataFrame) -> Table:
    """Return the fitted multiples as text."""
    rows = tuple(
        (
            row["series"],
            row["side"],
            str(row["train.steps"]),
            SCALES[row["scale"]],
            f"{row['multiple']:.2f} {range_text(row['low'], row['high'])}" if row["inside"] else "beyond the depths",
            number_text(row["slope"]),
            f"{row['log_loss']:.3f}",
            str(row["sigma_w2s"]),
            str(row["networks"]),
        )
        for row in multiples.iter_rows(named=True)
    )
    columns = ("series", "side", "steps", "scale", "multiple [95 %]", "steepness", "log loss", "sigma_w^2", "networks")
    caption = (
        "The multiple of a depth scale at which half of the networks train, P = 1/(1 + (L / (multiple xi))^s) with "
    )
    caption += "its steepness s, over all sigma_w^2 of a side whose scale the deepest networks reach "
    caption += f"{MULTIPLES_TESTED:g} times; log loss: how well this one curve describes them (smaller is better)."
    return Table("multiples", columns, rows, caption)


def variances_table(variances: polars.DataFrame) -> Table:
    """Return the multiples of each sigma_w^2 as text."""
    rows = tuple(
        (
            row["series"],
            row["side"],
            str(row["train.steps"]),
            SCALES[row["scale"]],
            number_text(row["sigma_w2"]),
            f"{row['multiple']:.2f} {range_text(row['low'], row['high'])}" if row["inside"] else "beyond the depths",
            number_text(row["p_value"]),
            str(row["networks"]),
        )
        for row in variances.iter_rows(named=True)
    )
    columns = ("series", "side", "steps", "scale", "sigma_w^2", "multiple [95 %]", "p, one number", "networks")
    caption = (
        "The same fit to the networks of each sigma_w^2 alone. p: how likely the multiples of a side and budget are "
    )
    caption += (
        "to differ so if they are one number (Cochran's Q over their intervals): where it is small, a multiple of "
    )
    caption += "the scale is no law, and the curve over all sigma_w^2 is their mean."
    return Table("variances", columns, rows, caption)


OF_XI_C = ("skill_of_xi_c", "skill_of_published")


def scores_table(scores: polars.DataFrame) -> Table:
    """Return the oracle's scores as text."""
    rows = tuple(
        (
            row["part"],
            str(row["networks"]),
            f"{row['trained']:.0%}",
            f"{row['brier']:.3f}",
            f"{number_text(row['skill'])} {range_text(row['skill_low'], row['skill_high'])}",
            *(number_text(row[name]) if math.isfinite(row[name]) else "-" for name in OF_XI_C),
            number_text(row["skill_of_three"]),
        )
        for row in scores.iter_rows(named=True)
    )
    columns = (
        "held-out",
        "networks",
        "train",
        "Brier score",
        "skill [95 %]",
        "of a fitted multiple",
        "of the published",
        "three outcomes",
    )
    caption = "Held out are activations and depths that the oracle has not seen. Skill: 1 - Brier score / that of the "
    caption += "share that trains, 1 is perfect; beside it, where all have an xi_c, that of a fitted multiple and of "
    caption += f"6 xi_c; and that of all three outcomes. Fitted to {scores['fitted'][0]} networks."
    return Table("oracle_scores", columns, rows, caption)


def oracle_table(oracle: polars.DataFrame) -> Table:
    """Return the oracle's weights as text."""
    names = oracle.columns[1:]
    rows = tuple((row["feature"], *(f"{row[name]:.2f}" for name in names)) for row in oracle.iter_rows(named=True))
    caption = (
        "The oracle: P(trains) = fast x stable, P(diverges) = (1 - stable) x diverges, each gate a logistic of the "
    )
    caption += "standardized features. progress: log of steps x learning rate x what tells classes apart in the "
    caption += "tangent kernel; step: log of the learning rate over the largest stable one; fluctuation: root of the "
    caption += "variance of log squared gradients at the width; outputs: log of their mean square at the start; noise: "
    caption += "root of the sum over masks of dropout of p/(1-p)."
    return Table("oracle", ("feature", *(name.replace("_", " ") for name in names)), rows, caption)


def measured(tables: Mapping[str, polars.DataFrame]) -> tuple[tuple[str, str], ...]:
    """Return what was measured, and how."""
    from bpexp.runner import TRAINED_ACCURACY

    steps = ", ".join(map(str, tables["map"]["train.steps"].unique().sort().to_list()))
    found = [
        ("step budgets", f"{steps}: the same networks, looked at on the way"),
        ("trains", f"accuracy of at least {TRAINED_ACCURACY} on the budget's last training batch"),
        (
            "diverges",
            f"a number is not finite, or the loss ends above {LOSS_GREW:g} times its first one; else a "
            "network that does not train stalls",
        ),
        ("intervals", "multiples: 95 % over 400 resamples of the seeds; skills: of the held-out networks"),
    ]
    if "held_out" in tables:
        depths, names = ("model.depth", "model.activation")
        held = tables["held_out"]
        found.append(
            (
                "held out",
                f"L = {', '.join(map(str, held[depths].unique().sort().to_list()))}; "
                f"{', '.join(held[names].unique(maintain_order=True).to_list())}",
            )
        )
    return tuple(found)
