"""Losses. Letters: C classes, N rows, R networks, B rows of each network's batch.

Both cross entropies are -sum_c q_c log p_c with p = softmax(x), where q holds the target, the class weights and the
label smoothing. Hence the slope with respect to x is p * sum_c q_c - q, divided by what the mean divides by. The
classes lie along dimension 1, or 0 where x has no other.

The network losses give each network the mean over its own batch: (R, B, C) to (R,).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.softmax import BRIDLE
from bpexp.rules.table import Rule, Sample

RUMELHART = "Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0"
SZEGEDY = "label smoothing: Szegedy et al. 2016, arXiv:1512.00567"
torch_mse_loss: Callable[..., Tensor] = F.mse_loss  # its stub does not know `weight`


def class_axis(x: Tensor) -> int:
    return min(x.dim() - 1, 1)


def classes(x: Tensor) -> int:
    """The number of classes, to divide by: 1 where there are none."""
    return max(x.shape[class_axis(x)], 1)


def over_classes(weight: Tensor | None, x: Tensor) -> Tensor | float:
    """The class weights, so shaped that they broadcast along the classes of x."""
    if weight is None:
        return 1.0
    return weight.reshape([-1 if d == class_axis(x) else 1 for d in range(x.dim())])


def per_row(grad: Tensor, x: Tensor, reduction: str) -> Tensor:
    return grad.unsqueeze(class_axis(x)) if reduction == "none" else grad


def reduce(rows: Tensor, reduction: str) -> Tensor:
    """Sum the tangents of the rows; the mean's divisor is in the slope already."""
    return rows if reduction == "none" else rows.sum()


