"""The tables of the benchmark as texts: every row with its interval, its target and what became of it.

Records of an older benchmark may lack a table: then it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.page import Table

if TYPE_CHECKING:
    import polars

Row = Mapping[str, Any]
Tables = Mapping[str, "polars.DataFrame"]


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and its text in a row."""

    head: str
    text: Callable[[Row], str]


@dataclass(frozen=True)
class Layout:
    """How a table is shown, and in which words its rows were asked: what, and what was found.

    `found` is the column of the interval that is held against the row's target, `least` whether it is to be at least
    that.
    """

    caption: str
    columns: tuple[Column, ...]
    what: Callable[[Row], str] = lambda row: ""
    found: str = "ratio"
    digits: int = 3
    least: bool = False


@dataclass(frozen=True)
class Asked:
    """What became of a target."""

    what: str
    found: str
    target: str
    verdict: str


def text(name: str) -> Callable[[Row], str]:
    return lambda row: "" if row[name] is None else f"{row[name]:,}" if isinstance(row[name], int) else str(row[name])


def number(name: str, form: str, unit: str = "") -> Callable[[Row], str]:
    """Return a cell: a number, or nothing where there is none."""
    return lambda row: "" if row[name] is None else f"{row[name]:{form}}{unit}"


def spread(row: Row, name: str, digits: int) -> str:
    middle, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ranged(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: spread(row, name, digits)


def mebibytes(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] / 2**20:.2f} MiB"


VERDICT = Column("verdict", text("verdict"))
SIZE = (Column("size", text("size")), Column("activation", text("activation")))

LAYOUTS = {
    "steps": Layout(
        "A training step. Times are medians of processor time; ours / torch is the median over the rounds with its "
        "95 % interval, wall the same by the clock on the wall. Confirmed: the whole interval is at or below the "
        "target. The first row of a size is against the fastest side of torch; where that is not fused SGD, one with "
        "it follows. The targets of plain networks are for relu, and at L100 for tanh; the other rows with tanh are "
        "held against those with relu.",
        (
            *SIZE,
            Column("torch's side", text("against")),
            Column("ours", number("ours_us", ".0f", " us")),
            Column("torch", number("torch_us", ".0f", " us")),
            Column("ours / torch", ranged("ratio", 3)),
            Column("wall", number("wall_ratio", ".3f")),
            Column("target", number("target", ".3f")),
            VERDICT,
        ),
        what=lambda row: f"a step's time over torch's, {row['size']}, {row['activation']}",
    ),
    "networks": Layout(
        "Networks side by side against one in torch, the time of a step for each network.",
        (
            Column("networks", text("networks")),
            Column("activation", text("activation")),
            Column("ours, a network", number("ours_us", ".1f", " us")),
            Column("torch, a network", number("torch_us", ".0f", " us")),
            Column("times as fast", ranged("speedup", 2)),
        ),
    ),
    "small_steps": Layout(
        "Small steps: training steps alone, but with the drawing of their batches on both sides. Torch's side is the "
        "plain loop of the sweeps.",
        (
            *SIZE,
            Column("ours, a network", number("ours_us", ".1f", " us")),
            Column("torch, a network", number("torch_us", ".0f", " us")),
            Column("times as fast", ranged("speedup", 2)),
            Column("target", number("target", ".1f")),
            VERDICT,
        ),
        what=lambda row: f"a step as many times as fast as torch's, {row['size']}",
        found="speedup",
        digits=1,
        least=True,
    ),
    "dropout": Layout(
        "Our step with dropout, the masks drawn anew in each, over that of the same networks without; and the share "
        "of the step with dropout that it takes. The target is on the ratio: dropout adds at most that.",
        (
            *SIZE,
            Column("with", number("with_us", ".0f", " us")),
            Column("without", number("without_us", ".0f", " us")),
            Column("with / without", ranged("ratio", 3)),
            Column("share of the step", lambda row: f"{100 * row['share']:.1f} %"),
            Column("target", number("target", ".3f")),
            VERDICT,
        ),
        what=lambda row: f"a step with dropout over one without, {row['size']}",
    ),
    "measures": Layout(
        "Training by the product's own loop with all its measures every so many steps, over steps with nothing "
        "beside; with the evaluations of the validation and the test part, as far apart as they are by default, and "
        "without.",
        (
            *SIZE,
            Column("plain step", number("plain_us", ".0f", " us")),
            Column("with measures", number("measured_us", ".0f", " us")),
            Column("measured every", number("every", "d", " steps")),
            Column("without evaluations", number("without_evaluations", ".3f")),
            Column("with / without", ranged("ratio", 3)),
            Column("target", number("target", ".3f")),
            VERDICT,
        ),
        what=lambda row: f"steps measured every {row['every']} over plain ones, {row['size']}, {row['activation']}",
    ),
    "sweeps": Layout(
        "Whole sweeps by the product's command, with all that it leaves, against a plain loop in torch for each job "
        "that measures and writes nothing. A job's time is that of the processor, all threads and processes included; "
        "`this process`: both sides find everything imported; `fresh`: our side is the whole command, its start and "
        "its figures included. Seconds are those of our whole sweep, by the processor or the clock on the wall, "
        "whichever says more. The ratios are geometric means over the rounds, with 95 % intervals by Student's t.",
        (
            Column("sweep", text("sweep")),
            Column("against", text("against")),
            Column("ours, a job", number("ours_ms", ".1f", " ms")),
            Column("theirs, a job", number("theirs_ms", ".1f", " ms")),
            Column("times as fast", ranged("ratio", 2)),
            Column("wall", number("wall_ratio", ".2f")),
            Column("target", number("target", ".1f")),
            VERDICT,
            Column("seconds", ranged("seconds", 1)),
            Column("at most", number("limit", ".0f", " s")),
            Column("verdict", text("limit_verdict")),
        ),
        what=lambda row: f"{row['sweep']}: times as fast as {row['against']}",
        digits=2,
        least=True,
    ),
    "parts": Layout(
        "What the time of a job of ours is made of: every row holds the one before it. The first is the time of the "
        "matrix products of all steps at the speed of torch's batched product at this very shape, measured in the "
        "same rounds; a share is that over the row's time.",
        (
            Column("sweep", text("sweep")),
            Column("networks side by side", text("networks")),
            Column("part", text("part")),
            Column("a job", number("ms", ".1f", " ms")),
            Column("GFLOP/s", number("gflops", ".1f")),
            Column("share of the peak", ranged("share", 3)),
            Column("target", number("target", ".2f")),
            VERDICT,
        ),
        what=lambda row: f"share of the matrix product's peak, {row['part']}, {row['sweep']}",
        found="share",
        digits=2,
        least=True,
    ),
    "launching": Layout(
        "What a job costs beside its training: the whole command for jobs of no step, the making of their networks "
        "and their first measures included. And what scalars cost in the product's event files, and with torch's own "
        "writer.",
        (
            Column("what", text("what")),
            Column("ours", ranged("ms", 3)),
            Column("beside", text("against")),
            Column("takes", number("against_ms", ".2f", " ms")),
            Column("at most", number("target", ".2f", " ms")),
            VERDICT,
        ),
        what=lambda row: f"milliseconds, {row['what']}",
        found="ms",
        digits=2,
    ),
    "processes": Layout(
        "The same sweep with one worker and with two, each a command of its own, by the clock on the wall; the start "
        "of the command and of its workers counts. Processor time is that of two over that of one: what is done twice, "
        "and how much two cores that share a memory slow each other down.",
        (
            Column("sweep", text("sweep")),
            Column("one process", number("one_s", ".1f", " s")),
            Column("two", number("two_s", ".1f", " s")),
            Column("times as fast", ranged("ratio", 2)),
            Column("processor time", number("processor_ratio", ".2f")),
            Column("target", number("target", ".1f")),
            VERDICT,
        ),
        what=lambda row: f"two processes over one, {row['sweep']}",
        digits=2,
        least=True,
    ),
    "passes": Layout(
        "What each pass over the recorded program brings: the time of a step without it over that of a step with all. "
        "The numbers that a step computes are the same.",
        (
            *SIZE,
            Column("without", text("pass")),
            Column("what it does", text("does")),
            Column("a step", number("without_us", ".0f", " us")),
            Column("with all", number("with_us", ".0f", " us")),
            Column("without / with", ranged("ratio", 3)),
        ),
    ),
    "mixed": Layout(
        "Networks of different structure in one group against groups of their own: the time of a step of all.",
        (
            Column("networks", text("networks")),
            Column("one group", number("joined_us", ".0f", " us")),
            Column("groups of their own", number("separate_us", ".0f", " us")),
            Column("one / several", ranged("ratio", 3)),
        ),
    ),
    "memory": Layout(
        "What a step needs beside parameters, gradients and the batch: the plan's buffers, and what torch's autograd "
        "saves for its backward pass (its temporaries not counted).",
        (
            *SIZE,
            Column("parameters", mebibytes("parameters")),
            Column("plan", mebibytes("buffers")),
            Column("plan with all values kept", mebibytes("buffers_measured")),
            Column("torch saves", mebibytes("torch_saved")),
        ),
    ),
    "peaks": Layout(
        "The memory that a group of networks takes at most, a process of its own with all that it imports: as "
        "`bpexp.memory` tells it before anything is made, so that a group that does not fit is split, and as the "
        "system measured it.",
        (
            *SIZE,
            Column("told beforehand", mebibytes("told")),
            Column("measured", mebibytes("peak")),
            Column("measured / told", number("ratio", ".2f")),
            Column("target", number("target", ".1f")),
            VERDICT,
        ),
        what=lambda row: f"memory measured over what was told beforehand, {row['size']}, {row['activation']}",
        digits=2,
    ),
}
"""The tables in the order in which they are shown."""


