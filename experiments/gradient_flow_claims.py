"""What gradient_flow's records say about two published claims: their expectations are written here, before a run.

Claim 1: Glorot and Bengio 2010, PMLR 9:249, on PyTorch's default nn.Linear weights; claim 2: He et al. 2015,
arXiv:1502.01852, in its dense form. Letters: L = depth, n = width, gain = factor a layer of delta_rms, towards the
input.

Derivation: a layer multiplies the mean square of delta by n Var W E phi'^2. PyTorch draws U(-1/sqrt n, 1/sqrt n), so
n Var W = 1/3; Glorot's is 1, He's 2, where the layers are square. phi' = 1 for tanh near 0; for relu E phi'^2 = 1/2.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp import entry
from bpexp.statistics import Interval, decide, geometric_interval, mean_interval

if TYPE_CHECKING:
    import polars

LINEAR_BELOW = 0.1
"""preactivation_rms of tanh's linear regime: there phi'^2 is 1 to 2 %, in one layer at the edge of the regime."""
TOLERANCE = 0.02
STALLED, CONVERGED = 0.2, 0.8
"""Training accuracy, with the best learning rate: at most twice that of chance; at least the line of `trained`."""
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)

MEASURES = ("delta_rms", "preactivation_rms")

Where = dict[str, object]
Measure = Callable[["polars.DataFrame", "polars.DataFrame"], Interval]


@dataclass(frozen=True)
class Sweep:
    """The networks that a claim is tested on; `{seeds}` stands for how many."""

    name: str
    overrides: tuple[str, ...]

    def arguments(self, seeds: int) -> list[str]:
        return ["-m", *self.overrides, f"seed=range({seeds})"]

    def command(self, seeds: int) -> str:
        return shlex.join(["python", "-m", "experiments.gradient_flow", *self.arguments(seeds)])


GAINS_1 = Sweep(
    "gains_1",
    ("model.depth=20", "model.width=256", "model.activation=tanh,relu", "init=pytorch,he", "train.steps=0"),
)
GAINS_2 = Sweep(
    "gains_2", ("model.depth=30", "model.width=256", "model.activation=relu", "init=glorot,he", "train.steps=0")
)
STALL = Sweep(
    "stall",
    (
        "model.depth=30",
        "model.activation=relu",
        "init=glorot,he",
        "optimizer=momentum",
        f"optimizer.lr={','.join(map(str, LEARNING_RATES))}",
        "train.steps=300",
        "train.measure_every=100",
    ),
)
SWEEPS = (GAINS_1, GAINS_2, STALL)


@dataclass(frozen=True)
class Claim:
    """A row of the ledger, before it is measured: on which networks, what, and between which bounds.

    The control is the same check on networks of which the claim is false: it has to come out refuted.
    """

    claim: int
    title: str
    expected: float
    low: float
    high: float
    sweep: Sweep
    where: Where
    control: Where
    measure: Measure


def job_gains(results: polars.DataFrame, records: polars.DataFrame, *, linear: bool) -> list[float | None]:
    """Return each job's gain at step 0 between its hidden layers, or between those of its linear regime.

    Math:    (delta_k / delta_L)^(1/(L - k)), k = 1, or the first layer from which on preactivation_rms < LINEAR_BELOW
    Edge:    None where fewer than two layers are left, or a delta is zero or not finite
    """
    first = records.filter((records["step"] == 0) & records["measure"].is_in(MEASURES) & records["layer"].is_not_null())
    wide = first.pivot("measure", index=["job", "layer"], values="value").sort("job", "layer")
    gains: list[float | None] = []
    for job, depth in results.select("job", "model.depth").iter_rows():
        hidden = wide.filter((wide["job"] == job) & (wide["layer"] <= depth))
        delta = dict(hidden.select("layer", "delta_rms").iter_rows())
        curved = hidden.filter(hidden["preactivation_rms"] >= LINEAR_BELOW)["layer"].max() if linear else None
        start = int(curved) + 1 if isinstance(curved, int) else 1
        ends = (delta.get(start, 0.0), delta.get(depth, 0.0))
        usable = start < depth and all(math.isfinite(end) and end > 0 for end in ends)
        gains.append((ends[0] / ends[1]) ** (1 / (depth - start)) if usable else None)
    return gains


def gain(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The gain over all hidden layers."""
    return geometric_interval(job_gains(results, records, linear=False))


