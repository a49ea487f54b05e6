"""The differentiation rules, a file per family; importing the package fills the table."""

from bpexp.rules import (
    activations,
    arithmetic,
    linear,
    losses,
    networks,
    normalization,
    norms,
    reductions,
    regularization,
    softmax,
    views,
)
from bpexp.rules.table import RULES, Rule, Sample

__all__ = [
    "RULES",
    "Rule",
    "Sample",
    "activations",
    "arithmetic",
    "linear",
    "losses",
    "networks",
    "normalization",
    "norms",
    "reductions",
    "regularization",
    "softmax",
    "views",
]
