"""Update rules, schedules and clipping on flat vectors, with every hyperparameter a number of each network's own."""

from bpexp.optim.choose import make_clipper, make_optimizer
from bpexp.optim.clip import clip_by_norm, clip_by_unit, clip_by_value, clip_effect
from bpexp.optim.layout import Layout, Spread, add_scaled, flatten, is_weight, shrink_units, unit_norms
from bpexp.optim.schedule import Rate, factors
from bpexp.optim.update import SGD, Adam, Optimizer

__all__ = [
    "SGD",
    "Adam",
    "Layout",
    "Optimizer",
    "Rate",
    "Spread",
    "add_scaled",
    "clip_by_norm",
    "clip_by_unit",
    "clip_by_value",
    "clip_effect",
    "factors",
    "flatten",
    "is_weight",
    "make_clipper",
    "make_optimizer",
    "shrink_units",
    "unit_norms",
]
