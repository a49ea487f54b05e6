"""The trainability oracle: whether a network will train, stall or diverge, with a probability, before it is trained.

What it looks at is theory's, of the initialization and the learning rate: how far the network comes in its steps, how
large a step is against the largest stable one, how large its outputs start, how far networks of its width depart from a
wide one, and how much noise dropout makes. What these mean is fitted to networks that were trained.

A network is given by the values of its keys under their Hydra names, as a row of a sweep's results has them.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpexp import data
from bpexp.theory.moments import Array
from bpexp.theory.prediction import NoPredictionError, describe_network
from bpexp.theory.tangent import Tangent, shares_of_pairs, tangent

if TYPE_CHECKING:
    import polars

FEATURES = ("progress", "step", "fluctuation", "outputs", "noise")
OUTCOMES = ("trains", "stalls", "diverges")
GATES = ("fast", "stable", "diverges")

RIDGE = 0.1
"""Penalty of half the squared weights of the standardized features, in networks."""
LIMITS = ((-12.0, 12.0), (-12.0, 12.0), (0.0, 12.0), (-6.0, 8.0), (0.0, 12.0))
"""Where features are cut: beyond, a network is as good as certain to do what those at the limit do."""

PLAIN = {
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "clip": "none",
    "optimizer.l2": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.max_norm": None,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
}
"""Keys, and their one value that the oracle knows."""
DESCENTS = ("sgd", "momentum", "nesterov")

RANGES: dict[str, Callable[[float], bool]] = {
    "model.depth": lambda depth: depth >= 1,
    "model.width": lambda width: width >= 1,
    "model.dropout": lambda p: 0 <= p < 1,
    "model.input_dropout": lambda p: 0 <= p < 1,
    "train.batch_size": lambda size: size >= 1,
    "train.steps": lambda steps: steps >= 0,
    "optimizer.lr": lambda rate: 0 <= rate < math.inf,
    "optimizer.momentum": lambda momentum: 0 <= momentum < 1,
}
"""What numbers must be, which theory would take without an error."""

KEYS = (
    "data",
    "data.root",
    "data.train_size",
    "model.activation",
    "init",
    "model.depth",
    "model.width",
    "init.gain",
    "init.bias_std",
    "model.residual",
    "model.norm",
    "init.gate",
    "model.dropout",
    "model.input_dropout",
    "train.batch_size",
)
"""What the kernel depends on, in the order of `kernel_of`."""


@dataclass(frozen=True)
class Oracle:
    """A fitted oracle: of each gate a weight for each standardized feature, and a constant.

    Math:    u, v, w = the gates' weights times (1, x - mean)/spread, s = 1/(1 + e^-x):
             P(trains) = s(u) s(v), P(diverges) = (1 - s(v)) s(w), P(stalls) = the rest. A network trains that is fast
             enough and stable; one that is not stable may diverge, or its outputs stay large and it stalls
    Shapes:  mean, spread: (F,); weights: (3, F + 1), the constant last
    """

    mean: Array
    spread: Array
    weights: Array

    def predict(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the probability of each of OUTCOMES for a network that is given by the values of its keys.

        Raises:  NoPredictionError: theory has no answer for it; ValueError: a value outside its range
        """
        return dict(zip(OUTCOMES, self.probabilities(features(values)[None])[0].tolist(), strict=True))

    def probabilities(self, x: Array) -> Array:
        """Return the probabilities of OUTCOMES, (N, 3), for features (N, F)."""
        return _outcomes(*(_gates(self._standardized(x), self.weights)))

    def _standardized(self, x: Array) -> Array:
        return _with_constant((x - self.mean) / self.spread)

    def table(self) -> "polars.DataFrame":
        """Return all of it as a table: a row for each feature and the constant."""
        import polars

        names = [*FEATURES, "constant"]
        numbers = {"mean": [*self.mean, 0.0], "spread": [*self.spread, 1.0]}
        gates = dict(zip(GATES, self.weights.tolist(), strict=True))
        return polars.DataFrame({"feature": names, **numbers, **{f"gate_{name}": row for name, row in gates.items()}})