def text_tables(tables: Tables) -> tuple[Table, ...]:
    """Return the tables that there are, and before them what became of every target."""
    found = asked(tables)
    rows = tuple((one.what, one.target, one.found, one.verdict) for one in found)
    first = Table("targets", ("what", "asked", "found", "verdict"), rows, "Every target that this scale judges.")
    shown = (shown_table(name, layout, tables[name]) for name, layout in LAYOUTS.items() if name in tables)
    return (first, *shown)


def shown_table(name: str, layout: Layout, table: polars.DataFrame) -> Table:
    rows = tuple(tuple(column.text(row) for column in layout.columns) for row in table.iter_rows(named=True))
    return Table(name, tuple(column.head for column in layout.columns), rows, layout.caption)


def asked(tables: Tables) -> list[Asked]:
    """Return what became of every target, in the order of the tables."""
    return [one for name, layout in LAYOUTS.items() if name in tables for one in _asked(layout, tables[name])]


def _asked(layout: Layout, table: polars.DataFrame) -> Iterator[Asked]:
    bound = "at least" if layout.least else "at most"
    for row in table.iter_rows(named=True):
        if row.get("target") is not None and row.get("asked", True):
            found = spread(row, layout.found, layout.digits)
            yield Asked(layout.what(row), found, f"{bound} {row['target']:.{layout.digits}f}", row["verdict"])
        if row.get("limit") is not None:
            what = f"{row['sweep']}: seconds on one core"
            yield Asked(what, spread(row, "seconds", 1), f"at most {row['limit']:.0f}", row["limit_verdict"])
