"""INITS: how the weights and biases of one linear layer are drawn.

Letters: `fan_in` = i inputs, `fan_out` = o outputs, N(m, v) and U(a, b) the normal and the uniform distribution.
The arithmetic of each standard deviation keeps torch.nn.init's order, so that equal generators give equal bits.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bpexp.activations import Activation, Function

Fill = Callable[["torch.Tensor", float, "torch.Generator"], object]


@dataclass(frozen=True)
class Place:
    """Where a linear layer stands: layer 1..depth+1 of a network, what its hidden layers apply, and Var b."""

    activation: str | Function | Activation = "identity"
    bias_std: float = 0.0
    layer: int = 1
    depth: int = 1


@dataclass(frozen=True)
class Init:
    """One way to initialize a linear layer.

    `std(fan_in, fan_out)` is that of a weight at gain 1, and `scale(place)` a factor on it that depends on the rest of
    the network; `fill(weight, std, generator)` draws the weights in place; the row's own biases are
    U(-bias_bound(fan_in), bias_bound(fan_in)), zero where the bound is zero.
    """

    name: str
    formula: str
    source: str
    std: Callable[[int, int], float]
    fill: Fill
    bias_bound: Callable[[int], float] = lambda fan_in: 0.0
    scale: Callable[[Place], float] = lambda place: 1.0

    def variance(self, fan_in: int, fan_out: int, place: Place = Place()) -> float:
        """Return the variance of a weight at gain 1."""
        return (self.scale(place) * self.std(fan_in, fan_out)) ** 2

    def bias_variance(self, fan_in: int, bias_std: float | None = None) -> float:
        """Return the variance of a bias; `bias_std=None` is the row's own."""
        return self.bias_bound(fan_in) ** 2 / 3 if bias_std is None else bias_std**2


def fill_normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Draw every weight from N(0, std^2)."""
    weight.normal_(0.0, std, generator=generator)


def fill_uniform(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Draw every weight from U(-b, b) with b = sqrt(3) std, whose standard deviation is `std`."""
    bound = math.sqrt(3.0) * std
    weight.uniform_(-bound, bound, generator=generator)


def fill_orthogonal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Draw a matrix with orthonormal rows or columns, whichever are fewer; they fix its `std`.

    Math:    A = QR for A of independent N(0, 1), tall; W = Q diag(sign(diag R)), transposed back where it is wide
    Source:  the signs make Q uniform over the orthogonal matrices: Mezzadri 2007, arXiv:math-ph/0609050
    """
    import torch

    wide = weight.shape[0] < weight.shape[1]
    gaussian = torch.empty_like(weight).normal_(generator=generator)
    q, r = torch.linalg.qr(gaussian.T if wide else gaussian)
    q = q * r.diagonal().sign()
    weight.copy_(q.T if wide else q)


def fill_zeros(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Set every weight to zero, drawing nothing."""
    weight.zero_()