def linear_gain(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The gain over the layers of the linear regime."""
    return geometric_interval(job_gains(results, records, linear=True))


def factor_of_30_layers(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The gain to the power of 30."""
    found = gain(results, records)
    return Interval(found.mean**30, found.low**30, found.high**30, found.count)


def best_accuracy(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The final training accuracy of each seed under its best learning rate; 0 for a network that diverged.

    Edge:    Student's interval can reach beyond what an accuracy can be: it is cut at 0 and 1
    """
    import polars

    accuracy = polars.col("train_accuracy").fill_null(0.0).max()
    found = mean_interval(results.group_by("seed", maintain_order=True).agg(accuracy)["train_accuracy"])
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if found.count > 1 else found


def around(
    claim: int, title: str, expected: float, sweep: Sweep, where: Where, control: Where, measure: Measure
) -> Claim:
    """Return a claim that a gain is `expected` within TOLERANCE."""
    power = 30 if measure is factor_of_30_layers else 1
    low, high = (expected * (1 + sign * TOLERANCE) ** power for sign in (-1, 1))
    return Claim(claim, title, expected, low, high, sweep, where, control, measure)


CLAIMS = (
    around(
        1,
        f"tanh, PyTorch's default weights, layers with preactivation_rms < {LINEAR_BELOW}: gain 1/sqrt 3",
        1 / math.sqrt(3),
        GAINS_1,
        {"model.activation": "tanh", "init": "pytorch"},
        {"model.activation": "relu", "init": "pytorch"},
        linear_gain,
    ),
    around(
        1,
        "relu, PyTorch's default weights: gain 1/sqrt 6",
        1 / math.sqrt(6),
        GAINS_1,
        {"model.activation": "relu", "init": "pytorch"},
        {"model.activation": "relu", "init": "he"},
        gain,
    ),
    around(
        2,
        "relu, Glorot: gain 1/sqrt 2",
        1 / math.sqrt(2),
        GAINS_2,
        {"init": "glorot"},
        {"init": "he"},
        gain,
    ),
    around(
        2,
        "relu, Glorot: factor 3.1e-5 over 30 layers",
        2**-15,
        GAINS_2,
        {"init": "glorot"},
        {"init": "he"},
        factor_of_30_layers,
    ),
    around(2, "relu, He: gain 1", 1.0, GAINS_2, {"init": "he"}, {"init": "glorot"}, gain),
    Claim(
        2,
        "30 dense relu layers under Glorot stall: training accuracy with the best learning rate at most twice chance",
        0.1,
        0.0,
        STALLED,
        STALL,
        {"init": "glorot"},
        {"init": "he"},
        best_accuracy,
    ),
    Claim(
        2,
        "30 dense relu layers under He converge: training accuracy with the best learning rate at least 0.8",
        1.0,
        CONVERGED,
        1.0,
        STALL,
        {"init": "he"},
        {"init": "glorot"},
        best_accuracy,
    ),
)


def select(results: polars.DataFrame, where: Where) -> polars.DataFrame:
    """Return the jobs that have the values of `where`."""
    for name, value in where.items():
        results = results.filter(results[name] == value)
    return results


def judge_claim(claim: Claim, results: polars.DataFrame, records: polars.DataFrame) -> dict[str, object]:
    """Return the row of the ledger, and what its control measured, from the results and records of its sweep."""
    measured = claim.measure(select(results, claim.where), records)
    control = claim.measure(select(results, claim.control), records)
    seeds = results["seed"].n_unique()
    return {
        "claim": claim.claim,
        "title": claim.title,
        "expected": claim.expected,
        "low": claim.low,
        "high": claim.high,
        "measured": measured.mean,
        "measured_low": measured.low,
        "measured_high": measured.high,
        "verdict": decide(measured, claim.low, claim.high),
        "control": ", ".join(f"{name}={value}" for name, value in claim.control.items()),
        "control_measured": control.mean,
        "control_verdict": decide(control, claim.low, claim.high),
        "seeds": seeds,
        "command": claim.sweep.command(seeds),
    }


def compute_claims(folder: Path, seeds: dict[str, int]) -> polars.DataFrame:
    """Run the sweeps that have seeds, each in a folder of its own, and return the rows of their claims."""
    from bpexp.records import read_results, read_sweep

    rows = []
    for sweep in SWEEPS:
        if sweep.name not in seeds:
            continue
        place = folder / sweep.name
        entry.call("gradient_flow", [*sweep.arguments(seeds[sweep.name]), f"hydra.sweep.dir={place}"])
        results, records = read_results(place), read_sweep(place, MEASURES, "first")
        rows += [judge_claim(claim, results, records) for claim in CLAIMS if claim.sweep is sweep]
    return claim_table(rows)


def claim_table(rows: Sequence[dict[str, object]]) -> polars.DataFrame:
    """Return rows as a frame, with the same columns when there are none."""
    import polars

    numbers = ("expected", "low", "high", "measured", "measured_low", "measured_high", "control_measured")
    texts = ("title", "verdict", "control", "control_verdict", "command")
    types: dict[str, polars.DataType] = dict.fromkeys(numbers, polars.Float64())
    types |= dict.fromkeys(texts, polars.String())
    types |= dict.fromkeys(("claim", "seeds"), polars.Int64())
    order = ("claim", "title", *numbers[:-1], "verdict", "control", numbers[-1], "control_verdict", "seeds", "command")
    return polars.DataFrame(list(rows), schema={name: types[name] for name in order})