def of_table(table: "polars.DataFrame") -> Oracle:
    """Return the oracle that a table of `Oracle.table` holds.

    Raises:  ValueError: it is of other features
    """
    if table["feature"].to_list() != [*FEATURES, "constant"]:
        raise ValueError(f"oracle: its features are {', '.join(table['feature'])}, not {', '.join(FEATURES)}, constant")
    mean, spread = (table[name].to_numpy()[:-1] for name in ("mean", "spread"))
    return Oracle(mean, spread, np.stack([table[f"gate_{name}"].to_numpy() for name in GATES]))


def fit(table: "polars.DataFrame") -> Oracle:
    """Fit an oracle to trained networks: a row each, the values of its keys and its `outcome`, one of OUTCOMES.

    Networks of which theory has no answer are left out.

    Raises:  ValueError: no network is left; an outcome that is none of the three
    """
    rows = [(found, row["outcome"]) for row in table.iter_rows(named=True) if (found := try_features(row)) is not None]
    if not rows:
        raise ValueError("oracle: there is no network to fit it to")
    return fit_features(np.stack([x for x, _ in rows]), [outcome for _, outcome in rows])


def fit_features(x: Array, outcomes: Sequence[str]) -> Oracle:
    """Fit an oracle to features (N, F) and outcomes, by the largest likelihood with the penalty RIDGE.

    Raises:  ValueError: an outcome that is none of OUTCOMES
    """
    from scipy.optimize import minimize

    if unknown := set(outcomes) - set(OUTCOMES):
        raise ValueError(f"oracle: unknown outcome {min(unknown)!r}; choose from {', '.join(OUTCOMES)}")
    mean, spread = x.mean(0), np.maximum(x.std(0), 1e-9)
    z = _with_constant((x - mean) / spread)
    happened = np.stack([np.array(outcomes) == name for name in OUTCOMES], 1)
    start = np.zeros((len(GATES), z.shape[1]))
    start[0, FEATURES.index("progress")], start[1, FEATURES.index("step")] = 1.0, -1.0
    found = minimize(_loss, start.ravel(), (z, happened), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    return Oracle(mean, spread, found.x.reshape(start.shape))


def _loss(flat: Array, z: Array, happened: NDArray[np.bool_]) -> tuple[float, Array]:
    """Return minus the log likelihood with its penalty, and the gradient.

    Math:    with f, s, d the gates and P the probability of what happened, d log P / du is 1 - f where it trained and
             -f (1 - f) s / P where it stalled; the other two are found in the same way
    """
    weights = flat.reshape(len(GATES), -1)
    fast, stable, lost = _gates(z, weights)
    trains, _, diverges = happened.T
    chance = np.maximum(_outcomes(fast, stable, lost)[happened], TINY)
    stalled = ~(trains | diverges)
    by_fast = np.where(trains, 1 - fast, np.where(stalled, -fast * (1 - fast) * stable / chance, 0.0))
    by_stable = np.where(trains, 1 - stable, np.where(stalled, stable * (1 - stable) * (lost - fast) / chance, -stable))
    by_lost = np.where(diverges, 1 - lost, np.where(stalled, -(1 - stable) * lost * (1 - lost) / chance, 0.0))
    penalized = np.concatenate([weights[:, :-1], np.zeros((len(weights), 1))], 1)
    gradient = RIDGE * penalized - np.stack([by_fast, by_stable, by_lost]) @ z
    return float(RIDGE * (penalized**2).sum() / 2 - np.log(chance).sum()), gradient.ravel()


TINY = 1e-12


def _with_constant(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1))], 1)


def _gates(z: Array, weights: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(weights @ z.T, -40, 40))))


def _outcomes(fast: Array, stable: Array, lost: Array) -> Array:
    trains, diverges = fast * stable, (1 - stable) * lost
    return np.stack([trains, 1 - trains - diverges, diverges], 1)


def try_features(values: Mapping[str, Any]) -> Array | None:
    """Return the features of a network, None where theory has no answer."""
    try:
        return features(values)
    except NoPredictionError:
        return None


