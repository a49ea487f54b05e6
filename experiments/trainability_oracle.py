"""The trainability oracle: the networks that it is fitted to, those that are held out, and how well it foresees them.

Held out are all networks of a depth in HELD_DEPTHS or of an activation in HELD_ACTIVATIONS, so that the oracle has seen
neither; their gains, learning rates, dropout and seeds are others as well.

Letters: P = probability that a network trains; Brier score = mean of (P - 1)^2 where it trains, P^2 where it does not;
skill = 1 - score / score of the share that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpexp import entry
from experiments.trainability_map import read_networks, scales_of
from experiments.trainability_multiples import fit_logistic

if TYPE_CHECKING:
    import polars

    from bpexp.theory.oracle import Oracle

Array = NDArray[np.float64]

HELD_DEPTHS = (6, 12, 24, 48)
UNSEEN_WIDTHS = (24, 96)
HELD_ACTIVATIONS = ("elu", "silu", "hardtanh", "mish")
NEAR = 2.0
"""A cell is near the boundary where its depth is within this factor of one at which half of the networks train."""
LARGEST_RATIO = 100.0
"""Where L / xi_c is cut, and its inverse: xi_c may be infinite."""
RESAMPLED = 400
BINS = 10
PUBLISHED_MULTIPLE = 6.0
"""Networks of up to so many xi_c train, it is said: Schoenholz et al. 2017, arXiv:1611.01232."""
SPEAKERS = {"the oracle": "trains", "a fitted multiple of xi_c": "multiple_of_xi_c"}
"""Who says with what chance a network trains, and the column."""

COMMON = ("train.steps=200", "train.measure_every=100", "model.width=32")
FITTED = "model.depth=4,8,16,32,64"
HELD = "model.depth=6,12,24,48"
FIT_PLAIN = (
    *COMMON,
    FITTED,
    "model.activation=tanh,relu,sigmoid,gelu,selu",
    "init.gain=1.0,1.4142,1.8",
    "init.bias_std=0,0.3",
    "optimizer.lr=0.01,0.1",
    "seed=0",
)
FIT_SKIPS_AND_NORMS = (
    *COMMON,
    "model.depth=4,16,64",
    "model.activation=tanh,gelu",
    "init.gain=1.4142",
    "init.bias_std=0.1",
    "optimizer.lr=0.01,0.1",
    "model.norm=none,batch,layer",
    "model.residual=none,plain,scaled,rezero",
    "seed=0",
)
FIT_DROPOUT = (
    *COMMON,
    "model.depth=4,8,16",
    "model.activation=tanh,relu",
    "init.gain=1.4142",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.1",
    "model.dropout=0.05,0.1,0.3",
    "seed=0",
)
FIT_WIDTHS = (
    *COMMON,
    "model.width=16,128",
    "model.depth=4,16,64",
    "model.activation=tanh,relu",
    "init.gain=1.0,1.4142",
    "init.bias_std=0.1",
    "optimizer.lr=0.01,0.1",
    "seed=0",
)
FIT_INITS = (
    *COMMON,
    "model.depth=4,16,64",
    "model.activation=tanh,relu,gelu",
    "init=he,glorot,orthogonal",
    "init.gain=0.8,1.2",
    "init.bias_std=0.1",
    "optimizer.lr=0.01,0.1",
    "seed=0",
)
HELD_PLAIN = (
    *COMMON,
    HELD,
    f"model.activation={','.join(HELD_ACTIVATIONS)}",
    "init.gain=1.2,1.5",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.08",
    "seed=21,22",
)
HELD_SKIPS_AND_NORMS = (
    *COMMON,
    HELD,
    "model.activation=silu,hardtanh",
    "init.gain=1.3",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.08",
    "model.norm=none,batch,layer",
    "model.residual=none,plain,scaled",
    "seed=21",
)
HELD_DROPOUT = (
    *COMMON,
    HELD,
    "model.activation=elu,hardtanh",
    "init.gain=1.2",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.08",
    "model.dropout=0.03,0.15",
    "seed=21",
)
HELD_WIDTHS = (
    *COMMON,
    "model.width=24,96",
    HELD,
    "model.activation=elu,hardtanh",
    "init.gain=1.2",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.08",
    "seed=21",
)
HELD_INITS = (
    *COMMON,
    HELD,
    "model.activation=elu,hardtanh",
    "init=he,glorot,orthogonal",
    "init.gain=0.9,1.1",
    "init.bias_std=0.1",
    "optimizer.lr=0.03,0.08",
    "seed=21",
)
HELD_MOMENTUM = (
    *COMMON,
    HELD,
    "model.activation=silu,mish",
    "init.gain=1.4",
    "init.bias_std=0.1",
    "optimizer=momentum",
    "optimizer.lr=0.004,0.012",
    "seed=23,24",
)
SMALLEST = (
    "train.steps=20",
    "train.measure_every=10",
    "model.width=16",
    "model.depth=2,6",
    "model.activation=tanh,elu",
    "init.gain=1.4142",
    "optimizer.lr=0.03,0.3",
    "seed=range(4)",
)
SWEEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "smoke": {"smallest": SMALLEST},
    "default": {
        "fit_plain": (*FIT_PLAIN, "model.depth=4,16,64", "model.activation=tanh,relu,gelu", "init.bias_std=0.1"),
        "held_plain": (*HELD_PLAIN, "seed=21"),
    },
    "full": {
        "fit_plain": FIT_PLAIN,
        "fit_skips_and_norms": FIT_SKIPS_AND_NORMS,
        "fit_dropout": FIT_DROPOUT,
        "fit_widths": FIT_WIDTHS,
        "fit_inits": FIT_INITS,
        "held_plain": HELD_PLAIN,
        "held_skips_and_norms": HELD_SKIPS_AND_NORMS,
        "held_dropout": HELD_DROPOUT,
        "held_widths": HELD_WIDTHS,
        "held_inits": HELD_INITS,
        "held_momentum": HELD_MOMENTUM,
    },
}
"""The sweeps of each scale, by the folder of each."""


def arguments(overrides: Iterable[str]) -> list[str]:
    """Return the arguments of a sweep: of a key that is named twice the last value counts."""
    named = {override.partition("=")[0]: override for override in overrides}
    return ["-m", *named.values()]


def compute_oracle(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Run the sweeps of a scale; return the oracle, what it said of the held-out networks, and its scores."""
    import polars

    from bpexp.theory.oracle import fit

    parts = []
    for name, overrides in SWEEPS[scale].items():
        place = folder / name
        entry.call("trainability", [*arguments(overrides), f"hydra.sweep.dir={place}"])
        parts.append(read_networks(place))
    networks = polars.concat(parts, how="vertical_relaxed")
    held_out = is_held_out(networks)
    fitted, held = networks.filter(~held_out), networks.filter(held_out)
    oracle = fit(fitted)
    foreseen = foresee(oracle, held)
    foreseen = foreseen.with_columns(*foresee_alone(foreseen, fit_baseline(fitted)), near_boundary(foreseen))
    return {"oracle": oracle.table(), "held_out": foreseen, "scores": summarize_scores(foreseen, fitted.height)}


