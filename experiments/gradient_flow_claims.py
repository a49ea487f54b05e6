"""Published claims that gradient_flow's records speak of: their expectations are written here, before a run.

Claim 1: Glorot and Bengio 2010, PMLR 9:249, on PyTorch's default nn.Linear weights; claim 2: He et al. 2015,
arXiv:1502.01852, in its dense form; claim 8, of which the rest stands with the residual nets: Hanin and Rolnick 2018,
arXiv:1803.01719; claim 10: SELU, Klambauer et al. 2017, arXiv:1706.02515; claim 13: LSUV, Mishkin and Matas 2016,
arXiv:1511.06422. Letters: L = depth, n = width, gain = factor a layer of delta_rms, towards the input.

Claims 1, 2 and 8. A layer multiplies the mean square of delta by n Var W E phi'^2. PyTorch draws
U(-1/sqrt n, 1/sqrt n), so n Var W = 1/3; Glorot's is 1, He's 2, where the layers are square. phi' = 1 for tanh near 0;
for relu E phi'^2 = 1/2, and as E phi^2 is half the mean square of z, activation_rms changes by the same forward.

Claim 10. Of z ~ N(0, q) the length map of selu has the slope 0.78 at its fixed point 1. One sample's mean square
varies from net to net by Var(x^2) / n / (1 - 0.78^2) = 3.9/n at most, so that at n = 128 and 20 seeds its mean is known
to +-0.08: the bounds are 0.1 around. Inputs that are dropped with probability 3/4 have four times their mean square,
which starts it above; orthogonal columns of 256 units on 64 inputs start it at a quarter.

Claim 13. The batch that step 0 measures is the one that LSUV scaled on, so that the bound has no sampling error.
"""

from __future__ import annotations

import math

from bpexp.spec import ACTIVATIONS
from experiments.gradient_flow_quantities import (
    CONVERGED,
    LINEAR_BELOW,
    STALLED,
    best_accuracy,
    gain,
    length_gain,
    linear_gain,
    selu_constants_error,
    settled_mean,
    settled_variance,
    variance_error,
)
from experiments.gradient_flow_residual_claims import RESIDUAL_CLAIMS
from experiments.ledger import Claim, Sweep, around

TOLERANCE = 0.02
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
SELU_TOLERANCE = 0.1

GAINS_1 = Sweep(
    "gains_1",
    ("model.depth=20", "model.width=256", "model.activation=tanh,relu", "init=pytorch,he", "train.steps=0"),
    {"smoke": 3, "default": 5, "full": 20},
)
GAINS_2 = Sweep(
    "gains_2",
    ("model.depth=30", "model.width=256", "model.activation=relu", "init=glorot,he", "train.steps=0"),
    {"smoke": 3, "default": 5, "full": 20},
)
STALL = Sweep(
    "stall",
    (
        "model.depth=30",
        "model.activation=relu",
        "init=glorot,he",
        "optimizer=momentum",
        f"optimizer.lr={','.join(map(str, LEARNING_RATES))}",
        "train.steps=300",
        "train.measure_every=100",
    ),
    {"full": 20},
)
SELU_ABOVE = Sweep(
    "selu_above",
    (
        "model.depth=30",
        "model.width=128",
        "model.activation=selu,elu,sigmoid",
        "model.input_dropout=0.75",
        "init=lecun",
        "train.steps=0",
    ),
    {"smoke": 3, "default": 5, "full": 20},
)
SELU_BELOW = Sweep(
    "selu_below",
    ("model.depth=30", "model.width=256", "model.activation=selu,elu", "init=orthogonal", "train.steps=0"),
    {"default": 5, "full": 20},
)
LSUV = Sweep(
    "lsuv",
    ("model.depth=8", f"model.activation={','.join(ACTIVATIONS)}", "init=lsuv,orthogonal", "train.steps=0"),
    {"default": 5, "full": 20},
)


CLAIMS = (
    around(
        1,
        f"tanh, PyTorch's default weights, layers with preactivation_rms < {LINEAR_BELOW}: gain 1/sqrt 3",
        1 / math.sqrt(3),
        TOLERANCE,
        GAINS_1,
        {"model.activation": "tanh", "init": "pytorch"},
        {"model.activation": "relu", "init": "pytorch"},
        linear_gain,
    ),
    around(
        1,
        "relu, PyTorch's default weights: gain 1/sqrt 6",
        1 / math.sqrt(6),
        TOLERANCE,
        GAINS_1,
        {"model.activation": "relu", "init": "pytorch"},
        {"model.activation": "relu", "init": "he"},
        gain,
    ),
    around(
        2,
        "relu, Glorot: gain 1/sqrt 2, so that 3.1e-5 is left over 30 layers",
        1 / math.sqrt(2),
        TOLERANCE,
        GAINS_2,
        {"init": "glorot"},
        {"init": "he"},
        gain,
    ),
    around(2, "relu, He: gain 1", 1.0, TOLERANCE, GAINS_2, {"init": "he"}, {"init": "glorot"}, gain),
    Claim(
        2,
        "30 dense relu layers under Glorot stall: training accuracy with the best learning rate at most twice chance",
        0.1,
        0.0,
        STALLED,
        STALL,
        {"init": "glorot"},
        {"init": "he"},
        best_accuracy,
    ),
    Claim(
        2,
        "30 dense relu layers under He converge: training accuracy with the best learning rate at least 0.8",
        1.0,
        CONVERGED,
        1.0,
        STALL,
        {"init": "he"},
        {"init": "glorot"},
        best_accuracy,
    ),
    around(
        8,
        "relu, He: no first failure (of the mean length): factor a layer of activation_rms 1",
        1.0,
        TOLERANCE,
        GAINS_2,
        {"init": "he"},
        {"init": "glorot"},
        length_gain,
    ),
    Claim(
        10,
        "selu's alpha and lambda solve the fixed-point equations: largest error",
        0.0,
        0.0,
        1e-10,
        SELU_ABOVE,
        {"model.activation": "selu"},
        {"model.activation": "elu"},
        selu_constants_error,
    ),
    Claim(
        10,
        "selu, lecun, inputs of four times the variance: the mean of the activations contracts to 0",
        0.0,
        -SELU_TOLERANCE,
        SELU_TOLERANCE,
        SELU_ABOVE,
        {"model.activation": "selu"},
        {"model.activation": "sigmoid"},
        settled_mean,
    ),
    Claim(
        10,
        "selu, lecun, inputs of four times the variance: the variance of the activations contracts to 1",
        1.0,
        1 - SELU_TOLERANCE,
        1 + SELU_TOLERANCE,
        SELU_ABOVE,
        {"model.activation": "selu"},
        {"model.activation": "elu"},
        settled_variance,
    ),
    Claim(
        10,
        "selu, orthogonal, layer 1 at a quarter of the variance: the variance of the activations contracts to 1",
        1.0,
        1 - SELU_TOLERANCE,
        1 + SELU_TOLERANCE,
        SELU_BELOW,
        {"model.activation": "selu"},
        {"model.activation": "elu"},
        settled_variance,
    ),
    Claim(
        13,
        f"LSUV, {len(ACTIVATIONS)} activations: worst |Var z - 1| of any layer, within 10 passes a layer, below 0.1",
        0.0,
        0.0,
        0.1,
        LSUV,
        {"init": "lsuv"},
        {"init": "orthogonal"},
        variance_error,
    ),
    *RESIDUAL_CLAIMS,
)
SWEEPS = tuple({claim.sweep.name: claim.sweep for claim in CLAIMS}.values())
