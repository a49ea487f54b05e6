"""A dense network of torch's own modules, as a user of torch writes it."""

import torch
from torch import Tensor, nn

from bpexp.spec import Model

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Skip(nn.Sequential):
    """Modules one after another, and a connection around them."""

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = super().forward(x)
        return x + branch


def dense(model: Model, features: int, outputs: int, dtype: torch.dtype, *, inplace: bool) -> nn.Sequential:
    """Return the network that a model describes, in training mode, with weights as torch starts them.

    Raises:  ValueError: a residual for which there are no modules here
    """
    if model.residual not in ("none", "plain"):
        raise ValueError(f"residual: {model.residual!r} has no modules of torch here; choose none or plain")
    layers: list[nn.Module] = []
    for inputs in [features, *[model.width] * (model.depth - 1)]:
        hidden: list[nn.Module] = [nn.Linear(inputs, model.width, bias=model.norm != "batch")]
        if model.norm != "none":
            hidden.append(NORMS[model.norm](model.width))
        hidden.append(nn.ReLU(inplace=inplace) if model.activation == "relu" else nn.Tanh())
        if model.dropout > 0:
            hidden.append(nn.Dropout(model.dropout))
        layers += [Skip(*hidden)] if model.residual == "plain" and layers else hidden
    return nn.Sequential(*layers, nn.Linear(model.width, outputs)).to(dtype)


def ordered(network: nn.Sequential) -> list[nn.Parameter]:
    """Return the parameters as the product lays them: all weights, all biases that there are, then those of norms."""
    kinds = (nn.Linear, tuple(NORMS.values()))
    found = [[module for module in network.modules() if isinstance(module, kind)] for kind in kinds]
    every = [getattr(module, name) for modules in found for name in ("weight", "bias") for module in modules]
    return [parameter for parameter in every if parameter is not None]
