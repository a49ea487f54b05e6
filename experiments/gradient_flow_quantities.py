"""What the claims of gradient_flow measure: each from the results and records of some networks, as an Interval.

Letters: L = depth, gain = factor a layer of delta_rms, towards the input; a, m = activation_rms, activation_mean.
Most are means over seeds with their interval. A claim that has to hold in every network and layer is measured by the
worst of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bpexp.statistics import LEVEL, Interval, geometric_interval, mean_interval

if TYPE_CHECKING:
    import polars

MEASURES = (
    "activation_mean",
    "activation_rms",
    "delta_rms",
    "gate",
    "grad_norm",
    "preactivation_mean",
    "preactivation_rms",
)
"""Those of the records that are looked at here."""

LINEAR_BELOW = 0.1
"""preactivation_rms of tanh's linear regime: there phi'^2 is 1 to 2 %, in one layer at the edge of the regime."""
STALLED, CONVERGED = 0.2, 0.8
"""Training accuracy, with the best learning rate: at most twice that of chance; at least the line of `trained`."""
LAST = 10
"""Layers that a settled mean or variance is averaged over."""
AWAY = 0.5
"""How far from 1 the variance of layer 1's pre-activations has to be, for what follows to show that it contracts."""

Profile = dict[int, float]


def profiles(results: polars.DataFrame, records: polars.DataFrame, measure: str, step: int = 0) -> list[Profile]:
    """Return a measure of every job by layer, in the order of the results; of a job without records nothing."""
    own = records.filter((records["measure"] == measure) & (records["step"] == step) & records["layer"].is_not_null())
    found: dict[str, Profile] = {job: {} for job in results["job"]}
    for job, layer, value in own.select("job", "layer", "value").iter_rows():
        if job in found:
            found[job][layer] = value
    return list(found.values())


def depths(results: polars.DataFrame) -> list[int]:
    """Return the depth of every job."""
    return [int(depth) for depth in results["model.depth"]]


def hidden_ends(results: polars.DataFrame, records: polars.DataFrame, measure: str) -> Iterator[tuple[float, float]]:
    """Yield a measure at layers 1 and L of every job at step 0, NaN where it is not."""
    for profile, depth in zip(profiles(results, records, measure), depths(results), strict=True):
        yield profile.get(1, math.nan), profile.get(depth, math.nan)


def ratio(numerator: float, denominator: float) -> float | None:
    """Return a ratio of positive numbers, None where they are not both finite and positive."""
    usable = all(math.isfinite(value) and value > 0 for value in (numerator, denominator))
    return numerator / denominator if usable else None


def worst(values: Iterable[float], choose: Callable[[Iterable[float]], float] = max) -> Interval:
    """Return the largest value (or the one that `choose` says), as an interval without width.

    Edge:    one network decides nothing, and neither does a value that is not finite: NaN
    """
    found = list(values)
    if not found or not all(math.isfinite(value) for value in found):
        return Interval(math.nan, math.nan, math.nan, len(found))
    value = choose(found)
    return Interval(value, value, value, len(found)) if len(found) > 1 else Interval(value, math.nan, math.nan, 1)


def variance_interval(values: Iterable[float | None]) -> Interval:
    """Return the variance of the finite values with the interval that it has where they are normal.

    Math:    (n - 1) s^2 / chi2(0.975; n - 1) to (n - 1) s^2 / chi2(0.025; n - 1)
    Edge:    fewer than two values have no variance: NaN
    """
    import numpy as np
    from scipy.special import chdtri

    finite = np.array([value for value in values if value is not None and math.isfinite(value)])
    freedom = len(finite) - 1
    if freedom < 1:
        return Interval(math.nan, math.nan, math.nan, len(finite))
    squares, tail = float(finite.var(ddof=1)) * freedom, (1 - LEVEL) / 2
    low, high = (squares / float(chdtri(freedom, p)) for p in (tail, 1 - tail))
    return Interval(squares / freedom, low, high, len(finite))


def job_gains(results: polars.DataFrame, records: polars.DataFrame, *, linear: bool) -> list[float | None]:
    """Return each job's gain at step 0 between its hidden layers, or between those of its linear regime.

    Math:    (delta_k / delta_L)^(1/(L - k)), k = 1, or the first layer from which on preactivation_rms < LINEAR_BELOW
    Edge:    None where fewer than two layers are left, or a delta is zero or not finite
    """
    gains: list[float | None] = []
    deltas, sizes = (profiles(results, records, measure) for measure in ("delta_rms", "preactivation_rms"))
    for delta, size, depth in zip(deltas, sizes, depths(results), strict=True):
        curved = [layer for layer, value in size.items() if linear and layer <= depth and value >= LINEAR_BELOW]
        start = max(curved, default=0) + 1
        factor = ratio(delta.get(start, 0.0), delta.get(depth, 0.0)) if start < depth else None
        gains.append(None if factor is None else factor ** (1 / (depth - start)))
    return gains


