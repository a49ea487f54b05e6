"""The numbers of the walkthrough: both passes by the rules' own formulas, torch's beside them, and what follows.

Letters: X inputs, T targets, Z1 and Z2 what the linear maps give, H = tanh(Z1), L the loss; delta is dL/dZ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars
    from torch import Tensor

    from bpexp.rules import Rule

HIDDEN = 3
BIAS_STD = 0.3
PARAMETERS = ("W1", "b1", "W2", "b2")
ETA = 0.2
BOUND = 0.01
"""The criterion of convergence: the loss is below it."""
MOST_EPOCHS = 3000
NUDGE = 1e-4

CURVATURES = (4.0, 1.0)
"""The eigenvalues of the quadratic's Hessian: powers of 2, so that 1 - eta lambda has no rounding error at 2/4."""
MULTIPLES = sorted({*(round(0.5 + 0.05 * k, 2) for k in range(15)), 0.999, 1.001})
"""Learning rates in units of 2/lambda_max."""
EARLY, LATE = 20, 500
"""Updates after which the losses of the quadratic are kept."""

DEPTH = 10
CHAINS = (("sigmoid", 1.0), ("relu", 1.0), ("relu", 2.0))
"""Networks of one unit a layer: the activation, and the weight of every layer."""


@dataclass(frozen=True)
class Loss:
    """A loss: its words for the reader, its rule, and the constants that its rule takes after the target."""

    title: str
    formula: str
    slope: str
    rule: str
    constants: tuple[Any, ...]


LOSSES = {
    "mse": Loss("mean squared error", "mean of (Z2 - T)^2", "2 (Z2 - T) / (N C)", "mse_loss", (None, "mean")),
    "cross_entropy": Loss(
        "cross-entropy", "-sum of T log(P) / N", "(P - T) / N", "cross_entropy", (None, -100, "mean", 0.0)
    ),
}

FORMULAS = {
    "Z1": "X W1^T + b1",
    "H": "tanh(Z1)",
    "Z2": "H W2^T + b2",
    "dL/dW2": "delta2^T H",
    "dL/db2": "sum_n delta2",
    "dL/dH": "delta2 W2",
    "delta1": "dL/dH * (1 - H^2)",
    "dL/dW1": "delta1^T X",
    "dL/db1": "sum_n delta1",
}
"""What each number of the two passes is; the loss and its slope delta2 = dL/dZ2 are in LOSSES."""


def task(loss: str) -> tuple[Tensor, Tensor]:
    """Return XOR's four inputs and the targets that the loss takes: the classes, or their one-hot rows T."""
    import torch

    x = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    classes = (x[:, 0] != x[:, 1]).long()
    return x, classes if loss == "cross_entropy" else torch.eye(2, dtype=torch.float64)[classes]


def start(seed: int) -> dict[str, Tensor]:
    """Return Glorot's weights and small biases, rounded to one decimal so that a reader can follow by calculator."""
    import torch

    from bpexp.init import initialize
    from bpexp.streams import generator

    stream = generator(seed, "init")
    parameters: dict[str, Tensor] = {}
    for layer, shape in (("1", (HIDDEN, 2)), ("2", (2, HIDDEN))):
        drawn = initialize("glorot", shape, bias_std=BIAS_STD, generator=stream, dtype=torch.float64)
        weight, bias = (value.round(decimals=1) + 0.0 for value in drawn)  # + 0.0 turns a rounded -0 into 0
        parameters |= {f"W{layer}": weight, f"b{layer}": bias}
    return parameters


def gradient(rule: Rule, argument: str, grad: Tensor, y: Tensor, *args: Any) -> Tensor:
    """Return what the rule's own backward formula for one of its arguments gives."""
    from bpexp.rules.table import named

    known = {"grad": grad, "y": y, **named(rule.parameters, args)}
    backward = next(one for one in rule.backward if argument in one.arguments)
    result: Tensor = backward.formula(*[known[need] for need in backward.needs])
    return result