def index_slope(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    axis = class_axis(x)
    index = target.long().unsqueeze(axis)
    kept = index != ignore_index
    index = torch.where(kept, index, 0)
    weights = 1.0 if weight is None else weight[index]
    scale = kept.to(x.dtype)
    if reduction == "mean":
        scale = torch.where(kept, scale / (scale * weights).sum(), 0.0)  # 0, not 0 / 0, where every row is ignored
    hit = (1 - label_smoothing) * weights * scale
    smooth = label_smoothing / classes(x) * scale
    total = hit + smooth * (x.shape[axis] if weight is None else weight.sum())
    slope = torch.softmax(x, axis) * total - smooth * over_classes(weight, x)
    return slope.scatter_add(axis, index, -hit)


def index_grad_x(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    return per_row(grad, x, reduction) * index_slope(x, target, weight, ignore_index, reduction, label_smoothing)


def index_tangent(
    x_tangent: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    slope = index_slope(x, target, weight, ignore_index, reduction, label_smoothing)
    return reduce((x_tangent * slope).sum(class_axis(x)), reduction)


def rows_of(x: Tensor, reduction: str) -> float:
    """What the mean over targets that are probabilities divides by."""
    return x.numel() / classes(x) if reduction == "mean" else 1.0


def smoothed(target: Tensor, label_smoothing: float) -> Tensor:
    return target * (1 - label_smoothing) + label_smoothing / classes(target)


def probability_slope(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    axis = class_axis(x)
    q = over_classes(weight, x) * smoothed(target, label_smoothing)
    return (torch.softmax(x, axis) * q.sum(axis, keepdim=True) - q) / rows_of(x, reduction)


def probability_target_slope(x: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float) -> Tensor:
    scale = (label_smoothing - 1) / rows_of(x, reduction)
    return torch.log_softmax(x, class_axis(x)) * over_classes(weight, x) * scale


def probability_weight_slope(x: Tensor, target: Tensor, reduction: str, label_smoothing: float) -> Tensor:
    return torch.log_softmax(x, class_axis(x)) * smoothed(target, label_smoothing) / -rows_of(x, reduction)


def probability_grad_x(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    return per_row(grad, x, reduction) * probability_slope(x, target, weight, reduction, label_smoothing)


def probability_grad_target(
    grad: Tensor, x: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    return per_row(grad, x, reduction) * probability_target_slope(x, weight, reduction, label_smoothing)


def probability_grad_weight(
    grad: Tensor, x: Tensor, target: Tensor, reduction: str, label_smoothing: float, weight_shape: torch.Size
) -> Tensor:
    grads = per_row(grad, x, reduction) * probability_weight_slope(x, target, reduction, label_smoothing)
    return grads.movedim(class_axis(x), -1).sum_to_size(weight_shape)


def probability_tangent(
    x_tangent: Tensor | None,
    target_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    total = torch.zeros_like(x)
    if x_tangent is not None:
        total = total + x_tangent * probability_slope(x, target, weight, reduction, label_smoothing)
    if target_tangent is not None:
        total = total + target_tangent * probability_target_slope(x, weight, reduction, label_smoothing)
    if weight_tangent is not None:
        slope = probability_weight_slope(x, target, reduction, label_smoothing)
        total = total + over_classes(weight_tangent, x) * slope
    return reduce(total.sum(class_axis(x)), reduction)


def squares_slope(x: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    difference = x - target
    if weight is not None:
        return difference * weight * (2 / weight.sum() if reduction == "mean" else 2)
    return difference * (2 / max(difference.numel(), 1) if reduction == "mean" else 2)


def squares_grad_x(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, x_shape: torch.Size
) -> Tensor:
    return (grad * squares_slope(x, target, weight, reduction)).sum_to_size(x_shape)


def squares_grad_target(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, target_shape: torch.Size
) -> Tensor:
    return -(grad * squares_slope(x, target, weight, reduction)).sum_to_size(target_shape)


def squares_weight_slope(y: Tensor, x: Tensor, target: Tensor, weight: Tensor, reduction: str) -> Tensor:
    squares = (x - target).square()
    if reduction != "mean":
        return squares
    # A weight that was broadcast stands in several squares, y's own part of its slope in one.
    return (squares - y * weight.numel() / squares.numel()) / weight.sum()


def squares_grad_weight(
    grad: Tensor, y: Tensor, x: Tensor, target: Tensor, weight: Tensor, reduction: str, weight_shape: torch.Size
) -> Tensor:
    return (grad * squares_weight_slope(y, x, target, weight, reduction)).sum_to_size(weight_shape)


def squares_tangent(
    x_tangent: Tensor | None,
    target_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    y: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    total = torch.zeros_like(x - target)
    if x_tangent is not None:
        total = total + x_tangent * squares_slope(x, target, weight, reduction)
    if target_tangent is not None:
        total = total - target_tangent * squares_slope(x, target, weight, reduction)
    if weight is not None and weight_tangent is not None:
        total = total + weight_tangent * squares_weight_slope(y, x, target, weight, reduction)
    return reduce(total, reduction)


def network_log_p(x: Tensor) -> Tensor:
    """Return the log of softmax, (R, C, B): with few classes last it would take thirty times as long."""
    return torch.log_softmax(x.mT.contiguous(), 1)


def network_forward(x: Tensor, target: Tensor, label_smoothing: Tensor | None) -> Tensor:
    log_p = network_log_p(x)
    return -smoothed_mean(log_p, log_p.gather(1, target.unsqueeze(1)), label_smoothing)


def smoothed_mean(values: Tensor, hit: Tensor, label_smoothing: Tensor | None) -> Tensor:
    """Return the mean over each network's batch of sum_c q_c values_c, of which `hit` are the target's, (R,)."""
    if label_smoothing is None:
        return hit.mean((1, 2))
    return torch.lerp(hit.mean((1, 2)), values.mean((1, 2)), label_smoothing)


def network_grad_x(grad: Tensor, x: Tensor, target: Tensor, label_smoothing: Tensor | None) -> Tensor:
    scale = (grad / x.shape[1])[:, None, None]
    index = target.unsqueeze(1)
    p = torch.exp(network_log_p(x))
    if label_smoothing is None:
        return (p * scale).scatter_add(1, index, -scale.expand(index.shape)).mT
    smoothing = label_smoothing[:, None, None]
    hit = scale * (smoothing - 1)
    return ((p - smoothing / x.shape[2]) * scale).scatter_add(1, index, hit.expand(index.shape)).mT


def network_tangent(x_tangent: Tensor, x: Tensor, target: Tensor, label_smoothing: Tensor | None) -> Tensor:
    tangent = x_tangent.mT
    mean = (tangent * torch.exp(network_log_p(x))).sum(1).mean(1)
    return mean - smoothed_mean(tangent, tangent.gather(1, target.unsqueeze(1)), label_smoothing)


def network_squares_grad(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    return (x - target) * (grad * (2 / (x.shape[1] * x.shape[2])))[:, None, None]


def network_squares_tangent(
    x_tangent: Tensor | None, target_tangent: Tensor | None, x: Tensor, target: Tensor
) -> Tensor:
    total = torch.zeros_like(x)
    if x_tangent is not None:
        total = total + x_tangent
    if target_tangent is not None:
        total = total - target_tangent
    return 2 * (total * (x - target)).mean((1, 2))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def index_samples(generator: torch.Generator) -> Sequence[Sample]:
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 2, 1])
    grid = torch.tensor([[[0, 3, 1]], [[2, 1, 1]]])

    def sample(name: str, shape: tuple[int, ...], target: Tensor, *constants: object) -> Sample:
        return Sample(name, (normal(generator, *shape), target, *constants))

    return [
        sample("batch", (5, 4), target, None, -100, "mean", 0.0),
        sample("sum", (5, 4), target, None, -100, "sum", 0.0),
        sample("none", (5, 4), target, weight, 1, "none", 0.1),
        sample("weight", (5, 4), target, weight, -100, "mean", 0.0),
        sample("ignore", (5, 4), target, weight, 1, "mean", 0.0),
        sample("ignore-outside", (5, 4), torch.tensor([0, -1, 1, 2, -1]), None, -1, "mean", 0.0),
        sample("smoothing", (5, 4), target, None, 1, "mean", 0.2),
        sample("smoothing-weight", (5, 4), target, weight, 1, "mean", 0.2),
        sample("smoothing-sum", (5, 4), target, weight, -100, "sum", 1.0),
        sample("vector", (4,), torch.tensor(2), weight, -100, "mean", 0.1),
        sample("vector-none", (4,), torch.tensor(2), None, -100, "none", 0.0),
        sample("grid", (2, 4, 1, 3), grid, weight, 1, "mean", 0.1),
        sample("grid-none", (2, 4, 1, 3), grid, weight, 3, "none", 0.0),
        sample("empty", (0, 4), target[:0], None, -100, "sum", 0.0),
        sample("bytes", (5, 4), target.to(torch.uint8), None, -100, "mean", 0.0),
        sample("one-class", (5, 1), torch.zeros(5, dtype=torch.int64), None, -100, "mean", 0.1),
        sample("no-class", (0, 0), target[:0], None, -100, "sum", 0.0),
        Sample("large", (500 * normal(generator, 5, 4), target, None, -100, "mean", 0.0), kink=True),
    ]


def probability_samples(generator: torch.Generator) -> Sequence[Sample]:
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)

    def sample(name: str, shape: tuple[int, ...], *constants: object) -> Sample:
        x, target = normal(generator, *shape), normal(generator, *shape)
        return Sample(name, (x, torch.softmax(target, class_axis(x)), *constants))

    return [
        sample("batch", (5, 4), None, "mean", 0.0),
        sample("weight", (5, 4), weight, "mean", 0.2),
        sample("sum", (5, 4), weight, "sum", 0.0),
        sample("none", (5, 4), weight, "none", 0.2),
        sample("vector", (4,), weight, "mean", 0.1),
        sample("vector-none", (4,), None, "none", 0.0),
        sample("grid", (2, 4, 1, 3), weight, "mean", 0.1),
        sample("grid-none", (2, 4, 1, 3), None, "none", 0.1),
        sample("empty", (0, 4), None, "sum", 0.0),
        sample("one-class", (5, 1), None, "mean", 0.1),
        sample("no-class", (0, 0), None, "sum", 0.0),
    ]


def squares_samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, *shape: int, reduction: str = "mean", weighted: bool = False) -> Sample:
        x, target, weight = (normal(generator, *shape) for _ in range(3))
        return Sample(name, (x, target, weight.square() if weighted else None, reduction))

    return [
        sample("batch", 5, 3),
        sample("scalar"),
        sample("sum", 2, 3, 4, reduction="sum"),
        sample("none", 5, 3, reduction="none"),
        sample("weight", 5, 3, weighted=True),
        sample("weight-sum", 5, 3, reduction="sum", weighted=True),
        sample("weight-none", 5, 3, reduction="none", weighted=True),
        sample("empty", 0, 3, reduction="sum"),
        sample("empty-mean", 0, 3),
        sample("scalar-weight", weighted=True),
        Sample("broadcast", (normal(generator, 5, 3), normal(generator, 3), None, "mean")),
        Sample("broadcast-x", (normal(generator, 3), normal(generator, 5, 3), None, "sum")),
        Sample(
            "broadcast-weight", (normal(generator, 3), normal(generator, 5, 3), normal(generator, 3).square(), "mean")
        ),
    ]


def network_samples(generator: torch.Generator) -> Sequence[Sample]:
    smoothing = torch.tensor([0.0, 0.2], dtype=torch.float64)
    return [
        Sample("batch", (normal(generator, 2, 3, 4), torch.tensor([[0, 3, 1], [1, 1, 2]]), None)),
        Sample("one", (normal(generator, 1, 2, 3), torch.tensor([[2, 0]]), None)),
        Sample("shared-target", (normal(generator, 2, 3, 4), torch.tensor([0, 3, 1]).expand(2, 3), None)),
        Sample("smoothing", (normal(generator, 2, 3, 4), torch.tensor([[0, 3, 1], [1, 1, 2]]), smoothing)),
    ]


def network_reference(x: Tensor, target: Tensor, label_smoothing: Tensor | None) -> Tensor:
    smoothing = [0.0] * len(x) if label_smoothing is None else label_smoothing.tolist()
    return torch.stack([F.cross_entropy(x[r], target[r], label_smoothing=smoothing[r]) for r in range(len(x))])


def network_squares_samples(generator: torch.Generator) -> Sequence[Sample]:
    return [
        Sample("batch", (normal(generator, 2, 3, 4), normal(generator, 2, 3, 4))),
        Sample("one", (normal(generator, 1, 5, 1), normal(generator, 1, 5, 1))),
    ]


cross_entropy = Rule(
    "cross_entropy",
    lambda x, target, weight, ignore_index, reduction, label_smoothing: F.cross_entropy(
        x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    ),
    {"x": index_grad_x},
    lambda x, target, weight, ignore_index, reduction, label_smoothing: F.cross_entropy(
        x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    ),
    index_samples,
    f"{BRIDLE}; {SZEGEDY}",
    jvp=index_tangent,
    autocast="float32",
    widen=True,
)
cross_entropy_probabilities = Rule(
    "cross_entropy_probabilities",
    lambda x, target, weight, reduction, label_smoothing: F.cross_entropy(
        x, target, weight, reduction=reduction, label_smoothing=label_smoothing
    ),
    {"x": probability_grad_x, "target": probability_grad_target, "weight": probability_grad_weight},
    lambda x, target, weight, reduction, label_smoothing: F.cross_entropy(
        x, target, weight, reduction=reduction, label_smoothing=label_smoothing
    ),
    probability_samples,
    f"{BRIDLE}; {SZEGEDY}",
    jvp=probability_tangent,
    autocast="float32",
    widen=True,
)
mse_loss = Rule(
    "mse_loss",
    lambda x, target, weight, reduction: torch_mse_loss(x, target, reduction=reduction, weight=weight),
    {"x": squares_grad_x, "target": squares_grad_target, "weight": squares_grad_weight},
    lambda x, target, weight, reduction: torch_mse_loss(x, target, reduction=reduction, weight=weight),
    squares_samples,
    RUMELHART,
    jvp=squares_tangent,
    autocast="float32",
    widen=True,
)
network_cross_entropy = Rule(
    "network_cross_entropy",
    network_forward,
    {"x": network_grad_x},
    network_reference,
    network_samples,
    f"{BRIDLE}; {SZEGEDY}",
    jvp=network_tangent,
    autocast="float32",
    widen=True,
)
network_mse_loss = Rule(
    "network_mse_loss",
    lambda x, target: (x - target).square().mean((1, 2)),
    {
        "x": network_squares_grad,
        "target": lambda grad, x, target: network_squares_grad(grad, target, x),
    },
    lambda x, target: torch.stack([F.mse_loss(x[r], target[r]) for r in range(len(x))]),
    network_squares_samples,
    RUMELHART,
    jvp=network_squares_tangent,
    autocast="float32",
    widen=True,
)