def is_held_out(networks: polars.DataFrame) -> polars.Series:
    """Return which networks have a depth or an activation that the oracle is not shown."""
    depths = networks["model.depth"].is_in(HELD_DEPTHS)
    return depths | networks["model.activation"].is_in(HELD_ACTIVATIONS)


def fit_baseline(networks: polars.DataFrame) -> tuple[float, float]:
    """Return a and b of logit P = a - b log(L / xi_c), fitted to the networks that have an xi_c."""
    networks = networks.filter(np.isfinite(log_ratios(networks)))
    trained = (networks["outcome"] == "trains").to_numpy().astype(np.float64)
    a, b = fit_logistic(log_ratios(networks), trained, np.ones((1, networks.height)))
    return float(a[0]), float(b[0])


def log_ratios(networks: polars.DataFrame) -> Array:
    """Return log L / xi_c, cut; NaN for networks that have no finite xi_c: not of plain layers, or critical."""
    scales = [(row["model.depth"], scales_of(row)["xi_c"]) for row in networks.iter_rows(named=True)]
    found = [depth / xi if math.isfinite(xi) and xi > 0 else math.nan for depth, xi in scales]
    ratios: Array = np.log(np.clip(np.array(found, dtype=np.float64), 1 / LARGEST_RATIO, LARGEST_RATIO))
    return ratios


