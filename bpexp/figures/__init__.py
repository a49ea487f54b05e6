"""The only importer of matplotlib: tables of numbers in, figures out."""

from bpexp.figures.cells import gain_against_prediction, gain_map
from bpexp.figures.layers import named_layers, profiles, training
from bpexp.figures.style import looks, new_figure, png, styled, svg

__all__ = [
    "gain_against_prediction",
    "gain_map",
    "looks",
    "named_layers",
    "new_figure",
    "png",
    "profiles",
    "styled",
    "svg",
    "training",
]