def fill_identity(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Set weight[k, k] to 1 and all others to 0, drawing nothing; what fits of a wider or a taller one."""
    weight.zero_().fill_diagonal_(1.0)


def std_pytorch(fan_in: int, fan_out: int) -> float:
    """Return nn.Linear's standard deviation, that of U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return math.sqrt(1 / 3) / math.sqrt(fan_in)


def std_lecun(fan_in: int, fan_out: int) -> float:
    """Return 1/sqrt(fan_in): a linear layer keeps the size of its input."""
    return 1 / math.sqrt(fan_in)


def std_glorot(fan_in: int, fan_out: int) -> float:
    """Return sqrt(2/(fan_in + fan_out)): a compromise between the forward and the backward pass."""
    return math.sqrt(2 / (fan_in + fan_out))


def std_he(fan_in: int, fan_out: int) -> float:
    """Return sqrt(2/fan_in): a relu layer keeps the size of its input."""
    return math.sqrt(2) / math.sqrt(fan_in)


def std_orthogonal(fan_in: int, fan_out: int) -> float:
    """Return 1/sqrt(max(fan_in, fan_out)): min(i, o) unit vectors spread over i o entries, those of eye too."""
    return 1 / math.sqrt(max(fan_in, fan_out))


def std_one(fan_in: int, fan_out: int) -> float:
    """Return 1, so that the gain is the standard deviation."""
    return 1.0


def std_zero(fan_in: int, fan_out: int) -> float:
    """Return 0."""
    return 0.0


def scale_critical(place: Place) -> float:
    """Return sigma_w, with which gradients neither grow nor shrink: see `bpexp.theory.critical`."""
    from bpexp import theory

    return theory.critical(place.activation, place.bias_std)


def scale_fixup(place: Place) -> float:
    """Return 1 in layer 1, and 0 in the branches behind it and in the output layer.

    Math:    L branches of m layers start such that a step changes the outputs as much whatever L is: the last layer of
             each starts at 0, the others at L^(-1/(2m-2)) of he. Our branch c phi(W h + b) has m = 1 layer, which is
             its last one: it starts at 0, and the exponent, which has no finite value, has no layer to apply to. The
             output layer starts at 0. Layer 1, which no skip goes around, is he. Fixup's multiplier of a branch is the
             gate c of model.residual=rezero with init.gate=1.
    Raises:  ValueError: a branch that does not start at 0 (phi(0) or a bias is not 0), or whose weights get no gradient
             at 0 (phi'(0) = 0 by convention, as relu's): they would stay 0 for ever
    """
    if place.bias_std:
        raise ValueError(
            f"init.bias_std: {place.bias_std:g} would start fixup's branches off zero; choose init.bias_std=0"
        )
    from bpexp import theory
    from bpexp.activations import ACTIVATIONS

    value, slope = theory.value_and_slope_at_zero(place.activation)
    if value != 0 or slope == 0:
        name = theory.resolve(place.activation).name
        why = (
            f"{name} hands on {value:g} there, and a branch has to start at 0"
            if value != 0
            else f"{name} has the slope 0 there, so the weights of a branch would stay zero for ever"
        )
        fit = [n for n, (v, s) in ((n, theory.value_and_slope_at_zero(n)) for n in ACTIVATIONS) if v == 0 and s != 0]
        raise ValueError(f"init: fixup starts branches at zero: {why}; choose model.activation from {', '.join(fit)}")
    return float(place.layer == 1)


LECUN = "LeCun et al. 1998, Efficient BackProp, doi:10.1007/3-540-49430-8_2"
GLOROT = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, PMLR 9:249"
HE = "He et al. 2015, arXiv:1502.01852"
SAXE = "Saxe et al. 2013, arXiv:1312.6120"
PYTORCH = "torch.nn.Linear.reset_parameters, torch 2.13"
SCHOENHOLZ = "Schoenholz et al. 2017, arXiv:1611.01232; for any activation: Hayou et al. 2019, arXiv:1902.06853"
LE = "Le, Jaitly and Hinton 2015, arXiv:1504.00941"
MISHKIN = "Mishkin and Matas 2016, arXiv:1511.06422"
ZHANG = "Zhang, Dauphin and Ma 2019, arXiv:1901.09321"
SUTSKEVER = "the unscaled baseline; what its scale does to a deep network: Sutskever et al. 2013, PMLR 28(3):1139"

INITS: dict[str, Init] = {
    init.name: init
    for init in (
        Init(
            "pytorch",
            "W, b ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in))",
            PYTORCH,
            std_pytorch,
            fill_uniform,
            lambda fan_in: 1 / math.sqrt(fan_in),
        ),
        Init("lecun", "W ~ N(0, 1/fan_in)", LECUN, std_lecun, fill_normal),
        Init("glorot", "W ~ N(0, 2/(fan_in + fan_out))", GLOROT, std_glorot, fill_normal),
        Init("he", "W ~ N(0, 2/fan_in)", HE, std_he, fill_normal),
        Init("lecun_uniform", "W ~ U(-a, a), a = sqrt(3/fan_in)", LECUN, std_lecun, fill_uniform),
        Init("glorot_uniform", "W ~ U(-a, a), a = sqrt(6/(fan_in + fan_out))", GLOROT, std_glorot, fill_uniform),
        Init("he_uniform", "W ~ U(-a, a), a = sqrt(6/fan_in)", HE, std_he, fill_uniform),
        Init("orthogonal", "W^T W = I, or W W^T = I where W is wide", SAXE, std_orthogonal, fill_orthogonal),
        Init("normal", "W ~ N(0, 1)", SUTSKEVER, std_one, fill_normal),
        Init("uniform", "W ~ U(-sqrt(3), sqrt(3))", SUTSKEVER, std_one, fill_uniform),
        Init(
            "zeros",
            "W = 0",
            "the symmetry it never breaks: Rumelhart et al. 1986, doi:10.1038/323533a0",
            std_zero,
            fill_zeros,
        ),
        Init(
            "critical",
            "W ~ N(0, sigma_w^2/fan_in), sigma_w^2 E phi'(sqrt(q) z)^2 = 1 at the length q that layers tend to",
            SCHOENHOLZ,
            std_lecun,
            fill_normal,
            scale=scale_critical,
        ),
        Init("identity", "W = I, and what fits of I where W is not square", LE, std_orthogonal, fill_identity),
        Init(
            "lsuv",
            "W^T W = I or W W^T = I, then each layer in turn W <- W gain/std(W h + b) on the first batch",
            MISHKIN,
            std_orthogonal,
            fill_orthogonal,
        ),
        Init(
            "fixup",
            "W ~ N(0, 2/fan_in) in layer 1, W = 0 behind it; needs residual branches; Fixup's multipliers are the gates"
            " of model.residual=rezero with init.gate=1",
            ZHANG,
            std_he,
            fill_normal,
            scale=scale_fixup,
        ),
    )
}


def initialize(
    name: str,
    shape: tuple[int, int],
    *,
    gain: float = 1.0,
    bias_std: float | None = None,
    generator: torch.Generator,
    dtype: torch.dtype,
    activation: str | Function | Activation = "identity",
    layer: int = 1,
    depth: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the weight and then the bias of one linear layer of one network, on the CPU.

    Math:    weight = gain * INITS[name]; bias ~ N(0, bias_std^2), or the row's own where bias_std is None
    Shapes:  shape = (o, i); weight: (o, i), bias: (o,)
    Raises:  ValueError: unknown name; gain or bias_std negative or not finite; a layer that is not among 1..depth+1;
             an activation that has no critical point, or that fixup's branches do not start with
    Edge:    gain 0 gives zero weights and spends the same draws; the gain never scales the bias; lsuv is drawn as
             orthogonal, for to scale it takes data and the layers below
    """
    import torch

    if name not in INITS:
        raise unknown_choice("init", name, INITS)
    _refuse_negative("init.gain", gain)
    _refuse_negative("init.bias_std", bias_std or 0.0)
    if not 1 <= layer <= depth + 1:
        raise ValueError(f"layer: {layer} is not among 1 to depth + 1 = {depth + 1}")
    init, (fan_out, fan_in) = INITS[name], shape
    scale = init.scale(Place(activation, bias_std or 0.0, layer, depth))
    weight = torch.empty(shape, dtype=dtype)
    init.fill(weight, scale * init.std(fan_in, fan_out), generator)
    bias = torch.zeros(fan_out, dtype=dtype)
    if bias_std is not None:
        bias.normal_(0.0, bias_std, generator=generator)
    elif bound := init.bias_bound(fan_in):
        bias.uniform_(-bound, bound, generator=generator)
    return weight.mul_(gain), bias


def unknown_choice(key: str, name: str, choices: Iterable[str]) -> ValueError:
    """Return the error for a `name` that is none of a table's, with the nearest that is."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"{key}: unknown {name!r}; {hint}choose from {', '.join(names)}")


def _refuse_negative(key: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{key}: {value} is not a finite number of at least 0")