MODEL = ("model.depth", "model.activation", "model.width", "model.norm", "model.residual", "model.dropout")
CONFIGURED = (*MODEL, "init", "init.gain", "init.bias_std", "optimizer", "optimizer.lr", "train.steps")


def foresee(oracle: Oracle, networks: polars.DataFrame) -> polars.DataFrame:
    """Return what the oracle says of networks, a row each: the chance of each outcome, and what came of it.

    Networks of which theory has no answer are left out.
    """
    import polars

    from bpexp.theory.oracle import FEATURES, OUTCOMES, try_features

    features = [try_features(row) for row in networks.iter_rows(named=True)]
    known = networks.filter(polars.Series([x is not None for x in features], dtype=polars.Boolean))
    chances = oracle.probabilities(np.array([x for x in features if x is not None]).reshape(-1, len(FEATURES)))
    return known.select(*CONFIGURED, "seed", "outcome").with_columns(
        polars.Series(name, chances[:, k]) for k, name in enumerate(OUTCOMES)
    )


def foresee_alone(networks: polars.DataFrame, baseline: tuple[float, float]) -> list[polars.Series]:
    """Return the chance to train that a fitted multiple of xi_c gives each network, and that of the published one.

    Edge:    NaN for networks without a finite xi_c
    """
    import polars

    (a, b), ratios = baseline, log_ratios(networks)
    chances = 1 / (1 + np.exp(np.clip(b * ratios - a, -500, 500)))
    said = np.where(np.isnan(ratios), math.nan, ratios <= math.log(PUBLISHED_MULTIPLE))
    return [polars.Series("multiple_of_xi_c", chances), polars.Series("published_multiple", said)]


def near_boundary(networks: polars.DataFrame) -> polars.Series:
    """Return whether each network's depth is within a factor NEAR of a boundary of those that are but as deep."""
    import polars

    line = [name for name in CONFIGURED if name != "model.depth"]
    trained = (polars.col("outcome") == "trains").mean()
    cells = networks.group_by([*line, "model.depth"], maintain_order=True).agg(trained.alias("trained"))
    boundaries: dict[tuple[object, ...], list[float]] = {}
    for values, own in cells.sort("model.depth").group_by(line, maintain_order=True):
        boundaries[values] = crossings(own["model.depth"].to_list(), own["trained"].to_list())
    found = [
        any(1 / NEAR <= row[-1] / boundary <= NEAR for boundary in boundaries[row[:-1]])
        for row in networks.select(*line, "model.depth").iter_rows()
    ]
    return polars.Series("near", found, polars.Boolean)


def crossings(depths: list[int], trained: list[float]) -> list[float]:
    """Return the depths, between neighbours, at which the share that trains crosses a half."""
    pairs = zip(zip(depths, trained, strict=True), zip(depths[1:], trained[1:], strict=True), strict=False)
    return [math.sqrt(low * high) for (low, below), (high, above) in pairs if (below >= 0.5) != (above >= 0.5)]


PARTS: dict[str, Callable[[polars.DataFrame], polars.Series]] = {
    "all held-out networks": lambda table: table["seed"] >= 0,
    f"within a factor {NEAR:g} of the boundary": lambda table: table["near"],
    "further away": lambda table: ~table["near"],
    "with a finite xi_c": lambda table: table["multiple_of_xi_c"].is_not_nan(),
    "with a finite xi_c, near the boundary": lambda table: table["multiple_of_xi_c"].is_not_nan() & table["near"],
    "plain layers": lambda table: (
        (table["model.norm"] == "none") & (table["model.residual"] == "none") & (table["model.dropout"] == 0)
    ),
    "with a norm": lambda table: table["model.norm"] != "none",
    "with skip connections": lambda table: table["model.residual"] != "none",
    "with dropout": lambda table: table["model.dropout"] > 0,
    "of a width that was not seen": lambda table: table["model.width"].is_in(UNSEEN_WIDTHS),
    "not of init=lecun": lambda table: table["init"] != "lecun",
    "with momentum, which was not seen": lambda table: table["optimizer"] == "momentum",
}
"""Parts of the held-out networks that are scored apart."""


