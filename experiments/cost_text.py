"""What the tables of the benchmark say: as lines for a terminal, and as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.cost_tables import Asked, asked, text_tables
from experiments.page import Picture, Section

if TYPE_CHECKING:
    import polars

    from experiments.cost_tables import Tables


def lines(tables: Tables) -> list[str]:
    """Return the tables and the answer for a terminal."""
    found = [answer(tables)]
    for table in text_tables(tables):
        found += ["", f"{table.name}: {table.caption}", *aligned((table.columns, *table.rows))]
    return found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def answer(tables: Tables) -> str:
    """Return what became of the targets, what was found beside them, and every target that was not reached."""
    targets = asked(tables)
    reached = [one.verdict for one in targets].count("confirmed")
    found = f"{reached} of {len(targets)} targets that were asked are reached. {steps_answer(tables['steps'])}"
    for name, say in (("small_steps", small_answer), ("sweeps", sweeps_answer), ("parts", parts_answer)):
        if name in tables:
            found += f" {say(tables[name])}"
    for verdict in ("refuted", "inconclusive"):
        if missed := [one for one in targets if one.verdict == verdict]:
            found += f" {verdict.capitalize()}: {'; '.join(map(said, missed))}."
    return found


def said(one: Asked) -> str:
    return f"{one.what} is {one.found}, {one.target} was asked"


def steps_answer(steps: polars.DataFrame) -> str:
    rows = "; ".join(f"{row['ratio']:.2f} at {row['size']}" for row in steps.filter("asked").iter_rows(named=True))
    return f"Of torch's time our step takes {rows}."


def small_answer(small: polars.DataFrame) -> str:
    best = small.sort("speedup").row(-1, named=True)
    return f"Small steps are up to {best['speedup']:.1f} times as fast, at R = {best['networks']}."


def sweeps_answer(sweeps: polars.DataFrame) -> str:
    """Return how many times as fast each sweep is as what it is compared with."""
    found = []
    for (sweep,), rows in sweeps.group_by("sweep", maintain_order=True):
        parts = [f"{row['ratio']:.2f} times as fast as {row['against']}" for row in rows.iter_rows(named=True)]
        found.append(f"{sweep}, all in, are {', '.join(parts)}.")
    return " ".join(found)


def parts_answer(parts: polars.DataFrame) -> str:
    """Return what the time of a job is made of."""
    times = dict(parts.select("part", "ms").rows())
    products, steps, training, whole = times.values()
    share = parts.row(-1, named=True)["share"]
    return (
        f"Of the {whole:.1f} ms of a job of the first, {products:.1f} are matrix products at their peak, "
        f"{steps - products:.1f} the rest of the steps, {training - steps:.1f} measuring and evaluating, and "
        f"{whole - training:.1f} composing, launching and writing: {100 * share:.0f} % of the peak."
    )


def pictures(tables: Tables) -> list[Picture]:
    """Draw the figures of the tables."""
    import polars

    from bpexp import figures
    from bpexp.figures.cost import job_parts, side_by_side, step_ratios, sweep_ratios

    compiled = polars.col("against").str.contains("torch.compile")
    label = polars.col("size").str.replace(" with ", "\nwith ", literal=True)  # else it is wider than the picture
    kind = polars.when(compiled).then(polars.lit("torch.compile")).otherwise(polars.lit("torch")).alias("kind")
    fastest = tables["steps"].unique(["size", "activation", kind], keep="first", maintain_order=True)
    found = [
        Picture(
            "step_ratios",
            figures.svg(step_ratios(fastest.with_columns(kind, size=label))),
            "The time of our training step over that of torch's, with 95 % intervals over the rounds, and the targets.",
            steps_answer(tables["steps"]),
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
    if "sweeps" in tables:
        found += [
            Picture(
                "sweep_ratios",
                figures.svg(sweep_ratios(tables["sweeps"])),
                "How many times as fast a whole sweep is as plain loops in torch, with 95 % intervals over the rounds, "
                "and the targets where the sweep is of the size that was asked.",
                sweeps_answer(tables["sweeps"]),
                "Points to the left of 1: whoever wants many networks had better write the loop.",
            ),
            Picture(
                "job_parts",
                figures.svg(job_parts(tables["parts"])),
                "What the time of a job in a sweep is made of.",
                parts_answer(tables["parts"]),
                "A last part as long as the first: what is written would cost as much as what is computed.",
            ),
        ]
    return found


def best(networks: polars.DataFrame) -> str:
    """Return where each activation's curve is highest."""
    rows = networks.sort("speedup").group_by("activation", maintain_order=True).last().sort("activation")
    parts = [
        f"{row['speedup']:.1f} times at R = {row['networks']} with {row['activation']}"
        for row in rows.iter_rows(named=True)
    ]
    return f"Up to {', '.join(parts)}. Past a few networks the matrix products are the limit, and tanh itself."


