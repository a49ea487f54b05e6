"""What happened to a network's gradient, in one word and one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bpexp.statistics import geometric_interval

LIMIT = 100.0
"""The factor from layer L to layer 1 beyond which a gradient counts as vanishing or exploding."""


@dataclass(frozen=True)
class Verdict:
    """The word, and the geometric mean factor a layer of delta_rms towards the input with its interval.

    What cannot be said is NaN: the gain of one hidden layer, or where a delta is zero or not finite; the interval of
    fewer than three hidden layers.
    """

    word: str
    backward_gain: float
    low: float
    high: float


def judge(delta_rms: ArrayLike, smallest: float = 0.0) -> Verdict:
    """Judge the delta_rms of the hidden layers 1 to L of one network; up to `smallest` one counts as zero.

    Math:    gain = (delta_1 / delta_L)^(1/(L-1)), the geometric mean of the factors delta_l / delta_(l+1), and the
             interval of that mean with the L-1 factors as its sample
    Edge:    a zero is vanishing, and the gain is that of the layers above the last one, which no underflow touched;
             a delta that is not finite is exploding
    """
    delta = np.asarray(delta_rms, dtype=np.float64)
    if not np.isfinite(delta).all():
        return Verdict("exploding", math.nan, math.nan, math.nan)
    zeros = np.flatnonzero(delta <= smallest)
    start = zeros[-1] + 1 if len(zeros) else 0
    with np.errstate(over="ignore"):  # a factor beyond float64 is infinite
        word = "vanishing" if start > 0 else _word(delta[0] / delta[-1])
        gain = geometric_interval(delta[start:-1] / delta[start + 1 :])
    return Verdict(word, gain.mean, gain.low, gain.high)


def _word(ratio: float) -> str:
    return "vanishing" if ratio < 1 / LIMIT else "exploding" if ratio > LIMIT else "healthy"
