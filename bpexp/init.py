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

Fill = Callable[["torch.Tensor", float, "torch.Generator"], object]


@dataclass(frozen=True)
class Init:
    """One way to initialize a linear layer.

    `std(fan_in, fan_out)` is that of a weight at gain 1; `fill(weight, std, generator)` draws the weights in place;
    the row's own biases are U(-bias_bound(fan_in), bias_bound(fan_in)), zero where the bound is zero.
    """

    name: str
    formula: str
    source: str
    std: Callable[[int, int], float]
    fill: Fill
    bias_bound: Callable[[int], float] = lambda fan_in: 0.0

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Return the variance of a weight at gain 1."""
        return self.std(fan_in, fan_out) ** 2

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
    """Return 1/sqrt(max(fan_in, fan_out)): min(i, o) unit vectors spread over i o entries."""
    return 1 / math.sqrt(max(fan_in, fan_out))


def std_one(fan_in: int, fan_out: int) -> float:
    """Return 1, so that the gain is the standard deviation."""
    return 1.0


def std_zero(fan_in: int, fan_out: int) -> float:
    """Return 0."""
    return 0.0


LECUN = "LeCun et al. 1998, Efficient BackProp, doi:10.1007/3-540-49430-8_2"
GLOROT = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, PMLR 9:249"
HE = "He et al. 2015, arXiv:1502.01852"
SAXE = "Saxe et al. 2013, arXiv:1312.6120"
PYTORCH = "torch.nn.Linear.reset_parameters, torch 2.13"
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the weight and then the bias of one linear layer of one network, on the CPU.

    Math:    weight = gain * INITS[name]; bias ~ N(0, bias_std^2), or the row's own where bias_std is None
    Shapes:  shape = (o, i); weight: (o, i), bias: (o,)
    Raises:  ValueError: unknown name; gain or bias_std negative or not finite
    Edge:    gain 0 gives zero weights and spends the same draws; the gain never scales the bias
    """
    import torch

    if name not in INITS:
        raise unknown_choice("init", name, INITS)
    _refuse_negative("init.gain", gain)
    init, (fan_out, fan_in) = INITS[name], shape
    weight = torch.empty(shape, dtype=dtype)
    init.fill(weight, init.std(fan_in, fan_out), generator)
    bias = torch.zeros(fan_out, dtype=dtype)
    if bias_std is not None:
        _refuse_negative("init.bias_std", bias_std)
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