def both_passes(parameters: Mapping[str, Tensor], loss: str) -> dict[str, Tensor]:
    """Run forward and backward by the rules' own formulas, without autograd; return each number by its name."""
    import torch

    from bpexp.rules import RULES

    linear, tanh, measure, constants = RULES["linear"], RULES["tanh"], RULES[LOSSES[loss].rule], LOSSES[loss].constants
    x, target = task(loss)
    w1, b1, w2, b2 = (parameters[name] for name in PARAMETERS)
    found = {}
    found["Z1"] = z1 = linear.forward(x, w1, b1)
    found["H"] = h = tanh.forward(z1)
    found["Z2"] = z2 = linear.forward(h, w2, b2)
    if loss == "cross_entropy":
        found["P"] = torch.exp(RULES["log_softmax"].forward(z2, 1, None))
    found["L"] = value = measure.forward(z2, target, *constants)
    found["delta2"] = delta2 = gradient(measure, "x", torch.ones_like(value), value, z2, target, *constants)
    found["dL/dW2"] = gradient(linear, "weight", delta2, z2, h, w2, b2)
    found["dL/db2"] = gradient(linear, "bias", delta2, z2, h, w2, b2)
    found["dL/dH"] = grad_h = gradient(linear, "x", delta2, z2, h, w2, b2)
    found["delta1"] = delta1 = gradient(tanh, "x", grad_h, h, z1)
    found["dL/dW1"] = gradient(linear, "weight", delta1, z1, x, w1, b1)
    found["dL/db1"] = gradient(linear, "bias", delta1, z1, x, w1, b1)
    return found


def by_torch(parameters: Mapping[str, Tensor], loss: str) -> dict[str, Tensor]:
    """Return the same numbers from torch alone, with autograd and torch.optim: the oracle."""
    import torch
    import torch.nn.functional as F

    x, target = task(loss)
    own = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    found = {"Z1": F.linear(x, own["W1"], own["b1"])}
    found["H"] = torch.tanh(found["Z1"])
    found["Z2"] = F.linear(found["H"], own["W2"], own["b2"])
    if loss == "cross_entropy":
        found["P"] = torch.softmax(found["Z2"], 1)
    found["L"] = (F.mse_loss if loss == "mse" else F.cross_entropy)(found["Z2"], target)
    for name in ("Z1", "H", "Z2"):
        found[name].retain_grad()
    found["L"].backward()  # type: ignore[no-untyped-call]
    sources = {"delta2": found["Z2"], "dL/dH": found["H"], "delta1": found["Z1"]}
    found |= {name: tensor.grad for name, tensor in sources.items() if tensor.grad is not None}
    found |= {f"dL/d{name}": tensor.grad for name, tensor in own.items() if tensor.grad is not None}
    torch.optim.SGD(own.values(), lr=ETA).step()
    return {name: tensor.detach() for name, tensor in (found | {f"{name} new": own[name] for name in own}).items()}


def update(parameters: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take one step of gradient descent."""
    return {name: parameters[name] - ETA * found[f"dL/d{name}"] for name in PARAMETERS}


def entries(tensor: Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield row, column, counted from 1, and value of each entry; a vector is one row."""
    for row, values in enumerate(tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1).tolist(), 1):
        yield from ((row, column, value) for column, value in enumerate(values, 1))


def first_step(parameters: Mapping[str, Tensor], loss: str) -> list[tuple[object, ...]]:
    """Return every number of forward, loss, backward and update, with torch's beside it."""
    x, one_hot = task("mse")
    found = both_passes(parameters, loss)
    ours = {"X": x, "T": one_hot, **parameters, **found}
    ours |= {f"{name} new": value for name, value in update(parameters, found).items()}
    oracle = ours | by_torch(parameters, loss)
    formulas = FORMULAS | {"L": LOSSES[loss].formula, "delta2": LOSSES[loss].slope, "P": "softmax of each row of Z2"}
    formulas |= {f"{name} new": f"{name} - eta dL/d{name}" for name in PARAMETERS}
    return [
        (loss, name, formulas.get(name, "given"), row, column, value, theirs)
        for name, tensor in ours.items()
        for (row, column, value), (_, _, theirs) in zip(entries(tensor), entries(oracle[name]), strict=True)
    ]


