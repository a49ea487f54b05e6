"""Claim 4, how deep a network is trainable: its expectations are written here, before a run.

Schoenholz et al. 2017, arXiv:1611.01232: tanh networks train up to about 6 xi_c; a public reproduction with 200 steps
draws 4.5. Letters: L = depth, xi = xi_c, m = the multiple of it at which half of the networks train, T = steps.

Both words are of the ordered side, sigma_b^2 = 0.05. The bounds are a quarter around the two of them. The multiple
depends on the budget: what tells two classes apart in the tangent kernel falls as chi^L = e^(-L/xi), and T steps of
size lr learn it once lr T e^(-L/xi) is of order 1, so that m = log T + constant: from 100 to 400 steps it rises by
log 4 = 1.39, to which half of it is the tolerance, since depths lie a factor of 1.1 to 1.5 apart. That is the law of a
kernel that stays as it was. Were the multiple one number, as a citation without its budget has it, it would rise by 0:
that gets 1/2. The control of each is a wrong law, the same networks in units of xi_q, over which lengths forget where
they started: it passes where xi_q is as long as xi_c. A multiple beyond the depths that were trained decides nothing.

The points are no claim of a paper: they test what one earlier run of ours showed (width 100, 400 steps). Training works
where the best learning rate reaches the line of `trained`, and fails where it stays below a half. At L = 80 near the
critical line a stable step is small (the kernel grows with L), so that there it is the smaller learning rate alone, and
larger batches.
"""

from __future__ import annotations

import functools
import math
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
SAME = 0.5
FAILED = 0.5
WRONG_SCALE = "in units of xi_q, the depth scale of lengths"

MULTIPLES = Sweep(
    "multiples",
    ("init.gain=1.0,1.0954", "model.depth=8,12,16,20,24,28,32,36,40,48"),
    {"full": 12},
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


def multiple_of(results: polars.DataFrame, records: polars.DataFrame, steps: int, scale: str) -> Multiple:
    """Fit the multiple of a depth scale up to which networks train in a number of steps."""
    ratios, trained = ratios_and_trained(results, records, steps, scale)
    return fit_multiple(ratios, trained, results["seed"].to_numpy())


def ratios_and_trained(
    results: polars.DataFrame, records: polars.DataFrame, steps: int, scale: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return L / xi of every job, and whether it had trained after the steps; one that had diverged had not."""
    own = records.filter((records["measure"] == "train_accuracy") & (records["step"] == steps))
    found = dict(own.select("job", "value").iter_rows())
    ratios = [row["model.depth"] / scales_of(row)[scale] for row in results.iter_rows(named=True)]
    trained = [float(found.get(job, 0.0) >= CONVERGED) for job in results["job"]]
    return np.array(ratios), np.array(trained)


def multiple(scale: str, results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The multiple of a scale after 200 steps, with its interval over resampled seeds.

    Edge:    one that lies beyond the depths decides nothing: NaN
    """
    found = multiple_of(results, records, 200, scale)
    seeds = results["seed"].n_unique()
    return Interval(found.multiple, found.low, found.high, seeds) if found.inside else unknown(seeds)


def rise(scale: str, results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """By how much the multiple rises from 100 to 400 steps: a mean over the seeds, each with its own two fits.

    Edge:    a seed of which one lies beyond the depths would have to be left out, and shift the mean: NaN
    """
    rises = []
    for _, own in results.group_by("seed", maintain_order=True):
        before, after = (multiple_of(own, records, steps, scale) for steps in (100, 400))
        if not before.inside or not after.inside:
            return unknown(results["seed"].n_unique())
        rises.append(after.multiple - before.multiple)
    return mean_interval(rises)


def unknown(seeds: int) -> Interval:
    return Interval(math.nan, math.nan, math.nan, seeds)


def multiples(variance: float, gain: float) -> tuple[Claim, ...]:
    """Return the claims on the multiple at one sigma_w^2."""
    chosen: Where = {"init.gain": gain}
    return tuple(
        Claim(
            4,
            f"tanh, sigma_b^2 = 0.05, sigma_w^2 = {variance}: {title}",
            expected,
            low,
            high,
            MULTIPLES,
            chosen,
            chosen,
            functools.partial(measure, "xi_c"),
            (WRONG_SCALE, functools.partial(measure, "xi_q")),
        )
        for title, expected, low, high, measure in (
            (
                "trains in 200 steps up to a multiple of xi_c between 4.5 and 6, a quarter around",
                math.sqrt(PAPER * REPRODUCTION),
                REPRODUCTION * (1 - AROUND),
                PAPER * (1 + AROUND),
                multiple,
            ),
            (
                "from 100 to 400 steps the multiple rises by log 4, half of it around",
                math.log(4),
                math.log(4) / 2,
                math.log(4) * 1.5,
                rise,
            ),
            ("the multiple is one number: from 100 to 400 steps it rises by 0, 1/2 around", 0.0, -SAME, SAME, rise),
        )
    )


def point(variance: float, gain: float, depth: int, accuracy: float, sweep: Sweep, control: Where) -> Claim:
    """Return the claim that networks train at a point, or that they fail, as one run of ours with that accuracy did."""
    trains = accuracy >= CONVERGED
    low, high = (CONVERGED, 1.0) if trains else (0.0, FAILED)
    what = "trains" if trains else "fails"
    return Claim(
        4,
        f"as in one earlier run of ours: tanh, sigma_b^2 = 0.05, sigma_w^2 = {variance}, width 100, 400 steps, {what} "
        f"at L = {depth}",
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
