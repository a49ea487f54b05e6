"""Networks of one structure side by side: every parameter has a leading network axis.

Networks of different depth lie deepest first, so that those which have a layer l are the first R_l of them: what the
layer is made of has R_l in place of R. The output layer comes last, and all networks have it.

Letters: R networks, B samples, L hidden layers of the deepest, F features, W units of a hidden layer, C outputs.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bpexp.activations import ACTIVATIONS, PRELU_START, part_of
from bpexp.dropout import Mask
from bpexp.init import initialize
from bpexp.rules import activations, losses
from bpexp.rules.arithmetic import add, multiply
from bpexp.rules.linear import linear
from bpexp.rules.networks import network_activation, network_scale
from bpexp.rules.normalization import network_batch_norm, network_batch_norm_eval, network_layer_norm
from bpexp.rules.regularization import network_dropout
from bpexp.rules.views import cat, reshape, slice
from bpexp.spec import UNMIXED, Config
from bpexp.streams import generator

NORM_EPS = 1e-5
"""Added to a variance before its root, as torch.nn does."""

HOMOGENEOUS = ("identity", "relu", "leaky_relu", "prelu")
"""Activations with phi(m x) = m phi(x), m >= 0: a mask before one does what a mask behind it does, in less memory."""

LSUV_PASSES, LSUV_TOLERANCE = 10, 0.1

Statistics = tuple[Tensor, Tensor]
"""Mean and (biased) variance of every unit over the samples of a batch, (R, W) each."""


class DeadNetworkError(ValueError):
    """A network of a group that cannot be initialized as asked; the others can."""

    def __init__(self, network: int, message: str) -> None:
        super().__init__(message)
        self.network = network


@dataclass
class Trace:
    """What the measures look at: the tensors of one forward pass, by layer.

    z: the outputs of the linear maps, L of (R_l, B, W) and the networks' outputs, (R, B, C)
    n: what the activations get, z or its normalized form, L of (R_l, B, W)
    a: the outputs of the hidden layers, skip connection included, L of (R_l, B, W)
    statistics: those of the batch, where it is normalized, L
    """

    z: list[Tensor] = field(default_factory=list)
    n: list[Tensor] = field(default_factory=list)
    a: list[Tensor] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """A parameter of all networks that have the layer: what it is, and its shape in one network."""

    kind: str
    layer: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Parameters:
    """The parameters of R networks by kind, each kind's in the order of its layers.

    weights, biases: layers 1..L+1, (R_l, out, in) and (R_l, out), of biases the output layer's alone under batch norm;
    norm_weights, norm_biases: layers 1..L, (R_l, W); gates: layers 2..L, (R_l,); slopes: those of prelu, layers 1..L,
    (R_l,). What a model has not is empty.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    norm_weights: Sequence[Tensor]
    norm_biases: Sequence[Tensor]
    gates: Sequence[Tensor]
    slopes: Sequence[Tensor]


KINDS = {
    "weight": "weights",
    "bias": "biases",
    "norm_weight": "norm_weights",
    "norm_bias": "norm_biases",
    "gate": "gates",
    "slope": "slopes",
}
"""The kinds of parameters, in the order in which they lie, and the fields of Parameters."""


