"""The only importer of matplotlib: tables of numbers in, figures out."""

from bpexp.figures.attribution import attribution_bars
from bpexp.figures.cells import gain_against_prediction, gain_map
from bpexp.figures.claims import claims
from bpexp.figures.clipping import clip_ledger, clipping_laws, clipping_outcomes, clipping_wall
from bpexp.figures.layers import named_layers, profiles, training
from bpexp.figures.phase import phase_diagrams
from bpexp.figures.remedies import remedy_map
from bpexp.figures.style import looks, new_figure, png, styled, svg
from bpexp.figures.trainability import fitted_multiples, oracle_reliability, trainability_map

__all__ = [
    "attribution_bars",
    "claims",
    "clip_ledger",
    "clipping_laws",
    "clipping_outcomes",
    "clipping_wall",
    "fitted_multiples",
    "gain_against_prediction",
    "gain_map",
    "looks",
    "named_layers",
    "new_figure",
    "oracle_reliability",
    "phase_diagrams",
    "png",
    "profiles",
    "remedy_map",
    "styled",
    "svg",
    "trainability_map",
    "training",
]
