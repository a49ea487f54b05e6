"""How alike the gradients of a relu network at two inputs are, by depth: shattered gradients.

Letters: L = layers, rho = correlation of two inputs' pre-activations, a = share of units that are on at both, so that
a = 1/4 of independent ones; R(L) = correlation of the gradients with respect to the input, of fixed inputs over nets.
Source: Balduzzi et al. 2017, arXiv:1702.08591
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from bpexp.init import unknown_choice
from bpexp.theory.moments import Array
from bpexp.theory.spectra import check_depth

KINDS = ("plain", "residual", "normalized")


def next_correlation(rho: ArrayLike) -> Array:
    """Return the correlation of two inputs' pre-activations one relu layer on, of weights without biases.

    Math:    E relu(x) relu(y) / E relu(x)^2 = (sqrt(1 - rho^2) + (pi - theta) rho) / pi, theta = arccos rho, of x, y
             jointly normal with one variance. The uncentred second moment: relu's outputs keep their mean
    Source:  Cho and Saul 2009, Kernel methods for deep learning (the arc-cosine kernel of degree 1)
    """
    rho = np.clip(np.asarray(rho, dtype=np.float64), -1.0, 1.0)
    return np.asarray((np.sqrt(1 - rho**2) + (math.pi - np.arccos(rho)) * rho) / math.pi)


def both_on(rho: ArrayLike) -> Array:
    """Return the share of units that are on at both inputs, over that on at one.

    Math:    P(x > 0, y > 0) / P(x > 0) = 1 - arccos(rho) / pi; 1/2 of independent ones, so that a = 1/4
    """
    return np.asarray(1 - np.arccos(np.clip(np.asarray(rho, dtype=np.float64), -1.0, 1.0)) / math.pi)


def gradient_correlation(depth: int, rho: float) -> float:
    """Return the correlation of the gradients at two inputs of a plain relu network, L layers below the output.

    Math:    prod_(l=0..L-1) (1 - arccos(rho_l)/pi), rho_(l+1) = next_correlation(rho_l): of E <g, g'> a layer keeps,
             beside what it keeps of E |g|^2, the share of units that are on at both. It is not 2^-L: relu's outputs are
             positive, so that inputs become alike with depth, rho_l -> 1, and the factors tend to 1
    Raises:  ValueError: depth below 1; rho that is no correlation
    """
    check_depth(depth)
    if not -1 <= rho <= 1:
        raise ValueError(f"rho: {rho} is not between -1 and 1")
    product = 1.0
    for _ in range(depth):
        product *= float(both_on(rho))
        rho = float(next_correlation(rho))
    return product


PAPER, ABOUT_THE_MEAN = 1.0, 1 - 1 / math.pi
"""What a branch W relu(z), z ~ N(0, 1), adds to the variance over the batch: in the paper, which counts its mean too,
E relu(z)^2 / (1/2), and about the batch's mean, Var relu(z) / (1/2)."""


def centred_correlation(depth: int, kind: str, grows: float = ABOUT_THE_MEAN) -> float:
    """Return that correlation where pre-activations are centred over the batch, so that two inputs stay independent.

    Math:    plain, W relu(x - m) with Var W = 2/n: E <g, g'> gets 2 a = 1/2 a layer, E |g|^2 gets 1: 2^-L.
             residual, x + W relu(x - m): 1 + 1/2 over 1 + 1: (3/4)^L.
             normalized, x + W relu((x - m)/sd): sd^2 = 1 + c l after l layers, so that a layer gets
             (1 + 1/(2 sd^2)) / (1 + 1/sd^2); the product over l = 0..L-1 falls as L^(-1/(2c)). c = `grows`: with the
             paper's 1 it is about 1/sqrt L, with 1 - 1/pi, the variance about the mean that sd is of, L^-0.73
    Raises:  ValueError: another kind; depth below 1; `grows` that is negative or no finite number
    """
    check_depth(depth)
    if not 0 <= grows < math.inf:
        raise ValueError(f"grows: {grows} is not a finite number from 0")
    if kind not in KINDS:
        raise unknown_choice("kind", kind, KINDS)
    if kind != "normalized":
        return float({"plain": 1 / 2, "residual": 3 / 4}[kind] ** depth)
    variances = 1 + grows * np.arange(depth)
    return float(np.prod((variances + 1 / 2) / (variances + 1)))
