"""How near theory comes to the backward gain of deep wide networks: all activations, six initializations.

Each cell, an activation under an initialization, has seeds of its own: activations under the same weights, or relu
under he's and glorot's, would be off together. Its networks are those that

    python -m experiments.gradient_flow -m model.depth=30 model.width=256 model.activation=A init=I train.steps=0

measures with these seeds at step 0; here they are not evaluated, and all of an activation share their plans.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bpexp import spec

if TYPE_CHECKING:
    import numpy as np
    import polars
    from numpy.typing import NDArray
    from torch import Tensor

    from experiments.page import Picture, Table

TARGET_INITS = ("glorot", "he", "lecun", "orthogonal", "pytorch", "critical")
LARGEST_ERROR = 0.02
"""Of the measured mean over the predicted, in nine of ten cells."""
LARGEST_HALF_WIDTH = 0.02
"""Of the band of the mean over the seeds, on either side, as a share of the predicted gain."""
SIGNIFICANT = 0.01
"""A coverage that is less likely than this is not that of the bands."""


@dataclass(frozen=True)
class Size:
    """How deep and wide the networks are, and how many there are in a cell."""

    depth: int
    width: int
    seeds: int


TARGET_SIZES = {"full": Size(30, 256, 20)}
"""By scale; one that is not named leaves them out."""


def compute_target(scale: str) -> polars.DataFrame:
    """Measure and predict every cell; a row each, none at a scale without them."""
    size = TARGET_SIZES.get(scale)
    return measure_cells(target_cells() if size else [], size or Size(1, 1, 1))


def target_cells() -> list[tuple[str, str]]:
    """Return every activation under every initialization of TARGET_INITS that it has."""
    return [(name, init) for name in spec.ACTIVATIONS for init in TARGET_INITS if has_init(name, init)]


def has_init(activation: str, init: str) -> bool:
    """Return whether an activation can be initialized so: not all have a critical gain."""
    from bpexp.theory import critical

    try:
        return init != "critical" or critical(activation) > 0
    except ValueError:
        return False


def measure_cells(cells: Sequence[tuple[str, str]], size: Size) -> polars.DataFrame:
    """Return a row for each cell: its gain with its interval over its own seeds, and what was predicted."""
    import polars

    from bpexp.bands import KEYS, simulate_case
    from bpexp.statistics import geometric_interval
    from bpexp.summary import band_columns, predict_cell

    configs = [config_of(name, init, size, k * size.seeds) for k, (name, init) in enumerate(cells)]
    rows = []
    for config, gains in zip(configs, measured_gains(configs, size.seeds), strict=True):
        one = {name.removesuffix(".name"): value for name, value in spec.flatten(config).items()}
        gain = geometric_interval(gains)
        prediction = predict_cell(one, tuple(range(config.seed, config.seed + size.seeds)))
        simulation = simulate_case(tuple((name, one[name]) for name in KEYS))
        rows.append(
            {name: one[name] for name in ("model.depth", "model.width", "model.activation", "init")}
            | {"series": one["init"], "first_seed": config.seed, "seeds": size.seeds, "gain": gain.mean}
            | {"gain_low": gain.low, "gain_high": gain.high}
            | {"predicted_gain": math.nan if prediction is None else prediction.backward_gain}
            | band_columns(simulation, polars.Series(gains, dtype=polars.Float64))
        )
    return polars.DataFrame(rows)


def config_of(activation: str, init: str, size: Size, seed: int) -> spec.Config:
    one = spec.Config()
    return replace(
        one,
        seed=seed,
        model=replace(one.model, activation=activation, depth=size.depth, width=size.width),
        init=replace(one.init, name=init, bias_std=None if init == "pytorch" else one.init.bias_std),
        train=replace(one.train, steps=0),
    )


def measured_gains(configs: Sequence[spec.Config], seeds: int) -> Iterator[list[float]]:
    """Yield the gains at step 0 of each configuration's networks, of as many seeds from its own on."""
    from bpexp.chunks import chunk_size
    from bpexp.ensemble import Ensemble
    from bpexp.threads import one_thread
    from bpexp.train import Loop
    from bpexp.verdict import judge

    class Unevaluated(Loop):
        """The loop without what takes most of the time of a network that does not train."""

        def _evaluate(self, step: int) -> dict[str, Tensor]:
            return {}

    ensemble: Ensemble | None = None
    for config in configs:
        gains: list[float] = []
        size = -(-seeds // -(-seeds // chunk_size(config)))
        for start in range(0, seeds, size):
            group = [replace(config, seed=config.seed + k) for k in range(start, min(start + size, seeds))]
            with one_thread():
                if ensemble is not None and ensemble.fits(group, "cpu"):
                    ensemble.renew(group)
                else:
                    if ensemble is not None:
                        ensemble.close()
                    ensemble = Ensemble(group)
                (snapshot,) = Unevaluated(ensemble).run()
            _, deltas = snapshot.layers["delta_rms"]
            gains += [judge(row[: config.model.depth]).backward_gain for row in deltas]
        yield gains
    if ensemble is not None:
        ensemble.close()


def half_widths(cells: polars.DataFrame) -> NDArray[np.float64]:
    """Return how far each band reaches above its middle, as a share of it: further than below."""
    found: NDArray[np.float64] = cells["band_high"].to_numpy() / cells["finite_gain"].to_numpy() - 1
    return found


def least_half_widths(cells: polars.DataFrame, level: float) -> NDArray[np.float64]:
    """Return how far bands would reach if any number of networks were simulated, by the scatter of the measured seeds.

    Math:    exp(z s / sqrt(k)) - 1, z the quantile of the normal distribution; the 95 % interval of k seeds says s
    """
    import numpy as np
    from scipy.special import ndtri, stdtrit

    from bpexp.statistics import LEVEL

    error = np.log(cells["gain"].to_numpy() / cells["gain_low"].to_numpy())
    error = error / stdtrit(cells["seeds"].to_numpy() - 1, (1 + LEVEL) / 2)
    found: NDArray[np.float64] = np.expm1(float(ndtri((1 + level) / 2)) * error)
    return found


def target_table(cells: polars.DataFrame) -> Table:
    """Return what was to be reached, and what was."""
    from bpexp.statistics import coverage_p_value
    from bpexp.theory.fluctuations import LEVEL
    from experiments.page import Table

    level = f"{100 * LEVEL:g} %"
    rows = [error_row(cells, "finite_gain", "networks of this width, simulated")]
    rows.append(error_row(cells, "predicted_gain", "infinite width, by mean field"))
    wide = half_widths(cells)
    worst = cells.row(int(wide.argmax()), named=True)
    too_wide = wide > LARGEST_HALF_WIDTH
    hopeless = int((too_wide & (least_half_widths(cells, LEVEL) > LARGEST_HALF_WIDTH)).sum())
    name = f"{worst['model.activation']} under {worst['init']}"
    rows.append(
        (
            f"largest half width of the {level} band of the mean over the seeds",
            f"{percent(wide.max())} ({name}); above the target in {too_wide.sum()} of {cells.height} cells, in "
            f"{hopeless} because the seeds themselves scatter so much",
            f"at most {100 * LARGEST_HALF_WIDTH:g} %",
            yes_or_no(not too_wide.any()),
        )
    )
    p_values = cells["p_value"].to_numpy()
    inside = int((p_values >= 1 - LEVEL).sum())  # one that is not known, NaN, is not inside
    p_value = coverage_p_value(inside, cells.height, LEVEL)
    rows.append(
        (
            f"means over the seeds that lie in their {level} band",
            f"{inside} of {cells.height} (p = {p_value:.2g} that so few do)",
            f"p of at least {SIGNIFICANT}",
            yes_or_no(p_value >= SIGNIFICANT),
        )
    )
    one = cells.row(0, named=True)
    caption = f"Backward gain of networks with L = {one['model.depth']}, n = {one['model.width']}: "
    caption += f"{cells.height} cells, each with {one['seeds']} seeds of its own."
    return Table("predicted", ("what", "measured", "target", "reached"), tuple(rows), caption)


def target_answer(cells: polars.DataFrame) -> str:
    """Say what of the target was reached, from its table."""
    rows = target_table(cells).rows
    missed = [what for what, _, _, reached in rows if reached == "no"]
    one = cells.row(0, named=True)
    text = f"At L = {one['model.depth']} and n = {one['model.width']} predictions of {cells.height} cells reach "
    text += f"{len(rows) - len(missed)} of {len(rows)} targets"
    return f"{text}, all but: {'; '.join(missed)}." if missed else f"{text}."


def target_command(cells: polars.DataFrame) -> str:
    """Return the command that measures the networks of the first cell; the others have other seeds."""
    one = cells.row(0, named=True)
    arguments = [f"{name}={one[name]}" for name in ("model.depth", "model.width", "model.activation", "init")]
    seeds = f"seed=range({one['first_seed']},{one['first_seed'] + one['seeds']})"
    return shlex.join(["python", "-m", "experiments.gradient_flow", "-m", *arguments, seeds, "train.steps=0"])


def error_row(cells: polars.DataFrame, name: str, of: str) -> tuple[str, str, str, str]:
    import numpy as np

    errors = np.abs(cells["gain"].to_numpy() / cells[name].to_numpy() - 1)
    found = float(np.quantile(errors, 0.9))
    return (
        f"relative error of the predicted gain, 90th percentile: {of}",
        f"{percent(found)} (median {percent(np.median(errors))}, worst {percent(errors.max())})",
        f"at most {100 * LARGEST_ERROR:g} %",
        yes_or_no(found <= LARGEST_ERROR),
    )


def percent(share: float | np.floating[Any]) -> str:
    return f"{100 * share:.2f} %"


def yes_or_no(reached: bool) -> str:
    return "yes" if reached else "no"


def target_picture(cells: polars.DataFrame) -> Picture:
    """Draw measured against predicted gains of all cells."""
    from bpexp import figures
    from experiments.page import Picture

    one = cells.row(0, named=True)
    return Picture(
        "target",
        figures.svg(figures.gain_against_prediction(cells)),
        f"All activations under six initializations at L = {one['model.depth']}, n = {one['model.width']}, "
        f"{one['seeds']} seeds each of its own, against the prediction of infinite width; broad bars say where the "
        "mean of the seeds should lie at this width.",
        "Points in their broad bars: the initialization and the width alone told the gain.",
        "Points outside of their broad bars in more than one of a hundred cells.",
    )