def iterate(parameters: Mapping[str, Tensor], loss: str) -> tuple[list[float], list[int]]:
    """Return the loss before each epoch and after the last, and the classes that the network then tells."""
    losses: list[float] = []
    found = both_passes(parameters, loss)
    while True:
        losses.append(found["L"].item())
        if losses[-1] < BOUND or len(losses) > MOST_EPOCHS:
            return losses, found["Z2"].argmax(1).tolist()
        parameters = update(parameters, found)
        found = both_passes(parameters, loss)


def summary(parameters: Mapping[str, Tensor], loss: str, curve: list[float], told: list[int]) -> dict[str, object]:
    """Return what the loss's text says in words: the nudge, the first update and how the iteration ended."""
    found = both_passes(parameters, loss)
    nudged = []
    for sign in (1, -1):
        w1 = parameters["W1"].clone()
        w1[0, 0] += sign * NUDGE
        nudged.append(both_passes({**parameters, "W1": w1}, loss)["L"].item())
    return {
        "loss": loss,
        "criterion": f"loss < {BOUND:g}",
        "met": curve[-1] < BOUND,
        "epochs": len(curve) - 1,
        "before": curve[0],
        "after": curve[1],
        "last": curve[-1],
        "nudged_slope": (nudged[0] - nudged[1]) / (2 * NUDGE),
        "expected_fall": ETA * sum(found[f"dL/d{name}"].square().sum().item() for name in PARAMETERS),
        "right": sum(a == b for a, b in zip(told, task("cross_entropy")[1].tolist(), strict=True)),
    }


class Quadratic:
    """L(w) = 1/2 sum_i lambda_i w_i^2, as the mean squared error of a linear map, for any number of rates at once.

    Math:   X = diag(sqrt(lambda)) and target 0 give mean((X w)^2) = 1/2 sum_i lambda_i w_i^2 for two weights
    Shapes: eta, losses, norms: (R,), a network for each rate, all from w = (1, 1)
    """

    def __init__(self, etas: list[float]) -> None:
        import torch

        from bpexp.rules import RULES

        self.linear, self.mse = RULES["linear"], RULES["network_mse_loss"]
        self.eta = torch.tensor(etas, dtype=torch.float64)
        self.x = torch.diag(torch.tensor(CURVATURES, dtype=torch.float64).sqrt()).expand(len(etas), 2, 2)
        self.target = torch.zeros(len(etas), 2, 1, dtype=torch.float64)
        self.w = torch.ones(len(etas), 1, 2, dtype=torch.float64)

    def step(self) -> tuple[Tensor, Tensor]:
        """Update every w; return the losses and the norms of the gradients before it."""
        z = self.linear.forward(self.x, self.w, None)
        losses = self.mse.forward(z, self.target)
        slope = gradient(self.mse, "x", losses.new_ones(losses.shape), losses, z, self.target)
        grad = gradient(self.linear, "weight", slope, z, self.x, self.w, None)
        self.w = self.w - self.eta[:, None, None] * grad
        return losses, grad.flatten(1).norm(dim=1)

    def growth(self, steps: int) -> Tensor:
        """Return the factor by which the last of `steps` updates changed the norm of the gradient."""
        norms = [self.step()[1] for _ in range(steps)][-2:]
        return norms[1] / norms[0]

    def hessian(self) -> Tensor:
        """Return the Hessian, that of a mean over two rows."""
        return self.x[0].T @ self.x[0]


def verdict(factor: float) -> str:
    """Say what w <- factor w does when repeated."""
    return "converges" if factor < 1 else "diverges" if factor > 1 else "oscillates"


