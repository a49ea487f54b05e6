"""Backpropagation in five steps, with every number printed: a walkthrough for a person who learns.

A network of 2 inputs, 3 hidden units and 2 outputs learns XOR. You will see its forward pass, its loss, the chain rule
layer by layer with torch autograd's number beside each derivative, one update, and the iteration until it has learnt,
for the mean squared error and for cross-entropy. Two short tables end it: how large a learning rate may be, and why
depth makes a gradient vanish or explode. The text and its numbers stay in outputs/walkthrough.

Then write a backward of your own: python -m experiments.exercise
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp import entry
from experiments.walkthrough_numbers import BOUND, CURVATURES, DEPTH, EARLY, ETA, HIDDEN, LATE, LOSSES, walk

if TYPE_CHECKING:
    import polars

    from experiments.page import Section, Table

SCALES = dict.fromkeys(("smoke", "default", "full"), "All of it, with seed 0: a few seconds.")


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Return the tables of the walkthrough with seed 0, the same at every scale; it needs no folder."""
    return walk(0)


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section of the report."""
    from bpexp.figures import svg
    from bpexp.figures.walkthrough import learning_rates, loss_curves
    from experiments.page import Picture, Section

    numbers, ends, [limits] = tables["numbers"], tables["summary"], tables["threshold"].iter_rows(named=True)
    largest = max(abs(ours - theirs) for ours, theirs in numbers.select("by_hand", "torch").iter_rows())
    met = ", ".join(
        f"{LOSSES[row['loss']].title} {'met it' if row['met'] else 'had NOT met it'} after {row['epochs']} epochs"
        for row in ends.iter_rows(named=True)
    )
    shown = " and ".join(f"{curvature:g}" for curvature in CURVATURES)
    agree = (tables["rates"]["predicted"] == tables["rates"]["measured"]).all()
    return Section(
        name="walkthrough",
        title="Backpropagation in five steps",
        question="What does backpropagation compute, number by number, and how large may its step be?",
        prediction="Each derivative by the chain rule equals torch autograd's up to rounding. Gradient descent on a"
        " quadratic converges where every |1 - eta lambda| < 1, oscillates at 1 and diverges beyond: from"
        f" eta = 2/lambda_max = {limits['limit']:g} on.",
        answer=f"The largest difference to torch in {len(numbers)} numbers is {largest:.1e}. The criterion was a loss"
        f" below {BOUND:g}: {met}. The verdicts on {len(tables['rates'])} learning rates are"
        f" {'all' if agree else 'NOT all'} as predicted, and by bisection the largest rate that does not diverge is"
        f" {limits['largest_kept']!r}.",
        method=(
            ("varied", "the loss: mean squared error, cross-entropy; the learning rate on the quadratic"),
            ("averaged over", "nothing: one network, shown whole"),
            ("fixed", f"XOR, 2-{HIDDEN}-2 with tanh, full batch, eta {ETA:g}, float64; the quadratic's lambda {shown}"),
            ("measured on", "the four samples that it learns from; there is nothing to generalize to"),
            ("intervals", "none: every number follows from seed 0"),
        ),
        commands=("python -m experiments.walkthrough", "python -m experiments.exercise"),
        pictures=(
            Picture(
                "loss",
                svg(loss_curves(tables["curves"].with_columns(title=_titles(tables["curves"])), BOUND)),
                "The loss before each epoch until the stated criterion, the dashed line.",
                "Both losses fall until they meet the criterion. Cross-entropy takes longer: it never reaches its"
                " infimum 0, for it always gains from larger outputs.",
                "A curve that ends above the dashed line, or one that rises: a step too large, or a gradient with an"
                " error in it.",
            ),
            Picture(
                "learning_rate",
                svg(learning_rates(tables["rates"], EARLY)),
                f"The quadratic's loss after {EARLY} updates over the loss at the start, against the learning rate.",
                "Every point lies on the line that 1 - eta lambda predicts. Left of 2/lambda_max the loss falls in the"
                " end, right of it it grows without bound.",
                "Points off the line, or a loss that still falls far right of the vertical line.",
            ),
        ),
        tables=(*(_derivatives(numbers, loss) for loss in LOSSES), _rates(tables["rates"]), _chains(tables["chains"])),
    )


def _titles(curves: polars.DataFrame) -> polars.Series:
    return curves["loss"].replace_strict({name: loss.title for name, loss in LOSSES.items()})


def _derivatives(numbers: polars.DataFrame, loss: str) -> Table:
    from experiments.page import Table

    kept = numbers.filter(loss=loss).filter(numbers.filter(loss=loss)["name"].str.contains("^(dL|delta|L$)"))
    rows = tuple(
        (
            f"{row['name']}[{row['row']},{row['column']}]",
            row["formula"],
            f"{row['by_hand']:.6f}",
            f"{row['torch']:.6f}",
            f"{abs(row['by_hand'] - row['torch']):.0e}",
        )
        for row in kept.iter_rows(named=True)
    )
    caption = f"The loss and its derivatives, {LOSSES[loss].title}: N = 4 samples n, C = 2 classes"
    return Table(f"derivatives_{loss}", ("number", "formula", "by hand", "torch", "difference"), rows, caption)


def _rates(rates: polars.DataFrame) -> Table:
    from experiments.page import Table

    rows = tuple(
        (
            f"{r['multiple']:g}",
            f"{r['eta']:g}",
            f"{r['factor']:.6f}",
            f"{r['growth']:.6f}",
            r["predicted"],
            r["measured"],
        )
        for r in rates.iter_rows(named=True)
    )
    columns = ("eta / (2/lambda_max)", "eta", "largest |1 - eta lambda|", "measured factor", "predicted", "measured")
    caption = f"The factor is that of the gradient's norm in update {LATE}; below 1 converges, above 1 diverges"
    return Table("rates", columns, rows, caption)


def _chains(chains: polars.DataFrame) -> Table:
    from experiments.page import Table

    rows = tuple(
        (
            f"{r['activation']}, w = {r['weight']:g}",
            str(r["layer"]),
            "" if r["factor"] is None else f"{r['factor']:.4f}",
            f"{r['product']:.4g}",
        )
        for r in chains.iter_rows(named=True)
    )
    caption = f"Why depth is hard: one unit a layer, a gradient of 1 in layer {DEPTH} on its way to layer 1"
    return Table("chains", ("network", "layer", "factor w f'(z)", "product"), rows, caption)


def show(text: str) -> None:
    """Print a text, its headings bold where there is a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in text.splitlines():
        console.print(line, style="bold" if line[:1].isupper() and line.split(".")[0].isupper() else None)


def program(config: Any, folder: Path) -> None:
    """Print the walkthrough, and leave its text and its tables in the folder."""
    from bpexp.sweep.files import write_parquet, write_text
    from experiments.walkthrough_text import text

    tables = walk(config.seed)
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    said = text(tables)
    write_text(folder / "walkthrough.txt", said)
    show(f"{said}\nThis text and its numbers: {folder}")


if __name__ == "__main__":
    sys.exit(entry.main("walkthrough", __doc__, program=program))
