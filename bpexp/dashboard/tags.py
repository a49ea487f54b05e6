"""The tags under which TensorBoard shows a run, in the order in which they matter, and what each means."""

from __future__ import annotations

import functools

from bpexp.dashboard.heatmap import HIGH, LOW
from bpexp.measures import MEASURES
from bpexp.verdict import LIMIT

FLOOR = -45.0
"""The log10 that stands for what is smaller, 0 included: float32 ends there."""

CELLS = "summary"
"""The folder, beside those of the jobs, that the runs of cells are in."""

CHARTS = ".charts"
"""The run with the charts of cells: Custom Scalars shows charts in the order of runs, and it comes before all jobs."""

INTERVALS = "within_95_percent"
"""The group of the ends of intervals: the last ones, since they are for the charts of the Custom Scalars."""

PROFILES = ("delta_rms", "grad_norm", "activation_rms")
HEATMAPS = ("delta_rms", "grad_norm")
PARTS = {"train": "train", "val": "validation", "test": "test"}
VERDICTS = {"vanishing": -1.0, "healthy": 0.0, "exploding": 1.0}

PINS = (
    "by_layer/log10_delta_rms_first_step",
    "by_layer/log10_delta_rms_last_step",
    "by_layer/log10_grad_norm_first_step",
    "loss/train",
)
"""The cards on top; each makes the link a hundred characters longer."""

PINS_OF_ONE_RUN = tuple(f"gradients/log10_{place}_layer" for place in ("first", "middle", "last"))

MEANS = (
    *(f"{quantity}/{part}" for quantity in ("loss", "accuracy") for part in PARTS.values()),
    *(f"by_layer/log10_{measure}_{step}_step" for measure in PROFILES for step in ("first", "last")),
    *(f"gradients/log10_{place}" for place in ("first_layer", "middle_layer", "last_layer", "whole_network")),
)
"""The curves of a network that a cell's run has the mean of, each under its tag with `mean_` in front."""

PINS_OF_CELLS = tuple(f"mean_{tag}" for tag in PINS)

METRICS = (
    "outcome/verdict",
    "outcome/backward_gain",
    "outcome/trained",
    *(f"{quantity}/{part}" for quantity in ("loss", "accuracy") for part in PARTS.values()),
)
"""The columns of the HParams table."""


@functools.cache
def describe(tag: str) -> str:
    """Return what a tag shows: quantity, formula, unit, axis. It is the same for every run.

    Raises:  KeyError: a tag that nobody described
    """
    group, _, name = tag.partition("/")
    if group.startswith("mean_"):
        return f"The mean over a cell's networks, which differ in the seed alone, of: {describe(tag[len('mean_') :])}"
    if group == INTERVALS:
        return f"The {name.rpartition('_')[2]} end of the 95 % interval (Student's t over the networks) of a mean."
    if group == "by_layer":
        measure = name.removeprefix("log10_").rpartition("_step")[0].rpartition("_")[0]
        when = "before the first update" if name.endswith("first_step") else "at the last measured step"
        return (
            f"log10 of {define(measure)}, {when}. **The horizontal axis is the layer**, not the step: 1 is next to "
            f"the input, depth + 1 the output. {_FLOORED}"
        )
    if group == "gradients":
        return f"log10 of {define('grad_norm')}, {_PLACES[name.split('_')[1]]}, over the steps. {_FLOORED}"
    if group == "gates":
        return f"{define('gate')}, {_PLACES[name.split('_')[0]]} that have one, over the steps."
    if group == "heatmap":
        return (
            f"{define(name)}: layer 1 (next to the input) at the bottom, the output at the top, measured steps from "
            f"left to right. The colours always span 1e{LOW} to 1e{HIGH}; what is beyond has the colour of the end."
        )
    if group in _COUNTED:
        return f"How many values of {name} are {_COUNTED[group]} at a step: of the layers, or 1 of the whole network."
    return _DESCRIPTIONS[tag]


def interval(tag: str, end: str) -> str:
    """Return the tag of the `low` or `high` end of the interval of a curve's mean."""
    return f"{INTERVALS}/{tag.replace('/', '_')}_{end}"


def define(measure: str) -> str:
    """Return a measure of layers with its formula and unit."""
    row = MEASURES[measure]
    return f"`{measure}` = `{row.formula}` (unit: {row.unit})"


_FLOORED = (
    f"What is below 1e{FLOOR:.0f} stands at {FLOOR:.0f}; zeros are counted in `zeros`, and values that are not finite "
    "are left out and counted in `not_finite`."
)
_COUNTED = {"zeros": "exactly 0", "not_finite": "not finite"}
_PLACES = {
    "first": "of layer 1, next to the input",
    "middle": "of the layer in the middle",
    "last": "of the output layer",
    "median": "the median of the layers",
    "smallest": "the smallest of the layers",
    "largest": "the largest of the layers",
    "whole": "of all parameters together, before clipping",
}
_DESCRIPTIONS = {
    "loss/train": "Mean loss of the step's training batch, before the update.",
    "loss/validation": "Mean loss of the whole validation set.",
    "loss/test": "Mean loss of the whole test set.",
    "accuracy/train": "Fraction of the step's training batch that is classified correctly.",
    "accuracy/validation": "Fraction of the whole validation set that is classified correctly.",
    "accuracy/test": "Fraction of the whole test set that is classified correctly.",
    "cell/networks": "How many of a cell's networks are in its means: those that are that far, and finite there.",
    "clipping/clip_fraction": "Fraction of the gradients so far that were clipped.",
    "outcome/verdict": (
        f"At step 0: -1 vanishing or 1 exploding, where `delta_rms` shrinks or grows by more than a factor of "
        f"{LIMIT:.0f} from the last hidden layer to layer 1; 0 healthy."
    ),
    "outcome/backward_gain": (
        "The geometric mean factor by which `delta_rms` changes a layer towards the input, at step 0; 1 keeps it."
    ),
    "outcome/trained": "1 where the network passed the experiment's stated line, else 0.",
    "outcome/diverged_step": "The first step with a value that is not finite.",
    "outcome/diverged_layer": "The first layer with a value that is not finite.",
}
