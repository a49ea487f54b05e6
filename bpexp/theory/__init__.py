"""Mean-field predictions: how far signals and gradients reach in a wide network with random weights.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), phi = activation, sigma_w2 = fan_in * Var W,
sigma_b2 = Var b, chi_1 = factor a layer of the mean square gradient, towards the input.

The predictions are exact as the width grows at fixed depth; the backward ones take the weights of the backward pass
as independent of those of the forward pass (Schoenholz et al. 2017, arXiv:1611.01232).
"""

from bpexp.theory.correlations import (
    DepthScales,
    chi,
    correlation_map,
    depth_scales,
    edge_rate,
    fixed_correlation,
    follow_correlation,
    length_slope,
)
from bpexp.theory.criticality import critical
from bpexp.theory.fluctuations import Band, Simulation, draw_law, simulate
from bpexp.theory.lengths import chi_1, fixed_point, length_map, residual_growth
from bpexp.theory.linear_dynamics import learning_time, mode_strength
from bpexp.theory.moments import (
    EDGES_X,
    activation_mean,
    activation_second_moment,
    gaussian_mean,
    resolve,
    slope_second_moment,
    value_and_slope_at_zero,
)
from bpexp.theory.phase import PhaseDiagram, critical_line, phase_diagram
from bpexp.theory.prediction import NORM_EPS, NoPredictionError, Prediction, describe_network, predict
from bpexp.theory.selu import selu_constants, selu_contraction, selu_jacobian, selu_map
from bpexp.theory.shattered import centred_correlation, gradient_correlation
from bpexp.theory.spectra import largest_eigenvalue, spectrum_variance
from bpexp.theory.tables import moment_table

__all__ = [
    "EDGES_X",
    "NORM_EPS",
    "Band",
    "DepthScales",
    "NoPredictionError",
    "PhaseDiagram",
    "Prediction",
    "Simulation",
    "activation_mean",
    "activation_second_moment",
    "centred_correlation",
    "chi",
    "chi_1",
    "correlation_map",
    "critical",
    "critical_line",
    "depth_scales",
    "describe_network",
    "draw_law",
    "edge_rate",
    "fixed_correlation",
    "fixed_point",
    "follow_correlation",
    "gaussian_mean",
    "gradient_correlation",
    "largest_eigenvalue",
    "learning_time",
    "length_map",
    "length_slope",
    "mode_strength",
    "moment_table",
    "phase_diagram",
    "predict",
    "residual_growth",
    "resolve",
    "selu_constants",
    "selu_contraction",
    "selu_jacobian",
    "selu_map",
    "simulate",
    "slope_second_moment",
    "spectrum_variance",
    "value_and_slope_at_zero",
]
