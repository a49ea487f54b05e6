"""Published claims on residual nets that gradient_flow's records speak of, with their expectations from before a run.

Claim 8: derived here, and the two failures of Hanin and Rolnick 2018, arXiv:1803.01719; claim 9: ReZero, Bachlechner
et al. 2021, arXiv:2003.04887. Letters: L = depth, n = width, h = what a layer hands on, g = its gradient, c = factor of
a branch: h <- h + c phi(W h) in layers 2 to L.

Claim 8 is stated for x + a W relu(x): residual_form_claims tests that form. There skip and branch are uncorrelated, as
E W = 0: under He the mean squares of x and of its gradient both grow by 1 + a^2 a layer, but for terms of order 1/n.
Ours applies phi last. With phi the identity and lecun the two forms are one. With relu and He:
- Towards the input g <- g + c W^T (relu'(z) g), by 1 + c^2 a layer, if g and W are independent. Layer 1 has no skip:
  (1 + c^2)^(L-1) in all; 2^(L-1) at c = 1, and (1 + 1/L)^(L-1), which tends to e, at c = 1/sqrt L.
- Forward the mean of relu adds up, so that |h|^2 grows by more, F = 1 + c^2 + 2 c / sqrt(pi) in the end.
- Outputs are homogeneous in h: g_l h_l is one number in all layers. So the part of g along h, a/n of |g|^2 at the top,
  grows by F too: on top of 1 comes (2a/n) sum_l (F_l - cos^2(h_l, h_(l-1))) (|h_L|/|h_l|)^2 (1 + c^2)^-(L-l+1), with
  a = 1 to 2 (the more the softmax saturates), and 2 because all of h_1 lies on units that are on. That is 4 % at most
  at L = 4, n = 512, and several times the whole at L = 16, n = 256, c = 1: the claim is tested at both.
The log of |h_L|^2 / |h_1|^2 of one sample varies over nets by 5 (L-1) / n without skips (claim 3's law), and with them
by 4 c^2 (L-1) Var relu(z) / |h|^2 = 4 c^2 (L-1) (2/n) (1/2 - 1/(2 pi)): at c = 1/sqrt L by less than 2.73/n, whatever L
is. The bounds, a factor of 2 and of 3, leave room for a variance of so many seeds.

Claim 9. At a gate of 0 a layer hands on what it gets. The gradient of a branch's weights has the gate as a factor, that
of the gate has not. Exactly means exactly, in every network and layer.
"""

from __future__ import annotations

import math

from experiments.gradient_flow_quantities import (
    best_accuracy,
    branch_gradient,
    gates_moved,
    gradient_growth,
    length_change,
    length_fluctuation,
    length_growth,
)
from experiments.ledger import Claim, Measure, Sweep, around

GROWTH_TOLERANCE, SCALED_TOLERANCE = 0.15, 0.05
"""Of a whole factor, over 20 seeds; the smaller one tells (1 + 1/L)^(L-1) at L = 16 from its limit e, 9 % more."""
REZERO_LEARNING_RATES = (0.001, 0.003)
"""Of adam."""
REZERO_TRAINED = 0.9

GROWTH_LINEAR = Sweep(
    "growth_linear",
    (
        "model.depth=16",
        "model.width=256",
        "model.activation=identity",
        "model.residual=none,plain",
        "init=lecun",
        "train.steps=0",
    ),
    {"default": 5, "full": 20},
)
GROWTH_RELU = Sweep(
    "growth_relu",
    (
        "model.depth=4",
        "model.width=512",
        "model.activation=relu",
        "model.residual=none,plain,scaled",
        "init=he",
        "train.steps=0",
    ),
    {"smoke": 3, "default": 5, "full": 20},
)
GROWTH_SCALED = Sweep(
    "growth_scaled",
    (
        "model.depth=16,128",
        "model.width=256",
        "model.activation=identity",
        "model.residual=scaled",
        "init=lecun",
        "train.steps=0",
    ),
    {"full": 20},
)
GROWTH_RELU_DEEP = Sweep(
    "growth_relu_deep",
    (
        "model.depth=16",
        "model.width=256",
        "model.activation=relu",
        "model.residual=none,plain",
        "init=he",
        "train.steps=0",
    ),
    {"full": 20},
)
FLUCTUATION = Sweep(
    "fluctuation",
    (
        "model.depth=32,128",
        "model.width=32",
        "model.activation=relu",
        "model.residual=none,scaled",
        "init=he",
        "train.batch_size=1",
        "train.steps=0",
    ),
    {"full": 100},
)
REZERO_START = Sweep(
    "rezero_start",
    (
        "model.depth=1000",
        "model.width=32",
        "model.activation=relu",
        "model.residual=rezero",
        "init=he,zeros",
        "init.gate=0,0.01",
        "optimizer.lr=0.001",
        "train.batch_size=8",
        "train.steps=1",
        "train.measure_every=1",
    ),
    {"full": 20},
)
REZERO_TRAINS = Sweep(
    "rezero_trains",
    (
        "model.depth=1000",
        "model.width=32",
        "model.activation=relu",
        "model.residual=rezero,none",
        "init=he",
        "optimizer=adam",
        f"optimizer.lr={','.join(map(str, REZERO_LEARNING_RATES))}",
        "train.batch_size=32",
        "train.steps=60",
        "train.measure_every=60",
    ),
    {"full": 20},
)


