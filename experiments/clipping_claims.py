"""Claims 15 (the wall and the bound) and 18, with their expectations from before a run.

Claim 15: Pascanu et al. 2013, arXiv:1211.5063. Figure 6 shows one path of each kind; "stays in the valley" gets a
number here: of starting points beside the wall at least 95 % end with E < 0.01 where the norm is clipped, and at lr =
0.1 more than half do not where it is not. The bound has no exception at all, so the worst of all systems is measured,
and rounding gets 1e-9.

Claim 18: Zhang et al. 2020, arXiv:1905.11881. The growth laws are derived in clipping_smoothness: by its formulas the
log-log slope of the best fixed step's updates on M / log M is 1.03 between log M = 4 and 11.5, and that of the ratio on
M 0.82 there. "About" gets 0.1, as the formulas leave out how the first updates pass the arms. A clipped path takes 2
updates more for each unit of log M, 5 % around. On networks: of seeds that diverge at most a tenth with clipping, where
without it at least half do.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from bpexp.statistics import Interval, mean_interval, share_interval
from experiments import clipping_bound, clipping_smoothness, clipping_wall
from experiments.gradient_flow_quantities import worst
from experiments.ledger import Claim, Study, Sweep, Where

if TYPE_CHECKING:
    import polars

STAYS, LEAVES = 0.95, 0.5
ROUNDING = 1e-9
AROUND_POWER, AROUND_SLOPE = 0.1, 0.05
DIVERGES_CLIPPED, DIVERGES_PLAIN = 0.1, 0.5
MEASURES = ("train_loss",)

WALL = Study("wall", clipping_wall.compute, {"smoke": 20, "default": 100, "full": 400})
BOUND = Study("recurrent_bound", clipping_bound.compute, {"smoke": 2, "default": 5, "full": 20})
SMOOTHNESS = Study("smoothness", clipping_smoothness.compute, {"smoke": 3, "default": 10, "full": 40})


def share(column: str, rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The share of the rows of which a column is true."""
    return share_interval(int(rows[column].sum()), rows.height)