def make_section(tables: Tables, scales: Mapping[str, str]) -> Section:
    """Return the section of the report that the summary tables make."""
    made, rounds = tables["scale"].row(0, named=True), tables["steps"]["rounds"][0]
    return Section(
        name="cost",
        title="What training costs",
        question="Does a backward pass written by hand, recorded once and replayed, cost more than torch's own, and "
        "what does a sweep of small networks cost against a loop in torch for each?",
        prediction=prediction(tables),
        answer=answer(tables),
        method=method(made, rounds, scales),
        commands=(f"python -m experiments.cost scale={made['scale']}",),
        pictures=tuple(pictures(tables)),
        tables=text_tables(tables),
    )


def prediction(tables: Tables) -> str:
    targets = "; ".join(
        f"{row['target']:.3f} at {row['size']}" for row in tables["steps"].filter("asked").iter_rows(named=True)
    )
    return (
        "It costs less, for nothing is allocated or looked up. Of torch's time a step takes at most "
        f"{targets}. Small steps are 20 times as fast among 32 networks side by side. Dropout adds at most 40 % to "
        "the step of 32 small networks, all measures every tenth step 2 %. Where matrix products take all the time, "
        "both take the same.\n\n"
        "A sweep of 256 jobs of 300 steps, L10 D32 B128, is 4.5 times as fast on one core as a plain loop for each "
        "job, 3.6 times with dropout, 25 times as fast as a process for each; one of 1,000 jobs 5 times, in under 120 "
        "s. Its steps reach 70 % of the speed of the matrix product alone. A job costs 10 ms beside its training, 100 "
        "scalars to TensorBoard 0.25 ms. Two processes train 512 such jobs 1.8 times as fast as one."
    )


def method(made: Mapping[str, Any], rounds: int, scales: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return (
        ("part computed", scales[made["scale"]]),
        (
            "varied",
            "networks, depth, width, batch size, activation, norm, skip connections, dropout; torch's optimizer, "
            "set_to_none and inplace; of sweeps the jobs, dropout, and how they are started",
        ),
        (
            "torch's side",
            "nn.Sequential of nn.Linear and nn.ReLU or nn.Tanh, where a row has them nn.BatchNorm1d or nn.LayerNorm "
            "before, nn.Dropout after and x + branch around these; nn.CrossEntropyLoss, autograd, torch.optim.SGD, "
            "with the fastest of fused or foreach, set_to_none and inplace, found for each row beforehand; R networks "
            "one after another",
        ),
        (
            "torch's loop for a job",
            "the same network and optimizer; the data split and on the device already, a new order each epoch, a "
            "batch taken by its indices; nothing measured or written. A process of its own imports torch, Hydra and "
            "TensorBoard and reads its data from a file",
        ),
        (
            "our sweep",
            "`python -m experiments.gradient_flow -m` over seeds and learning rates, sweep.executor=inline, every "
            "tenth step measured: composing, folders, records, TensorBoard, results",
        ),
        (
            "fixed",
            "digits, float32, cross-entropy, plain SGD, one thread. In the tables of steps one batch, whose drawing "
            "is not timed, but for `small_steps` and `measures`; drawing the masks of dropout is",
        ),
        ("averaged over", f"{rounds} rounds; every side has a turn in each, the order reversed from round to round"),
        ("averaged over, sweeps", "2 to 7 rounds; plain loops before and after our sweep"),
        ("measured on", f"torch {made['torch']}, CPU with {made['instructions']}; processor time of the process"),
        (
            "intervals",
            "95 % of the median of the rounds' ratios, by order statistics; of sweeps, whose rounds are few, of the "
            "mean or the geometric mean, by Student's t",
        ),
    )