def gain(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The gain over all hidden layers."""
    return geometric_interval(job_gains(results, records, linear=False))


def linear_gain(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The gain over the layers of the linear regime."""
    return geometric_interval(job_gains(results, records, linear=True))


def length_gain(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The factor a layer of activation_rms, from layer 1 to layer L."""
    ends = zip(hidden_ends(results, records, "activation_rms"), depths(results), strict=True)
    factors = [(ratio(last, first), depth - 1) for (first, last), depth in ends]
    return geometric_interval(None if factor is None else factor ** (1 / layers) for factor, layers in factors)


def length_growth(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The factor (a_L / a_1)^2 of the mean square activation."""
    factors = [ratio(last, first) for first, last in hidden_ends(results, records, "activation_rms")]
    return mean_interval(None if factor is None else factor**2 for factor in factors)


def length_fluctuation(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The variance over the seeds of log (a_L / a_1)^2."""
    factors = [ratio(last, first) for first, last in hidden_ends(results, records, "activation_rms")]
    return variance_interval(None if factor is None else 2 * math.log(factor) for factor in factors)


def gradient_growth(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The factor of the mean square gradient with respect to what layers hand on, from layer L to layer 1.

    Math:    (c delta_1 / delta_L)^2, as delta_l = c g_l phi'(z_l), c = 1/sqrt(L) behind layer 1 of a scaled net, else 1
    """
    values: list[float | None] = []
    ends = hidden_ends(results, records, "delta_rms")
    for (first, last), depth, residual in zip(ends, depths(results), results["model.residual"], strict=True):
        factor = ratio(first, last)
        square = 1 / depth if residual == "scaled" else 1.0
        values.append(None if factor is None else square * factor**2)
    return mean_interval(values)


def best_accuracy(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The final training accuracy of each seed under its best learning rate; 0 for a network that diverged.

    Edge:    Student's interval can reach beyond what an accuracy can be: it is cut at 0 and 1
    """
    import polars

    accuracy = polars.col("train_accuracy").fill_null(0.0).max()
    found = mean_interval(results.group_by("seed", maintain_order=True).agg(accuracy)["train_accuracy"])
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if found.count > 1 else found


def length_change(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The worst of |a_l - a_1| / a_1 and |m_l - m_1| / a_1 over layers and networks: 0 where layers hand on what came.

    Edge:    a network in which layer 1 hands on nothing, or that has no records, decides nothing: NaN
    """
    found = []
    sizes, means = (profiles(results, records, name) for name in ("activation_rms", "activation_mean"))
    for size, mean in zip(sizes, means, strict=True):
        changes = [abs(value - profile[1]) for profile in (size, mean) for value in profile.values()]
        found.append(max(changes) / size[1] if changes and size.get(1, 0.0) > 0 else math.nan)
    return worst(found)


def branch_gradient(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The largest norm of a gradient of the weights of layers 2 to L at the start."""
    norms = zip(profiles(results, records, "grad_norm"), depths(results), strict=True)
    return worst(max((p[layer] for layer in range(2, depth + 1) if layer in p), default=math.nan) for p, depth in norms)


def gates_moved(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The smallest share of a network's gates that the first step changed."""
    shares = []
    for before, after in zip(*(profiles(results, records, "gate", step) for step in (0, 1)), strict=True):
        moved = [after[layer] != gate for layer, gate in before.items() if layer in after]
        shares.append(sum(moved) / len(moved) if moved else math.nan)
    return worst(shares, min)


def selu_constants_error(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """How far the constants of the networks' activation are from those that solve the fixed-point equations.

    Math:    lambda = phi(1), alpha = -phi(-inf) / phi(1), read off the activation itself
    """
    import torch

    from bpexp.activations import ACTIVATIONS
    from bpexp.theory import selu_constants

    errors = []
    for name in results["model.activation"]:
        one, below = ACTIVATIONS[name].function(torch.tensor([1.0, -1e3], dtype=torch.float64)).tolist()
        alpha, scale = selu_constants()
        errors.append(max(abs(-below / one - alpha), abs(one - scale)))
    return worst(errors)


def settled(results: polars.DataFrame, records: polars.DataFrame) -> Iterator[tuple[float, float]]:
    """Yield mean and variance of the activations of every job, averaged over its LAST layers.

    Math:    variance = activation_rms^2 - activation_mean^2, over units and samples
    Edge:    a network of which layer 1 does not start AWAY from the variance 1, or that is no deeper than LAST layers,
             shows nothing: NaN
    """
    names = ("activation_mean", "activation_rms", "preactivation_mean", "preactivation_rms")
    by_name = [profiles(results, records, name) for name in names]
    for mean, size, z_mean, z_size, depth in zip(*by_name, depths(results), strict=True):
        if depth <= LAST or not mean or abs(z_size[1] ** 2 - z_mean[1] ** 2 - 1) < AWAY:
            yield math.nan, math.nan
            continue
        layers = range(depth - LAST + 1, depth + 1)
        variance = sum(size[layer] ** 2 - mean[layer] ** 2 for layer in layers) / LAST
        yield sum(mean[layer] for layer in layers) / LAST, variance


def settled_mean(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The mean of the activations of the last layers."""
    return mean_interval(mean for mean, _ in settled(results, records))


def settled_variance(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The variance of the activations of the last layers."""
    return mean_interval(variance for _, variance in settled(results, records))


def variance_error(results: polars.DataFrame, records: polars.DataFrame) -> Interval:
    """The worst |Var z - 1| over layers 1 to L + 1 and networks, at the start.

    Edge:    a network that could not be initialized counts as one with a layer of variance 0
    """
    pairs = zip(*(profiles(results, records, f"preactivation_{name}") for name in ("rms", "mean")), strict=True)
    return worst(
        max((abs(size[layer] ** 2 - mean[layer] ** 2 - 1) for layer in size), default=1.0) for size, mean in pairs
    )
