"""What differs between networks side by side along the first axis, in a layer that they have in common."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bpexp.rules.samples import samples_of
from bpexp.rules.table import RULES, Rule

Part = tuple[str, tuple[tuple[str, float], ...], int]
"""An elementwise rule's name, or "identity", its constants by name, and how many networks in a row have it."""

Parts = tuple[Part, ...]


def each(parts: Parts) -> Iterator[tuple[Rule | None, dict[str, Any], slice]]:
    """Yield the rule of every part, None for the identity, its constants, and where its networks are."""
    start = 0
    for name, constants, count in parts:
        yield RULES.get(name), dict(constants), slice(start, start + count)
        start += count


def activation_forward(x: Tensor, parts: Parts) -> Tensor:
    return torch.cat([x[at] if rule is None else rule.forward(x[at], **known) for rule, known, at in each(parts)])


def activation_reference(x: Tensor, parts: Parts) -> Tensor:
    return torch.cat([x[at] if rule is None else rule.reference(x[at], **known) for rule, known, at in each(parts)])


def activation_gradient(grad: Tensor, x: Tensor, y: Tensor, parts: Parts) -> Tensor:
    """Each rule's own backward formula on its part."""
    grads = []
    for rule, constants, at in each(parts):
        known = {"grad": grad[at], "x": x[at], "y": y[at]} | constants
        grads.append(
            known["grad"] if rule is None else rule.backward[0].formula(*[known[n] for n in rule.backward[0].needs])
        )
    return torch.cat(grads)


def times(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    """X with each network times its factor."""
    return x * torch.tensor(factors, dtype=x.dtype).to(x.device).reshape(-1, *[1] * (x.dim() - 1))


network_activation = Rule(
    "network_activation",
    activation_forward,
    {"x": activation_gradient},
    activation_reference,
    samples_of(
        ("batch", [(6, 3, 4)], ((("tanh", (), 1), ("relu", (), 3), ("elu", (("alpha", 0.7),), 2)),)),
        ("identity", [(3, 2, 5)], ((("gelu", (), 1), ("identity", (), 1), ("softsign", (), 1)),)),
        ("one", [(2, 5, 3)], ((("sigmoid", (), 2),),)),
        ("empty", [(2, 0, 3)], ((("tanh", (), 1), ("softplus", (("beta", 1.5), ("threshold", 2.0)), 1)),)),
    ),
    "each network's own activation, whose source its rule has",
    jvp=lambda x_tangent, x, y, parts: activation_gradient(x_tangent, x, y, parts),
)
network_scale = Rule(
    "network_scale",
    times,
    {"x": lambda grad, factors: times(grad, factors)},
    lambda x, factors: torch.stack([part * factor for part, factor in zip(x, factors, strict=True)]),
    samples_of(
        ("batch", [(3, 5, 4)], ((0.5, 2.0, -1.5),)),
        ("one", [(1, 5, 4)], ((0.5,),)),
        ("empty", [(2, 0, 4)], ((0.5, 2.0),)),
    ),
    "a constant factor of each network",
    jvp=lambda x_tangent, factors: times(x_tangent, factors),
)
