"""The walkthrough as plain text: its tables in, lines of at most 100 characters out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from experiments.walkthrough_numbers import (
    BOUND,
    CURVATURES,
    DEPTH,
    EARLY,
    ETA,
    LATE,
    LOSSES,
    MOST_EPOCHS,
    NUDGE,
    PARAMETERS,
)

if TYPE_CHECKING:
    import polars

Block = list[str]
Tables = Mapping[str, "polars.DataFrame"]
Matrices = dict[str, list[list[float]]]

BACKWARD = ("delta2", "dL/dW2", "dL/db2", "dL/dH", "delta1", "dL/dW1", "dL/db1")
ALIASES = {"delta2": " = dL/dZ2", "delta1": " = dL/dZ1"}
SHOWN_EPOCHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
SHOWN_RATES = (0.5, 0.9, 0.999, 1.0, 1.001, 1.1)
BAR = 24


def text(tables: Tables) -> str:
    """Return the whole walkthrough."""
    parts = (opening, forward, loss, backward, update, iteration, learning_rate, depth)
    lines = itertools.chain.from_iterable([*part(tables), "", ""] for part in parts)
    return "\n".join(line.rstrip() for line in (*lines, *ENDING)) + "\n"


ENDING = (
    "NEXT",
    "  python -m experiments.exercise         write a backward, and be told what is wrong in it",
    "  python -m experiments.gradient_flow    measure those products in networks that learn digits",
)


def opening(tables: Tables) -> Block:
    m = matrices(tables, "mse")
    return [
        "BACKPROPAGATION IN FIVE STEPS, EVERY NUMBER PRINTED",
        "",
        "Network: 2 inputs -> 3 hidden units with tanh -> 2 outputs; 17 parameters in W1, b1, W2, b2.",
        "Task:    XOR, N = 4 samples, C = 2 classes. A row of X is a sample; T has a 1 in the column of the",
        "         sample's class. All four samples go through at once, each in its row.",
        "Start:   random, rounded to one decimal so that you can follow with a calculator.",
        "Signs:   ^T transposes, * multiplies entry by entry, sum_n sums over the samples.",
        "",
        *beside(*(block(name, m[name], 1) for name in ("X", "T", "W1", "b1", "W2", "b2"))),
    ]


def forward(tables: Tables) -> Block:
    m, formulas = matrices(tables, "mse"), formulas_of(tables, "mse")
    (x, y), (v, w), b = m["X"][0], m["W1"][0], m["b1"][0][0]
    return [
        "STEP 1. FORWARD: from the inputs to the outputs, layer by layer.",
        "",
        *beside(*(block(f"{name} = {formulas[name]}", m[name]) for name in ("Z1", "H", "Z2"))),
        "",
        "  One in full, [sample, unit]:",
        f"    Z1[1,1] = X[1,1] W1[1,1] + X[1,2] W1[1,2] + b1[1] = ({x:g})({v:g}) + ({y:g})({w:g}) + ({b:g})"
        f" = {number(m['Z1'][0][0])}",
        f"    H[1,1]  = tanh({number(m['Z1'][0][0])}) = {number(m['H'][0][0])}",
    ]


def loss(tables: Tables) -> Block:
    lines = ["STEP 2. LOSS: one number that says how wrong the outputs are. Two choices:", ""]
    for name, words in LOSSES.items():
        ours = matrices(tables, name)["L"][0][0]
        theirs = matrices(tables, name, "torch")["L"][0][0]
        lines.append(
            f"  {words.title:<18}  L = {words.formula:<20} = {number(ours)}    torch {number(theirs)}"
            f"    difference {difference([ours], [theirs])}"
        )
    probabilities = matrices(tables, "cross_entropy")["P"]
    return [
        *lines,
        "",
        *beside(block("P = softmax of each row of Z2: the network's probability of each class", probabilities)),
    ]


def backward(tables: Tables) -> Block:
    lines = [
        "STEP 3. BACKWARD: if a number grows a little, how much does the loss change? Each layer knows its",
        "own slope; the chain rule multiplies the slopes, from the loss back to the first layer. By hand: the",
        "formulas of bpexp/rules, without autograd. Torch's autograd is asked only to compare.",
        "",
        "  forward     X --W1,b1-->   Z1   --tanh-->   H   --W2,b2-->   Z2   --loss-->   L",
        "  backward                 delta1 <--------- dL/dH <--------- delta2 <---------- 1",
        "                              |                                 |",
        "                       dL/dW1, dL/db1                    dL/dW2, dL/db2",
    ]
    for name in LOSSES:
        lines += ["", *derivatives(tables, name), "", *(in_full(tables) if name == "mse" else ONLY_THE_FIRST)]
    return lines


ONLY_THE_FIRST = [
    "  Another loss changes delta2 and no other formula. So a layer is a module: it takes the gradient of",
    "  its output, and returns the gradients of its input and its parameters.",
]


def derivatives(tables: Tables, loss: str) -> Block:
    """Return each derivative by hand, from torch, and their difference: the rules' formulas at work."""
    ours, theirs, formulas = matrices(tables, loss), matrices(tables, loss, "torch"), formulas_of(tables, loss)
    lines = [f"  {LOSSES[loss].title.upper():<26}{'by hand':<30}{'torch autograd':<29}difference"]
    for name in BACKWARD:
        words = [f"{name}{ALIASES.get(name, '')}", f"   = {formulas[name]}"]
        if len(ours[name]) == 1:
            words = [f"{name} = {formulas[name]}"]
        labels = itertools.chain(words, itertools.repeat(""))
        for label, mine, other in zip(labels, ours[name], theirs[name], strict=False):
            shown = [" ".join(number(value, 8) for value in row) for row in (mine, other)]
            lines.append(f"  {label:<25}{shown[0]:<30}{shown[1]:<30}{difference(mine, other):>10}")
    return lines