def sweep() -> tuple[list[dict[str, object]], dict[str, object]]:
    """Return what each learning rate does, and where divergence starts: predicted, and measured by bisection."""
    import torch

    eigenvalues = torch.linalg.eigvalsh(Quadratic([0.0]).hessian()).tolist()
    limit = 2 / max(eigenvalues)
    etas = [multiple * limit for multiple in MULTIPLES]
    runs = Quadratic(etas)
    losses, norms = zip(*[runs.step() for _ in range(LATE + 1)], strict=True)
    rows: list[dict[str, object]] = []
    for r, (multiple, eta) in enumerate(zip(MULTIPLES, etas, strict=True)):
        factors = [1 - eta * eigenvalue for eigenvalue in eigenvalues]
        factor, growth = max(map(abs, factors)), (norms[LATE] / norms[LATE - 1])[r].item()
        early = sum(e * f ** (2 * EARLY) for e, f in zip(eigenvalues, factors, strict=True)) / 2
        rows.append({"multiple": multiple, "eta": eta, "steepest": 1 - eta * max(eigenvalues), "factor": factor})
        rows[-1] |= {"predicted": verdict(factor), "growth": growth, "measured": verdict(growth)}
        rows[-1] |= {"loss_0": losses[0][r].item(), "loss_early": losses[EARLY][r].item(), "early_predicted": early}
        rows[-1] |= {"loss_late": losses[LATE][r].item()}
    low, high = limit / 2, 2 * limit
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if Quadratic([middle]).growth(60).item() > 1 else (middle, high)
    return rows, {"lambda_max": max(eigenvalues), "limit": limit, "largest_kept": low, "smallest_diverging": high}


def chain(activation: str, weight: float) -> list[dict[str, object]]:
    """Follow a gradient through a network of one unit a layer, from the last layer to the first, as a product.

    Math:  z_l = w a_(l-1), a_l = f(z_l), a_0 = 1;  dz_(l+1)/dz_l = w f'(z_l)
    """
    import torch

    from bpexp.rules import RULES

    linear, rule = RULES["linear"], RULES[activation]
    w = torch.full((1, 1), weight, dtype=torch.float64)
    outputs, inputs, theirs = [torch.ones(1, 1, dtype=torch.float64)], [], []
    native = outputs[0].clone().requires_grad_()
    for _ in range(DEPTH):
        inputs.append(linear.forward(outputs[-1], w, None))
        outputs.append(rule.forward(inputs[-1]))
        theirs.append(native @ w.T)
        native = rule.reference(theirs[-1])
    oracle = [g.item() for g in torch.autograd.grad(theirs[-1], theirs)]
    rows: list[dict[str, object]] = []
    delta, factor = torch.ones(1, 1, dtype=torch.float64), None
    for layer in range(DEPTH, 0, -1):
        if layer < DEPTH:
            after_activation = gradient(linear, "x", delta, inputs[layer], outputs[layer], w, None)
            new = gradient(rule, "x", after_activation, outputs[layer], inputs[layer - 1])
            delta, factor = new, (new / delta).item()
        rows.append({"activation": activation, "weight": weight, "layer": layer, "factor": factor})
        rows[-1] |= {"product": delta.item(), "torch": oracle[layer - 1]}
    return rows


def walk(seed: int) -> dict[str, polars.DataFrame]:
    """Compute the walkthrough: all that its text and its section show."""
    import polars

    parameters = start(seed)
    ends = {loss: iterate(parameters, loss) for loss in LOSSES}
    rates, threshold = sweep()
    columns = ["loss", "name", "formula", "row", "column", "by_hand", "torch"]
    numbers = [row for loss in LOSSES for row in first_step(parameters, loss)]
    curves = [(loss, epoch, value) for loss, (curve, _) in ends.items() for epoch, value in enumerate(curve)]
    return {
        "numbers": polars.DataFrame(numbers, schema=columns, orient="row"),
        "curves": polars.DataFrame(curves, schema=["loss", "epoch", "value"], orient="row"),
        "summary": polars.DataFrame([summary(parameters, loss, *ends[loss]) for loss in LOSSES]),
        "rates": polars.DataFrame(rates),
        "threshold": polars.DataFrame([threshold]),
        "chains": polars.DataFrame(list(itertools.chain(*[chain(*one) for one in CHAINS]))),
    }