@dataclass(frozen=True)
class MLP:
    """R dense networks. A hidden layer is h <- s h + c dropout(phi(norm(W h + b))).

    residual: "none": s = 0, c = 1; else s = 1, with c = 1 ("plain"), 1 / sqrt(depth of the network) ("scaled") or a
              gate that is learned, one number a layer ("rezero"). Layer 1 has no skip connection, for its input is of
              another size: there s = 0 and c = 1.
    norm:     "batch": over the samples of the batch, or by given statistics, without the b that it would take away;
              "layer": over the units; both with a learned weight and bias a unit
    depths, activations: those of each network, where they differ; `depth` is then the greatest, and `activation` the
              first network's
    Raises:   ValueError: depths that do not fall, or an activation beside others that has a parameter of its own
    Source:   residual: He et al. 2016, arXiv:1512.03385; rezero: Bachlechner et al. 2021, arXiv:2003.04887;
              batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167; layer norm: Ba et al. 2016, arXiv:1607.06450
    """

    features: int
    outputs: int
    depth: int
    width: int
    activation: str
    residual: str = "none"
    norm: str = "none"
    depths: tuple[int, ...] = ()
    activations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.depths and (self.depths[0] != self.depth or list(self.depths) != sorted(self.depths, reverse=True)):
            raise ValueError(f"networks of the depths {self.depths} do not lie deepest first")
        if UNMIXED in self.activations:
            raise ValueError(f"networks with {UNMIXED} train with others of their kind alone")

    @classmethod
    def of(cls, configs: Sequence[Config], features: int, outputs: int) -> "MLP":
        """Return the networks of configurations that may differ in depth and in activation."""
        model = configs[0].model
        depths, activations = ([getattr(c.model, name) for c in configs] for name in ("depth", "activation"))
        return cls(
            features,
            outputs,
            model.depth,
            model.width,
            model.activation,
            model.residual,
            model.norm,
            tuple(depths) if len(set(depths)) > 1 else (),
            tuple(activations) if len(set(activations)) > 1 else (),
        )

    def alone(self, network: int) -> "MLP":
        """Return one network of them by itself."""
        depth = self.depths[network] if self.depths else self.depth
        activation = self.activations[network] if self.activations else self.activation
        return replace(self, depth=depth, activation=activation, depths=(), activations=())

    def live(self, layer: int, networks: int) -> int:
        """Return R_l: how many of the first networks have a layer; all have the output layer, L + 1."""
        if not self.depths or layer > self.depth:
            return networks
        return sum(depth >= layer for depth in self.depths[:networks])

    def parts(self, networks: int) -> list[tuple[str, int]]:
        """Return the activations of the first networks: each name with how many in a row have it."""
        if not self.activations:
            return [(self.activation, networks)]
        return [(name, len(list(row))) for name, row in itertools.groupby(self.activations[:networks])]

    def slots(self) -> list[Slot]:
        """Return every parameter, in the order in which they lie: by kind, then by layer."""
        inputs = [self.features, *[self.width] * self.depth]
        shapes = list(zip([*[self.width] * self.depth, self.outputs], inputs, strict=True))
        hidden = range(1, self.depth + 1)
        found = [Slot("weight", layer, shape) for layer, shape in enumerate(shapes, 1)]
        with_bias = (self.depth + 1,) if self.norm == "batch" else range(1, self.depth + 2)
        found += [Slot("bias", layer, shape[:1]) for layer, shape in enumerate(shapes, 1) if layer in with_bias]
        if self.norm != "none":
            found += [Slot(kind, layer, (self.width,)) for kind in ("norm_weight", "norm_bias") for layer in hidden]
        if self.residual == "rezero":
            found += [Slot("gate", layer, ()) for layer in hidden[1:]]
        if self.activation == "prelu":
            found += [Slot("slope", layer, ()) for layer in hidden]
        return found

    def sort(self, parameters: Sequence[Tensor]) -> Parameters:
        """Return the parameters, or anything else that lies as `slots` says, by kind."""
        pairs = list(zip(self.slots(), parameters, strict=True))
        return Parameters(**{name: [p for slot, p in pairs if slot.kind == kind] for kind, name in KINDS.items()})

    def parameters(
        self, configs: Sequence[Config], dtype: torch.dtype, batch: Callable[[int], Tensor] | None = None
    ) -> list[Tensor]:
        """Draw each network's parameters from its own stream, in the order of `slots`.

        batch:   gives a network's first batch, (B, F), for the initializations that look at data
        Raises:  DeadNetworkError: LSUV on a network of which a layer does not vary over the batch
        """
        drawn: dict[tuple[str, int], list[Tensor]] = {(slot.kind, slot.layer): [] for slot in self.slots()}
        for number, config in enumerate(configs):
            model = self.alone(number)
            parameters = model.draw(config, dtype)
            if config.init.name == "lsuv":
                if batch is None:
                    raise ValueError("init: lsuv needs the first batch")
                problem = model.scale_to_unit_variance(parameters, batch(number).unsqueeze(0), config.init.gain)
                if problem is not None:
                    raise DeadNetworkError(number, f"init: lsuv: {problem}")
            for slot, parameter in zip(model.slots(), parameters, strict=True):
                drawn[slot.kind, slot.layer if slot.layer <= model.depth else self.depth + 1].append(parameter)
        return [torch.cat(parameter) for parameter in drawn.values()]

    def draw(self, config: Config, dtype: torch.dtype) -> list[Tensor]:
        """Draw one network's parameters, each with a network axis of 1."""
        stream, init = generator(config.seed, "init"), config.init
        linears = {
            slot.layer: initialize(
                init.name,
                (slot.shape[0], slot.shape[1]),
                gain=init.gain,
                bias_std=init.bias_std,
                generator=stream,
                dtype=dtype,
                activation=self.activation,
                layer=slot.layer,
                depth=self.depth,
            )
            for slot in self.slots()
            if slot.kind == "weight"
        }
        constants = {"norm_weight": 1.0, "norm_bias": 0.0, "gate": init.gate, "slope": PRELU_START}
        found = []
        for slot in self.slots():
            if slot.kind in constants:
                found.append(torch.full((1, *slot.shape), constants[slot.kind], dtype=dtype))
            else:
                found.append(linears[slot.layer][slot.kind == "bias"].unsqueeze(0))
        return found

    def scale_to_unit_variance(self, parameters: Sequence[Tensor], x: Tensor, gain: float) -> str | None:
        """Scale one network's weights, layer after layer, until the outputs of each have the variance gain^2 on x.

        Returns: what stands in the way of it, or None
        Source:  LSUV: Mishkin and Matas 2016, arXiv:1511.06422, with its tolerance of 0.1 and 10 passes
        """
        p, target = self.sort(parameters), gain**2
        for layer in range(1, self.depth + 2):
            weight, bias = p.weights[layer - 1], self._bias(layer, p)
            for trial in range(LSUV_PASSES + 1):
                variance = float(linear(x, weight, bias).double().var(correction=0))
                where = f"the outputs of layer {layer} have the variance {variance:g} on the first batch"
                if not 0 < variance < math.inf:
                    return f"{where}: the network is dead there; choose another model.activation, init or init.gain"
                if abs(variance / target - 1) < LSUV_TOLERANCE:
                    break
                if trial == LSUV_PASSES:
                    return f"{where} after {LSUV_PASSES} passes, not {target:g}; choose a smaller init.bias_std"
                weight.mul_(math.sqrt(target / variance))
            if layer <= self.depth:
                x = self._hidden(layer, x, p, None, None, Trace())
        return None

    def __call__(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        masks: Sequence[Mask] = (),
        trace: Trace | None = None,
        *,
        input_mask: Mask | None = None,
        statistics: Sequence[Statistics] | None = None,
    ) -> Tensor:
        """Return the outputs (R, B, C) of x (R, B, F).

        masks:      a dropout mask a hidden layer, or nothing; input_mask: one of x
        statistics: those that batch norm is to use, a pair a hidden layer; it takes the batch's where none are given
        """
        sorted_, trace = self.sort(parameters), trace or Trace()
        ended: list[Tensor] = []  # the last hidden layers of networks that are less deep, the least deep first
        if input_mask is not None:
            x = network_dropout(x, *input_mask)
        for layer in range(1, self.depth + 1):
            networks, live = len(x), self.live(layer, len(x))
            if live < networks:
                ended.append(slice(x, 0, live, networks))
                x = slice(x, 0, 0, live)
            given = None if statistics is None else statistics[layer - 1]
            x = self._hidden(layer, x, sorted_, masks[layer - 1] if masks else None, given, trace)
        if ended:
            x = cat(0, x, *reversed(ended))
        trace.z.append(linear(x, sorted_.weights[-1], sorted_.biases[-1]))
        return trace.z[-1]

    def _hidden(
        self, layer: int, x: Tensor, p: Parameters, mask: Mask | None, given: Statistics | None, trace: Trace
    ) -> Tensor:
        z = linear(x, p.weights[layer - 1], self._bias(layer, p))
        n = z if self.norm == "none" else self._normalize(layer, z, p, given, trace)
        if mask is not None and not self.activations and self.activation in HOMOGENEOUS:
            branch = self._activate(layer, network_dropout(n, *mask), p)
        else:
            branch = self._activate(layer, n, p)
            branch = branch if mask is None else network_dropout(branch, *mask)
        if layer > 1 and self.residual == "scaled":
            branch = self._scale(branch)
        elif layer > 1 and self.residual == "rezero":
            branch = multiply(branch, reshape(p.gates[layer - 2], (-1, 1, 1)))
        h = branch if layer == 1 or self.residual == "none" else add(x, branch)
        trace.z.append(z)
        trace.n.append(n)
        trace.a.append(h)
        return h

    def _bias(self, layer: int, p: Parameters) -> Tensor | None:
        if layer > self.depth:
            return p.biases[-1]
        return None if self.norm == "batch" else p.biases[layer - 1]

    def _normalize(self, layer: int, z: Tensor, p: Parameters, given: Statistics | None, trace: Trace) -> Tensor:
        weight, bias = p.norm_weights[layer - 1], p.norm_biases[layer - 1]
        if self.norm == "layer":
            return network_layer_norm(z, weight, bias, NORM_EPS)
        if given is not None:
            return network_batch_norm_eval(z, *given, weight, bias, NORM_EPS)
        n, mean, variance = network_batch_norm.outputs(z, weight, bias, NORM_EPS)
        trace.statistics.append((mean, variance))
        return n

    def _activate(self, layer: int, n: Tensor, p: Parameters) -> Tensor:
        if self.activations:
            return network_activation(n, tuple(part_of(*part) for part in self.parts(len(n))))
        if self.activation == "prelu":
            return activations.prelu(n, p.slopes[layer - 1], 0)
        return ACTIVATIONS[self.activation].function(n)

    def _scale(self, branch: Tensor) -> Tensor:
        if not self.depths:
            return multiply(branch, 1 / math.sqrt(self.depth))
        return network_scale(branch, tuple(1 / math.sqrt(depth) for depth in self.depths[: len(branch)]))

    def slope(self, layer: int, n: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Return the slope of a hidden layer's activation at n, (R_l, B, W)."""
        if self.activation == "prelu":
            return activations.prelu_slope(n, self.sort(parameters).slopes[layer - 1], 0)
        if not self.activations:
            return ACTIVATIONS[self.activation].slope(n)
        names, counts = zip(*self.parts(len(n)), strict=True)
        return torch.cat([ACTIVATIONS[name].slope(part) for name, part in zip(names, n.split(counts), strict=True)])


def cross_entropy(outputs: Tensor, target: Tensor, label_smoothing: Tensor | None = None) -> Tensor:
    """Return each network's mean cross entropy, (R,); label_smoothing: (R,), or None for none."""
    return losses.network_cross_entropy(outputs, target, label_smoothing)


def mse(outputs: Tensor, target: Tensor, label_smoothing: Tensor | None = None) -> Tensor:
    """Return each network's mean squared error, (R,); it knows no smoothing."""
    return losses.network_mse_loss(outputs, target)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}
