"""What the tables of the benchmark say: as lines for a terminal, and as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.page import Picture, Section, Table

if TYPE_CHECKING:
    import polars

STEP_COLUMNS = ("size", "activation", "torch's side", "ours", "torch", "ours / torch", "wall", "target", "verdict")
NETWORK_COLUMNS = ("networks", "activation", "ours, a network", "torch, a network", "times as fast")
DROPOUT_COLUMNS = ("size", "activation", "with", "without", "with / without", "share of the step", "target", "verdict")
MEASURING_COLUMNS = ("size", "activation", "measured / plain step", "added to training")
MEMORY_COLUMNS = ("size", "activation", "parameters", "plan", "plan with all values kept", "torch saves")


def lines(tables: Mapping[str, polars.DataFrame]) -> list[str]:
    """Return the tables and the answer for a terminal."""
    found = [answer(tables)]
    for table in text_tables(tables):
        found += ["", f"{table.name}: {table.caption}", *aligned((table.columns, *table.rows))]
    return found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def answer(tables: Mapping[str, polars.DataFrame]) -> str:
    """Return what became of the rows that were asked."""
    steps, dropout = tables["steps"], tables["dropout"]
    asked = steps.filter("asked")
    reached = [*asked["verdict"], *dropout["verdict"]].count("confirmed")
    rows = "; ".join(f"{row['ratio']:.2f} at {row['size']}" for row in asked.iter_rows(named=True))
    text = f"{reached} of {len(asked) + len(dropout)} asked targets are reached, with relu. "
    text += f"Of torch's time our step takes {rows}."
    for row in dropout.iter_rows(named=True):
        text += f" {row['size']} take {row['ratio']:.2f} times their time without."
    aimed = steps.filter(steps["target"].is_not_null())
    for row in [*aimed.iter_rows(named=True), *dropout.iter_rows(named=True)]:
        if row["verdict"] != "confirmed":
            text += f" {row['size']}, {row['activation']}: {row['verdict']}, "
            text += f"{spread(row, 'ratio', 3)} where {row['target']:.3f} is the target."
    return text


def text_tables(tables: Mapping[str, polars.DataFrame]) -> tuple[Table, ...]:
    """Return the tables as text."""
    return (
        Table("steps", STEP_COLUMNS, step_rows(tables["steps"]), STEPS_CAPTION),
        Table("networks", NETWORK_COLUMNS, network_rows(tables["networks"]), NETWORKS_CAPTION),
        Table("dropout", DROPOUT_COLUMNS, dropout_rows(tables["dropout"]), DROPOUT_CAPTION),
        Table("measuring", MEASURING_COLUMNS, measuring_rows(tables["measuring"]), MEASURING_CAPTION),
        Table("memory", MEMORY_COLUMNS, memory_rows(tables["memory"]), MEMORY_CAPTION),
    )


STEPS_CAPTION = (
    "A training step. Times are medians of processor time; ours / torch is the median over the rounds with its 95 % "
    "interval, wall the same by the clock on the wall. Confirmed: the whole interval is at or below the target. "
    "The targets were asked for relu; with tanh those of plain networks are held against the same rows."
)
NETWORKS_CAPTION = "Networks side by side against one in torch, the time of a step for each network."
DROPOUT_CAPTION = (
    "Our step with dropout, the masks drawn anew in each, over that of the same networks without; and the share of the "
    "step with dropout that it takes. The target is on the ratio: dropout adds at most that to the step without."
)
MEASURING_CAPTION = (
    "A step that keeps every layer's values and takes all measures of layers, over a plain one; and what that adds to "
    "training at the default interval between measures."
)
MEMORY_CAPTION = (
    "What a step needs beside parameters, gradients and the batch: the plan's buffers, and what torch's autograd saves "
    "for its backward pass (its temporaries not counted)."
)


def step_rows(steps: polars.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            row["size"],
            row["activation"],
            row["against"],
            microseconds(row["ours_us"]),
            microseconds(row["torch_us"]),
            spread(row, "ratio", 3),
            f"{row['wall_ratio']:.3f}",
            "" if row["target"] is None else f"{row['target']:.3f}",
            row["verdict"] or "",
        )
        for row in steps.iter_rows(named=True)
    )


def network_rows(networks: polars.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            str(row["networks"]),
            row["activation"],
            microseconds(row["ours_us"]),
            microseconds(row["torch_us"]),
            spread(row, "speedup", 2),
        )
        for row in networks.iter_rows(named=True)
    )


def dropout_rows(dropout: polars.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            row["size"],
            row["activation"],
            microseconds(row["with_us"]),
            microseconds(row["without_us"]),
            spread(row, "ratio", 3),
            f"{100 * row['share']:.1f} %",
            f"{row['target']:.3f}",
            row["verdict"],
        )
        for row in dropout.iter_rows(named=True)
    )


def measuring_rows(measuring: polars.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            row["size"],
            row["activation"],
            spread(row, "ratio", 2),
            f"{100 * row['added']:.1f} % at every {row['every']} steps",
        )
        for row in measuring.iter_rows(named=True)
    )


def memory_rows(memory: polars.DataFrame) -> tuple[tuple[str, ...], ...]:
    sizes = ("parameters", "buffers", "buffers_measured", "torch_saved")
    return tuple(
        (row["size"], row["activation"], *(f"{row[size] / 2**20:.2f} MiB" for size in sizes))
        for row in memory.iter_rows(named=True)
    )


def spread(row: Mapping[str, Any], name: str, digits: int) -> str:
    middle, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def microseconds(value: float) -> str:
    return f"{value:.0f} us"


def pictures(tables: Mapping[str, polars.DataFrame]) -> list[Picture]:
    """Draw the figures of the tables."""
    import polars

    from bpexp import figures
    from bpexp.figures.cost import side_by_side, step_ratios

    compiled = polars.col("against").str.contains("torch.compile")
    label = polars.col("size").str.replace(" with ", "\nwith ", literal=True)  # else it is wider than the picture
    kind = polars.when(compiled).then(polars.lit("torch.compile")).otherwise(polars.lit("torch")).alias("kind")
    return [
        Picture(
            "step_ratios",
            figures.svg(step_ratios(tables["steps"].with_columns(kind, size=label))),
            "The time of our training step over that of torch's, with 95 % intervals over the rounds, and the targets.",
            answer(tables),
            "Intervals to the right of their targets: a target is missed. Intervals that reach across their targets: "
            "too few rounds, or too noisy a machine, to say.",
        ),
        Picture(
            "side_by_side",
            figures.svg(side_by_side(tables["networks"])),
            "How many times as fast a small network trains among R side by side as alone in torch.",
            best(tables["networks"]),
            "A curve that stays at its first value: networks side by side would save nothing.",
        ),
    ]


def best(networks: polars.DataFrame) -> str:
    """Return where each activation's curve is highest."""
    rows = networks.sort("speedup").group_by("activation", maintain_order=True).last().sort("activation")
    parts = [
        f"{row['speedup']:.1f} times at R = {row['networks']} with {row['activation']}"
        for row in rows.iter_rows(named=True)
    ]
    return f"Up to {', '.join(parts)}. Past a few networks the matrix products are the limit, and tanh itself."


