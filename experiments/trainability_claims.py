"""Claim 4, how deep a network is trainable: its expectations are written here, before a run.

Schoenholz et al. 2017, arXiv:1611.01232: tanh networks train up to about 6 xi_c; a public reproduction with 200 steps
draws 4.5. Letters: L = depth, xi = xi_c, m = the multiple of it at which half of the networks train, T = steps.

Both words are of the ordered side, sigma_b^2 = 0.05. The bounds are a quarter around the two of them. The multiple
depends on the budget: what tells two classes apart in the tangent kernel falls as chi^L = e^(-L/xi), and T steps of
size lr learn it once lr T e^(-L/xi) is of order 1, so that m = log T + constant: from 100 to 400 steps it rises by
log 4 = 1.39, to which half of it is the tolerance, since depths lie a factor of 1.2 to 1.5 apart. That is the law of a
kernel that stays as it was; where it learns as well, the multiple still depends on the budget: it rises by 1/2 at
least. On the critical line xi is so long that no depth here is a multiple of it: there all three are refuted.

The points are those at which training was once seen to work or fail (width 100, 400 steps): it works where the best
learning rate reaches the line of `trained`, and fails where it stays below a half. At L = 80 near the critical line a
stable step is small (the kernel grows with L), so that there it is the smaller learning rate alone, and larger batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bpexp.statistics import Interval, mean_interval
from experiments.gradient_flow_quantities import CONVERGED, best_accuracy
from experiments.ledger import Claim, Sweep, Where
from experiments.trainability_map import scales_of
from experiments.trainability_multiples import Multiple, fit_multiple

if TYPE_CHECKING:
    import polars

MEASURES = ("train_accuracy",)
PAPER, REPRODUCTION = 6.0, 4.5
AROUND = 0.25
DEEPEST = 13.3
"""The largest multiple of xi_c that is trained, at sigma_w^2 = 1."""
FAILED = 0.5
CRITICAL: Where = {"init.gain": 1.327}

MULTIPLES = Sweep(
    "multiples",
    ("init.gain=1.0,1.0954,1.327",),
    {"full": 10},
    "trainability",
)
POINT = ("model.width=100", "optimizer.lr=0.005,0.02")
POINTS_1 = Sweep("points_1", (*POINT, "init.gain=1.0", "model.depth=20,40"), {"full": 5}, "trainability")
POINTS_2 = Sweep("points_2", (*POINT, "init.gain=1.0954", "model.depth=40,80"), {"full": 5}, "trainability")
POINTS_3 = Sweep(
    "points_3",
    ("model.width=100", "optimizer.lr=0.005", "train.batch_size=128", "init.gain=1.0,1.1832,1.2649", "model.depth=80"),
    {"full": 5},
    "trainability",
)


def multiple_of(results: polars.DataFrame, records: polars.DataFrame, steps: int) -> Multiple:
    """Fit the multiple of xi_c up to which networks train in a number of steps."""
    ratios, trained = ratios_and_trained(results, records, steps)
    return fit_multiple(ratios, trained, results["seed"].to_numpy())


def ratios_and_trained(
    results: polars.DataFrame, records: polars.DataFrame, steps: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return L / xi of every job, and whether it had trained after the steps; one that had diverged had not."""
    own = records.filter((records["measure"] == "train_accuracy") & (records["step"] == steps))
    found = dict(own.select("job", "value").iter_rows())
    ratios = [row["model.depth"] / scales_of(row)["xi_c"] for row in results.iter_rows(named=True)]
    trained = [float(found.get(job, 0.0) >= CONVERGED) for job in results["job"]]
    return np.array(ratios), np.array(trained)


def multiple(steps: int) -> Callable[[polars.DataFrame, polars.DataFrame], Interval]:
    """Return what measures the multiple after a number of steps, with its interval over resampled seeds."""

    def measure(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
        found = multiple_of(results, records, steps)
        return Interval(found.multiple, found.low, found.high, results["seed"].n_unique())

    return measure


def rise(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """By how much the multiple rises from 100 to 400 steps: a mean over the seeds, each with its own two fits."""
    rises = []
    for _, own in results.group_by("seed", maintain_order=True):
        before, after = (multiple_of(own, records, steps).multiple for steps in (100, 400))
        rises.append(after - before)
    return mean_interval(rises)


def multiples(variance: float, gain: float) -> tuple[Claim, ...]:
    """Return the claims on the multiple at one sigma_w^2."""
    where = f"tanh, sigma_b^2 = 0.05, sigma_w^2 = {variance}"
    return (
        Claim(
            4,
            f"{where}: trains in 200 steps up to a multiple of xi_c between 4.5 and 6, a quarter around",
            math.sqrt(PAPER * REPRODUCTION),
            REPRODUCTION * (1 - AROUND),
            PAPER * (1 + AROUND),
            MULTIPLES,
            {"init.gain": gain},
            CRITICAL,
            multiple(200),
        ),
        Claim(
            4,
            f"{where}: from 100 to 400 steps the multiple rises by log 4, half of it around",
            math.log(4),
            math.log(4) / 2,
            math.log(4) * 1.5,
            MULTIPLES,
            {"init.gain": gain},
            CRITICAL,
            rise,
        ),
        Claim(
            4,
            f"{where}: the multiple depends on the budget: from 100 to 400 steps it rises by 1/2 at least",
            math.log(4),
            0.5,
            DEEPEST,
            MULTIPLES,
            {"init.gain": gain},
            CRITICAL,
            rise,
        ),
    )


def point(variance: float, gain: float, depth: int, accuracy: float, sweep: Sweep, control: Where) -> Claim:
    """Return the claim that networks train at a point of the map, or that they fail where the accuracy is low."""
    trains = accuracy >= CONVERGED
    low, high = (CONVERGED, 1.0) if trains else (0.0, FAILED)
    what = "trains" if trains else "fails"
    return Claim(
        4,
        f"tanh, sigma_b^2 = 0.05, sigma_w^2 = {variance}, width 100, 400 steps: {what} at L = {depth}",
        accuracy,
        low,
        high,
        sweep,
        {"init.gain": gain, "model.depth": depth},
        control,
        best_accuracy,
    )


CLAIMS = (
    *multiples(1.0, 1.0),
    *multiples(1.2, 1.0954),
    point(1.0, 1.0, 20, 1.0, POINTS_1, {"model.depth": 40}),
    point(1.0, 1.0, 40, 0.1, POINTS_1, {"model.depth": 20}),
    point(1.2, 1.0954, 40, 1.0, POINTS_2, {"model.depth": 80}),
    point(1.2, 1.0954, 80, 0.1, POINTS_2, {"model.depth": 40}),
    point(1.4, 1.1832, 80, 0.93, POINTS_3, {"init.gain": 1.0}),
    point(1.6, 1.2649, 80, 1.0, POINTS_3, {"init.gain": 1.0}),
)