def summarize_scores(foreseen: polars.DataFrame, fitted: int) -> polars.DataFrame:
    """Return the scores, a row for each of PARTS that has networks; those of xi_c are NaN where some have no xi_c."""
    import polars

    rows = []
    for name, chosen in PARTS.items():
        own = foreseen.filter(chosen(foreseen))
        if own.is_empty():
            continue
        trained = (own["outcome"] == "trains").to_numpy().astype(np.float64)
        low, high = skill_interval(own["trains"].to_numpy(), trained)
        rows.append(
            {
                "part": name,
                "networks": own.height,
                "trained": float(trained.mean()),
                "brier": float(((own["trains"].to_numpy() - trained) ** 2).mean()),
                "skill": skill(own["trains"].to_numpy(), trained),
                "skill_low": low,
                "skill_high": high,
                "skill_of_xi_c": skill(own["multiple_of_xi_c"].to_numpy(), trained),
                "skill_of_published": skill(own["published_multiple"].to_numpy(), trained),
                "skill_of_three": skill_of_three(own),
                "fitted": fitted,
            }
        )
    return polars.DataFrame(rows, infer_schema_length=None)


def skill(chances: Array, trained: Array) -> float:
    """Return the Brier skill over the share that trained; NaN where all did, or none."""
    base = float(((trained.mean() - trained) ** 2).mean())
    return 1 - float(((chances - trained) ** 2).mean()) / base if base > 0 else math.nan


def skill_interval(chances: Array, trained: Array) -> tuple[float, float]:
    """Return the 95 % interval of the skill over resampled networks."""
    drawn = np.random.default_rng(0).integers(0, len(trained), (RESAMPLED, len(trained)))
    found = [skill(chances[rows], trained[rows]) for rows in drawn]
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (math.nan, math.nan)
    return float(low), float(high)


def skill_of_three(table: polars.DataFrame) -> float:
    """Return the skill over all three outcomes: squared errors of their probabilities against those of their shares."""
    from bpexp.theory.oracle import OUTCOMES

    happened = np.stack([(table["outcome"] == name).to_numpy() for name in OUTCOMES], 1).astype(np.float64)
    base = float(((happened - happened.mean(0)) ** 2).sum())
    return 1 - float(((table.select(OUTCOMES).to_numpy() - happened) ** 2).sum()) / base if base > 0 else math.nan


def reliability(foreseen: polars.DataFrame, column: str) -> polars.DataFrame:
    """Return how often networks trained, by bins of what was said: mean chance, share, count, 95 % interval.

    Math:    Wilson's interval of a share, z = 1.96
    Source:  Wilson 1927, doi:10.1080/01621459.1927.10502953
    """
    import polars

    foreseen = foreseen.filter(foreseen[column].is_not_nan())
    chance = foreseen[column].to_numpy()
    trained = (foreseen["outcome"] == "trains").to_numpy()
    places = np.minimum((chance * BINS).astype(int), BINS - 1)
    rows = []
    for place in np.unique(places):
        own, count = trained[places == place], int((places == place).sum())
        share, z2 = float(own.mean()), 1.96**2
        middle = (share + z2 / (2 * count)) / (1 + z2 / count)
        half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
        said = float(chance[places == place].mean())
        rows.append({"said": said, "trained": share, "low": middle - half, "high": middle + half, "count": count})
    return polars.DataFrame(rows)


def published_oracle() -> Oracle | None:
    """Return the oracle of the published records of trainability, if there is one."""
    from bpexp.theory.oracle import of_table
    from experiments import published

    records = published.read("trainability")
    return of_table(records.tables["oracle"]) if records is not None and "oracle" in records.tables else None
