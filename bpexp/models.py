"""Networks of one structure side by side: every parameter has a leading network axis.

Letters: R networks, B samples, L hidden layers, F features, W units of a hidden layer, C outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpexp.activations import ACTIVATIONS
from bpexp.init import initialize
from bpexp.rules import Rule, losses
from bpexp.rules.arithmetic import add
from bpexp.rules.linear import linear
from bpexp.rules.regularization import dropout
from bpexp.spec import Config
from bpexp.streams import generator


@dataclass
class Trace:
    """What the measures look at: the tensors of one forward pass, by layer.

    z: the outputs of the linear maps, L + 1 of (R, B, units); a: the outputs of the hidden layers, L of (R, B, W)
    """

    z: list[Tensor] = field(default_factory=list)
    a: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class MLP:
    """R dense networks. A hidden layer is h <- dropout(phi(W h + b)), plus h where there is a skip connection.

    With residual="plain" hidden layers 2 to L have the skip; layer 1 has none, for its input is of another size.
    """

    features: int
    outputs: int
    depth: int
    width: int
    activation: str
    residual: str = "none"

    def shapes(self) -> list[tuple[int, int]]:
        """Return the (out, in) of every layer's weight, the output layer last."""
        inputs = [self.features, *[self.width] * self.depth]
        return list(zip([*[self.width] * self.depth, self.outputs], inputs, strict=True))

    def parameters(self, configs: Sequence[Config], dtype: torch.dtype) -> list[Tensor]:
        """Draw each network's parameters from its own stream: all weights (R, out, in), then all biases (R, out)."""
        drawn = []
        for config in configs:
            stream = generator(config.seed, "init")
            init = config.init
            drawn.append(
                [
                    initialize(init.name, shape, gain=init.gain, bias_std=init.bias_std, generator=stream, dtype=dtype)
                    for shape in self.shapes()
                ]
            )
        return [torch.stack([network[k][part] for network in drawn]) for part in (0, 1) for k in range(self.depth + 1)]

    def __call__(
        self, x: Tensor, parameters: Sequence[Tensor], masks: Sequence[Tensor] = (), trace: Trace | None = None
    ) -> Tensor:
        """Return the outputs (R, B, C) of x (R, B, F); `masks` has a dropout mask a hidden layer, or nothing."""
        weights, biases = parameters[: self.depth + 1], parameters[self.depth + 1 :]
        trace = trace or Trace()
        for layer in range(self.depth):
            z = linear(x, weights[layer], biases[layer])
            branch = ACTIVATIONS[self.activation].function(z)
            if masks:
                branch = dropout(branch, masks[layer])
            x = add(x, branch) if self.residual == "plain" and layer > 0 else branch
            trace.z.append(z)
            trace.a.append(x)
        trace.z.append(linear(x, weights[-1], biases[-1]))
        return trace.z[-1]


LOSSES: dict[str, Rule] = {"cross_entropy": losses.network_cross_entropy, "mse": losses.network_mse_loss}