def features(values: Mapping[str, Any]) -> Array:
    """Return FEATURES of a network that is given by the values of its keys.

    Math:    with e = lr / (1 - m) the learning rate, m the momentum, T the steps, C classes, K the tangent kernel:
             progress = log(e T progress(K) / C), step = log(e step(K) / (2 C)): gradient descent on the cross-entropy,
             whose curvature by outputs is about 1/C, is stable for step < 0 and has come near the classes for
             progress > 0; momentum makes slow directions learn as with a learning rate of e; fluctuation = root of the
             variance of log squared gradients; outputs = log of their mean square at the start; noise = root of the sum
             over masks of p/(1-p), p the dropout's probability
    Raises:  NoPredictionError: theory has no answer for it; ValueError: a value outside its range
    """
    for key, value in PLAIN.items():
        if values.get(key, value) != value:
            raise NoPredictionError(f"no prediction for {key}={values[key]}: the oracle knows {key}={value} alone")
    if values["optimizer"] not in DESCENTS:
        known = ", ".join(DESCENTS)
        raise NoPredictionError(f"no prediction for optimizer={values['optimizer']}: the oracle knows {known}")
    for key, holds in RANGES.items():
        if values[key] is not None and not holds(values[key]):
            raise ValueError(f"{key}: {values[key]} is out of range")
    found, classes = kernel_of(*(values[key] for key in KEYS))
    lr = values["optimizer.lr"] / (1 - (values["optimizer.momentum"] or 0.0)) / classes
    hidden, inputs = (p / (1 - p) for p in (values["model.dropout"], values["model.input_dropout"]))
    raw = (
        _log(lr * values["train.steps"] * found.progress),
        _log(lr * found.step / 2),
        math.sqrt(found.fluctuation),
        _log(found.output_length),
        math.sqrt(values["model.depth"] * hidden + inputs),
    )
    return np.array([min(max(value, low), high) for value, (low, high) in zip(raw, LIMITS, strict=True)])


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@functools.lru_cache(maxsize=4096)
def kernel_of(
    name: str,
    root: str | None,
    train_size: int | None,
    activation: str,
    init: str,
    depth: int,
    width: int,
    gain: float,
    bias_std: float | None,
    residual: str,
    norm: str,
    gate: float,
    dropout: float,
    input_dropout: float,
    batch_size: int,
) -> tuple[Tangent, int]:
    """Return the tangent kernel of a network on a data set, and the number of its classes."""
    described = data.describe(name, root)
    if described.task != "classification":
        raise NoPredictionError(f"no prediction for data={name}: the oracle knows classes alone")
    sizes = (described.features, *[width] * depth, described.outputs)
    network = describe_network(
        activation,
        init,
        sizes,
        gain,
        bias_std,
        residual,
        norm=norm,
        gate=gate,
        dropout=dropout,
        input_dropout=input_dropout,
    )
    covariances = class_covariances(name, root, train_size)
    pairs = shares_of_pairs(batch_size, described.outputs)
    return tangent(network, covariances, pairs, described.outputs), described.outputs


@functools.cache
def class_covariances(name: str, root: str | None, train_size: int | None) -> tuple[float, float, float]:
    """Return means of x x' over the features: of a training sample with itself, its class, and another class.

    Raises:  NoPredictionError: a class without a second sample
    """
    import torch

    parts = data.load(name, 0, root=root, train_size=train_size, dtype=torch.float64)
    x, y = parts.x_train.flatten(1).numpy(), parts.y_train.numpy()
    squares = float((x**2).sum())
    sums, counts = zip(*((x[y == k].sum(0), int((y == k).sum())) for k in np.unique(y)), strict=True)
    alike = sum(float(total @ total) for total in sums)
    pairs, total = sum(count**2 for count in counts), np.sum(sums, axis=0)
    if pairs == len(x) or len(counts) < 2:
        raise NoPredictionError(f"no prediction for data.train_size={train_size}: a class has no second sample")
    features = x.shape[1]
    return (
        squares / len(x) / features,
        (alike - squares) / (pairs - len(x)) / features,
        (float(total @ total) - alike) / (len(x) ** 2 - pairs) / features,
    )