def in_full(tables: Tables) -> Block:
    m, summary = matrices(tables, "mse"), summary_of(tables, "mse")
    first = {name: number(rows[0][0]) for name, rows in m.items()}
    delta2, h, w2 = m["delta2"], m["H"], m["W2"]
    return [
        "  One of each kind in full:",
        f"    delta2[1,1] = 2 (Z2[1,1] - T[1,1]) / (N C) = 2 ({first['Z2']} - {m['T'][0][0]:g}) / 8"
        f" = {first['delta2']}",
        "    dL/dW2[1,1] = sum_n delta2[n,1] H[n,1]",
        f"      = {products([row[0] for row in delta2], [row[0] for row in h], 4)} = {first['dL/dW2']}",
        f"    dL/dH[1,1]  = sum_c delta2[1,c] W2[c,1] = {products(delta2[0], [row[0] for row in w2], 4)}"
        f" = {first['dL/dH']}",
        f"    delta1[1,1] = dL/dH[1,1] (1 - H[1,1]^2) = {first['dL/dH']} (1 - {bracket(h[0][0])}^2)"
        f" = {first['delta1']}",
        "  What a derivative is: raise W1[1,1] by a tiny step, and the loss changes by dL/dW1[1,1] steps.",
        f"  Tried with {NUDGE:g} up and down: {number(summary['nudged_slope'])} steps; by hand {first['dL/dW1']}.",
    ]