VARIANCE_OF_RELU = 1 / 2 - 1 / (2 * math.pi)
"""Of relu(z) at Var z = 1."""
SCALED_VARIANCE = 8 / 32 * VARIANCE_OF_RELU
"""What the variance of the log of a squared length tends to in deep scaled nets of 32 units."""


def grown(
    direction: str, square: str, expected: float, sweep: Sweep, residual: str, control: str, measure: Measure
) -> Claim:
    """Return the claim that in a residual net lengths, or gradients, grow as claim 8 says.

    With relu it is a claim of ours: the form is not the paper's.
    """
    depth, width, activation = (override.partition("=")[2] for override in sweep.overrides[:3])
    form = "our form h + c relu(W h)" if activation == "relu" else activation
    return around(
        8,
        f"{residual} residual net, {form}, L = {depth}, n = {width}, {direction}: mean square grows by {square}",
        expected,
        GROWTH_TOLERANCE,
        sweep,
        {"model.residual": residual},
        {"model.residual": control},
        measure,
    )


RESIDUAL_CLAIMS = (
    grown("forward", "2^(L-1)", 2.0**15, GROWTH_LINEAR, "plain", "none", length_growth),
    grown("backward", "2^(L-1)", 2.0**15, GROWTH_LINEAR, "plain", "none", gradient_growth),
    *(
        around(
            8,
            f"scaled residual net, identity, L = {depth}, n = 256, {direction}: mean square grows by {square}",
            expected,
            SCALED_TOLERANCE,
            GROWTH_SCALED,
            {"model.depth": depth},
            {"model.depth": other},
            measure,
        )
        for depth, other, square, expected in (
            (16, 128, "(1 + 1/L)^(L-1)", (17 / 16) ** 15),
            (128, 16, "e, the limit of deep nets", math.e),
        )
        for direction, measure in (("forward", length_growth), ("backward", gradient_growth))
    ),
    grown("backward", "2^(L-1)", 2.0**3, GROWTH_RELU, "plain", "none", gradient_growth),
    grown("backward", "(1 + 1/L)^(L-1)", (5 / 4) ** 3, GROWTH_RELU, "scaled", "plain", gradient_growth),
    # Behind so many layers so narrow the part of g along h is several times the rest: it should be refuted.
    grown("backward", "2^(L-1)", 2.0**15, GROWTH_RELU_DEEP, "plain", "none", gradient_growth),
    Claim(
        8,
        "32 relu layers of 32 units, He, second failure: variance of log squared length 5 (L-1)/n",
        5 * 31 / 32,
        5 * 31 / 32 / 2,
        5 * 31 / 32 * 2,
        FLUCTUATION,
        {"model.depth": 32, "model.residual": "none"},
        {"model.depth": 32, "model.residual": "scaled"},
        length_fluctuation,
    ),
    *(
        Claim(
            8,
            f"{depth} scaled residual layers: no second failure: variance of log squared length below 8.2/n for any L",
            SCALED_VARIANCE * (depth - 1) / depth,
            0.0,
            3 * SCALED_VARIANCE,
            FLUCTUATION,
            {"model.depth": depth, "model.residual": "scaled"},
            {"model.depth": depth, "model.residual": "none"},
            length_fluctuation,
        )
        for depth in (32, 128)
    ),
    Claim(
        9,
        "1,000 layers, gates 0: each hands on exactly what it gets: largest change of activation_rms or _mean",
        0.0,
        0.0,
        0.0,
        REZERO_START,
        {"init": "he", "init.gate": 0.0},
        {"init": "he", "init.gate": 0.01},
        length_change,
    ),
    Claim(
        9,
        "1,000 layers, gates 0: gradients of the branches' weights are exactly 0: largest grad_norm of layers 2 to L",
        0.0,
        0.0,
        0.0,
        REZERO_START,
        {"init": "he", "init.gate": 0.0},
        {"init": "he", "init.gate": 0.01},
        branch_gradient,
    ),
    Claim(
        9,
        "1,000 layers, gates 0: gradients of the gates are not 0: smallest share of gates that one step of SGD moves",
        1.0,
        1.0,
        1.0,
        REZERO_START,
        {"init": "he", "init.gate": 0.0},
        {"init": "zeros", "init.gate": 0.0},
        gates_moved,
    ),
    Claim(
        9,
        "1,000 dense layers of 32 units train with ReZero: training accuracy with the best learning rate at least 0.9",
        1.0,
        REZERO_TRAINED,
        1.0,
        REZERO_TRAINS,
        {"model.residual": "rezero"},
        {"model.residual": "none"},
        best_accuracy,
    ),
)