def share_not(column: str, rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The share of the rows of which a column is false."""
    return share_interval(rows.height - int(rows[column].sum()), rows.height)


def largest(column: str, rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    return worst(rows[column])


def smallest_exploding(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The smallest number of the law among the systems whose gradient grows at some distance."""
    return worst(rows.filter(rows["explodes"])["base"], min)


def slope(
    of: str, on: str, rows: polars.DataFrame, records: polars.DataFrame, *, logs: tuple[bool, bool] = (True, True)
) -> Interval:
    """The slope of a column on another over the sizes, a fit a seed; logs: which of the two are taken the log of."""
    slopes = []
    for _, own in rows.group_by("seed", maintain_order=True):
        y, x = (own[name].to_numpy() for name in (of, on))
        y, x = (np.log(values) if log else values for values, log in zip((y, x), logs, strict=True))
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return mean_interval(slopes)


def fixed_power(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The power of M / log M with which updates grow."""
    import polars

    log_m = polars.col("log_m")
    return slope("updates", "order", rows.with_columns(order=log_m.exp() / log_m), records)


def ratio_power(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The power of M with which the ratio of the two counts grows."""
    import polars

    return slope("ratio", "m", rows.with_columns(m=polars.col("log_m").exp()), records)


def clipped_slope(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The updates that a unit of log M adds."""
    return slope("updates", "log_m", rows, records, logs=(False, False))


def diverged(rows: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The share of the networks that went to infinity or NaN."""
    return share_interval(int((rows["status"] == "diverged").sum()), rows.height)


def stays(lr: float) -> Claim:
    """Return the claim that clipped descent stays in the valley; the control is plain descent."""
    where: Where = {"clip": "norm", "optimizer.lr": lr}
    return Claim(
        15,
        f"the wall, lr = {lr:g}: from starts beside it, descent with the norm clipped to {clipping_wall.THRESHOLD:g} "
        f"ends in the valley, E < {clipping_wall.VALLEY:g}: share of the starts",
        1.0,
        STAYS,
        1.0,
        WALL,
        where,
        where | {"clip": "none"},
        functools.partial(share, "stayed"),
    )


def expected_power(count: str) -> float:
    """Return the log-log slope over the sizes that the derived counts have."""
    log_m = np.array(clipping_smoothness.SIZES) + clipping_smoothness.JITTER / 2
    fixed = np.array([clipping_smoothness.expected_fixed(size) for size in log_m])
    clipped = np.array([clipping_smoothness.expected_clipped(size) for size in log_m])
    if count == "fixed":
        return float(np.polyfit(log_m - np.log(log_m), np.log(fixed), 1)[0])
    return float(np.polyfit(log_m, np.log(fixed / clipped), 1)[0])


FIXED_POWER, RATIO_POWER = expected_power("fixed"), expected_power("ratio")
ADDED = 1 / (clipping_smoothness.STEP * clipping_smoothness.THRESHOLD)

ON_ARMS: Where = {"function": "exponential", "method": "fixed"}
ON_PARABOLA: Where = {"function": "parabola", "method": "fixed"}

DIVERGING = Sweep(
    "diverging",
    (
        "model.depth=20",
        "model.activation=relu",
        "init=he",
        "init.gain=1.2",
        "clip=none,norm",
        "optimizer.lr=0.1",
        "train.batch_size=32",
        "train.steps=100",
        "train.measure_every=50",
    ),
    {"default": 40, "full": 100},
)

CLAIMS = (
    *map(stays, clipping_wall.LEARNING_RATES),
    Claim(
        15,
        "the wall, lr = 0.1: plain descent leaves the valley: share of the starts",
        0.75,
        LEAVES,
        1.0,
        WALL,
        {"clip": "none", "optimizer.lr": 0.1},
        {"clip": "norm", "optimizer.lr": 0.1},
        functools.partial(share_not, "stayed"),
    ),
    Claim(
        15,
        "||dx_t/dx_k|| <= (gamma lambda_1)^(t-k): the largest ratio of the two in random recurrent systems",
        1.0,
        0.0,
        1 + ROUNDING,
        BOUND,
        {"law": "gamma"},
        {"law": "half"},
        functools.partial(largest, "violation"),
    ),
    Claim(
        15,
        f"lambda_1 < 1/gamma suffices to vanish: ||dx_t/dx_k|| over {clipping_bound.STEPS} steps at gamma lambda_1 = "
        f"{clipping_bound.VANISHING}, the largest, at most {clipping_bound.VANISHING}^{clipping_bound.STEPS}",
        clipping_bound.VANISHING**clipping_bound.STEPS,
        0.0,
        clipping_bound.VANISHING**clipping_bound.STEPS * (1 + ROUNDING),
        BOUND,
        {"law": "gamma", "level": clipping_bound.VANISHING},
        {"law": "gamma", "level": 1.2},
        functools.partial(largest, "reach"),
    ),
    Claim(
        15,
        "lambda_1 > 1/gamma is necessary to explode: the smallest gamma lambda_1 of a system in which some "
        "||dx_t/dx_k|| > 1 (control: gamma times the largest eigenvalue)",
        1.01,
        1.0,
        max(clipping_bound.LEVELS),
        BOUND,
        {"law": "gamma"},
        {"law": "radius"},
        smallest_exploding,
    ),
    Claim(
        18,
        "(L0, L1)-smooth function: updates of the best fixed step grow as M / log M, M the largest gradient: the power",
        FIXED_POWER,
        FIXED_POWER - AROUND_POWER,
        FIXED_POWER + AROUND_POWER,
        SMOOTHNESS,
        ON_ARMS,
        ON_PARABOLA,
        fixed_power,
    ),
    Claim(
        18,
        "(L0, L1)-smooth function: clipped descent takes as many updates more for each unit of log M (control: the "
        "best fixed step)",
        ADDED,
        ADDED * (1 - AROUND_SLOPE),
        ADDED * (1 + AROUND_SLOPE),
        SMOOTHNESS,
        {"function": "exponential", "method": "clipped"},
        ON_ARMS,
        clipped_slope,
    ),
    Claim(
        18,
        "(L0, L1)-smooth function: best fixed step over clipped, ratio of the updates grows without bound: its power "
        "of M",
        RATIO_POWER,
        RATIO_POWER - AROUND_POWER,
        RATIO_POWER + AROUND_POWER,
        SMOOTHNESS,
        ON_ARMS,
        ON_PARABOLA,
        ratio_power,
    ),
    Claim(
        18,
        "relu, L = 20, 1.2 times He's gain, lr = 0.1: share of networks that diverge with the norm clipped to 1",
        0.0,
        0.0,
        DIVERGES_CLIPPED,
        DIVERGING,
        {"clip": "norm"},
        {"clip": "none"},
        diverged,
    ),
    Claim(
        18,
        "relu, L = 20, 1.2 times He's gain, lr = 0.1: share of networks that diverge without clipping",
        1.0,
        DIVERGES_PLAIN,
        1.0,
        DIVERGING,
        {"clip": "none"},
        {"clip": "norm"},
        diverged,
    ),
)