def update(tables: Tables) -> Block:
    lines = [f"STEP 4. UPDATE: a small step downhill, W_new = W_old - eta dL/dW, here with eta = {ETA:g}."]
    for name, words in LOSSES.items():
        m, summary = matrices(tables, name), summary_of(tables, name)
        lines += ["", f"  {words.title.upper():<21}{'W_old':<24}{'dL/dW':<29}W_new"]
        for parameter in PARAMETERS:
            rows = zip(m[parameter], m[f"dL/d{parameter}"], m[f"{parameter} new"], strict=True)
            for k, (old, grad, new) in enumerate(rows):
                before = " ".join(number(value, 6, 1) for value in old)
                cells = [" ".join(number(value, 8) for value in row) for row in (grad, new)]
                lines.append(f"  {'' if k else parameter:<18}{before:<24}{cells[0]:<29}{cells[1]}")
        lines.append(
            f"  Loss before {number(summary['before'])}, after {number(summary['after'])}: it fell by"
            f" {number(summary['before'] - summary['after'])}; the slope promised eta |dL/dW|^2,"
            f" {number(summary['expected_fall'])}."
        )
    return [
        *lines,
        "  The promise is exact for a small eta only: along the way the slope itself changes.",
    ]


def iteration(tables: Tables) -> Block:
    curves = {name: tables["curves"].filter(loss=name)["value"].to_list() for name in LOSSES}
    ends = {len(curve) - 1 for curve in curves.values()}
    wanted = sorted({epoch for epoch in SHOWN_EPOCHS if epoch < max(ends)} | ends)
    top = max(max(curve) for curve in curves.values())
    titles = [words.title for words in LOSSES.values()]
    lines = [
        "STEP 5. ITERATION: steps 1 to 4 again and again; each time through all samples is an epoch.",
        f"Criterion of convergence, stated beforehand: loss < {BOUND:g}, within {MOST_EPOCHS:,} epochs.",
        "",
        f"  epoch   {titles[0]:<40}{titles[1]}   (bars: log of the loss)",
    ]
    for epoch in wanted:
        cells = [bar(curve[epoch], top) if epoch < len(curve) else "" for curve in curves.values()]
        lines.append(f"  {epoch:>5}   {cells[0]:<40}{cells[1]}")
    lines.append("")
    for name, words in LOSSES.items():
        end = summary_of(tables, name)
        lines.append(
            f"  {words.title:<18}  {end['criterion']} {'met' if end['met'] else 'NOT met'} after {end['epochs']:,}"
            f" epochs: {number(end['last'], 0, 6)}. {end['right']} of 4 classes are right."
        )
    return lines


def learning_rate(tables: Tables) -> Block:
    [limits] = tables["threshold"].iter_rows(named=True)
    lines = [
        "HOW LARGE MAY ETA BE?",
        "Near a minimum a loss is close to a quadratic, L(w) = 1/2 sum_i lambda_i w_i^2. Its gradient is",
        "lambda_i w_i, so each update multiplies w_i by 1 - eta lambda_i. Again and again, that converges",
        "where |1 - eta lambda_i| < 1, oscillates for ever where it is 1, and diverges where it is > 1.",
        f"The largest lambda decides. Here lambda is {' and '.join(f'{one:g}' for one in CURVATURES)}:"
        f" eta must stay below 2/lambda_max = {limits['limit']:g}.",
        "",
        f"  {'eta, in units':<16}{'eta':<9}{'larger |1 - eta lambda|':<25}{'loss after updates':<26}verdict",
        f"  {'of 2/lambda_max':<25}{'predicted':<11}{'measured':<14}{0:<5}{EARLY:<10}{LATE:<11}"
        f"{'predicted':<12}measured",
    ]
    for row in tables["rates"].iter_rows(named=True):
        if row["multiple"] in SHOWN_RATES:
            losses = f"{row['loss_0']:<5.3g}{row['loss_early']:<10.3g}{row['loss_late']:<11.3g}"
            lines.append(
                f"  {row['multiple']:<16g}{row['eta']:<9.4f}{row['factor']:<11.6f}{row['growth']:<14.6f}{losses}"
                f"{row['predicted']:<12}{row['measured']}"
            )
    above = limits["smallest_diverging"] - limits["limit"]
    return [
        *lines,
        "",
        "  Where exactly? A bracket is halved until no number is left between its ends:",
        f"  eta = {limits['largest_kept']!r} does not diverge; the computer's next number, {above:.1e} more, does.",
    ]


