"""Elementwise activations y = f(x): one row each.

A slope picks `x` or `y` by name, whichever is cheaper to keep. At a kink the slope is torch's convention, and the
sample named `kink` holds it.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import Sample, elementwise

SELU_ALPHA = 1.6732632423543772848170429916717  # the fixed point (0, 1) of Klambauer et al. 2017
SELU_SCALE = 1.0507009873554804934193349852946
SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def samples_at(*kinks: float, constants: tuple[object, ...] = ()) -> Callable[[torch.Generator], Sequence[Sample]]:
    """Samples of every shape that matters, with the kinks, if there are any, apart."""

    def make(generator: torch.Generator) -> Sequence[Sample]:
        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

        samples = [
            Sample("scalar", (normal(), *constants)),
            Sample("batch", (normal(5, 7), *constants)),
            Sample("networks", (normal(2, 3, 4), *constants)),
            Sample("transposed", (normal(4, 3).mT, *constants)),
            Sample("large", (normal(9, scale=30.0), *constants)),
            Sample("empty", (normal(0, 3), *constants)),
        ]
        if kinks:
            samples.append(Sample("kink", (torch.tensor(kinks, dtype=torch.float64), *constants), kink=True))
        return samples

    return make


sigmoid = elementwise(
    "sigmoid",
    lambda x: torch.sigmoid(x),
    lambda y: y * (1 - y),
    torch.sigmoid,
    samples_at(),
    "Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0",
)
tanh = elementwise(
    "tanh",
    lambda x: torch.tanh(x),
    lambda y: 1 - y * y,
    torch.tanh,
    samples_at(),
    "LeCun et al. 1998, Efficient BackProp",
)
relu = elementwise(
    "relu",
    lambda x: torch.relu(x),
    lambda y: (y != 0).to(y.dtype),  # slope 0 at 0; a NaN passes its gradient on, as torch's does
    torch.relu,
    samples_at(0.0),
    "Nair & Hinton 2010",
)
leaky_relu = elementwise(
    "leaky_relu",
    lambda x, negative_slope: torch.where(x > 0, x, x * negative_slope),
    lambda x, negative_slope: torch.where(x > 0, torch.ones_like(x), negative_slope),  # two numbers would be float32
    F.leaky_relu,
    samples_at(0.0, constants=(0.1,)),
    "Maas, Hannun & Ng 2013",
)
elu = elementwise(
    "elu",
    lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))),
    lambda x, alpha: torch.where(x > 0, 1.0, alpha * torch.exp(x.clamp(max=0))),
    F.elu,
    samples_at(0.0, constants=(0.7,)),
    "Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
)
selu = elementwise(
    "selu",
    lambda x: SELU_SCALE * torch.where(x > 0, x, SELU_ALPHA * torch.expm1(x.clamp(max=0))),
    lambda x: SELU_SCALE * torch.where(x > 0, 1.0, SELU_ALPHA * torch.exp(x.clamp(max=0))),
    F.selu,
    samples_at(0.0),
    "Klambauer et al. 2017, arXiv:1706.02515",
)
gelu = elementwise(
    "gelu",
    lambda x: F.gelu(x),
    lambda x: 0.5 * (1 + torch.erf(x * SQRT_HALF)) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi),
    F.gelu,
    samples_at(),
    "Hendrycks & Gimpel 2016, arXiv:1606.08415",
)


def gelu_tanh_slope(x: Tensor) -> Tensor:
    inner = torch.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + inner) + 0.5 * x * (1 - inner * inner) * SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)


gelu_tanh = elementwise(
    "gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh"),
    gelu_tanh_slope,
    lambda x: F.gelu(x, approximate="tanh"),
    samples_at(),
    "Hendrycks & Gimpel 2016, arXiv:1606.08415, the tanh approximation",
)


def silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


silu = elementwise(
    "silu",
    lambda x: F.silu(x),
    silu_slope,
    F.silu,
    samples_at(),
    "Elfwing, Uchibe & Doya 2018, arXiv:1702.03118",
)
softplus = elementwise(
    "softplus",
    lambda x, beta, threshold: F.softplus(x, beta, threshold),
    lambda x, beta, threshold: torch.where(x * beta > threshold, 1.0, torch.sigmoid(x * beta)),
    F.softplus,
    samples_at(constants=(1.5, 20.0)),
    "Dugas et al. 2001",
)
softsign = elementwise(
    "softsign",
    lambda x: x / (1 + x.abs()),
    lambda x: 1 / (1 + x.abs()).square(),
    F.softsign,
    samples_at(),
    "Bergstra et al. 2009; Glorot & Bengio 2010",
)
hardtanh = elementwise(
    "hardtanh",
    lambda x, min_val, max_val: x.clamp(min_val, max_val),
    lambda x, min_val, max_val: ((x > min_val) & (x < max_val)).to(x.dtype),
    F.hardtanh,
    samples_at(-0.5, 2.0, constants=(-0.5, 2.0)),
    "Collobert 2004",
)