def make_section(tables: Mapping[str, polars.DataFrame], scales: Mapping[str, str]) -> Section:
    """Return the section of the report that the summary tables make."""
    made, rounds = tables["scale"].row(0, named=True), tables["steps"]["rounds"][0]
    targets = tables["steps"].filter("asked")
    return Section(
        name="cost",
        title="What a training step costs",
        question="Does a backward pass written by hand, recorded once and replayed, cost more than torch's own?",
        prediction="It costs less, for nothing is allocated or looked up. Of torch's time a step takes at most "
        + "; ".join(f"{row['target']:.3f} at {row['size']}" for row in targets.iter_rows(named=True))
        + ". Dropout adds at most 40 % to the step of 32 small networks. Where matrix products take all the time, both "
        "take the same.",
        answer=answer(tables),
        method=method(made, rounds, scales),
        commands=(f"python -m experiments.cost scale={made['scale']}",),
        pictures=tuple(pictures(tables)),
        tables=text_tables(tables),
    )


def method(made: Mapping[str, Any], rounds: int, scales: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return (
        ("part computed", scales[made["scale"]]),
        (
            "varied",
            "networks, depth, width, batch size, activation, norm, skip connections, dropout; torch's optimizer, "
            "set_to_none and inplace",
        ),
        (
            "torch's side",
            "nn.Sequential of nn.Linear and nn.ReLU or nn.Tanh, where a row has them nn.BatchNorm1d or nn.LayerNorm "
            "before, nn.Dropout after and x + branch around these; nn.CrossEntropyLoss, autograd, torch.optim.SGD, "
            "with the fastest of fused or foreach, set_to_none and inplace, found for each row beforehand; R networks "
            "one after another",
        ),
        (
            "fixed",
            "digits, float32, cross-entropy, plain SGD, one thread, one batch: drawing it is not timed, but drawing "
            "the masks of dropout is",
        ),
        ("averaged over", f"{rounds} rounds; every side has a turn in each, the order reversed from round to round"),
        ("measured on", f"torch {made['torch']}, CPU with {made['instructions']}; processor time of the process"),
        ("intervals", "95 % of the median of the rounds' ratios, by order statistics"),
    )