def depth(tables: Tables) -> Block:
    groups = list(tables["chains"].partition_by("activation", "weight", maintain_order=True))
    columns = [list(group.iter_rows(named=True)) for group in groups]
    titles = [f"{rows[0]['activation']}, w = {rows[0]['weight']:g}" for rows in columns]
    lines = [
        "WHY IS DEPTH HARD?",
        "Each layer adds a factor to the chain. With one unit a layer, z_(l+1) = w f(z_l), and",
        "  dL/dz_l = dL/dz_(l+1) * w f'(z_l).",
        f"Below, a gradient of 1 in layer {DEPTH} on its way to layer 1; a sigmoid's slope is 1/4 at most.",
        "",
        "         " + "".join(f"{title:<28}" for title in titles),
        "  layer  " + "".join(f"{'factor':>8}  {'product':<18}" for _ in titles),
    ]
    for rows in zip(*columns, strict=True):
        cells = ((f"{one['factor']:.4f}" if one["factor"] is not None else "", one["product"]) for one in rows)
        lines.append(
            f"  {rows[0]['layer']:>5}  " + "".join(f"{factor:>8}  {product:<18.4g}" for factor, product in cells)
        )
    lines.append("         " + "".join(f"{'':10}{fate(rows[-1]['product']):<18}" for rows in columns))
    worst = max(abs(row["product"] / row["torch"] - 1) for rows in columns for row in rows)
    return [*lines, f"  Largest relative difference to torch autograd: {worst:.0e}"]


def fate(product: float) -> str:
    return "vanishing" if product < 0.01 else "exploding" if product > 100 else "healthy"


def matrices(tables: Tables, loss: str, column: str = "by_hand") -> Matrices:
    """Return the numbers of one loss as rows of numbers, by their names."""
    found: Matrices = {}
    for name, row, value in tables["numbers"].filter(loss=loss).select("name", "row", column).iter_rows():
        rows = found.setdefault(name, [])
        if row > len(rows):
            rows.append([])
        rows[-1].append(value)
    return found


def formulas_of(tables: Tables, loss: str) -> dict[str, str]:
    return dict(tables["numbers"].filter(loss=loss).select("name", "formula").iter_rows())


def summary_of(tables: Tables, loss: str) -> dict[str, Any]:
    return tables["summary"].filter(loss=loss).row(0, named=True)


def number(value: float, width: int = 0, digits: int = 5) -> str:
    """Return a number with fixed decimals, never as -0."""
    return f"{round(value, digits) + 0.0:{width}.{digits}f}"


def bracket(value: float, digits: int = 5) -> str:
    return f"({number(value, 0, digits)})"


def difference(ours: Iterable[float], theirs: Iterable[float]) -> str:
    """Return the largest difference of two rows."""
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return f"{largest:.0e}" if largest else "0"


def products(left: Iterable[float], right: Iterable[float], digits: int) -> str:
    """Return a scalar product written out."""
    return " + ".join(bracket(a, digits) + bracket(b, digits) for a, b in zip(left, right, strict=True))


def block(title: str, rows: list[list[float]], digits: int = 5) -> Block:
    return [title, *(" ".join(number(value, digits + 3, digits) for value in row) for row in rows)]


def beside(*blocks: Block) -> Block:
    """Return blocks of lines side by side."""
    widths = [max(map(len, one)) for one in blocks]
    rows = itertools.zip_longest(*blocks, fillvalue="")
    return ["  " + "    ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def bar(value: float, top: float) -> str:
    """Return a loss with a bar that grows with its logarithm, from the criterion's bound to the largest loss."""
    share = math.log(max(value, BOUND) / BOUND) / math.log(top / BOUND)
    return f"{number(value, 0, 6)} {'#' * round(BAR * share)}"
