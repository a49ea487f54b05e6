"""Mean-field predictions: how far signals and gradients reach in a wide network with random weights.

Letters: q = mean square of a pre-activation, z ~ N(0, 1), phi = activation, sigma_w2 = fan_in * Var W,
sigma_b2 = Var b, chi_1 = factor a layer of the mean square gradient, towards the input.

The predictions are exact as the width grows at fixed depth; the backward ones take the weights of the backward pass
as independent of those of the forward pass (Schoenholz et al. 2017, arXiv:1611.01232).
"""

from bpexp.theory.criticality import critical
from bpexp.theory.lengths import chi_1, fixed_point, length_map, residual_growth
from bpexp.theory.moments import (
    EDGES_X,
    activation_mean,
    activation_second_moment,
    gaussian_mean,
    resolve,
    slope_second_moment,
    value_and_slope_at_zero,
)
from bpexp.theory.prediction import NORM_EPS, NoPredictionError, Prediction, predict
from bpexp.theory.selu import selu_constants, selu_contraction, selu_jacobian, selu_map

__all__ = [
    "EDGES_X",
    "NORM_EPS",
    "NoPredictionError",
    "Prediction",
    "activation_mean",
    "activation_second_moment",
    "chi_1",
    "critical",
    "fixed_point",
    "gaussian_mean",
    "length_map",
    "predict",
    "residual_growth",
    "resolve",
    "selu_constants",
    "selu_contraction",
    "selu_jacobian",
    "selu_map",
    "slope_second_moment",
    "value_and_slope_at_zero",
]
